"""The command `imageprompt faces`: which faces are in a picture, and their embeddings for later."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from imageprompt.core.console import add_command, add_json, number_or_word, print_table

COLUMNS = ("index", "box", "size", "score")


def add_commands(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "faces",
        _faces,
        "list the faces in pictures, and save their identity embeddings and crops",
        "imageprompt faces group.jpg --pack buffalo_l",
        "imageprompt faces me.jpg --pack ~/packs/buffalo_l --save me.npy --crops crops",
    )
    add = command.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="PNG, JPEG or WEBP files")
    add(
        "--pack",
        required=True,
        help="insightface's model pack: its folder, or its name in ~/.insightface/models",
    )
    add(
        "--face",
        type=number_or_word,
        default="all",
        help='of each picture "largest", "all" (default), or one by its index (0 is the largest)',
    )
    add("--save", type=Path, metavar="FILE.npy", help="write their embeddings, [faces, 512]")
    add("--raw", action="store_true", help="as the recogniser made them, for portrait-unnorm")
    add("--crops", type=Path, metavar="FOLDER", help="write the faces upright, 224x224")
    add_json(command)
    command.epilog = (
        f"{command.epilog}\n\nIt needs insightface (pip install 'imageprompt[faces]') and a model"
        " pack of your own;\nnothing is downloaded."
    )


def _faces(options: argparse.Namespace) -> int:
    from imageprompt.core.atomic_files import check_folder
    from imageprompt.core.errors import OptionError
    from imageprompt.encoding.encoders.face import FaceEncoder, check_choice
    from imageprompt.encoding.face_embeddings import save_embeddings

    check_choice(options.face)
    if options.save is not None and options.save.suffix != ".npy":
        raise OptionError(f"--save {options.save}", reason="embeddings are written as .npy")
    if options.crops is not None:
        check_folder(options.crops)
    finder = FaceEncoder.load(options.pack)
    listing = options.face == "all" and not options.save and not options.crops
    look = finder.find if listing else partial(finder.choose, which=options.face)
    seen = {name: look(name) for name in options.pictures}
    found = [(name, face) for name, faces in seen.items() for face in faces]
    if options.save is not None:
        save_embeddings(options.save, [face for _, face in found], raw=options.raw)
    if options.crops is not None:
        options.crops.mkdir(parents=True, exist_ok=True)
        for number, (_, face) in enumerate(found, start=1):
            face.crop().save(options.crops / f"{number:04d}.png")
    rows = [
        {"picture": name, **row}
        for name, faces in seen.items()
        for row in [face.as_dict() for face in faces] or [dict.fromkeys(COLUMNS)]
    ]
    print_table(rows, options.json)
    return 0 if all(seen.values()) else 1
