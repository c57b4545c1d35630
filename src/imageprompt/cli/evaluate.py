"""`imageprompt evaluate`: generate a study, score it, and report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    note,
    print_aligned,
    print_json,
    print_lines,
    provided,
    wants_progress,
    with_head,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.run import Estimate, StudyResult

_WHAT = ("references", "count", "preset", "seeds", "seed")
_SAMPLING = ("steps", "guidance_scale", "true_cfg_scale", "negative_prompt", "size", "batch_size")
_MODELS = ("base", "dtype", "device")
_PROTOCOL = ("protocol", "data", "limit")
_KEYS = ("output", *_WHAT, *_SAMPLING, *_MODELS, *_PROTOCOL)


def add_evaluate(command: Parser) -> None:
    from imageprompt.evaluation.study.config import StudyConfig

    describe(
        command,
        _evaluate,
        "imageprompt evaluate --output study",
        "imageprompt evaluate study.yaml",
        "imageprompt evaluate --references photos --prompts prompts.txt --base sd15 \\",
        "    --adapter ip-adapter_sd15.safetensors --adapter plus=FILE.safetensors \\",
        "    --scales 0.4,0.6,0.8,1 --seeds 4 --extractor clip=openai/clip-vit-large-patch14 \\",
        "    --output study",
        "imageprompt evaluate --protocol dreambench --data dreambooth/dataset --output study",
        "imageprompt evaluate --protocols",
        notes="A study that was stopped goes on where it was, if it is called again. It writes"
        "\nresults.jsonl (a line for each picture and reference), study.json, report.html and the"
        "\npictures.",
    )
    command.add_argument("study", nargs="?", metavar="STUDY.yaml", help="keys of the study")

    def add(group: Any, flag: str, help_: str, **more: Any) -> None:
        group.add_argument(flag, help=help_, default=argparse.SUPPRESS, **more)

    what = command.add_argument_group("what to generate")
    flags.add_options(what, StudyConfig, _WHAT)
    add(what, "--prompts", "a file with one text a line", metavar="FILE")
    add(what, "--prompt", "a text; may be repeated", action="append", metavar="TEXT")
    add(
        what,
        "--adapter",
        "adapter file, Hub id or short name, with a name of its own or without; repeated",
        action="append",
        metavar="[NAME=]FILE",
    )
    add(what, "--scales", "comma-separated, above 0 to 2 (default 0.5,1)", metavar="S,S")
    add(what, "--no-control", "leave out the pictures without an adapter", action="store_true")
    add(what, "--no-ceiling", "leave out what to expect at best", action="store_true")
    flags.add_options(command.add_argument_group("sampling"), StudyConfig, _SAMPLING)
    flags.add_options(command.add_argument_group("models"), StudyConfig, _MODELS)
    measured = command.add_argument_group("what to measure")
    add(
        measured,
        "--metric",
        "comma-separated, or repeated (default: what can be measured)",
        action="append",
        metavar="NAMES",
    )
    flags.add_extractors(measured)
    add(measured, "--judge", "a judge model that another package offers", metavar="NAME")
    protocol = command.add_argument_group("published protocols")
    flags.add_options(protocol, StudyConfig, _PROTOCOL)
    protocol.add_argument(
        "--protocols", action="store_true", help="list them with their folders, and leave"
    )
    command.add_argument(
        "--output", metavar="DIR", default=argparse.SUPPRESS, help="folder of the study"
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change any key; repeated"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="check all, tell how many pictures and how long"
    )
    add_json(command)


def _evaluate(options: argparse.Namespace) -> int:
    if options.protocols:
        return _list_protocols(options)
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.run import Study

    changes = _changes(options)
    source = options.study if options.study is not None else {}
    if options.study is None and "output" not in changes:
        raise OptionError(
            "no output", reason="a study needs a folder", hint="Name one: --output DIR."
        )
    config = StudyConfig.load(source, options.set, changes=changes)
    judge = None
    if "judge" in options:
        from imageprompt.evaluation.study.judging import find_judge

        judge = find_judge(options.judge)
    root = None if options.study is None else Path(options.study).expanduser().parent
    study = Study(config, root)
    if study.protocol is not None and not options.json:
        _print_choices(config, study)
    log = (lambda line: None) if options.json else note
    if options.dry_run:
        estimate = study.estimate(log=log)
        print_json(estimate.as_dict()) if options.json else _print_estimate(study, estimate)
        return 0
    result = study.run(judge=judge, log=log, progress=wants_progress(options))
    print_json(result.as_dict()) if options.json else _print(result)
    return 0


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Keys of the study that flags give."""
    changes = provided(options, *_KEYS)
    if "prompts" in options and "prompt" in options:
        raise OptionError("--prompts with --prompt", reason="both give the texts", hint="Give one.")
    if "prompts" in options:
        changes["prompts"] = options.prompts
    if "prompt" in options:
        changes["prompts"] = options.prompt
    if "adapter" in options:
        changes["adapters"] = [*map(_adapter, options.adapter)]
    if "scales" in options:
        changes["scales"] = [one.strip() for one in options.scales.split(",")]
    if "metric" in options:
        changes["metrics"] = flags.metrics_of(options.metric)
    if extractors := flags.extractors_of(options):
        changes["extractors"] = extractors
    for name in ("control", "ceiling"):
        if f"no_{name}" in options:
            changes[name] = False
    return changes


def _adapter(text: str) -> Any:
    """`NAME=FILE` or `FILE`."""
    name, equals, file = text.partition("=")
    if equals and file and not set(name) & set("/\\."):
        return {"adapter": file, "name": name}
    return text


# ── output ──────────────────────────────────────────────────────────────────────────────────────


def _print(result: StudyResult) -> None:
    names = [*dict.fromkeys(name for row in result.summary for name in row["metrics"])]
    rows = [
        (
            row["adapter"] or {"control": "no adapter"}.get(row["row"], row["row"]),
            "-" if row["scale"] is None else f"{row['scale']:g}",
            row["pictures"],
            *(_mean(row["metrics"].get(name)) for name in names),
        )
        for row in result.summary
    ]
    print_aligned(with_head(("adapter", "scale", "pictures", *names), rows), indent="")
    if result.study["ceiling"] is not None:
        print_lines("", f"ceiling: {result.study['ceiling']}")
    protocol = result.study.get("protocol")
    if protocol is not None:
        print_lines("", f"{protocol['title']}, {protocol['data']}")
        print_aligned(with_head(("figure", "of", "value", "low", "high", "n"), _figures(protocol)))
    if found := result.conclusions:
        print_lines("", *found)
    print_lines("", *(path for path in (result.folder, result.report) if path is not None))


def _figures(protocol: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for one in protocol["figures"]:
        low, high = one["interval"] or (None, None)
        numbers = (_short(value) for value in (one["value"], low, high))
        rows.append((one["name"], one["setting"], *numbers, one["n"]))
    for method, found in protocol["published"].items():
        rows += [
            (name, f"{method}, published", _short(value)) + ("-",) * 3
            for name, value in found.items()
        ]
    return rows


def _mean(found: dict[str, Any] | None) -> str:
    """A mean and half of its interval."""
    if found is None or found["value"] is None:
        return "-"
    if found["interval"] is None:
        return _short(found["value"])
    low, high = found["interval"]
    return f"{_short(found['value'])} ± {_short((high - low) / 2)}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _print_estimate(study: Any, estimate: Estimate) -> None:
    print_lines(study.describe())
    if estimate.done:
        print_lines(f"{estimate.done:,} of {estimate.rows:,} rows are finished")
    each, whole = estimate.seconds_per_picture, _duration(estimate.seconds)
    print_lines(f"about {each:.2f} s a picture, {whole} in all")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _print_choices(config: StudyConfig, study: Any) -> None:
    protocol = study.protocol
    print_lines(f"{protocol.title}: {study.data.told}", f"source: {protocol.source}", "")
    rows = [(one.topic, one.stated, one.here) for one in protocol.choices]
    print_aligned(with_head(("", "stated", "here"), rows))
    changed = [
        f"{name}: {getattr(config, name)} instead of {value}"
        for name, value in protocol.defaults.items()
        if _plain(getattr(config, name)) != _plain(value)
    ]
    print_lines("", *(f"changed: {line}" for line in changed))


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, list | tuple) else value


def _list_protocols(options: argparse.Namespace) -> int:
    from imageprompt.evaluation.protocols import PROTOCOLS

    if options.json:
        rows = [
            {"name": one.name, "summary": one.summary, "layout": one.layout, "source": one.source}
            for one in PROTOCOLS
        ]
        print_json(rows)
        return 0
    for one in PROTOCOLS:
        print_lines(one.name, f"  {one.summary}", f"  source: {one.source}")
        print_lines(*(f"  {line}" for line in one.layout.splitlines()), "")
    return 0
