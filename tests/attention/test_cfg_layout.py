"""Guidance layouts: which rows of a batch are positive, from latents and texts alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imageprompt.attention.cfg_layout import LayoutCache
from imageprompt.core.errors import GuidanceError


def rows(letters: str, *shape: int) -> Tensor:
    """One row per letter; equal letters are equal rows."""
    made = {x: torch.randn(shape, generator=torch.Generator().manual_seed(ord(x))) for x in letters}
    return torch.stack([made[letter] for letter in letters])


def infer(latents: str, texts: str, prompts: int = 1) -> str:
    sample, text = rows(latents, 4, 2, 2), rows(texts, 3, 5)
    found = LayoutCache().layout(sample, text, prompts)
    return "".join(branch[0] for branch in found)


@pytest.mark.parametrize(
    ("latents", "texts", "prompts", "expected"),
    [
        ("a", "t", 1, "p"),
        ("aa", "nt", 1, "np"),
        ("aa", "tt", 1, "np"),  # the same words on both sides
        ("ab", "tt", 1, "p"),  # two pictures without guidance
        ("ab", "tu", 1, "p"),  # ... of two texts, with one reference
        ("ab", "tu", 2, "p"),  # two prompts, a reference each
        ("abab", "nntu", 2, "np"),
        ("abab", "nntt", 1, "np"),
        ("abcabc", "nnnttt", 1, "np"),
        ("abcd", "tttt", 1, "p"),
        ("aaaa", "nntu", 1, "np"),  # two prompts on the same latents
        ("aaaa", "ntnu", 1, "npnp"),  # DiffEdit compares two guided texts
        ("abababab", "nnttnnuu", 1, "npnp"),  # ... on two noises
        ("aabb", "ntnt", 1, "npnp"),  # Panorama's views, ParaDiGMS's steps
        ("aabbcc", "ntntnt", 1, "npnpnp"),
    ],
)
def test_layouts(latents: str, texts: str, prompts: int, expected: str) -> None:
    assert infer(latents, texts, prompts) == expected


@pytest.mark.parametrize(
    ("latents", "texts"),
    [
        ("aaa", "ntt"),  # perturbed attention
        ("aaa", "tnn"),  # InstructPix2Pix
        ("ababab", "nnttuu"),
        ("aaaa", "ntuv"),  # two semantic edits
        ("aaaa", "nmtu"),  # two prompts with their own negative words, or four branches?
        ("aaaaa", "ntuvw"),
        ("aaaaaa", "ntuvwx"),
    ],
)
def test_ambiguous_batches_are_refused(latents: str, texts: str) -> None:
    with pytest.raises(GuidanceError, match="has no single meaning") as caught:
        infer(latents, texts)
    assert "\n" not in str(caught.value)


def test_part_of_a_known_text_has_the_branches_of_its_rows() -> None:
    """Self-attention guidance: the second call of a step has the negative half alone."""
    layouts, text = LayoutCache(), rows("nntt", 3, 5)
    sample = rows("abab", 4, 2, 2)
    assert layouts.layout(sample, text, 1) == ("negative", "positive")
    negative, positive = text.chunk(2)
    for part, branch in ((negative, "negative"), (positive, "positive"), (text[2:3], "positive")):
        half = torch.randn(len(part), 4, 2, 2)
        assert layouts.layout(half, part, 1) == (branch,)
    assert layouts.layout(sample[:2], negative.clone(), 1) == ("positive",)
    layouts.reset()
    assert layouts.layout(sample, text, 1) == ("negative", "positive")
    assert layouts.layout(sample[:1], text[:1], 1) == ("negative",)


def test_a_freed_text_does_not_affect_the_next() -> None:
    layouts, sample = LayoutCache(), rows("aa", 4, 2, 2)
    text = rows("nt", 3, 5)
    layouts.layout(sample, text, 1)
    del text
    assert layouts.layout(sample[:1], rows("nt", 3, 5)[:1], 1) == ("positive",)


def test_expanded_rows_are_not_parts() -> None:
    layouts, text = LayoutCache(), rows("n", 3, 5).expand(2, 3, 5)
    assert layouts.layout(rows("aa", 4, 2, 2), text, 1) == ("negative", "positive")
    assert layouts.layout(rows("a", 4, 2, 2), text[1:], 1) == ("positive",)
