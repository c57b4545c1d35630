"""OpenAI's own clients, unmodified, against a live server on the bundled stack in a few steps."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from guides import DOCS, blocks
from imageprompt.control import DEFAULT_SCALE
from imageprompt.loading.recipe import read_picture
from imageprompt.serve.api.openai import options
from imageprompt.serve.api.openai.options import SCALE_OF, STEPS_OF
from imageprompt.serve.app import make_app
from imageprompt.serve.keys import Keys
from imageprompt.serve.service import Service
from imageprompt.serve.settings import Limits, Settings
from served import Served, drawn, pixels, served

RED, BLUE = drawn("red", (64, 64)), drawn("blue", (64, 64))
FEW = {"steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("openai")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as found:
        yield found


def client_of(server: Served, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", **more)


def own(**more: Any) -> dict[str, Any]:
    return {"ip_adapter": {**FEW, **more}}


def opened(answer: Any, index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.data[index].b64_json)))


def request_of(server: Served, answer: Any) -> Any:
    """The request of the job that made an answer."""
    return server.job({"id": answer.job})["request"]


def half_mask(size: int = 64) -> bytes:
    """Transparent on the left."""
    mask = Image.new("RGBA", (size, size), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, size // 2, size))
    stream = io.BytesIO()
    mask.save(stream, format="PNG")
    return stream.getvalue()


def url_of(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


# ── generations ─────────────────────────────────────────────────────────────────────────────────


def test_generate(server: Served, client: openai.OpenAI, tmp_path: Path) -> None:
    answer = client.images.generate(
        model="bundled", prompt="a star", n=2, size="64x64", user="u", extra_body=own()
    )
    assert len(answer.data or ()) == 2
    assert opened(answer).size == (64, 64)
    assert (answer.size, answer.background, answer.output_format) == ("64x64", "opaque", "png")
    assert answer.safety_identifier == "u"
    assert answer.usage is not None
    assert abs(answer.created - time.time()) < 100
    path = tmp_path / "picture.png"
    path.write_bytes(base64.b64decode(answer.data[1].b64_json))
    recipe, _ = read_picture(path)
    assert (recipe.prompt, recipe.seed, recipe.index) == ("a star", 5, 1)


def test_generate_with_references(server: Served, client: openai.OpenAI) -> None:
    """As an object of `extra_body`, as a JSON text, with data URLs."""
    reference = {"reference": url_of(RED), "scale": 0.7, "schedule": "0-0.6", "mask": url_of(BLUE)}
    field = own(references=[reference], negative_prompt="blur")["ip_adapter"]
    pictures = []
    for value in (field, json.dumps(field)):
        answer = client.images.generate(
            model="bundled/base", prompt="", extra_body={"ip_adapter": value}
        )
        asked = request_of(server, answer)
        assert asked["negative_prompt"] == "blur"
        (found,) = asked["references"]
        assert (found["scale"], found["adapter"], found["schedule"]) == (0.7, "base", "0-0.6")
        assert found["reference"].startswith("upload:")
        assert found["mask"].startswith("upload:")
        pictures.append(opened(answer).tobytes())
    assert pictures[0] == pictures[1]


def test_quality_is_a_number_of_steps_and_seeds_differ(client: openai.OpenAI) -> None:
    from imageprompt.serve.api.openai.options import Options
    from imageprompt.serve.api.openai.translation import _seed, _steps

    described = {"base": {"steps": 20}}
    found = [_steps(Options(prompt="", quality=q), described) for q in ("low", "medium", "max")]
    assert found == [10, 20, 60]
    assert _steps(Options(prompt="", quality="low"), {"base": {"steps": 1}}) == 1
    assert _seed(None) != _seed(None)
    assert _seed("a") == _seed("a") != _seed("b")


@pytest.mark.parametrize(
    ("format", "compression"), [("png", None), ("jpeg", 10), ("jpeg", 90), ("webp", 50)]
)
def test_formats(
    server: Served, client: openai.OpenAI, format: Any, compression: int | None
) -> None:
    once = {"Idempotency-Key": "formats"}  # one picture for all
    more = {} if compression is None else {"output_compression": compression}
    answer = client.images.generate(
        prompt="a ring", output_format=format, extra_headers=once, extra_body=own(), **more
    )
    assert answer.output_format == format
    assert opened(answer).format == format.upper()
    if format == "jpeg":
        size = len(answer.data[0].b64_json)
        assert (size < 2000) == (compression == 10), size


def test_urls(server: Served, client: openai.OpenAI) -> None:
    once = {"Idempotency-Key": "formats"}
    answer = client.images.generate(
        prompt="a ring",
        response_format="url",
        output_format="webp",
        extra_headers=once,
        extra_body=own(),
    )
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    assert url.startswith(f"{server.address}/v1/files/img-")
    picture = httpx2.get(url)
    assert picture.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)
    name = url.rpartition("/")[2]
    assert client.files.content(name).read() == picture.content
    with pytest.raises(openai.NotFoundError):
        client.files.content(name[:-1] + ("a" if name[-1] != "a" else "b"))
    again = client.images.edit(
        image=RED, prompt="", extra_body={"ip_adapter": json.dumps(FEW)}, output_format="webp"
    )
    assert opened(again).format == "WEBP"


def test_links_are_the_owners_and_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    from imageprompt.serve.api.openai import files
    from imageprompt.serve.api.openai.options import Options

    links = files.Links()
    name = links.add(files.Link("alice", "0" * 32, 0, Options(prompt="")))
    assert len(name) > 30
    assert links.find("alice", name) is not None
    assert links.find("bob", name) is None
    monkeypatch.setattr(files, "LINK_SECONDS", -1.0)
    assert links.find("alice", name) is None
    links.add(files.Link("alice", "0" * 32, 1, Options(prompt="")))
    assert len(links._links) == 1  # the old one is gone


# ── edits ───────────────────────────────────────────────────────────────────────────────────────


def test_edit_with_two_pictures(server: Served, client: openai.OpenAI) -> None:
    """Each is a reference; `input_fidelity` is the scale of those that have none."""
    field = {**FEW, "references": [{"preset": "style"}, {"scale": 0.3}]}
    answer = client.images.edit(
        image=[io.BytesIO(RED), ("b.jpg", BLUE, "image/jpeg")],
        prompt="a star",
        input_fidelity="high",
        extra_body={"ip_adapter": json.dumps(field)},
    )
    first, second = request_of(server, answer)["references"]
    assert (first["scale"], first["preset"]) == (1.0, "style")
    assert second["scale"] == 0.3
    assert first["reference"] != second["reference"]
    plain = client.images.edit(
        image=[RED], prompt="a star", extra_body={"ip_adapter": json.dumps(FEW)}
    )
    assert request_of(server, plain)["references"] == [{"reference": first["reference"]}]


def test_edit_with_a_mask(server: Served, client: openai.OpenAI) -> None:
    """The first picture changes where the mask is transparent; the second is a reference."""
    answer = client.images.edit(
        image=[RED, BLUE],
        mask=half_mask(),
        prompt="",
        size="64x64",
        extra_body={"ip_adapter": json.dumps({**FEW, "steps": 4})},
    )
    asked = request_of(server, answer)
    assert len(asked["references"]) == 1
    assert asked["strength"] == 1.0
    kept = server.get(f"/uploads/{asked['inpaint_mask'].partition(':')[2]}").content
    mask = Image.open(io.BytesIO(kept))
    assert (mask.getpixel((10, 30)), mask.getpixel((50, 30))) == (255, 0)
    picture = opened(answer).convert("RGB")

    def distance(x: int) -> float:
        red, green, blue = picture.getpixel((x, 32))
        return abs(255 - red) + green + blue

    assert distance(60) + 200 < distance(4), (distance(60), distance(4))


def test_edit_as_json(server: Served, client: openai.OpenAI) -> None:
    kept = client.files.create(file=("x.bin", BLUE), purpose="vision")
    assert kept.bytes == len(BLUE)
    assert client.files.content(kept.id).read() == BLUE
    assert client.files.retrieve(kept.id).bytes == len(BLUE)
    body = {
        "prompt": "a star",
        "images": [{"image_url": url_of(RED)}, {"file_id": kept.id}],
        "mask": {"image_url": url_of(half_mask())},
        **own(),
    }
    answer = client.post("/images/edits", body=body, cast_to=openai.types.ImagesResponse)
    asked = request_of(server, answer)
    assert asked["references"] == [{"reference": f"upload:{kept.id.removeprefix('file-')}"}]
    assert asked["init_image"].startswith("upload:")


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def test_streams_of_generations(client: openai.OpenAI) -> None:
    once = {"Idempotency-Key": "stream"}
    stream = client.images.generate(
        prompt="a star",
        stream=True,
        partial_images=2,
        extra_headers=once,
        extra_body=own(steps=40),
    )
    *partial, last = list(stream)
    assert 1 <= len(partial) <= 2
    for index, event in enumerate(partial):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == index
        assert event.output_format == "png"
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).format == "PNG"
        assert (event.size, event.quality, event.background) == ("64x64", "medium", "opaque")
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == 0
    # the same picture as without a stream
    whole = client.images.generate(prompt="a star", extra_headers=once, extra_body=own(steps=40))
    assert whole.data is not None
    assert whole.data[0].b64_json == last.b64_json


def test_streams_of_edits(client: openai.OpenAI) -> None:
    with client.images.edit(
        image=RED, prompt="", n=2, stream=True, extra_body={"ip_adapter": json.dumps(FEW)}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_edit.completed"] * 2
    assert {event.index for event in events} == {0, 1}  # as they reach the disk


# ── errors ──────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gif": ({"output_format": "gif"}, "output_format"),
    "svg": ({"svg": {"model": "x"}}, "svg"),
    "frames": ({"frame_count": 2}, "frame_count"),
    "transparent": ({"background": "transparent"}, "background"),
    "style": ({"style": "vivid"}, "style"),
    "fidelity without a picture": ({"input_fidelity": "high"}, "input_fidelity"),
    "unknown field": ({"seed": 3}, "seed"),
    "many": ({"n": 99}, "n"),
    "n": ({"n": "2"}, "n"),
    "size": ({"size": "64"}, "size"),
    "odd size": ({"size": "65x64"}, "size"),
    "quality": ({"quality": "best"}, "quality"),
    "compression": ({"output_compression": 50}, "output_compression"),
    "partial": ({"partial_images": 4}, "partial_images"),
    "prompt": ({"prompt": ["a"]}, "prompt"),
    "URL of a stream": ({"response_format": "url", "stream": True}, "response_format"),
    "own JSON": ({"ip_adapter": "{"}, "ip_adapter"),
    "own list": ({"ip_adapter": []}, "ip_adapter"),
    "own field": ({"ip_adapter": {"base": "x"}}, "ip_adapter.base"),
    "own value": (
        {"ip_adapter": {"references": [{"reference": url_of(RED), "scale": 99}]}},
        "ip_adapter.references.0.scale",
    ),
    "URL": (
        {"ip_adapter": {"references": [{"reference": "http://127.0.0.1/x.png"}]}},
        "ip_adapter.references.0.reference",
    ),
    "path": (
        {"ip_adapter": {"references": [{"reference": "/etc/passwd"}]}},
        "ip_adapter.references.0.reference",
    ),
    "no picture": (
        {"ip_adapter": {"references": [{"reference": "data:image/png;base64,AAAA"}]}},
        "ip_adapter.references.0.reference",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_field(client: openai.OpenAI, name: str) -> None:
    body, param = REFUSED[name]
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", extra_body=body)
    error = caught.value
    assert error.param == param, error
    assert error.type == "invalid_request_error"
    assert error.code
    assert error.message
    assert error.response.headers["x-should-retry"] == "false"


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "mask of another size": ({"image": RED, "mask": half_mask(32)}, "mask"),
    "mask without alpha": ({"image": RED, "mask": BLUE}, "mask"),
    "mask without effect": ({"image": RED, "mask": drawn("#000000ff", (64, 64))}, "mask"),
    "no picture": ({"image": b"GIF89a"}, "image"),
    "markup": ({"image": RED, "markup": half_mask()}, "markup"),
    "nested": (
        {"image": RED, "extra_body": {"ip_adapter": {"references": [{"scale": 1}]}}},
        "ip_adapter",
    ),
    "left over": (
        {"image": [RED, BLUE], "extra_body": {"ip_adapter": '{"references": [{"scale": 1}]}'}},
        "image",
    ),
    "unnamed part": ({"image": RED, "extra_body": {"other": "x"}}, "other"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_that_are_refused(client: openai.OpenAI, name: str) -> None:
    arguments, param = EDITS[name]
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"prompt": "", **arguments})
    assert caught.value.param == param, caught.value


def test_json_edits_that_are_refused(client: openai.OpenAI) -> None:
    for images, param in (
        ([{"image_url": "https://example.org/x.png"}], "images.0.image_url"),
        ([{"image_url": "file:///etc/passwd"}], "images.0.image_url"),
        ([{"file_id": "../../x"}], "images.0.file_id"),
        ([{"file_id": f"file-{'0' * 64}"}], "image"),
        ([3], "images.0"),
        ([], "image"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/images/edits", body={"prompt": "", "images": images}, cast_to=object)
        assert caught.value.param == param, caught.value


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "bundled",
        "bundled/base",
        "bundled/dual#content",
        "bundled/dual#style",
        "bundled/plus",
    ]
    assert client.models.retrieve("bundled/plus").adapter == "plus"
    with pytest.raises(openai.NotFoundError, match="bundled/plus") as caught:
        client.models.retrieve("gpt-image 9/x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="", model="dall-e-3")
    assert caught.value.param == "model"


def test_other_errors_have_the_form_of_openai(client: openai.OpenAI, server: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/images/generations", content=b"x", cast_to=object)
    assert (caught.value.status_code, caught.value.code) == (400, "invalid_json")
    assert isinstance(caught.value.body, dict)
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.edit(image=drawn("red", (4, 40)), prompt="")
    assert caught.value.param == "image"


def test_a_key_is_needed(tmp_path: Path) -> None:
    """By the asynchronous client; without a process."""
    secret = Keys(tmp_path / "keys.json").add("alice")
    settings = Settings(data=str(tmp_path / "data"), keys=str(tmp_path / "keys.json"))

    async def ask(key: str) -> None:
        transport = httpx2.ASGITransport(app=make_app(Service(settings)))  # type: ignore[arg-type]
        async with openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key=key,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            await client.models.list()

    with pytest.raises(openai.AuthenticationError) as caught:
        asyncio.run(ask("wrong"))
    assert caught.value.code == "unauthorized"
    with pytest.raises(openai.InternalServerError) as starting:  # no worker is started here
        asyncio.run(ask(secret))
    assert (starting.value.status_code, starting.value.code) == (503, "not_ready")


# ── retries ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Takes one job beside the one that runs."""
    with served(tmp_path_factory.mktemp("toy"), "--queue", "1", toy=True) as running:
        yield running


def count(server: Served) -> int:
    return len(server.get("/jobs").json()["jobs"])


def test_a_full_queue_is_tried_again(toy: Served) -> None:
    running = toy.submit({"prompt": "slow"})
    toy.until(running, lambda job: job["state"] == "running")
    toy.submit({"prompt": "slow"})
    with pytest.raises(openai.RateLimitError) as caught:
        client_of(toy, max_retries=0).images.generate(prompt="x")
    error = caught.value
    assert (error.type, error.code) == ("rate_limit_error", "queue_full")
    assert 1 <= int(error.response.headers["retry-after"]) <= 120
    assert "x-should-retry" not in error.response.headers
    answer = client_of(toy, max_retries=4).images.generate(prompt="x")
    assert len(answer.data or ()) == 1


def test_a_failed_generation_is_not_tried_again(toy: Served) -> None:
    before = count(toy)
    with pytest.raises(openai.BadRequestError):
        client_of(toy).images.generate(prompt="refuse")
    assert count(toy) == before + 1
    stream = client_of(toy).images.generate(prompt="refuse", stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "invalid_option"
    assert caught.value.body is not None
    with pytest.raises(openai.InternalServerError) as broken:
        client_of(toy).images.generate(prompt="crash")
    assert broken.value.code == "crashed"
    assert broken.value.response.headers["x-should-retry"] == "false"
    assert count(toy) == before + 3


def test_idempotency(toy: Served) -> None:
    client, headers = client_of(toy), {"Idempotency-Key": "k"}
    first = client.images.generate(prompt="a", extra_headers=headers)
    again = client.images.generate(prompt="a", extra_headers=headers)
    assert first.job == again.job
    assert first.data[0].b64_json == again.data[0].b64_json
    with pytest.raises(openai.ConflictError) as caught:
        client.images.generate(prompt="b", extra_headers=headers)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_client_that_leaves_cancels(toy: Served) -> None:
    """Unless it has an Idempotency-Key, with which it will come again."""
    impatient = client_of(toy, timeout=0.4, max_retries=0)
    for headers, state in (({}, "cancelled"), ({"Idempotency-Key": "later"}, "done")):
        with pytest.raises(openai.APITimeoutError):
            impatient.images.generate(prompt="slow", extra_headers=headers)
        (job,) = toy.get("/jobs", params={"limit": 1}).json()["jobs"]
        assert toy.ended(job)["state"] == state
    done = client_of(toy).images.generate(prompt="slow", extra_headers={"Idempotency-Key": "later"})
    assert done.job == job["id"]
    stream = client_of(toy).images.generate(prompt="slow", stream=True)
    stream.close()
    (job,) = toy.get("/jobs", params={"limit": 1}).json()["jobs"]
    assert toy.ended(job)["state"] == "cancelled"


def test_a_server_that_stops_answers(tmp_path: Path) -> None:
    """What runs comes whole; what waits is refused, and not made later for nobody."""
    answers: dict[str, Any] = {}
    with served(tmp_path, toy=True) as server:

        def ask(name: str) -> None:
            try:
                answers[name] = client_of(server, max_retries=0).images.generate(prompt="slow")
            except openai.APIStatusError as error:
                answers[name] = error

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
        for number, thread in enumerate(threads):
            thread.start()
            end = time.monotonic() + 60
            while count(server) <= number and time.monotonic() < end:
                time.sleep(0.02)
        server.terminate()
        for thread in threads:
            thread.join(timeout=60)
        assert server.process.wait(timeout=60) == 0
        assert len(answers["first"].data) == 1
        refused = answers["second"]
        assert (refused.status_code, refused.code) == (503, "draining")
        assert 1 <= int(refused.response.headers["retry-after"]) <= 120
    with served(tmp_path, toy=True) as server:
        states = [job["state"] for job in server.get("/jobs").json()["jobs"]]
    assert sorted(states) == ["cancelled", "done"]


# ── node ────────────────────────────────────────────────────────────────────────────────────────

NODE = """
const OpenAI = require("openai"), fs = require("fs");
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none" });
const own = JSON.stringify({ steps: 2, seed: 5 });
(async () => {
  const found = {};
  found.models = (await client.models.list()).data.map((one) => one.id);
  const made = await client.images.generate({ prompt: "a star", size: "64x64", ip_adapter: own });
  found.generated = made.data[0].b64_json;
  const edited = await client.images.edit({
    image: [fs.createReadStream("a.png"), fs.createReadStream("b.png")],
    mask: fs.createReadStream("mask.png"), prompt: "", ip_adapter: own,
  });
  found.job = edited.job;
  const kinds = [];
  const stream = await client.images.generate({
    prompt: "a star", stream: true, partial_images: 1, ip_adapter: { steps: 30 },
  });
  for await (const event of stream) kinds.push(event.type);
  found.events = kinds;
  try {
    await client.images.generate({ prompt: "a", output_format: "gif" });
  } catch (error) {
    found.error = [error.constructor.name, error.status, error.param, error.code];
  }
  console.log(JSON.stringify(found));
})();
"""


def node(script: str, folder: Path, *arguments: str) -> str:
    """What a script prints in a folder with three pictures."""
    for name, content in (("a.png", RED), ("b.png", BLUE), ("mask.png", half_mask())):
        (folder / name).write_bytes(content)
    (folder / "client.js").write_text(script)
    done = subprocess.run(
        ["node", "client.js", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _node_has_openai() -> bool:
    if shutil.which("node") is None:
        return False
    look = ["node", "-e", 'require.resolve("openai")']
    return subprocess.run(look, capture_output=True, check=False, timeout=60).returncode == 0


needs_node = pytest.mark.skipif(
    not _node_has_openai(),
    reason="no node, or none that finds the package openai (npm install openai; set NODE_PATH)",
)


@needs_node
def test_node(server: Served, client: openai.OpenAI, tmp_path: Path) -> None:
    found = json.loads(node(NODE, tmp_path, server.address))
    assert found["models"] == [model.id for model in client.models.list()]
    assert found["error"] == ["BadRequestError", 400, "output_format", "invalid_option"]
    assert found["events"][-1] == "image_generation.completed"
    here = client.images.generate(prompt="a star", size="64x64", extra_body=own())
    assert here.data is not None
    png = [base64.b64decode(one) for one in (found["generated"], here.data[0].b64_json or "")]
    assert pixels(png[0]) == pixels(png[1])
    asked = server.job({"id": found["job"]})["request"]
    assert len(asked["references"]) == 1
    assert asked["init_image"] != asked["references"][0]["reference"]


# ── the guide ───────────────────────────────────────────────────────────────────────────────────

GUIDE = DOCS / "clients.md"


@pytest.fixture
def reader(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who follows the guide."""
    (tmp_path / "cat.png").write_bytes(RED)
    (tmp_path / "style.png").write_bytes(BLUE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippets(server: Served, language: str, word: str) -> list[str]:
    """Those of the guide that name a package, for this server."""
    found = [text for text in blocks(GUIDE, language) if word in text]
    return [text.replace("http://127.0.0.1:8000", server.address) for text in found]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_guide(server: Served, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = snippets(server, "python", "openai")
    names: dict[str, Any] = {}
    exec(first, names)
    with Image.open(reader / "star.png") as picture:
        assert picture.size == (64, 64)
    asked = request_of(server, names["controlled"])
    assert [one.get("preset") for one in asked["references"]] == [None, "style"]
    assert asked["seed"] == 7
    scales = [one["scale"] for one in request_of(server, names["likeness"])["references"]]
    assert scales == [1.0, 1.0]
    exec(second, {})
    assert capsys.readouterr().out.split()[-1] == "image_generation.completed"


@needs_node
def test_the_guide_in_javascript(server: Served, reader: Path) -> None:
    (script,) = snippets(server, "js", "openai")
    assert int(node(script, reader)) > 1000


def test_the_guides_figures() -> None:
    text = GUIDE.read_text("utf-8")
    assert f"scale {SCALE_OF['low']}; `high`: {SCALE_OF['high']}; missing: {DEFAULT_SCALE}" in text
    for name, factor in STEPS_OF.items():
        also = "(, `auto` and `standard`| and `hd`)?"
        assert re.search(rf"`{name}`{also} {factor:g}\b", text), name
    assert f"at most {Limits().num_images} |" in text
    for name in options._REFUSED:
        assert f"`{name}`" in text
