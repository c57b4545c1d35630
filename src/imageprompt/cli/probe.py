"""The command `imageprompt probe`: what each site of a base carries of a reference."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.console import (
    add_command,
    add_json,
    given,
    parse_size,
    print_json,
    wants_progress,
)
from imageprompt.core.errors import OptionError

if TYPE_CHECKING:
    from imageprompt.evaluation.probing import ProbeResult

MOST = 1000


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "probe",
        _probe,
        "what each site of a base carries of a reference: style, layout, or little",
        "imageprompt probe",
        "imageprompt probe --count 96 --output probed",
        'imageprompt probe --reference a.jpg --reference b.jpg --prompt "a cat" --seeds 4 \\',
        "    --base ./stable-diffusion-v1-5 --adapter ip-adapter-plus_sd15.safetensors",
    )

    def add(group: Any, flag: str, help_: str, **options: Any) -> None:
        group.add_argument(flag, help=help_, default=argparse.SUPPRESS, **options)

    what = command.add_argument_group("what to paint")
    add(what, "--reference", "reference picture; may be repeated", action="append", metavar="PIC")
    add(what, "--count", "without one: how many to draw (24)", type=int, metavar="N")
    add(
        what,
        "--prompt",
        "words beside all references, or repeated, one for each (none)",
        action="append",
        metavar="TEXT",
    )
    add(what, "--scale", "at the sites that are on, 0..2 (1)", type=float, metavar="S")
    add(what, "--sites", "each attention layer alone, not each transformer", action="store_true")
    add(what, "--seeds", "how often each reference is painted (1)", type=int, metavar="N")
    add(what, "--seed", "the first seed (1)", type=int, metavar="N")
    how = command.add_argument_group("how")
    add(how, "--steps", "denoising steps (the base's default)", type=int, metavar="N")
    add(how, "--guidance-scale", "(the base's default)", type=float, metavar="G")
    add(how, "--size", "in pixels (the base's default)", type=parse_size, metavar="WxH")
    add(how, "--batch-size", "pictures side by side (4)", type=int, metavar="N")
    with_ = command.add_argument_group("with which models")
    add(with_, "--base", "diffusers pipeline (the bundled one)", metavar="PATH_OR_HUB_ID")
    add(with_, "--adapter", "file, or base | plus of the bundled stack", metavar="FILE_OR_HUB_ID")
    add(with_, "--variant", "what the file does not tell: faceid-plus ...", metavar="NAME")
    add(with_, "--faces", "insightface's model pack, for adapters of faces", metavar="PACK")
    add(with_, "--encoder", "image encoder (that of base or adapter)", metavar="PATH_OR_HUB_ID")
    add(with_, "--dtype", "float32, float16, bfloat16", metavar="TYPE")
    add(with_, "--device", "cpu, cuda, cuda:N, mps", metavar="NAME")
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write probe.png, probe.json, and style.json and layout.json for --scale",
    )
    add_json(command)


def _probe(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder
    from imageprompt.evaluation.probing import probe

    output = None if options.output is None else check_folder(options.output)
    wishes = given(
        options,
        *("prompt", "scale", "sites", "seeds", "seed", "steps", "guidance_scale", "size"),
        *("batch_size", "base", "adapter", "variant", "faces", "encoder", "dtype", "device"),
    )
    if "reference" in options:
        if "count" in options:
            raise OptionError(
                "--count", reason="it is for drawn references", hint="Give it or --reference."
            )
        wishes["references"] = options.reference
    else:
        wishes = _drawn(options) | wishes
    progress = wants_progress(options)
    on_progress = None if options.json else lambda cost: print(cost, file=sys.stderr)
    result = probe(**wishes, on_progress=on_progress, progress=progress)
    print_json(result.as_dict()) if options.json else print(result)
    if output is not None:
        paths = _write(result, output)
        if not options.json:
            print("", *paths, sep="\n")
    return 0


def _drawn(options: argparse.Namespace) -> dict[str, Any]:
    """On the bundled stack: drawn references, texts that contradict them, and who can read both."""
    from imageprompt.core import bundled
    from imageprompt.demo import judge
    from imageprompt.demo.scenes import DEFAULT_COUNT, drawn

    if getattr(options, "base", bundled.NAME) != bundled.NAME:
        raise OptionError(
            "no reference",
            reason="a base is probed with pictures of the kind that it paints",
            hint="Give some: --reference PIC, repeated.",
        )
    count = getattr(options, "count", DEFAULT_COUNT)
    if not 1 <= count <= MOST:
        raise OptionError(f"count {count}", reason=f"a whole number from 1 to {MOST}")
    scenes = drawn(count)
    shows = scenes.shows if "prompt" not in options else None
    wishes = {"references": scenes.references, "prompt": scenes.texts, "batch_size": 16}
    return wishes | {"read": judge.read, "shows": shows}


def _write(result: ProbeResult, folder: Path) -> list[Path]:
    """The picture, the report, and a scale for each role that was confirmed."""
    from imageprompt.core.atomic_files import write_atomically
    from imageprompt.evaluation.probing.sheet import draw_sheet

    folder.mkdir(parents=True, exist_ok=True)
    texts = {"probe": result.as_dict(), **result.confirmed}
    paths = [folder / "probe.png", *(folder / f"{name}.json" for name in texts)]
    with write_atomically(paths[0]) as temporary:
        draw_sheet(result).save(temporary, format="PNG", optimize=True)
    for path, data in zip(paths[1:], texts.values(), strict=True):
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return paths
