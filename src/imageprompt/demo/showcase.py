"""`imageprompt demo`: what pictures take from held-out references, and what text changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.atomic_files import check_folder, write_atomically
from imageprompt.core.bundled import DEFAULT_ADAPTER, FOLDERS, NAME
from imageprompt.core.console import Bars, json_text, print_json, print_text
from imageprompt.core.contact_sheet import INK, PALE, Page, text_width
from imageprompt.core.errors import OptionError
from imageprompt.demo.worlds import WORLDS, DemoReference, World

if TYPE_CHECKING:
    from PIL import Image

    from imageprompt.generation import GenerationResult

MAX_COUNT = 40
TEXT_SCALE = 0.6
SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEEPS = 2  # references with a sweep over the scale

# px of the sheet
CELL = 128
GAP = 12
MARGIN = 36
TITLE = 62
HEADINGS = 26
CAPTION = 38  # height of the text under a picture
ROW = 5 * CELL + 5 * GAP  # width of one row: reference, text alone, two with it, both
BETWEEN = 48


@dataclass
class ShowcaseRow:
    """One reference, the text that contradicts it in one word, and the generated pictures.

    `prompt` says nothing. `pictures` are files by kind: "words" (text alone), "picture" (with the
    reference, two seeds), "both" (reference and text), and for some rows "sweep" (growing scale).
    `labels` are the words that the judge sees in them.
    """

    shown: DemoReference
    reference: Path
    prompt: str
    pictures: dict[str, list[Path]] = field(default_factory=dict)
    labels: dict[str, list[dict[str, str]]] = field(default_factory=dict)


def run(
    output: Path = Path("outputs/demo"),
    *,
    base: str = NAME,
    seed: int = 1,
    count: int = 6,
    json: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Generate `count` rows of pictures in `output`, and print where they are and the figures.

    `base` is one of the bundled stacks.
    Writes `contact-sheet.png`, `references/`, `pictures/` (each with its own recipe inside) and
    `recipe.json`. Returns the report in recipe.json; `json` prints it instead of the table. Raises
    OptionError.
    """
    if not 1 <= count <= MAX_COUNT:
        raise OptionError(f"count {count}", reason=f"not a whole number from 1 to {MAX_COUNT}")
    if base not in FOLDERS:
        raise OptionError(
            f"base {base!r}",
            reason="the demo draws scenes, which only the bundled stacks know",
            hint=f"Use {' or '.join(FOLDERS)}; `imageprompt generate` takes any base.",
        )
    started = time.monotonic()
    output = check_folder(output)
    world = WORLDS[base]
    rows = _draw_references(output, world.references(seed, count), world.prompt)
    total, done = 4 * count + min(SWEEPS, count) * (len(SWEEP) - 2), 0
    with Bars(progress) as bars:

        def add(pictures: int) -> None:
            nonlocal done
            done += pictures
            bars.update("picture", done, total)

        for index, row in enumerate(rows):
            _generate_row(
                row, output, base, seed + 1000 * index, sweep=index < SWEEPS, on_pictures=add
            )
    _judge(rows, world)
    sheet = output / "contact-sheet.png"
    with write_atomically(sheet) as temporary:
        draw_sheet(rows).save(temporary, format="PNG", optimize=True)
    report = _report(rows, world, output, base, sheet, seed, time.monotonic() - started)
    with write_atomically(output / "recipe.json") as temporary:
        temporary.write_text(f"{json_text(report)}\n", encoding="utf-8")
    print_json(report) if json else print_text(_summary(report))
    return report


# ── generating ──────────────────────────────────────────────────────────────────────────────────


def _draw_references(
    output: Path, drawn: Sequence[DemoReference], prompt: str
) -> list[ShowcaseRow]:
    """Write the references."""
    folder = output / "references"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, shown in enumerate(drawn):
        path = folder / f"reference-{index + 1}.png"
        with write_atomically(path) as temporary:
            shown.picture.save(temporary, format="PNG")
        rows.append(ShowcaseRow(shown, path, prompt))
    return rows


def _generate_row(
    row: ShowcaseRow,
    output: Path,
    base: str,
    seed: int,
    *,
    sweep: bool,
    on_pictures: Callable[[int], object],
) -> None:
    """Text alone, reference alone (twice), reference and contradicting text; maybe a sweep."""
    folder = output / "pictures"
    reference = str(row.reference)

    def make(**options: Any) -> list[Path]:
        result = _generate(base=base, seed=seed, **options)
        on_pictures(len(result.images))
        return result.save(folder)

    row.pictures = {
        "words": make(prompt=row.prompt, scale=0.0),
        "picture": make(prompt=row.prompt, reference=reference, scale=1.0, num_images=2),
        "both": make(prompt=row.shown.text, reference=reference, scale=TEXT_SCALE),
    }
    if sweep:
        between = [
            make(prompt=row.prompt, reference=reference, scale=scale)[0] for scale in SWEEP[1:-1]
        ]
        ends = row.pictures["words"][0], row.pictures["picture"][0]
        row.pictures["sweep"] = [ends[0], *between, ends[1]]


def _generate(**options: Any) -> GenerationResult:
    from imageprompt.generation import generate

    return generate(**options, progress=False)


def _judge(rows: list[ShowcaseRow], world: World) -> None:
    """Let the judge classify every picture."""
    for row in rows:
        for kind, paths in row.pictures.items():
            row.labels[kind] = world.classify([_open(path) for path in paths])


def _open(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def _report(
    rows: list[ShowcaseRow],
    world: World,
    output: Path,
    base: str,
    sheet: Path,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """Everything that decided the pictures, and the figures."""
    return {
        "seed": seed,
        "count": len(rows),
        "seconds": round(seconds, 1),
        "contact_sheet": str(sheet),
        "pictures": str(output / "pictures"),
        "base": base,
        "adapter": DEFAULT_ADAPTER,
        "prompt": world.prompt,
        "scales": {"picture": 1.0, "both": TEXT_SCALE, "sweep": SWEEP},
        "match": {
            "words": _matches(rows, world, "words"),
            "picture": _matches(rows, world, "picture"),
        },
        "text_obeyed": _share(
            [_reads(row, row.labels["both"][0], row.shown.changed) for row in rows]
        ),
        "others_kept": _share(
            [
                _reads(row, row.labels["both"][0], name)
                for row in rows
                for name in row.shown.expected
                if name != row.shown.changed
            ]
        ),
        "rows": [
            {
                "reference": str(row.reference.relative_to(output)),
                "scene": row.shown.scene,
                "text": row.shown.text,
                "pictures": {
                    kind: [str(path.relative_to(output)) for path in paths]
                    for kind, paths in row.pictures.items()
                },
                "seen": row.labels,
            }
            for row in rows
        ],
    }


def _reads(row: ShowcaseRow, labels: dict[str, str], name: str) -> bool:
    """Does the judge see the word that is expected of a picture with reference and text?"""
    return labels.get(name) == row.shown.expected[name]


def _matches(rows: list[ShowcaseRow], world: World, kind: str) -> dict[str, float]:
    """By line of the table, how often the pictures of a kind show what the reference shows."""
    return {
        line: _share(
            [
                labels.get(name) == row.shown.words[name]
                for row in rows
                for labels in row.labels[kind]
                for name in names
                if name in row.shown.words
            ]
        )
        for line, names in world.groups.items()
    }


def _share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 3)


def _summary(report: dict[str, Any]) -> str:
    words, picture = report["match"]["words"], report["match"]["picture"]
    prompt = f"prompt {report['prompt']!r}" if report["prompt"] else "no text"
    pad = max(map(len, words))
    lines = [f"{'':{pad}}   text only   with the reference"]
    lines += [f"{n:{pad}}   {words[n]:>9.0%}   {picture[n]:>18.0%}" for n in words]
    return "\n".join(
        [
            f"How often a picture shows what its reference shows ({report['count']} references, "
            f"{prompt}):",
            "",
            *lines,
            "",
            f"When the text contradicts the reference (scale {TEXT_SCALE}):",
            f"the text is followed in {report['text_obeyed']:.0%}, "
            f"the rest still comes from the reference in {report['others_kept']:.0%}.",
            "",
            f"contact sheet  {report['contact_sheet']}",
            f"pictures       {report['pictures']}",
            "               `imageprompt generate --recipe PICTURE` repeats one",
        ]
    )


# ── contact sheet ───────────────────────────────────────────────────────────────────────────────


def draw_sheet(rows: Sequence[ShowcaseRow]) -> Image.Image:
    """References with their pictures in two columns; below them the sweeps over the scale."""
    columns = 1 if len(rows) == 1 else 2
    lines = -(-len(rows) // columns)
    sweeps = [row for row in rows if "sweep" in row.pictures]
    width = 2 * MARGIN + 2 * ROW + BETWEEN
    top = MARGIN + TITLE
    body = HEADINGS + lines * (CELL + CAPTION + GAP)
    sweep = 66 + len(sweeps) * (CELL + GAP)
    page = Page(width, top + body + sweep + MARGIN)
    title, motto = (
        "imageprompt",
        "a picture shows what the text leaves out; text changes what it names",
    )
    page.text(MARGIN, MARGIN, title, size=30, at="left")
    page.text(MARGIN + round(text_width(title, 30)) + 20, MARGIN + 12, motto, size=17, at="left")
    for column in range(columns):
        _draw_headings(page, MARGIN + column * (ROW + BETWEEN), top)
    for index, row in enumerate(rows):
        x = MARGIN + (index % columns) * (ROW + BETWEEN)
        y = top + HEADINGS + (index // columns) * (CELL + CAPTION + GAP)
        _draw_row(page, row, x, y)
    _draw_sweeps(page, sweeps, top + body)
    return page.image


def _draw_headings(page: Page, x: int, y: int) -> None:
    step = CELL + GAP
    names = ("reference", "text only", "with reference", "another seed", f"scale {TEXT_SCALE}")
    for index, name in enumerate(names):
        page.text(x + 4 + index * step + CELL // 2, y, name, size=14, colour=PALE)


def _draw_row(page: Page, row: ShowcaseRow, x: int, y: int) -> None:
    """One reference and its pictures, each above its text."""
    pictures = row.pictures
    cells = [row.reference, *pictures["words"], *pictures["picture"], *pictures["both"]]
    prompt = f"\u201c{row.prompt}\u201d" if row.prompt else "no text"
    texts = ["", prompt, prompt, prompt, f"\u201c{row.shown.text}\u201d"]
    for index, (path, text) in enumerate(zip(cells, texts, strict=True)):
        left = x + 4 + index * (CELL + GAP)
        page.picture(path, left, y, framed=index == 0)
        ink = INK if index == 4 else PALE
        page.text(left + CELL // 2, y + CELL + 7, text, colour=ink, width=CELL + GAP)


def _draw_sweeps(page: Page, rows: Sequence[ShowcaseRow], y: int) -> None:
    """The same seed at growing scales, centred on the page."""
    page.rule(y, margin=MARGIN)
    step = CELL + GAP
    left = (page.image.width - (1 + len(SWEEP)) * step) // 2
    names = ["reference", *(f"scale {scale:g}" for scale in SWEEP)]
    for index, name in enumerate(names):
        page.text(left + index * step + CELL // 2, y + 24, name, size=14, colour=PALE)
    for line, row in enumerate(rows):
        for index, path in enumerate([row.reference, *row.pictures["sweep"]]):
            page.picture(path, left + index * step, y + 50 + line * step, framed=index == 0)
