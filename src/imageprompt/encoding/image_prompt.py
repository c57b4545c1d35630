"""ImagePrompt: reference pictures, encoded and projected; kept, saved and used without them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.attention.decoupled import KeyValue
from imageprompt.checkpoint.write.storage import read_file, write_file
from imageprompt.core.errors import AdapterFileError, PromptError
from imageprompt.core.fingerprint import versions

if TYPE_CHECKING:
    from imageprompt.encoding.features import Group

KIND = "image-prompt"
_TOKENS = {"tokens", "null_tokens"}


@dataclass(frozen=True)
class Prepared:
    """K', V' of a prompt's tokens, made ahead by `Adapter.precompute_kv`.

    `pairs` by the file ids of the sites, [P, N, site width] each. Good for the weights and the
    precision that `made_by` names, and for tokens that nobody has written to since.
    """

    made_by: str
    pairs: Mapping[str, KeyValue]
    tokens: tuple[Any, ...]

    def suits(self, made_by: str, tokens: Tensor) -> bool:
        return self.made_by == made_by and self.tokens == versions([tokens])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that K' and V' of each site share; empty where they differ."""
        return {i: tuple(k.shape) if k.shape == v.shape else () for i, (k, v) in self.pairs.items()}


class ImagePrompt:
    """Tokens of P prompts [P, N, W] and the tokens that stand for "no picture" on the other side.

    `null_tokens` [P, N, W] is None only when the prompt was made without an encoder by a variant
    whose null picture has to be encoded; such a prompt cannot be used with guidance. `metadata`
    says what made it: variant, projector and encoder fingerprints. `features` is what the projector
    read, one group [n, ...] for each prompt (not saved; None where it is not known). `prepared`
    holds K', V' where `Adapter.precompute_kv` made them ahead.
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
                reason="an image prompt is [prompts, tokens, width]",
                hint="Make it with adapter.encode().",
            )
        if null_tokens is not None and null_tokens.shape != tokens.shape:
            raise PromptError(
                f"null tokens of shape {list(null_tokens.shape)}",
                reason=f"they must have the shape of the tokens, {list(tokens.shape)}",
                hint="Make both with adapter.encode().",
            )
        self.tokens = tokens
        self.null_tokens = null_tokens
        self.metadata = dict(metadata or {})
        self.features = None if features is None else list(features)
        self.prepared: Prepared | None = None

    def __len__(self) -> int:
        """The number of prompts."""
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        prompts, tokens, width = self.tokens.shape
        return f"ImagePrompt({prompts} prompt(s) x {tokens} tokens x {width})"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ImagePrompt:
        """A copy on another device or in another dtype; what was prepared stays behind."""
        null = self.null_tokens
        return ImagePrompt(
            self.tokens.to(device, dtype),
            None if null is None else null.to(device, dtype),
            self.metadata,
            features=self.features,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically, with K', V' if the prompt was prepared."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise PromptError(str(path), reason="an image prompt ends in .safetensors")
        tensors = {"tokens": self.tokens}
        if self.null_tokens is not None:
            tensors["null_tokens"] = self.null_tokens
        metadata = self.metadata | {"kind": KIND}
        if self.prepared is not None and self.prepared.suits(self.prepared.made_by, self.tokens):
            metadata["prepared"] = self.prepared.made_by
            for site, pair in self.prepared.pairs.items():
                tensors |= {f"{kind}.{site}": x for kind, x in zip("kv", pair, strict=True)}
        write_file(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImagePrompt:
        """Read what `save` wrote. Raises PromptError for any other file."""
        try:
            stored = read_file(Path(path))
        except AdapterFileError as error:
            raise PromptError(
                str(path), reason="not a saved image prompt", hint=error.hint
            ) from None
        metadata, tensors = dict(stored.metadata), stored.tensors
        sites = [name[2:] for name in tensors if name.startswith("k.")]
        known = _TOKENS | {f"{kind}.{site}" for site in sites for kind in "kv"}
        whole = known - {"null_tokens"} <= set(tensors) <= known
        if metadata.pop("kind", None) != KIND or not whole:
            raise PromptError(
                str(path),
                reason="not a saved image prompt",
                hint="Give a file that ImagePrompt.save() wrote.",
            )
        made_by = metadata.pop("prepared", "")
        prompt = cls(tensors["tokens"], tensors.get("null_tokens"), metadata)
        if sites:
            pairs = {site: (tensors[f"k.{site}"], tensors[f"v.{site}"]) for site in sites}
            prompt.prepared = Prepared(made_by, pairs, versions([prompt.tokens]))
        return prompt
