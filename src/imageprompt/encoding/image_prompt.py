"""ImagePrompt: encoded and projected reference pictures, to keep, save and use without them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.checkpoint.tensor_bytes import TOKENS, TensorLimit, beyond_limits
from imageprompt.core.errors import AdapterFileError, PromptError
from imageprompt.core.fingerprint import contents
from imageprompt.encoding.features import not_finite

if TYPE_CHECKING:
    from imageprompt.attention.decoupled import KeyValue
    from imageprompt.checkpoint.read.stored_tensor import TensorSource
    from imageprompt.encoding.features import Group

KIND = "image-prompt"
MAX_BYTES = 192 * 2**20  # of a file; K', V' for SDXL Plus take 5.6 MB a prompt in half precision
_MAX_METADATA = 256_000  # characters
_KV = TensorLimit(TOKENS.largest, 3, 32 * 2**20)


@dataclass(frozen=True)
class PrecomputedKV:
    """K' and V' of a prompt's tokens at every site, computed by `Adapter.precompute_kv`.

    `key_values` maps the file ids of the sites to (K', V'), [P, N, inner_dim] each. They are valid
    for the weights and the precision that `made_by` names, until somebody writes to the tokens.
    """

    made_by: str
    key_values: Mapping[str, KeyValue]
    tokens: tuple[Any, ...]
    """Content of the tokens they were computed from."""

    def matches(self, made_by: str, tokens: Tensor) -> bool:
        return self.made_by == made_by and self.tokens == contents([tokens])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that K' and V' of each site share; empty if they differ."""
        return {
            site: tuple(k.shape) if k.shape == v.shape else ()
            for site, (k, v) in self.key_values.items()
        }


class ImagePrompt:
    """Image tokens of P prompts, [P, N, W], and null tokens that stand for "no picture".

    `null_tokens` [P, N, W] act on the negative side of guidance. They are None for a prompt that
    was made without an encoder by a variant that encodes its null picture; such a prompt cannot be
    used with guidance. They are also None for variants without any ("no tokens"). `metadata` says
    what made it: variant, projector and encoder fingerprints. `features` are the projector's
    inputs, one group [n, ...] for each prompt (not saved; None if unknown). `precomputed_kv` holds
    K' and V' after `Adapter.precompute_kv`.

    Raises PromptError for tokens of the wrong shape, and for tokens that are not finite.
    """

    def __init__(
        self,
        tokens: Tensor,
        null_tokens: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        features: Sequence[Group] | None = None,
    ) -> None:
        if tokens.ndim != 3 or 0 in tokens.shape:
            raise PromptError(
                f"tokens of shape {list(tokens.shape)}",
                reason="not [prompts, tokens, width]",
                hint="Make it with adapter.encode().",
            )
        if null_tokens is not None and null_tokens.shape != tokens.shape:
            raise PromptError(
                f"null tokens of shape {list(null_tokens.shape)}",
                reason=f"not the shape of the tokens, {list(tokens.shape)}",
                hint="Make both with adapter.encode().",
            )
        for each in (tokens, null_tokens):
            if each is not None and (wrong := not_finite(each)):
                raise PromptError(
                    f"tokens of shape {list(each.shape)}",
                    reason=f"{wrong} of {each.numel()} numbers are NaN or infinite",
                    hint="Half precision may overflow: load encoder and adapter in float32.",
                )
        self.tokens = tokens
        self.null_tokens = null_tokens
        self.metadata = dict(metadata or {})
        self.features = None if features is None else list(features)
        self.precomputed_kv: PrecomputedKV | None = None

    def __len__(self) -> int:
        """The number of prompts."""
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        prompts, tokens, width = self.tokens.shape
        parts = [f"prompts={prompts}", f"tokens={tokens}", f"width={width}"]
        if "variant" in self.metadata:
            parts.append(f"adapter={self.metadata['variant']!r:.60}")
        if self.null_tokens is None:
            parts.append("null_tokens=None")
        return f"ImagePrompt({', '.join(parts)})"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ImagePrompt:
        """A copy on another device or in another dtype, without precomputed K' and V'."""
        null = self.null_tokens
        return ImagePrompt(
            self.tokens.to(device, dtype),
            None if null is None else null.to(device, dtype),
            self.metadata,
            features=self.features,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically, with K' and V' if they are precomputed.

        Raises PromptError for another file suffix.
        """
        from imageprompt.checkpoint.torch_io import write_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise PromptError(str(path), reason="not a .safetensors file", hint="Use that suffix.")
        write_file(path, *self._content())

    def as_bytes(self) -> bytes:
        """The file that `save` writes, in memory."""
        from imageprompt.checkpoint.torch_io import safetensors_content, torch_tensors

        tensors, metadata = self._content()
        return b"".join(safetensors_content(torch_tensors(tensors), metadata))

    def _content(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors and the metadata of its file."""
        tensors = {"tokens": self.tokens}
        if self.null_tokens is not None:
            tensors["null_tokens"] = self.null_tokens
        metadata = self.metadata | {"kind": KIND}
        stored = self.precomputed_kv
        if stored is not None and stored.matches(stored.made_by, self.tokens):
            metadata["prepared"] = stored.made_by
            for site, pair in stored.key_values.items():
                tensors |= {f"{kind}.{site}": x for kind, x in zip("kv", pair, strict=True)}
        return tensors, metadata

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImagePrompt:
        """Read what `save` wrote. Raises PromptError for any other file."""
        from imageprompt.checkpoint.read.file import open_safetensors
        from imageprompt.checkpoint.torch_io import tensor_of

        try:
            stored = open_safetensors(Path(path))
            if fault := _fault(stored):
                raise PromptError(
                    str(path),
                    reason=f"not a saved image prompt: {fault}",
                    hint="Give a file written by ImagePrompt.save().",
                )
            tensors = {name: tensor_of(tensor) for name, tensor in stored.tensors.items()}
        except AdapterFileError as error:
            reason = error.reason.removeprefix("not an adapter file: ")
            raise PromptError(
                str(path), reason=f"not a saved image prompt: {reason}", hint=error.hint
            ) from None
        metadata = {key: value for key, value in stored.metadata.items() if key != "kind"}
        made_by = metadata.pop("prepared", "")
        prompt = cls(tensors["tokens"], tensors.get("null_tokens"), metadata)
        if sites := _sites(tensors):
            pairs = {site: (tensors[f"k.{site}"], tensors[f"v.{site}"]) for site in sites}
            prompt.precomputed_kv = PrecomputedKV(made_by, pairs, contents([prompt.tokens]))
        return prompt


def _sites(tensors: Iterable[str]) -> list[str]:
    """The sites with precomputed K' and V'."""
    return [name[2:] for name in tensors if name.startswith("k.")]


def _fault(stored: TensorSource) -> str:
    """Why a file is not a saved prompt, by its header alone; "" if nothing is wrong."""
    limits = {"tokens": TOKENS, "null_tokens": TOKENS}
    limits |= {f"{kind}.{site}": _KV for site in _sites(stored.tensors) for kind in "kv"}
    if stored.metadata.get("kind") != KIND:
        return "its metadata does not say so"
    if sum(len(key) + len(value) for key, value in stored.metadata.items()) > _MAX_METADATA:
        return f"more than {_MAX_METADATA // 1000} kB of metadata"
    if missing := limits.keys() - stored.tensors.keys() - {"null_tokens"}:
        return f"it has no {min(missing)!r:.60}"
    if sum(tensor.nbytes for tensor in stored.tensors.values()) > MAX_BYTES:
        return f"more than {MAX_BYTES // 2**20} MiB"
    return beyond_limits(stored.tensors, limits, "a prompt")
