"""The page of `imageprompt serve` in a headless Chromium, against a live server in two steps."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

import imageprompt.serve
from imageprompt.control import DEFAULT_SCALE
from imageprompt.demo import scenes
from served import API, Served, drawn, pixels, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PAGE = Path(imageprompt.serve.__file__).parent / "page"
STEPS = "2"
WAIT = 60_000  # ms, for what the worker makes
VENDORED = {
    "preact-htm.js": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
    "LICENSE-htm.txt": "740725f7252e750af735d0028cc534970772f513331e9f68150fede8fb3ce00f",
    "LICENSE-preact.txt": "1fe6958409c8c257a70c587a18b6f7f412b179b456630790d30b2ec9a8e4b7d4",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures to be references."""
    folder = tmp_path_factory.mktemp("files")
    found = [folder / "first.png", folder / "second.png"]
    for file, scene in zip(found, scenes.stream("test"), strict=False):
        scenes.draw(scene).save(file)
    return found


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, server: Served) -> Iterator[Open]:
    """Opens the page; at the end, nothing foreign was asked for and the console is clean."""
    asked: list[str] = []
    said: list[str] = []
    contexts = []

    def opened(
        path: str = "/", *, gate: Callable[[Route], None] | None = None, **options: Any
    ) -> Page:
        contexts.append(browser.new_context(locale=options.pop("locale", "en-US"), **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)  # a busy machine paints slowly
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        if gate is not None:
            page.route("**/api/v1/**", gate)
            page.route("**/openapi.json", gate)
        page.goto(f"{server.address}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    own = (server.address, "data:", "blob:" + server.address)
    assert not [url for url in asked if not url.startswith(own)]
    refused = "Failed to load resource: the server responded with a status of 4"
    assert not [text for text in said if refused not in text]


def ready(page: Page) -> Page:
    """The form at two steps."""
    page.get_by_label("Steps").first.fill(STEPS)
    expect(page.locator(".go")).to_be_enabled()
    return page


def add(page: Page, *chosen: Path) -> Locator:
    """Cards for these files; returns the last."""
    before = page.locator(".card").count()
    page.locator(".references input[type=file]").first.set_input_files(chosen)
    expect(page.locator(".card")).to_have_count(before + len(chosen))
    return page.locator(".card").last


def run(page: Page, server: Served, *, by_key: bool = True) -> Any:
    """The job of the form when it has ended, seen in the gallery."""
    before = page.locator(".thumbs li").count()
    with page.expect_response(lambda answer: answer.url.endswith("/jobs")) as sent:
        if by_key:
            page.keyboard.press("Control+Enter")
        else:
            page.locator(".go").click()
    job = sent.value.json()
    expect(page.locator(".thumbs li")).to_have_count(before + 1, timeout=WAIT)
    return server.ended(job)


def drop(page: Page, name: str, data: bytes, kind: str = "image/png") -> None:
    """A file is dragged over the page and let go."""
    transfer = page.evaluate_handle(
        """([name, kind, text]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: kind }));
            return transfer;
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("main", event, {"dataTransfer": transfer})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_what_is_vendored_is_what_its_authors_published() -> None:
    found = {file.name: digest(file.read_bytes()) for file in (PAGE / "vendor").iterdir()}
    assert found == VENDORED


def test_the_page_is_small_and_loads_nothing_else(open_page: Open, server: Served) -> None:
    """Under 100 kB on the wire."""
    sizes: dict[str, int] = {}
    page = open_page()
    page.locator("button").first.wait_for()
    for entry in page.evaluate(
        "performance.getEntries().map((one) => [one.name, one.encodedBodySize])"
    ):
        if entry[0].startswith(server.address) and API not in entry[0]:
            sizes[entry[0]] = entry[1]
    assert len(sizes) >= 12
    assert sum(sizes.values()) < 100_000, sizes


def test_both_languages_have_the_same_words(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    words = page.evaluate("import('/words.js').then((module) => module.WORDS)")
    assert words["en"].keys() == words["zh"].keys()
    slots = {
        language: {key: sorted(set(re.findall(r"\{(\w+)", text))) for key, text in table.items()}
        for language, table in words.items()
    }
    assert slots["en"] == slots["zh"]
    used = set()
    for file in PAGE.glob("*.js"):
        used |= set(re.findall(r"""\bt\("([^"]+)\"""", file.read_text("utf-8")))
    assert used <= words["en"].keys()
    expect(page.locator(".go")).to_contain_text("生成")
    page.locator(".language").select_option("en")
    expect(page.locator(".go")).to_contain_text("Run")
    page.reload()
    expect(page.locator(".go")).to_contain_text("Run")


# ── journeys ────────────────────────────────────────────────────────────────────────────────────


def test_from_a_reference_to_a_picture(open_page: Open, server: Served, files: list[Path]) -> None:
    page = ready(open_page())
    drop(page, "cat.png", files[0].read_bytes())
    card = page.locator(".card")
    expect(card.locator("img")).to_be_visible()
    card.get_by_label("Take").select_option("style")
    card.get_by_label("Strength").first.fill("0.6")
    card.get_by_label("Curve").select_option("ease-out")
    card.get_by_label("Last step").fill("1")
    page.get_by_label("Prompt", exact=True).fill("a star")
    page.get_by_label("Fresh noise (eta)").first.fill("0.5")
    job = run(page, server, by_key=False)
    assert job["state"] == "done"
    hash = digest(files[0].read_bytes())
    assert job["request"]["prompt"] == "a star"
    assert job["request"]["steps"] == 2
    assert job["request"]["eta"] == 0.5
    assert job["request"]["references"] == [
        {
            "reference": [f"upload:{hash}"],
            "scale": 0.6,
            "preset": "style",
            "schedule": "0-0.5 ease-out",
        }
    ]
    expect(page.locator(".frame > img")).to_have_attribute("alt", "a star")
    expect(page.locator(".recipe")).to_contain_text(str(job["images"][0]["seed"]))
    page.reload()  # the form is kept, pictures come from the server
    expect(page.locator(".card img")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a star")
    page.locator(".thumbs button").first.click()
    page.get_by_role("button", name="Use this").click()
    again = run(page, server)
    assert again["request"] == job["request"]
    assert pixels(server.picture(again)) == pixels(server.picture(job))


def test_content_of_one_picture_and_look_of_another(
    open_page: Open, server: Served, files: list[Path]
) -> None:
    page = ready(open_page())
    for file in files[:2]:
        add(page, file)
    cards = page.locator(".card")
    cards.nth(0).get_by_label("Take").select_option("dual#content")
    cards.nth(1).get_by_label("Take").select_option("dual#style")
    expect(cards.nth(0).locator("strong")).to_have_text("Content")
    expect(cards.nth(1).locator("strong")).to_have_text("Look")
    job = run(page, server)
    assert job["state"] == "done"
    assert [(one["adapter"], one["reference"]) for one in job["request"]["references"]] == [
        (f"dual#{half}", [f"upload:{digest(file.read_bytes())}"])
        for half, file in zip(("content", "style"), files, strict=False)
    ]
    cards.nth(1).get_by_label("Take").select_option("layout")
    expect(cards.nth(1).get_by_label("Adapter")).to_have_value("")  # a preset is of a whole adapter


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """A stroke over the frame, in parts of its width and height."""
    box = page.locator("canvas.paint").bounding_box()
    assert box is not None
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_two_references_with_painted_masks(
    open_page: Open, server: Served, files: list[Path]
) -> None:
    page = ready(open_page())
    add(page, *files)
    cards = page.locator(".card")
    for index, (inside, outside) in enumerate([(0.2, -0.3), (0.8, 1.3)]):
        cards.nth(index).get_by_role("button", name="Paint area").click()
        # leaves the frame, goes on outside, returns; the second one ends outside
        around = [(inside, 0.1), (inside, 0.3), (outside, 0.3), (outside, 0.7), (inside, 0.7)]
        stroke(page, *around, (inside, 0.9))
        stroke(page, (0.5, 0.5), (outside, 0.5))
        page.get_by_role("button", name="Undo").click()
        page.get_by_role("button", name="Done").click()
        expect(page.locator(".painter")).to_have_count(0)
        expect(cards.nth(index).locator("canvas.mask")).to_be_visible()
    job = run(page, server)
    masks = []
    for reference in job["request"]["references"]:
        data = server.get(f"/uploads/{reference['mask'].split(':')[1]}").content
        masks.append(np.asarray(Image.open(io.BytesIO(data)).convert("L")))
    left, right = masks
    assert left.shape == (512, 512)
    for y in (102, 410):
        assert left[y, 102] == 255 == right[y, 410]
        assert left[y, 410] == 0 == right[y, 102]
    assert not left[256].any()  # nothing along the edge; the second stroke was taken back
    assert not right[256].any()

    cards.nth(0).get_by_role("button", name="Edit").click()
    page.get_by_label("Fill").select_option("top")
    page.get_by_role("button", name="Invert").click()
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".painter")).to_have_count(0)
    cards.nth(1).get_by_role("button", name="Clear").click()
    request = run(page, server)["request"]["references"]
    data = server.get(f"/uploads/{request[0]['mask'].split(':')[1]}").content
    mask = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert mask[128, 400] == 0
    assert mask[440, 400] == 255
    assert mask[410, 102] == 0
    assert "mask" not in request[1]


def test_start_picture_and_inpaint_mask(open_page: Open, server: Served, files: list[Path]) -> None:
    page = ready(open_page())
    page.locator(".start input[type=file]").set_input_files(files[0])
    page.get_by_label("Change", exact=True).first.fill("0.9")
    page.get_by_role("button", name="Paint what to redo").click()
    stroke(page, (0.4, 0.5), (0.6, 0.5))
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".start canvas")).to_be_visible()
    job = run(page, server)
    request = job["request"]
    assert request["init_image"] == f"upload:{digest(files[0].read_bytes())}"
    assert request["strength"] == 0.9
    assert request["inpaint_mask"].startswith("upload:")

    made = f"upload:{digest(server.picture(job))}"  # goes on from what was made
    page.get_by_role("button", name="Use the picture as start picture").click()
    expect(page.locator(".start canvas")).to_have_count(0)
    page.get_by_role("button", name="Use the picture as a reference").click()
    expect(page.locator(".card")).to_have_count(1)
    request = run(page, server)["request"]
    assert request["init_image"] == made
    assert request["references"][0]["reference"] == [made]


def test_cancel_and_the_place_in_the_queue(open_page: Open, server: Served) -> None:
    """More jobs than a browser opens connections; cancelling gets through all the same."""
    page = ready(open_page())
    page.get_by_label("Steps").first.fill("150")
    progress = page.locator(".dock .progress")
    for _ in range(7):
        page.locator(".go").click()
    expect(progress).to_contain_text("6 more")
    expect(progress).to_contain_text("of 150", timeout=WAIT)
    page.get_by_role("button", name="Cancel all").click()
    expect(progress).to_have_count(0, timeout=WAIT)
    page.locator(".go").click()
    expect(progress).to_contain_text("of 150", timeout=WAIT)
    page.locator("body").click(position={"x": 700, "y": 25})
    page.keyboard.press("Shift+X")
    expect(progress).to_have_count(0, timeout=WAIT)
    expect(page.locator("p[role=status]")).to_have_text("Cancelled")
    states = [job["state"] for job in server.get("/jobs?limit=8").json()["jobs"]]
    assert states == ["cancelled"] * 8


def test_a_png_restores_everything(open_page: Open, server: Served, files: list[Path]) -> None:
    """The request of the form is then the one that made it."""
    request = {
        "prompt": "a heart",
        "negative_prompt": "a ring",
        "references": [
            {
                "reference": ["part:first", "part:second"],
                "fusion": "average",
                "adapter": "plus",
                "scale": 0.55,
                "preset": "style and composition",
                "composition": 0.3,
                "schedule": "0.1-0.9 ease-in",
                "mask": "part:mask",
                "noise": 0.25,
            },
            {"reference": "part:second", "scale": 0.4, "schedule": "1,0.5"},
        ],
        "seed": 11,
        "steps": 2,
        "guidance_scale": 4,
        "eta": 0.3,
        "size": [64, 72],
    }
    parts = {"first": files[0].read_bytes(), "second": files[1].read_bytes()}
    job = server.ended(server.submit(request, **parts, mask=drawn("white")))
    png = server.picture(job)
    page = open_page()
    drop(page, "picture.png", png)
    expect(page.locator(".card")).to_have_count(2)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a heart")
    expect(page.get_by_role("dialog")).to_have_count(0)
    again = run(page, server)
    assert again["state"] == "done", again
    assert pixels(server.picture(again)) == pixels(png)

    other = drawn("teal")  # a picture without a recipe is a reference, and stays one
    drop(page, "other.png", other)
    expect(page.locator(".card")).to_have_count(3)


def test_a_missing_reference_is_asked_for_by_its_hash(
    open_page: Open, server: Served, files: list[Path]
) -> None:
    made = server.ended(
        server.submit(
            {"references": [{"reference": "part:a", "scale": 0.5, "framing": "pad"}], "steps": 2},
            a=files[0].read_bytes(),
        )
    )
    png = server.picture(made)
    hash = digest(files[0].read_bytes())

    def lost(route: Route) -> None:
        """The server says that it lacks the picture."""
        if not route.request.url.endswith("/recipe"):
            return route.fallback()
        answer = route.fetch()
        place = {"param": "references.0.reference.0", "hash": hash, "name": "cat.png"}
        return route.fulfill(response=answer, json={**answer.json(), "missing": [place]})

    page = open_page(gate=lost)
    drop(page, "picture.png", png)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("cat.png")
    dialog.locator("input[type=file]").set_input_files(files[1])
    expect(dialog).to_contain_text("another file")
    dialog.locator("input[type=file]").set_input_files(files[0])
    expect(dialog).to_have_count(0)

    drop(page, "picture.png", png)
    dialog.get_by_role("button", name="Use the tokens in the picture").click()
    expect(page.locator(".card")).to_contain_text("Tokens")
    job = run(page, server)
    assert job["state"] == "done", job
    assert job["request"]["references"] == [
        {"image_prompt": f"tokens:{digest(png)}/0", "scale": 0.5, "adapter": "plus"}
    ]


def test_a_sweep_over_the_strength(open_page: Open, server: Served, files: list[Path]) -> None:
    page = ready(open_page())
    add(page, files[0])
    page.get_by_role("button", name="Sweep").click()
    page.get_by_label("Columns").select_option("3")
    page.get_by_label("To", exact=True).fill("1")
    page.get_by_role("button", name="Make 3 pictures").click()
    expect(page.locator(".cell.done img")).to_have_count(3, timeout=WAIT)
    jobs = server.get("/jobs?limit=3").json()["jobs"]
    assert [job["request"]["references"][0]["scale"] for job in jobs] == [1, 0.5, 0]
    assert len({job["request"]["seed"] for job in jobs}) == 1
    page.get_by_role("button", name=re.compile("^0.5, seed")).click()
    expect(page.locator(".card").get_by_label("Strength").first).to_have_value("0.5")


@pytest.fixture(scope="module")
def two_pictures(server: Served) -> None:
    """In the gallery, whichever tests have run before."""
    for seed in (1, 2):
        server.ended(server.submit({"prompt": "a moon", "seed": seed, "steps": 2}))


@pytest.mark.usefixtures("two_pictures")
def test_two_pictures_compared(open_page: Open) -> None:
    page = open_page()
    page.locator(".thumbs button").first.click()
    page.get_by_role("button", name="Compare").click()
    page.locator(".thumbs button").nth(1).click()
    over = page.locator(".compare .over")
    cut = page.get_by_label("Boundary between A and B")
    cut.focus()
    page.keyboard.press("Home")
    assert "0%" in over.evaluate("(one) => getComputedStyle(one).clipPath")
    for _ in range(4):
        page.keyboard.press("PageUp")
    assert "40%" in over.evaluate("(one) => getComputedStyle(one).clipPath")
    page.get_by_role("button", name="Side by side").click()
    expect(page.locator(".beside img")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator(".recipe")).to_be_visible()


def test_the_library(open_page: Open, server: Served, files: list[Path]) -> None:
    page = ready(open_page())
    for index, name in enumerate(("north", "south")):
        card = add(page, files[index])
        card.get_by_role("button", name="More").click()
        card.get_by_label("Name of the style").fill(name)
        card.get_by_role("button", name="Keep as style").click()
        expect(page.locator(".toast")).to_contain_text(name, timeout=WAIT)
        card.get_by_role("button", name="Remove reference").click()
    page.get_by_role("tab", name="Library").click()
    page.get_by_label("Search styles").fill("nor")
    expect(page.locator(".styles li")).to_have_count(1)
    page.get_by_label("Search styles").fill("")
    expect(page.locator(".styles li")).to_have_count(2)
    page.get_by_role("button", name="Mix", exact=True).click()
    page.get_by_label("Mix north").check()
    page.get_by_label("Mix south").check()
    page.locator(".mix input[type=range]").first.fill("0.5")
    expect(page.locator(".mix b").first).to_have_text("33 %")
    page.get_by_label("Name of the style").fill("north")
    page.locator(".mix button[type=submit]").click()
    expect(page.locator(".toast")).to_contain_text("north", timeout=WAIT)  # the name is taken
    page.get_by_label("Name of the style").fill("middle")
    page.locator(".mix button[type=submit]").click()
    expect(page.locator(".styles li")).to_have_count(3, timeout=WAIT)
    page.get_by_role("button", name="Use the style middle").click()
    page.get_by_role("tab", name="Gallery").click()
    request = run(page, server)["request"]
    assert request["references"] == [{"style": "middle", "scale": DEFAULT_SCALE}]
    page.get_by_role("tab", name="Library").click()
    page.get_by_role("button", name="Delete the style middle").click()
    expect(page.locator(".styles li")).to_have_count(2)


def test_the_keys(open_page: Open, server: Served, files: list[Path]) -> None:
    page = ready(open_page())
    add(page, *files)
    button = page.get_by_label("new each run")
    button.focus()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    for words in ("Run", "Cancel", "prompt", "picture", "stroke", "Eraser"):
        expect(dialog).to_contain_text(words)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    page.keyboard.press("Alt+a")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a ring?")  # typing is no command
    expect(dialog).to_have_count(0)
    first = page.locator(".card").first.get_attribute("data-id")
    page.get_by_role("button", name="Move reference 1", exact=True).focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".card").nth(1)).to_have_attribute("data-id", str(first))
    expect(page.get_by_role("button", name="Move reference 2", exact=True)).to_be_focused()
    expect(page.locator("p[role=status]")).to_have_text("Reference moved to place 2")
    page.get_by_role("button", name="Mute reference 1").click()
    request = run(page, server)["request"]
    assert request["references"] == [
        {"reference": [f"upload:{digest(files[0].read_bytes())}"], "scale": DEFAULT_SCALE}
    ]
    run(page, server)
    page.locator(".thumbs button").first.click()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".thumbs button").nth(1)).to_be_focused()
    expect(page.locator(".thumbs button").nth(1)).to_have_attribute("aria-pressed", "true")
    count = page.locator(".thumbs li").count()
    page.keyboard.press("Delete")
    expect(page.locator(".thumbs li")).to_have_count(count - 1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".thumbs li")).to_have_count(count)


def test_cards_are_reordered_by_dragging(open_page: Open, files: list[Path]) -> None:
    page = open_page(viewport={"width": 1280, "height": 1000})
    add(page, *files)
    cards = page.locator(".card")
    first = cards.first.get_attribute("data-id")
    grip = page.get_by_role("button", name="Move reference 1", exact=True).bounding_box()
    below = cards.nth(1).bounding_box()
    assert grip is not None
    assert below is not None
    page.mouse.move(grip["x"] + 5, grip["y"] + 5)
    page.mouse.down()
    page.mouse.move(grip["x"] + 5, below["y"] + below["height"] - 20, steps=8)
    page.mouse.up()
    expect(cards.nth(1)).to_have_attribute("data-id", str(first))


def test_an_error_stands_beside_its_field(
    open_page: Open, server: Served, files: list[Path]
) -> None:
    page = ready(open_page())
    add(page, *files)
    page.get_by_role("button", name="Mute reference 1").click()  # the API's first is the second
    strength = page.locator(".card").nth(1).get_by_label("Strength").first
    strength.fill("7")
    page.locator(".go").click()
    expect(strength).to_have_attribute("aria-invalid", "true")
    expect(strength).to_be_focused()
    expect(page.locator(".card").nth(1).locator(".problem")).to_contain_text("7")
    strength.fill("0.7")
    expect(page.locator(".card .problem")).to_have_count(0)
    page.get_by_label("Steps").first.fill("100000")
    page.locator(".go").click()
    expect(page.locator(".settings .problem")).to_contain_text("1000")


def only_with_a_key(route: Route) -> None:
    if route.request.headers.get("authorization") == "Bearer right":
        return route.fallback()
    problem = {"type": "unauthorized", "message": "no key", "param": None, "hint": ""}
    return route.fulfill(status=401, json={"error": problem})


@pytest.mark.usefixtures("two_pictures")
def test_a_key_is_asked_for(open_page: Open) -> None:
    page = open_page(gate=only_with_a_key)
    page.get_by_role("textbox", name="Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("does not know")
    page.get_by_role("textbox", name="Key").fill("right")
    page.keyboard.press("Enter")
    expect(page.locator(".go")).to_be_enabled()
    assert page.evaluate("JSON.stringify(localStorage)").find("right") < 0
    expect(page.locator(".thumbs img").first).to_be_visible()  # pictures come with the key too
    page.reload()
    expect(page.locator(".go")).to_be_enabled()


def test_a_reference_is_checked(open_page: Open, tmp_path: Path) -> None:
    """The problems of each picture, and how alike they are, in the language of the page."""
    wide, small = tmp_path / "wide.jpg", tmp_path / "small.png"
    wide.write_bytes(drawn("blue", (900, 600), "JPEG"))
    small.write_bytes(drawn("red"))
    page = open_page()
    card = add(page, wide)
    card.locator("input[type=file]").set_input_files(small)
    expect(card.locator(".source .one")).to_have_count(2)
    card.get_by_role("button", name="More").click()
    card.get_by_role("button", name="Check the pictures").click()
    verdict = card.locator(".check-pictures")
    expect(verdict).to_contain_text("Picture 1, 900 × 600", timeout=WAIT)
    expect(verdict).to_contain_text("JPEG 75")
    expect(verdict).to_contain_text("Not square: the crop loses 33 %.")
    expect(verdict).to_contain_text("Small: 512 px")
    expect(verdict).to_contain_text("Likeness of pictures 1 and 2: ")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.locator(".language").select_option("zh")
    expect(verdict).to_contain_text("图片 2")
    expect(verdict).to_contain_text("裁剪会丢失 33 %")


# ── the page of the API ────────────────────────────────────────────────────────────────────────


def test_the_api_to_read_and_to_try(open_page: Open, server: Served) -> None:
    described = server.client.get("/openapi.json").json()
    count = sum(len(operations) for operations in described["paths"].values())
    page = open_page("/docs")
    routes = page.locator(".route")
    expect(routes).to_have_count(count)
    expect(page.locator("section h2")).to_have_text([tag["name"] for tag in described["tags"]])
    search = page.get_by_label("Find a route")
    search.fill("METRICS")
    expect(routes).to_have_count(1)
    routes.locator("summary").click()
    routes.get_by_role("button", name="Send").click()
    expect(page.locator(".answer")).to_contain_text("200 text/plain")
    expect(page.locator(".answer pre")).to_contain_text("imageprompt_queue_jobs")
    search.fill("no such route")
    expect(page.locator(".docs")).to_contain_text("Nothing found.")

    search.fill("post /api/v1/jobs")  # bodies, to the fields of a reference
    routes.locator("summary").first.click()
    expect(routes).to_contain_text("multipart/form-data")
    fields = routes.locator(".fields").first
    expect(fields).to_contain_text("part:NAME, upload:HASH, result:JOB/N")
    fields.locator("summary", has_text="reference, style").click()
    expect(fields.locator(".fields").first).to_contain_text("schedule")

    search.fill("")
    page.goto(f"{server.address}/docs#get-api-v1-uploads-digest-")  # a link to a route opens it
    route = page.locator("#get-api-v1-uploads-digest-")
    route.get_by_role("textbox", name="digest").fill("../../x")
    route.get_by_role("button", name="Send").click()
    expect(route.locator(".answer")).to_contain_text("404 application/json")
    hash = server.post("/uploads", files=[("a", ("x", drawn("red")))]).json()["hash"]
    route.get_by_role("textbox", name="digest").fill(hash)
    route.get_by_role("button", name="Send").click()
    expect(route.locator(".answer img")).to_be_visible()

    axe = Axe()
    for scheme, width in (("light", 1280), ("dark", 360)):
        page = open_page("/docs#get-api-v1-jobs", color_scheme=scheme, locale="zh-CN")
        page.set_viewport_size({"width": width, "height": 800})
        expect(page.locator("#get-api-v1-jobs .try")).to_be_visible()
        expect(page.locator(".top")).to_contain_text("HTTP 接口")
        page.wait_for_timeout(200)
        result = axe.run(page)
        assert result.violations_count == 0, result.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_workflow_by_its_form(open_page: Open, server: Served, files: list[Path]) -> None:
    axe = Axe()
    page = open_page(locale="zh-CN", color_scheme="dark")
    page.get_by_role("button", name="工作流").click()
    expect(page.locator(".workflows li")).to_have_count(9)
    page.wait_for_timeout(200)
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()

    page = open_page()
    page.get_by_role("button", name="Workflows").click()
    page.get_by_role("button", name="Use workflow variations").click()
    form = page.locator("dialog form")
    form.get_by_role("button", name="Run").click()
    expect(form.locator('[data-param="picture"] .problem')).to_contain_text("it must be given")
    form.locator("input[type=file]").set_input_files(files[0])
    expect(form.locator(".chosen img")).to_be_visible()
    for name, value in (("scales", "0.5"), ("num images", "1"), ("steps", STEPS)):
        form.get_by_label(name, exact=True).fill(value)
    page.wait_for_timeout(200)
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    form.get_by_role("button", name="Run").click()
    expect(page.locator(".report")).to_contain_text("near copies", timeout=WAIT)
    expect(page.locator(".report")).to_contain_text("scale 0.5, seed 1")
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_page_of_the_api_asks_for_a_key(open_page: Open) -> None:
    page = open_page("/docs", gate=only_with_a_key)
    page.get_by_role("textbox", name="Key").fill("right")
    page.keyboard.press("Enter")
    expect(page.locator(".route").first).to_be_visible()


# ── looks ───────────────────────────────────────────────────────────────────────────────────────


def test_dark_and_light(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    light = "getComputedStyle(document.querySelector('.compose')).backgroundColor"
    dark = page.evaluate(light)
    page.get_by_role("button", name="Colours: as the system").click()
    page.get_by_role("button", name="Colours: light").wait_for()
    assert page.evaluate(light) != dark
    page.reload()
    page.get_by_role("button", name="Colours: light").click()
    page.get_by_role("button", name="Colours: dark").wait_for()
    assert page.evaluate(light) == dark


def test_a_phone(open_page: Open, server: Served, files: list[Path]) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.locator(".references input[type=file]").first.set_input_files(files[0])
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_label("Steps").first.fill(STEPS)
    page.locator(".go").tap()
    expect(page.locator(".recipe")).to_be_visible(timeout=WAIT)  # it shows the canvas by itself
    for name in ("Gallery", "Library", "Compose", "Canvas"):
        page.locator(".bottom").get_by_role("button", name=name).tap()
        wide = page.evaluate(
            "[...document.querySelectorAll('main *, .top *')].filter((one) => one.checkVisibility()"
            " && one.getBoundingClientRect().right > 361).map((one) => one.outerHTML)"
        )
        assert not wide, (name, wide[:3])
        assert page.evaluate("innerWidth") == 360  # or it has grown to what is in it


@pytest.mark.usefixtures("two_pictures")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_axe_finds(
    open_page: Open, server: Served, files: list[Path], scheme: str
) -> None:
    page = open_page(color_scheme=scheme)
    axe = Axe()

    def check(where: str) -> None:
        page.wait_for_timeout(200)  # transitions end
        found = axe.run(page)
        assert found.violations_count == 0, f"{where}: {found.generate_report()}"

    check("start")
    card = add(page, files[0])
    card.get_by_role("button", name="More").click()
    page.get_by_role("button", name="Negative prompt").click()
    page.locator(".thumbs button").first.click()
    check("a reference and a picture")
    if scheme == "dark":  # the same elements in other colours
        return
    card.get_by_role("button", name="Paint area").click()
    check("painting")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Sweep").click()
    page.get_by_role("tab", name="Library").click()
    check("sweep and library")
    page.keyboard.press("?")
    check("help")
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".thumbs button").first.click()
    page.get_by_role("button", name="Compare").click()
    page.locator(".thumbs button").nth(1).click()
    check("comparing")
