"""`imageprompt tune`: the scale and preset with the best balance, as a file for `generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from imageprompt.cli import flags
from imageprompt.core.console import (
    Parser,
    add_json,
    describe,
    json_text,
    note,
    print_json,
    print_lines,
    print_text,
    provided,
    wants_progress,
)
from imageprompt.core.errors import OptionError

_WHAT = ("references", "count", "seeds", "seed")
_SAMPLING = ("steps", "guidance_scale", "true_cfg_scale", "negative_prompt", "size", "batch_size")
_MODELS = ("base", "dtype", "device")
NO_PRESET = "none"


def add_tune(command: Parser) -> None:
    from imageprompt.evaluation.study.config import StudyConfig

    describe(
        command,
        _tune,
        "imageprompt tune --output controls.json",
        'imageprompt tune --adapter plus --text-following ">= 0.8" --output controls.json',
        'imageprompt tune --preset none,style --text-following ">= 90%" --studies tuned \\',
        "    --output controls.json",
        "imageprompt tune --base ./stable-diffusion-v1-5 --adapter ip-adapter_sd15.safetensors \\",
        "    --references photos --prompts prompts.txt --seeds 2 \\",
        "    --extractor clip=openai/clip-vit-large-patch14 --output controls.json",
        "imageprompt generate --reference ref.png --controls controls.json",
        notes="It measures a part of a sweep over the scales, with the same references, texts and"
        "\nseeds at each.",
    )

    def add(group: Any, flag: str, help_: str, **more: Any) -> None:
        group.add_argument(flag, help=help_, default=argparse.SUPPRESS, **more)

    rule = command.add_argument_group("what is best").add_mutually_exclusive_group()
    rule.add_argument(
        "--text-following",
        metavar="LIMIT",
        help="the most likeness with text following at least this: '>= 0.9', or '>= 90%%' of what "
        "it is without a reference",
    )
    rule.add_argument(
        "--knee",
        action="store_true",
        help="the best sum of likeness and text following, as shares of their ranges (the default)",
    )
    axes = command.add_argument_group("how it is measured")
    axes.add_argument("--likeness", metavar="METRIC", help="metric of likeness to the reference")
    axes.add_argument("--text", metavar="METRIC", help="metric of following the text")
    flags.add_extractors(axes)
    what = command.add_argument_group("what to generate")
    flags.add_options(what, StudyConfig, _WHAT)
    add(what, "--prompts", "a file with one text a line", metavar="FILE")
    add(what, "--prompt", "a text; may be repeated", action="append", metavar="TEXT")
    add(
        what,
        "--adapter",
        "adapter file, Hub id or short name (default plus)",
        action="append",
        metavar="FILE",
    )
    what.add_argument(
        "--preset",
        metavar="NAMES",
        default=NO_PRESET,
        help="presets to try, comma-separated; none is no preset (default %(default)s)",
    )
    what.add_argument(
        "--highest",
        type=float,
        metavar="S",
        default=1.0,
        help="the largest scale to look at (default %(default)g)",
    )
    flags.add_options(command.add_argument_group("sampling"), StudyConfig, _SAMPLING)
    flags.add_options(command.add_argument_group("models"), StudyConfig, _MODELS)
    files = command.add_argument_group("output")
    files.add_argument(
        "--output", type=Path, metavar="FILE.json", help="what `generate --controls` reads"
    )
    files.add_argument(
        "--studies", type=Path, metavar="DIR", help="keep all pictures there, with a report"
    )
    add_json(command)


def _tune(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import write_atomically
    from imageprompt.evaluation.tune import tune

    output = options.output
    if output is not None:
        flags.check_output_file(output)
    result = tune(
        _study(options),
        options.text_following,
        presets=_presets(options.preset),
        likeness=options.likeness,
        text=options.text,
        highest=options.highest,
        studies=options.studies,
        log=(lambda line: None) if options.json else note,
        progress=wants_progress(options),
    )
    if output is not None:
        with write_atomically(output) as temporary:
            text = json_text(result.controls.as_dict())
            temporary.write_text(f"{text}\n", encoding="utf-8")
    print_json(result.as_dict()) if options.json else print_text(result)
    if not options.json:
        written = [one for one in (output, options.studies) if one is not None]
        print_lines(*(["", *written] if written else []))
    return 0


def _study(options: argparse.Namespace) -> dict[str, Any]:
    """Keys of the study that flags give."""
    from imageprompt.core import bundled

    study = provided(options, *_WHAT, *_SAMPLING, *_MODELS)
    if "prompts" in options and "prompt" in options:
        raise OptionError("--prompts with --prompt", reason="both give the texts", hint="Give one.")
    for name in ("prompts", "prompt"):
        if name in options:
            study["prompts"] = getattr(options, name)
    if "adapter" in options:
        study["adapters"] = options.adapter
    elif study.get("base", bundled.NAME) in bundled.FOLDERS:
        study["adapters"] = [bundled.DEFAULT_ADAPTER]
    if extractors := flags.extractors_of(options):
        study["extractors"] = extractors
    return study


def _presets(text: str) -> list[str | None]:
    """Names of presets, None for "none". Raises OptionError."""
    from imageprompt.control.presets import find_preset

    names = flags.names_of([text])
    found = [None if name == NO_PRESET else find_preset(name).name for name in names]
    if not found:
        raise OptionError("--preset", reason="names none", hint=f"Leave it out, or {NO_PRESET}.")
    return [*dict.fromkeys(found)]
