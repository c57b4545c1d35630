"""What a light adapter loses: error and attribute match by the share of K' and V' that is left.

    python benchmarks/compress.py --json compress.json
    python benchmarks/compress.py --adapters plus --shares 0.25 --count 240

The bundled stack's adapters in low rank and int8, beside the whole ones. Ranks are fitted on drawn
scenes; the error is measured on others, and the judge reads pictures of others again, with the same
noise for every adapter.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

from imageprompt import loading
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.deploy.compress.result import Budget
from imageprompt.deploy.compress.run import FITTED, Work, open_pictures

GOALS = {0.25: 0.02, 0.5: 0.0}
"""Share of K' and V' -> the most that any attribute may lose."""


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The whole adapter, then each share."""
    folder = bundled.folder()
    base = loading.load_base(bundled.NAME, folder, dtype=None, device="cpu", bars=False)
    base.pipe.set_progress_bar_config(disable=True)
    located = loading.find_adapter(name, folder, cached_only=True)
    drawn = list(islice(scenes.stream("test", seed=options.seed), options.count))
    with loading.few_threads(base):
        start = time.process_time()
        work = Work(base, located, None, *open_pictures(None, FITTED), options.dtype, lambda: None)
        fitting = time.process_time() - start
        whole = work.read(drawn)
        rows = [{"adapter": name, "share": 1.0, "parameters": work.before, "match": whole}]
        for share in sorted(options.shares, reverse=True):
            start = time.process_time()
            choice = work.within(Budget(share=share))
            seconds = fitting + time.process_time() - start
            work.search.set_all(choice)
            match = work.read(drawn)
            work.search.restore(work.matrices)
            row = {
                "adapter": name,
                "share": choice.parameters / work.key_values,
                "parameters": work.rest + choice.parameters,
                "error": work.check.error(choice.ranks, choice.dropped),
                "dropped": sorted(choice.dropped),
                "match": match,
                "most lost": max(whole[name] - match[name] for name in scenes.ATTRIBUTES),
                "seconds": seconds,
            }
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], count: int) -> str:
    names = [*scenes.ATTRIBUTES, "all five"]
    lines = [
        f"| adapter, {count} references | parameters | error | {' | '.join(names)} | most lost |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in rows:
        cells = [f"{row['match'][name]:.3f}".lstrip("0") for name in names]
        error = f"{row['error']:.3f}" if "error" in row else ""
        lost = f"{row['most lost']:.3f}" if "error" in row else ""
        what = f"{row['adapter']}, {row['share']:.0%} of K', V'"
        lines.append(f"| {what} | {row['parameters']:,} | {error} | {' | '.join(cells)} | {lost} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adapters", nargs="*", default=["plus", "base"])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.25, 0.12])
    parser.add_argument("--count", type=int, default=96, help="references that the judge reads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("int8", "float16", "float32"), default="int8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for name in options.adapters for row in rows_of(name, options)]
    print(markdown(rows, options.count))
    for share, most in GOALS.items():
        within = [row for row in rows if "error" in row and row["share"] <= share]
        best = {name: max((row for row in within if row["adapter"] == name),
                          key=lambda row: row["share"], default=None)
                for name in options.adapters}  # fmt: skip
        for name, row in best.items():
            if row is not None:
                met = "met" if row["most lost"] <= most else "not met"
                print(f"{name}, at most {share:.0%}: at most {most} lost: {met}")
    if options.json:
        options.json.write_text(json.dumps({"count": options.count, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
