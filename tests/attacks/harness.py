"""Runs the rows of the table in child processes, with limits, a meter and a watch.

A child makes the attack in a folder of its own, meets it, and reports. Rows may share a child, one
after the other; a row that does not hold there is run again alone, and that counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import limits
from .attack import SECRET, Attack, Door, outside
from .children import HERE, in_child, load, loaded_since, own_stdout, print_into, serve
from .watch import Watch, plant

Row = tuple[Door, Attack]
TOGETHER = 24
"""Rows that share a child, unless each is to have its own."""
MAX_TEXT = 20_000
"""Characters of what a row says that are looked at and kept."""
_LARGE = 40 * 2**20
"""A row that needed more ends its child: memory that the next one would use again hides its use."""


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
    door: str = "",
    attack: str = "",
    modules: str = "at_*",
    *,
    together: int = TOGETHER,
    wall: float = limits.WALL_SECONDS,
    most: int = 10**9,
) -> Iterator[Result]:
    """Run the rows whose door and attack have these words in their names, in a server process.

    `together` rows share a child; a row that waits longer than `wall` seconds hangs. Of each door
    `most` rows are run, spread over all of them.
    """
    numbers = (str(together), str(wall), str(most))
    for line in serve("attacks.harness", modules, door, attack, *numbers):
        yield Result(**json.loads(line))


def spread(attacks: Sequence[Attack], most: int) -> list[Attack]:
    """At most so many of the rows of a door, from the middles of equal parts of the list."""
    count = min(most, len(attacks))
    return [attacks[(2 * i + 1) * len(attacks) // (2 * count)] for i in range(count)]


# ── the server ──────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Run rows and print a line of JSON for each result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules")
    parser.add_argument("door")
    parser.add_argument("attack")
    parser.add_argument("together", type=int)
    parser.add_argument("wall", type=float)
    parser.add_argument("most", type=int)
    options = parser.parse_args()
    results = own_stdout()
    rows = []
    for door in table(options.modules):
        attacks = [one for one in door.attacks if options.attack in one.name]
        if options.door in door.name:
            rows += [(door, attack) for attack in spread(attacks, options.most)]
    for result in run_rows(rows, options.together, options.wall):
        print(json.dumps(asdict(result)), file=results, flush=True)


def run_rows(rows: Sequence[Row], together: int, wall: float) -> Iterator[Result]:
    """A result for each row, in order."""
    start = 0
    while start < len(rows):
        batch = rows[start : start + together]
        load([name for door, _ in batch for name in door.imports])
        found = _run(batch, wall) if together > 1 else []
        load([name for result in found for name in result.modules])
        for (door, attack), result in zip(batch, found, strict=False):
            yield run_alone(door, attack, wall) if result.problems else result
        if len(found) < len(batch) and (together == 1 or not _was_large(found)):
            yield run_alone(*batch[len(found)], wall)
            start += 1
        start += len(found)


def run_alone(
    door: Door, attack: Attack, wall: float, prepare: Callable[[], None] = lambda: None
) -> Result:
    """Run a row in a child of its own; again, if it had to load modules or was only slow.

    CPU time varies on a shared machine, so a slow row has three tries.
    `prepare` is called in the child, after the attack is made.
    """
    for _ in range(3):
        result = _run([(door, attack)], wall, prepare)[0]
        only_slow = bool(result.problems) and all(map(_is_slow, result.problems))
        if not load(result.modules) and not only_slow:
            break
    result.modules = []
    return result


def _is_slow(problem: str) -> bool:
    return problem.startswith("took ") and problem.endswith(" s of CPU")


def _was_large(found: list[Result]) -> bool:
    """Did a batch end early because its last row was large?"""
    return bool(found) and found[-1].peak > _LARGE


def _run(
    rows: Sequence[Row], wall: float, prepare: Callable[[], None] = lambda: None
) -> list[Result]:
    """Run rows in one child; those that it reported, and for a single one always a result."""
    folder = Path(tempfile.mkdtemp(prefix="rows-"))
    start = time.monotonic()
    try:
        lines, end = in_child(_Rows(rows, folder, prepare).run, folder, wall)
    finally:
        _remove(folder)
    found = [Result(**json.loads(line)) for line in lines]
    if not found and len(rows) == 1:
        ((door, attack),) = rows
        found = [Result(door.name, attack.name, problems=[end.why], cpu=end.cpu)]
    for result in found:
        result.wall = result.wall or time.monotonic() - start
    return found


def _remove(folder: Path) -> None:
    """Delete a folder, whatever the modes in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


# ── rows, in their child ────────────────────────────────────────────────────────────────────────


@dataclass
class _Rows:
    """Rows that share a child process."""

    rows: Sequence[Row]
    folder: Path
    prepare: Callable[[], None]

    def run(self, send: Callable[[str], None]) -> None:
        """Send a line of JSON for each row."""
        watch = Watch()
        limits.limit_memory()
        for number, (door, attack) in enumerate(self.rows):
            with _restored():
                report = self._row(door, attack, self.folder / str(number), watch)
            send(json.dumps({"door": door.name, "attack": attack.name, **report}))
            if report.get("peak", 0) > _LARGE:
                return

    def _row(self, door: Door, attack: Attack, folder: Path, watch: Watch) -> dict[str, Any]:
        start, known = time.monotonic(), len(sys.modules)
        places = {name: folder / name for name in ("it", "out", "tmp", "here")}
        folder.mkdir()
        for place in places.values():
            place.mkdir()
        plant(outside(places["it"]))
        os.chdir(places["here"])
        tempfile.tempdir = str(places["tmp"])
        print_into(folder)
        try:
            made = attack.make(places["it"])
            self.prepare()
        except BaseException as error:
            problem = f"the attack could not be made: {named(error)}"
            trace = traceback.format_exc()
            return {"problems": [problem], "trace": trace}
        watch.guard((folder, Path(os.environ["HOME"])), outside(places["it"]))
        meter = limits.Meter()
        with warnings.catch_warnings(record=True) as caught, limits.inside():
            warnings.simplefilter("always")
            report = use(door, lambda: door.use(made, places["out"]), watch)
        report |= {"cpu": meter.cpu(), "peak": meter.peak()}
        said = Said.of(report.pop("returned"), report["message"], caught)
        problems = [
            *report["problems"],
            *watch.problems(),
            *limits.costs(report["cpu"], report["peak"]),
            *(judge(attack, report["outcome"], said) if not report["problems"] else ()),
            *said.problems(),
        ]
        report["message"] = (report["message"] or said.errors.strip() or said.all.strip())[:500]
        report["problems"] = list(dict.fromkeys(problems))
        report["modules"] = loaded_since(known, folder)
        report["wall"] = time.monotonic() - start
        return report


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """What a row may change in its process is as before after it."""
    environment, streams = dict(os.environ), (sys.stdin, sys.stdout, sys.stderr)
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        if environment != os.environ:
            os.environ.clear()
            os.environ.update(environment)
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, handler in signals.items():
            signal.signal(number, handler)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, files)


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
        outcomes = {None: "read", 0: "read", 1: "quarantined", 2: "refused"}
        outcome = outcomes.get(stopped.code, "failed")
        if outcome == "failed":
            problems.append(f"exit code {stopped.code!r}")
    except BaseException as error:
        problems.append(named(error))
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
        said = {"returned": self.returned, "message": self.message}
        said |= {"stdout": self.output, "stderr": self.errors}
        for name, text in (*said.items(), *(("warning", one) for one in self.warned)):
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


def named(error: BaseException) -> str:
    """Class, message and place of an error that is no typed one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "imageprompt" in frame.filename] or frames
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {str(error)[:200]!r}{place}"


def _text(value: object) -> str:
    """A string as it is; anything else by its repr, in which nothing is raw."""
    return (value if isinstance(value, str) else "" if value is None else repr(value))[:MAX_TEXT]


def _stream(number: int) -> str:
    """What this process has printed on stdout or stderr."""
    with contextlib.suppress(Exception):
        (sys.stdout if number == 1 else sys.stderr).flush()
    with contextlib.suppress(OSError):  # closed, by a row about that
        size = min(os.lseek(number, 0, os.SEEK_END), MAX_TEXT)
        return os.pread(number, size, 0).decode(errors="surrogateescape")
    return ""
