"""build_cache: everything once, resumable after any kill, shared by processes; damage and disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from test_train_data import assert_same, batches

import forked
from imageprompt.core.errors import OptionError
from imageprompt.encoding.images import open_image
from imageprompt.training.cache import encode
from imageprompt.training.cache.open import open_dataset
from imageprompt.training.cache.store import CacheError, Store
from imageprompt.training.data import scan
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.views import PictureOptions
from imageprompt.variants import VARIANTS
from prepare_worker import PICTURES, prepare, run
from training_data import CAPTIONS, Parts, picture_bytes, write_folder


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def write_wide(folder: Path, count: int, **options: Any) -> Path:
    """Pictures so wide that no two random crops of one are the same."""
    return write_folder(folder, count, size=(400, 16), **options)


def shards(cache: Path) -> dict[str, str]:
    """Every shard and set of a cache, with the hash of its content."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cache.rglob("*.safetensors"))
        if "survey" not in path.parts
    }


def entries_in(shard: Path) -> list[bytes]:
    with safe_open(shard, framework="pt") as handle:
        return sorted({name[:32].encode() for name in handle.keys()})  # noqa: SIM118


def entries(cache: Path) -> Counter[str]:
    """How often every entry is there."""
    found: Counter[str] = Counter()
    for path in cache.rglob("*.safetensors"):
        if path.parts[-3] in ("moments", "text", "features"):
            found.update(f"{path.parts[-3]} {entry.decode()}" for entry in entries_in(path))
    return found


def test_everything_is_encoded_once(parts: Parts, tmp_path: Path) -> None:
    data = write_wide(tmp_path / "data", 10)
    (data / "twin.png").write_bytes((data / "003.png").read_bytes())
    (data / "twin.txt").write_text("red")
    before = dict(parts.calls)
    done = run(parts, data, tmp_path / "cache")
    assert done.samples == 11
    assert done.encoded["features"] == 10  # the twin is the same picture
    assert done.encoded["text"] == len({*CAPTIONS, "red"})
    assert done.encoded["moments"] == 20
    assert parts.calls["moments"] - before["moments"] == 20
    assert parts.calls["image"] - before["image"] == 10
    again = run(parts, data, tmp_path / "cache")
    assert sum(again.encoded.values()) == 0
    assert again.existing == done.encoded
    assert parts.calls["moments"] - before["moments"] == 20


def test_what_is_new_is_added_to_what_is_there(parts: Parts, tmp_path: Path) -> None:
    data, cache = write_wide(tmp_path / "data", 8), tmp_path / "cache"
    run(parts, data, cache)
    old = shards(cache)
    (data / "900.png").write_bytes(picture_bytes(900, (400, 16)))
    (data / "900.txt").write_text("a star")
    (data / "002.png").write_bytes(picture_bytes(902, (400, 16)))
    done = run(parts, data, cache)
    assert done.encoded == {"moments": 4, "text": 0, "features": 2}
    assert {name: shards(cache)[name] for name in old} == old
    other = run(parts, data, cache, variant="base")
    assert other.encoded == {"moments": 0, "text": 0, "features": 9}


def test_another_model_makes_entries_of_its_own(parts: Parts, tmp_path: Path) -> None:
    data, cache = write_wide(tmp_path / "data", 4), tmp_path / "cache"
    run(parts, data, cache)
    other = Parts()
    with torch.no_grad():
        other.pipe.vae.encoder.conv_in.weight.mul_(1.5)
    assert run(other, data, cache).encoded == {"moments": 8, "text": 0, "features": 0}
    other.pipe.text_encoder.half()
    assert run(other, data, cache).encoded["text"] == 4


def test_captions_that_are_cut_and_pictures_that_are_enlarged_are_counted(
    parts: Parts, tmp_path: Path
) -> None:
    data = write_wide(tmp_path / "data", 4)
    (data / "001.txt").write_text("star " * 20)
    big = PictureOptions(resolution=24)
    said: list[str] = []
    done = run(parts, data, tmp_path / "cache", pictures=big, log=said.append)
    assert (done.truncated_captions, done.upscaled) == (1, 4)
    assert sum("1 captions" in line or "4 pictures are smaller" in line for line in said) == 2
    live = open_dataset(str(data), None, FeatureExtractors(parts, VARIANTS["base"]), big)
    with pytest.warns(UserWarning, match="longer than 16 tokens are truncated"):
        batches(live)


def test_the_disk_it_takes_is_told_first(parts: Parts, tmp_path: Path) -> None:
    data, cache = write_wide(tmp_path / "data", 6), tmp_path / "cache"
    said: list[str] = []
    dry = run(parts, data, cache, dry_run=True, log=said.append)
    assert not shards(cache)
    assert dry.encoded == {}
    assert any("6 image features to encode" in line for line in said)
    assert any("in total" in line for line in said)
    done = run(parts, data, cache)
    assert done.new_bytes == dry.new_bytes
    taken = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    promised = sum(dry.new_bytes.values())
    assert promised < taken < 1.5 * promised  # headers, the survey and the set are small


def test_a_disk_that_is_too_small_is_refused_before_anything_is_encoded(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_wide(tmp_path / "data", 6)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OptionError, match=r"only 0\.0 GB are free"):
        run(parts, data, tmp_path / "cache")
    assert not shards(tmp_path / "cache")


def test_endless_crops_cannot_be_cached(parts: Parts, tmp_path: Path) -> None:
    data = write_wide(tmp_path / "data", 2)
    endless = PictureOptions(resolution=16, crop="random", views=0)
    with pytest.raises(OptionError, match="views"):
        run(parts, data, tmp_path / "cache", pictures=endless)


def test_features_may_be_encoded_online(parts: Parts, tmp_path: Path) -> None:
    data, cache = write_wide(tmp_path / "data", 9, broken=[2]), tmp_path / "cache"
    extractors = FeatureExtractors(parts, VARIANTS["plus"])
    lean = open_dataset(str(data), str(cache), extractors, PICTURES, online=True)
    assert not (cache / "features").exists()
    live = open_dataset(str(data), None, extractors, PICTURES)
    for one, other in zip(batches(lean), batches(live), strict=True):
        assert_same(one, other)
    torch.testing.assert_close(lean.null_features(), live.null_features())


# ── opening ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture file is opened, by its name."""
    found: Counter[str] = Counter()

    def count(name: str) -> None:
        original = getattr(open_image, name)

        def counted(source: Any) -> Any:
            found[Path(source).name] += 1
            return original(source)

        monkeypatch.setattr(open_image, name, counted)

    count("open_picture")
    count("open_with_hash")
    return found


def write_odd(folder: Path) -> Path:
    """Twelve pictures; one is cut short, so is its copy and the reference of another."""
    write_wide(folder, 12, broken=[4])
    (folder / "twin.png").write_bytes((folder / "004.png").read_bytes())
    (folder / "twin.txt").write_text("red")
    (folder / "002.reference.png").write_bytes(picture_bytes(70))
    (folder / "003.reference.png").write_bytes(picture_bytes(71)[:100])
    return folder


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_a_cold_build_opens_every_picture_once(
    variant: str, parts: Parts, opened: Counter[str], tmp_path: Path
) -> None:
    data, cache = write_wide(tmp_path / "data", 12), tmp_path / "cache"
    (data / "002.reference.png").write_bytes(picture_bytes(70))
    run(parts, data, cache, variant=variant)
    assert opened == dict.fromkeys([path.name for path in data.glob("*.png")], 1)
    opened.clear()
    run(parts, data, cache, variant=variant)
    assert not opened
    extractors = FeatureExtractors(parts, VARIANTS[variant])
    batches(open_dataset(str(data), str(cache), extractors, PICTURES))
    assert not opened


def test_broken_pictures_are_found_while_encoding_and_not_opened_again(
    parts: Parts, opened: Counter[str], tmp_path: Path
) -> None:
    data, cache = write_odd(tmp_path / "data"), tmp_path / "cache"
    done = run(parts, data, cache, max_broken=0.4)
    assert done.encoded["moments"] == 2 * 11  # 003 is whole itself
    for name in ("004.png", "twin.png", "003.reference.png"):
        assert sum(f"{name}'" in line for line in done.broken) == 1
    assert len(done.broken) == 3
    assert max(opened.values()) == 1
    opened.clear()
    again = run(parts, data, cache, max_broken=0.4)
    assert again.broken == done.broken
    assert sum(again.encoded.values()) == 0
    assert not opened
    assert again.index is not None
    assert again.index.equals(done.index)


def test_a_dry_run_decodes_every_picture_and_so_counts_exactly(
    parts: Parts, opened: Counter[str], tmp_path: Path
) -> None:
    data, cache = write_odd(tmp_path / "data"), tmp_path / "cache"
    said: list[str] = []
    dry = run(parts, data, cache, max_broken=0.4, dry_run=True, log=said.append)
    assert len(dry.broken) == 3
    assert any("10 image features to encode" in line for line in said)
    assert max(opened.values()) == 1
    done = run(parts, data, cache, max_broken=0.4)
    assert done.broken == dry.broken
    assert done.encoded["features"] == 10


def test_references_are_checked_where_features_are_encoded_online(
    parts: Parts, opened: Counter[str], tmp_path: Path
) -> None:
    data, cache = write_odd(tmp_path / "data"), tmp_path / "cache"
    done = run(parts, data, cache, max_broken=0.4, online=True)
    assert sum("003.reference.png" in line for line in done.broken) == 1
    assert opened["002.reference.png"] == 1
    opened.clear()
    run(parts, data, cache, max_broken=0.4, online=True)
    assert not opened


def test_training_without_a_cache_opens_a_picture_once_a_step(
    parts: Parts, opened: Counter[str], tmp_path: Path
) -> None:
    data = write_wide(tmp_path / "data", 12)
    live = open_dataset(str(data), None, FeatureExtractors(parts, VARIANTS["plus"]), PICTURES)
    live.null_features()
    batches(live, steps=4, size=3)  # one epoch
    assert opened == dict.fromkeys([path.name for path in data.glob("*.png")], 1)


@pytest.mark.parametrize("cached", [False, True])
def test_latents_are_means_if_the_config_says_so(
    parts: Parts, tmp_path: Path, cached: bool
) -> None:
    data, cache = write_wide(tmp_path / "data", 3), tmp_path / "cache"
    pictures = PictureOptions(resolution=16, crop="center")
    run(parts, data, cache, pictures=pictures)

    def draws(latents: Literal["sample", "mean"]) -> list[Batch]:
        encoders = FeatureExtractors(parts, VARIANTS["plus"], latents=latents)
        samples = open_dataset(str(data), str(cache) if cached else None, encoders, pictures)
        return [
            samples.batch(torch.arange(3), RandomStreams(range(first, first + 3)))
            for first in (0, 50, 100)
        ]

    means, samples = draws("mean"), draws("sample")
    assert_same(means[0], means[1])
    spread = torch.stack([(one.latents - means[0].latents).abs().mean() for one in samples])
    assert bool((spread > 0).all())
    assert len({float(one.latents.mean()) for one in samples}) == 3


def test_a_cache_of_an_earlier_version_is_valid(
    parts: Parts, opened: Counter[str], tmp_path: Path
) -> None:
    """Its scan knew no column "decoded", and its moments were sharded by their own addresses."""
    data, cache = write_odd(tmp_path / "data"), tmp_path / "cache"
    done = run(parts, data, cache, max_broken=0.4)
    for path in cache.glob("survey/*/*.safetensors"):
        with safe_open(path, framework="pt") as handle:
            columns = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            metadata = handle.metadata()
        del columns["decoded"]
        path.write_bytes(save(columns, metadata))
    for path in cache.glob("moments/*/*.safetensors"):
        store = Store(path.parent)
        for entry in entries_in(path):
            moments = store.read(entry, "moments").clone()
            store.write(entry[:1].decode(), {entry: {"moments": moments}})
        path.unlink()
    opened.clear()
    again = run(parts, data, cache, max_broken=0.4)
    assert sum(again.encoded.values()) == 0
    assert not opened
    assert again.index is not None
    assert again.index.equals(done.index)
    assert run(parts, data, cache, max_broken=0.4, verify=True).damaged == []


# ── damage ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.sample(2)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "other"])
def test_a_corrupt_shard_is_found_named_and_made_anew(
    damage: str, parts: Parts, tmp_path: Path
) -> None:
    data, cache = write_wide(tmp_path / "data", 20), tmp_path / "cache"
    extractors = FeatureExtractors(parts, VARIANTS["plus"])
    run(parts, data, cache)
    whole = shards(cache)
    good = batches(open_dataset(str(data), str(cache), extractors, PICTURES), 7)
    name = next(name for name in whole if name.startswith("moments"))
    path = cache / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-7] ^= 0x40
    elif damage == "other":
        content = bytearray(b"<!DOCTYPE html>" * 99)
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "gone":
        path.unlink()
    if damage == "flipped":  # nothing tells it but the content: found when it is read
        samples = open_dataset(str(data), str(cache), extractors, PICTURES)
        with pytest.raises(CacheError, match=f"{path.name}.*damaged.*build-cache --verify"):
            batches(samples, 60)
        assert run(parts, data, cache).damaged == []
        done = run(parts, data, cache, verify=True)
        assert [path.name in line for line in done.damaged] == [True]
    else:  # seen when the cache is opened, and repaired there
        open_dataset(str(data), str(cache), extractors, PICTURES)
    assert shards(cache) == whole
    after = batches(open_dataset(str(data), str(cache), extractors, PICTURES), 7)
    for one, other in zip(good, after, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.features, other.features)


def test_a_shard_that_another_has_repaired_is_not_dropped(parts: Parts, tmp_path: Path) -> None:
    data, cache = write_wide(tmp_path / "data", 20), tmp_path / "cache"
    run(parts, data, cache)
    whole = shards(cache)
    path = next(cache.glob("features/*/*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[:200])
    late = Store(path.parent)
    assert list(late.damaged) == [path.name]
    run(parts, data, cache)
    with late.writing(path.name.partition("-")[0]):
        assert not late.drop(path.name, deep=True)
    assert not late.damaged
    assert shards(cache) == whole
    assert set(entries(cache).values()) == {1}


def test_a_damaged_set_or_survey_is_made_anew(parts: Parts, tmp_path: Path) -> None:
    data, cache = write_wide(tmp_path / "data", 6), tmp_path / "cache"
    done = run(parts, data, cache)
    whole = shards(cache)
    for path in (done.path, *(cache / "survey").rglob("*.safetensors")):
        path.write_bytes(path.read_bytes()[:100])
    assert sum(run(parts, data, cache).encoded.values()) == 0
    assert shards(cache) == whole


def test_a_full_disk_is_one_line_and_loses_nothing(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = write_wide(tmp_path / "data", 20), tmp_path / "cache"
    run(parts, data, tmp_path / "whole")
    write, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 6:  # the survey and five shards
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CacheError, match="No space left"):
        run(parts, data, cache)
    assert len(shards(cache)) == 5
    assert not list(cache.rglob("*.tmp*"))
    monkeypatch.undo()
    run(parts, data, cache)
    assert shards(cache) == shards(tmp_path / "whole")


# ── processes ───────────────────────────────────────────────────────────────────────────────────

PATIENCE = 300
"""Seconds that one process waits for another on a busy machine."""


def finished(result: Path) -> dict[str, int]:
    """What a process has encoded, once it is done."""
    end = time.monotonic() + PATIENCE
    while not result.exists():
        assert time.monotonic() < end, "it never came to an end"
        time.sleep(0.02)
    found: dict[str, int] = json.loads(result.read_text())
    return found


def kill(process: BaseProcess) -> None:
    """End a process, which may have ended, and wait until it has."""
    process.kill()
    process.join()


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards as the worker's."""
    monkeypatch.setattr(encode, "SHARD_ENTRIES", 3)
    monkeypatch.setattr(scan, "UNIT", 8)


@pytest.mark.slow
def test_two_processes_make_the_same_cache_without_duplicates(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    data, cache = write_wide(tmp_path / "data", 60), tmp_path / "two"
    alone = run(parts, data, tmp_path / "alone").encoded
    results = [tmp_path / "a.json", tmp_path / "b.json"]
    both = forked.CONTEXT.Barrier(2, timeout=PATIENCE)  # each waits for the other's first part
    for result in results:
        forked.start(prepare, data, cache, result, both.wait)
    shares = [finished(result) for result in results]
    assert shards(cache) == shards(tmp_path / "alone")
    assert set(entries(cache).values()) == {1}
    for kind, count in alone.items():
        assert sum(share[kind] for share in shares) == count
    assert all(sum(share.values()) for share in shares)  # both had a part in it


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_cache_like_any_other(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    small(monkeypatch)
    data, cache = write_wide(tmp_path / "data", 60), tmp_path / "killed"
    began = time.monotonic()
    run(parts, data, tmp_path / "alone")
    seconds = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(30 if whole else 10):
        process = forked.start(prepare, data, cache, tmp_path / "killed.json")
        time.sleep(rng.uniform(0, seconds / 6))
        kill(process)
    forked.start(prepare, data, cache, tmp_path / "last.json")
    finished(tmp_path / "last.json")
    assert shards(cache) == shards(tmp_path / "alone")
    assert set(entries(cache).values()) == {1}
    assert not list(cache.rglob("*.tmp*"))


@pytest.mark.slow
def test_a_process_that_dies_leaves_its_part_to_the_other(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    data, cache = write_wide(tmp_path / "data", 60), tmp_path / "two"
    run(parts, data, tmp_path / "alone")
    here = forked.CONTEXT.Barrier(2, timeout=PATIENCE)

    def stop() -> None:
        here.wait()
        os.kill(os.getpid(), signal.SIGSTOP)  # with a lock in its hand

    dying = forked.start(prepare, data, cache, tmp_path / "dying.json", stop)
    here.wait()
    forked.start(prepare, data, cache, tmp_path / "living.json", here.wait)
    here.wait()
    kill(dying)
    finished(tmp_path / "living.json")
    assert not (tmp_path / "dying.json").exists()
    assert shards(cache) == shards(tmp_path / "alone")
