"""How a restorer is trained, and then the adapter of its references.

The restorer learns first, without references, and is frozen. Then the adapter learns: from right
references, right ones that lack or add a lesion, and references of other bodies, so that it learns
what not to take over. Everything is in units of `UNIT` HU, slices are [n, s, s].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from imageprompt.workflows.restore_ct.network import (
    UNIT,
    Adapter,
    Encoder,
    Restorer,
    agreement,
)
from imageprompt.workflows.restore_ct.phantoms import (
    Body,
    draw,
    later_scan,
    random_body,
    random_lesion,
    region,
)
from imageprompt.workflows.restore_ct.projection import FULL, Dose, low_dose, noise_free
from imageprompt.workflows.restore_ct.registration import registered

CROP = 48
BATCH = 4
RATE = 2e-3
SSIM_SHARE, PERCEPTUAL_SHARE = 0.2, 0.1
TOWER_AT = 0.2
"""The share of the steps after which the perceptual loss begins, with the encoder as it is then."""
WRONG = 0.3
"""The share of references of other bodies."""
LESION_WEIGHT = 8.0
_SLOPE = 0.1  # of the loss outside the window

Progress = Callable[[int, float], None]
"""(step, loss), after each step."""


@dataclass(frozen=True)
class Pairs:
    """Slices with a reference each, [n, s, s] in units of `UNIT` HU.

    `weight` is how much each pixel counts: more where scan or reference has a lesion.
    """

    target: Tensor
    low: Tensor
    reference: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Case:
    """A drawn body, as the scan and as the reference show it; `shift` in mm."""

    scan: Body
    reference: Body
    shift: tuple[float, float]


# ── data ────────────────────────────────────────────────────────────────────────────────────────


def random_case(rng: np.random.Generator, field_mm: float) -> Case:
    """Half of the cases differ in a lesion: the reference has it and the scan does not, or the
    reverse."""
    body = random_body(rng, field_mm)
    later = later_scan(rng, body, change=rng.uniform(0.3, 2.0))
    kind = rng.integers(4)
    scan = Body(body.ellipses, body.lesions if kind != 1 else (), body.texture)
    reference = Body(later.ellipses, later.lesions if kind != 2 else (), later.texture)
    if kind == 3:
        scan = Body(scan.ellipses, (*scan.lesions, random_lesion(rng, body)), scan.texture)
    return Case(scan, reference, (rng.uniform(-15, 15), rng.uniform(-15, 15)))


def drawn(
    cases: list[Case], size: int, pixel_mm: float, dose: Dose, generator: torch.Generator
) -> Pairs:
    """The cases as scans at that dose, and their references at full dose."""
    scans, references, weights = [], [], []
    for case in cases:
        scans.append(draw(case.scan, size, pixel_mm))
        references.append(draw(case.reference, size, pixel_mm, shift=case.shift))
        marked = np.ones((size, size))
        for lesion in {*case.scan.lesions, *case.reference.lesions}:
            marked[region(lesion, size, pixel_mm, grow=1.5)] = LESION_WEIGHT
        weights.append(marked)
    return taken(_tensor(scans), _tensor(references), pixel_mm, dose, generator, _tensor(weights))


def taken(
    scans: Tensor,
    references: Tensor,
    pixel_mm: float,
    dose: Dose,
    generator: torch.Generator,
    weight: Tensor | None = None,
) -> Pairs:
    """Slices in HU -> what the scanner shows of them; a few at a time."""
    parts = []
    for scan, reference in zip(torch.split(scans, 8), torch.split(references, 8), strict=True):
        target = noise_free(scan, pixel_mm) / UNIT
        low = low_dose(scan, pixel_mm, dose, generator) / UNIT
        shown = low_dose(reference, pixel_mm, FULL, generator) / UNIT
        parts.append((target, low, shown))
    target, low, shown = (torch.cat(part) for part in zip(*parts, strict=True))
    return Pairs(target, low, shown, torch.ones_like(target) if weight is None else weight)


def _tensor(pictures: list[NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).float()


# ── losses ──────────────────────────────────────────────────────────────────────────────────────


def windowed(x: Tensor) -> Tensor:
    """The abdominal window (50 ± 200 HU) as 0..1; less steep outside, so that it can be left."""
    y = (x * UNIT + 150) / 400
    inside = y.clamp(0, 1)
    return inside + _SLOPE * (y - inside)


def loss_of(found: Tensor, target: Tensor, weight: Tensor, tower: nn.Module | None) -> Tensor:
    """L1 in the window, SSIM in the window, and L1 of the features of a tower; [n, 1, h, w]."""
    a, b = windowed(found), windowed(target)
    loss = (weight * (a - b).abs()).mean() + SSIM_SHARE * (1 - _ssim(a, b))
    if tower is not None:
        for one, other in zip(tower(found), tower(target), strict=True):
            spread = other.detach().abs().mean() + 1e-6
            loss = loss + PERCEPTUAL_SHARE * (one - other).abs().mean() / spread
    return loss


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean over windows of 7 x 7 pixels of pictures of 0..1."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 7, 1)

    mean_a, mean_b = mean(a), mean(b)
    spread = mean(a * a) + mean(b * b) - mean_a**2 - mean_b**2
    shared = mean(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return (alike * (2 * shared + 9e-4) / (spread + 9e-4)).mean()


class Tower(nn.Module):
    """The two finest levels of an encoder, as it is now, frozen."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        copied = Encoder(1)
        copied.load_state_dict(encoder.state_dict())
        copied.blocks = copied.blocks[:2]
        self.encoder = copied.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.encoder(x)
        return features


# ── training ────────────────────────────────────────────────────────────────────────────────────


def train_restorer(
    pairs: Pairs, steps: int, generator: torch.Generator, progress: Progress | None = None
) -> tuple[Restorer, Tower]:
    """A restorer that sees the slices alone, and the tower of its loss."""
    restorer, tower = Restorer(), None
    descent = _Descent(restorer, steps)
    for step in range(steps):
        if step == int(steps * TOWER_AT):
            tower = Tower(restorer.encoder)
        target, low, weight = _crops(
            (pairs.target, pairs.low, torch.ones_like(pairs.weight)), pairs.target, generator
        )
        loss = loss_of(restorer(low), target, weight, tower)
        descent.step(loss)
        if progress is not None:
            progress(step, float(loss.detach()))
    return restorer.eval().requires_grad_(False), tower or Tower(restorer.encoder)


def train_adapter(
    restorer: Restorer,
    tower: Tower | None,
    pairs: Pairs,
    steps: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Adapter:
    """The adapter of a frozen restorer."""
    adapter = Adapter()
    descent = _Descent(adapter, steps)
    references = _References(restorer, pairs)
    for step in range(steps):
        target, low, alone, reference, weight = references.crops(generator)
        found = restorer(low, adapter(reference, low, alone))
        loss = loss_of(found, target, weight, tower)
        descent.step(loss)
        if progress is not None:
            progress(step, float(loss.detach()))
    return adapter.eval().requires_grad_(False)


def train_channel(
    restorer: Restorer,
    tower: Tower | None,
    pairs: Pairs,
    steps: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Restorer:
    """A restorer whose second channel is the reference, for comparison; `restorer` works alone
    and registers."""
    channel = Restorer(2)
    references = _References(restorer, pairs)
    descent = _Descent(channel, steps)
    for step in range(steps):
        target, low, _, reference, weight = references.crops(generator)
        loss = loss_of(channel(torch.cat((low, reference), 1)), target, weight, tower)
        descent.step(loss)
        if progress is not None:
            progress(step, float(loss.detach()))
    return channel.eval().requires_grad_(False)


@dataclass(frozen=True)
class Limits:
    """When a reference is not believed."""

    agreement: float
    """The least correlation of reference and slice over the body (see `likeness_of`)."""
    noise_hu: float
    """Standard deviation of the mean of `CHECK` x `CHECK` pixels of a low-dose slice."""


CHECK = 9
"""Side of the windows in which a restored slice is checked against the scan, in pixels."""


@torch.no_grad()
def calibrated(restorer: Restorer, pairs: Pairs) -> Limits:
    """Limits that keep right references of the pairs and leave out those of other bodies."""
    references = _References(restorer, pairs)
    right = likeness_of(references.right, references.alone)
    wrong = likeness_of(references.wrong, references.alone)
    between = (right.quantile(0.01) + wrong.quantile(0.99)) / 2
    noise = F.avg_pool2d((pairs.low - pairs.target)[:, None], CHECK, 1)[:, 0]
    inside = F.avg_pool2d((pairs.target > -1).float()[:, None], CHECK, 1)[:, 0] == 1
    deviation = noise[inside].std() if inside.any() else noise.std()
    return Limits(float(between), float(deviation) * UNIT)


def likeness_of(references: Tensor, alone: Tensor) -> Tensor:
    """How far registered references agree with restored slices [n, h, w]: mean correlation of
    windows inside the body, -1..1, [n]."""
    found = []
    for one, slice_ in zip(references, alone, strict=True):
        window = agreement(one[None, None], slice_[None, None], slice_[None, None])[0, -3]
        body = slice_ > -1
        found.append(window[body].mean() if body.any() else window.mean())
    return torch.stack(found)


class _References:
    """Crops of pairs whose references are registered; some are those of another body."""

    def __init__(self, restorer: Restorer, pairs: Pairs) -> None:
        self.alone = restored_alone(restorer, pairs.low)
        self.right = registered(pairs.reference, self.alone)
        self.wrong = registered(pairs.reference.roll(1, 0), self.alone)
        self.pairs = pairs

    def crops(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Target, low dose, restored alone, reference and weight, [n, 1, h, w] each."""
        one = self.pairs
        stacks = (one.target, one.low, self.alone, self.right, self.wrong, one.weight)
        target, low, alone, right, wrong, weight = _crops(stacks, one.target, generator)
        other = torch.rand(len(target), 1, 1, 1, generator=generator) < WRONG
        reference = torch.where(other, wrong, right)
        return target, low, alone, reference, torch.where(other, 1.0, weight)


@torch.no_grad()
def restored_alone(restorer: Restorer, low: Tensor) -> Tensor:
    """Slices [n, s, s] without a reference, a few at a time."""
    return torch.cat([restorer(part[:, None])[:, 0] for part in torch.split(low, 4)])


class _Descent:
    """AdamW whose rate rises in a twentieth of the steps and falls along a cosine."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=1e-4)
        rise = max(steps // 20, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
        )

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()


def _crops(stacks: tuple[Tensor, ...], target: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The same random crops of each stack, turned alike; around pixels of the body."""
    count, size = target.shape[0], target.shape[-1]
    side = min(CROP, size)
    crops: list[list[Tensor]] = [[] for _ in stacks]
    for _ in range(BATCH):
        at = int(torch.randint(count, (), generator=generator))
        body = (target[at] > -1).nonzero()
        if not len(body):
            body = torch.full((1, 2), size // 2)
        middle = body[int(torch.randint(len(body), (), generator=generator))]
        top, left = ((middle - side // 2).clamp(0, size - side)).tolist()
        flip = [axis for axis in (0, 1) if torch.rand((), generator=generator) < 0.5]
        for found, stack in zip(crops, stacks, strict=True):
            found.append(stack[at, top : top + side, left : left + side].flip(flip))
    return [torch.stack(found)[:, None] for found in crops]
