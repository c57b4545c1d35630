"""A trained restorer with the adapter of its references: a file, and slices of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from imageprompt.checkpoint.torch_io import read_file, torch_tensors, write_safetensors
from imageprompt.core import __version__
from imageprompt.core.errors import AdapterFileError
from imageprompt.workflows.restore_ct.network import MULTIPLE, UNIT, Adapter, Restorer
from imageprompt.workflows.restore_ct.notice import NOTICE
from imageprompt.workflows.restore_ct.projection import Dose
from imageprompt.workflows.restore_ct.registration import registered
from imageprompt.workflows.restore_ct.training import CHECK, Limits, likeness_of

TILE, MARGIN = 192, 64
"""Side of a tile, and what is seen around it, in pixels; pixels farther away do not matter."""
TRUST = 0.8
"""How much of what a reference changes is taken over, beside the check."""
_SPREAD = 5  # pixels around one that the scan contradicts
_KIND = "imageprompt restore-ct"
_PARTS = ("restorer", "adapter")


@dataclass(frozen=True)
class Restored:
    """Slices [n, h, w] in HU, and what became of the references; None without any."""

    slices: Tensor
    trust: Tensor | None
    """How far the reference counts at each pixel, 0..1."""
    agreement: list[float] | None
    """Of each reference and its slice, -1..1."""


@dataclass(frozen=True)
class Model:
    """Both networks, and what they were trained for."""

    restorer: Restorer
    adapter: Adapter
    limits: Limits
    dose: Dose
    pixel_mm: float
    trained_on: str
    """In words."""

    @torch.no_grad()
    def restore(
        self,
        slices: Tensor,
        references: Tensor | None = None,
        scale: float = 1.0,
        progress: Callable[[int, int], object] | None = None,
        *,
        trust: float = TRUST,
        checked: bool = True,
    ) -> Restored:
        """Slices [n, h, w] in HU, each with its reference, which is registered to it.

        Without references, at scale 0 or at trust 0, the restorer works alone. `checked` leaves out
        what the reference changes where the scan contradicts it, and references of other bodies
        altogether; `trust`, 0..1, is how much of the rest is taken over.
        """
        found, trusted, agreed = [], [], []
        for index, one in enumerate(slices):
            x = one[None] / UNIT
            alone = self._tiled(x)
            if references is None or not scale:
                found.append(alone)
            else:
                reference = registered(references[index][None] / UNIT, alone)
                agreed.append(float(likeness_of(reference, alone)))
                if checked and agreed[-1] < self.limits.agreement:
                    found.append(alone)
                    trusted.append(torch.zeros_like(alone))
                else:
                    restored, gate = self._tiled_with(x, reference, alone, scale)
                    share = torch.full_like(alone, trust)
                    if checked:
                        share = share * self._supported(restored, alone, x)
                    found.append(torch.lerp(alone, restored, share))
                    trusted.append(gate * share)
            if progress is not None:
                progress(index + 1, len(slices))
        restored = torch.cat(found) * UNIT
        return Restored(restored, torch.cat(trusted) if trusted else None, agreed or None)

    def _supported(self, restored: Tensor, alone: Tensor, x: Tensor) -> Tensor:
        """How far the scan supports what the reference changed, 0..1, [n, h, w].

        The noise of a scan is not biased: where the mean of a window lies one to two standard
        deviations from that of the scan, and farther than without the reference, the share falls
        from 1 to 0.
        """

        def mean(pictures: Tensor, window: int) -> Tensor:
            return F.avg_pool2d(pictures, window, 1, window // 2, count_include_pad=False)

        off, before = (
            mean(x - one, CHECK).abs() * (UNIT / self.limits.noise_hu) for one in (restored, alone)
        )
        against = (off - 1).clamp(0, 1) * (off > before)
        return 1 - mean(F.max_pool2d(against, _SPREAD, 1, _SPREAD // 2), _SPREAD)

    def _tiled(self, x: Tensor) -> Tensor:
        return tiled(self.restorer, x[None])[0]

    def _tiled_with(
        self, x: Tensor, reference: Tensor, alone: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        def both(stacked: Tensor) -> Tensor:
            low, shown, base = torch.split(stacked, 1, 1)
            tokens = self.adapter(shown, low, base)
            restored = self.restorer(low, tokens, scale)
            return torch.cat((restored, tokens[1].gate.mean(1, keepdim=True)), 1)

        result = tiled(both, torch.stack((x, reference, alone), 1))
        return result[:, 0], result[:, 1]

    # ── files ───────────────────────────────────────────────────────────────────────────────────

    def save(self, path: Path) -> None:
        """A safetensors file. Raises WriteError."""
        tensors = {
            f"{part}.{name}": value
            for part in _PARTS
            for name, value in getattr(self, part).state_dict().items()
        }
        metadata = {
            "kind": _KIND,
            "version": __version__,
            "views": str(self.dose.views),
            "photons": repr(self.dose.photons),
            "agreement": repr(self.limits.agreement),
            "noise_hu": repr(self.limits.noise_hu),
            "pixel_mm": repr(self.pixel_mm),
            "trained_on": self.trained_on,
            "notice": NOTICE,
        }
        write_safetensors(path, torch_tensors(tensors), metadata)

    @classmethod
    def load(cls, path: Path) -> Model:
        """Raises NotFoundError, and AdapterFileError for a file that is no such model."""
        loaded = read_file(path, container="safetensors")
        about = loaded.metadata
        networks: dict[str, torch.nn.Module] = {"restorer": Restorer(), "adapter": Adapter()}
        try:
            if about["kind"] != _KIND:
                raise KeyError("kind")
            for part, network in networks.items():
                start = f"{part}."
                state = {
                    k[len(start) :]: v for k, v in loaded.tensors.items() if k.startswith(start)
                }
                network.load_state_dict(state)
                network.eval().requires_grad_(False)
            dose = Dose(int(about["views"]), float(about["photons"]))
            pixel_mm = float(about["pixel_mm"])
            limits = Limits(float(about["agreement"]), float(about["noise_hu"]))
        except (KeyError, ValueError, RuntimeError) as error:
            raise AdapterFileError(
                str(path),
                reason="not a model of restore-ct of this version",
                hint="Give the file ...-model.safetensors that a run has written.",
            ) from error
        return cls(
            networks["restorer"],  # type: ignore[arg-type]
            networks["adapter"],  # type: ignore[arg-type]
            limits,
            dose,
            pixel_mm,
            about.get("trained_on", "unknown"),
        )


def tiled(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The network on pictures [n, c, h, w] of any size, tile by tile: as if it saw them whole."""
    height, width = x.shape[-2:]
    below, right = (-side % MULTIPLE for side in (height, width))
    padded = F.pad(x, (0, right, 0, below), mode="replicate")
    rows = []
    for top in range(0, padded.shape[-2], TILE):
        row = []
        for left in range(0, padded.shape[-1], TILE):
            above, before = min(top, MARGIN), min(left, MARGIN)
            seen = padded[
                ...,
                top - above : top + TILE + MARGIN,
                left - before : left + TILE + MARGIN,
            ]
            result = network(seen)
            row.append(result[..., above : above + TILE, before : before + TILE])
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)[..., :height, :width]
