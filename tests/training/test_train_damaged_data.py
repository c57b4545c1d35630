"""A run that meets a corrupt cache shard or broken pictures: what it says; nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from imageprompt.training.cache.build import build_cache_for
from imageprompt.training.cache.cached_dataset import CachedDataset, addresses_of
from imageprompt.training.cache.open import open_dataset
from imageprompt.training.cache.store import CacheError
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.online_dataset import OnlineDataset
from imageprompt.training.data.views import PictureOptions
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.train import train
from imageprompt.variants import VARIANTS
from training_data import write_folder

BATCH, SEED, BAD_STEP = 4, 3, 5


def config_of(base: Path, place: Path, **keys: Any) -> TrainingConfig:
    keys = {"crop": "random", "views": 2} | keys
    return TrainingConfig.load(
        {
            "base": str(base),
            "variant": "base",
            "resolution": 16,
            "output": str(place / "out"),
            "steps": 7,
            "batch_size": BATCH,
            "seed": SEED,
            "checkpoint_every": 2,
            "log_every": 1,
            "trackers": [],
        }
        | keys
    )


def weights(path: Path | None) -> dict[str, torch.Tensor]:
    assert path is not None
    with safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def assert_equal(one: Path | None, other: Path | None) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def samples_of(config: TrainingConfig) -> OnlineDataset | CachedDataset:
    base = FrozenPipeline.load(config.base, precision="no")
    encoders = FeatureExtractors(base, VARIANTS[config.variant])
    return open_dataset(config.data, config.cache, encoders, PictureOptions.of(config))


def damage(cache: Path, address: bytes) -> None:
    """Turn over a bit of an entry, wherever it lies."""
    for path in cache.glob("moments/*/*.safetensors"):
        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        entry = header.get(f"{address.decode()}.moments")
        if entry is not None:
            content[8 + length + entry["data_offsets"][0] + 5] ^= 0x10
            path.write_bytes(content)
            return
    raise AssertionError("there is no such entry")


@pytest.mark.slow
def test_a_shard_that_goes_bad_costs_the_steps_since_the_last_checkpoint(
    tiny_folder: Path, tmp_path: Path
) -> None:
    data = str(write_folder(tmp_path / "data", 40, size=(400, 16)))
    whole = config_of(tiny_folder, tmp_path / "a", data=data, cache=str(tmp_path / "cache-a"))
    through = train(whole, progress=False)

    config = config_of(tiny_folder, tmp_path / "b", data=data, cache=str(tmp_path / "cache-b"))
    samples = samples_of(config)
    assert isinstance(samples, CachedDataset)
    first_seen = samples.indices(BAD_STEP, BATCH, SEED)[:1]
    for address in addresses_of(samples.index.tensors["moments"][first_seen]):
        damage(tmp_path / "cache-b", bytes(address))
    with pytest.raises(CacheError, match=r"damaged .*checksum.*build-cache --verify.*--resume"):
        train(config, progress=False)
    assert sorted(path.name for path in (config.folder / "checkpoints").iterdir())[-1] == "step-4"

    assert len(build_cache_for(config, verify=True).damaged) in (1, 2)
    resumed = train(config, resume=True, progress=False)
    assert_equal(resumed.adapter, through.adapter)


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_broken_pictures_do_not_end_a_run_nor_change_how_it_resumes(
    cached: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data", 12, size=(400, 16), broken=[1, 7])
    data = {"path": str(folder), "max_broken": 0.3}
    cache = str(tmp_path / "cache") if cached else None
    through = train(config_of(tiny_folder, tmp_path / "a", data=data, cache=cache), progress=False)
    assert through.step == 7
    assert [("001.png" in line) + 2 * ("007.png" in line) for line in through.quarantined] == [1, 2]

    config = config_of(tiny_folder, tmp_path / "b", data=data, cache=cache)
    kind = CachedDataset if cached else OnlineDataset
    batch, seen = kind.batch, []

    def lost(self: Any, indices: torch.Tensor, chance: Any) -> Any:
        seen.append(indices)
        if len(seen) == BAD_STEP + 1:
            raise RuntimeError("the power is gone")
        return batch(self, indices, chance)

    monkeypatch.setattr(kind, "batch", lost)
    with pytest.raises(RuntimeError, match="power"):
        train(config, progress=False)
    monkeypatch.undo()
    resumed = train(config, resume=True, progress=False)
    assert_equal(resumed.adapter, through.adapter)
