"""Every hostile or broken file: one line that says what it is; nothing run, nothing written.

Each kind is given to `imageprompt inspect --deep` and `imageprompt convert` in a process of its
own, watched by an audit hook: at most 2 s and 200 MB. The processes are forked from one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forge import adapter_shapes, header, torch_zip, whole, write
from hostile import CANARY, HOSTILE
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.torch_io import read_file
from imageprompt.core.errors import AdapterFileError, ImagePromptError, NotFoundError

SECONDS, MEGABYTES = 2.0, 200.0
STRUCTURE = [name for name, kind in HOSTILE.items() if not kind.opens]
CONTENT = [name for name, kind in HOSTILE.items() if kind.opens and kind.says]

# What a hostile file could make a process do. The hook itself cannot be taken away again, so it
# lives in processes for this purpose only. A line on stdin has commands, and the files for the
# findings and for the two streams; the answer is the exit code of their process.
WATCHED = """
import json, os, sys, time
import imageprompt.checkpoint.convert, imageprompt.checkpoint.inspect, imageprompt.cli.files
from imageprompt import cli
events = []
FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill",
    "os.remove", "os.rename", "os.link", "os.mkdir", "os.chmod", "os.symlink", "os.truncate",
    "subprocess.Popen", "pickle.find_class", "shutil.", "socket.connect", "socket.bind",
)
def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    writes = writes and args[0] != os.devnull
    if writes or event.startswith(FORBIDDEN):
        events.append(f"{event} {args}"[:200])
def work(commands, result, *streams):
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.addaudithook(watch)
    codes = [cli.main(command) for command in commands]
    sys.stdout.flush()
    seen, seconds = list(events), time.process_time()
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    torch = "torch" in sys.modules
    with open(result, "w") as file:
        peak = peak / 1024
        found = {"codes": codes, "events": seen, "peak": peak, "torch": torch, "seconds": seconds}
        json.dump(found, file)
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            work(*json.loads(line))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Ran:
    """What one process did; `seconds` are its own, of the processor: others may be busy, too."""

    codes: list[int]
    events: list[str]
    peak: float
    torch: bool
    seconds: float
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run commands under watch in one process; it writes its findings to `result`."""
    server = subprocess.Popen(
        [sys.executable, "-c", WATCHED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    asked, answers = server.stdin, server.stdout

    def ran(result: Path, *commands: list[str]) -> Ran:
        result.unlink(missing_ok=True)
        out, err = (result.with_suffix(suffix) for suffix in (".out", ".err"))
        asked.write(json.dumps([commands, *map(str, (result, out, err))]) + "\n")
        asked.flush()
        assert select.select([answers], [], [], 300)[0], "it hangs"
        assert answers.readline() == "0\n", err.read_text()
        return Ran(**json.loads(result.read_text()), out=out.read_text(), err=err.read_text())

    yield ran
    server.kill()
    server.communicate()


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Everything in a folder, with size and time."""
    found = ((path, path.lstat()) for path in sorted(folder.rglob("*")))
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in found]


@contextlib.contextmanager
def no_privileges() -> Iterator[None]:
    """As a user without rights: for root no file is unreadable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", STRUCTURE)
def test_what_cannot_be_opened_says_what_it_is(name: str, tmp_path: Path) -> None:
    path = HOSTILE[name].make(tmp_path)
    before = listing(tmp_path)
    start = time.process_time()
    with (
        no_privileges() if name == "unreadable" else contextlib.nullcontext(),
        pytest.raises((AdapterFileError, NotFoundError)) as refused,
    ):
        open_source(path)
    assert time.process_time() - start < SECONDS
    message = str(refused.value)
    assert HOSTILE[name].says in message
    assert message.isprintable()
    assert len(message) < 600
    assert refused.value.hint
    assert listing(tmp_path) == before


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", [name for name in STRUCTURE if name != "unreadable"])
def test_inspect_and_convert_of_hostile_files(name: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "in").mkdir()
    path = HOSTILE[name].make(tmp_path / "in")
    before = listing(tmp_path / "in")
    ran = run(
        tmp_path / "result.json",
        ["inspect", "--deep", str(path)],
        ["convert", str(path), str(tmp_path / "in" / "out.safetensors")],
    )
    assert ran.codes == [2, 2]
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert len(lines) == 2
    assert all(HOSTILE[name].says in line for line in lines)
    assert ran.events == []
    assert not ran.torch
    assert ran.peak < MEGABYTES
    assert ran.seconds < SECONDS
    assert listing(tmp_path / "in") == before
    assert not (tmp_path / "in" / CANARY).exists()


@pytest.mark.parametrize("name", CONTENT)
def test_whole_files_of_broken_content(name: str, tmp_path: Path, run: Run) -> None:
    """They are opened; inspection names the fault, conversion writes nothing."""
    (tmp_path / "in").mkdir()
    path = HOSTILE[name].make(tmp_path / "in")
    before = listing(tmp_path / "in")
    inspected = run(tmp_path / "result.json", ["inspect", "--deep", "--json", str(path)])
    assert inspected.codes == [1]
    assert HOSTILE[name].says in [one["code"] for one in json.loads(inspected.out)["problems"]]
    converted = run(tmp_path / "result.json", ["convert", str(path), str(path.with_suffix(".bin"))])
    assert converted.codes == [2]
    assert len(converted.err.splitlines()) == 1
    for ran in (inspected, converted):
        assert ran.peak < MEGABYTES
        assert ran.seconds < SECONDS
    assert inspected.events == []
    assert listing(tmp_path / "in") == before


def test_missing_layers_are_listed_up_to_five(tmp_path: Path, run: Run) -> None:
    path = HOSTILE["missing layers"].make(tmp_path)
    ran = run(tmp_path / "result.json", ["inspect", str(path)])
    (line,) = [line for line in ran.out.splitlines() if ".to_k_ip.weight" in line]
    assert line.split()[:2] == ["missing", "7"]
    assert line.count(".to_k_ip.weight") == 5


def test_mixed_dtypes_are_reported_and_not_a_fault(tmp_path: Path, run: Run) -> None:
    path = HOSTILE["mixed dtypes"].make(tmp_path)
    ran = run(tmp_path / "result.json", ["inspect", "--json", str(path)])
    assert ran.codes == [0]
    report = json.loads(ran.out)
    assert report["dtypes"] == {"image_proj": ["float32"], "ip_adapter": ["float16"]}


def test_a_wrong_base_or_encoder_names_the_likely_one(tmp_path: Path, run: Run) -> None:
    path = whole(tmp_path / "file.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "clip_vision_model",
                "hidden_size": 768,
                "patch_size": 14,
                "projection_dim": 768,
            }
        )
    )
    base = run(tmp_path / "result.json", ["validate", str(path), "--base", "sdxl"])
    encoder = run(tmp_path / "result.json", ["validate", str(path), "--encoder", str(tmp_path)])
    assert base.codes == encoder.codes == [1]
    assert "sd15" in base.out
    assert "1024" in encoder.out
    assert "768" in encoder.out


def test_a_file_unlike_its_name_is_read_by_its_content(tmp_path: Path) -> None:
    """A torch file called .safetensors, a safetensors file called .bin."""
    pickled = torch_zip(tmp_path / "a.safetensors", b"}X\1\0\0\0aNs.", {})
    with pytest.raises(AdapterFileError, match="no tensors, only a"):
        open_source(pickled)
    assert open_source(whole(tmp_path / "b.bin")).container == "safetensors"


@pytest.mark.parametrize("low", [0x7B, 0x80, 0x50, 0x00, 0x28])
def test_any_length_of_a_header(low: int, tmp_path: Path) -> None:
    """The first byte of a safetensors file is a length, not the magic number of a pickle or zip."""
    for high in (0x4B, 0x02):  # with the first one, a length of 0x4B50 begins with "PK"
        text = json.dumps(header({"a": (1,)})).encode()
        text = text.ljust(high * 256 + low)
        assert open_source(write(tmp_path / "file", text, 2)).container == "safetensors"


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    """Nothing is mapped: a shorter or a new file is an error, not a signal or a mixture."""
    path = write(tmp_path / "file.safetensors", header(adapter_shapes((8,), 16, 8)))
    weight = open_source(path).tensors["image_proj.proj.weight"]
    assert len(weight.read()) == weight.nbytes
    content = path.read_bytes()
    os.truncate(path, 100)
    with pytest.raises(AdapterFileError, match="changed after it was opened"):
        weight.read()
    path.unlink()
    with pytest.raises(AdapterFileError, match="No such file"):
        weight.read()
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match="changed after it was opened"):
        weight.read()


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", header(adapter_shapes((8,), 16, 8)))
    chunks = open_source(path).tensors["image_proj.proj.weight"].chunks(16)
    next(chunks)
    os.truncate(path, 0)
    with pytest.raises(AdapterFileError, match="truncated while it was read"):
        list(chunks)


@pytest.mark.parametrize("name", ["hostile pickle, protocol 2", "truncated", "pipe", "folder"])
def test_loading_shares_the_checks(name: str, tmp_path: Path) -> None:
    """`Adapter.load` and `ImagePrompt.load` read files through `read_file`."""
    path = HOSTILE[name].make(tmp_path)
    with pytest.raises(ImagePromptError, match=HOSTILE[name].says):
        read_file(path)
    assert not (tmp_path / CANARY).exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    """The hostile pickles are hostile: Python's own reader would run them."""
    import pickle

    path: Any = HOSTILE["hostile pickle, protocol 2"].make(tmp_path)
    pickle.loads(path.read_bytes())
    assert (tmp_path / CANARY).exists()


def test_the_watch_sees(tmp_path: Path, run: Run) -> None:
    """The audit hook reports what a written file does."""
    path = whole(tmp_path / "file.safetensors")
    ran = run(tmp_path / "result.json", ["convert", str(path), str(tmp_path / "out.safetensors")])
    assert any(event.startswith(("os.rename", "os.link")) for event in ran.events)
