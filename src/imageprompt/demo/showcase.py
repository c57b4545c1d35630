"""`imageprompt demo`: what comes across from held-out references, and what words change."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from imageprompt.core.atomic_files import check_folder, write_atomically
from imageprompt.core.bundled import DEFAULT_ADAPTER
from imageprompt.core.contact_sheet import INK, PALE, Page
from imageprompt.core.errors import OptionError
from imageprompt.demo import scenes
from imageprompt.demo.scenes import Scene

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.generation import GenerationResult

PROMPT = "a shape"  # says nothing: what the picture shows comes from the reference, or from chance
TEXT_SCALE = 0.6
SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEPT = 2  # references that the sweep over scale is made with


@dataclass
class Row:
    """One reference and what was generated with it."""

    scene: Scene
    reference: Path
    changed: str  # the attribute that the text names otherwise
    text: str
    wanted: dict[str, str]
    made: dict[str, list[Path]] = field(default_factory=dict)
    seen: dict[str, list[dict[str, str]]] = field(default_factory=dict)


CELL = 128
GAP = 12
MARGIN = 36
CAPTION = 38  # height of the text under a picture
GROUP = 5 * CELL + 5 * GAP  # width of one row: reference, words, two of picture, both
BETWEEN = 48


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """References and what was made with them, two side by side; below, the sweep over scale."""
    columns = 1 if len(rows) == 1 else 2
    lines = -(-len(rows) // columns)
    swept = [row for row in rows if "sweep" in row.made]
    width = 2 * MARGIN + 2 * GROUP + BETWEEN
    top = MARGIN + 62
    body = 26 + lines * (CELL + CAPTION + GAP)
    sweep = 66 + len(swept) * (CELL + GAP)
    page = Page(width, top + body + sweep + MARGIN)
    page.text(MARGIN, MARGIN, "imageprompt", size=30, at="left")
    motto = "a picture says what the words leave out; words change what they name"
    page.text(MARGIN + 200, MARGIN + 10, motto, size=17, at="left")
    for column in range(columns):
        _headings(page, MARGIN + column * (GROUP + BETWEEN), top)
    for index, row in enumerate(rows):
        x = MARGIN + (index % columns) * (GROUP + BETWEEN)
        _row(page, row, x, top + 26 + (index // columns) * (CELL + CAPTION + GAP))
    _sweep(page, swept, top + body)
    return page.image


def _headings(page: Page, x: int, y: int) -> None:
    step = CELL + GAP
    names = ("reference", "words alone", "with reference", "another seed", f"scale {TEXT_SCALE}")
    for index, name in enumerate(names):
        page.text(x + 4 + index * step + CELL // 2, y, name, size=14, colour=PALE)


def _row(page: Page, row: Row, x: int, y: int) -> None:
    """One reference: its pictures, and under each the text that it was made with."""
    cells = [row.reference, *row.made["words"], *row.made["picture"], *row.made["both"]]
    quoted = f"\u201c{PROMPT}\u201d"
    texts = ["", quoted, quoted, quoted, f"\u201c{row.text}\u201d"]
    for index, (path, text) in enumerate(zip(cells, texts, strict=True)):
        left = x + 4 + index * (CELL + GAP)
        page.picture(path, left, y, framed=index == 0)
        ink = INK if index == 4 else PALE
        page.text(left + CELL // 2, y + CELL + 7, text, colour=ink, width=CELL + GAP)


def _sweep(page: Page, rows: Sequence[Row], y: int) -> None:
    """The same seed at growing scales, centred on the page."""
    page.rule(y, margin=MARGIN)
    width = (1 + len(SWEEP)) * (CELL + GAP)
    left = (page.image.width - width) // 2
    names = ["reference", *(f"scale {scale:g}" for scale in SWEEP)]
    for index, name in enumerate(names):
        page.text(left + index * (CELL + GAP) + CELL // 2, y + 24, name, size=14, colour=PALE)
    for line, row in enumerate(rows[:SWEPT]):
        for index, path in enumerate([row.reference, *row.made["sweep"]]):
            page.picture(
                path, left + index * (CELL + GAP), y + 50 + line * (CELL + GAP), framed=index == 0
            )


MOST = 40
# which word the text changes, row by row
OVERRIDES = ("shape", "colour", "texture", "background")


def run(
    output: Path = Path("outputs/demo"),
    *,
    seed: int = 1,
    count: int = 6,
    json: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Make `count` rows of pictures in `output`, print where they are and how much came across.

    Writes `contact-sheet.png`, `references/`, `pictures/` (each with its own recipe inside) and
    `recipe.json`. Returns the report that recipe.json holds; `json` prints it instead of the table.
    """
    if not 1 <= count <= MOST:
        raise OptionError(f"count {count}", reason=f"a whole number from 1 to {MOST}")
    started = time.monotonic()
    output = check_folder(output)
    rows = _rows(output, seed, count)
    with _bar(progress, 4 * count + SWEPT * (len(SWEEP) - 2)) as tell:
        for index, row in enumerate(rows):
            _generate_row(row, output, seed + 1000 * index, sweep=index < SWEPT, tell=tell)
    _judge(rows)
    sheet = output / "contact-sheet.png"
    with write_atomically(sheet) as temporary:
        draw_sheet(rows).save(temporary, format="PNG", optimize=True)
    report = _report(rows, output, sheet, seed, time.monotonic() - started)
    with write_atomically(output / "recipe.json") as temporary:
        temporary.write_text(json_module.dumps(report, indent=1) + "\n")
    print(json_module.dumps(report, indent=1) if json else _summary(report))
    return report


# -- generating -------------------------------------------------------------------------------


def _rows(output: Path, seed: int, count: int) -> list[Row]:
    """Draw held-out references and choose the word that the text changes for each."""
    rng = np.random.default_rng(seed)
    folder = output / "references"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, scene in enumerate(_varied(seed, count)):
        path = folder / f"reference-{index + 1}.png"
        with write_atomically(path) as temporary:
            scenes.draw(scene).save(temporary, format="PNG")
        name = OVERRIDES[index % len(OVERRIDES)]
        other = scenes.change(scene, [name], rng)
        while name == "colour" and other.colour == "orange":  # captions of this world know no "an"
            other = scenes.change(scene, [name], rng)
        rows.append(Row(scene, path, name, scenes.caption(other, {name}), other.words()))
    return rows


def _varied(seed: int, count: int) -> list[scenes.Scene]:
    """Test scenes in their order, passing over shapes and textures shown more than others."""
    chosen: list[scenes.Scene] = []
    for scene in islice(scenes.stream("test", seed=10_000 + seed), 400):
        shown = [other.shape for other in chosen]
        texture = [other.texture for other in chosen]
        even = shown.count(scene.shape) <= len(chosen) // len(scenes.SHAPES)
        if even and texture.count(scene.texture) <= len(chosen) // len(scenes.TEXTURES):
            chosen.append(scene)
        if len(chosen) == count:
            break
    return chosen


def _generate_row(
    row: Row, output: Path, seed: int, *, sweep: bool, tell: Callable[[int], object]
) -> None:
    """Words alone, picture alone (twice), picture and contrary words; maybe a sweep over scale."""
    pictures = output / "pictures"
    reference = str(row.reference)

    def make(kind: str, **options: Any) -> None:
        result = _generate(seed=seed, **options)
        row.made[kind] = result.save(pictures)
        tell(len(result.images))

    make("words", prompt=PROMPT, scale=0.0)
    make("picture", prompt=PROMPT, reference=reference, scale=1.0, num_images=2)
    make("both", prompt=row.text, reference=reference, scale=TEXT_SCALE)
    if sweep:
        row.made["sweep"] = []
        for scale in SWEEP[1:-1]:
            result = _generate(seed=seed, prompt=PROMPT, reference=reference, scale=scale)
            row.made["sweep"] += result.save(pictures)
            tell(1)
        row.made["sweep"] = [row.made["words"][0], *row.made["sweep"], row.made["picture"][0]]


def _generate(**options: Any) -> GenerationResult:
    from imageprompt.generation import generate

    return generate(**options, progress=False)


def _judge(rows: list[Row]) -> None:
    """Let the judge read every picture."""
    from imageprompt.demo import judge

    for row in rows:
        for kind, paths in row.made.items():
            row.seen[kind] = judge.read([_open(path) for path in paths])


def _open(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


# -- reporting --------------------------------------------------------------------------------


def _report(
    rows: list[Row], output: Path, sheet: Path, seed: int, seconds: float
) -> dict[str, Any]:
    """Everything that decided the pictures, and the figures."""
    return {
        "seed": seed,
        "count": len(rows),
        "seconds": round(seconds, 1),
        "contact_sheet": str(sheet),
        "pictures": str(output / "pictures"),
        "adapter": DEFAULT_ADAPTER,
        "prompt": PROMPT,
        "scales": {"picture": 1.0, "both": TEXT_SCALE, "sweep": SWEEP},
        "match": {
            "words": _matches(rows, "words"),
            "picture": _matches(rows, "picture"),
        },
        "text_obeyed": _share([r.seen["both"][0][r.changed] == r.wanted[r.changed] for r in rows]),
        "others_kept": _share(
            [
                row.seen["both"][0][name] == row.wanted[name]
                for row in rows
                for name in scenes.ATTRIBUTES
                if name != row.changed
            ]
        ),
        "rows": [
            {
                "reference": str(row.reference.relative_to(output)),
                "scene": row.scene.as_dict(),
                "text": row.text,
                "pictures": {
                    kind: [str(path.relative_to(output)) for path in paths]
                    for kind, paths in row.made.items()
                },
                "seen": row.seen,
            }
            for row in rows
        ],
    }


def _matches(rows: list[Row], kind: str) -> dict[str, float]:
    """Per attribute, how often the pictures of a kind show what the reference shows."""
    return {
        name: _share(
            [seen[name] == getattr(row.scene, name) for row in rows for seen in row.seen[kind]]
        )
        for name in scenes.ATTRIBUTES
    }


def _share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 3)


def _summary(report: dict[str, Any]) -> str:
    """The short table."""
    words, picture = report["match"]["words"], report["match"]["picture"]
    pad = max(map(len, scenes.ATTRIBUTES))
    lines = [f"{'':{pad}}   text only   with the reference"]
    lines += [f"{n:{pad}}   {words[n]:>9.0%}   {picture[n]:>18.0%}" for n in scenes.ATTRIBUTES]
    return "\n".join(
        [
            f"How often a picture shows what its reference shows ({report['count']} references, "
            f"prompt {report['prompt']!r}):",
            "",
            *lines,
            "",
            f"Text against the picture (scale {TEXT_SCALE}): obeyed {report['text_obeyed']:.0%}, "
            f"the rest kept {report['others_kept']:.0%}.",
            "",
            f"contact sheet  {report['contact_sheet']}",
            f"pictures       {report['pictures']}",
            "               `imageprompt generate --recipe PICTURE` repeats one",
        ]
    )


@contextmanager
def _bar(wanted: bool, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr; yields what is told how many pictures were made."""
    from tqdm import tqdm

    with tqdm(total=total, unit="picture", disable=not wanted) as bar:
        yield bar.update
