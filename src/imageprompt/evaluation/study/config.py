"""The configuration of a study: every key, its default and its range."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from imageprompt.control import one_scale
from imageprompt.core import bundled
from imageprompt.core.config_reader import (
    STRICT_KEYS,
    Key,
    apply_overrides,
    bad_key,
    check_ranges,
    read_config,
)
from imageprompt.core.errors import OptionError
from imageprompt.core.hub import PARTS, part_of
from imageprompt.core.yaml_file import brief, expand_user, read_yaml
from imageprompt.generation.option_values import parse_size
from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request

MAX_SEEDS = 1000
DRAWN_COUNT = 4
DRAWN_SCALES = (0.5, 1.0)
_GET_ONE = "Write one (see docs/evaluation.md), or give --references, --prompts and --adapter."
_MODELS = ("variant", "reading", "encoder", "faces", "preset")
Part: TypeAlias = Literal["content", "style"]
_FREE_KEYS = ("output", "dtype", "device")
"""Keys that are no part of what was asked: where it goes, and what the environment tells."""


def _parse_size(text: str) -> int | tuple[int, int]:
    """`512x768`, or the side of a square."""
    width, height = parse_size(text)
    return width if width == height else (width, height)


@dataclass(frozen=True, kw_only=True)
class AdapterEntry:
    """One adapter of a study, with all that is its own: encoder, preset ..."""

    __pydantic_config__ = STRICT_KEYS

    adapter: Annotated[str, Key("adapter file, Hub id, or short name of one of the base's own")]
    name: Annotated[str | None, Key("its name in the results; default: that of the file")] = None
    variant: Annotated[str | None, Key("its architecture, if the file does not tell")] = None
    reading: Annotated[str | None, Key("as in `generate`")] = None
    encoder: Annotated[str | None, Key("its image encoder; default: the base's own")] = None
    faces: Annotated[str | None, Key("the face model pack of a FaceID adapter")] = None
    preset: Annotated[str | None, Key("what to take of the reference, such as style")] = None
    part: Annotated[
        Part | None,
        Key("of a pair: the adapter whose reference is compared with; default: each in turn"),
    ] = None

    @property
    def title(self) -> str:
        """Its name in the results."""
        return self.name or Path(self.adapter).stem or self.adapter

    def reference(self, picture: Any, scale: float, beside: Any = None) -> Reference:
        """How `generate` is asked for it; `beside` goes to the other adapter of a pair."""
        how = {name: getattr(self, name) for name in _MODELS} | {"scale": scale}
        if self.part is None:
            return Reference(reference=picture, adapter=self.adapter, **how)
        if beside is None:
            return Reference(reference=picture, adapter=part_of(self.adapter, self.part), **how)
        how |= {part: picture if part == self.part else beside for part in PARTS}
        return Reference(adapter=self.adapter, **how)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """All keys of a study file. Only `output` is required.

    Constructing one raises OptionError for a value out of range; `load` also checks types.
    """

    __pydantic_config__ = STRICT_KEYS

    output: Annotated[str, Key("folder for everything that the study writes")]
    references: Annotated[
        str | None,
        Key("a folder of pictures, in which folders are subjects; default: drawn ones", "DIR"),
    ] = None
    count: Annotated[int, Key("how many drawn references", "N", ge=1, le=10_000)] = DRAWN_COUNT
    prompts: Annotated[
        str | tuple[str, ...] | None,
        Key("a list of texts, or a file with one text a line; default: a few, or no text"),
    ] = None
    adapters: Annotated[
        tuple[str | dict[str, Any], ...],
        Key(
            "adapter files, Hub ids or short names; or mappings with adapter, name, variant, "
            "encoder, preset ...; default: those of the bundled base"
        ),
    ] = ()
    preset: Annotated[
        str | None,
        Key("what adapters take of the reference, such as style, unless they say it", "NAME"),
    ] = None
    scales: Annotated[tuple[float, ...], Key("scales above 0, to 2")] = DRAWN_SCALES
    seeds: Annotated[
        int, Key("pictures of each reference and prompt, each with a seed", "N", ge=1, le=MAX_SEEDS)
    ] = 1
    seed: Annotated[int, Key("the first seed", "N", ge=0, le=2**62)] = 1
    base: Annotated[
        str,
        Key("pipeline: bundled, bundled-sd3, a folder, or owner/repo on the Hub", "PATH_OR_HUB_ID"),
    ] = bundled.NAME
    negative_prompt: Annotated[str, Key("text to steer away from", "TEXT")] = ""
    steps: Annotated[int | None, Key("denoising steps; default: the pipeline's", "N", ge=1)] = None
    guidance_scale: Annotated[
        float | None, Key("classifier-free guidance scale; default: the pipeline's", "G", ge=0)
    ] = None
    true_cfg_scale: Annotated[
        float | None, Key("scale of a second guidance, of FLUX and its kin", "G", ge=0)
    ] = None
    size: Annotated[
        int | tuple[int, int] | None,
        Key(
            "side in pixels, or [width, height]; default: the pipeline's", "WxH", parse=_parse_size
        ),
    ] = None
    batch_size: Annotated[int, Key("pictures denoised together", "N", ge=1, le=1024)] = 8
    dtype: Annotated[
        str | None, Key("float32, float16 or bfloat16; default: by the device", "TYPE")
    ] = None
    device: Annotated[str | None, Key("cpu, cuda or mps; default: the best one here", "NAME")] = (
        None
    )
    metrics: Annotated[
        tuple[str, ...], Key("see `imageprompt score --list`; default: what can be measured")
    ] = ()
    extractors: Annotated[
        dict[str, str], Key("role: source, such as `clip: openai/clip-vit-large-patch14`")
    ] = field(default_factory=dict)
    control: Annotated[bool, Key("also make each picture without an adapter")] = True
    ceiling: Annotated[
        bool, Key("also score another picture of the subject, or the reference as the base's VAE")
    ] = True
    protocol: Annotated[
        str | None, Key("a published protocol; its keys are the defaults of this study", "NAME")
    ] = None
    data: Annotated[str | None, Key("the folder of the protocol's data set", "DIR")] = None
    limit: Annotated[
        int | None, Key("the protocol on the first pictures of its data set only", "N", ge=1)
    ] = None

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        overrides: Sequence[str] = (),
        *,
        changes: Mapping[str, Any] | None = None,
    ) -> StudyConfig:
        """From a YAML file or a mapping, with keys replaced by `changes`, then by "key=value".

        Keys that are not given are those of the protocol, if there is one. Raises OptionError,
        which names the key, and NotFoundError.
        """
        if isinstance(source, Mapping):
            where, plain = "the study", dict(source)
        else:
            path = Path(source)
            where, plain = f"study {brief(os.fspath(source))}", read_yaml(path, _GET_ONE)
        plain = apply_overrides({**plain, **(changes or {})}, overrides)
        if isinstance(plain.get("protocol"), str):
            from imageprompt.evaluation.protocols import PROTOCOLS

            plain = {**PROTOCOLS[plain["protocol"]].defaults, **plain}
        return read_config(cls, plain, where)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.output.strip():
            raise bad_key("output", self.output, "must name a folder")
        _ = self.folder  # raises OptionError for a user that does not exist
        self._check_scales()
        self._check_protocol()
        for name, count in Counter(entry.title for entry in self.entries).items():
            if count > 1:
                raise OptionError(
                    f"two adapters called {name!r}",
                    reason="the results could not tell them apart",
                    hint="Give each a name: {adapter: FILE, name: NAME}, or --adapter NAME=FILE.",
                )

    def _check_scales(self) -> None:
        if not self.scales:
            raise bad_key("scales", self.scales, "must not be empty")
        for scale in self.scales:
            if one_scale(scale, "scale") == 0:
                raise OptionError(
                    "scale 0",
                    reason="is the control, which each study has",
                    hint="Leave it out.",
                )
        if len({*self.scales}) < len(self.scales):
            raise bad_key("scales", self.scales, "must differ")

    def _check_protocol(self) -> None:
        for one, other in (("protocol", "data"), ("data", "protocol"), ("limit", "protocol")):
            if getattr(self, one) is not None and getattr(self, other) is None:
                raise OptionError(
                    f"{one} without {other}",
                    reason="a protocol reads the folder of its data set",
                    hint="Give both: --protocol NAME --data DIR.",
                )
        if self.protocol is None:
            return
        for name in ("references", "prompts"):
            if getattr(self, name) is not None:
                raise OptionError(
                    f"{name} with a protocol",
                    reason="the protocol takes them from its data set",
                    hint=f"Leave {name} out, or the protocol.",
                )

    @property
    def folder(self) -> Path:
        """`output` as a path."""
        return expand_user(self.output, f"output folder {brief(self.output)}")

    @cached_property
    def entries(self) -> tuple[AdapterEntry, ...]:
        """The adapters. Raises OptionError for a base that has none of its own."""
        given: Sequence[str | dict[str, Any]] = self.adapters
        if not given:
            if self.base not in bundled.FOLDERS:
                raise OptionError(
                    "no adapter",
                    reason="this base comes without one",
                    hint="Name adapter files: --adapter FILE_OR_HUB_ID, repeated.",
                )
            own = bundled.folder(self.base) / "adapters"
            names = {path.stem for path in own.glob("*.safetensors")}
            given = sorted(names - {bundled.PAIR})  # a pair needs two references
        found = (
            AdapterEntry(adapter=one)
            if isinstance(one, str)
            else read_config(AdapterEntry, one, "the study", f"adapters[{index}].")
            for index, one in enumerate(given)
        )
        return tuple(replace(one, preset=one.preset or self.preset) for one in found)

    def request(self, prompt: str, seed: int, reference: Reference | None = None) -> Request:
        """One picture; without a reference, the base's own."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return Request(
            prompt=prompt,
            negative_prompt=self.negative_prompt,
            references=(Reference(scale=0) if reference is None else reference,),
            seed=seed,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            true_cfg_scale=self.true_cfg_scale,
            size=size,
            base=self.base,
            dtype=self.dtype,
            device=self.device,
            progress=False,
        )

    def identity(self) -> dict[str, Any]:
        """Plain values of all keys that decide what is in the results."""
        plain = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name not in _FREE_KEYS
        }
        entries = [
            {name: value for name, value in asdict(entry).items() if value is not None}
            for entry in self.entries
        ]
        return plain | {"adapters": entries}


def folder_names(names: Sequence[str]) -> list[str]:
    """A name for a folder for each of these: plain characters, and no two alike."""
    found: list[str] = []
    taken = {"control", "ceiling"}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "adapter"
        free = plain
        number = 2
        while free.lower() in taken:
            free, number = f"{plain}-{number}", number + 1
        found.append(free)
        taken.add(free.lower())
    return found
