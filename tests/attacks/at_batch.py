"""Batches: job files of a stranger, and folders in which a stranger has begun a batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .at_commands import PATHS
from .attack import Attack, Door, command, content, outside

DEEP = "[" * 100_000

# ── job files ───────────────────────────────────────────────────────────────────────────────────


def _begin(path: Any, out: Path) -> object:
    """The rows as a batch keeps them: those that cannot be read are records of the result."""
    from imageprompt.serve.batch.run import begin

    settings = {"shard_rows": 1, "batch_size": 1, "seed": 0, "defaults": {}}
    batch = begin(Path(path), out, settings)
    return [batch.rows.read(number, number + 1) for number in range(min(len(batch.rows), 3))]


def _json(data: bytes | str, name: str, says: str, outcome: str = "quarantined") -> Attack:
    return Attack(name, content(data, "jobs.jsonl"), says, outcome)  # type: ignore[arg-type]


def _csv(data: bytes | str, name: str, says: str, outcome: str = "refused") -> Attack:
    return Attack(name, content(data, "jobs.csv"), says, outcome)  # type: ignore[arg-type]


def _jobs() -> Iterator[Attack]:
    yield _json('{"prompt": ' + DEEP + "}\n", "lists 100,000 deep", "items")
    yield _json('{"prompt": ' + "[" * 900 + "]" * 900 + "}\n", "lists 900 deep", "deep")
    yield _json('{"steps": ' + "9" * 400 + "}\n", "400 digits", "digits")
    yield _json('{"steps": 1e999}\n', "a number beyond floats", "too large")
    yield _json('{"steps": NaN}\n', "NaN", "not a number")
    yield _json('{"prompt": "' + "a" * 3_000_000 + '"}\n', "a row of 3 MB", "longer")
    yield _json("a" * 50_000_000, "50 MB without an end", "longer")
    yield _json('{"also": [' + "{}," * 300_000 + "{}]}\n", "300,000 other references", "items")
    paths = ",".join('"b"' for _ in range(200_000))
    yield _json(f'{{"reference": [{paths}]}}\n', "200,000 paths in a row", "items")
    yield _json("[]\n", "a list as a row", "not a JSON object")
    yield _json(b"\xff\xfe\x00\n", "bytes that are no text", "not valid JSON")
    yield _json('{"prompt": "\\ud800"}\n', "half a character", "ud800")
    yield _json(b"\n" * 1_000_000, "a million empty lines", "no rows", "refused")
    yield _json('{"reference": "a\\u0000b"}\n', "a NUL in a path", "x00")
    yield _csv("prompt\n" + '"' + "a" * 3_000_000, "a cell of 3 MB", "a row of more")
    yield _csv("prompt\n" + '"' + "a\n" * 3_000_000, "a cell of 3 million lines", "a row of more")
    cells = ",".join(map(str, range(80_000)))
    yield _csv(f"{cells}\n{cells}\n", "80,000 columns", "more than 10000 cells", "quarantined")
    yield _csv("a\n" + "," * 900_000 + "\n", "more cells than columns", "more cells", "quarantined")
    yield _csv(f"prompt\n{DEEP}\n", "a cell of lists 100,000 deep", "items", "quarantined")
    yield _csv("steps\n" + "9" * 5_000 + "\n", "a cell of 5,000 digits", "999", "read")
    yield _csv("steps\nNaN\n", "a cell that is NaN", "'NaN'", "read")
    yield _csv(b"prompt\n\xff\x00\n", "a NUL in a cell", "", "read")
    yield _csv("", "nothing", "no rows")


def _files() -> Iterator[Attack]:
    """Impossible paths that end in .jsonl: each is a link, or lies there itself."""

    def named(make: Callable[[Path], Any], name: str = "jobs.jsonl") -> Callable[[Path], Path]:
        def linked(folder: Path) -> Path:
            inner = folder / "in"
            inner.mkdir()
            (folder / name).symlink_to(make(inner))
            return folder / name

        return linked

    for name in ("a pipe", "a socket", "/dev/zero", "a link to itself", "missing"):
        yield Attack(name, named(PATHS[name]))
        for suffix in ("csv", "parquet"):  # without pyarrow, the second is refused unread
            yield Attack(f"{name}, .{suffix}", named(PATHS[name], f"jobs.{suffix}"))
    for text in (b"", b"PAR1", b"PAR1" + b"\xff" * 2000 + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"):
        yield Attack(f"Parquet that begins {text[:9]!r}", content(text, "jobs.parquet"), "parquet")
    yield Attack("a tar file", content(bytes(10240), "jobs.tar"), "ends in none of")
    yield Attack("a gzip", content(b"\x1f\x8b", "jobs.jsonl.gz"), "ends in none of")
    yield Attack(
        "a gigabyte of nothing", named(PATHS["a gigabyte of nothing"]), "a row of more than"
    )
    yield Attack("a NUL in the name", lambda folder: f"{folder}/a\0.jsonl", "job file")
    yield Attack("another ending", content("{}", "jobs.txt"), "ends in none of")


# ── a folder of a stranger ──────────────────────────────────────────────────────────────────────

ROW = '{"prompt": "a star"}\n'
PICTURE = b"no picture, but a file"
SETTINGS = {"shard_rows": 2, "batch_size": 1, "seed": 0, "defaults": {}}
Change = Callable[[Path], object]


def begun(folder: Path) -> Path:
    """A batch of four rows whose first shard is finished."""
    place = folder / "batch"
    shard = place / "shards" / "000000"
    shard.mkdir(parents=True)
    (place / "claims").mkdir()
    rows = (ROW * 4).encode()
    (place / "rows.jsonl").write_bytes(rows)
    manifest(place)
    (shard / "row-0.png").write_bytes(PICTURE)
    picture = {"file": "row-0.png", "sha256": hashlib.sha256(PICTURE).hexdigest(), "seed": 1}
    index(place, {"row": 0, "pictures": [picture]}, {"row": 1, "error": "broken"})
    return place


def manifest(place: Path, **changed: Any) -> None:
    digest = hashlib.sha256((place / "rows.jsonl").read_bytes()).hexdigest()
    settings = SETTINGS | changed
    (place / "batch.json").write_text(json.dumps({"rows": digest, "settings": settings}))


def index(place: Path, *records: Any) -> None:
    lines = "".join(f"{json.dumps(one)}\n" for one in records)
    (shard,) = (place / "shards").iterdir()
    (shard / "index.jsonl").write_text(lines)


def changed(name: str, change: Change, says: str, outcome: str = "refused") -> Attack:
    def make(folder: Path) -> Path:
        place = begun(folder)
        change(place)
        return place

    return Attack(name, make, says, outcome)  # type: ignore[arg-type]


def replaced(path: str, data: bytes | str) -> Change:
    """A file of the batch has this content."""

    def change(place: Path) -> None:
        (place / path).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def recorded(record: Any) -> Change:
    """The finished shard has this record alone."""
    return lambda place: index(place, record)


def stands(path: str, make: Callable[[Path], Any]) -> Change:
    """Something else stands in the place of a file or folder."""

    def change(place: Path) -> None:
        target = place / path
        if target.is_dir():
            target.rename(place.parent / "aside")
        else:
            target.unlink(missing_ok=True)
        make(target)

    return change


def link_out(target: Path) -> None:
    """To the file or folder outside that every row has."""
    target.symlink_to(_outside(target) / "secret.json" if target.suffix else _outside(target))


def file_out(target: Path) -> None:
    target.symlink_to(_outside(target) / "secret.txt")


def _outside(target: Path) -> Path:
    """The folder outside of the row in whose batch this lies."""
    return outside(Path(*target.parts[: target.parts.index("batch")]))


def large(target: Path) -> None:
    target.touch()
    os.truncate(target, 2**40)


def _folders() -> Iterator[Attack]:
    no = "holds no batch"
    for key in ("shard_rows", "batch_size", "seed", "defaults"):
        for value in (None, "x", [], 1.5, True) + (() if key == "seed" else (0, -3)):
            yield changed(f"{key} {value!r}", partial(manifest, **{key: value}), no)
    for text in ("[]", "1", "{}", '{"rows": 1, "settings": {}}', '{"settings": []}', DEEP, "\0"):
        yield changed(f"batch.json is {text[:30]!r}", replaced("batch.json", text), no)
    yield changed("batch.json of 3 MB", replaced("batch.json", '"' + "a" * 3_000_000 + '"'), no)
    for path in ("batch.json", "rows.jsonl"):
        yield changed(f"{path} leads out", stands(path, link_out), no)
        yield changed(f"{path} is a pipe", stands(path, os.mkfifo), no)
        yield changed(f"{path} is a terabyte", stands(path, large), no)
    for path in ("shards", "claims"):
        yield changed(f"{path} leads out", stands(path, link_out), no)
    yield changed("rows that are no objects", replaced("rows.jsonl", "1\n" * 4), no)
    yield changed("empty rows", replaced("rows.jsonl", "\n" * 2_000_000), no)
    yield changed("a row without an end", replaced("rows.jsonl", "{" * 1000), no)
    yield changed("6 million rows", replaced("rows.jsonl", "{}\n" * 6_000_000), "more than")


def _records() -> Iterator[Attack]:
    """Records of a finished shard."""
    unread = "cannot be read"
    path = "shards/000000/index.jsonl"
    for text in ("[]\n", "1\n", "null\n", "x\n", f"{DEEP}\n", '{"row": 1e999}\n', "\xff\n"):
        yield changed(f"a record is {text[:20]!r}", replaced(path, text), unread)
    for value in (1, "x", {}, [1], [{}], [{"file": 1, "sha256": "x"}], [{"file": "x"}], [[]]):
        yield changed(f"pictures {value!r}", recorded({"row": 0, "pictures": value}), unread)
    yield changed("a million records", replaced(path, '{"row": 0}\n' * 1_000_000), "records")
    yield changed("no index", stands(path, lambda target: None), unread)
    yield changed("an index that leads out", stands(path, link_out), unread)
    yield changed("an index that is a pipe", stands(path, os.mkfifo), unread)
    yield changed("an index of a terabyte", stands(path, large), unread)
    yield changed("a link of an index to itself", stands(path, lambda t: t.symlink_to(t)), unread)


def _pictures() -> Iterator[Attack]:
    """Pictures that --verify compares; what is said is a problem, and exit code 1."""
    path, differs = "shards/000000/row-0.png", "has changed"
    for name, make in (
        ("leads out", file_out),
        ("is a pipe", os.mkfifo),
        ("is /dev/zero", lambda target: target.symlink_to("/dev/zero")),
        ("is a terabyte", large),
        ("is a folder", lambda target: target.mkdir()),
        ("is a link to itself", lambda target: target.symlink_to(target)),
    ):
        yield changed(f"a picture {name}", stands(path, make), differs, "quarantined")
    for name in ("../../../outside/secret.txt", "/etc/passwd", "a\0b", "\x1b[2J.png", "..", ""):
        record = {"row": 0, "pictures": [{"file": name, "sha256": "0" * 64}]}
        yield changed(f"a picture called {name!r}", recorded(record), "is missing", "quarantined")
    yield changed(
        "a shard leads out", stands("shards/000000", link_out), "not finished", "quarantined"
    )
    yield changed(
        "10,000 files without records",
        lambda place: [(place / f"shards/000000/{n}.png").touch() for n in range(10_000)],
        "more problems",
        "quarantined",
    )
    yield changed(
        "a million shards that are not there",
        lambda place: [
            replaced("rows.jsonl", "{}\n" * 10**6)(place),
            manifest(place, shard_rows=1),
            (place / "shards/000000").rename(place / "shards/000001"),
            index(place, {"row": 1}),
        ],
        "999999 shards are not finished",
        "quarantined",
    )
    yield changed(
        "shards of other names",
        lambda place: [
            (place / "shards" / name).mkdir()
            for name in ("\u0660\u0660\u0660\u0660\u0660\u0661", "999999999", "x")
        ],
        "1 shards are not finished",
        "quarantined",
    )


def _go_on(place: Any, out: Path) -> object:
    """As `imageprompt batch --output DIR`, but that nothing is generated."""
    from imageprompt.serve.batch.shards import Batch, claimed

    batch = Batch.open(Path(place))
    done = []
    for shard in range(batch.shard_count):
        with claimed(batch, shard) as broken_off:
            done.append(broken_off)
    return done


def _claims() -> Iterator[Attack]:
    """Locks and counts of attempts are files that are written."""
    for name in ("000001.lock", "000001.attempts"):
        yield changed(f"{name} leads out", stands(f"claims/{name}", file_out), "stands in its")
        yield changed(f"{name} is a pipe", stands(f"claims/{name}", os.mkfifo), "stands in its")
        yield changed(
            f"{name} is a folder", stands(f"claims/{name}", lambda t: t.mkdir()), "stands in its"
        )


def _same(place: Any, out: Path) -> object:
    """A job file again, for a batch that has begun: the two are compared."""
    from imageprompt.serve.batch.run import begin

    jobs = out / "jobs.jsonl"
    jobs.write_text(ROW * 4)
    begin(jobs, Path(place), SETTINGS)
    return "compared"


def _comparisons() -> Iterator[Attack]:
    for name in (".comparison.jsonl", ".begin.lock"):
        outcome, says = ("refused", "stands in its") if "lock" in name else ("read", "compared")
        yield changed(f"{name} leads out", stands(name, file_out), says, outcome)


IMPORTS = ("imageprompt.serve.batch", "imageprompt.cli.batch")
DOORS = (
    Door("batch: job files", _begin, (*_jobs(), *_files()), IMPORTS),
    Door("batch: folders, --status", command("batch", "--output", "{it}", "--status"),
         (*_folders(), *_records()), IMPORTS),
    Door("batch: folders, --verify", command("batch", "--output", "{it}", "--verify"),
         (*_records(), *_pictures()), IMPORTS),
    Door("batch: claims", _go_on, (*_folders(), *_claims()), IMPORTS),
    Door("batch: the same jobs again", _same, tuple(_comparisons()), IMPORTS),
)  # fmt: skip
