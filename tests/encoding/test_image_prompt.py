"""ImagePrompt: its repr, its file, and what it takes to make one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import forked
import imageprompt as ip
from imageprompt.core.errors import PromptError
from imageprompt.core.fingerprint import contents
from imageprompt.encoding.image_prompt import KIND, ImagePrompt, PrecomputedKV

TOKENS = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"null_tokens": TOKENS}, "ImagePrompt(prompts=2, tokens=3, width=4)"),
        (
            {"null_tokens": TOKENS, "metadata": {"variant": "plus", "projector": "0123"}},
            "ImagePrompt(prompts=2, tokens=3, width=4, adapter='plus')",
        ),
        ({}, "ImagePrompt(prompts=2, tokens=3, width=4, null_tokens=None)"),
    ],
    ids=["plain", "with its adapter", "without null tokens"],
)
def test_repr_is_short(arguments: dict[str, Any], text: str) -> None:
    prompt = ImagePrompt(TOKENS, **arguments)
    assert repr(prompt) == text
    assert len(prompt) == 2


def test_wrong_shapes() -> None:
    for tokens in (torch.zeros(3, 4), torch.zeros(1, 0, 4)):
        with pytest.raises(PromptError, match=r"not \[prompts, tokens, width\]"):
            ImagePrompt(tokens)
    with pytest.raises(PromptError, match=r"not the shape of the tokens, \[2, 3, 4\]"):
        ImagePrompt(TOKENS, TOKENS[:1])


def test_a_file_keeps_tokens_metadata_and_precomputed_kv(tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    prompt = ImagePrompt(TOKENS, TOKENS + 1, {"variant": "base", "encoder": "abc"})
    pair = (torch.ones(2, 3, 8), torch.zeros(2, 3, 8))
    prompt.precomputed_kv = PrecomputedKV("weights", {"1": pair}, contents([prompt.tokens]))
    prompt.save(path)
    # the names that every version of the file has had
    assert set(load_file(path)) == {"tokens", "null_tokens", "k.1", "v.1"}
    loaded = ip.ImagePrompt.load(path)
    assert torch.equal(loaded.tokens, TOKENS)
    assert torch.equal(loaded.null_tokens, TOKENS + 1)
    assert loaded.metadata == prompt.metadata
    assert loaded.precomputed_kv.matches("weights", loaded.tokens)
    assert not loaded.precomputed_kv.matches("other weights", loaded.tokens)
    assert loaded.precomputed_kv.shapes() == {"1": (2, 3, 8)}
    loaded.tokens[0, 0, 0] = 7  # K' and V' no longer belong to these tokens
    assert not loaded.precomputed_kv.matches("weights", loaded.tokens)
    loaded.save(path)
    assert set(load_file(path)) == {"tokens", "null_tokens"}
    assert loaded.to(dtype=torch.float16).precomputed_kv is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    for tensors, metadata in (
        ({"tokens": TOKENS}, {}),
        ({"tokens": TOKENS, "k.1": TOKENS + 1}, {"kind": KIND}),
        ({"null_tokens": TOKENS}, {"kind": KIND}),
        ({"tokens": TOKENS, "more": TOKENS + 1}, {"kind": KIND}),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(PromptError, match="not a saved image prompt"):
            ImagePrompt.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(PromptError, match="not a saved image prompt"):
        ImagePrompt.load(path)
    with pytest.raises(PromptError, match=r"not a \.safetensors file"):
        ImagePrompt(TOKENS).save(tmp_path / "prompt.pt")


def test_adapters_load_only_the_modules_that_they_need() -> None:
    """Faces, text, noise, framing and masks come with the first call that uses them."""
    unused = ("face_embeddings", "face_encoder", "text_encoder", "images.noise", "images.framing")
    names = [f"imageprompt.encoding.{name}" for name in (*unused, "masks")]
    code = f"import imageprompt.adapter.adapter, sys; print(set({names}) & set(sys.modules))"
    done = forked.run(code)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr
