"""The readers of headers, archives and pickles under random input: no exception but ours.

Bounded and repeatable: the same few thousand inputs each run. `FUZZ=20 pytest ...` takes twenty
times as many, at random.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from forge import header, write
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.pickle.machine import PickleError
from imageprompt.checkpoint.read.pickle.torch_objects import TorchPickle
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.core.errors import ImagePromptError

TIMES = int(os.environ.get("FUZZ", "0"))
PART = 1 if os.environ.get("WHOLE") else 3
"""`make test` tries a third of the examples, `make attacks` all."""
pytestmark = pytest.mark.sample(1)


def bounded(examples: int) -> Callable[[Any], Any]:
    """How often a property is tried."""
    return settings(
        max_examples=examples * TIMES or examples // PART,
        derandomize=not TIMES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def opened(path: Path) -> TensorSource | None:
    """Open it and read what it claims to hold; None where our own error refuses it."""
    message, source = "", None
    try:
        source = open_source(path)
    except ImagePromptError as error:
        message = str(error)
    assert message.isprintable()
    for tensor in source.tensors.values() if source else ():
        try:
            assert len(tensor.read()) == tensor.nbytes
        except ImagePromptError:
            assert not tensor.plain  # a range was checked to lie in the file
    return source


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────

STARTS = [b"", b"PK\3\4", b"PK\5\6", b"\x80\x02", b"\x80\x04\x95", b"\x20\0\0\0\0\0\0\0{", b"cos\n"]


@bounded(200)
@given(st.sampled_from(STARTS), st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "file").write_bytes(start + rest)
    opened(tmp_path / "file")


# ── safetensors headers ─────────────────────────────────────────────────────────────────────────

SIZES = st.integers(-2, 9) | st.sampled_from([2**31, 2**63, 2**64, 10**30]) | st.booleans()
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "BOOL", "F3", ""]) | ODD,
        "shape": st.lists(SIZES, max_size=3) | ODD,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.lists(SIZES) | ODD,
    },
)


@bounded(250)
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRY | ODD, max_size=3),
    st.integers(0, 12),
)
def test_random_headers(tmp_path: Path, entries: dict[str, Any], size: int) -> None:
    """What is accepted here, the library of safetensors itself accepts."""
    path = write(tmp_path / "file", json.dumps(entries).encode(), size)
    source = opened(path)
    if source is not None:
        with safe_open(path, framework="pt") as theirs:
            assert set(theirs.keys()) == source.tensors.keys()
            assert (theirs.metadata() or {}) == source.metadata


@bounded(200)
@given(st.data())
def test_headers_that_are_nearly_right(tmp_path: Path, data: st.DataObject) -> None:
    """One number of a right header is changed: it is refused, or it says the same bytes."""
    entries = header({"a": (2, 3), "b": (4,), "c": ()})
    name = data.draw(st.sampled_from(list(entries)))
    field = data.draw(st.sampled_from(["shape", "data_offsets"]))
    if entries[name][field]:
        index = data.draw(st.integers(0, len(entries[name][field]) - 1))
        entries[name][field][index] += data.draw(st.sampled_from([-1, 1, 2**32, 2**64]))
        assert opened(write(tmp_path / "file", entries, 22)) is None


# ── mutations of right files ────────────────────────────────────────────────────────────────────


def safetensors_file(folder: Path) -> Path:
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    save_file(tensors, folder / "file", {"variant": "base"})
    return folder / "file"


def torch_file(folder: Path, **how: Any) -> Path:
    weight = torch.ones(2, 3)
    torch.save(
        {
            "image_proj": {"a": weight, "same": weight, "t": weight.t()},
            "step": 3,
            "n": {"b": [1.0]},
        },
        folder / "file",
        **how,
    )
    return folder / "file"


def legacy_file(folder: Path) -> Path:
    return torch_file(folder, _use_new_zipfile_serialization=False)


def packed_file(folder: Path) -> Path:
    import zipfile

    plain = torch_file(folder)
    with (
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(folder / "z", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return (folder / "z").rename(plain)


def index_file(folder: Path) -> Path:
    safetensors_file(folder).rename(folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"b": "one.safetensors", "a.weight": "one.safetensors"}})
    )
    return index


def distributed_file(folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, checkpoint_id=folder, no_dist=True)
    return folder / ".metadata"


MAKERS = [safetensors_file, torch_file, legacy_file, packed_file, index_file, distributed_file]


KINDS = ["flip", "cut", "drop", "twice", "insert"]


@st.composite
def mutation(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Flip, cut, drop, repeat or insert, at one place."""
    place, kind = draw(st.floats(0, 1)), draw(st.sampled_from(KINDS))
    length, other = draw(st.integers(1, 16)), draw(st.binary(min_size=1, max_size=9))

    def change(content: bytes) -> bytes:
        at = int(place * max(len(content) - 1, 0))
        piece = content[at : at + length]
        return {
            "flip": content[:at] + other + content[at + len(other) :],
            "cut": content[:at],
            "drop": content[:at] + content[at + length :],
            "twice": content[:at] + piece + content[at:],
            "insert": content[:at] + other + content[at:],
        }[kind]

    return change


@pytest.mark.sample(4)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_mutated_files(maker: Callable[[Path], Path], tmp_path: Path) -> None:
    path = maker(tmp_path)
    right = path.read_bytes()
    target = tmp_path if path.name == ".metadata" else path
    assert opened(target) is not None

    @bounded(250)
    @given(st.lists(mutation(), min_size=1, max_size=3))
    def mutate(changes: list[Callable[[bytes], bytes]]) -> None:
        content = right
        for change in changes:
            content = change(content)
        path.write_bytes(content)
        opened(target)

    mutate()


# ── pickles ─────────────────────────────────────────────────────────────────────────────────────

NAMES = [
    "os\nsystem", "builtins\neval", "builtins\ngetattr", "collections\nOrderedDict", "torch\nSize",
    "torch\nFloatStorage", "torch\nfloat32", "torch._utils\n_rebuild_tensor_v2",
    "torch._utils\n_rebuild_tensor_v3", "torch._utils\n_rebuild_parameter",
    "torch._tensor\n_rebuild_from_type_v2", "torch.hub\nload", "argparse\nNamespace",
]  # fmt: skip
PLAIN = b"(012)t\x85\x86\x87]le}dsua\x8f\x90\x91N\x88\x89Rbo\x81\x92\x93\x94Q"  # without arguments
TEXTS = [b"storage", b"0"]
OPCODES = (
    st.sampled_from([bytes([code]) for code in PLAIN])
    | st.builds(lambda n: b"K" + bytes([n]), st.integers(0, 9))
    | st.builds(lambda n: b"\x8a\x08" + struct.pack("<q", n), st.integers(-(2**63), 2**63 - 1))
    | st.builds(lambda name: f"c{name}\n".encode(), st.sampled_from(NAMES))
    | st.builds(lambda text: b"X" + struct.pack("<I", len(text)) + text, st.sampled_from(TEXTS))
    | st.builds(lambda n: b"q" + bytes([n]), st.integers(0, 5))
    | st.builds(lambda n: b"h" + bytes([n]), st.integers(0, 5))
    | st.builds(lambda code: bytes([code]), st.integers(0, 255))
)  # fmt: skip


@bounded(750)
@given(st.lists(OPCODES, max_size=40))
def test_random_programs(operations: list[bytes]) -> None:
    """A pickle's operations in any order end in a value or in our error; nothing is imported."""
    with contextlib.suppress(PickleError):
        TorchPickle().read(b"".join([*operations, b"."]))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@bounded(200)
@given(VALUES, st.integers(3, 5))
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    """The machine agrees with Python's own reader on what is harmless."""
    data = pickle.dumps(value, protocol)
    assert TorchPickle().read(data) == (value, len(data))
