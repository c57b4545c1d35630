"""Guidance layouts: which rows of a batch are positive, told from latents and texts alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imageprompt.attention.cfg_layout import LayoutCache
from imageprompt.core.errors import GuidanceError


def rows(letters: str, *shape: int) -> Tensor:
    """One row a letter, equal letters equal rows."""
    made = {x: torch.randn(shape, generator=torch.Generator().manual_seed(ord(x))) for x in letters}
    return torch.stack([made[letter] for letter in letters])


def told(latents: str, texts: str, prompts: int = 1, *, scheduled: bool = True) -> str:
    sample, text = rows(latents, 4, 2, 2), rows(texts, 3, 5)
    found = LayoutCache().of(sample, text, prompts, scheduled=scheduled)
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
    assert told(latents, texts, prompts) == expected


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
def test_what_has_no_single_meaning_is_refused(latents: str, texts: str) -> None:
    with pytest.raises(GuidanceError, match="has no single meaning") as caught:
        told(latents, texts)
    assert "\n" not in str(caught.value)


def test_a_call_with_a_part_of_a_known_text_has_the_branches_of_its_rows() -> None:
    """Self-attention guidance: the second call of a step has the negative half alone."""
    layouts, text = LayoutCache(), rows("nntt", 3, 5)
    sample = rows("abab", 4, 2, 2)
    assert layouts.of(sample, text, 1, scheduled=True) == ("negative", "positive")
    negative, positive = text.chunk(2)
    for part, branch in ((negative, "negative"), (positive, "positive"), (text[2:3], "positive")):
        half = torch.randn(len(part), 4, 2, 2)
        assert layouts.of(half, part, 1, scheduled=True) == (branch,)
    assert layouts.of(sample[:2], negative.clone(), 1, scheduled=True) == ("positive",)
    layouts.forget()
    assert layouts.of(sample, text, 1, scheduled=True) == ("negative", "positive")
    assert layouts.of(sample[:1], text[:1], 1, scheduled=True) == ("negative",)


def test_a_text_that_is_gone_says_nothing_about_the_next() -> None:
    layouts, sample = LayoutCache(), rows("aa", 4, 2, 2)
    text = rows("nt", 3, 5)
    layouts.of(sample, text, 1, scheduled=True)
    del text
    assert layouts.of(sample[:1], rows("nt", 3, 5)[:1], 1, scheduled=True) == ("positive",)


def test_rows_that_share_their_memory_are_no_parts() -> None:
    layouts, text = LayoutCache(), rows("n", 3, 5).expand(2, 3, 5)
    assert layouts.of(rows("aa", 4, 2, 2), text, 1, scheduled=True) == ("negative", "positive")
    assert layouts.of(rows("a", 4, 2, 2), text[1:], 1, scheduled=True) == ("positive",)
