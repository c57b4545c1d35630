"""`imageprompt faces`: the faces in pictures, their identity embeddings and their crops."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from imageprompt.cli import flags
from imageprompt.core.console import Parser, add_json, describe, print_table
from imageprompt.core.errors import OptionError

COLUMNS = ("index", "box", "size", "score")


def add_faces(command: Parser) -> None:
    describe(
        command,
        _faces,
        "imageprompt faces group.jpg --faces buffalo_l",
        "imageprompt faces me.jpg --faces ~/packs/buffalo_l --save me.npy --crops crops",
        "imageprompt faces group.jpg --faces buffalo_l --face all --save group.npy",
        notes="All faces are listed; --save and --crops write the ones that --face chooses."
        " Needs insightface\n(pip install 'imageprompt[faces]') and a model pack of your own;"
        " nothing is downloaded.",
    )
    from imageprompt.generation.reference import Reference

    add = command.add_argument
    add("pictures", nargs="+", metavar="PIC", help="picture files")
    flags.add_options(command, Reference, ("faces", "face"))
    add("--save", type=Path, metavar="FILE.npy", help="write their embeddings, [faces, 512]")
    add(
        "--raw",
        action="store_true",
        help="do not normalise the embeddings (for the variant portrait-unnorm)",
    )
    add("--crops", type=Path, metavar="DIR", help="write the faces upright, 224x224")
    add_json(command)


def _faces(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder, write_atomically
    from imageprompt.encoding.encoders.contract import check_face_choice
    from imageprompt.encoding.face_embeddings import save_embeddings
    from imageprompt.encoding.face_encoder import FaceEncoder

    if "faces" not in options:
        raise OptionError("no model pack", reason="needed to find faces", hint="Give --faces PACK.")
    which = getattr(options, "face", "largest")
    check_face_choice(which)
    if options.save is not None and options.save.suffix != ".npy":
        raise OptionError(
            f"--save {options.save}",
            reason="embeddings are written as .npy",
            hint="Give a name that ends in .npy.",
        )
    if options.crops is not None:
        check_folder(options.crops)
    encoder = FaceEncoder.load(options.faces)
    listing = "face" not in options and not options.save and not options.crops
    find: Any = encoder.find if listing else partial(encoder.choose, face=which)
    faces = {name: find(name) for name in options.pictures}
    chosen = [face for found in faces.values() for face in found]
    if options.save is not None:
        save_embeddings(options.save, chosen, raw=options.raw)
    if options.crops is not None:
        options.crops.mkdir(parents=True, exist_ok=True)
        for number, face in enumerate(chosen, start=1):
            with write_atomically(options.crops / f"{number:04d}.png") as temporary:
                face.crop().save(temporary)
    rows = [
        {"picture": name, **row}
        for name, found in faces.items()
        for row in [face.as_dict() for face in found] or [dict.fromkeys(COLUMNS)]
    ]
    print_table(rows, options.json)
    return 0 if all(faces.values()) else 1
