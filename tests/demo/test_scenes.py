"""Drawn scenes: held-out pairs, captions that name what they should, pictures that show it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from imageprompt.demo import scenes
from imageprompt.demo.datasets import draw_references

PLAIN = scenes.Scene("square", "red", "solid", "blue", "plain")


def pairs(split: str, count: int) -> list[tuple[str, str]]:
    return [(s.shape, s.colour) for s in islice(scenes.stream(split), count)]


def test_training_never_draws_a_held_out_pair() -> None:
    drawn = set(pairs("train", 4000))
    assert not drawn & scenes.HELD_OUT_PAIRS
    assert len(drawn) == len(scenes.SHAPES) * len(scenes.COLOURS) - len(scenes.HELD_OUT_PAIRS)


@pytest.mark.parametrize("split", ["validation", "test", "judge"])
def test_every_second_held_out_reference_has_such_a_pair(split: str) -> None:
    drawn = pairs(split, 200)
    assert all(pair in scenes.HELD_OUT_PAIRS for pair in drawn[::2])
    assert not any(pair in scenes.HELD_OUT_PAIRS for pair in drawn[1::2])


def test_splits_and_seeds_are_separate_streams() -> None:
    streams = [
        tuple(islice(scenes.stream(split, seed), 50))
        for split in ("train", "validation", "test", "judge")
        for seed in (0, 1)
    ]
    assert len({scene for stream in streams for scene in stream}) == 50 * len(streams)
    assert streams[0] == tuple(islice(scenes.stream("train", 0), 50))


def test_change_replaces_the_words_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for scene in islice(scenes.stream("train"), 300):
        changed = scenes.change(scene, ["colour", "shape"], rng, trained=True)
        assert changed.colour not in (scene.colour, scene.background)
        assert changed.shape != scene.shape
        assert (changed.shape, changed.colour) not in scenes.HELD_OUT_PAIRS
        assert changed.geometry() == scene.geometry()
        assert (changed.texture, changed.style) == (scene.texture, scene.style)


def test_captions_name_the_given_attributes() -> None:
    assert scenes.caption(PLAIN) == "a solid red square on a plain blue background"
    assert scenes.caption(PLAIN, {"texture", "background"}) == (
        "a solid shape on a blue background"
    )
    assert scenes.caption(PLAIN, set()) == ""


def test_random_captions_have_the_given_probabilities() -> None:
    rng = np.random.default_rng(0)
    made = [scenes.random_caption(PLAIN, rng, full=0.5, empty=0.1) for _ in range(4000)]
    assert 0.47 < np.mean([text == scenes.caption(PLAIN) for text in made]) < 0.55
    assert 0.07 < np.mean([text == "" for text in made]) < 0.13
    assert {word for text in made for word in text.split()} <= set(scenes.all_words())


def test_a_drawn_scene_has_its_colours_in_place() -> None:
    picture = scenes.render(PLAIN)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[32, 32]) == scenes.PALETTE["red"]
    assert tuple(picture[1, 1]) == scenes.PALETTE["blue"]


@pytest.mark.parametrize("attribute", scenes.ATTRIBUTES)
def test_every_word_looks_different(attribute: str) -> None:
    pictures = [
        scenes.render(scenes.replace(PLAIN, **{attribute: word})).astype(int)
        for word in scenes.VOCABULARY[attribute]
        if not (attribute in ("colour", "background") and word in (PLAIN.colour, PLAIN.background))
    ]
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(one - other).mean() > 2


def test_other_sizes_show_the_same_scene() -> None:
    small = scenes.render(PLAIN).astype(int)
    large = scenes.render(PLAIN, 128).reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 1


def test_drawn_references_show_what_their_texts_leave_open() -> None:
    """Texts name the shape, or the look, and always another word than the reference shows."""
    drawn = draw_references(8, seed=3)
    chosen = list(islice(scenes.stream("test", seed=20_003), 8))
    assert [p.tobytes() for p in drawn.pictures] == [scenes.draw(s).tobytes() for s in chosen]
    for index, (scene, text, expected) in enumerate(
        zip(chosen, drawn.texts, drawn.expected, strict=True)
    ):
        named = {"shape"} if index % 4 < 2 else set(scenes.ATTRIBUTES) - {"shape"}
        assert expected == {n: w for n, w in scene.words().items() if n not in named}
        if named == {"shape"}:
            (shape,) = set(text.split()) & set(scenes.SHAPES)
            assert shape != scene.shape
            assert text == f"a {shape}"
        else:
            assert text.split()[1] != scene.texture
            assert "shape" in text.split()
    assert draw_references(8, seed=3).texts == drawn.texts
