"""A small restoration U-Net, and a reference for it by decoupled attention over local windows.

`Restorer` restores a slice alone. At two places of its decoder each pixel attends to the window
around it. `Adapter` adds a second attention there: the same queries, keys and values of the
reference, times a live scale and a gate. At scale 0 the restorer computes exactly what it computes
alone. This is the idea of IP-Adapter, but no IP-Adapter: nothing here is a diffusion model.

Pictures are [n, 1, h, w] in units of `UNIT` HU; heights and widths are multiples of `MULTIPLE`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNIT = 500.0
MULTIPLE = 4
WIDTHS = (16, 32, 64)
"""Channels at full, half and quarter size."""
HEADS = 2
WINDOWS = (3, 5)
"""Sides of the windows of attention, at full and half size."""
SCALES = (5, 9, 17)
"""Windows in which the slice and the reference are compared, in pixels."""


class Block(nn.Sequential):
    """Two convolutions, [n, channels, h, w] -> [n, width, h, w]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )


class Encoder(nn.Module):
    """A picture -> features at full, half and quarter size."""

    def __init__(self, channels: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        pairs = zip((channels, *widths), widths, strict=False)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for block in self.blocks:
            found.append(block(F.avg_pool2d(found[-1], 2) if found else x))
        return found


# ── attention ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Tokens:
    """What a reference gives to one place: keys and values at their positions [n, c, h, w], scores
    of the offsets in a window [heads, window²], the score of a token without a value [heads], and
    how far each pixel trusts it [n, heads, h, w]."""

    key: Tensor
    value: Tensor
    offsets: Tensor
    nothing: Tensor
    gate: Tensor


class WindowAttention(nn.Module):
    """Each pixel attends to the window around it; residual, [n, c, h, w] -> the same."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.to_q = nn.Conv2d(width, width, 1)
        self.to_k = nn.Conv2d(width, width, 1)
        self.to_v = nn.Conv2d(width, width, 1)
        self.to_out = nn.Conv2d(width, width, 1)
        self.offsets = nn.Parameter(torch.zeros(HEADS, window**2))

    def forward(self, x: Tensor, tokens: Tokens | None = None, scale: float = 1.0) -> Tensor:
        query = self.to_q(x)
        found = attend(query, self.to_k(x), self.to_v(x), self.offsets)
        if tokens is not None:
            second = attend(query, tokens.key, tokens.value, tokens.offsets, tokens.nothing)
            gate = tokens.gate.repeat_interleave(x.shape[1] // HEADS, 1)
            found = found + scale * gate * second
        added: Tensor = self.to_out(found)
        return x + added


def attend(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, nothing: Tensor | None = None
) -> Tensor:
    """Attention of each pixel over its window, [n, c, h, w] -> [n, c, h, w]; see `Tokens`."""
    count, width, rows, columns = query.shape
    split, area = (count, HEADS, width // HEADS, -1, rows * columns), offsets.shape[1]
    window = math.isqrt(area)
    keys = F.unfold(key, window, padding=window // 2).view(split)
    values = F.unfold(value, window, padding=window // 2).view(split)
    scores = (query.view(split) * keys).sum(2) * split[2] ** -0.5 + offsets[:, :, None]
    if nothing is not None:
        least = nothing[:, None, None].expand(count, HEADS, 1, rows * columns)
        scores = torch.cat((scores, least), 2)
    weights = scores.softmax(2)[:, :, None, :area]
    found: Tensor = (weights * values).sum(3)
    return found.view(query.shape)


# ── the restorer ────────────────────────────────────────────────────────────────────────────────


class Restorer(nn.Module):
    """A low-dose slice -> the slice. With two channels, the second is the reference."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.encoder = Encoder(channels)
        self.decode_middle = Block(coarse + middle, middle)
        self.attend_middle = WindowAttention(middle, WINDOWS[1])
        self.decode_fine = Block(middle + fine, fine)
        self.attend_fine = WindowAttention(fine, WINDOWS[0])
        self.out = nn.Conv2d(fine, 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Tensor, tokens: tuple[Tokens, Tokens] | None = None, scale: float = 1.0
    ) -> Tensor:
        """`tokens` are those of an `Adapter`; scale 0 leaves them out."""
        middle_tokens, fine_tokens = tokens if tokens and scale else (None, None)
        fine, middle, coarse = self.encoder(x)
        y = self.decode_middle(torch.cat((_doubled(coarse), middle), 1))
        y = self.attend_middle(y, middle_tokens, scale)
        y = self.decode_fine(torch.cat((_doubled(y), fine), 1))
        y = self.attend_fine(y, fine_tokens, scale)
        change: Tensor = self.out(y)
        return x[:, :1] + change


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


# ── the reference ───────────────────────────────────────────────────────────────────────────────


class Adapter(nn.Module):
    """A reference -> tokens for the two attentions of a restorer, which stays as it is.

    The encoder sees where the reference differs from the slice, and the gate how far the two agree
    around each pixel: what only the reference shows can be left out.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, _ = WIDTHS
        self.encoder = Encoder(3, (fine, middle))
        self.middle = _Site(middle, WINDOWS[1])
        self.fine = _Site(fine, WINDOWS[0])

    def forward(self, reference: Tensor, x: Tensor, alone: Tensor) -> tuple[Tokens, Tokens]:
        """The reference, registered to the slice `x`; `alone` is the slice as restored without
        it."""
        seen = torch.cat((reference, reference - alone, reference - _mean(x, SCALES[0])), 1)
        fine, middle = self.encoder(seen)
        agreed = agreement(reference, x, alone)
        return self.middle(middle, F.avg_pool2d(agreed, 2)), self.fine(fine, agreed)


class _Site(nn.Module):
    """Features of a reference, and its agreement with the slice -> tokens for one attention."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.to_k = nn.Conv2d(width, width, 1)
        self.to_v = nn.Conv2d(width, width, 1)
        self.offsets = nn.Parameter(torch.zeros(HEADS, window**2))
        self.nothing = nn.Parameter(torch.zeros(HEADS))
        self.gate = nn.Sequential(
            nn.Conv2d(3 * len(SCALES), 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, HEADS, 1)
        )
        nn.init.zeros_(self.to_v.weight)
        nn.init.zeros_(self.to_v.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, agreed: Tensor) -> Tokens:
        gate = self.gate(agreed).sigmoid()
        return Tokens(self.to_k(features), self.to_v(features), self.offsets, self.nothing, gate)


def agreement(reference: Tensor, x: Tensor, alone: Tensor) -> Tensor:
    """How far a reference agrees with a slice in windows of `SCALES` pixels, [n, 9, h, w].

    For each window the correlation with the restored slice, -1..1, and how far the mean differs
    from the restored and from the low-dose slice, whose noise is not biased.
    """
    maps = []
    for window in SCALES:
        a, b = _mean(alone, window), _mean(reference, window)
        shared = _mean(alone * reference, window) - a * b
        spread_a, spread_b = _mean(alone**2, window) - a**2, _mean(reference**2, window) - b**2
        together = (spread_a.clamp(min=0) * spread_b.clamp(min=0)).sqrt()
        maps += [shared / (together + 1e-3), (a - b).abs(), (_mean(x, window) - b).abs()]
    return torch.cat(maps, 1)


def _mean(x: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)
