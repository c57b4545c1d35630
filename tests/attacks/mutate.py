"""Random changes of sound files: every format, thousands a minute, each of them repeatable.

A mutant is determined by the seed, the format and its number. A server process makes the sound
files, and forks a child for a few dozen mutants at a time; a mutant that kills its child is named,
and the next child continues after it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from . import limits
from .attack import outside
from .children import in_child, load, loaded_since, own_stdout, serve
from .harness import named
from .legitimate import FORMATS, Files, Format, files_in, write_files
from .watch import Watch, plant

BATCH = 200
MAX_MUTANT = 2**21
"""Bytes; what is larger is cut."""

# ── bytes ───────────────────────────────────────────────────────────────────────────────────────

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
NUMBERS += (2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
DIGITS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 20,
    b"9" * 400,
    b"-0",
    b"0x7fffffff",
    b"1_0",
    b"1:9",
)
TOKENS = (
    b"\0", b"\x1b[2J", b"\xe2\x80\xae", b"\xc2\x9b", b"\xed\xa0\x80", b"\xff\xfe", b"\n", b"\r\n",
    b"../../outside/secret.txt", b"/dev/zero", b"/etc/passwd", b"file:///etc/passwd", b"~nosuch/x",
    b"[" * 200, b'{"a":' * 200, b"{000..999}", b"{a,b}" * 40, b"&a [*a]", b"<<: *a", b"*a", b"? ",
    b"!!python/object/apply:os.system [id]", b"cos\nsystem\n(S'id'\ntR.", b"PK\3\4", b"\x80\x02",
    b"lPx", b"__class__", b"__metadata__", b"storage", b'"\\ud800"', b"\\u0000",
)  # fmt: skip

Change = Callable[[Random, bytearray], None]


def _place(rng: Random, data: bytearray, length: int = 1) -> slice:
    """More often near the beginning, where formats keep what they say about themselves."""
    share = rng.random() ** rng.choice((1, 1, 3))
    start = int(share * max(len(data) - length + 1, 0))
    return slice(start, start + length)


def _length(rng: Random) -> int:
    return int(2 ** (rng.random() * rng.choice((3, 6, 12))))


def flip(rng: Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: Random, data: bytearray) -> None:
    length = _length(rng)
    data[_place(rng, data, length)] = rng.randbytes(length)


def blank(rng: Random, data: bytearray) -> None:
    length = _length(rng)
    data[_place(rng, data, length)] = bytes([rng.choice((0, 255, 32))]) * length


def cut(rng: Random, data: bytearray) -> None:
    del data[_place(rng, data).start :]


def drop(rng: Random, data: bytearray) -> None:
    del data[_place(rng, data, _length(rng))]


def insert(rng: Random, data: bytearray) -> None:
    start = _place(rng, data).start
    data[start:start] = rng.randbytes(_length(rng)) if rng.random() < 0.3 else rng.choice(TOKENS)


def copy(rng: Random, data: bytearray) -> None:
    """A block once more: beside itself, elsewhere, or many times."""
    block = data[_place(rng, data, _length(rng))]
    start = _place(rng, data).start
    data[start:start] = block * rng.choice((1, 1, 2, 50))


def number(rng: Random, data: bytearray) -> None:
    """A field of 1 to 8 bytes gets an awkward number, or one near its own."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    place = _place(rng, data, width)
    value = int.from_bytes(data[place], order) + rng.choice((-1, 1, 8, 4096))
    if rng.random() < 0.7:
        value = rng.choice((*NUMBERS, len(data), len(data) - place.start))
    data[place] = (value % 256**width).to_bytes(width, order)


def digits(rng: Random, data: bytearray) -> None:
    """A number in text becomes another."""
    start = _place(rng, data).start
    found = next(
        (i for i in range(start, min(start + 4096, len(data))) if 48 <= data[i] < 58), None
    )
    if found is None:
        return
    end = found
    while end < len(data) and data[end] in b"0123456789.eE+-":
        end += 1
    data[found:end] = rng.choice(DIGITS)


BYTES: tuple[Change, ...] = (
    *(flip, overwrite, blank, cut, drop, insert, insert, copy, number, number, digits, digits),
)

# ── values of JSON ──────────────────────────────────────────────────────────────────────────────

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e300, -1e-300, "", "x", "\x1b[2J",
    "\u202e", "\ud800", "../../outside/secret.txt", "/dev/zero", "a" * 5000, "1e999", [], {}, [[]],
    [None], {"": {}}, [2**40, 2**40], [-1], {"a": [1, {"b": None}]},
)  # fmt: skip


def change_value(rng: Random, value: Any) -> Any:
    """One place of a JSON value is replaced, dropped, renamed, repeated or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        return _change_object(rng, dict(value))
    if isinstance(value, list) and value and rng.random() < 0.85:
        return _change_list(rng, list(value))
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2**32, 0.5, -(2**31)))
    if rng.random() < 0.2:
        for _ in range(rng.choice((1, 3, 80))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(ODD)


def _change_object(rng: Random, value: dict[str, Any]) -> dict[str, Any]:
    key = rng.choice(list(value))
    action = rng.random()
    if action < 0.7:
        value[key] = change_value(rng, value[key])
    elif action < 0.8:
        del value[key]
    else:
        name = rng.choice((f"{key}x", "__metadata__", "", "\x1b[2J", "k" * 3000, key.upper()))
        value[name] = value.pop(key) if action < 0.9 else value[key]
    return value


def _change_list(rng: Random, value: list[Any]) -> list[Any]:
    index = rng.randrange(len(value))
    action = rng.random()
    if action < 0.7:
        value[index] = change_value(rng, value[index])
    elif action < 0.8:
        del value[index]
    elif action < 0.9:
        value.insert(index, rng.choice(value))
    else:
        value *= rng.choice((2, 40))
    return value


# ── layers ──────────────────────────────────────────────────────────────────────────────────────

Parts = tuple[list[bytes], Callable[[list[bytes]], bytes]]
"""What a container holds, and how it is put together again, lengths and checksums made right."""


def parts_of(data: bytes) -> Parts | None:
    """The parts of a container that is known here."""
    with contextlib.suppress(Exception):
        for start, split in _CONTAINERS.items():
            if data.startswith(start):
                return split(data)
        if data[257:262] == b"ustar":
            return _tar(data)
        if len(data) > 9 and data[8:9] == b"{":
            return _headed(data, 8)
    return None


def _headed(data: bytes, start: int) -> Parts:
    """Safetensors: the length of a header, the header, the rest."""
    end = start + int.from_bytes(data[:start], "little")
    return [
        data[start:end],
        data[end:],
    ], lambda found: struct.pack("<Q", len(found[0])) + b"".join(found)


def _zip(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]

    def join(found: list[bytes]) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for (info, _), content in zip(entries, found, strict=True):
                archive.writestr(info.filename, content, info.compress_type)
        return stream.getvalue()

    return [content for _, content in entries], join


def _png(data: bytes) -> Parts:
    found, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        found.append(data[position + 4 : position + 8 + length])
        position += 12 + length

    def join(chunks: list[bytes]) -> bytes:
        return data[:8] + b"".join(
            struct.pack(">I", max(len(one) - 4, 0)) + one + struct.pack(">I", zlib.crc32(one))
            for one in chunks
        )

    return found, join


def _text_chunk(data: bytes) -> Parts:
    """A compressed iTXt chunk: what it holds, in base64 or not."""
    head, _, packed = data.partition(b"\0\1\0\0\0")
    text = zlib.decompress(packed)
    encoded = b"tokens" in head

    def join(found: list[bytes]) -> bytes:
        inner = base64.b64encode(found[0]) if encoded else found[0]
        return head + b"\0\1\0\0\0" + zlib.compress(inner)

    return [base64.b64decode(text) if encoded else text], join


def _npy(data: bytes) -> Parts:
    end = 10 + int.from_bytes(data[8:10], "little")
    return [
        data[10:end],
        data[end:],
    ], lambda found: data[:8] + struct.pack("<H", len(found[0]) % 2**16) + b"".join(found)


def _tar(data: bytes) -> Parts:
    """Blocks; every header's checksum is made right."""
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]

    def join(found: list[bytes]) -> bytes:
        return b"".join(map(_summed, found))

    return blocks, join


def _summed(block: bytes) -> bytes:
    if block[257:262] != b"ustar" or len(block) != 512:
        return block
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


_CONTAINERS: dict[bytes, Callable[[bytes], Parts]] = {
    b"PK\3\4": _zip,
    b"\x89PNG": _png,
    b"iTXtimageprompt": _text_chunk,
    b"\x93NUMPY": _npy,
}


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────


def change(rng: Random, data: bytes, others: list[bytes], depth: int = 0) -> bytes:
    """One to three changes, in a part of a container, a JSON value, or the bytes."""
    found = parts_of(data) if depth < 4 and rng.random() < 0.7 else None
    if found is not None and found[0]:
        parts, join = found
        index = int(rng.random() ** 2 * len(parts))
        parts[index] = change(rng, parts[index], others, depth + 1)
        if rng.random() < 0.1:
            parts.insert(rng.randrange(len(parts)), rng.choice(parts))
        with contextlib.suppress(Exception):
            return join(parts)
    if data[:1] in (b"{", b"[") and rng.random() < 0.6:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(data)
            for _ in range(rng.choice((1, 1, 2))):
                value = change_value(rng, value)
            return json.dumps(value).encode()
    if rng.random() < 0.03:
        other = rng.choice(others)
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(BYTES)(rng, changed)
    return bytes(changed[:MAX_MUTANT])


def mutant(chosen: Format, sound: dict[str, Files], seed: int, index: int) -> Files:
    """The files of a mutant."""
    rng = Random(f"{seed} {chosen.name} {index}")
    files = dict(sound[chosen.name])
    others = [content for found in sound.values() for content in found.values()]
    name = rng.choice(sorted(files))
    files[name] = change(rng, files[name], others)
    return chosen.mend(files) if rng.random() < 0.8 else files


# ── a child process ─────────────────────────────────────────────────────────────────────────────


@dataclass
class Tried:
    """A batch of mutants, or all: how many were refused, read, and what was wrong."""

    format: str
    count: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[dict[str, Any]] = field(default_factory=list)
    """Of each: index, problem, trace."""
    modules: list[str] = field(default_factory=list)


def _try(chosen: Format, sound: dict[str, Files], seed: int, indices: range, place: Place) -> str:
    """In a child: read these mutants."""
    from imageprompt.core.errors import ImagePromptError

    known = len(sys.modules)
    limits.limit_memory()
    watch = Watch()
    watch.guard((place.folder, Path(os.environ["HOME"])), outside(place.files))
    os.chdir(place.here)
    tempfile.tempdir = str(place.here)
    tried = Tried(chosen.name)
    said: list[str] = []
    warnings.showwarning = lambda message, *_, **__: said.append(str(message))  # type: ignore[assignment]
    warnings.simplefilter("always")
    for index in indices:
        place.at(index)
        place.write(mutant(chosen, sound, seed, index))
        said.clear()
        meter = limits.Meter()
        problem = ""
        watch.on = True
        with limits.inside():
            try:
                chosen.read(place.files, place.out)
            except ImagePromptError as error:
                tried.refused += 1
                said.append(str(error))
            except BaseException as error:
                problem = named(error)
            finally:
                watch.on = False
        cpu, peak = meter.cpu(), meter.peak()
        tried.count += 1
        tried.seconds += cpu
        problem = problem or _problem(said, cpu, peak, watch)
        if problem:
            place.report(index, problem)
    tried.modules = loaded_since(known, place.folder)
    return json.dumps(asdict(tried))


def _problem(said: list[str], cpu: float, peak: int, watch: Watch) -> str:
    raw = next((one for one in said if not one.isprintable()), None)
    if raw is not None:
        return f"says something that is not printable: {raw[:200]!r}"
    found = limits.costs(cpu, peak) + watch.problems()
    watch.found.clear()
    return "; ".join(found)


class Place:
    """The folder of a batch, and what a child says before it dies."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        self.files, self.out, self.here = (self.folder / name for name in ("it", "out", "here"))
        self.out.mkdir()
        self.here.mkdir()
        self._faults = self.folder / "faults.jsonl"
        self._index = mmap.mmap(-1, 8)
        plant(outside(self.files))

    def at(self, index: int) -> None:
        self._index[:] = struct.pack("<q", index)

    @property
    def index(self) -> int:
        return int(struct.unpack("<q", self._index[:])[0])

    def write(self, files: Files) -> None:
        shutil.rmtree(self.files, ignore_errors=True)
        write_files(self.files, files)

    def report(self, index: int, problem: str) -> None:
        with self._faults.open("a") as stream:
            print(json.dumps({"index": index, "problem": problem}), file=stream)

    def faults(self) -> list[dict[str, Any]]:
        lines = self._faults.read_text().splitlines() if self._faults.exists() else []
        return [json.loads(line) for line in lines]

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def try_batch(
    chosen: Format, sound: dict[str, Files], seed: int, indices: range
) -> Iterator[Tried]:
    """Read these mutants in as many child processes as it takes."""
    start = indices.start
    while start < indices.stop:
        rest = range(start, indices.stop)
        with Place() as place:
            place.at(start)
            lines, end = in_child(
                lambda send: send(_try(chosen, sound, seed, rest, place)),  # noqa: B023
                place.folder,
                30 + 3 * len(rest),
            )
            if not lines:
                tried = Tried(chosen.name, place.index + 1 - start, seconds=end.cpu)
                place.report(place.index, end.why + _streams(place.folder))
            else:
                tried = Tried(**json.loads(lines[-1]))
            tried.faults = place.faults()
        start += tried.count
        load(tried.modules)
        tried.modules = []
        yield tried


def _streams(folder: Path) -> str:
    text = (folder / "stream-2").read_text(errors="replace")[-2000:]
    return f"\n{text}" if text.strip() else ""


# ── the server and its client ───────────────────────────────────────────────────────────────────


def sound_files() -> dict[str, Files]:
    """Those of every format, made and read once in a child process, which may have threads."""
    with Place() as place:
        lines, end = in_child(lambda send: send(_make_sound(place)), place.folder, 300)
        if not lines:
            raise RuntimeError(f"sound files {end.why}{_streams(place.folder)}")
        load(json.loads(lines[-1]))
        return {one.name: files_in(place.here / one.name) for one in FORMATS}


def _make_sound(place: Place) -> str:
    known = len(sys.modules)
    for one in FORMATS:
        files = one.make()
        place.write(files)
        one.read(place.files, place.out)
        write_files(place.here / one.name, files)
    return json.dumps(loaded_since(known, place.folder))


def main() -> None:
    """Try mutants of the chosen formats in turn, and print a line of JSON for each batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", default="")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--each", type=int, default=0, help="of each format, whatever the time")
    parser.add_argument("--save", default="")
    options = parser.parse_args()
    results = own_stdout()
    load(["toy_training"])  # most of what the formats need, once instead of in the child, too
    sound = sound_files()
    chosen = [one for one in FORMATS if options.format in one.name]
    until = time.monotonic() + options.seconds
    spent = dict.fromkeys((one.name for one in chosen), 0.0)
    first = dict.fromkeys(spent, options.first)
    while chosen:
        one = min(chosen, key=lambda it: spent[it.name])
        if options.each and first[one.name] >= options.first + options.each:
            chosen.remove(one)
            continue
        if not options.each and time.monotonic() > until:
            break
        size = min(BATCH, options.each or BATCH)
        start = time.monotonic()
        for tried in try_batch(
            one, sound, options.seed, range(first[one.name], first[one.name] + size)
        ):
            print(json.dumps(asdict(tried)), file=results, flush=True)
            for fault in tried.faults if options.save else ():
                _save(options, one, sound, fault)
        first[one.name] += size
        spent[one.name] += time.monotonic() - start


def _save(options: Any, chosen: Format, sound: dict[str, Files], fault: dict[str, Any]) -> None:
    folder = Path(options.save) / f"{chosen.name} {options.seed} {fault['index']}"
    write_files(folder, mutant(chosen, sound, options.seed, fault["index"]))


def run(**options: Any) -> Iterator[Tried]:
    """Mutants, in a server process; options as those of `main`."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    for line in serve("attacks.mutate", *arguments):
        yield Tried(**json.loads(line))
