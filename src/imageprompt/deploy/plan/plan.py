"""plan: what a base with an adapter needs, before anything is downloaded or loaded.

Memory is the weights plus the largest phase (encode, denoise, decode), and what a CUDA context
takes. Time is operations over a share of what the card computes at best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imageprompt.core.errors import as_text
from imageprompt.core.spec import HostSpec
from imageprompt.deploy.plan.curve import Curve
from imageprompt.deploy.plan.gpus import ASSUMED, Gpu

GIB = 2**30
CONTEXT = 0.5 * GIB
"""What a CUDA context takes."""
BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.02, "nf4": 0.5625}
"""Of a weight, its scales included."""
LARGE = 10**9
"""Weights of a text encoder from which on it is quantised too."""
FLOAT32, UNET, TRANSFORMER = 0.5, 0.27, 0.45
"""The share of its best speed that a card reaches in plain PyTorch: in float32, and in 16 bits on
a UNet, which has convolutions, and on a transformer. Compiled models reach up to twice that."""
CPU = 0.75
"""The share of a CPU's speed in a matrix product that a model reaches there."""
SPREAD = 2.0
"""Times are told from 1/SPREAD to SPREAD of the estimate."""
GROUP = 0.1 * GIB
"""What group offloading keeps on the card."""
TRANSFER = (5e9, 25e9)
"""Bytes a second between main memory and card, at worst and at best."""
OFFLOADS = ("none", "model", "group")
MAX_SIZE, MAX_BATCH, MAX_STEPS = 16_384, 1024, 10_000


@dataclass(frozen=True)
class Model:
    """A part of a base: its weights, and what a call costs by the area of the picture."""

    parameters: int
    flops: Curve
    bytes: Curve
    """At 2 bytes a value."""
    copying: Curve
    """The same where convolutions copy their input and output into another order of channels."""

    @classmethod
    def of(cls, counted: Mapping[str, Any]) -> Model:
        curves = (Curve(*counted[name]) for name in ("flops", "bytes", "copying"))
        return cls(counted["parameters"], *curves)


@dataclass(frozen=True, kw_only=True)
class CountedBase:
    """All that a plan needs to know of a base."""

    name: str
    title: str
    host: HostSpec
    denoiser: Model
    vae: Model
    text: Mapping[str, Model]
    image_encoder: Model
    reserved: Mapping[str, Curve]
    """Bytes that PyTorch's allocator takes for a row of the denoiser and then the decoder, at 2
    bytes a value: "bytes" and "copying", as `Model` has them."""
    feature_dims: Mapping[str, int]
    """The features of the image encoder, and how wide they are."""
    size: int
    steps: int
    rows: int
    vae_in_float32: bool
    convolutions: bool
    """Has the denoiser convolutions, as a UNet does?"""
    wide_t5: int = 0
    """Weights of T5 that bitsandbytes keeps in float32."""


@dataclass(frozen=True)
class AdapterWeights:
    """What an adapter adds."""

    name: str
    sites: int
    """Weights of K' and V'."""
    projector: int
    reads_pictures: bool


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to run it: a precision and an offloading; bytes and seconds a picture."""

    precision: str
    offload: str
    weights: float
    """All of it, wherever it is."""
    activations: float
    """Of the largest phase."""
    phases: Mapping[str, float]
    """The peak of each: weights on the card and activations."""
    reserved: float | None
    """What PyTorch takes from a card with room for it; not known with offloading."""
    seconds: tuple[float, float] | None
    fits: bool | None

    @property
    def name(self) -> str:
        return (
            self.precision
            if self.offload == "none"
            else f"{self.precision}, {self.offload} offload"
        )

    @property
    def peak(self) -> float:
        return max(self.phases.values()) + CONTEXT

    def as_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "offload": self.offload,
            "weights_gib": round(self.weights / GIB, 3),
            "activations_gib": round(self.activations / GIB, 3),
            "peak_gib": round(self.peak / GIB, 3),
            "reserved_gib": None if self.reserved is None else round(self.reserved / GIB, 3),
            "phases_gib": {name: round(value / GIB, 3) for name, value in self.phases.items()},
            "seconds": None if self.seconds is None else [round(s, 2) for s in self.seconds],
            "fits": self.fits,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each way to run a base with an adapter needs."""

    base: CountedBase
    adapter: AdapterWeights | None
    size: tuple[int, int]
    batch: int
    steps: int
    dtype: str
    saved_prompts: bool
    gpu: Gpu | None

    @cached_property
    def modes(self) -> dict[str, Mode]:
        """By name, in the order of their peaks' precision and offloading."""
        precisions = (self.dtype, "int8", "nf4") if self.dtype != "float32" else (self.dtype,)
        found = [self._mode(p, offload) for p in precisions for offload in OFFLOADS]
        return {mode.name: mode for mode in found}

    @property
    def saved(self) -> float:
        """Bytes that saved image prompts spare: image encoder and projector are not loaded."""
        return sum(self._encoder_weights().values())

    # ── memory ────────────────────────────────────────────────────────────────────────────────────

    def _mode(self, precision: str, offload: str) -> Mode:
        weights, kept = self._weights(precision), self._activations()
        resident = {
            "none": dict.fromkeys(kept, sum(map(sum, (w.values() for w in weights.values())))),
            "model": {phase: _largest(parts) for phase, parts in weights.items()},
            "group": dict.fromkeys(kept, min(GROUP, max(map(_largest, weights.values())))),
        }[offload]
        phases = {phase: resident[phase] + kept[phase] for phase in kept}
        whole = sum(sum(parts.values()) for parts in weights.values())
        mode = Mode(
            precision=precision,
            offload=offload,
            weights=whole,
            reserved=None if offload != "none" else self._reserved(whole),
            activations=kept[max(phases, key=phases.__getitem__)],
            phases=phases,
            seconds=self._seconds(weights, offload),
            fits=None,
        )
        fits = None if self.gpu is None else mode.peak <= self.gpu.memory * GIB
        return Mode(**{**vars(mode), "fits": fits})

    def _weights(self, precision: str) -> dict[str, dict[str, float]]:
        """Bytes of the weights of each phase, by part."""
        base, plain = self.base, BYTES[self.dtype]
        small = BYTES[precision]
        text = {
            title: model.parameters * (small if model.parameters >= LARGE else plain)
            for title, model in base.text.items()
        }
        if precision == "nf4":
            text = {
                title: size + base.wide_t5 * (4 - small) if title.startswith("T5") else size
                for title, size in text.items()
            }
        sites = 0 if self.adapter is None else self.adapter.sites
        denoiser = base.denoiser.parameters * small + sites * plain
        encode = {**text, **({} if self.saved_prompts else self._encoder_weights())}
        vae = 4.0 if base.vae_in_float32 and self.dtype == "float16" else plain
        return {
            "encode": encode,
            "denoise": {"denoiser": denoiser},
            "decode": {"autoencoder": base.vae.parameters * vae},
        }

    def _encoder_weights(self) -> dict[str, float]:
        if self.adapter is None:
            return {}
        plain = BYTES[self.dtype]
        encoder = self.base.image_encoder.parameters if self.adapter.reads_pictures else 0
        return {"image encoder": encoder * plain, "projector": self.adapter.projector * plain}

    def _activations(self) -> dict[str, float]:
        """Bytes of each phase."""
        base, values = self.base, BYTES[self.dtype] / 2
        readers = [*base.text.values(), *([] if self.adapter is None else [base.image_encoder])]
        wide = self._decoder_width
        decode = base.vae.copying if self._decoder_copies else base.vae.bytes
        return {
            "encode": values * max(model.bytes.at(self.area) for model in readers),
            "denoise": values * self.rows * base.denoiser.bytes.at(self.area),
            "decode": wide * self.batch * decode.at(self.area),
        }

    def _reserved(self, weights: float) -> float | None:
        """Weights, and what the caching allocator keeps: the blocks of earlier phases stay."""
        if self._device.on_cpu:
            return None
        wide = self._decoder_width
        curve = self.base.reserved["copying" if self._decoder_copies else "bytes"]
        return weights + wide * self.batch * curve.at(self.area)

    @property
    def _decoder_copies(self) -> bool:
        """Tensor cores, and convolutions on a CPU, want channels last."""
        return self._device.on_cpu or self._decoder_width == 1.0

    @property
    def _decoder_width(self) -> float:
        """Bytes of a value in the decoder, over 2."""
        in_float32 = self.base.vae_in_float32 and self.dtype == "float16"
        return 2.0 if in_float32 else BYTES[self.dtype] / 2

    @property
    def area(self) -> float:
        """Of a picture, in megapixels."""
        return math.prod(self.size) / 1e6

    @property
    def rows(self) -> int:
        """Of a batch of the denoiser."""
        return self.base.rows * self.batch

    # ── time ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def flops(self) -> float:
        """Of a batch of pictures."""
        base = self.base
        encode = sum(model.flops.at(self.area) for model in base.text.values())
        return (
            self.base.rows * encode
            + self.steps * self.rows * base.denoiser.flops.at(self.area)
            + self.batch * base.vae.flops.at(self.area)
        )

    def _seconds(
        self, weights: Mapping[str, Mapping[str, float]], offload: str
    ) -> tuple[float, float] | None:
        """A picture, at best and at worst."""
        speed = self._device.speed(self.dtype)
        if speed is None:
            return None
        work = self.flops / (speed * self._share)
        slow, fast = TRANSFER
        moved = {
            "none": 0.0,
            "model": sum(sum(parts.values()) for parts in weights.values()),
            "group": self.steps * sum(weights["denoise"].values()),
        }[offload]
        low, high = work / SPREAD + moved / fast, work * SPREAD + moved / slow
        return low / self.batch, high / self.batch

    @property
    def _device(self) -> Gpu:
        return self.gpu or ASSUMED

    @property
    def _share(self) -> float:
        """Of the best speed."""
        if self._device.on_cpu:
            return CPU
        half = UNET if self.base.convolutions else TRANSFORMER
        return FLOAT32 if self.dtype == "float32" else half

    # ── shown ─────────────────────────────────────────────────────────────────────────────────────

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        gpu = self._device
        return {
            "base": self.base.name,
            "adapter": None if self.adapter is None else self.adapter.name,
            "size": [*self.size],
            "batch_size": self.batch,
            "steps": self.steps,
            "dtype": self.dtype,
            "gpu": {"name": gpu.name, "memory_gib": gpu.memory, "assumed": self.gpu is None},
            "parameters": self._parameters(),
            "tflops_a_picture": round(self.flops / self.batch / 1e12, 3),
            "saved_prompts_spare_gib": round(self.saved / GIB, 3),
            "modes": {name: mode.as_dict() for name, mode in self.modes.items()},
        }

    def _parameters(self) -> dict[str, int]:
        base, adapter = self.base, self.adapter
        found = {"denoiser": base.denoiser.parameters, "autoencoder": base.vae.parameters}
        found |= {title: model.parameters for title, model in base.text.items()}
        if adapter is not None:
            found |= {"K' and V'": adapter.sites, "projector": adapter.projector}
            if adapter.reads_pictures:
                found["image encoder"] = base.image_encoder.parameters
        return found

    def __str__(self) -> str:
        return as_text(self._lines())

    def _lines(self) -> Iterator[str]:
        gpu = self._device
        width, height = self.size
        adapter = "no adapter" if self.adapter is None else f"adapter {self.adapter.name}"
        picture = f"{width}x{height}, batch {self.batch}, {self.steps} steps"
        yield f"{self.base.title}, {adapter}, {picture}"
        parts = ", ".join(
            f"{name} {count / 1e6:,.1f} M" for name, count in self._parameters().items()
        )
        yield f"weights: {parts}"
        yield ""
        head = ("mode", "weights GiB", "peak GiB", "largest phase", "seconds a picture", "fits")
        yield from _table([head, *map(self._row, self.modes.values())])
        yield ""
        mode = self.modes[self.dtype]
        if mode.reserved is not None:
            kept = f"{(mode.reserved - mode.weights) / GIB:.1f} GiB"
            yield f"On a card with room PyTorch reserves {kept} beside the weights: it keeps what"
            yield "earlier phases used, until memory runs out."
        if self.gpu is None:
            yield f"Seconds are those of a card such as the {gpu.name}; name yours with --gpu."
        elif gpu.half is None:
            yield "Name the card for seconds: --gpu 'RTX 3060'."
        if self.saved and not self.saved_prompts:
            saved = f"{self.saved / GIB:.1f} GiB"
            yield f"Saved image prompts spare {saved} of weights: --saved-prompts."

    def _row(self, mode: Mode) -> tuple[str, ...]:
        seconds = "-" if mode.seconds is None else "{:.3g} to {:.3g}".format(*mode.seconds)
        largest = max(mode.phases, key=mode.phases.__getitem__)
        fits = {None: "-", True: "yes", False: "no"}[mode.fits]
        return (
            mode.name,
            f"{mode.weights / GIB:.2f}",
            f"{mode.peak / GIB:.2f}",
            largest,
            seconds,
            fits,
        )


def _largest(parts: Mapping[str, float]) -> float:
    return max(parts.values(), default=0.0)


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
