"""Noise: a noisy version of a picture, as the null picture on the negative side of guidance.

The kinds are those of ComfyUI_IPAdapter_plus' noise node; the random numbers differ from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = Any  # numpy [H, W, 3], float, 0..1


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A `kind` of noise with a `strength` in 0..1 (0 is none); `parse` reads what `str` writes.

    Raises OptionError for an unknown kind or another strength.
    """

    kind: str = "fade"
    strength: float = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.strength, float | int) and not isinstance(self.strength, bool)
        if self.kind not in KINDS or not number or not 0 <= self.strength <= 1:
            raise OptionError(
                f"noise {self.kind}:{self.strength}",
                reason=f"not a strength from 0 to 1 of one kind ({', '.join(KINDS)})",
                hint="Examples: 0.4, dissolve:0.4.",
            )

    @classmethod
    def parse(cls, noise: Noise | float | str) -> Noise:
        """A strength (of kind fade), or `kind:strength`. Raises OptionError."""
        if isinstance(noise, Noise):
            return noise
        if not isinstance(noise, str):
            return cls(strength=noise)
        kind, _, number = noise.strip().lower().rpartition(":")
        try:
            return cls(kind=kind or "fade", strength=float(number))
        except ValueError:
            return cls(kind=noise)

    def __bool__(self) -> bool:
        return self.strength > 0

    def __str__(self) -> str:
        return f"{self.strength}" if self.kind == "fade" else f"{self.kind}:{self.strength}"

    def apply(self, picture: Image, seed: int) -> Image:
        """A noisy version of an RGB picture of the encoder's size, rounded to 8 bit."""
        import numpy as np
        from PIL import Image as Images

        random = np.random.default_rng(seed)
        noisy = KINDS[self.kind](np.asarray(picture) / 255.0, self.strength, random)
        return Images.fromarray(np.round(noisy.clip(0, 1) * 255).astype(np.uint8))


def _fade(x: Pixels, s: float, random: Any) -> Pixels:
    """x (1 - s) + u s, u uniform in 0..1 for each pixel and channel; at 1 nothing of x is left."""
    return x * (1 - s) + random.random(x.shape) * s


def _dissolve(x: Pixels, s: float, random: Any) -> Pixels:
    """A fraction s of the numbers is replaced by uniform ones, the others stay."""
    replaced = random.random(x.shape) < s
    noise = random.random(x.shape)
    return (x * ~replaced) + noise * replaced


def _gaussian(x: Pixels, s: float, random: Any) -> Pixels:
    """x + s n, n normal with standard deviation 1."""
    return x + s * random.standard_normal(x.shape)


def _shuffle(x: Pixels, s: float, random: Any) -> Pixels:
    """Rotated by 180 degrees, warped, and faded to white by normal noise: x (1 - n) + n.

    n has standard deviation 0.75 s. The warp moves each pixel by up to 37.5 px, smoothed over
    3.5 (1 - s) px: colours stay, shapes go.
    """
    noise = random.standard_normal(x.shape) * (0.75 * s)
    return _warped(x, 3.5 * (1 - s), random)[::-1, ::-1] * (1 - noise) + noise


def _warped(x: Pixels, smooth: float, random: Any) -> Pixels:
    """Each pixel read from a random offset, uniform in +-37.5 px and then smoothed."""
    import numpy as np

    rows, columns = x.shape[:2]
    offsets = random.uniform(-37.5, 37.5, (2, rows, columns))
    if smooth > 0:
        reach = max(int(8 * smooth + 1) // 2, 1)
        bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smooth) ** 2)
        bell /= bell.sum()
        for axis in (1, 2):
            offsets = np.apply_along_axis(np.convolve, axis, offsets, bell, "same")
    grid = np.mgrid[:rows, :columns] + offsets
    y, z = (np.round(grid[i]).astype(int).clip(0, x.shape[i] - 1) for i in (0, 1))
    return x[y, z]


KINDS: Mapping[str, Callable[[Pixels, float, Any], Pixels]] = MappingProxyType(
    {"fade": _fade, "dissolve": _dissolve, "gaussian": _gaussian, "shuffle": _shuffle}
)
