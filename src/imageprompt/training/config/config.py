"""The configuration of a training run: every key, its default, and what it may be."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from imageprompt.core.errors import OptionError
from imageprompt.training.config.loop_config import TrainConfig
from imageprompt.training.config.yaml_reader import overridden, read_into, read_yaml
from imageprompt.training.loop.objective import ConditionDropout, Timesteps

# What may differ between a run and its continuation: none of it changes a weight.
FREE_KEYS = frozenset(
    ("output", "cache", "device", "keep", "log_every", "checkpoint_every", "validate_every")
) | frozenset(("validation", "trackers"))

# key -> lowest and highest value; the highest is still allowed
_RANGES: dict[str, tuple[float, float]] = {
    "resolution": (8, 8192),
    "views": (0, 1000),
    "steps": (1, 10**9),
    "batch_size": (1, 65536),
    "accumulate": (1, 65536),
    "learning_rate": (1e-12, 10),
    "weight_decay": (0, 10),
    "warmup": (0, 10**9),
    "decay_from": (0, 1),
    "clip": (0, math.inf),
    "ema": (0, 0.999999),
    "seed": (0, 2**63 - 1),
    "min_snr": (0, 1000),
    "noise_offset": (0, 1),
    "identity_only_prob": (0, 1),
    "checkpoint_every": (0, 10**9),
    "validate_every": (0, 10**9),
    "log_every": (1, 10**9),
    "keep": (1, 10**6),
    "warm_start_steps": (10, 10**9),
}


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The pictures that are made to be looked at: one row a reference, one column a prompt."""

    references: str | tuple[str, ...] = ()
    """A folder or a list of pictures that are not in `data`."""
    count: int = 4
    """How many of them are used."""
    prompts: tuple[str, ...] = ("",)
    scale: float = 1.0
    steps: int = 20
    guidance: float = 5.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.prompts:
            _refuse("validation.prompts", self.prompts, 'at least one, such as [""]')
        for name in ("count", "steps"):
            if getattr(self, name) < 1:
                _refuse(f"validation.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All keys of a config file. `data` and `output` must be given."""

    data: str | dict[str, Any]
    output: str
    base: str = "tiny"
    encoder: str | None = None
    variant: str = "base"
    adapter: str | None = None
    cache: str | None = None
    resolution: int = 512
    crop: Literal["center", "random"] = "center"
    flip: bool | float = False
    buckets: bool | tuple[tuple[int, int], ...] = False
    views: int = 4
    online: bool = False
    steps: int = 10_000
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    decay_from: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    drop: ConditionDropout = field(default_factory=ConditionDropout)
    timesteps: Timesteps = field(default_factory=Timesteps)
    scales: tuple[float, float] = (1.0, 1.0)
    min_snr: float = 0.0
    noise_offset: float = 0.0
    identity_only_prob: float = 0.5
    init: Literal["copy", "zero"] = "copy"
    tokens: int | None = None
    depth: int | None = None
    heads: int | None = None
    width: int | None = None
    warm_start: Literal["none", "captions"] = "none"
    warm_start_steps: int = 3000
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    device: str | None = None
    checkpoint_every: int = 500
    keep: int = 2
    validate_every: int = 0
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log_every: int = 50
    trackers: tuple[str, ...] = ("tensorboard",)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        overrides: Sequence[str] = (),
    ) -> TrainingConfig:
        """From a YAML file or a mapping, changed by `overrides` of the form "key=value".

        A key inside another is written `drop.image`. Raises OptionError, NotFoundError.
        """
        known = isinstance(source, Mapping)
        where = "the config" if known else f"config {os.fspath(source)!r}"  # type: ignore[arg-type]
        plain = dict(source) if isinstance(source, Mapping) else read_yaml(Path(source))
        return read_into(cls, overridden(plain, overrides), where)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                least = f"at least {low:g}" if value < low or high == math.inf else ""
                _refuse(name, value, least or f"at most {high:g}")
        if not self.output.strip():
            _refuse("output", self.output, "a folder")
        if self.decay_from == 1 and self.schedule != "constant":
            _refuse("decay_from", 1, "below 1 where the rate falls at all")
        if sum((self.drop.image, self.drop.text, self.drop.both)) > 1:
            _refuse("drop", asdict(self.drop), "chances that add up to 1 at most")
        if not all(0 <= beta < 1 for beta in self.betas):
            _refuse("betas", self.betas, "two numbers from 0 to below 1")
        if not 0 <= self.scales[0] <= self.scales[1]:
            _refuse("scales", self.scales, "a range, the lower end first")

    @property
    def folder(self) -> Path:
        """`output` as a path."""
        return Path(self.output).expanduser()

    @property
    def cache_folder(self) -> Path:
        """`cache` as a path, the working folder without one."""
        return Path(self.cache or "").expanduser()

    @property
    def projector(self) -> dict[str, int]:
        """The options of the variant's projector that were given."""
        options = {"num_tokens": self.tokens, "depth": self.depth}
        options |= {"heads": self.heads, "width": self.width}
        return {name: value for name, value in options.items() if value is not None}

    def loop(self) -> TrainConfig:
        """The part that the loop reads."""
        return TrainConfig(
            steps=self.steps,
            batch=self.batch_size,
            accumulate=self.accumulate,
            rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            warmup=self.warmup,
            schedule=self.schedule,
            decay_from=self.decay_from,
            clip=self.clip,
            ema=self.ema,
            seed=self.seed,
            scales=self.scales,
            loss_scaling=self.mixed_precision == "fp16",
            save_every=self.checkpoint_every,
            validate_every=self.validate_every,
            log_every=self.log_every,
            keep=self.keep,
            drops=self.drop,
            timesteps=self.timesteps,
        )

    def identity(self) -> dict[str, Any]:
        """What a run and its continuation must share, as plain values."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        plain |= {"drop": asdict(self.drop), "timesteps": asdict(self.timesteps)}
        kept = {name: value for name, value in plain.items() if name not in FREE_KEYS}
        return kept | {"cached": self.cache is not None}


def _refuse(name: str, value: object, rule: str) -> None:
    raise OptionError(
        f"config key {name!r}: {value!r}", reason=f"it has to be {rule}", hint="Change it."
    )
