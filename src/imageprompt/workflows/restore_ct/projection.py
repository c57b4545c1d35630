"""Parallel-beam projections of slices, their noise at a dose, and filtered back projection.

Slices are [n, s, s] in HU, sinograms [n, views, detectors] in line integrals of attenuation (no
unit). Views are spread evenly over half a turn; the axis is at the pixel s // 2. No beam hardening,
no scatter, no bowtie filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WATER = 0.0192
"""Attenuation of water in 1/mm, near 70 keV."""
_BLOCK = 2**23  # samples taken at a time


@dataclass(frozen=True)
class Dose:
    """How a slice is taken: number of views, photons on each detector, electronic noise.

    `photons` counts what would arrive without a body; `electronic` is the standard deviation of
    the detector's own noise, in photons.
    """

    views: int
    photons: float
    electronic: float = 3.0


FULL = Dose(views=180, photons=2e5)
"""What references are taken with."""


def low_dose(slices: Tensor, pixel_mm: float, dose: Dose, generator: torch.Generator) -> Tensor:
    """The slices as filtered back projection shows them at that dose, [n, s, s] in HU."""
    sinogram = project(attenuation(slices) * pixel_mm, dose.views)
    noisy = measured(sinogram, dose, generator)
    return to_hu(back_project(noisy, slices.shape[-1]) / pixel_mm)


def noise_free(slices: Tensor, pixel_mm: float, views: int = FULL.views) -> Tensor:
    """The slices through projection and back, without noise: what a restoration aims at."""
    sinogram = project(attenuation(slices) * pixel_mm, views)
    return to_hu(back_project(sinogram, slices.shape[-1]) / pixel_mm)


def attenuation(slices: Tensor) -> Tensor:
    """HU -> 1/mm; nothing attenuates less than vacuum."""
    return (slices / 1000 + 1).clamp(min=0) * WATER


def to_hu(attenuation: Tensor) -> Tensor:
    """1/mm -> HU."""
    return (attenuation / WATER - 1) * 1000


def measured(sinogram: Tensor, dose: Dose, generator: torch.Generator) -> Tensor:
    """The line integrals as a detector counts them: Poisson photons, Gaussian electronics."""
    expected = dose.photons * torch.exp(-sinogram.double())
    counts = torch.poisson(expected, generator=generator)
    counts += dose.electronic * torch.randn(counts.shape, generator=generator, dtype=counts.dtype)
    return -torch.log(counts.clamp(min=1) / dose.photons).to(sinogram.dtype)


def project(pictures: Tensor, views: int) -> Tensor:
    """Sums along the rays, in pixels: [n, s, s] -> [n, views, detectors]; bilinear sampling."""
    count, size = pictures.shape[0], pictures.shape[-1]
    detectors = size + math.ceil(math.sqrt(2) * size - size)
    before = detectors // 2 - size // 2
    after = detectors - size - before
    padded = F.pad(pictures, (before, after, before, after))[None]  # slices are the channels
    at = torch.arange(detectors, dtype=pictures.dtype) - detectors // 2
    rows = []
    step = max(_BLOCK // (detectors**2 * count), 1)
    for angles in torch.split(_angles(views, pictures), step):
        cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
        x = cosine * at + sine * at[:, None] + detectors // 2
        y = cosine * at[:, None] - sine * at + detectors // 2
        grid = torch.stack((x, y), -1) * (2 / (detectors - 1)) - 1
        strip = grid.reshape(1, -1, detectors, 2)  # the views below each other
        turned = F.grid_sample(padded, strip, align_corners=True)
        rows.append(turned.view(count, len(angles), detectors, detectors).sum(2))
    return torch.cat(rows, 1)


def back_project(sinogram: Tensor, size: int) -> Tensor:
    """Filtered back projection with the ramp filter: [n, views, detectors] -> [n, size, size]."""
    count, views, detectors = sinogram.shape
    filtered = _ramp(sinogram)
    at = torch.arange(size, dtype=sinogram.dtype) - size // 2
    total = sinogram.new_zeros(count, size, size)
    for view, angle in enumerate(_angles(views, sinogram)):
        position = at * angle.cos() - at[:, None] * angle.sin() + detectors // 2
        left = position.floor().clamp(0, detectors - 2).long()
        share = position - left
        inside = (position >= 0) & (position <= detectors - 1)
        line = filtered[:, view]
        total += torch.where(inside, line[:, left] * (1 - share) + line[:, left + 1] * share, 0.0)
    return total * (math.pi / (2 * views))


def _ramp(sinogram: Tensor) -> Tensor:
    """Filtered along the detectors: the ramp from its taps, so that the mean is kept (Kak and
    Slaney, equation 61)."""
    detectors = sinogram.shape[-1]
    size = max(64, 2 ** math.ceil(math.log2(2 * detectors)))
    taps = torch.zeros(size, dtype=torch.float64)
    taps[0] = 0.25
    odd = torch.arange(1, size // 2 + 1, 2)
    taps[odd] = taps[size - odd] = -1 / (math.pi * odd.double()) ** 2
    response = (2 * torch.fft.rfft(taps).real).to(sinogram.dtype)
    spectrum = torch.fft.rfft(sinogram, size) * response
    filtered: Tensor = torch.fft.irfft(spectrum, size)
    return filtered[..., :detectors]


def _angles(views: int, like: Tensor) -> Tensor:
    return torch.arange(views, dtype=like.dtype) * (math.pi / views)
