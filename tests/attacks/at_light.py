"""Adapters in forms of our own: light ones, int8 ones, and FLUX Redux as a style model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import adapter_doors as doors
from .attack import Attack, Door
from .tensor_files import SIZES, write, write_raw

SIZES |= {"I8": 1}
Tensors = dict[str, tuple[str, tuple[int, ...]]]
DEEP = "[" * 50_000
SITES = 4


def light(rank: int = 2, inner: int = 8, width: int = 8) -> Tensors:
    """The tensors of a light adapter with a few sites."""
    found: Tensors = {
        "image_proj.proj.weight": ("F16", (4 * width, 16)),
        "image_proj.proj.bias": ("F16", (4 * width,)),
        "image_proj.norm.weight": ("F16", (width,)),
        "image_proj.norm.bias": ("F16", (width,)),
    }
    for site in range(SITES):
        for kind in "kv":
            name = f"ip_adapter.{2 * site + 1}.to_{kind}_ip"
            found[f"{name}.up.weight"] = ("F16", (inner, rank))
            found[f"{name}.down.weight"] = ("F16", (rank, width))
    return found


STATED = {"base": "sd15", "alone": [], "fingerprints": {"float32": "0" * 16}}


def file(
    name: str,
    tensors: Callable[[], Mapping[str, Any]],
    stated: Any = None,
    says: str = "",
    outcome: str = "read",
) -> Attack:
    """A file with these tensors; `stated` is what the metadata says of its being light."""

    def make(folder: Path) -> Path:
        metadata = None
        if stated is not None:
            metadata = {"light": stated if isinstance(stated, str) else json.dumps(stated)}
        return write(folder / "adapter.safetensors", tensors(), metadata)

    return Attack(name, make, says, outcome)  # type: ignore[arg-type]


def _with(**tensors: tuple[str, tuple[int, ...]]) -> Callable[[], Tensors]:
    return lambda: light() | {name.replace("__", "."): one for name, one in tensors.items()}


UP, DOWN = "ip_adapter.1.to_k_ip.up.weight", "ip_adapter.1.to_k_ip.down.weight"


def _pair(up: Any, down: Any) -> Callable[[], Tensors]:
    """One pair has these shapes."""
    return lambda: light() | {UP: up, DOWN: down}


def _lights() -> Iterator[Attack]:
    for number, value in enumerate((None, 1, "x", [], {}, [[]], True, 10**39, "\x1b[2J")):
        yield file(f"the base, odd {number}", light, STATED | {"base": value})
        yield file(f"the fingerprints, odd {number}", light, STATED | {"fingerprints": value})
        yield file(f"what is alone, odd {number}", light, STATED | {"alone": value})
    for text in ("", "x", "1", "[]", "null", DEEP, '{"base": 1e999}', '"' + "a" * 70_000 + '"'):
        yield file(f"stated: {text[:20]!r}", light, text)
    yield file("a base of 60,000 letters", light, STATED | {"base": "a" * 60_000})
    yield file("30,000 names alone", light, STATED | {"alone": ["x"] * 15_000})
    for name, up, down in (
        ("a rank of none", ("F16", (8, 0)), ("F16", (0, 8))),
        ("no numbers", ("F16", (0, 2)), ("F16", (2, 0))),
        ("ranks that differ", ("F16", (8, 2)), ("F16", (3, 8))),
        ("a rank above the sides", ("F16", (8, 9)), ("F16", (9, 8))),
        ("three sides", ("F16", (8, 2, 1)), ("F16", (2, 8))),
        ("whole numbers", ("I64", (8, 2)), ("I64", (2, 8))),
        ("a product of 10^10", ("F16", (100_000, 1)), ("F16", (1, 100_000))),
        ("a product of 6 x 10^7", ("F16", (8192, 1)), ("F16", (1, 8192))),
    ):
        other = name == "a product of 6 x 10^7"  # on a base that has 8 x 8
        outcome, says = ("refused", "another base") if other else ("read", "")
        yield file(name, _pair(up, down), STATED, says, outcome)
        alone = STATED | {"alone": [UP.replace(".up", "")]}
        yield file(f"{name}, alone", _pair(up, down), alone)
    yield file(
        "an up without a down", _with(ip_adapter__99__to_k_ip__up__weight=("F16", (8, 2))), STATED
    )
    yield file("light and whole", _with(ip_adapter__1__to_k_ip__weight=("F16", (8, 8))), STATED)
    yield file("2,000 pairs", lambda: _many(2000), STATED, "", "read")
    yield file("20,000 pairs", lambda: _many(20_000), STATED, "limit", "refused")


def _many(count: int) -> Tensors:
    found = light()
    for site in range(count):
        found[f"ip_adapter.{2 * site + 1}.to_k_ip.up.weight"] = ("F16", (8, 1))
        found[f"ip_adapter.{2 * site + 1}.to_k_ip.down.weight"] = ("F16", (1, 8))
    return found


def int8(name: str = "image_proj.proj.weight", **tensors: Any) -> Tensors:
    """A base adapter with an int8 matrix."""
    plain = {name: one for name, one in light().items() if "_ip." not in name}
    for site in range(SITES):
        for kind in "kv":
            plain[f"ip_adapter.{2 * site + 1}.to_{kind}_ip.weight"] = ("F16", (8, 8))
    plain |= {name: ("I8", (32, 16)), f"{name}_scale": ("F32", (32,))}
    return plain | {key.replace("__", "."): value for key, value in tensors.items()}


def _scales() -> Iterator[Attack]:
    scale = "image_proj__proj__weight_scale"
    matrix = "image_proj__proj__weight"
    for name, changes in {
        "sound": {},
        "scales of another count": {scale: ("F32", (31,))},
        "no scales": {scale: ("F32", (0,))},
        "scales in two sides": {scale: ("F32", (32, 1))},
        "scales in half precision": {scale: ("F16", (32,))},
        "a matrix without columns": {matrix: ("I8", (32, 0))},
        "a matrix without rows": {matrix: ("I8", (0, 16)), scale: ("F32", (0,))},
        "a vector": {matrix: ("I8", (32,))},
        "a matrix of 6 x 10^7": {matrix: ("I8", (4096, 16_000)), scale: ("F32", (4096,))},
        "60 million rows": {matrix: ("I8", (60_000_000, 1)), scale: ("F32", (60_000_000,))},
        "one row of 60 million": {matrix: ("I8", (1, 60_000_000)), scale: ("F32", (1,))},
        "a scale of a scale": {
            scale: ("I8", (32, 1)), "image_proj__proj__weight_scale_scale": ("F32", (32,)),
        },
        "a scale alone": {"x_scale": ("F32", (4,))},
    }.items():  # fmt: skip
        yield file(name, lambda changes=changes: int8(**changes))  # type: ignore[misc]
    yield file(
        "4,000 int8 matrices",
        lambda: {
            f"ip_adapter.{n}.to_k_ip.weight{end}": one
            for n in range(4000)
            for end, one in (("", ("I8", (1, 1))), ("_scale", ("F32", (1,))))
        },
    )


# ── Redux ───────────────────────────────────────────────────────────────────────────────────────


def _redux(**tensors: Any) -> Callable[[], Tensors]:
    def made() -> Tensors:
        found: Tensors = {
            "redux_up.weight": ("BF16", (12288, 1152)), "redux_up.bias": ("BF16", (12288,)),
            "redux_down.weight": ("BF16", (4096, 12288)), "redux_down.bias": ("BF16", (4096,)),
        }  # fmt: skip
        changed = {key.replace("__", "."): value for key, value in tensors.items()}
        return {name: one for name, one in (found | changed).items() if one is not None}

    return made


def _reduxes() -> Iterator[Attack]:
    up, down = "redux_up__weight", "redux_down__weight"
    for name, changes in {
        "no redux_down": {down: None, "redux_down__bias": None},
        "biases alone": {up: None, down: None},
        "no columns": {up: ("BF16", (12288, 0))},
        "no rows": {up: ("BF16", (0, 1152)), down: ("BF16", (4096, 0))},
        "widths that do not meet": {down: ("BF16", (4096, 12287))},
        "three sides": {up: ("BF16", (12288, 1152, 1))},
        "no sides": {up: ("BF16", ())},
        "whole numbers": {up: ("I64", (64, 64)), down: ("I64", (64, 64))},
        "a layer more": {"redux_up__x__weight": ("BF16", (4, 4))},
        "another tensor": {"image_proj__proj__weight": ("BF16", (4, 4))},
        "sites beside it": {"ip_adapter__1__to_k_ip__weight": ("BF16", (4, 4))},
        "escapes in a name": {"redux_up__\x1b[2J": ("BF16", (4,))},
    }.items():
        escapes = "x1b" in repr(list(changes))
        outcome, says = ("refused", "a tensor is called") if escapes else ("read", "")
        yield file(name, _redux(**changes), None, says, outcome)
    yield file(
        "20,000 layers",
        lambda: {f"redux_up.{n}.weight": ("BF16", (1,)) for n in range(20_000)},
        None,
        "limit",
        "refused",
    )
    yield Attack("a header that is cut", lambda folder: write_raw(
        folder / "adapter.safetensors", '{"redux_up.weight": {"dty', 16
    ), "", "refused")  # fmt: skip


def _converts(made: Path, out: Path) -> object:
    """To whole weights; what cannot be written is refused, and that is as good here."""
    from imageprompt.core.errors import ImagePromptError

    try:
        return doors.converts(made, out)
    except ImagePromptError as error:
        return str(error)


def _reads(made: Path, out: Path) -> object:
    return str(doors.inspects(made, out)) + str(_converts(made, out))


class _Zeros:
    """The base's own weight, as `expanded` reads it."""

    shape, dtype = (8, 8), "F32"

    def chunks(self, size: int = 0) -> Iterator[bytes]:
        yield bytes(8 * 8 * 4)


def _on_a_base(made: Path, out: Path) -> object:
    """What it says by itself, then all of its numbers on a base."""
    from imageprompt.checkpoint.inspect import inspect
    from imageprompt.checkpoint.read.light import expanded
    from imageprompt.checkpoint.read.open import open_source

    said = doors.shown(inspect(made))
    source = open_source(made)
    names = source.light.on_base if source.light else ()
    whole: Any = expanded(source, dict.fromkeys(names, _Zeros()))  # type: ignore[arg-type]
    size = sum(len(part) for one in whole.tensors.values() for part in one.chunks())
    return f"{said} {size} bytes"


IMPORTS = (*doors.REPORTS, *doors.CONVERTS)
DOORS = (
    Door("light adapters", _on_a_base, tuple(_lights()), IMPORTS),
    Door("int8 adapters", _reads, tuple(_scales()), IMPORTS),
    Door("Redux files", _reads, tuple(_reduxes()), IMPORTS),
)
