"""What `quantize` found; loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imageprompt.core.errors import as_text
from imageprompt.deploy.compress.result import Attributes


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """An exported denoiser in fewer bits, beside the one that it was made from."""

    folder: str
    backend: str
    precision: str
    base: str
    adapter: str
    bytes: int
    """Of the denoiser's files; `bytes_before` is what they were."""
    bytes_before: int
    error: float
    """Root mean square of the difference of a call, over that of the result."""
    speed: float
    """CPU time of a call before, over that now."""
    calibrated_with: int
    """Calls; 0 for weights alone."""
    pictures: int
    psnr: float | None
    """Of the pictures to those at full precision, in dB."""
    attributes: Attributes | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        size, before = self.bytes / 1e6, self.bytes_before / 1e6
        lines = [
            f"{self.folder}: {self.backend}, {self.precision}",
            f"  denoiser: {size:,.1f} MB, {size / before:.0%} of {before:,.1f}",
            f"  a call: {self.error:.1%} rms difference, {self.speed:.2f} times as fast",
        ]
        if self.calibrated_with:
            lines.append(
                f"  calibrated with {self.calibrated_with} calls, adapter {self.adapter} in use"
            )
        if self.psnr is not None:
            lines.append(f"  {self.pictures} pictures: {self.psnr:.1f} dB to full precision")
        if self.attributes is not None:
            match: Mapping[str, float] = self.attributes.before
            lines += ["", f"read in {self.attributes.pictures} pictures   before  after"]
            after = self.attributes.after
            lines += [f"{name:20} {match[name]:9.3f} {after[name]:6.3f}" for name in match]
        return as_text(lines)
