"""On a Ray cluster: the same pictures and features as without, and servers that survive a kill.

Skipped where Ray is not installed (`pip install imageprompt[ray]`), or where a process may not have
a network of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from imageprompt import cli
from imageprompt.core.errors import OptionError
from imageprompt.core.ray_cluster import connected
from imageprompt.serve.batch import batch, verify
from imageprompt.serve.keys import Keys
from training_data import write_folder

PROGRAM = Path(__file__).parents[1] / "support" / "on_ray.py"
ROWS = 24
no_ray = find_spec("ray") is None
no_network = (
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0
)
on_ray = pytest.mark.skipif(
    no_ray or no_network,
    reason="Ray is not installed" if no_ray else "no network of its own is to be had",
)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stack, rows, pictures and keys that the program works with."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "stack").symlink_to(tiny_folder)
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    rows = [
        {"prompt": f"row {n}", "reference": ("red.png", "blue.png")[n % 2]} for n in range(ROWS)
    ]
    (folder / "jobs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_folder(folder / "data", 8)
    (folder / "config.yaml").write_text(config(folder, "cache"))
    (folder / "key").write_text(Keys(folder / "keys.json").add("alice"))
    return folder


def config(folder: Path, cache: str) -> str:
    plain = {"base": folder / "stack", "data": folder / "data", "cache": folder / cache}
    lines = [f"{name}: {value}" for name, value in plain.items()]
    return "\n".join([*lines, f"output: {folder / 'run'}", "variant: base", "resolution: 16", ""])


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    temporary = tempfile.mkdtemp(prefix="ray")
    environment = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    words = ["exec", sys.executable, PROGRAM, folder, temporary]
    inside = "ip link set lo up; " + " ".join(map(str, words))
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", inside],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    shutil.rmtree(temporary, ignore_errors=True)
    assert done.returncode == 0, (folder / "log").read_text()[-5000:]
    return json.loads((folder / "found.json").read_text())


@on_ray
@pytest.mark.slow
def test_a_batch_has_the_same_bytes_as_without(found: Any, folder: Path, tmp_path: Path) -> None:
    assert found["batch"]["killed"] >= 1
    assert found["batch"]["code"] == 0
    defaults = {"base": str(folder / "stack"), "steps": 1, "size": [32, 32]}
    assert batch(folder / "jobs.jsonl", tmp_path, defaults=defaults, shard_rows=4).finished
    assert contents(folder / "out") == contents(tmp_path)
    assert verify(folder / "out").problems == ()


def contents(output: Path) -> dict[str, bytes]:
    shards = output / "shards"
    return {
        str(path.relative_to(shards)): path.read_bytes()
        for path in shards.rglob("*")
        if path.is_file()
    }


@on_ray
@pytest.mark.slow
def test_a_cache_has_the_same_entries_as_without(found: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(config(folder, "plain"))
    assert cli.main(["build-cache", str(tmp_path / "plain.yaml")]) == 0
    assert entries(folder / "cache") == entries(folder / "plain")
    assert found["cache"]["samples"] == 8
    assert found["cache"]["encoded"]["features"] == 8  # by all workers together: each once


def entries(cache: Path) -> dict[str, bytes]:
    every: dict[str, bytes] = {}
    for path in cache.glob("*/*/*.safetensors"):
        with safe_open(path, framework="np") as handle:
            for name in handle.keys():  # noqa: SIM118
                entry = f"{path.parts[-3]} {name}"
                assert entry not in every
                every[entry] = handle.get_tensor(name).tobytes()
    return every


@on_ray
@pytest.mark.slow
def test_servers_behind_one_address(found: Any) -> None:
    serve = found["serve"]
    assert serve["without a key"] == 401
    assert (serve["state"], serve["picture"], serve["page"]) == ("done", "\x89PNG", 200)
    assert serve["events"][0] in ("queued", "started")
    assert serve["events"][-2:] == ["image", "done"]
    assert len(serve["red"]) == len(serve["blue"]) == 1  # each reference has one server


@on_ray
@pytest.mark.slow
def test_wrong_arguments_are_refused(found: Any) -> None:
    words = ["not between 1 and 256", "could not convert|invalid literal", "--add-key", "port="]
    refused = found["serve"]["refused"]
    assert all(re.search(one, told) for one, told in zip(words, refused, strict=True))


@on_ray
@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_with_its_jobs(found: Any) -> None:
    serve = found["serve"]
    assert serve["killed"] == 1
    assert serve["states"] == ["done"]
    assert serve["kept"] == serve["pictures"] == 24
    assert serve["left"] == []


# ── without a cluster ───────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not no_ray, reason="Ray is installed")
@pytest.mark.parametrize("command", ["batch", "build-cache"])
def test_without_ray_it_says_what_to_install(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"batch": [str(folder / "jobs.jsonl"), "--output", str(tmp_path)]}
    more["build-cache"] = [str(folder / "config.yaml")]
    assert cli.main([command, *more[command], "--ray", "auto"]) == 2
    assert "pip install imageprompt[ray]" in capsys.readouterr().err
    with pytest.raises(OptionError, match="not installed"), connected("auto"):
        pass


def test_a_build_on_ray_neither_verifies_nor_only_looks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build-cache", str(folder / "config.yaml"), "--ray", "auto", "--verify"]
    assert cli.main(words) == 2
    assert "neither --verify nor --dry-run" in capsys.readouterr().err
