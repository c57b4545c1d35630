"""The pictures of docs/control.md: presets, two references mixed, masks and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from imageprompt.core.contact_sheet import PALE, Page
from imageprompt.demo import scenes

if TYPE_CHECKING:
    from control_bench import Bench

CELL, GAP, MARGIN = 80, 12, 26
STEP = CELL + GAP
LABELS = 152
ENDS = (0.0, 0.1, 0.2, 0.4, 1.0)
SHAPES = ("star", "heart", "moon", "cross", "triangle", "ring")

Pictures = list[Image.Image]


def draw(bench: Bench, folder: Path) -> list[Path]:
    """Generate and write the figures, each in 256 colours."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in FIGURES.items():
        path = folder / f"control-{name}.png"
        page = figure(bench).image
        palette = page.quantize(256)
        page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
        paths.append(path)
    return paths


def presets(bench: Bench) -> Page:
    """Two blocks: the style preset with texts that name a shape, layout with other texts."""
    cast = _pick_scenes(8)
    blocks = (("style", ("shape",), cast[:4]), ("layout", ("colour", "background"), cast[4:]))
    rows = ("reference", "words alone", "all sites, scale 1", "preset")
    wide = LABELS + 8 * STEP + 28
    page = Page(2 * MARGIN + wide, MARGIN + 84 + len(rows) * STEP, cell=CELL)
    for line, name in enumerate(rows):
        page.text(MARGIN, 106 + line * STEP + 32, name, size=15, at="left")
    for block, (preset, names, chosen) in enumerate(blocks):
        x = MARGIN + LABELS + block * (4 * STEP + 28)
        page.text(x, 20, f'preset "{preset}"', size=18, at="left")
        references = [[scenes.draw(scene)] for scene in chosen]
        texts = [scenes.caption(_other(scene, names), set(names)) for scene in chosen]
        lines: list[Pictures] = [[one[0] for one in references]]
        for controls in ({"scale": 0.0}, {}, {"preset": preset}):
            lines.append(bench.generate(texts, (references, controls)))
        for column, text in enumerate(texts):
            middle = x + column * STEP + CELL // 2
            page.text(middle, 50, f"\u201c{text}\u201d", size=12, colour=PALE, width=CELL + 6)
        _grid(page, lines, x, 106)
    return page


def mix(bench: Bench) -> Page:
    """The column's reference gives the layout, the row's the style."""
    chosen = _pick_scenes(11)
    across, down = chosen[:6], chosen[6:]
    page = Page(2 * MARGIN + LABELS + 7 * STEP, 2 * MARGIN + 38 + 6 * STEP, cell=CELL)
    title = "two references: layout from the top, style from the left"
    page.text(MARGIN, MARGIN - 10, title, size=18, at="left")
    left, top = MARGIN + LABELS - 60, MARGIN + 38
    for index, scene in enumerate(across):
        page.picture(scenes.draw(scene), left + (1 + index) * STEP, top, framed=True)
    for line, scene in enumerate(down):
        y = top + (1 + line) * STEP
        page.picture(scenes.draw(scene), left, y, framed=True)
        pictures = bench.generate(
            [""] * len(across),
            ([[scenes.draw(one)] for one in across], {"preset": "layout"}),
            ([[scenes.draw(scene)]] * len(across), {"preset": "style"}),
        )
        for index, picture in enumerate(pictures):
            page.picture(picture, left + (1 + index) * STEP, y)
    page.text(MARGIN, top + 32, "layout", size=15, at="left", colour=PALE)
    page.text(MARGIN, top + STEP + 32, "style", size=15, at="left", colour=PALE)
    return page


def masks(bench: Bench) -> Page:
    """Two references, one half each, on square and on wide pictures."""
    count = 4
    chosen = _pick_scenes(2 * count)
    first, second = ([[scenes.draw(one)] for one in chosen[start::2]] for start in (0, 1))
    generated = {}
    for width in (64, 128):
        left = np.zeros((64, width), np.float32)
        left[:, : width // 2] = 1
        layers = ((first, {"mask": left}), (second, {"mask": 1 - left}))
        generated[width] = bench.generate(["a shape"] * count, *layers, size=(width, 64))
    step, line = 2 * STEP + GAP, STEP + 6
    page = Page(2 * MARGIN + LABELS + count * step - GAP, MARGIN + 3 * line + 14, cell=CELL)
    for index, name in enumerate(("references", "square, one half each", "wide, one half each")):
        page.text(MARGIN, MARGIN + index * line + 30, name, size=15, at="left")
    for index in range(count):
        x = MARGIN + LABELS + index * step
        page.picture(first[index][0], x, MARGIN, framed=True)
        page.picture(second[index][0], x + STEP, MARGIN, framed=True)
        page.picture(generated[64][index], x + STEP // 2, MARGIN + line)
        page.picture(generated[128][index], x + GAP // 2, MARGIN + 2 * line, size=(2 * CELL, CELL))
    return page


def schedule(bench: Bench) -> Page:
    """The reference until a part of the schedule, with texts that name colour and texture."""
    names = ("colour", "texture")
    chosen = _pick_scenes(4)
    references = [[scenes.draw(scene)] for scene in chosen]
    texts = [scenes.caption(_other(scene, names), set(names)) for scene in chosen]
    columns: list[Pictures] = [[one[0] for one in references]]
    for end in ENDS:
        controls: dict[str, Any] = {"schedule": f"0-{end}"} if end else {"scale": 0.0}
        columns.append(bench.generate(texts, (references, controls)))
    heads = ["reference", "never", *(f"0-{end:g}" for end in ENDS[1:])]
    page = Page(2 * MARGIN + LABELS + 40 + len(heads) * STEP, MARGIN + 34 + 4 * STEP, cell=CELL)
    x = MARGIN + LABELS + 40
    page.text(MARGIN, MARGIN - 6, "text; schedule:", size=15, at="left", colour=PALE)
    for column, head in enumerate(heads):
        page.text(x + column * STEP + CELL // 2, MARGIN - 6, head, size=15, colour=PALE)
    for line, text in enumerate(texts):
        y = MARGIN + 30 + line * STEP
        page.text(MARGIN, y + 32, f"\u201c{text}\u201d", size=13, at="left")
    _grid(page, [list(row) for row in zip(*columns, strict=True)], x, MARGIN + 24, frames="column")
    return page


FIGURES = {"presets": presets, "mix": mix, "masks": masks, "schedule": schedule}


def _grid(page: Page, lines: Sequence[Pictures], x: int, y: int, *, frames: str = "row") -> None:
    """Pictures in rows; the first row or column contains the references."""
    for line, pictures in enumerate(lines):
        for column, picture in enumerate(pictures):
            framed = (line if frames == "row" else column) == 0
            page.picture(picture, x + column * STEP, y + line * STEP, framed=framed)


def _pick_scenes(count: int) -> list[scenes.Scene]:
    """Held-out scenes in which shapes and backgrounds vary."""
    chosen: list[scenes.Scene] = []
    for scene in scenes.stream("test", seed=4242):
        last = [(one.shape, one.background, one.colour) for one in chosen[-4:]]
        fresh = all(
            not {scene.shape, scene.background} & {shape, ground} and scene.colour != colour
            for shape, ground, colour in last
        )
        if fresh and scene.shape in SHAPES:
            chosen.append(scene)
        if len(chosen) == count:
            return chosen
    raise AssertionError


def _other(scene: scenes.Scene, names: Sequence[str]) -> scenes.Scene:
    """The scene with these words changed, avoiding "a orange"."""
    rng = np.random.default_rng(round(1000 * scene.x))
    while True:
        other = scenes.change(scene, names, rng)
        if " a orange " not in f" {scenes.caption(other, set(names))} ":
            return other
