"""Shared by all tests: import paths, one torch thread, the same random numbers every time."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest

# Before any library reads them: no test leaves this machine, and the tests' small operations gain
# nothing from a second thread, but lose much to it where the machine has other work.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _in_memory(place: str = "/dev/shm", room: int = 8 * 2**30) -> None:
    """Temporary files go into memory where there is room: what this package writes it flushes to
    the disk, file by file, and a disk takes milliseconds for each."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        found = os.statvfs(place)
        small = min(1024 * free, found.f_bavail * found.f_frsize) < room
        if small or found.f_flag & os.ST_NOEXEC or not os.access(place, os.W_OK):
            return
        os.environ["TMPDIR"], tempfile.tempdir = place, None


if "TMPDIR" not in os.environ:
    _in_memory()

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "serve/test_page.py",
    "deploy/test_export.py",
    "serve/test_faults.py",
    "docs/test_benchmarks.py",
    "deploy/test_export_bases.py",
    "attacks/test_attacks.py",
    "attacks/test_guards.py",
    "attention/test_recompile.py",
    "evaluation/test_probe.py",
    "deploy/test_compress.py",
    "docs/test_package.py",
    "demo/test_sd3_stack.py",
    "deploy/test_quantize.py",
    "attacks/test_faults.py",
    "demo/test_grown_world.py",
    "evaluation/test_report.py",
    "docs/test_readme.py",
    "demo/test_stack.py",
    "generation/test_batch_invariance.py",
    "workflows/test_restore_ct.py",
    "serve/test_api.py",
    "adapter/test_parity_diffusers.py",
    "evaluation/test_rating_page.py",
    "training/test_prepare.py",
    "checkpoint/test_convert.py",
    "serve/test_openai.py",
    "docs/test_evaluation_guide.py",
    "cli/test_streams.py",
    "demo/test_sd3_128_stack.py",
    "docs/test_control_guide.py",
    "serve/test_a1111.py",
    "generation/test_transformer_bases.py",
    "docs/test_guides.py",
)
"""Files that take more than about ten seconds of a core, the longest first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="only the tests that are samples, whole")
    parser.addoption("--sampled", action="store_true", help="as with no files named: samples")


def pytest_xdist_auto_num_workers() -> int | None:
    """One process more than cores: tests of servers and of the page wait for other processes."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return count + 1


def pytest_configure(config: pytest.Config) -> None:
    """Tests are samples in a run of the whole suite; a file that is named runs as it is."""
    if config.args_source != pytest.Config.ArgsSource.ARGS and not config.getoption("whole"):
        config.option.sampled = True  # the workers get it from here
    if not config.option.sampled:
        os.environ["WHOLE"] = "1"  # for what modules set as they are imported


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Is this test to try all that it has, as `make attacks` does, or a sample, as `make test`?"""
    return bool(request.config.getoption("whole"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files come first: one that is left for the end would keep a core idle."""
    everything = list(items)
    if config.getoption("whole"):
        items[:] = [item for item in items if _is_sample(item)]
    elif config.getoption("sampled"):
        items[:] = _samples(items)
    kept = set(items)
    if left := [item for item in everything if item not in kept]:
        config.hook.pytest_deselected(items=left)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    if gone := [str(path) for path in places if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST in tests/conftest.py names what is gone: {gone}")
    items.sort(key=lambda item: (places.get(item.path, len(places)), -slow[item.path]))


def _is_sample(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return "whole" in fixtures or item.get_closest_marker("sample") is not None


def _samples(items: list[pytest.Item]) -> list[pytest.Item]:
    """One case in n of the tests marked `sample(n)`; where it begins differs from test to test."""
    names = [item.nodeid.partition("[")[0] for item in items]
    counts, seen, found = Counter(names), Counter[str](), []
    for item, name in zip(items, names, strict=True):
        mark = item.get_closest_marker("sample")
        every = min(mark.args[0], counts[name]) if mark else 1
        if seen[name] % every == crc32(name.encode()) % every:
            found.append(item)
        seen[name] += 1
    return found


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it after every test."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Seed torch where a test has loaded it; tests that do not need torch do not pay for it."""
    if "torch" in sys.modules:
        import torch

        # torch.manual_seed would keep a stack trace for each kind of GPU, which costs a millisecond
        torch.default_generator.manual_seed(0)
    return


@pytest.fixture(autouse=True)
def copied_pipelines() -> None:
    """A pipeline that was loaded from a folder is copied from then on."""
    if "diffusers.pipelines.pipeline_utils" in sys.modules:
        from loads import install

        install()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with adapters and random weights, in place of the bundled one."""
    from tiny_stack import save_stack

    return save_stack(tmp_path_factory.mktemp("tiny") / "stack")


@pytest.fixture
def tiny_bundled(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For this test, the bundled stack is the tiny one."""
    from imageprompt.core import bundled

    monkeypatch.setattr(bundled, "folder", lambda _=bundled.NAME: tiny_folder)
    return tiny_folder
