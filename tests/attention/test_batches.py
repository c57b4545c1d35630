"""Which reference acts on which row of a batch: prompts, pictures, guidance layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imageprompt.core.errors import GuidanceError, ImagePromptError
from rigs import Rig, build, difference

CLOSE = 2e-6  # sums may be taken in another order in another batch size


def alone(rig: Rig, inputs: dict[str, Any], row: int, feature: Tensor) -> Tensor:
    """Row `row` run by itself with one reference, positive: what it must be in any batch."""
    prompt = rig.adapter.encode(features=feature, null_features=rig.kind.null_features())
    return rig.ours(_rows(inputs, [row]), prompt, guidance="none")


def alone_null(rig: Rig, inputs: dict[str, Any], row: int, references: int = 1) -> Tensor:
    """The same with the null picture."""
    null = rig.kind.null_features()
    return alone(rig, inputs, row, null.expand(references, *null.shape[1:]))


def _rows(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Some rows of a batch of inputs; a text with a row for each frame keeps its frames."""
    batch = len(inputs["sample"])
    picked: dict[str, Any] = {}
    for key, value in inputs.items():
        if isinstance(value, dict):
            picked[key] = {name: entry[rows] for name, entry in value.items()}
        elif isinstance(value, Tensor) and value.ndim > 0:
            picked[key] = value.unflatten(0, (batch, -1))[rows].flatten(0, 1)
        else:
            picked[key] = value
    return picked


def _check(rig: Rig, inputs: dict[str, Any], found: Tensor, rows: list[Tensor | None]) -> None:
    """`rows[i]` is the feature [n, ...] that acts on row i; None is the null picture."""
    assert len(found) == len(rows)
    references = next(len(r) for r in rows if r is not None)
    for i, feature in enumerate(rows):
        if feature is None:
            expected = alone_null(rig, inputs, i, references)
        else:
            expected = alone(rig, inputs, i, feature)
        assert difference(found[i : i + 1], expected) < CLOSE, i


@pytest.mark.sample(5)
@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("host", ["sd15", "sdxl", "motion", "kolors"])
def test_each_prompt_keeps_its_reference(host: str, kind: str, tmp_path: Path) -> None:
    """Three prompts, guidance: no row sees the picture of another."""
    rig = build(host, kind, tmp_path)
    inputs = rig.host.inputs(6)
    features = rig.features(1, 1, 1)
    prompt = rig.adapter.encode(features=features, null_features=rig.kind.null_features())
    assert prompt.tokens.shape[0] == 3
    found = rig.ours(inputs, prompt)
    _check(rig, inputs, found, [None, None, None, *features])
    swapped = rig.adapter.encode(features=features[::-1], null_features=rig.kind.null_features())
    assert difference(rig.ours(inputs, swapped)[3], found[3]) > 1e-3  # the pictures matter


def test_prompts_without_guidance(tmp_path: Path) -> None:
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(3)
    features = rig.features(2, 2, 2)
    prompt = rig.prompt(2, 2, 2)
    _check(rig, inputs, rig.ours(inputs, prompt), features)
    _check(rig, inputs, rig.ours(inputs, prompt, guidance="none"), features)


def test_several_pictures_of_each_prompt(tmp_path: Path) -> None:
    """Two prompts, three pictures each, guided: latents stacked twice, as pipelines do."""
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(12)
    inputs["sample"] = inputs["sample"][:6].repeat(2, 1, 1, 1)
    a, b = rig.features(1, 1)
    found = rig.ours(inputs, rig.prompt(1, 1))
    _check(rig, inputs, found, [None] * 6 + [a] * 3 + [b] * 3)


def test_several_pictures_of_one_prompt(tmp_path: Path) -> None:
    """One reference for everything: four pictures with guidance, four without."""
    rig = build("tiny", "plus", tmp_path)
    inputs = rig.host.inputs(8)
    inputs["sample"] = inputs["sample"][:4].repeat(2, 1, 1, 1)
    (a,) = rig.features(1)
    _check(rig, inputs, rig.ours(inputs, rig.prompt(1)), [None] * 4 + [a] * 4)
    four = _rows(rig.host.inputs(4), [0, 1, 2, 3])
    _check(rig, four, rig.ours(four, rig.prompt(1), guidance="none"), [a] * 4)


def test_twice_the_batch_is_guidance(tmp_path: Path) -> None:
    """A bare denoiser with random latents and random texts: [negative, positive]."""
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    (a,) = rig.features(1)
    _check(rig, inputs, rig.ours(inputs, rig.prompt(1)), [None, a])


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ("none", "pp"),
        ("negative-positive", "np"),
        ("positive-negative", "pn"),
        (("negative", "positive", "positive"), "npp"),
        (("positive", "negative", "negative"), "pnn"),
    ],
)
def test_stated_layouts(layout: Any, rows: str, tmp_path: Path) -> None:
    """`guidance=` says what each part of the batch is; two prompts in each part."""
    rig = build("tiny", "base", tmp_path)
    features = rig.features(1, 1)
    parts = [features if letter == "p" else [None, None] for letter in rows]
    wanted: list[Tensor | None] = [row for part in parts for row in part]
    if layout == "none":  # one branch: two pictures of each prompt
        wanted = [features[0], features[0], features[1], features[1]]
    inputs = rig.host.inputs(len(wanted))
    _check(rig, inputs, rig.ours(inputs, rig.prompt(1, 1), guidance=layout), wanted)


def test_batches_that_do_not_fit(tmp_path: Path) -> None:
    """Three rows for two prompts: refused, and the next good call is right."""
    rig = build("tiny", "base", tmp_path)
    rig.adapter.attach(rig.unet)
    good = rig.host.inputs(4)
    with rig.adapter.use(rig.prompt(1, 1)):
        with pytest.raises(GuidanceError) as caught:
            rig.host.read(rig.unet, rig.host.inputs(3))
        assert "\n" not in str(caught.value)
        found = rig.host.read(rig.unet, good)
    rig.adapter.detach()
    _check(rig, good, found, [None, None, *rig.features(1, 1)])


def test_prompts_with_different_numbers_of_references(tmp_path: Path) -> None:
    """A typed error; never padded silently."""
    rig = build("tiny", "base", tmp_path)
    features = rig.features(1, 2)
    with pytest.raises(ImagePromptError) as caught:
        rig.adapter.encode(features=features, null_features=rig.kind.null_features())
    assert "\n" not in str(caught.value)


def test_guidance_without_null_tokens(tmp_path: Path) -> None:
    """A prompt without a negative side works unguided and is refused with guidance."""
    rig = build("tiny", "plus", tmp_path)
    features = rig.features(1)
    prompt = rig.adapter.encode(features=features)
    assert prompt.null_tokens is None
    one = rig.host.inputs(1)
    _check(rig, one, rig.ours(one, prompt), features)
    with pytest.raises(GuidanceError):
        rig.ours(rig.host.inputs(2), prompt)


def test_base_knows_its_null_picture(tmp_path: Path) -> None:
    """The base variant's null rule needs no encoder: the projector of zeros."""
    rig = build("tiny", "base", tmp_path)
    implied = rig.adapter.encode(features=rig.features(1))
    assert torch.equal(implied.null_tokens, rig.prompt(1).null_tokens)


def test_changing_batch_sizes_in_one_use(tmp_path: Path) -> None:
    """1, 2, 4 and 1 rows one after the other, each right."""
    rig = build("sd15", "plus", tmp_path)
    (a,) = rig.features(1)
    rig.adapter.attach(rig.unet)
    seen = []
    with rig.adapter.use(rig.prompt(1)):
        for size in (1, 2, 4, 1):
            inputs = rig.host.inputs(size, seed=size)
            if size == 4:
                inputs["sample"] = inputs["sample"][:2].repeat(2, 1, 1, 1)
            seen.append((inputs, rig.host.read(rig.unet, inputs)))
    rig.adapter.detach()
    layouts: list[list[Tensor | None]] = [[a], [None, a], [None, None, a, a], [a]]
    for (inputs, found), rows in zip(seen, layouts, strict=True):
        _check(rig, inputs, found, rows)


def test_a_prompt_changed_between_uses(tmp_path: Path) -> None:
    """K' and V' are cached per prompt; changed or replaced tokens are projected again."""
    rig = build("tiny", "base", tmp_path)
    inputs = rig.host.inputs(2)
    prompt, other = rig.prompt(1, seed=5), rig.prompt(1, seed=6)
    first, wanted = rig.ours(inputs, prompt), rig.ours(inputs, other)
    assert difference(first, wanted) > 1e-3
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(prompt):
        assert difference(rig.host.read(rig.unet, inputs), first) < CLOSE
    original = prompt.tokens.clone()
    prompt.tokens.copy_(other.tokens)
    with rig.adapter.use(prompt):
        assert difference(rig.host.read(rig.unet, inputs), wanted) < CLOSE
    prompt.tokens = original
    with rig.adapter.use(prompt):
        assert difference(rig.host.read(rig.unet, inputs), first) < CLOSE
    prompt.null_tokens = other.tokens.clone()
    with rig.adapter.use(prompt):
        changed = rig.host.read(rig.unet, inputs)
    assert difference(changed[0], first[0]) > 1e-3
    prompt.null_tokens.copy_(rig.prompt(1).null_tokens)
    with rig.adapter.use(prompt):
        assert difference(rig.host.read(rig.unet, inputs), first) < CLOSE
