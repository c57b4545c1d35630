"""Style files: safetensors with a description; checked when read, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imageprompt.checkpoint.read.file import open_safetensors
from imageprompt.checkpoint.read.raw import parse_json_object
from imageprompt.checkpoint.read.stored_tensor import CHUNK, TORCH_DTYPES, TensorBytes, TensorSource
from imageprompt.checkpoint.tensor_bytes import (
    TOKENS,
    TensorLimit,
    beyond_limits,
    finite,
    full_hash,
)
from imageprompt.checkpoint.torch_io import tensor_of, write_safetensors
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import AdapterFileError, OptionError, PromptError
from imageprompt.library.style import Style, style_from_description

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.encoding.features import Group

KIND = "image-style"
MAX_DESCRIPTION = 256_000  # bytes
MAX_THUMBNAIL = 512 * 1024  # bytes
MAX_BYTES = 128 * 2**20
"""Of all tensors: the features of 100 references in float32."""
_HINT = "Get the file again, or add the style again."


_TOKENS = replace(TOKENS, largest=(1, *TOKENS.largest[1:]))
_FEATURES = TensorLimit((1000, 16_384, 16_384, 16_384), 2, 128 * 2**20)
_LIMITS: Mapping[str, TensorLimit] = {
    "tokens": _TOKENS,
    "null_tokens": _TOKENS,
    "features": _FEATURES,
    "features.0": _FEATURES,
    "features.1": _FEATURES,
    "embedding": TensorLimit((1000, 16_384), 2, 64 * 2**20),
    "thumbnail": TensorLimit((MAX_THUMBNAIL,), 1, MAX_THUMBNAIL, ("U8",)),
}


@dataclass(frozen=True)
class StoredBytes:
    """A tensor in memory, as files store it."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, tensor: Tensor) -> StoredBytes:
        import torch

        whole = tensor.detach().cpu().contiguous()
        dtype = TORCH_DTYPES[str(whole.dtype).removeprefix("torch.")]
        return cls(dtype, tuple(whole.shape), whole.view(torch.uint8).numpy().tobytes())

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        whole = memoryview(self.content)
        return (whole[start : start + size] for start in range(0, len(whole), size))


def features_to_tensors(features: Group | None) -> dict[str, StoredBytes]:
    """The features of one prompt, by their names in a file."""
    if features is None:
        return {}
    if isinstance(features, tuple):
        return {f"features.{i}": StoredBytes.of(part) for i, part in enumerate(features)}
    return {"features": StoredBytes.of(features)}


def features_of(style: Style) -> Group | None:
    """The features of a style; None if they are not stored."""
    parts = tuple(tensor_of(stored) for stored in style.features)
    if "features" in style.tensors:
        return parts[0]
    return parts or None


def token_hash(tensors: Mapping[str, TensorBytes]) -> str:
    """The identity of a style: SHA-256 of its tokens and null tokens."""
    named = ("tokens", "null_tokens")
    return full_hash({name: tensors[name] for name in named if name in tensors})


def read_style(path: Path, name: str | None = None) -> Style:
    """The style in a file, its tensors not read yet; `name` replaces the file's own.

    Raises NotFoundError, and PromptError for a file that is not a style, too large or inconsistent.
    """
    try:
        source = open_safetensors(path)
        description = _description(source)
    except AdapterFileError as error:
        _refuse(path, error.reason.removeprefix("not an adapter file: "))
    if fault := _beyond_limits(source.tensors) or _inconsistent(source.tensors):
        _refuse(path, fault)
    try:
        named = {} if name is None else {"name": name}
        return style_from_description(description, **named, path=path, tensors=source.tensors)
    except ValueError as error:
        _refuse(path, str(error))


def write_style(path: Path, style: Style, *, new: bool = False) -> Style:
    """Write the style, replacing the file unless it is to be `new`; returns it as read back.

    Raises OptionError, before anything is written, if it exceeds a limit of reading;
    FileExistsError.
    """
    if fault := _beyond_limits(style.tensors):
        raise OptionError(f"style {style.name!r}", reason=fault, hint="Use fewer references.")
    description = json.dumps(style.description(), ensure_ascii=False)
    with write_atomically(path, new=new) as temporary:
        write_safetensors(temporary, style.tensors, {"kind": KIND, "style": description})
    return read_style(path)


def check_whole(style: Style) -> Style:
    """Read and check all tensors; returns the style. Raises PromptError."""
    check_tokens(style)
    for key, tensor in style.tensors.items():
        if not finite(tensor):
            _refuse(style.path, f"its {key} have values that are not finite")
    return style


def check_tokens(style: Style) -> None:
    """Check the tokens only, which generation reads. Raises PromptError."""
    tokens = {key: style.tensors[key] for key in ("tokens", "null_tokens") if key in style.tensors}
    try:
        if not all(finite(tensor) for tensor in tokens.values()):
            _refuse(style.path, "its tokens have values that are not finite")
        if token_hash(tokens) != style.hash:
            _refuse(style.path, "its tokens do not match its hash")
    except AdapterFileError as error:  # the file changed or was deleted after it was opened
        raise PromptError(str(style.path), reason=error.reason, hint=error.hint) from None


def in_memory(style: Style) -> Style:
    """The style with all tensors read, independent of its file."""
    tensors = {
        key: StoredBytes(tensor.dtype, tensor.shape, b"".join(map(bytes, tensor.chunks())))
        for key, tensor in style.tensors.items()
    }
    return replace(style, tensors=tensors)


def _description(source: TensorSource) -> dict[str, Any]:
    if source.metadata.get("kind") != KIND:
        _refuse(source.path, "its metadata does not say so")
    text = source.metadata.get("style", "").encode()
    if len(text) > MAX_DESCRIPTION:
        _refuse(source.path, f"its description is longer than {MAX_DESCRIPTION // 1000} kB")
    return parse_json_object(source.path, text, "description")


def _beyond_limits(tensors: Mapping[str, TensorBytes]) -> str:
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_BYTES:
        return f"its tensors have more than {MAX_BYTES // 2**20} MiB"
    return beyond_limits(tensors, _LIMITS, "a style")


def _inconsistent(tensors: Mapping[str, TensorBytes]) -> str:
    """Why these tensors do not form a style; "" if they do."""
    tokens, null = tensors.get("tokens"), tensors.get("null_tokens")
    if tokens is None:
        return "it has no tokens"
    if null is not None and (null.shape, null.dtype) != (tokens.shape, tokens.dtype):
        return f"its null tokens are {list(null.shape)}, its tokens {list(tokens.shape)}"
    parts = {key for key in tensors if key.startswith("features")}
    if parts not in (set(), {"features"}, {"features.0", "features.1"}):
        return "its features are incomplete"
    if len({tensors[key].shape[0] for key in parts}) > 1:
        return "its features have different numbers of references"
    return ""


def _refuse(path: Path, reason: str) -> NoReturn:
    raise PromptError(str(path), reason=f"not a style file: {reason}", hint=_HINT) from None
