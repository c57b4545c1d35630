"""`imageprompt batch`: many rows to pictures, by several processes, killed and resumed at will."""

from __future__ import annotations

import argparse
from typing import Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Bars,
    Parser,
    add_json,
    describe,
    note,
    print_json,
    print_lines,
    provided,
    wants_progress,
)
from imageprompt.core.errors import OptionError
from imageprompt.generation.reference import REFERENCE_FIELDS, Reference
from imageprompt.generation.request import REQUEST_FIELDS, Request

PROBLEMS = 1
_OWN = ("batch_size", "seed", "num_images")
_SHOWN = 10


def add_batch(command: Parser) -> None:
    describe(
        command,
        _batch,
        "imageprompt batch jobs.jsonl --output out",
        "imageprompt batch jobs.csv --output out --workers 2 --steps 20 --adapter base",
        "imageprompt batch jobs.jsonl --output /shared/out --shard 1/4",
        "imageprompt batch jobs.jsonl --output /shared/out --ray auto",
        "imageprompt batch --output out --status",
        "imageprompt batch --output out --verify",
        notes="A row of JOBS has arguments of `generate`, in JSON Lines, CSV or Parquet; the flags"
        "\nbelow are for rows that lack them. Paths are relative to the folder of JOBS. A row that"
        "\ncannot be made is recorded in index.jsonl, and the others are made. Without JOBS, a"
        "\nbatch that has begun goes on. Exit code 1 if rows failed, or --verify found a problem.",
    )
    command.add_argument("jobs", nargs="?", metavar="JOBS", help=".jsonl, .csv or .parquet")
    command.add_argument("--output", required=True, metavar="DIR", help="folder of the batch")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes (default 1; with --ray all it has)"
    )
    command.add_argument(
        "--ray", metavar="ADDRESS", help="make them on a Ray cluster: HOST:PORT, or auto"
    )
    command.add_argument(
        "--shard", metavar="I/N", help="make every N-th shard only, from the I-th: for machines"
    )
    command.add_argument(
        "--rows-per-shard", type=int, default=64, metavar="N", help="rows written at once (64)"
    )
    command.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="pictures denoised together (8)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of rows without a seed: theirs differ"
    )
    command.add_argument("--status", action="store_true", help="tell how far it is, and leave")
    command.add_argument("--verify", action="store_true", help="compare all files with the records")
    for kind in (Reference, Request):
        for title, fields in flags.by_group(kind):
            group = command.add_argument_group(f"{title}, for rows that lack it")
            for field in fields:
                if field.name not in _OWN:
                    flags.add_option(group, field)
    add_json(command)
    command.usage = f"{command.prog} [JOBS] --output DIR [flags]"


def _batch(options: argparse.Namespace) -> int:
    from imageprompt.serve.batch import batch, status, verify

    with Bars(wants_progress(options)) as bars:
        if options.verify:
            found = verify(options.output, on_progress=bars.update)
            return _print(options, found.as_dict(), found.problems)
        if options.status:
            return _print(options, status(options.output).as_dict())
        names = [name for name in (*REFERENCE_FIELDS, *REQUEST_FIELDS) if name not in _OWN]
        done = batch(
            options.jobs,
            options.output,
            defaults=provided(options, *names),
            shard=None if options.shard is None else _part(options.shard),
            workers=options.workers,
            ray=options.ray,
            shard_rows=options.rows_per_shard,
            batch_size=options.batch_size,
            seed=options.seed,
            on_progress=bars.update,
        )
    return _print(options, done.as_dict())


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise OptionError(f"--shard {text!r}", reason="not I/N", hint="Write 1/4 to 4/4.")
    return int(index), int(count)


def _print(options: argparse.Namespace, found: dict[str, Any], problems: Any = ()) -> int:
    if options.json:
        print_json(found)
    else:
        print_lines(
            f"{found['done']} of {found['rows']} rows in {found['done_shards']} of "
            f"{found['shards']} shards, {found['failed']} of them without pictures"
        )
        for problem in problems[:_SHOWN]:
            note(problem)
        if len(problems) > _SHOWN:
            note(f"... and {len(problems) - _SHOWN} more problems")
    return PROBLEMS if problems or found["failed"] else 0
