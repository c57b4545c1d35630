"""The package: its dependencies are pinned, and the wheel alone runs the demo."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from imageprompt.core import bundled

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = frozenset({"", "dev", "docs", "train"})
BUNDLED_LIMIT = 26_000_000
_NOT_INSTALLED = "# What the extra `ray` needs"
"""The pins after this line are of an extra that the tests do not install."""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str], seen: dict[str, str]) -> dict[str, str]:
    """Installed versions of all that a distribution needs, through all levels."""
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        contexts = [{"extra": extra} for extra in (extras or {""})]
        marker = requirement.marker
        if marker and not any(marker.evaluate(context) for context in contexts):
            continue
        key = plain(requirement.name)
        if key not in seen:
            seen[key] = metadata.version(requirement.name)
            needed(requirement.name, frozenset(requirement.extras), seen)
    return seen


def test_everything_needed_is_pinned_to_what_is_tested() -> None:
    installed, mark, _ = (ROOT / "constraints.txt").read_text().partition(_NOT_INSTALLED)
    assert mark
    lines = installed.splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {plain(name): version for name, version in pins.items()}
    found = needed("imageprompt", EXTRAS, {})
    assert {name: version.split("+")[0] for name, version in found.items()} == pins


def test_unwanted_packages_are_not_needed() -> None:
    found = needed("imageprompt", EXTRAS, {})
    assert not {"torchvision", "xformers"} & found.keys()
    assert not any(name.startswith(("nvidia", "cuda")) for name in found)


@pytest.mark.parametrize("stack", bundled.FOLDERS)
def test_a_bundled_stack_is_in_the_package_and_small(stack: str) -> None:
    folder = bundled.folder(stack)
    assert folder.is_relative_to(Path(bundled.__file__).parents[1])
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= BUNDLED_LIMIT
    expected = {"base", "plus", "dual"} if stack in bundled.ONE_OBJECT else {"plus"}
    assert {path.stem for path in (folder / "adapters").iterdir()} == expected
    assert all(bundled.adapter(name, stack).is_file() for name in expected)
    assert (folder.parent.parent / "py.typed").is_file()


# ── the wheel ───────────────────────────────────────────────────────────────────────────────────


def run(*command: str | Path, folder: Path) -> str:
    """Output of a command that knows nothing of this repository's environment variables."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources by the pinned backend, as pip calls it."""
    from hatchling.build import build_wheel

    out = tmp_path_factory.mktemp("wheel")
    with contextlib.chdir(ROOT):
        return out / build_wheel(str(out))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = sum(info.compress_size for info in archive.infolist())
    info = f"imageprompt-{metadata.version('imageprompt')}.dist-info"
    assert {name.split("/")[0] for name in names} == {"imageprompt", info}
    package = ROOT / "src" / "imageprompt"
    sources = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("imageprompt/")} == sources
    for stack in bundled.FOLDERS.values():
        inside = f"imageprompt/demo/{stack}"
        assert {f"{inside}/model_index.json", f"{inside}/adapters/plus.safetensors"} <= names
    assert {"imageprompt/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert sizes < 2.75 * BUNDLED_LIMIT


IN_ONE_PROCESS = """
import os, sys
os.dup2(1, 2)  # what is printed comes in order
import imageprompt as ip
from imageprompt import cli
from imageprompt.core import bundled
print(ip.__file__, flush=True)
path = ip.generate("a", "picture.png", steps=1, progress=False).save("saved")[0]
ip.repeat(path, progress=False)
ip.Adapter.load(bundled.adapter()), ip.inspect(bundled.adapter()), ip.check("picture.png")
print("the library printed nothing", flush=True)
bundled.STEPS = 1
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_the_wheel_runs_the_demo_outside_the_repository(
    wheel: Path, tmp_path: Path, whole: bool
) -> None:
    """In a new environment that sees this one's libraries, but not its editable install.

    The library prints nothing, neither of its own nor of the libraries below, while they are
    imported and used.
    """
    place = tmp_path / "environment"
    venv.create(place, with_pip=False)
    python, command = (place / "bin" / name for name in ("python", "imageprompt"))
    paths = sysconfig.get_paths(vars={"base": str(place), "platbase": str(place)})
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--no-warn-script-location")
    # what `pip --python` starts, without the process that starts it
    pip = str(metadata.distribution("pip").locate_file("pip/__pip-runner__.py"))
    run(python, pip, "install", *options, wheel, folder=tmp_path)
    # A path file inside the folder that is named here is not read: the editable install stays out.
    (Path(paths["purelib"]) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert run(command, "--version", folder=tmp_path).startswith("imageprompt ")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "picture.png")
    demo = ["demo", "--count", "1", "--output", "out"]
    where, silent, *_ = run(python, "-c", IN_ONE_PROCESS, *demo, folder=tmp_path).splitlines()
    assert Path(where).is_relative_to(place)
    assert silent == "the library printed nothing"
    if whole:
        shutil.rmtree(tmp_path / "out")
        run(command, *demo, folder=tmp_path)
    sheets = list((tmp_path / "out").rglob("*.png"))
    assert sheets
    with Image.open(max(sheets, key=lambda path: path.stat().st_size)) as sheet:
        assert sheet.width > 300
