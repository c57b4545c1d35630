"""The configuration of a training run: every key, its default and its range."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imageprompt.core.config_reader import (
    STRICT_KEYS,
    Key,
    apply_overrides,
    bad_key,
    check_ranges,
    read_config,
)
from imageprompt.core.errors import OptionError
from imageprompt.core.yaml_file import brief, expand_user, read_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.training.data.dataset import RandomStreams

# Keys that may change when a run is resumed: no weight depends on them.
FREE_KEYS = frozenset(
    ("output", "cache", "device", "keep", "log_every", "checkpoint_every", "validate_every")
) | frozenset(("validation", "trackers", "patience"))
# Keys that runs of older versions do not state: they have the defaults.
NEW_KEYS = frozenset(
    (
        "feature",
        "shift",
        "loss_weighting",
        "guidance_scale",
        "max_sequence_length",
        "quantize",
        "latents",
    )
) | frozenset(("pairs", "content", "style"))

_GET_ONE = "Write one with `imageprompt train --example tiny-base > config.yaml`."


@dataclass(frozen=True)
class ConditionDropout:
    """Probabilities of dropping the image, the text, or both, for classifier-free guidance.

    The three events exclude one another (one draw per sample). The defaults are those of the
    IP-Adapter paper (arXiv 2308.06721).
    """

    __pydantic_config__ = STRICT_KEYS

    image: Annotated[float, Key("probability of dropping the image alone", ge=0, le=1)] = 0.05
    text: Annotated[float, Key("probability of dropping the text alone", ge=0, le=1)] = 0.05
    both: Annotated[float, Key("probability of dropping both", ge=0, le=1)] = 0.05

    def draw(self, streams: RandomStreams) -> tuple[Tensor, Tensor]:
        """Which of the b samples lose their image and which their text, bool [b] each."""
        event = streams.rand()
        image_only = event < self.image
        text_only = (event >= self.image) & (event < self.image + self.text)
        both = (event >= self.image + self.text) & (event < self.image + self.text + self.both)
        return image_only | both, text_only | both


@dataclass(frozen=True)
class Timesteps:
    """Distribution of training timesteps: a `uniform` share, the rest sigmoid(N(mean, std))."""

    __pydantic_config__ = STRICT_KEYS

    uniform: Annotated[
        float | None,
        Key("share of timesteps drawn uniformly; default: 1, with flow matching 0", ge=0, le=1),
    ] = None
    mean: Annotated[float, Key("mean of the logit-normal distribution of the rest")] = 0.0
    std: Annotated[float, Key("its standard deviation", ge=0)] = 1.0

    def draw(self, total: int, streams: RandomStreams, *, flow: bool = False) -> Tensor:
        """Integer timesteps [b] below `total`."""
        share = (0.0 if flow else 1.0) if self.uniform is None else self.uniform
        uniform = streams.rand()
        logit_normal = (self.mean + self.std * streams.randn()).sigmoid()
        is_uniform = streams.rand() < share
        times = uniform.where(is_uniform, logit_normal) * total
        return times.long().clamp(0, total - 1)


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One adapter of a pair: its projector, and how often it loses its reference alone."""

    __pydantic_config__ = STRICT_KEYS

    tokens: Annotated[int | None, Key("image tokens; default: as above", le=4096)] = None
    depth: Annotated[int | None, Key("projector blocks; default: as above", le=256)] = None
    heads: Annotated[int | None, Key("projector heads; default: as above", le=1024)] = None
    width: Annotated[int | None, Key("projector width; default: as above", le=65536)] = None
    drop: Annotated[
        float, Key("probability that this adapter alone loses its reference", ge=0, le=1)
    ] = 0.12
    off: Annotated[
        float,
        Key(
            "share of its drops at scale 0, for the other alone; the rest see the null image", le=1
        ),
    ] = 0.4


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The validation sheet: one row per held-out reference, one column per prompt."""

    __pydantic_config__ = STRICT_KEYS

    references: Annotated[
        str | tuple[str, ...],
        Key("folder or list of pictures that are not in `data`; for faces, a data list"),
    ] = ()
    count: Annotated[int, Key("number of references to use", ge=1)] = 4
    prompts: Annotated[tuple[str, ...], Key("one column of the sheet each")] = ("",)
    scale: Annotated[float, Key("adapter scale")] = 1.0
    steps: Annotated[int, Key("sampling steps", ge=1)] = 20
    guidance: Annotated[float, Key("classifier-free guidance scale")] = 5.0
    seed: Annotated[int, Key("seed of the first row; each further row adds 1")] = 1

    def __post_init__(self) -> None:
        if not self.prompts:
            raise bad_key(
                "validation.prompts", self.prompts, 'must not be empty; use [""] for none'
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All keys of a config file. `data` and `output` are required.

    `batch_size` samples per process, `accumulate` times, make one optimiser step. Constructing one
    raises OptionError for a value out of range; `load` also checks types.
    """

    __pydantic_config__ = STRICT_KEYS

    data: Annotated[
        str | dict[str, Any],
        Key(
            "folder, JSON list or tar shards; or a mapping with path, format, images, caption, "
            "max_broken, allow_outside, storage"
        ),
    ]
    output: Annotated[str, Key("folder for everything the run writes")]
    base: Annotated[
        str,
        Key("pipeline: `bundled`, `bundled-sd3`, `bundled-sd3-128`, a folder, or owner/repo"),
    ] = "bundled"
    encoder: Annotated[
        str | None, Key("image encoder: a folder or owner/repo/sub; default: the base's own")
    ] = None
    variant: Annotated[str, Key("adapter architecture, see `imageprompt variants`")] = "base"
    feature: Annotated[
        str | None,
        Key(
            "output of the encoder that a new adapter reads: image_embeds, pooler_output, "
            "hidden_states[-2] or last_hidden_state; default: the variant's"
        ),
    ] = None
    adapter: Annotated[str | None, Key("start from this adapter file, not from new weights")] = None
    cache: Annotated[
        str | None, Key("folder for encoded samples; default: encode them in every step")
    ] = None
    resolution: Annotated[
        int, Key("side of the training pictures in pixels, a multiple of 8", ge=8, le=8192)
    ] = 512
    crop: Annotated[Literal["center", "random"], Key("where pictures are cropped")] = "center"
    flip: Annotated[
        bool | float, Key("probability of mirroring a picture; true: 0.5", ge=0, le=1)
    ] = False
    buckets: Annotated[
        bool | tuple[tuple[int, int], ...],
        Key("keep aspect ratios, one shape per batch; or a list of [width, height]"),
    ] = False
    latents: Annotated[
        Literal["sample", "mean"],
        Key(
            "`sample` draws them from the VAE's distribution in every step; `mean`: always its mean"
        ),
    ] = "sample"
    views: Annotated[
        int,
        Key(
            "number of random crops and flips per picture; 0: new ones each time, without a cache",
            ge=0,
            le=1000,
        ),
    ] = 4
    online: Annotated[
        bool, Key("leave image features out of the cache: patch features are large")
    ] = False
    steps: Annotated[int, Key("optimiser steps", ge=1)] = 10_000
    batch_size: Annotated[int, Key("pictures per process and pass", ge=1, le=65536)] = 8
    accumulate: Annotated[int, Key("passes per step", ge=1, le=65536)] = 1
    learning_rate: Annotated[float, Key("AdamW's", ge=1e-12, le=10)] = 1e-4
    weight_decay: Annotated[
        float, Key("of weight matrices; norms, biases and latents have none", ge=0, le=10)
    ] = 0.01
    betas: Annotated[tuple[float, float], Key("AdamW's")] = (0.9, 0.999)
    warmup: Annotated[int, Key("steps over which the learning rate rises", ge=0)] = 100
    schedule: Annotated[
        Literal["constant", "cosine", "linear"], Key("how the learning rate falls to zero")
    ] = "constant"
    decay_from: Annotated[
        float, Key("share of the steps after which the learning rate falls", ge=0, le=1)
    ] = 0.0
    clip: Annotated[float, Key("largest gradient norm; 0: no limit", ge=0)] = 1.0
    ema: Annotated[
        float,
        Key("decay of the average of the weights, which is the result; 0: none", ge=0, le=0.999999),
    ] = 0.999
    seed: Annotated[int, Key("seed of all random choices", ge=0, le=2**63 - 1)] = 0
    drop: Annotated[
        ConditionDropout, Key("probabilities that a sample loses its image, its text, or both")
    ] = field(default_factory=ConditionDropout)
    timesteps: Annotated[
        Timesteps, Key("a share drawn uniformly, the rest as sigmoid of a normal")
    ] = field(default_factory=Timesteps)
    scales: Annotated[
        tuple[float, float], Key("range of the adapter's scale, drawn once per step")
    ] = (1.0, 1.0)
    min_snr: Annotated[
        float, Key("cap of the signal-to-noise weight, usually 5; 0: no weight", ge=0, le=1000)
    ] = 0.0
    noise_offset: Annotated[
        float, Key("standard deviation of noise shared by a channel", ge=0, le=1)
    ] = 0.0
    identity_only_prob: Annotated[
        float, Key("faceid-plus-v2: probability of seeing the identity alone", ge=0, le=1)
    ] = 0.5
    shift: Annotated[
        float | None,
        Key("shift of flow matching's noise levels; default: the scheduler's own", ge=0.01, le=100),
    ] = None
    loss_weighting: Annotated[
        Literal["none", "cosmap", "sigma_sqrt"], Key("weights of flow matching's loss")
    ] = "none"
    guidance_scale: Annotated[
        float | None,
        Key("what a guidance-distilled base (FLUX.1 dev) is told; default: 3.5", ge=0, le=100),
    ] = None
    max_sequence_length: Annotated[
        int | None,
        Key("tokens that a transformer's long text encoder reads", ge=1, le=4096),
    ] = None
    init: Annotated[
        Literal["copy", "zero"] | None,
        Key(
            "`copy`: K', V' start as copies of the text's K, V; `zero`: V' starts at zero; "
            "default: copy, in joint attention zero"
        ),
    ] = None
    tokens: Annotated[int | None, Key("image tokens; default: the variant's", le=4096)] = None
    depth: Annotated[int | None, Key("projector blocks; default: the variant's", le=256)] = None
    heads: Annotated[int | None, Key("projector heads; default: the variant's", le=1024)] = None
    width: Annotated[int | None, Key("projector width; default: the variant's", le=65536)] = None
    pairs: Annotated[
        Literal["none", "columns", "self-made"],
        Key(
            "train a content and a style adapter in one file: on the columns content_reference and "
            "style_reference of the data, or on pairs made from each picture"
        ),
    ] = "none"
    content: Annotated[PartConfig, Key("the content adapter of a pair")] = field(
        default_factory=PartConfig
    )
    style: Annotated[PartConfig, Key("the style adapter of a pair")] = field(
        default_factory=PartConfig
    )
    warm_start: Annotated[
        Literal["none", "captions"],
        Key("`captions`: the projector first learns the captions' text states"),
    ] = "none"
    warm_start_steps: Annotated[int, Key("steps of the warm start", ge=10)] = 3000
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"], Key("precision of the frozen base; `no`: float32")
    ] = "no"
    quantize: Annotated[
        Literal["none", "int8"],
        Key("`int8`: the frozen denoiser's linear layers take half the memory"),
    ] = "none"
    gradient_checkpointing: Annotated[bool, Key("less memory, slower steps")] = False
    device: Annotated[str | None, Key("cpu, cuda or mps; default: the best one here")] = None
    checkpoint_every: Annotated[
        int, Key("steps between checkpoints; 0: only one at the end", ge=0)
    ] = 500
    keep: Annotated[int, Key("checkpoints to keep", ge=1)] = 2
    validate_every: Annotated[int, Key("steps between validations; 0: never", ge=0)] = 0
    patience: Annotated[
        int, Key("validations without a better score after which the run ends; 0: never", ge=0)
    ] = 0
    validation: Annotated[ValidationConfig, Key("the validation sheet")] = field(
        default_factory=ValidationConfig
    )
    log_every: Annotated[int, Key("steps between lines of metrics.jsonl", ge=1)] = 50
    trackers: Annotated[tuple[str, ...], Key("trackers of accelerate, such as wandb")] = (
        "tensorboard",
    )

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        overrides: Sequence[str] = (),
    ) -> TrainingConfig:
        """From a YAML file or a mapping, changed by `overrides` of the form "key=value".

        A nested key is written `drop.image`. Raises OptionError, which names the key, and
        NotFoundError.
        """
        if isinstance(source, Mapping):
            where, plain = "the config", dict(source)
        else:
            where, plain = f"config {brief(os.fspath(source))}", read_yaml(Path(source), _GET_ONE)
        return read_config(cls, apply_overrides(plain, overrides), where)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.output.strip():
            raise bad_key("output", self.output, "must name a folder")
        _ = self.folder, self.cache_folder  # raise OptionError for a user that does not exist
        if self.base == "tiny":
            raise OptionError(
                "config key 'base': 'tiny'",
                reason="the bundled stack is called 'bundled'",
                hint="Write base: bundled (or ./tiny for a folder of that name).",
            )
        if self.decay_from == 1 and self.schedule != "constant":
            raise bad_key("decay_from", 1, f"must be below 1 with schedule: {self.schedule}")
        if sum((self.drop.image, self.drop.text, self.drop.both)) > 1:
            raise bad_key("drop", asdict(self.drop), "probabilities must add up to at most 1")
        if self.content.drop + self.style.drop > 1:
            raise bad_key("content.drop", self.content.drop, "with style.drop, must be at most 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise bad_key("betas", self.betas, "must be at least 0 and below 1")
        if not 0 <= self.scales[0] <= self.scales[1]:
            raise bad_key("scales", self.scales, "must be [lowest, highest], both at least 0")

    @property
    def folder(self) -> Path:
        """`output` as a path."""
        return expand_user(self.output, f"output folder {brief(self.output)}")

    @property
    def cache_folder(self) -> Path | None:
        """`cache` as a path."""
        return None if self.cache is None else expand_user(self.cache, f"cache {brief(self.cache)}")

    @property
    def loss_scaling(self) -> bool:
        """Whether the loss is scaled, as float16 gradients would underflow."""
        return self.mixed_precision == "fp16"

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, then falling from `decay_from`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = step / self.steps
        if self.schedule == "constant" or progress <= self.decay_from:
            return self.learning_rate
        decayed = (progress - self.decay_from) / (1 - self.decay_from)
        if self.schedule == "linear":
            return self.learning_rate * (1 - decayed)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))

    def identity(self) -> dict[str, Any]:
        """Plain values of all keys that a resumed run must share with the run it continues."""
        plain = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in NEW_KEYS or getattr(self, one.name) != one.default
        }
        plain |= {"drop": asdict(self.drop), "timesteps": asdict(self.timesteps)}
        plain |= {key: asdict(plain[key]) for key in ("content", "style") if key in plain}
        plain["init"] = self.init or "copy"  # decides nothing once a run has started
        if self.timesteps.uniform is None:  # the base decides, which is among the keys
            plain["timesteps"]["uniform"] = 1.0
        shared = {name: value for name, value in plain.items() if name not in FREE_KEYS}
        return shared | {"cached": self.cache is not None}
