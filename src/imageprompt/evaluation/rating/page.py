"""The page for raters, and the key that is kept from them."""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imageprompt.core.atomic_files import write_atomically, write_folder_atomically
from imageprompt.core.console import json_text
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.untrusted import read_regular
from imageprompt.encoding.images.open_image import open_picture
from imageprompt.evaluation.rating.answers import read_key
from imageprompt.evaluation.rating.questions import AXES, REPEATED, Mode, Questions, ask
from imageprompt.evaluation.rating.subjects import Subject
from imageprompt.evaluation.scoring.pictures import MAX_FILE
from imageprompt.library.thumbnail import image_bytes

SIDE = 512  # px
LARGE = 50 * 2**20  # bytes
TITLE = "Rate pictures"
QUESTION = "Which picture is the better answer to the request?"
PAGE, FOLDER, KEY = "rate.html", "rate", "rate-key.json"
_SMALL = 128 * 128  # pixels; a drawing so small loses by lossy compression


@dataclass(frozen=True)
class Written:
    """What was written: the page, the key, and how much there is to rate."""

    page: Path
    key: Path
    questions: int
    planted: int
    repeated: int
    nbytes: int


def write_page(
    subjects: Sequence[Subject],
    output: Path,
    *,
    mode: Mode = "pairs",
    count: int | None = None,
    title: str = TITLE,
    question: str = QUESTION,
    folder: bool = False,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write `rate.html`, with its pictures inside, and `rate-key.json` to a folder.

    With `folder`, the pictures lie beside the page, in `rate/`. The same subjects give the same
    bytes. Warns of a page above 50 MB. Raises PictureError, WriteError, and OptionError where the
    key of another study is in the way.
    """
    files = dict.fromkeys(path for one in subjects for path in _files(one))
    questions = ask(subjects, {path: _hash(path) for path in files}, mode, count=count)
    _check_key(output / KEY, questions)
    encoded: dict[Path, bytes] = {}
    content: dict[str, bytes] = {}
    for number, (name, path) in enumerate(sorted(questions.files.items())):
        on_picture(number, len(questions.files))
        if path not in encoded:
            encoded[path] = _encode(open_picture(path))
        content[name] = encoded[path]
    output.mkdir(parents=True, exist_ok=True)
    if folder:
        nbytes = _write_folder(output / FOLDER, questions, content, title, question)
        page = output / FOLDER / "index.html"
    else:
        urls = {one: f"data:image/webp;base64,{_base64(data)}" for one, data in content.items()}
        page = output / PAGE
        nbytes = _write_text(page, _render(questions, urls, title, question))
        if nbytes > LARGE:
            warnings.warn(
                f"{PAGE} has {nbytes / 2**20:.0f} MB: browsers load it slowly. Use --folder, or"
                " --count for fewer questions.",
                stacklevel=2,
            )
    _write_text(output / KEY, f"{json_text(questions.key())}\n")
    asked = sum(one.expected is None for one in questions.items)
    repeated = max(1, round(REPEATED * len(questions.items)))
    return Written(page, output / KEY, asked, len(questions.items) - asked, repeated, nbytes)


def _files(subject: Subject) -> list[Path]:
    reference = [] if subject.reference is None else [subject.reference]
    return [*reference, *subject.pictures.values()]


def _hash(path: Path) -> str:
    """SHA-256 of a file. Raises PictureError."""
    try:
        return hashlib.sha256(read_regular(path, MAX_FILE)).hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise PictureError(f"picture {str(path)!r}", reason=f"cannot be read: {reason}") from error


def _encode(picture: Image.Image) -> bytes:
    """A WebP of at most SIDE px, without metadata."""
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = picture.width * picture.height <= _SMALL
    return image_bytes(picture, format="WEBP", quality=90, method=4, lossless=small)


def _check_key(path: Path, questions: Questions) -> None:
    """A key that is overwritten makes the answers to its page worthless. Raises OptionError."""
    if path.exists() and read_key(path).study != questions.study:
        raise OptionError(
            f"{str(path)!r}",
            reason="is the key to another page",
            hint="Choose another --output: without its key, the answers to that page are lost.",
        )


def _write_folder(
    path: Path, questions: Questions, content: dict[str, bytes], title: str, question: str
) -> int:
    urls = {one: f"pictures/{one}.webp" for one in content}
    with write_folder_atomically(path) as temporary:
        (temporary / "pictures").mkdir()
        for one, data in content.items():
            (temporary / urls[one]).write_bytes(data)
        nbytes = _write_text(temporary / "index.html", _render(questions, urls, title, question))
    return nbytes + sum(map(len, content.values()))


def _render(questions: Questions, urls: dict[str, str], title: str, question: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined
    )
    data: dict[str, Any] = {
        "study": questions.study,
        "mode": questions.mode,
        "question": question,
        "items": questions.for_raters(),
        "repeated": REPEATED,
        "axes": [asdict(axis) for axis in AXES] if questions.mode == "scales" else [],
    }
    return environment.get_template("page.html").render(
        title=title,
        data=data,
        pictures=urls,
        sources="data:" if all(url.startswith("data:") for url in urls.values()) else "*",
        css=(here / "page.css").read_text("utf-8"),
        js=(here / "page.js").read_text("utf-8"),
    )


def _write_text(path: Path, text: str) -> int:
    """Returns the number of bytes."""
    content = text.encode("utf-8", errors="backslashreplace")
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
