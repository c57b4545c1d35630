"""`python -m tests.attacks`: the table, and then random mutations of legitimate files."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict

from .harness import Result, run


def main() -> int:
    """Run what the options ask for; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--door", default="", metavar="WORDS", help="only doors with these words")
    parser.add_argument("--row", default="", metavar="WORDS", help="only attacks with these words")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each row")
    options = parser.parse_args()

    results = []
    for result in run(options.door, options.row):
        results.append(result)
        if options.json:
            print(json.dumps(asdict(result)), flush=True)
        elif result.problems:
            print(result.line, result.trace, sep="\n", flush=True)
        elif options.row:
            print(f"{result.door} | {result.attack}: {result.outcome}: {result.message}")
    if not options.json:
        print_table(results)
    return any(result.problems for result in results)


def print_table(results: list[Result]) -> None:
    """A line for each door."""
    names = Counter((result.door, result.attack) for result in results)
    for (door, attack), count in names.items():
        if count > 1:
            print(f"{door} | {attack}: {count} rows have this name")
    doors: dict[str, list[Result]] = {}
    for result in results:
        doors.setdefault(result.door, []).append(result)
    width = max(map(len, doors), default=4)
    print(f"\n{'door':{width}}  rows  failed  CPU s  slowest  largest MB")
    for name, rows in (doors | {"all": results}).items():
        failed = sum(bool(row.problems) for row in rows)
        slowest = max((row.cpu for row in rows), default=0.0)
        largest = max((row.peak for row in rows), default=0) / 2**20
        total = sum(row.cpu for row in rows)
        print(
            f"{name:{width}}  {len(rows):4}  {failed:6}  {total:5.1f}  {slowest:7.2f}"
            f"  {largest:10.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
