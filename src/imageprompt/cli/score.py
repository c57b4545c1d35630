"""`imageprompt score`: metrics of pictures that exist, in pairs or as sets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Bars,
    Parser,
    add_json,
    describe,
    note,
    print_aligned,
    print_json,
    print_table,
    wants_progress,
    warn,
    with_head,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.evaluation.scoring import Score

DEFAULT_METRICS = "clip-i,lab"
_MOST_NAMED = 5
"""Pictures without a value that are named."""


def add_score(command: Parser) -> None:
    describe(
        command,
        _score,
        "imageprompt score outputs/0001.png ref.png",
        "imageprompt score outputs references --metric psnr,ssim --json",
        "imageprompt score outputs photos --metric kid,precision-recall",
        "imageprompt score outputs --prompts prompts.txt --metric clip-t \\",
        "    --extractor clip=openai/clip-vit-large-patch14",
        "imageprompt score --list",
        notes="Metrics of pairs compare pictures of the same name, or all with a single reference."
        "\nMetrics of sets take both folders as they are. Exit code 1 if a picture has no value.",
    )
    command.add_argument(
        "pictures", nargs="?", metavar="PICTURES", help="a picture, or a folder of them"
    )
    command.add_argument(
        "references", nargs="?", metavar="REFERENCES", help="what to compare them with"
    )
    command.add_argument(
        "--metric",
        action="append",
        metavar="NAMES",
        help=f"comma-separated, or repeated (default {DEFAULT_METRICS})",
    )
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="the text of each picture: one line each, in the order of the names",
    )
    flags.add_extractors(command)
    command.add_argument("--device", metavar="NAME", help="cpu, cuda ... (default: cpu)")
    command.add_argument(
        "--cache", metavar="FILE", help="keep features in this file, for the next call"
    )
    command.add_argument("--list", action="store_true", help="list the metrics and leave")
    add_json(command)


def _score(options: argparse.Namespace) -> int:
    if options.list:
        return _list(options)
    if options.pictures is None:
        raise OptionError("no pictures", reason="nothing to score", hint="Name a folder of them.")
    from imageprompt.evaluation.scoring import FeatureStore, Scorer, paired, pictures_in

    with Bars(wants_progress(options)) as bars:
        scorer = Scorer(
            flags.metrics_of(options.metric or [DEFAULT_METRICS]),
            flags.extractors_of(options),
            store=FeatureStore(options.cache),
            device=options.device,
            on_progress=bars.update,
        )
        pictures = pictures_in(options.pictures)
        texts = None if options.prompts is None else _texts(options.prompts, len(pictures))
        one_each = references = None
        if options.references is not None:
            references = pictures_in(options.references)
            if scorer.compares_pairs:
                pairs = paired(pictures, references)
                pictures, one_each = ([*column] for column in zip(*pairs, strict=True))
        scores = scorer.score(pictures, one_each, texts, reference_set=references)
    if options.json:
        print_json({name: score.as_dict() for name, score in scores.items()})
    else:
        _print(scores)
    return int(any(score.failed for score in scores.values()))


def _texts(file: str, count: int) -> list[str]:
    """The lines of a file, one for each picture. Raises OptionError, NotFoundError."""
    from imageprompt.evaluation.scoring.texts import read_texts

    lines = read_texts(file)
    if len(lines) == 1:
        return lines * count
    if len(lines) != count:
        raise OptionError(
            f"{file}: {len(lines)} lines",
            reason=f"there are {count} pictures",
            hint="Write one line for each picture in the order of their names, or one for all.",
        )
    return lines


def _print(scores: dict[str, Score]) -> None:
    rows = []
    for name, score in scores.items():
        low, high = score.interval.as_list() or (None, None)
        better = {True: "higher", False: "lower", None: "-"}[score.metric.higher_is_better]
        rows.append((name, score.value, low, high, score.n, better, score.extractor))
    head = ("metric", "value", "low", "high", "n", "better", "features of")
    print_aligned(with_head(head, [map(_figure, row) for row in rows]), indent="")
    for name, score in scores.items():
        if score.warning:
            warn(f"{name} {score.warning}")
        if score.infinite:
            note(f"{name}: {score.infinite} equal pictures, which are not part of the mean")
        for picture, reason in [*score.failed.items()][:_MOST_NAMED]:
            note(f"{name}: no value for {picture}: {reason}")
        if more := len(score.failed) - _MOST_NAMED:
            note(f"{name}: and {more} more without a value") if more > 0 else None


def _figure(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _list(options: argparse.Namespace) -> int:
    from imageprompt.evaluation.metrics import METRICS

    rows = [
        {
            "metric": one.name,
            "extractor": one.extractor,
            "better": {True: "higher", False: "lower", None: None}[one.higher_is_better],
            "what it tells": one.summary,
        }
        | ({"formula": one.formula, "source": one.source} if options.json else {})
        for one in METRICS
    ]
    return print_table(rows, options.json)
