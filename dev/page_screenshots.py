"""The screenshots of docs/page.md: drives the page of a server on the bundled stack.

`python dev/page_screenshots.py [FOLDER]` writes them as WebP (default: docs); needs Chromium.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from imageprompt.demo import scenes

CHROMIUM = "/usr/bin/chromium"
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
QUALITY = 82
GAP = 24  # px between screenshots in one file
WAIT = 120_000  # ms, for what the worker makes


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server on the bundled stack; gives its address."""
    command = [sys.executable, "-m", "imageprompt", "serve", "--port", "0"]
    folders = ["--data", str(folder / "data"), "--library", str(folder / "library")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command + folders, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


def pictures(folder: Path) -> list[Path]:
    """Held-out scenes as files, to be references."""
    found = []
    for index, scene in enumerate(islice(scenes.stream("test"), 12)):
        found.append(folder / f"reference-{index}.png")
        scenes.draw(scene, 256).save(found[-1])
    return found


class Camera:
    """Takes screenshots of pages into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shots: list[Image.Image] = []

    def take(self, page: Page, name: str) -> None:
        self.add(page)
        self.save(name)

    def add(self, page: Page) -> None:
        """One more for the next file, in which they stand side by side."""
        close = page.locator(".toast.shown").get_by_role("button", name="Close")
        if close.count():
            close.click()
        page.wait_for_timeout(400)
        self._shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))

    def save(self, name: str) -> None:
        width = sum(shot.width + GAP for shot in self._shots) - GAP
        sheet = Image.new("RGB", (width, self._shots[0].height), "white")
        left = 0
        for shot in self._shots:
            sheet.paste(shot, (left, 0))
            left += shot.width + GAP
        self._shots = []
        path = self.folder / f"page-{name}.webp"
        sheet.save(path, quality=QUALITY, method=6)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def add(page: Page, files: list[Path]) -> None:
    before = page.locator(".card").count()
    page.locator(".references input[type=file]").first.set_input_files(files)
    expect(page.locator(".card")).to_have_count(before + len(files))


def paint(page: Page, card: Locator, left: float, right: float) -> None:
    """Strokes between these parts of the width; leaves the painter open."""
    card.get_by_role("button", name="Paint area").click()
    box = page.locator("canvas.paint").bounding_box()
    assert box is not None
    xs = [box["x"] + box["width"] * part for part in (left, right)]
    for part in (0.14, 0.24, 0.34, 0.44, 0.54, 0.64, 0.74, 0.84):
        y = box["y"] + box["height"] * part
        page.mouse.move(xs[0], y)
        page.mouse.down()
        page.mouse.move(xs[1], y, steps=4)
        page.mouse.up()


def keep_style(page: Page, file: Path, name: str) -> None:
    add(page, [file])
    card = page.locator(".card").last
    card.get_by_role("button", name="More").click()
    card.get_by_label("Name of the style").fill(name)
    card.get_by_role("button", name="Keep as style").click()
    expect(page.locator(".toast")).to_contain_text(name, timeout=WAIT)
    card.get_by_role("button", name="Remove reference").click()


def wide(browser: Browser, address: str, files: list[Path], camera: Camera) -> dict[str, object]:
    page = browser.new_context(viewport=WIDE, color_scheme="light", locale="en-US").new_page()
    page.goto(address)
    expect(page.get_by_role("button", name="Run from words")).to_be_enabled()
    for file, name in zip(files[4:9], ("ember", "harbour", "moss", "orchard", "dusk"), strict=True):
        keep_style(page, file, name)
    add(page, files[:2])
    page.get_by_label("Prompt", exact=True).fill("a star")
    cards = page.locator(".card")
    cards.nth(0).get_by_label("Take").select_option("style")
    for index, part in enumerate([(0.06, 0.4), (0.6, 0.94)]):
        paint(page, cards.nth(index), *part)
        if index:
            camera.take(page, "mask")
        page.get_by_role("button", name="Done").click()
        page.locator(".painter").wait_for(state="detached")
    cards.nth(1).get_by_label("Last step").fill("12")
    camera.take(page, "references")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".running img").first).to_be_visible(timeout=WAIT)
    camera.take(page, "running")
    expect(page.locator(".thumbs li")).to_have_count(1, timeout=WAIT)
    for card in range(2):
        cards.nth(card).get_by_role("button", name="Clear").click()
    for index in range(2, 9):  # one reference each
        for _ in range(cards.count()):
            cards.nth(0).get_by_role("button", name="Remove reference").click()
        add(page, [files[index]])
        words = ("a star", "", "a ring", "a heart", "", "a moon", "a square")[index - 2]
        page.get_by_label("Prompt", exact=True).fill(words)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".thumbs li")).to_have_count(index, timeout=WAIT)
    page.locator(".thumbs button").nth(2).click()
    camera.take(page, "gallery")
    page.get_by_role("button", name="Compare").click()
    page.locator(".thumbs button").nth(5).click()
    camera.take(page, "compare")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Sweep").click()
    page.get_by_label("Seeds", exact=True).select_option("2")
    page.get_by_role("button", name="Make 10 pictures").click()
    expect(page.locator(".cell.done")).to_have_count(10, timeout=WAIT)
    camera.take(page, "sweep")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("tab", name="Library").click()
    page.get_by_role("button", name="Mix", exact=True).click()
    page.get_by_label("Mix ember").check()
    page.get_by_label("Mix harbour").check()
    camera.take(page, "library")
    return page.context.storage_state()


def dark_and_phone(browser: Browser, address: str, camera: Camera, saved: object) -> None:
    page = browser.new_context(
        viewport=WIDE, color_scheme="dark", locale="en-US", storage_state=saved
    ).new_page()
    page.goto(address)
    page.locator(".thumbs button").nth(12).click()
    camera.take(page, "dark")
    phone = browser.new_context(
        viewport=PHONE, locale="en-US", storage_state=saved, has_touch=True, device_scale_factor=2
    ).new_page()
    phone.goto(address)
    phone.locator(".card").first.wait_for()
    camera.add(phone)
    for name in ("Canvas", "Gallery"):
        phone.locator(".bottom").get_by_role("button", name=name).click()
        camera.add(phone)
    camera.save("phone")


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, server(Path(temporary)) as address:
        files = pictures(Path(temporary))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            camera = Camera(folder)
            dark_and_phone(browser, address, camera, wide(browser, address, files, camera))
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
