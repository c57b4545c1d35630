"""The package: everything it needs is pinned, and what it installs is complete."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from imageprompt.core import bundled

ROOT = Path(__file__).resolve().parents[2]
BUNDLED_LIMIT = 24_000_000


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str], seen: dict[str, str]) -> dict[str, str]:
    """Installed versions of all that a distribution needs, through all levels."""
    for line in metadata.requires(name) or ():
        wanted = Requirement(line)
        contexts = [{"extra": extra} for extra in (extras or {""})]
        if wanted.marker and not any(wanted.marker.evaluate(context) for context in contexts):
            continue
        key = plain(wanted.name)
        if key not in seen:
            seen[key] = metadata.version(wanted.name)
            needed(wanted.name, frozenset(wanted.extras), seen)
    return seen


def test_everything_needed_is_pinned_to_what_is_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {plain(name): version for name, version in pins.items()}
    found = needed("imageprompt", frozenset({"", "dev", "train"}), {})
    assert {name: version.split("+")[0] for name, version in found.items()} == pins


def test_nothing_that_the_house_does_without_is_needed() -> None:
    found = needed("imageprompt", frozenset({"", "dev", "train"}), {})
    assert not {"torchvision", "xformers"} & found.keys()
    assert not any(name.startswith(("nvidia", "cuda")) for name in found)


def test_the_bundled_stack_is_in_the_package_and_small() -> None:
    folder = bundled.folder()
    assert folder.is_relative_to(Path(bundled.__file__).parents[1])
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= BUNDLED_LIMIT
    assert {"base", "plus"} <= {path.stem for path in (folder / "adapters").iterdir()}
    assert all(bundled.adapter(name).is_file() for name in ("base", "plus"))
    assert (folder.parent.parent / "py.typed").is_file()
