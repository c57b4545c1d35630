"""Runs the rows of the table, each in a child process of its own.

A server process loads the modules of the doors once, and forks for each row. The child makes the
attack in a folder of its own, takes its limits, turns the watch on, meets the attack, and reports.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import limits
from .attack import SECRET, Attack, Door, outside
from .watch import Watch, plant

HERE = Path(__file__).resolve().parent
MAX_TEXT = 20_000
"""Characters of what a row says that are looked at and kept."""

_PATIENCE = 60.0
"""Seconds beyond its time that a child may compute, where others use the machine."""


@dataclass
class Result:
    """What came of a row; `problems` is empty if it held."""

    door: str
    attack: str
    outcome: str = "failed"
    message: str = ""
    problems: list[str] = field(default_factory=list)
    cpu: float = 0.0
    peak: int = 0
    wall: float = 0.0
    trace: str = ""
    modules: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """For the reader of a failure."""
        return f"{self.door} | {self.attack}: {'; '.join(self.problems)}"


# ── the table ───────────────────────────────────────────────────────────────────────────────────


def table(modules: str = "at_*") -> list[Door]:
    """The doors of the modules beside this one whose names match."""
    doors: list[Door] = []
    for path in sorted(HERE.glob(f"{modules}.py")):
        doors += importlib.import_module(f"{__package__}.{path.stem}").DOORS
    return doors


def run(
    door: str = "", attack: str = "", modules: str = "at_*", wall: float = limits.WALL_SECONDS
) -> Iterator[Result]:
    """Run the rows whose door and attack have these words in their names, in a server process.

    A row that takes longer than `wall` seconds hangs.
    """
    for line in serve("attacks.harness", door, attack, modules, str(wall)):
        yield Result(**json.loads(line))


def serve(module: str, *arguments: str) -> Iterator[str]:
    """The lines that a module prints, run as a process with one thread and no network."""
    with tempfile.TemporaryDirectory(prefix="attacks-") as place:
        Path(place, "home").mkdir()
        server = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(place),
        )
        assert server.stdout is not None
        try:
            yield from server.stdout
        finally:
            server.stdout.close()
            if server.poll() is None and sys.exc_info()[0] is not None:
                server.terminate()
            code = server.wait()
    if code:
        raise RuntimeError(f"the server of {module} ended with {code}")


def _environment(place: str) -> dict[str, str]:
    paths = (HERE.parents[1], HERE.parent, HERE.parent / "support")
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        **dict.fromkeys(threads, "1"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": place,
        "HOME": f"{place}/home",
        "XDG_CACHE_HOME": f"{place}/home/.cache",
        "HF_HOME": f"{place}/home/huggingface",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }


# ── the server ──────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Run rows and print a line of JSON for each result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("door")
    parser.add_argument("attack")
    parser.add_argument("modules")
    parser.add_argument("wall", type=float)
    options = parser.parse_args()
    results = own_stdout()
    for door in table(options.modules):
        if options.door not in door.name:
            continue
        for name in door.imports:
            importlib.import_module(name)
        for attack in door.attacks:
            if options.attack in attack.name:
                print(
                    json.dumps(asdict(run_warm(door, attack, options.wall))),
                    file=results,
                    flush=True,
                )


def own_stdout() -> Any:
    """This process' stdout, for results alone: what others print goes to stderr."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    return results


def run_warm(door: Door, attack: Attack, wall: float) -> Result:
    """Run a row; again, if it had to load modules."""
    for _ in range(3):
        result = run_row(door, attack, wall)
        if not load(result.modules):
            break
    result.modules = []
    return result


def load(modules: list[str]) -> bool:
    """Load what a child had to load; is there anything new?"""
    known = len(sys.modules)
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return len(sys.modules) > known


def run_row(door: Door, attack: Attack, wall: float) -> Result:
    """Run one row in a child process."""
    result = Result(door.name, attack.name)
    folder = Path(tempfile.mkdtemp(prefix="row-"))
    try:
        start = time.monotonic()
        answer, died = in_child(lambda send: _child(door, attack, folder, send), folder, wall)
        result.wall = time.monotonic() - start
        if answer is None:
            result.problems, result.cpu = [died.why], died.cpu
        else:
            vars(result).update(json.loads(answer))
    finally:
        _remove(folder)
    return result


# ── a child process ─────────────────────────────────────────────────────────────────────────────


@dataclass
class End:
    """How a child process ended."""

    why: str
    cpu: float


def in_child(
    work: Callable[[Callable[[str], None]], None], folder: Path, wall: float
) -> tuple[str | None, End]:
    """Fork, do the work in the child, and return what it sent last, or None if it died before.

    The child is stopped after `wall` seconds, with everything that it started.
    """
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        raise RuntimeError(f"no fork is safe beside {threads}: {threading.enumerate()}")
    gc.collect()
    gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _run_child(work, folder, write)
    os.close(write)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    answer, late = _receive(read, child, wall)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    _, code, usage = os.wait4(child, 0)
    cpu = usage.ru_utime + usage.ru_stime
    why = f"hung: killed after {wall:g} s" if late else _why(code)
    return answer, End(f"{why} ({cpu:.1f} s of CPU)", cpu)


def _run_child(work: Callable[[Callable[[str], None]], None], folder: Path, write: int) -> None:
    """In the child: all that it prints goes to files of the row; it never returns."""

    def send(text: str) -> None:
        data = f"{text}\n".encode()
        while data:
            data = data[os.write(write, data) :]

    code = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(folder / f"stream-{stream}", os.O_RDWR | os.O_CREAT), stream)
        work(send)
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _receive(read: int, child: int, wall: float) -> tuple[str | None, bool]:
    """The last whole line of a pipe, and whether the child waited when its time was up.

    A child that is computing has a limit of CPU time instead: the machine may be busy.
    """
    data, until, late = b"", time.monotonic() + wall, False
    while True:
        ready, _, _ = select.select([read], [], [], max(0.1, until - time.monotonic()))
        if not ready:
            if late := not _is_computing(child) or time.monotonic() > until + _PATIENCE:
                break
            continue
        part = os.read(read, 1 << 16)
        data += part
        if not part or data.endswith(b"\n"):
            break
    os.close(read)
    lines = data.split(b"\n")[:-1]
    return (lines[-1].decode() if lines else None), late


def _is_computing(child: int) -> bool:
    state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "R"


def _why(code: int) -> str:
    if os.WIFSIGNALED(code):
        name = signal.Signals(os.WTERMSIG(code)).name
        if name in ("SIGXCPU", "SIGPROF"):
            return f"took more than {limits.CPU_SECONDS} s of CPU"
        return f"died by {name}"
    return f"ended with {os.WEXITSTATUS(code)}"


# ── a row, in its child ─────────────────────────────────────────────────────────────────────────


def _child(door: Door, attack: Attack, folder: Path, send: Callable[[str], None]) -> None:
    known = set(sys.modules)
    places = {name: folder / name for name in ("it", "out", "tmp", "here")}
    for place in places.values():
        place.mkdir()
    plant(outside(places["it"]))
    os.chdir(places["here"])
    tempfile.tempdir = str(places["tmp"])
    try:
        made = attack.make(places["it"])
    except BaseException as error:
        problem = f"the attack could not be made: {_named(error)}"
        send(json.dumps({"problems": [problem], "trace": traceback.format_exc()}))
        return
    watch = Watch((folder, Path(os.environ["HOME"])), outside(places["it"]))
    meter = limits.Meter()
    limits.limit_memory()
    limits.limit_cpu()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = use(door, lambda: door.use(made, places["out"]), watch)
    report |= {"cpu": meter.cpu(), "peak": meter.peak()}
    said = Said.of(report.pop("returned"), report["message"], caught)
    problems = [
        *report["problems"],
        *watch.problems(),
        *costs(report["cpu"], report["peak"]),
        *(judge(attack, report["outcome"], said) if not report["problems"] else ()),
        *said.problems(),
    ]
    report["message"] = report["message"] or said.errors.strip() or said.all.strip()
    report["message"] = report["message"][:500]
    report["problems"] = list(dict.fromkeys(problems))
    report["modules"] = sorted(_loaded(known, folder))
    send(json.dumps(report))


def use(door: Door, meet: Callable[[], object], watch: Watch) -> dict[str, Any]:
    """Meet the attack with the watch on: outcome, message, problems, what it returned."""
    from imageprompt.core.errors import ImagePromptError

    outcome, message, returned, problems, trace = "failed", "", "", [], ""
    watch.on = True
    try:
        returned = _text(meet())
        outcome = "read"
    except (ImagePromptError, *door.errors) as error:
        outcome, message = "refused", str(error)
    except SystemExit as stopped:
        outcome = {None: "read", 0: "read", 1: "quarantined", 2: "refused"}.get(
            stopped.code, "failed"
        )
        if outcome == "failed":
            problems.append(f"exit code {stopped.code!r}")
    except BaseException as error:
        problems.append(_named(error))
        trace = "".join(traceback.format_exception(error, limit=-12))[-4000:]
    finally:
        watch.on = False
    return {
        "outcome": outcome,
        "message": message,
        "returned": returned,
        "problems": problems,
        "trace": trace,
    }


@dataclass
class Said:
    """All that a row has said: to its caller, in warnings, and on its two streams."""

    returned: str
    message: str
    warned: list[str]
    output: str
    errors: str

    @classmethod
    def of(cls, returned: str, message: str, caught: list[warnings.WarningMessage]) -> Said:
        output, errors = map(_stream, (1, 2))
        return cls(returned, message, [str(one.message) for one in caught], output, errors)

    @property
    def all(self) -> str:
        return "\n".join((self.message, self.errors, *self.warned, self.returned, self.output))

    def problems(self) -> list[str]:
        """Nothing but lines that a terminal shows; an error is one; the secret is nowhere."""
        found = []
        named = {
            "returned": self.returned,
            "message": self.message,
            "stdout": self.output,
            "stderr": self.errors,
        }
        for name, text in named.items() | {("warning", one) for one in self.warned}:
            raw = next((line for line in text.split("\n") if not line.isprintable()), None)
            if raw is not None:
                found.append(f"{name} is not printable: {raw[:200]!r}")
            if "Traceback (most recent call last)" in text:
                found.append(f"{name} has a traceback")
        if "\n" in self.message:
            found.append(f"a message of several lines: {self.message[:200]!r}")
        if SECRET in self.all:
            found.append("outside: the secret is in what it says")
        return found


def judge(attack: Attack, outcome: str, said: Said) -> list[str]:
    """Is this what must come of the attack?"""
    problems = []
    says = attack.says.casefold() in said.all.casefold()
    if outcome == "read" and attack.outcome == "quarantined" and attack.says and says:
        outcome = "quarantined"
    if outcome != attack.outcome:
        problems.append(f"{outcome}, not {attack.outcome}: {said.all.strip()[:300]!r}")
    elif not says:
        problems.append(f"does not say {attack.says!r}: {said.all.strip()[:300]!r}")
    elif outcome == "refused" and not said.message:
        lines = [one for one in said.errors.splitlines() if ": warning: " not in one]
        if len(lines) != 1:
            problems.append(f"{len(lines)} lines on stderr: {said.errors[:300]!r}")
    return problems


def costs(cpu: float, peak: int) -> list[str]:
    """What a row may not cost."""
    found = []
    if cpu > limits.CPU_SECONDS:
        found.append(f"took {cpu:.1f} s of CPU")
    if peak > limits.MEMORY:
        found.append(f"needed {peak / 2**20:.0f} MB")
    return found


def _text(value: object) -> str:
    """A string as it is; anything else by its repr, in which nothing is raw."""
    return (value if isinstance(value, str) else "" if value is None else repr(value))[:MAX_TEXT]


def _named(error: BaseException) -> str:
    """Class, message and place of an error that is no typed one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "imageprompt" in f.filename] or frames
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {str(error)[:200]!r}{place}"


def _stream(number: int) -> str:
    """What this process has printed on stdout or stderr."""
    with contextlib.suppress(Exception):
        (sys.stdout if number == 1 else sys.stderr).flush()
    size = min(os.lseek(number, 0, os.SEEK_END), MAX_TEXT)
    return os.pread(number, size, 0).decode(errors="surrogateescape")


def _loaded(known: set[str], folder: Path) -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None) or ""
        if name not in known and not place.startswith(str(folder)):
            yield name


def _remove(folder: Path) -> None:
    """Delete the folder of a row, whatever its modes."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
