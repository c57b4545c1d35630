"""Style files from strangers: everything that is wrong with one is told before it is used."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from forge import write
from imageprompt.checkpoint.read.stored_tensor import StoredTensor
from imageprompt.core.errors import NotFoundError, OptionError, PromptError
from imageprompt.library import Library, thumbnail
from imageprompt.library.encoder_setup import load_with_encoder
from imageprompt.library.style_file import _LIMITS


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path) -> Any:
    return load_with_encoder(base=tiny_folder).adapter


@pytest.fixture
def library(tmp_path: Path, adapter: Any) -> Library:
    """One style, "red"."""
    library = Library(tmp_path / "library")
    library.add("red", adapter, Image.new("RGB", (32, 32), "red"), tags=["warm"])
    return library


@dataclass
class Parts:
    """A style file, taken apart."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]
    kind: str = "image-style"
    metadata: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        metadata = {"kind": self.kind, "style": json.dumps(self.about)} | self.metadata
        save_file(self.tensors, path, metadata)
        return path


def apart(library: Library, name: str = "red") -> Parts:
    style = library.show(name)
    return Parts(load_file(style.path), style.description() | {"name": "given"})


@cache
def png(width: int, height: int) -> torch.Tensor:
    """A white picture: tiny as a file, whatever its size."""
    stream = io.BytesIO()
    Image.new("1", (width, height), 1).save(stream, format="PNG", compress_level=1)
    return as_bytes(stream.getvalue())


def as_bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def tensor(name: str, value: torch.Tensor | None) -> Callable[[Parts], Parts]:
    """With this tensor in the place of its own, or without it."""

    def change(parts: Parts) -> Parts:
        kept = {key: old for key, old in parts.tensors.items() if key != name}
        return replace(parts, tensors=kept if value is None else kept | {name: value})

    return change


def large_thumbnail(side: int) -> Callable[[Parts], Parts]:
    """With a thumbnail that is made where it is needed."""
    return lambda parts: tensor("thumbnail", png(side, side))(parts)


def about(**values: Any) -> Callable[[Parts], Parts]:
    """With these said about it; ... leaves a key out."""

    def change(parts: Parts) -> Parts:
        said = parts.about | values
        return replace(parts, about={key: v for key, v in said.items() if v is not ...})

    return change


def spoil(name: str, value: float) -> Callable[[Parts], Parts]:
    """With one number changed."""

    def change(parts: Parts) -> Parts:
        changed = parts.tensors[name].clone()
        changed.view(-1)[-1] = value
        return tensor(name, changed)(parts)

    return change


def source(**values: Any) -> dict[str, Any]:
    return {"name": "plus", "hash": "0" * 16, "spec": {"variant": "plus"}} | values


HOSTILE: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "another kind": (
        lambda parts: replace(parts, kind="image-prompt"),
        "its metadata does not say so",
    ),
    "no description": (
        lambda p: replace(p, metadata={"style": ""}),
        "the description is not valid JSON",
    ),
    "endless description": (
        lambda parts: replace(parts, metadata={"style": json.dumps({"a": "x" * 300_000})}),
        "longer than 256 kB",
    ),
    "nested description": (
        lambda parts: replace(parts, metadata={"style": "[" * 5000}),
        "the description is too large: nested more than 64 deep",
    ),
    "a key twice": (
        lambda parts: replace(parts, metadata={"style": '{"format": 1, "format": 2}'}),
        "in the description, the same name appears twice",
    ),
    "a later format": (about(format=2), "format 2; this version reads 1"),
    "an unknown key": (about(run="rm"), "has an unknown key 'run'"),
    "a missing key": (about(recipe=...), "lacks the key 'recipe'"),
    "a name with a path": (about(name="../../evil"), "cannot contain /"),
    "a name that is none": (about(name=7), "style name of type int: not a text"),
    "tags that are none": (about(tags="warm"), "not a list of texts"),
    "endless tags": (about(tags=[str(i) for i in range(60)]), "at most 50"),
    "a hash that is none": (about(hash="x"), "not 64 hex digits"),
    "a time that is none": (about(created="yesterday"), "not a time"),
    "a version that is none": (about(version="1.0; rm"), "not a version number"),
    "NaN in the recipe": (about(recipe={"noise": float("nan")}), "not a number"),
    "an endless number": (about(recipe={"noise": 10**400}), "a number of 401 digits"),
    "a steering text": (about(recipe={"fusion": "\x1b[2J"}), "not a printable text"),
    "endless recipe": (about(recipe={str(i): i for i in range(2000)}), "more than 1000"),
    "a deep recipe": (about(recipe={"a": [[[[[1]]]]]}), "not a number, a text"),
    "an adapter that is none": (about(adapter="plus"), "an entry without name and hash"),
    "an adapter without variant": (about(adapter=source(spec={})), "adapter: no variant"),
    "an adapter on another machine": (about(adapter=source(name="//host/x")), "a path or a Hub id"),
    "an adapter with more keys": (about(adapter=source(run=1)), "an entry without name and hash"),
    "an encoder that is none": (about(encoder={"name": "x", "hash": 3}), "16 or 64 hex digits"),
    "references that are none": (about(references={}), "not a list"),
    "endless references": (
        about(references=[{"name": None, "hash": "0" * 64}] * 1001),
        "not a list of at most 1000",
    ),
    "no tokens": (tensor("tokens", None), "it has no tokens"),
    "tokens of a batch": (tensor("tokens", torch.zeros(2, 4, 32)), r"'tokens' is \[2, 4, 32\]"),
    "flat tokens": (tensor("tokens", torch.zeros(4, 32)), r"'tokens' is \[4, 32\]"),
    "whole numbers": (tensor("tokens", torch.zeros(1, 4, 32, dtype=torch.int32)), "I32"),
    "too many tokens": (tensor("tokens", torch.zeros(1, 5000, 2)), "at most"),
    "null tokens of another shape": (tensor("null_tokens", torch.zeros(1, 3, 32)), "null tokens"),
    "a tensor too many": (tensor("code", torch.zeros(1)), "'code' .*not part of a style"),
    "half of the features": (
        tensor("features.0", torch.zeros(1, 5, 32)),
        "its features are incomplete",
    ),
    "a huge thumbnail file": (
        tensor("thumbnail", torch.zeros(600_000, dtype=torch.uint8)),
        "'thumbnail' is",
    ),
    "other tokens": (spoil("tokens", 0.5), "do not match its hash"),
    "NaN in the tokens": (
        spoil("tokens", float("nan")),
        "its tokens have values that are not finite",
    ),
    "infinite null tokens": (
        spoil("null_tokens", float("inf")),
        "its tokens have values that are not finite",
    ),
    "NaN in the features": (
        spoil("features", float("nan")),
        "its features have values that are not finite",
    ),
    "NaN in the embedding": (
        spoil("embedding", float("nan")),
        "its embedding have values that are not finite",
    ),
    "a bomb of a thumbnail": (large_thumbnail(20_000), "million pixels"),
    "a large thumbnail": (large_thumbnail(2000), "2000x2000 is more than 1024"),
    "a thumbnail that is none": (tensor("thumbnail", as_bytes(b"<svg/>")), "neither PNG nor JPEG"),
    "a cut thumbnail": (tensor("thumbnail", png(64, 64)[:45]), "thumbnail"),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_not_taken_in(kind: str, library: Library, tmp_path: Path) -> None:
    change, says = HOSTILE[kind]
    path = change(apart(library)).write(tmp_path / "given.safetensors")
    with pytest.raises(PromptError, match=says) as raised:
        library.import_(path)
    assert "\n" not in str(raised.value)
    assert library.names() == ["red"]


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_in_the_folder(kind: str, library: Library, adapter: Any) -> None:
    """Copied into it, they are told and left out, or refused where the fault would count."""
    HOSTILE[kind][0](apart(library)).write(library.folder / "given.safetensors")
    if kind.startswith("a name"):  # in the folder, the file's name counts
        assert library.show("given").name == "given"
        return
    try:
        with pytest.warns(UserWarning, match="skipped: .*given"):
            assert [style.name for style in library.styles()] == ["red"]
    except pytest.fail.Exception:  # its description and shapes are right
        style = library.show("given")
        if "token" in kind:
            with pytest.raises(PromptError, match="not a style file"):
                library.open("given", adapter)
        elif "thumbnail" in kind:
            with pytest.raises(PromptError, match="thumbnail of style 'given'"):
                thumbnail.read(style)
        else:
            with pytest.raises(PromptError, match="not finite"):
                library.mix({"red": 1, "given": 1}, "mixed", adapter)


def test_bytes_are_counted_before_they_are_read() -> None:
    for shape, allowed in (((1, 1024, 1024), True), ((1, 4096, 16_384), False)):
        stored = StoredTensor("F32", shape, Path("style.safetensors"), 0, None)
        assert _LIMITS["tokens"].allows(stored) is allowed


def foreign(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def claims_terabytes(path: Path) -> None:
    write(
        path,
        {"tokens": {"dtype": "F32", "shape": [1, 4096, 2**40], "data_offsets": [0, 2**54]}},
        16,
    )


NOT_SAFETENSORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (foreign(b""), "it is not a safetensors file"),
    "a picture": (foreign(b"\x89PNG\r\n\x1a\n" + bytes(600)), "it is not a safetensors file"),
    "a pickle": (
        lambda path: torch.save({"tokens": torch.zeros(1, 4, 32)}, path),
        "it is not a safetensors file",
    ),
    "a folder": (lambda path: path.mkdir(), "it is a folder, not a file"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "terabytes claimed": (claims_terabytes, "the file is cut off"),
}


@pytest.mark.parametrize("kind", NOT_SAFETENSORS)
def test_files_of_other_kinds(kind: str, library: Library, tmp_path: Path) -> None:
    make, says = NOT_SAFETENSORS[kind]
    make(tmp_path / "given.safetensors")
    with pytest.raises(PromptError, match=f"not a style file: .*{says}"):
        library.import_(tmp_path / "given.safetensors")


def test_what_is_not_there(library: Library, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such"):
        library.import_(tmp_path / "nothing.safetensors")
    with pytest.raises(OptionError, match=r"not a .safetensors file in an existing folder"):
        library.export("red", tmp_path / "no" / "red.safetensors")
    with pytest.raises(OptionError, match=r"not a .safetensors file"):
        library.export("red", tmp_path / "red.png")


def test_a_cut_file(library: Library, tmp_path: Path) -> None:
    path = library.export("red", tmp_path / "red.safetensors")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(PromptError, match=r"not a style file: the file is cut off"):
        library.import_(path)


def test_export_and_import(library: Library, adapter: Any, tmp_path: Path) -> None:
    path = library.export("red", tmp_path / "given.safetensors")
    with pytest.raises(OptionError, match="exists already"):
        library.export("red", path)
    assert library.export("red", path, replace=True) == path
    with pytest.raises(OptionError, match="'red' exists already"):
        library.import_(path)
    other = Library(tmp_path / "other")
    taken = other.import_(path)
    assert taken == library.show("red")
    assert taken.path == other.folder / "red.safetensors"
    again = other.import_(path, "rot")
    assert (again.name, again.hash, again.description()["name"]) == ("rot", taken.hash, "rot")
    opened = other.open("rot", adapter)
    assert torch.equal(opened.tokens, library.open("red", adapter).tokens)
    seen = [thumbnail.read(style) for style in (library.show("red"), again)]
    assert seen[0] is not None
    assert seen[0] == seen[1]


def test_a_file_of_the_folder_may_be_renamed(library: Library, adapter: Any) -> None:
    (library.folder / "red.safetensors").rename(library.folder / "crimson.safetensors")
    assert library.names() == ["crimson"]
    assert library.open("crimson", adapter).metadata["style"] == "crimson"
    (library.folder / "bad:name.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped: style name 'bad:name'"):
        assert [style.name for style in library.styles()] == ["crimson"]


def test_files_that_are_no_styles_are_left_alone(library: Library, adapter: Any) -> None:
    """Somebody may name a folder of adapters as the library."""
    adapter.save(library.folder / "plus.safetensors")
    before = (library.folder / "plus.safetensors").read_bytes()
    with pytest.raises(PromptError, match=r"plus.safetensors: not a style file"):
        library.remove("plus")
    with pytest.raises(PromptError, match=r"plus.safetensors: not a style file"):
        library.add("plus", adapter, Image.new("RGB", (32, 32)), replace=True)
    assert (library.folder / "plus.safetensors").read_bytes() == before


def test_styles_without_a_usable_embedding_are_skipped(library: Library, adapter: Any) -> None:
    spoil("embedding", float("nan"))(apart(library)).write(library.folder / "given.safetensors")
    results = library.search(Image.new("RGB", (32, 32), "red"), encoder=adapter.encoder)
    assert [one.style.name for one in results.hits] == ["red"]
    assert results.skipped == ("given",)


def test_names_of_references_lose_their_folders(
    adapter: Any, library: Library, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "secret.png")
    style = library.add("x", adapter, [tmp_path / "secret.png", Image.new("RGB", (32, 32))])
    assert [one.name for one in style.references] == ["secret.png", None]
    assert str(tmp_path) not in json.dumps(style.description())


def test_photographs_are_kept_as_jpeg(adapter: Any, library: Library) -> None:
    noise = torch.randint(0, 255, (300, 300, 3), dtype=torch.uint8).numpy()
    for name, picture in (("noise", Image.fromarray(noise)), ("plain", Image.new("RGB", (32, 32)))):
        library.add(name, adapter, picture)
    starts = [
        bytes(next(iter(library.show(name).tensors["thumbnail"].chunks())))[:3]
        for name in ("noise", "plain")
    ]
    assert starts == [b"\xff\xd8\xff", b"\x89PN"]
    assert all(style.tensors["thumbnail"].nbytes < 2**18 for style in library.styles())


def test_one_picture_of_several(adapter: Any, library: Library) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    small = thumbnail.read(library.add("three", adapter, pictures))
    assert small is not None
    corners = [small.getpixel(at) for at in ((5, 5), (5, 250), (250, 5), (250, 250))]
    assert corners == [(255, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_what_a_file_cannot_keep_is_told_before_it_is_written(
    adapter: Any, library: Library
) -> None:
    features = torch.zeros(1100, 5, adapter.spec.feature_dim)
    with pytest.raises(OptionError, match=r"style 'x': .*Use fewer references"):
        library.add("x", adapter, features=features)
    assert library.names() == ["red"]
