"""The command `imageprompt check`: are these good reference pictures, and do they mix?"""

from __future__ import annotations

import argparse
from typing import Any

from imageprompt.core.console import add_command, add_json, print_aligned, print_json, shown

BROKEN = 1


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "check",
        _check,
        "measure reference pictures: size, JPEG damage, blur, shape, and how alike they are",
        "imageprompt check photo.jpg",
        "imageprompt check *.jpg --encoder h94/IP-Adapter/models/image_encoder",
        "imageprompt check a.png b.png --json",
    )
    add = command.add_argument
    add("pictures", nargs="+", metavar="PIC", help="PNG, JPEG or WEBP files")
    add(
        "--encoder",
        metavar="PATH_OR_HUB_ID",
        help="by which likeness is judged (the bundled one, which knows drawn scenes only)",
    )
    add_json(command)
    command.epilog = (
        f"{command.epilog}\n\njpeg: the file's quality, then that of a worse compression before"
        " (~); sharp as: the\nshort side of a picture that shows as much; crop loses: what the"
        " encoder's centre crop\nleaves out. It is advice: nothing is changed. Exit code 1 if a"
        " picture cannot be read."
    )


def _check(options: argparse.Namespace) -> int:
    from imageprompt.evaluation.image_quality.report import SIMILAR, checked, similarities

    found, broken = checked(options.pictures)
    pairs = []
    if len(found) > 1:
        pairs = similarities([check.picture for check in found], _encoder(options.encoder))
    if options.json:
        report = {
            "pictures": [check.as_dict() for check in found],
            "pairs": [{**vars(pair), "advice": pair.advice()} for pair in pairs],
            "encoder": options.encoder or "bundled",
            "unreadable": [str(error) for error in broken],
        }
        print_json(report)
        return BROKEN if broken else 0
    head = ("picture", "size", "jpeg", "sharp as", "crop loses", "transparent", "advice")
    rows = [row for check in found for row in _rows(check)]
    if rows:
        print_aligned([head, tuple("-" * len(name) for name in head), *rows], indent="")
    if pairs:
        by = options.encoder or "the bundled encoder, which knows drawn scenes only"
        print(f"\nlikeness by {by}")
        print_aligned((pair.a, pair.b, f"{pair.similarity:.2f}", pair.advice()) for pair in pairs)
        print(f"Above {SIMILAR} references mix well; below, weigh them or keep them side by side.")
    for error in broken:
        print(f"not read: {error}")
    return BROKEN if broken else 0


def _rows(check: Any) -> list[tuple[str, ...]]:
    """One line for each piece of advice, the figures on the first."""
    advice = check.advice() or ["good"]
    qualities = [shown(check.jpeg)] if check.jpeg else []
    qualities += [f"~{check.earlier}"] if check.earlier else []
    figures = (
        check.picture,
        f"{check.width}x{check.height}",
        " ".join(qualities) or "-",
        shown(check.sharp_as),
        f"{check.crop_loses:.0%}",
        f"{check.transparent:.0%}",
    )
    return [(*figures, advice[0]), *((*("" for _ in figures), line) for line in advice[1:])]


def _encoder(source: str | None) -> Any:
    from imageprompt.core import bundled
    from imageprompt.encoding.encoders import open_encoder
    from imageprompt.loading import quiet_loading

    with quiet_loading(True):
        return open_encoder(str(bundled.folder() / "image_encoder") if source is None else source)
