"""ImagePrompt: reference pictures, encoded and projected; kept, saved and used without them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from imageprompt.checkpoint.storage import read_file, write_file
from imageprompt.errors import AdapterFileError, PromptError

KIND = "image-prompt"


class ImagePrompt:
    """Tokens of P prompts [P, N, W] and the tokens that stand for "no picture" on the other side.

    `null_tokens` [P, N, W] is None only when the prompt was made without an encoder by a variant
    whose null picture has to be encoded; such a prompt cannot be used with guidance. `metadata`
    says what made it: variant, projector and encoder fingerprints.
    """

    def __init__(
        self,
        tokens: Tensor,
        null_tokens: Tensor | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if tokens.ndim != 3 or 0 in tokens.shape:
            raise PromptError(
                f"tokens of shape {list(tokens.shape)}",
                rule="an image prompt is [prompts, tokens, width]",
                remedy="Make it with adapter.encode().",
            )
        if null_tokens is not None and null_tokens.shape != tokens.shape:
            raise PromptError(
                f"null tokens of shape {list(null_tokens.shape)}",
                rule=f"they must have the shape of the tokens, {list(tokens.shape)}",
                remedy="Make both with adapter.encode().",
            )
        self.tokens = tokens
        self.null_tokens = null_tokens
        self.metadata = dict(metadata or {})

    def __len__(self) -> int:
        """The number of prompts."""
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        prompts, tokens, width = self.tokens.shape
        return f"ImagePrompt({prompts} prompt(s) x {tokens} tokens x {width})"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ImagePrompt:
        """A copy on another device or in another dtype."""
        null = self.null_tokens
        return ImagePrompt(
            self.tokens.to(device, dtype),
            None if null is None else null.to(device, dtype),
            self.metadata,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise PromptError(str(path), rule="an image prompt ends in .safetensors")
        tensors = {"tokens": self.tokens}
        if self.null_tokens is not None:
            tensors["null_tokens"] = self.null_tokens
        write_file(path, tensors, self.metadata | {"kind": KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImagePrompt:
        """Read what `save` wrote. Raises PromptError for any other file."""
        try:
            stored = read_file(Path(path))
        except AdapterFileError as error:
            raise PromptError(
                str(path), rule="not a saved image prompt", remedy=error.remedy
            ) from None
        metadata = dict(stored.metadata)
        names = set(stored.tensors)
        if metadata.pop("kind", None) != KIND or not {"tokens"} <= names <= {
            "tokens",
            "null_tokens",
        }:
            raise PromptError(
                str(path),
                rule="not a saved image prompt",
                remedy="Give a file that ImagePrompt.save() wrote.",
            )
        return cls(stored.tensors["tokens"], stored.tensors.get("null_tokens"), metadata)
