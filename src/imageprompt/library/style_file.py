"""Style files: safetensors that say what they hold; read with suspicion, written whole or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imageprompt.checkpoint.read.json_text import parse_table
from imageprompt.checkpoint.read.open import open_file
from imageprompt.checkpoint.read.pickle.torch_objects import DTYPES
from imageprompt.checkpoint.read.stored_tensor import CHUNK, Source
from imageprompt.checkpoint.tensor_bytes import Weights, finite, full_hash
from imageprompt.checkpoint.write.storage import tensor_of
from imageprompt.checkpoint.write.writer import write_safetensors
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import AdapterFileError, OptionError, PromptError
from imageprompt.library.style import Style, style_of

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.encoding.features import Group

SUFFIX = ".safetensors"
KIND = "image-style"
MAX_ABOUT = 256_000  # bytes of the description
MAX_THUMBNAIL = 512 * 1024  # bytes
_AGAIN = "Get the file again, or add the style anew."
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class _Rule:
    """What a tensor of a style file may be: the most of every dimension, `least` of which it has
    at least; and bytes."""

    most: tuple[int, ...]
    least: int
    nbytes: int
    dtypes: tuple[str, ...] = _FLOATS

    def allows(self, tensor: Weights) -> bool:
        return (
            tensor.dtype in self.dtypes
            and self.least <= len(tensor.shape) <= len(self.most)
            and all(1 <= size <= high for size, high in zip(tensor.shape, self.most, strict=False))
            and tensor.nbytes <= self.nbytes
        )

    def __str__(self) -> str:
        sizes = ", ".join(f"1..{high}" if high > 1 else "1" for high in self.most)
        return f"at most [{sizes}] of {' or '.join(self.dtypes)}, {self.nbytes / 2**20:g} MiB"


_TOKENS = _Rule((1, 4096, 16_384), 3, 64 * 2**20)
_FEATURES = _Rule((1000, 16_384, 16_384, 16_384), 2, 256 * 2**20)
_RULES: Mapping[str, _Rule] = {
    "tokens": _TOKENS,
    "null_tokens": _TOKENS,
    "features": _FEATURES,
    "features.0": _FEATURES,
    "features.1": _FEATURES,
    "embedding": _Rule((1000, 16_384), 2, 64 * 2**20),
    "thumbnail": _Rule((MAX_THUMBNAIL,), 1, MAX_THUMBNAIL, ("U8",)),
}


@dataclass(frozen=True)
class Held:
    """A tensor in memory, in the words of files."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> Held:
        import torch

        whole = tensor.detach().cpu().contiguous()
        dtype = DTYPES[str(whole.dtype).removeprefix("torch.")]
        return cls(dtype, tuple(whole.shape), whole.view(torch.uint8).numpy().tobytes())

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        whole = memoryview(self.content)
        return (whole[start : start + size] for start in range(0, len(whole), size))


def held_features(features: Group | None) -> dict[str, Held]:
    """Features of one prompt by the names that a file gives them; none for None."""
    if features is None:
        return {}
    if isinstance(features, tuple):
        return {f"features.{i}": Held.of(part) for i, part in enumerate(features)}
    return {"features": Held.of(features)}


def features_of(style: Style) -> Group | None:
    """Back from `held_features`; None where none were kept."""
    parts = tuple(tensor_of(stored) for stored in style.features)
    if "features" in style.tensors:
        return parts[0]
    return parts or None


def token_hash(tensors: Mapping[str, Weights]) -> str:
    """What a style is known by: sha256 over its tokens and null tokens."""
    named = ("tokens", "null_tokens")
    return full_hash({name: tensors[name] for name in named if name in tensors})


def read_style(path: Path, name: str | None = None) -> Style:
    """What a style's file says, its tensors still unread; `name` in place of the file's own.

    Raises NotFoundError, and PromptError for a file that is no style, too large or inconsistent.
    """
    try:
        source = open_file(path)
        about = _about(source)
    except AdapterFileError as error:
        _refuse(path, error.reason.removeprefix("not an adapter file: "))
    for key, tensor in source.tensors.items():
        if key not in _RULES or not _RULES[key].allows(tensor):
            rule = _RULES.get(key, "not part of a style")
            _refuse(path, f"its tensor {key!r:.60} is {list(tensor.shape)}, {tensor.dtype}: {rule}")
    if fault := _inconsistent(source.tensors):
        _refuse(path, fault)
    try:
        named = {} if name is None else {"name": name}
        return style_of(about, **named, path=path, tensors=source.tensors)
    except ValueError as error:
        _refuse(path, str(error))


def write_style(path: Path, style: Style) -> Style:
    """Write it, tensors and all, in place of what was there; returns the style as read again.

    Raises OptionError where it would break a rule of reading, before anything is written.
    """
    for key, tensor in style.tensors.items():
        if not _RULES[key].allows(tensor):
            raise OptionError(
                f"style {style.name!r}: {key} of shape {list(tensor.shape)} in {tensor.dtype}",
                reason=f"a style file keeps {_RULES[key]}",
                hint="Use fewer references.",
            )
    about = json.dumps(style.written(), ensure_ascii=False)
    with write_atomically(path) as temporary:
        write_safetensors(temporary, style.tensors, {"kind": KIND, "style": about})
    return read_style(path)


def check_whole(style: Style) -> Style:
    """Read everything: finite, and the tokens that it is known by. Raises PromptError."""
    check_tokens(style)
    for key, tensor in style.tensors.items():
        if not finite(tensor):
            _refuse(style.path, f"its {key} are not all finite numbers")
    return style


def check_tokens(style: Style) -> None:
    """The part of `check_whole` that a picture depends on."""
    tokens = {key: style.tensors[key] for key in ("tokens", "null_tokens") if key in style.tensors}
    try:
        if not all(finite(tensor) for tensor in tokens.values()):
            _refuse(style.path, "its tokens are not all finite numbers")
        if token_hash(tokens) != style.hash:
            _refuse(style.path, "its tokens are not those that it was written with")
    except AdapterFileError as error:  # it changed, or went away, after it was opened
        _refuse(style.path, error.reason)


def in_memory(style: Style) -> Style:
    """With all tensors read, so that it no longer depends on its file."""
    kept = {
        key: Held(tensor.dtype, tensor.shape, b"".join(map(bytes, tensor.chunks())))
        for key, tensor in style.tensors.items()
    }
    return replace(style, tensors=kept)


def _about(source: Source) -> dict[str, Any]:
    if source.container != "safetensors" or source.metadata.get("kind") != KIND:
        _refuse(source.path, "it does not say that it is one")
    text = source.metadata.get("style", "").encode()
    if len(text) > MAX_ABOUT:
        _refuse(source.path, f"its description is longer than {MAX_ABOUT // 1000} kB")
    return parse_table(source.path, text, "description")


def _inconsistent(tensors: Mapping[str, Weights]) -> str:
    """What does not go together; "" if all does."""
    tokens, null = tensors.get("tokens"), tensors.get("null_tokens")
    if tokens is None:
        return "it has no tokens"
    if null is not None and (null.shape, null.dtype) != (tokens.shape, tokens.dtype):
        return f"its null tokens are {list(null.shape)}, its tokens {list(tokens.shape)}"
    parts = {key for key in tensors if key.startswith("features")}
    if parts not in (set(), {"features"}, {"features.0", "features.1"}):
        return "its features are not whole"
    if len({tensors[key].shape[0] for key in parts}) > 1:
        return "its features are of different numbers of references"
    return ""


def _refuse(path: Path, why: str) -> NoReturn:
    raise PromptError(str(path), reason=f"not a style file: {why}", hint=_AGAIN) from None
