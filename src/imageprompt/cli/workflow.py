"""`imageprompt workflow`: whole jobs by name, measured; one subcommand to list, show and run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    PROGRAM,
    Parser,
    add_json,
    aligned,
    cell,
    describe,
    examples,
    note,
    print_aligned,
    print_json,
    print_lines,
    print_text,
    provided,
    wants_progress,
)

if TYPE_CHECKING:
    from imageprompt.core.schema import Field
    from imageprompt.workflows import Workflow
    from imageprompt.workflows.result import Saved, WorkflowResult

OUTPUT = Path("outputs")


def add_workflow(workflow: Parser) -> None:
    workflow.epilog = examples(
        f"{PROGRAM} workflow list",
        f"{PROGRAM} workflow show product",
        f"{PROGRAM} workflow run variations --picture cat.png --output variations",
    )
    group = workflow.add_subparsers(metavar="COMMAND", required=True, parser_class=_Subparser)
    listing = group.add_parser("list", help="the workflows", description="The workflows.")
    describe(listing, _list, f"{PROGRAM} workflow list", f"{PROGRAM} workflow list --json")
    add_json(listing)
    show = group.add_parser(
        "show",
        help="inputs, figures and costs of a workflow",
        description="Inputs, figures and costs of a workflow.",
    )
    describe(show, _show, f"{PROGRAM} workflow show product")
    show.add_argument("name", metavar="NAME", help="a name from `workflow list`")
    add_json(show)
    _add_run(group)


class _Subparser(Parser):
    """A parser that can get its own subcommands when its arguments are read.

    Those of `run` are the workflows, whose files are loaded for their flags.
    """

    fill: Callable[[Parser], None] | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)


def _add_run(group: Any) -> None:
    run = group.add_parser(
        "run",
        help="run a workflow",
        description="Run a workflow: pictures, a sheet and a report in a folder.",
    )
    run.epilog = examples(
        f"{PROGRAM} workflow run restyle --content room.png --style oil.png --output restyled"
    )
    run.fill = _add_names


def _add_names(run: Parser) -> None:
    """A subcommand for each workflow."""
    from imageprompt.workflows import WORKFLOWS

    names = run.add_subparsers(metavar="NAME", required=True, parser_class=Parser)
    for one in WORKFLOWS:
        command = names.add_parser(
            one.name, help=one.summary, description=f"{one.summary[0].upper()}{one.summary[1:]}."
        )
        given = " ".join(
            f"{each.flag} {each.option.metavar}" for each in one.fields() if each.required
        )
        line = f"{PROGRAM} workflow run {one.name} {given} --output {one.name}"
        describe(command, _run, line, notes=_measures(one))
        command.set_defaults(workflow=one.name)
        for title, fields in groupby(one.fields(), lambda each: each.option.group):
            section = command.add_argument_group(title or "how")
            for each in fields:
                flags.add_option(section, each, once=not each.option.repeat)
        output = command.add_argument_group("output")
        output.add_argument(
            "--output",
            type=Path,
            default=OUTPUT,
            metavar="DIR",
            help="folder (default %(default)s)",
        )
        add_json(command)


def _measures(one: Workflow) -> str:
    rows = [(name, summary) for name, summary in one.measures.items()]
    return "\n".join(["it measures:", *aligned(rows)])


# ── list, show ──────────────────────────────────────────────────────────────────────────────────


def _list(options: argparse.Namespace) -> int:
    from imageprompt.workflows import WORKFLOWS

    if options.json:
        print_json([one.as_dict() for one in WORKFLOWS])
    else:
        print_aligned(((one.name, one.summary) for one in WORKFLOWS), indent="")
    return 0


def _show(options: argparse.Namespace) -> int:
    from imageprompt.workflows import WORKFLOWS

    one = WORKFLOWS[options.name]
    if options.json:
        print_json(one.as_dict())
        return 0
    print_lines(f"{one.name}: {one.summary}", "", "inputs (! must be given):")
    print_aligned(map(_input_row, one.fields()))
    print_text(f"\n{_measures(one)}")
    if one.extra is not None:
        print_lines("", f"It needs pip install 'imageprompt[{one.extra}]'.")
    return 0


def _input_row(one: Field) -> tuple[str, ...]:
    metavar = one.option.metavar or ""
    return ("!" if one.required else "", f"{one.flag} {metavar}", one.option.help)


# ── run ─────────────────────────────────────────────────────────────────────────────────────────


def _run(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder
    from imageprompt.workflows import WORKFLOWS

    workflow = WORKFLOWS[options.workflow]
    output = check_folder(options.output)
    inputs = provided(options, *(one.name for one in workflow.fields()))
    result = workflow(progress=wants_progress(options), **inputs)
    saved = result.save(output)
    _print(options, result, saved)
    return 0


def _print(options: argparse.Namespace, result: WorkflowResult, saved: Saved) -> None:
    if options.json:
        print_json(result.as_dict(saved))
        return
    for line in result.notes:
        note(f"note: {line}")
    print_aligned(((name, cell(value)) for name, value in result.measured.items()), indent="")
    cost = result.cost
    sampled = f"{cost['generated']} pictures generated, {cost['denoising_steps']} denoising steps, "
    print_lines(f"cost: {sampled if cost['generated'] else ''}{cost['seconds']:g} s")
    print_lines(*saved.pictures, *saved.files, *filter(None, [saved.sheet]), saved.report)
