"""Faults while a file is written, and every kind of file that this package writes.

A `Write` is a state of a folder: `save(folder, version)` writes its version 0 (what was there) or 1
(what takes its place). Faults hit version 1 in a forked child: it is killed before any call that
may change a file, or in the middle of a write, or the disk is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

import imageprompt as ip
from imageprompt.core.atomic_files import append_line
from imageprompt.core.errors import ImagePromptError

TEMPORARY = re.compile(r"\..*\.tmp(\..*)?|\.tmp.*|.*\.tmp")
"""Names of temporary files: ours, those of safetensors, and common ones."""


@dataclass(frozen=True)
class Write:
    """One kind of file. `prepare` makes what is needed besides, once, in an empty folder.

    `appends`: its readers skip a last line that is not complete.
    """

    name: str
    save: Callable[[Path, int], object]
    prepare: Callable[[Path], object] = lambda folder: None
    appends: bool = False

    def __str__(self) -> str:
        return self.name


# ── what a reader sees ──────────────────────────────────────────────────────────────────────────

View = Mapping[str, str]
"""Path -> hash of what a reader gets from it."""


def view(folder: Path) -> dict[str, str]:
    """All files but locks and temporary ones, which no reader looks at."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock"
        if not any(TEMPORARY.fullmatch(part) for part in path.relative_to(folder).parts)
    }


def content(path: Path) -> bytes:
    """The pixels of a picture, the tensors of a safetensors file (a style's metadata has the time),
    the bytes of any other file; something else for a file that cannot be read."""
    try:
        if path.suffix == ".png":
            return Image.open(path).tobytes()
        if path.suffix == ".safetensors":
            loaded = load_file(path)
            return repr(
                [(name, x.shape, x.tolist()) for name, x in sorted(loaded.items())]
            ).encode()
    except (OSError, SafetensorError) as error:
        return f"cannot be read: {error}".encode()
    return path.read_bytes()


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders."""
    found = sorted(folder.rglob("*"))
    return [str(path.relative_to(folder)) for path in found if TEMPORARY.fullmatch(path.name)]


# ── faults ──────────────────────────────────────────────────────────────────────────────────────

_CHANGES = {
    *("open", "write", "truncate", "ftruncate", "fsync", "flock", "chmod"),
    *("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"),
}


class Moments:
    """Within the block, counts the calls that may change a file; calls `act` before number `at`.

    `names` are those of the calls, `changed` the numbers of those before which something in the
    folder `watched` was not as it was before the call that precedes: for a kill, the others are the
    same moment.
    """

    def __init__(
        self,
        at: int = -1,
        act: Callable[[], object] = lambda: None,
        watched: Path | None = None,
    ) -> None:
        self.at, self.act, self.watched = at, act, watched
        self.names: list[str] = []
        self.changed: list[int] = []
        self._before: object = None

    def __enter__(self) -> Moments:
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_call(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ not in _CHANGES:
            return
        owner = getattr(function, "__self__", None)
        if isinstance(owner, io.IOBase) or function.__module__ in ("posix", "_io", "io", "fcntl"):
            if self.watched is not None and (now := _state(self.watched)) != self._before:
                self._before = now
                self.changed.append(len(self.names))
            self.names.append(function.__name__)
            if len(self.names) - 1 == self.at:
                self.act()


def _state(folder: Path) -> object:
    """Names, sizes, times, modes and links of all that is in a folder."""
    found = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]
    return [
        (path, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in found
    ]


def spread(moments: Sequence[int], most: int = 50) -> list[int]:
    """At most `most` of these moments, the first and the last among them."""
    numbers = np.linspace(0, len(moments) - 1, min(len(moments), most))
    return [moments[round(number)] for number in numbers]


def child(call: Callable[[], object]) -> tuple[int, str]:
    """Run `call` in a forked process: its exit code, negative for a signal, and what it returned.

    The code is 3 after an exception.
    """
    return Child(call).wait()


class Child:
    """A forked process that runs `call`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.pid, self._answer = _fork(call)

    def wait(self) -> tuple[int, str]:
        """Its exit code, negative for a signal, and the text of what `call` returned."""
        with os.fdopen(self._answer, "rb") as stream:
            answer = stream.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), answer


def together(*calls: Callable[[], object]) -> list[str]:
    """Run `calls` at once, each in a process of its own; what they returned."""
    children = [Child(call) for call in calls]
    codes, answers = zip(*(one.wait() for one in children), strict=True)
    assert set(codes) == {0}, codes
    return list(answers)


def _fork(call: Callable[[], object]) -> tuple[int, int]:
    """The process's number, and a pipe with its answer."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child lacks
        pid = os.fork()
    if not pid:
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            answer = call()
            os.write(writing, str(answer).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    return pid, reading


def killed(write: Write, folder: Path, moment: int, number: int = signal.SIGKILL) -> int:
    """Write version 1, with a signal before this moment; the exit code."""

    return child(lambda: run_killed(write, folder, moment, number))[0]


def run_killed(write: Write, folder: Path, moment: int, number: int) -> Any:
    """Write version 1 in this process, which gets a signal before this moment."""
    with Moments(moment, lambda: os.kill(os.getpid(), number)):
        return write.save(folder, 1)


def said(call: Callable[[], Any]) -> tuple[int, str]:
    """Run a command in a forked process: the code that it returned, and its stderr."""

    def run() -> Any:
        with tempfile.TemporaryFile("w+") as stream:
            os.dup2(stream.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = call()
            stream.seek(0)
            return json.dumps([code, stream.read()])

    code, answer = child(run)
    return tuple(json.loads(answer)) if code == 0 else (code, "")


def killed_in_write(write: Write, folder: Path, size: int) -> int:
    """Write version 1; the system kills the process when a file grows beyond `size`."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        write.save(folder, 1)

    return child(run)[0]


def failed(write: Write, folder: Path, before: Callable[[], object]) -> tuple[int, str]:
    """Write version 1 after a call that takes the room for it: the exit code, and our error."""

    def run() -> str:
        before()
        try:
            write.save(folder, 1)
        except ImagePromptError as error:
            return str(error)
        return ""

    return child(run)


def limit_size(size: int) -> None:
    """No file may grow beyond `size`: writing more is an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class NotPermittedError(Exception):
    """Only root may mount."""


def mount_small_disk(folder: Path, size: int) -> None:
    """Move what is in `folder` to a disk of this size, which only this process and its children
    see."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, recursive = 0x20000, 1 << 18, 0x4000
    if libc.unshare(new_namespace):
        raise NotPermittedError
    libc.mount(b"none", b"/", None, private | recursive, None)
    aside = folder.with_name(f"{folder.name}-aside")
    shutil.copytree(folder, aside)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options):
        raise NotPermittedError
    shutil.copytree(aside, folder, dirs_exist_ok=True)


# ── every kind of file ──────────────────────────────────────────────────────────────────────────


@lru_cache
def adapter() -> ip.Adapter:
    from toy_training import denoiser, new_adapter

    return new_adapter(denoiser())


@contextlib.contextmanager
def weights_of(version: int) -> Iterator[ip.Adapter]:
    """The adapter, whose weights depend on the version."""
    made = adapter()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(
                torch.sin(torch.arange(parameter.numel()) + number + version).view_as(parameter)
            )
    yield made


def save_adapter(suffix: str) -> Callable[[Path, int], object]:
    def save(folder: Path, version: int) -> None:
        with weights_of(version) as made:
            made.save(folder / f"adapter{suffix}")

    return save


def save_large_pickle(folder: Path, version: int) -> None:
    """Larger than the buffers between torch and the file."""
    from imageprompt.checkpoint.torch_io import write_file

    write_file(folder / "large.bin", {"part.name": torch.full((30_000,), float(version))}, {})


def prepare_conversion(folder: Path) -> None:
    for version in (0, 1):
        with weights_of(version) as made:
            made.save(folder / f"source-{version}.safetensors")


def convert(suffix: str) -> Callable[[Path, int], object]:
    from imageprompt.checkpoint.convert import convert as run

    def save(folder: Path, version: int) -> None:
        run(folder / f"source-{version}.safetensors", folder / f"out{suffix}", overwrite=True)

    return save


def save_prompt(folder: Path, version: int) -> None:
    tokens = torch.full((1, 4, 16), float(version))
    ip.ImagePrompt(tokens, tokens, {"variant": "base"}).save(folder / "prompt.safetensors")


def prepare_styles(folder: Path) -> None:
    """Two style files, and a library with a style of another name."""
    made, features = adapter(), torch.linspace(-1, 1, 24)[None]
    styles = ip.Library(folder / "styles")
    for version in (0, 1):
        styles.add(f"v{version}", made, features=features + version)
        styles.export(f"v{version}", folder / f"style-{version}.safetensors")
    ip.Library(folder / "library").import_(folder / "style-0.safetensors", "other")


def import_style(folder: Path, version: int) -> None:
    library = ip.Library(folder / "library")
    library.import_(folder / f"style-{version}.safetensors", "style", replace=True)


def export_style(folder: Path, version: int) -> None:
    styles = ip.Library(folder / "styles")
    styles.export(f"v{version}", folder / "exported.safetensors", replace=True)


def mix_styles(folder: Path, version: int) -> None:
    library = ip.Library(folder / "styles")
    library.mix({"v0": 1, "v1": 1 + version}, "mixed", replace=True)


def remove_style(folder: Path, version: int) -> None:
    """Version 1 is without the style."""
    library = ip.Library(folder / "library")
    if version == 0:
        library.import_(folder / "style-1.safetensors", "style", replace=True)
    elif "style" in library.names():
        library.remove("style")


@lru_cache
def recipe() -> Any:
    from imageprompt.loading.recipe import AssetRecord, Recipe

    return Recipe(
        prompt="a star",
        negative_prompt="",
        seed=1,
        index=0,
        num_images=1,
        batch_size=1,
        steps=2,
        guidance_scale=7.5,
        width=16,
        height=16,
        dtype="float32",
        device="cpu",
        scheduler={"_class_name": "DDIMScheduler"},
        base=AssetRecord(name="base", hash="0" * 16),
        references=(),
        versions={"imageprompt": "0.1.0"},
    )


def noise(version: int) -> Image.Image:
    """A picture that does not compress."""
    rng = np.random.default_rng(version)
    return Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8))


def save_pictures(folder: Path, version: int) -> None:
    """Version 0 is one picture; version 1 adds two."""
    from imageprompt.generation import GenerationResult

    pictures = [noise(1), noise(2)] if version else [noise(0)]
    tokens = ip.ImagePrompt(torch.ones(1, 4, 16), None, {"variant": "base"})
    result = GenerationResult(pictures, [recipe()] * len(pictures), (tokens,))
    if version or not any(folder.glob("*.png")):
        result.save(folder)


def save_sheet(suffix: str) -> Callable[[Path, int], object]:
    from imageprompt.cli.library import _save_picture

    return lambda folder, version: _save_picture(noise(version), folder / f"sheet{suffix}")


@dataclass(frozen=True)
class Report:
    version: int

    def as_dict(self) -> dict[str, Any]:
        return {"version": self.version, "lines": ["a line of the report"] * 500}


def save_report(folder: Path, version: int) -> None:
    from imageprompt.cli.files import _write_report

    _write_report(Namespace(report=folder / "report.json"), Report(version))


def save_faces(folder: Path, version: int) -> None:
    from imageprompt.encoding.face_embeddings import save_embeddings
    from imageprompt.encoding.face_encoder import Face

    face = Face(
        index=0,
        box=(0, 0, 9, 9),
        score=1,
        points=np.zeros((5, 2), np.float32),
        embedding=torch.sin(torch.arange(512) + float(version)),
        picture=noise(0),
    )
    save_embeddings(folder / "faces.npy", [face, face])


def save_shard(folder: Path, version: int) -> None:
    """Version 1 adds an entry to the cache."""
    from imageprompt.training.cache.store import Store, address

    store, entry = Store(folder / "cache"), address(version)
    with store.writing("0"):
        if not store.has(np.array([entry]))[0]:
            store.write("0", {entry: {"x": torch.full((2, 300), float(version))}})


def save_unit(folder: Path, version: int) -> None:
    from imageprompt.training.data.scan import ScanResult, _write

    columns = {"size": np.full((100, 2), version, np.int32)}
    _write(folder / "scan" / "000000000.safetensors", ScanResult(columns, {}))


@lru_cache
def training(folder: Path) -> Any:
    from toy_training import trainer

    return trainer(folder)


def save_checkpoint(folder: Path, version: int) -> None:
    """Version 0 has the steps 1 and 2, version 1 has 2 and 3."""
    from imageprompt.training.loop import checkpoints

    run = training(folder.parent / "run")
    for step in (1, 2) if version == 0 else (3,):
        with torch.no_grad():
            for parameter in run.named.values():
                parameter.fill_(step)
        metadata = {"config": {}, "data": "", "processes": 1, "position": step}
        checkpoints.write(folder / "checkpoints", step, run._state(), metadata, 2)


def save_metrics(folder: Path, version: int) -> None:
    """Version 1 adds a line."""
    path = folder / "metrics.jsonl"
    if version == 0:
        path.write_text('{"step": 1, "loss": 0.5}\n')
    elif path.read_text().count("\n") < 2:
        append_line(path, '{"step": 2, "loss": 0.25}')


def start_metrics(folder: Path, version: int) -> None:
    """Version 1 is without the lines of steps that a resumed run takes again."""
    from imageprompt.training.loop.logging import Metrics

    path = folder / "metrics.jsonl"
    if version == 0:
        path.write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(200)))
    else:
        Metrics(path, None).start(150, {})


def draw_data(folder: Path, version: int) -> None:
    """Version 0 has two training pictures, version 1 four."""
    from imageprompt.demo import datasets

    datasets.draw_folder(folder / "data", 2 + 2 * version)


WRITES = (
    Write("adapter .safetensors", save_adapter(".safetensors")),
    Write("adapter .bin", save_adapter(".bin")),
    Write("large .bin", save_large_pickle),
    Write("converted .safetensors", convert(".safetensors"), prepare_conversion),
    Write("converted .bin", convert(".bin"), prepare_conversion),
    Write("image prompt", save_prompt),
    Write("style imported", import_style, prepare_styles),
    Write("style exported", export_style, prepare_styles),
    Write("style mixed", mix_styles, prepare_styles),
    Write("style removed", remove_style, prepare_styles),
    Write("pictures with recipes", save_pictures),
    Write("contact sheet .png", save_sheet(".png")),
    Write("contact sheet .jpg", save_sheet(".jpg")),
    Write("report", save_report),
    Write("face embeddings", save_faces),
    Write("cache shard", save_shard),
    Write("scan of the data", save_unit),
    Write("checkpoint", save_checkpoint),
    Write("line of metrics", save_metrics, appends=True),
    Write("metrics of a resumed run", start_metrics),
)


@dataclass
class Scene:
    """A write with its folder in version 0, the views of both versions, the calls, and the moments
    of them before which something had changed."""

    write: Write
    folder: Path
    before: View = field(default_factory=dict)
    after: View = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, write: Write, place: Path, start: Path | None = None) -> Scene:
        """Everything is written once before the moments are counted: what is imported is.

        `start` is the folder before version 0, instead of an empty one.
        """
        folder = place / "start"
        if start is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(start, folder)
        write.prepare(folder)
        write.save(folder, 0)
        scene = cls(write, folder, view(folder))
        write.save(scene.copy("warm"), 1)
        complete = scene.copy("complete")
        with Moments(watched=complete) as moments:
            write.save(complete, 1)
        scene.after, scene.calls = view(complete), moments.names
        scene.moments = [*moments.changed, len(moments.names) - 1]
        assert scene.after != scene.before
        assert leftovers(complete) == []
        return scene

    def copy(self, name: object = "here") -> Path:
        """A fresh folder in version 0."""
        target = self.folder.with_name(str(name))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder, target)
        return target

    @property
    def size(self) -> int:
        """Bytes of the largest file that version 1 brings."""
        complete = self.folder.with_name("complete")
        new = [path for path, hash_ in self.after.items() if self.before.get(path) != hash_]
        return max((complete.joinpath(path).stat().st_size for path in new), default=0)

    def problems(self, folder: Path) -> list[str]:
        """What a reader could miss or misread: every file is an old or a new one, whole."""
        seen, known = view(folder), {*self.before.values(), *self.after.values()}
        half = [
            f"{path} is neither"
            for path, hash_ in seen.items()
            if hash_ not in known and not self._is_part(folder, path)
        ]
        lost = [f"{path} is gone" for path in self.before.keys() & self.after.keys() - seen.keys()]
        return half + lost

    def _is_part(self, folder: Path, path: str) -> bool:
        """Was it only appended to, and has all that it had?"""
        if not self.write.appends:
            return False
        before = self.folder.joinpath(path).read_bytes()
        return folder.joinpath(path).read_bytes().startswith(before)

    def problems_after_next(self, folder: Path) -> list[str]:
        """The same, after the next one has written there: it has swept, too."""
        self.write.save(folder, 1)
        lost = [f"{path} is missing" for path in self.after.keys() - view(folder).keys()]
        return self.problems(folder) + lost + leftovers(folder)
