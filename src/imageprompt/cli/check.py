"""`imageprompt check`: are these good reference pictures, and do they mix?"""

from __future__ import annotations

import argparse
from typing import Any

from imageprompt.core import bundled
from imageprompt.core.console import Parser, add_json, describe, print_json, print_text

UNREADABLE = 1


def add_check(command: Parser) -> None:
    describe(
        command,
        _check,
        "imageprompt check photo.jpg",
        "imageprompt check *.jpg --encoder h94/IP-Adapter/models/image_encoder",
        "imageprompt check a.png b.png --json",
        notes="jpeg: quality of the file, and after ~ that of an earlier, worse compression."
        "\nsharp as: the short side of a sharp picture with as much detail."
        "\ncrop loses: the part that the encoder's centre crop leaves out."
        "\nMany pictures get a summary; --json lists every picture and every pair."
        "\nNothing is changed. Exit code 1 if a picture cannot be read.",
    )
    command.add_argument("pictures", nargs="+", metavar="PIC", help="picture files")
    command.add_argument(
        "--encoder",
        metavar="PATH_OR_HUB_ID",
        default=bundled.NAME,
        help="image encoder that compares the pictures (default: that of the bundled stack, which"
        " knows drawn scenes only)",
    )
    add_json(command)


def _check(options: argparse.Namespace) -> int:
    from imageprompt.evaluation.image_quality.report import check_pictures

    encoder = _encoder(options.encoder) if len(options.pictures) > 1 else None
    report = check_pictures(options.pictures, encoder, options.encoder)
    if options.json:
        print_json(report.as_dict())
    else:
        print_text(report)
    return UNREADABLE if report.unreadable else 0


def _encoder(name: str) -> Any:
    from imageprompt.encoding.encoders import open_encoder
    from imageprompt.loading import quiet_loading

    with quiet_loading(True):
        return open_encoder(bundled.folder() / "image_encoder" if name == bundled.NAME else name)
