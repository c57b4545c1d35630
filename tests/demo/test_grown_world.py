"""The grown world: scenes and captions are unambiguous, splits keep apart, its stages train."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundled_stack.checkpoints import load_state
from bundled_stack.grown import base, judge, photos, pool, scenes, vae
from imageprompt.demo.scenes import HELD_OUT_PAIRS

COUNT = 200
LUMINANCES = [np.linspace(0, 1, 90 * 120, dtype=np.float32).reshape(90, 120) ** 2]


@pytest.fixture(scope="module", params=["train", "test"])
def chosen(request: pytest.FixtureRequest) -> list[scenes.Scene]:
    return list(islice(scenes.stream(request.param), COUNT))


def pairs(scene: scenes.Scene) -> set[tuple[str, str]]:
    return {(thing.shape, thing.colour) for thing in scene.things}


def test_a_stream_repeats_and_splits_differ() -> None:
    first, again, other = (
        list(islice(scenes.stream(split), 6)) for split in ("train", "train", "judge")
    )
    assert first == again
    assert not set(first) & set(other)


def test_training_never_shows_the_held_out_pairs() -> None:
    train, test = (list(islice(scenes.stream(name), COUNT)) for name in ("train", "test"))
    assert not any(pairs(scene) & HELD_OUT_PAIRS for scene in train)
    assert sum(bool(pairs(scene) & HELD_OUT_PAIRS) for scene in test) == COUNT // 2
    for objects in (1, 2):  # half of each kind
        kind = [scene for scene in test if len(scene.things) == objects]
        assert sum(bool(pairs(scene) & HELD_OUT_PAIRS) for scene in kind) == len(kind) // 2


def test_objects_are_whole_and_apart(chosen: list[scenes.Scene]) -> None:
    for scene in chosen[:60]:
        masks = [scenes.mask(thing) for thing in scene.things]
        for covered in masks:
            edge = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
            assert covered.sum() > 100
            assert not edge.any()
        assert len(masks) == 1 or not (masks[0] & masks[1]).any()
        colours = [thing.colour for thing in scene.things] + [scene.background]
        assert len(set(colours)) == len(colours)


def test_places_and_relations_are_where_the_words_say(chosen: list[scenes.Scene]) -> None:
    for scene in chosen:
        if scene.relation:
            (ax, ay), (bx, by) = ((thing.x, thing.y) for thing in scene.things)
            right, down = bx - ax, by - ay
            distance = {"left of": right, "right of": -right, "above": down, "below": -down}
            assert max(distance, key=lambda relation: distance[relation]) == scene.relation
            assert distance[scene.relation] > 2 * abs(min(abs(right), abs(down)))
        else:
            thing = scene.things[0]
            sides = [(thing.x, ("left", "", "right")), (thing.y, ("top", "", "bottom"))]
            room = scenes.SIZE / 2 - thing.radius
            across, along = (
                names[1 + int(np.sign(value - 64)) * (abs(value - 64) > 0.3 * room)]
                for value, names in sides
            )
            assert (f"{along} {across}".strip() or "centre") == scene.place


def test_captions_use_known_words_and_fit_the_tower(chosen: list[scenes.Scene]) -> None:
    known = set(scenes.all_words())
    rng = np.random.default_rng(0)
    for scene in chosen:
        full = scenes.caption(scene)
        partial = scenes.random_caption(scene, rng, full=0.0, empty=0.0)
        assert set(full.split()) | set(partial.split()) <= known
        assert len(full.split()) <= 22
        assert len(partial.split()) <= len(full.split())
    first, second = (next(scene for scene in chosen if len(scene.things) == n) for n in (1, 2))
    thing = replace(first.things[0], size="small", texture="noisy", colour="red", shape="star")
    told = replace(first, things=(thing,), place="top", style="plain", background="blue")
    assert scenes.caption(told) == "a small noisy red star at the top on a plain blue background"
    assert f" {second.relation} a {second.things[1].size} " in scenes.caption(second)
    assert scenes.random_caption(first, rng, full=0.0, empty=1.0) == ""


def test_a_relation_told_from_the_other_object_is_the_same_picture() -> None:
    scene = next(scene for scene in scenes.stream("train") if scene.relation)
    other = scenes.reversed_relation(scene)
    assert scenes.caption(other) != scenes.caption(scene)
    assert other.words() == scene.words()
    assert (scenes.render(other, LUMINANCES) == scenes.render(scene, LUMINANCES)).all()


def test_every_texture_and_ground_looks_different_and_depends_on_its_seed() -> None:
    scene = next(scene for scene in scenes.stream("train") if scene.place == "centre")
    thing = replace(scene.things[0], size="large", shape="square", radius=38.0)

    def drawn(texture: str = "solid", style: str = "plain", seed: int = 1) -> np.ndarray:
        changed = replace(thing, texture=texture, seed=seed)
        return scenes.render(
            replace(scene, things=(changed,), style=style, seed=seed), LUMINANCES
        ).astype(int)

    textures = {name: drawn(texture=name) for name in scenes.TEXTURES}
    styles = {name: drawn(style=name) for name in scenes.STYLES}
    covered = scenes.mask(thing)
    for kinds, area in ((textures, covered), (styles, ~covered)):
        for one, other in combinations(kinds.values(), 2):
            assert np.abs(one - other)[area].mean() > 8
            assert np.abs(one - other)[~area].mean() < 1
    for name in ("noisy", "photographic"):
        assert (drawn(texture=name, seed=2) != textures[name]).any()


def test_photographs_are_found_and_held_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not set(photos.TRAIN) & set(photos.HELD_OUT)
    package = tmp_path / "some_pictures"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, grey in (("a.png", 51), ("b.png", 102)):
        Image.new("RGB", (60, 40), (grey, grey, grey)).save(package / name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(photos, "TRAIN", ("some_pictures/a.png",))
    monkeypatch.setattr(photos, "HELD_OUT", ("some_pictures/b.png",))
    photos.collect(tmp_path / "photos.npz")
    for held_out, value in ((False, 0.2), (True, 0.4)):
        (found,) = photos.load(tmp_path / "photos.npz", held_out=held_out)
        assert found.shape == (256, 384)
        assert found.mean() == pytest.approx(value)
    monkeypatch.setattr(photos, "HELD_OUT", ("some_pictures/c.png",))
    with pytest.raises(SystemExit, match=r"c\.png is missing: install"):
        photos.collect(tmp_path / "others.npz")


def test_all_stages_train_resume_and_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "STEPS", 1)
    count, moment = 4, 0.0001  # minutes: one step
    arrays = {f"{kind}-0": (LUMINANCES[0] * 255).astype(np.uint8) for kind in ("train", "held-out")}
    np.savez(tmp_path / pool.PHOTOS, allow_pickle=False, **arrays)
    sizes = {"count": count, "batch": 2, "device": "cpu", "rate": 1e-3}
    judge.train(tmp_path, moment, **sizes)
    steps, seconds, samples = load_state(tmp_path / "judge.ckpt")["counters"]
    judge.train(tmp_path, (2 * seconds + 0.01) / 60, **sizes)
    line = json.loads((tmp_path / "judge.jsonl").read_text().splitlines()[-1])
    assert line["step"] > steps >= 1
    assert line["samples"] > samples == 2 * steps
    assert 0 <= line["test: all, two objects"] <= 1
    vae.train(tmp_path, moment, **sizes)
    assert json.loads((tmp_path / "vae.jsonl").read_text().splitlines()[-1])["psnr"] > 0
    options = argparse.Namespace(work=tmp_path, minutes=moment, pictures=2, compiled=False, **sizes)
    base.train(options)
    line = json.loads((tmp_path / "base.jsonl").read_text().splitlines()[-1])
    assert line["step"] >= 1
    assert 0 <= line["background"] <= 1
    latents = base.Latents(tmp_path, count, "cpu")
    assert latents.values.shape == (count, 16, 16, 16)
    assert latents.values.float().std() == pytest.approx(1, abs=0.05)


def test_labels_name_the_objects_in_reading_order() -> None:
    scene = next(scene for scene in scenes.stream("train") if scene.relation == "right of")
    (row,) = judge.labels([scene]).tolist()
    read = dict(zip(judge.HEADS, row, strict=True))
    assert scenes.COLOURS[read["first colour"]] == scene.things[1].colour
    assert judge.HEADS["relation"][read["relation"]] == "left of"
    assert read["place"] == judge.ABSENT
