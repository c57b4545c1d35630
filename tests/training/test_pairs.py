"""Training of a pair: each adapter has its own features, drops and scales; data by two columns."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import imageprompt as ip
from imageprompt.adapter.pair import AdapterPair
from imageprompt.core.errors import AdapterFileError, OptionError, PictureError
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.training import init
from imageprompt.training.config.config import ConditionDropout, PartConfig, TrainingConfig
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.data.pairs import content_reference, style_reference
from imageprompt.training.data.sources import open_data
from imageprompt.training.estimate import estimate_run
from imageprompt.training.loop.noise_schedule import NoiseSchedule
from imageprompt.training.loop.objective import NullConditions
from imageprompt.training.loop.pair_objective import PairDraws, PairObjective, PartDraws
from tiny_stack import SIDE
from toy_training import TEXT, WIDTH, denoiser, vision
from training_data import add_member, picture, picture_bytes, write_folder

ROWS = 4


# ── the objective ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pair() -> AdapterPair:
    """Two adapters with random weights on the toy denoiser."""
    torch.manual_seed(3)
    made = [
        ip.Adapter.create("base", denoiser=denoiser(), encoder=vision(), num_tokens=2)
        for _ in ("content", "style")
    ]
    with torch.no_grad():
        for adapter in made:
            for weight in adapter.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    return AdapterPair(*made)


def draws_of(dropped: tuple[list[bool], list[bool]], scales: tuple[list[float], ...]) -> PairDraws:
    gen = torch.Generator().manual_seed(4)
    nothing = torch.zeros(ROWS, dtype=torch.bool)
    return PairDraws(
        times=torch.tensor([5, 300, 600, 990]),
        noise=torch.randn(ROWS, 4, 8, 8, generator=gen),
        drop_image=nothing,
        drop_text=nothing,
        identity_only=nothing,
        parts=tuple(
            PartDraws(torch.tensor(drop), torch.tensor(scale))
            for drop, scale in zip(dropped, scales, strict=True)
        ),
    )


def test_the_loss_of_a_row_is_that_of_two_uses_at_its_own_scales(pair: AdapterPair) -> None:
    from diffusers import DDIMScheduler

    schedule = NoiseSchedule.of(DDIMScheduler())
    gen = torch.Generator().manual_seed(5)
    features = tuple(torch.randn(ROWS, WIDTH, generator=gen) for _ in range(2))
    null = tuple(torch.randn(1, WIDTH, generator=gen) for _ in range(2))
    text = torch.randn(ROWS, 3, TEXT, generator=gen)
    batch = Batch(torch.randn(ROWS, 4, 8, 8, generator=gen), text, features)
    dropped = ([False, True, False, True], [False, False, True, True])
    scales = ([0.5, 1.0, 0.7, 0.0], [1.0, 0.6, 0.0, 1.0])
    draws = draws_of(dropped, scales)
    pair.attach(denoiser())
    try:
        objective = PairObjective()
        nulls = NullConditions(torch.zeros(1, 3, TEXT), null)
        args = (denoiser(), schedule, batch, nulls, draws)
        with torch.no_grad(), objective.loss_from_draws(pair, *args) as losses:
            found = losses.tolist()
        with torch.no_grad():
            noisy = schedule.add_noise(batch.latents, draws.noise, draws.times)
            target = schedule.target(batch.latents, draws.noise, draws.times)
            for row in range(ROWS):
                shown = [
                    (null[part] if dropped[part][row] else features[part][row : row + 1])
                    for part in range(2)
                ]
                a, b = (
                    ImagePrompt(x.project(f)) for x, f in zip(pair.adapters, shown, strict=True)
                )
                one = slice(row, row + 1)
                use = {"guidance": "none"}
                with (
                    pair.content.use(a, scales[0][row], **use),
                    pair.style.use(b, scales[1][row], **use),
                ):
                    made = denoiser()(noisy[one], draws.times[one], text[one]).sample
                expected = float((made - target[one]).square().mean())
                assert found[row] == pytest.approx(expected, rel=1e-4)
    finally:
        pair.detach()


def test_gradients_reach_every_weight_of_both(pair: AdapterPair) -> None:
    pair.attach(denoiser())
    pair.module.requires_grad_(True)
    try:
        features = tuple(torch.randn(ROWS, WIDTH) for _ in range(2))
        batch = Batch(torch.randn(ROWS, 4, 8, 8), torch.randn(ROWS, 3, TEXT), features)
        nulls = NullConditions(torch.zeros(1, 3, TEXT), tuple(torch.zeros(1, WIDTH) for _ in "ab"))
        from diffusers import DDIMScheduler

        args = (denoiser(), NoiseSchedule.of(DDIMScheduler()), batch, nulls)
        kept, full = ([False] * ROWS, [1.0] * ROWS)
        draws = draws_of((kept, kept), (full, full))
        with PairObjective().loss_from_draws(pair, *args, draws) as losses:
            losses.mean().backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in pair.parameters())
    finally:
        pair.detach()
        pair.module.zero_grad()


def test_drops_and_scales_are_drawn_for_each_adapter() -> None:
    from diffusers import DDIMScheduler

    count = 3000
    objective = PairObjective(
        dropout=ConditionDropout(image=0.1, text=0.0, both=0.1),
        scales=(0.5, 1.0),
        content=PartConfig(drop=0.2, off=0.0),
        style=PartConfig(drop=0.1, off=1.0),
    )
    streams = RandomStreams.at(0, 0, count, 0)
    schedule = NoiseSchedule.of(DDIMScheduler())
    draws = objective.draw(torch.zeros(count, 1, 1, 1), schedule, streams)
    content, style = draws.parts
    together = draws.drop_image
    assert float(together.float().mean()) == pytest.approx(0.2, abs=0.03)
    for part, share in ((content, 0.2), (style, 0.1)):
        alone = part.drop & ~together
        assert bool((part.drop | ~together).all())
        assert float(alone.float().mean()) == pytest.approx(0.8 * share, abs=0.03)
    assert not (content.drop & style.drop & ~together).any()
    assert bool((content.scale >= 0.5).all())  # its drops see the null image
    assert torch.equal(style.scale == 0, style.drop)  # its drops turn it off
    shown = ~style.drop
    assert 0.5 <= float(style.scale[shown].min()) < 0.52 < 0.98 < float(style.scale.max()) <= 1
    assert (
        abs(float(torch.corrcoef(torch.stack([content.scale, style.scale])[:, shown])[0, 1])) < 0.1
    )


# ── references ────────────────────────────────────────────────────────────────────────────────────


def test_a_made_content_reference_has_the_picture_in_other_colours() -> None:
    square = Image.new("RGB", (48, 32), "yellow")
    square.paste((20, 40, 200), (16, 8, 32, 24))
    contrasts, colours = [], set()
    for seed in range(12):
        made = content_reference(square, np.random.default_rng(seed))
        assert made.size == square.size
        assert made.tobytes() == content_reference(square, np.random.default_rng(seed)).tobytes()
        pixels = np.asarray(made, np.float32)
        inside, outside = pixels[12:20, 20:28].mean((0, 1)), pixels[:, :10].mean((0, 1))
        contrasts.append(np.abs(inside - outside).max())
        colours.add(tuple((inside / 64).astype(int)))
    assert min(contrasts) > 25  # the square is still there
    assert len(colours) > 4


def test_a_made_style_reference_has_the_pixels_elsewhere() -> None:
    shown = picture(3, (60, 60))
    known = {tuple(pixel) for pixel in np.asarray(shown).reshape(-1, 3).tolist()}
    for seed in range(6):
        made = style_reference(shown, np.random.default_rng(seed))
        assert made.size == shown.size
        moved = (np.asarray(made) != np.asarray(shown)).any(2)
        assert moved.mean() > 0.9
        assert {tuple(pixel) for pixel in np.asarray(made).reshape(-1, 3).tolist()} <= known
    tiny = style_reference(Image.new("RGB", (2, 1), "red"), np.random.default_rng(0))
    assert tiny.size == (2, 1)


def write_columns(folder: Path, kind: str) -> str:
    """Two samples; the second has no style reference."""
    folder.mkdir()
    names = ("content_reference", "style_reference")
    if kind == "tar":
        with tarfile.open(folder / "set.tar", "w") as tar:
            for index in range(2):
                add_member(tar, f"{index}.png", picture_bytes(index))
                add_member(tar, f"{index}.txt", b"a star")
                for number, name in enumerate(names[: 2 - index]):
                    add_member(tar, f"{index}.{name}.png", picture_bytes(10 * number + 10))
        return str(folder / "set.tar")
    for number in (0, 1, 10, 20):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
    if kind == "folder":
        (folder / "10.png").rename(folder / "0.content_reference.png")
        (folder / "20.png").rename(folder / "0.style_reference.png")
        (folder / "1.content_reference.png").write_bytes(picture_bytes(10))
        for index in range(2):
            (folder / f"{index}.txt").write_text("a star")
        return str(folder)
    entries = [
        {"image_file": f"{index}.png", "text": "a star"}
        | {name: f"{10 * (number + 1)}.png" for number, name in enumerate(names[: 2 - index])}
        for index in range(2)
    ]
    (folder / "list.json").write_text(json.dumps(entries))
    return str(folder / "list.json")


@pytest.mark.parametrize("kind", ["folder", "json", "tar"])
def test_columns_of_every_source(kind: str, tmp_path: Path) -> None:
    records = open_data(write_columns(tmp_path / "data", kind))
    assert len(records) == 2
    content, style = records.record(0).open_pair()
    assert content.tobytes() == picture(10).tobytes()
    assert style.tobytes() == picture(20).tobytes()
    with pytest.raises(PictureError, match=r"has no style_reference.*pairs: self-made"):
        records.record(1).open_pair()


def write_captions(folder: Path, kind: str) -> str:
    """Two samples; the second has no captions of its own for either side."""
    folder.mkdir()
    own = {"content_caption": "a star", "style_caption": "a red shape"}
    if kind.startswith("tar"):
        with tarfile.open(folder / "set.tar", "w") as tar:
            for index in range(2):
                add_member(tar, f"{index}.png", picture_bytes(index))
                more = own if index == 0 else {}
                if kind == "tar":
                    add_member(tar, f"{index}.txt", b"a red star")
                    for name, text in more.items():
                        add_member(tar, f"{index}.{name}.txt", text.encode())
                else:
                    entry = json.dumps({"text": "a red star", **more})
                    add_member(tar, f"{index}.json", entry.encode())
        return str(folder / "set.tar")
    for index in range(2):
        (folder / f"{index}.png").write_bytes(picture_bytes(index))
    if kind == "folder":
        for index in range(2):
            (folder / f"{index}.txt").write_text("a red star")
        for name, text in own.items():
            (folder / f"0.{name}.txt").write_text(text)
        return str(folder)
    entries = [{"file_name": f"{index}.png", "text": "a red star"} for index in range(2)]
    lines = [json.dumps(entries[0] | own), json.dumps(entries[1])]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize("kind", ["folder", "metadata", "tar", "tar of json"])
def test_captions_of_one_side_of_every_source(kind: str, tmp_path: Path) -> None:
    records = open_data(write_captions(tmp_path / "data", kind))
    assert len(records) == 2
    first, second = records.record(0), records.record(1)
    assert [first.caption_of(part) for part in (None, 0, 1)] == [
        "a red star",
        "a star",
        "a red shape",
    ]
    assert [second.caption_of(part) for part in (None, 0, 1)] == ["a red star"] * 3
    if kind == "folder":
        plain = open_data(write_captions(tmp_path / "again", kind)).fingerprint()
        (tmp_path / "again" / "0.style_caption.txt").unlink()
        assert open_data(str(tmp_path / "again")).fingerprint() != plain


def test_a_caption_of_one_side_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture_bytes(0))
    entry = {"file_name": "0.png", "text": "a star", "style_caption": 3}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(entry))
    with pytest.raises(PictureError, match="its style_caption is not text"):
        open_data(str(tmp_path)).record(0)


@pytest.mark.parametrize("cached", [True, False])
def test_the_warm_start_reads_the_captions_of_each_side(
    cached: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    from imageprompt.training.cache.open import open_dataset
    from imageprompt.training.data.feature_extractors import FeatureExtractors, feature_to_read
    from imageprompt.training.data.views import PictureOptions
    from imageprompt.training.frozen_pipeline import FrozenPipeline
    from imageprompt.variants import VARIANTS

    data = write_captions(tmp_path / "data", "folder")
    keys = TrainingConfig.load(config(tmp_path, tiny_folder))
    base = FrozenPipeline.load(str(tiny_folder), None, precision="no", device="cpu")
    encoders = FeatureExtractors(base, VARIANTS["plus"], feature_to_read(keys))
    cache = str(tmp_path / "cache") if cached else None
    samples = open_dataset(data, cache, encoders, PictureOptions.of(keys), pairs="self-made")
    both = torch.tensor([0, 1])
    for part, first in ((0, "a star"), (1, "a red shape")):
        features, states, counts = samples.caption_batch(both, part)
        expected = [first, "a red star"]
        assert torch.equal(states, encoders.encode_text(expected)[0])
        assert counts == encoders.token_counts(expected)
        assert features.shape[0] == 2
    # training itself reads the caption of the picture
    streams = RandomStreams.at(0, 0, 2, 0)
    assert torch.equal(
        samples.batch(both, streams).text, encoders.encode_text(["a red star"] * 2)[0]
    )


FINGERPRINT = "ca470fa4d3c9cbab"


def test_a_tar_without_pairs_keeps_its_fingerprint(tmp_path: Path) -> None:
    """A resumed run must find the same data as before there were pairs."""
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        add_member(tar, "0.png", picture_bytes(0))
        add_member(tar, "0.txt", b"a star")
    assert open_data(str(tmp_path / "set.tar")).fingerprint() == FINGERPRINT


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


def config(folder: Path, tiny: Path, **more: Any) -> dict[str, Any]:
    small = {"tokens": 2, "depth": 1}
    keys: dict[str, Any] = {
        "data": str(folder / "data"),
        "output": str(folder / "run"),
        "base": str(tiny),
        "variant": "plus",
        "pairs": "self-made",
        "content": small,
        "style": small | {"tokens": 3},
        "resolution": SIDE,
        "steps": 4,
        "batch_size": 2,
        "checkpoint_every": 2,
        "trackers": [],
        "device": "cpu",
    }
    return keys | more


def test_a_run_writes_one_file_and_resumes_bit_for_bit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "BATCH", 8)  # of the warm start
    write_folder(tmp_path / "data", 5)
    keys = config(tmp_path, tiny_folder, cache=str(tmp_path / "cache"))
    keys |= {"warm_start": "captions", "warm_start_steps": 10}
    done = ip.train(keys, progress=False)
    assert done.adapter is not None
    pair = AdapterPair.load(done.adapter)
    assert [adapter.spec.tokens for adapter in pair.adapters] == [2, 3]
    again = keys | {"output": str(tmp_path / "again")}
    stop_after(2, again)
    resumed = ip.train(again, resume=True, progress=False)
    assert resumed.adapter is not None
    assert resumed.adapter.read_bytes() == done.adapter.read_bytes()
    assert "a pair of plus for unet, tokens: 5" in str(estimate_run(TrainingConfig.load(keys)))
    # from a file: all weights of both adapters are taken over
    keys |= {"adapter": str(done.adapter), "steps": 1, "learning_rate": 1e-12, "ema": 0}
    keys |= {"output": str(tmp_path / "next"), "warm_start": "none", "weight_decay": 0}
    more = ip.train(keys, progress=False)
    assert more.adapter is not None
    before, after = load_file(done.adapter), load_file(more.adapter)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def stop_after(step: int, keys: dict[str, Any]) -> None:
    """Start a run that is interrupted after this step, by the signal that people send."""
    import os
    import signal

    from imageprompt.training.loop.trainer import Trainer

    original = Trainer._after_step

    def after(self: Trainer, *args: Any) -> None:
        original(self, *args)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer._after_step = after  # type: ignore[method-assign]
    try:
        stopped = ip.train(keys, progress=False)
    finally:
        Trainer._after_step = original  # type: ignore[method-assign]
    assert stopped.adapter is None


def test_columns_are_trained_on_and_validated(tiny_folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 3)
    for index in range(3):
        for name in ("content_reference", "style_reference"):
            (tmp_path / "data" / f"{index:03d}.{name}.png").write_bytes(picture_bytes(index + 5))
    write_folder(tmp_path / "held-out", 1)
    validation = {"references": str(tmp_path / "held-out"), "count": 1, "steps": 1}
    keys = config(tmp_path, tiny_folder, pairs="columns", steps=1, validate_every=1)
    done = ip.train(keys | {"validation": validation}, progress=False)
    assert done.best is not None
    assert ip.validate(done.best).ok
    assert len(done.sheets) == 1


def test_what_cannot_be_a_pair_is_said_before_it_is_trained(
    tiny_folder: Path, tmp_path: Path
) -> None:
    write_folder(tmp_path / "data", 2)
    with pytest.raises(OptionError, match=r"content\.drop.*at most 1"):
        TrainingConfig.load(config(tmp_path, tiny_folder, content={"drop": 0.95}))
    with pytest.raises(PictureError, match=r"2 of 2 samples.*has no content_reference"):
        ip.train(config(tmp_path, tiny_folder, pairs="columns"), progress=False)
    plus = str(tiny_folder / "adapters" / "plus.safetensors")
    with pytest.raises(AdapterFileError, match="holds no pair"):
        ip.train(config(tmp_path, tiny_folder, adapter=plus), progress=False)
