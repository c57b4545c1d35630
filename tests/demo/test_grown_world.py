"""The grown world: scenes and captions are unambiguous, splits keep apart, its stages train."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bundled_stack import adapters
from bundled_stack.checkpoints import load_state
from bundled_stack.grown import adapters as grown_adapters
from bundled_stack.grown import base, features, judge, labels, vae, vision
from imageprompt.core.errors import NotFoundError
from imageprompt.demo import judge_128, photographs
from imageprompt.demo import scenes_128 as scenes
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
    assert not set(photographs.TRAIN) & set(photographs.HELD_OUT)
    package = tmp_path / "some_pictures"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, grey in (("a.png", 51), ("b.png", 102)):
        Image.new("RGB", (60, 40), (grey, grey, grey)).save(package / name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(photographs, "TRAIN", ("some_pictures/a.png",))
    monkeypatch.setattr(photographs, "HELD_OUT", ("some_pictures/b.png",))
    for held_out, value in ((False, 0.2), (True, 0.4)):
        (found,) = photographs.load(held_out=held_out)
        assert found.shape == (256, 384)
        assert found.mean() == pytest.approx(value)
    monkeypatch.setattr(photographs, "HELD_OUT", ("some_pictures/c.png",))
    with pytest.raises(NotFoundError, match=r"c\.png.*not installed"):
        photographs.load(held_out=True)


def test_all_stages_train_resume_and_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "STEPS", 1)
    count, moment = 4, 0.0001  # minutes: one step
    monkeypatch.setattr(photographs, "load", lambda held_out=False: LUMINANCES)
    sizes = {"count": count, "batch": 4, "device": "cpu", "rate": 1e-3}
    judge.train(tmp_path, moment, **sizes)
    steps, seconds, samples = load_state(tmp_path / "judge.ckpt")["counters"]
    judge.train(tmp_path, (2 * seconds + 0.01) / 60, **sizes)
    line = json.loads((tmp_path / "judge.jsonl").read_text().splitlines()[-1])
    assert line["step"] > steps >= 1
    assert line["samples"] > samples == 4 * steps
    assert 0 <= line["test: all, two objects"] <= 1
    vae.train(tmp_path, moment, **sizes)
    assert json.loads((tmp_path / "vae.jsonl").read_text().splitlines()[-1])["psnr"] > 0
    vision.train(tmp_path, moment, **sizes)
    assert 0 <= json.loads((tmp_path / "vision.jsonl").read_text().splitlines()[-1])["place"] <= 1
    more = {"pictures": 2, "compiled": False, "rank": 0, "world": 1}
    base.train(argparse.Namespace(work=tmp_path, minutes=moment, **more, **sizes))
    line = json.loads((tmp_path / "base-0.jsonl").read_text().splitlines()[-1])
    assert line["step"] >= 1
    assert 0 <= line["background"] <= 1
    latents = base.Latents(tmp_path, count, "cpu")
    assert latents.values.shape == (count, 16, 16, 16)
    assert latents.values.float().std() == pytest.approx(1, abs=0.05)
    features.encode_part(tmp_path, 0, 1, count, count)
    found = load_state(tmp_path / f"features-{count}-0.ckpt")
    assert found["same_hidden"].shape == found["other_hidden"].shape == (count, 257, 128)
    assert (found["same_hidden"] != found["other_hidden"]).any()
    opened = grown_adapters.grown_base(tmp_path, count, count)
    adapters.train(opened, tmp_path, "plus", 2, batch=2)
    start, end = (
        load_file(tmp_path / name)
        for name in ("warm-start-grown-plus.safetensors", "grown-adapters/plus.safetensors")
    )
    value = "ip_adapter.0.to_v_ip.weight"
    text = opened.denoiser.transformer_blocks[0].attn.add_v_proj.weight
    assert start[value].any()  # fitted: neither zero nor a copy
    assert (start[value] != text).any()
    assert (end[value] != start[value].half()).any()


def test_the_base_starts_from_what_the_bundled_one_knows() -> None:
    from bundled_stack.base import Captions
    from bundled_stack.sd3.text import CaptionEncoder

    line = "a striped red star on a plain blue background"
    known = CaptionEncoder()([line])
    tokens = torch.tensor([Captions(scenes.all_words()).encode(line)])
    with torch.no_grad():
        found = base.Base().text(tokens, output_hidden_states=True)
    states = known.tokens[..., : found.hidden_states[-2].shape[-1]]
    torch.testing.assert_close(found.hidden_states[-2], states, rtol=0, atol=1e-4)


def test_a_change_changes_one_word_that_the_caption_can_name(chosen: list[scenes.Scene]) -> None:
    rng = np.random.default_rng(3)
    for scene in chosen[:60]:
        for key in scenes.keys(scene):
            if scene.relation and key.startswith("size"):
                continue
            other = scenes.change(scene, key, rng, trained=True)
            before, after = scene.words(), other.words()
            (name,) = (name for name in before if before[name] != after[name])
            assert after[name] in scenes.caption(other, {key})
            assert key == "place" or before[name] not in scenes.caption(other, {key}).split()
            new = {"shape", "colour"} & {key.partition(" ")[0]}
            assert not (new and pairs(other) & HELD_OUT_PAIRS - pairs(scene))
            mask = [scenes.mask(thing) for thing in other.things]
            assert len(mask) == 1 or not (mask[0] & mask[1]).any()


def test_cells_say_what_is_where() -> None:
    scene = next(scene for scene in scenes.stream("train") if scene.relation == "left of")
    owners = labels.objects([scene])
    read = labels.cell_labels(labels.labels([scene]), owners)
    first, second = scene.things
    for thing, index in ((first, 1), (second, 2)):
        where = owners[0] == index
        assert where.any()
        assert set(read["colour"][0][where].tolist()) == {scenes.COLOURS.index(thing.colour)}
        assert set(read["background"][0][where].tolist()) == {labels.ABSENT}
        _, columns = torch.nonzero(where.view(16, 16), as_tuple=True)
        assert abs(float(columns.float().mean()) * 8 + 4 - thing.x) < thing.radius
        x, y, radius = labels.offsets([scene])[0][where].float().mean(0).tolist()
        assert abs(x) < 0.6
        assert abs(y) < 0.6
        assert radius * 64 == pytest.approx(thing.radius, rel=1e-3)
        covered = labels.outlines([scene])[0].sum() * 2 * 2  # pixels of a quarter of a cell
        masks = sum(scenes.mask(one).sum() for one in scene.things)
        assert float(covered) == pytest.approx(masks, rel=0.05)
    ground = owners[0] == 0
    assert set(read["background"][0][ground].tolist()) == {scenes.COLOURS.index(scene.background)}


def test_every_object_counts_alike_where_cells_do_not() -> None:
    scene = next(scene for scene in scenes.stream("train") if len(scene.things) == 2)
    words, owners = labels.labels([scene]), labels.objects([scene])
    names = list(judge_128.CELL_HEADS)
    start = sum(judge_128.CELL_HEADS[name] for name in names[: names.index("size")])
    losses = []
    for index in (1, 2):
        logits = torch.zeros(1, 256, sum(judge_128.CELL_HEADS.values()))
        logits[0, owners[0] == index, start : start + len(scenes.SIZES)] = torch.tensor(
            [50.0 * (word == scene.in_reading_order()[index - 1].size) for word in scenes.SIZES]
        )  # one object is read right, the other is not read at all
        losses.append(labels.cell_word_loss(logits, words, owners, even=True))
    torch.testing.assert_close(*losses)


def test_latents_near_objects_weigh_alike_however_few_they_are() -> None:
    near = torch.zeros(3, 1, 16, 16)
    near[0, 0, 3:6, 3:6] = near[1, 0, 2:14, 2:14] = 1
    weights = base.near_weights(near)
    for row in (0, 1):
        assert float((weights[row] - 1).mean()) == pytest.approx(base.NEAR_SHARE)
        assert (weights[row][near[row] == 0] == 1).all()
    assert (weights[2] == 1).all()


def test_a_teacher_is_not_heard_near_objects_before_they_are_settled() -> None:
    shape = (3, 1, 2, 2)
    near = torch.zeros(shape)
    near[:, :, 0, 0] = 1
    heavy = 1 + base.NEAR_SHARE / 0.25  # the weight of the one latent near an object
    loss = grown_adapters.taught_loss(
        torch.full(shape, 3.0),
        torch.zeros(shape),
        torch.ones(shape),
        near,
        settled=torch.tensor([True, False, True]),
        shown=torch.tensor([True, True, False]),
    )
    to_sample = 9 * (heavy + 3) / 4
    expected = [to_sample + 4 * (heavy + 3) / 4, to_sample + 4 * 3 / 4, to_sample]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_the_pooled_embedding_tells_the_caption_or_less(chosen: list[scenes.Scene]) -> None:
    rng = np.random.default_rng(4)
    told = [base.told_less(scenes.caption(scene), scene, rng) for scene in chosen]
    for scene, line in zip(chosen, told, strict=True):
        assert set(line.split()) <= {*scenes.caption(scene).split(), "shape", "background"}
        assert base.told_less("", scene, rng) == ""
    same = [line == scenes.caption(scene) for scene, line in zip(chosen, told, strict=True)]
    nothing = [line == "" for line in told]
    assert 0.3 < np.mean(same) < 0.5
    assert 0.3 < np.mean(nothing) < 0.55


def test_turned_colours_are_not_named() -> None:
    chosen = list(islice(scenes.stream("train"), 4))
    words = labels.labels(chosen)
    pictures = torch.rand(4, 3, 8, 8)
    turned, told = vision.tint(pictures, words, np.random.default_rng(0))
    assert all((turned[row] != pictures[row]).any() for row in range(3))
    torch.testing.assert_close(turned[3:], pictures[3:], rtol=0, atol=0)
    names = list(judge_128.HEADS)
    for row in range(4):
        for index, name in enumerate(names):
            hidden = row < 3 and name.endswith(("colour", "background"))
            assert told[row, index] == (labels.ABSENT if hidden else words[row, index])


def test_labels_name_the_objects_in_reading_order() -> None:
    scene = next(scene for scene in scenes.stream("train") if scene.relation == "right of")
    (row,) = labels.labels([scene]).tolist()
    read = dict(zip(judge_128.HEADS, row, strict=True))
    assert scenes.COLOURS[read["first colour"]] == scene.things[1].colour
    assert judge_128.HEADS["relation"][read["relation"]] == "left of"
    assert read["place"] == labels.ABSENT
