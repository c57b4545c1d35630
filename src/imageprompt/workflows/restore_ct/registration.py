"""Where a reference lies on a slice: a shift by whole pixels, found by phase correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 12
"""Pixels that a reference may be off in each direction."""
_SKIN = -400.0  # HU between air and body


def registered(reference: Tensor, slices: Tensor) -> Tensor:
    """References moved onto their slices, [n, h, w] each; what comes in at the border is repeated.

    `slices` should be restored ones: noise hides where they lie.
    """
    moved = []
    for one, shift in zip(reference, shifts(reference, slices), strict=True):
        down, right = shift
        rows = (torch.arange(one.shape[0]) - down).clamp(0, one.shape[0] - 1)
        columns = (torch.arange(one.shape[1]) - right).clamp(0, one.shape[1] - 1)
        moved.append(one[rows][:, columns])
    return torch.stack(moved)


def shifts(reference: Tensor, slices: Tensor) -> list[tuple[int, int]]:
    """Pixels down and right that bring each reference onto its slice, at most `MAX_SHIFT` each."""
    a, b = torch.fft.rfft2(_edges(slices)), torch.fft.rfft2(_edges(reference))
    cross = a * b.conj()
    peak = torch.fft.irfft2(cross / (cross.abs() + 1e-6).sqrt(), s=slices.shape[-2:])
    around = torch.arange(-MAX_SHIFT, MAX_SHIFT + 1)
    near = peak[:, around][:, :, around]  # negative indices are negative shifts
    best = near.flatten(1).argmax(1)
    side = 2 * MAX_SHIFT + 1
    return [(int(at) // side - MAX_SHIFT, int(at) % side - MAX_SHIFT) for at in best]


def _edges(pictures: Tensor) -> Tensor:
    """Soft tissue alone counts, and not where the picture ends."""
    shown = pictures.clamp(-0.6, 0.8)
    return shown - shown.mean((-2, -1), keepdim=True)


def overlap(reference: Tensor, slices: Tensor) -> float:
    """Dice of the bodies of references and slices [n, h, w] in HU, 0..1, the means of both laid
    on each other. Noise of single pixels does not count."""
    masks = []
    for pictures in (reference, slices):
        smooth = F.avg_pool2d(
            pictures.clamp(-1000, 200)[:, None], 9, 1, 4, count_include_pad=False
        )[:, 0]
        masks.append((smooth > _SKIN).float())
    moved = registered(masks[0], masks[1])
    both, sides = (moved * masks[1]).sum(), moved.sum() + masks[1].sum()
    return float(2 * both / sides.clamp(min=1))
