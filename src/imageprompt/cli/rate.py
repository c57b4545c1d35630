"""`imageprompt rate` and `imageprompt ratings`: a blind page for raters, and what they say."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.console import (
    Bars,
    add_json,
    aligned,
    describe,
    print_json,
    print_lines,
    wants_progress,
    with_head,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.evaluation.rating.subjects import Subject
    from imageprompt.evaluation.rating.summary import Summary
    from imageprompt.evaluation.statistics.intervals import Interval

_DEFAULT = Path("rating")


def add_rate(command: argparse.ArgumentParser) -> None:
    describe(
        command,
        _rate,
        "imageprompt rate study",
        "imageprompt rate study --scale 0.6 --mode scales --count 40",
        "imageprompt rate --pictures ours theirs --references references --output rating",
        notes="Send rate.html to your raters, and keep rate-key.json: only with it can"
        " `imageprompt ratings`\ntell which picture is which. The page asks 8 % of its questions"
        " twice and plants 6 % whose answer\nis known. Answers stay in the rater's browser until"
        " they are saved as a file.",
    )
    add = command.add_argument
    add("study", nargs="?", type=Path, metavar="STUDY", help="a folder that `evaluate` wrote")
    add(
        "--pictures",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders instead of a study, whose pictures of one name belong together",
    )
    add("--references", type=Path, metavar="DIR", help="with --pictures: references of these names")
    add("--adapter", action="append", default=[], metavar="NAME", help="of the study; repeatable")
    add(
        "--scale",
        action="append",
        default=[],
        type=float,
        metavar="S",
        help="of the study; repeatable (default: all)",
    )
    add(
        "--mode",
        choices=("pairs", "scales"),
        default="pairs",
        help="two pictures and a choice, or one picture on scales of five points (default pairs)",
    )
    add("--count", type=int, metavar="N", help="questions, drawn evenly (default: all)")
    add("--question", metavar="TEXT", help="what is asked about two pictures")
    add("--title", metavar="TEXT", help="of the page (default: Rate pictures)")
    add("--folder", action="store_true", help="pictures beside the page, not inside it")
    add("--output", type=Path, default=_DEFAULT, metavar="DIR", help="default: rating")
    add_json(command)


def add_ratings(command: argparse.ArgumentParser) -> None:
    describe(
        command,
        _ratings,
        "imageprompt ratings ratings-*.json --key rating/rate-key.json",
        "imageprompt ratings anna.json ben.json --key rating/rate-key.json --drop-failed --json",
        notes="Intervals are 95 % and over prompts. Agreement is Krippendorff's alpha: 1 is full"
        " agreement, 0\nwhat chance gives. Strengths are Bradley-Terry's; 400 points of Elo are"
        " odds of ten to one.",
    )
    add = command.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="the answers, one file a rater")
    add(
        "--key",
        type=Path,
        default=_DEFAULT / "rate-key.json",
        metavar="FILE",
        help="written beside the page (default: rating/rate-key.json)",
    )
    add(
        "--drop-failed",
        action="store_true",
        help="leave out raters who failed a planted question",
    )
    add_json(command)


def _rate(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder
    from imageprompt.evaluation.rating.page import QUESTION, TITLE, write_page

    subjects = _subjects(options)
    with Bars(wants_progress(options)) as bars:
        written = write_page(
            subjects,
            check_folder(options.output),
            mode=options.mode,
            count=options.count,
            title=options.title or TITLE,
            question=options.question or QUESTION,
            folder=options.folder,
            on_picture=lambda done, total: bars.update("pictures", done, total),
        )
    if options.json:
        print_json({name: _plain(value) for name, value in vars(written).items()})
        return 0
    planted = f"{written.planted} planted" if written.planted else "none planted (no references)"
    print_lines(
        f"{written.questions} questions, {written.repeated} of them twice, {planted};"
        f" {written.nbytes / 2**20:.1f} MB",
        f"{written.page}: send it to your raters",
        f"{written.key}: keep it; `imageprompt ratings FILE... --key {written.key}` needs it",
    )
    return 0


def _subjects(options: argparse.Namespace) -> list[Subject]:
    from imageprompt.evaluation.rating.subjects import of_folders, of_study

    if (options.study is None) == (options.pictures is None):
        raise OptionError(
            "what to rate",
            reason="a study or --pictures, one of them",
            hint="Give the folder of a study, or --pictures A_DIR B_DIR.",
        )
    if options.study is not None:
        if options.references is not None:
            raise OptionError("--references with a study", reason="a study has its own")
        return of_study(options.study.expanduser(), adapters=options.adapter, scales=options.scale)
    if options.adapter or options.scale:
        raise OptionError("--adapter, --scale with --pictures", reason="they choose from a study")
    references = options.references
    return of_folders(
        [path.expanduser() for path in options.pictures],
        None if references is None else references.expanduser(),
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


# ── ratings ─────────────────────────────────────────────────────────────────────────────────────


def _ratings(options: argparse.Namespace) -> int:
    from imageprompt.evaluation.rating.answers import read_key, read_raters
    from imageprompt.evaluation.rating.summary import summarise

    key = read_key(options.key.expanduser())
    raters = read_raters([path.expanduser() for path in options.files], key)
    summary = summarise(key, raters, drop_failed=options.drop_failed)
    if options.json:
        print_json(summary.as_dict())
    else:
        print_lines(*_report(summary))
    return 0


def _report(summary: Summary) -> Iterator[str]:
    yield from _raters(summary)
    if summary.means:
        yield from _table(
            ("condition", "scale", "mean (95 %)", "n"),
            [
                (one.condition, one.axis, _with(one.value, one.interval), one.n)
                for one in summary.means
            ],
        )
    yield from _comparisons(summary)
    yield from _strengths(summary)
    yield ""
    for name, one in summary.agreement.items():
        alpha = "unknown" if math.isnan(one.alpha) else _with(one.alpha, one.interval)
        yield f"agreement, {name}: alpha {alpha}, {one.items} rated by two or more"
    yield f"intervals: 95 %, over {summary.clusters} {summary.clustered_by}"


def _raters(summary: Summary) -> Iterator[str]:
    yield from _table(
        ("rater", "answers", "same again", "planted", "median", ""),
        [
            (
                one.name,
                f"{one.answers} of {one.asked}",
                f"{one.consistent} of {one.repeated}",
                f"{one.planted - len(one.failed)} of {one.planted}",
                f"{one.seconds:g} s",
                "dropped" if one.dropped else "",
            )
            for one in summary.raters
        ],
        first=True,
    )
    for one in summary.raters:
        if one.failed:
            yield f"{one.name} failed the planted {', '.join(one.failed)}"


def _comparisons(summary: Summary) -> Iterator[str]:
    if not summary.comparisons:
        return
    of_scales = summary.mode == "scales"
    rows = []
    for one in summary.comparisons:
        difference = "" if one.difference is None else _with(one.difference, one.interval, "+.2f")
        rows.append(
            (
                f"{one.b} over {one.a}",
                *((one.axis, difference) if of_scales else ()),
                _with(one.win_rate, one.win_interval),
                f"{one.ties:.0%}",
                f"{one.p_holm:.3f}",
                one.n,
            )
        )
    scales = ("scale", "difference (95 %)") if of_scales else ()
    yield from _table(("B over A", *scales, "preferred (95 %)", "equal", "p (Holm)", "n"), rows)


def _strengths(summary: Summary) -> Iterator[str]:
    found = summary.as_dict()["strengths"]
    if not found:
        return
    rows = []
    for one in sorted(found, key=lambda one: -one["strength"]):
        ends = one["elo_interval"]
        elo = f"{one['elo']:+.0f}" + (f" ({ends[0]:+.0f} to {ends[1]:+.0f})" if ends else "")
        rows.append((one["condition"], f"{one['strength']:+.2f}", elo))
    yield from _table(("condition", "strength", "Elo (95 %)"), rows)
    added = "half a win of each over each other was added, or strengths would be infinite"
    if found[0]["prior"]:
        yield f"Some never won, or never lost: {added}."
    elif share := found[0]["resamples_with_prior"]:
        yield f"In {share:.0%} of the resamples some never won, or never lost: {added} there."


def _table(
    head: tuple[str, ...], rows: list[tuple[Any, ...]], *, first: bool = False
) -> Iterator[str]:
    if not first:
        yield ""
    yield from aligned(with_head(head, rows), indent="")


def _with(value: float, interval: Interval | None, style: str = ".2f") -> str:
    """A value with its interval, if that is known."""
    if interval is None or not interval.known:
        return format(value, style)
    return f"{value:{style}} ({interval.low:{style}} to {interval.high:{style}})"
