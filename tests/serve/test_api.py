"""The API of `imageprompt serve` against a live server on the bundled stack, in two steps."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

import imageprompt as ip
from imageprompt.loading.recipe import read_picture
from imageprompt.serve.recipes import Restorer
from served import API, Served, alike, drawn, form, pixels, read_events, served

STEPS = 2
RED, BLUE = drawn("red"), drawn("blue")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


def request(**more: Any) -> dict[str, Any]:
    return {"prompt": "a star", "steps": STEPS, **more}


def shown(source: str = "part:red", **more: Any) -> dict[str, Any]:
    return {"reference": source, **more}


@pytest.fixture(scope="module")
def done(server: Served) -> Any:
    """A job with one reference and a mask that has ended."""
    job = server.submit(
        request(references=[shown(scale=0.7, mask="part:half")], seed=5),
        red=RED,
        half=drawn("white"),
    )
    return server.ended(job)


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_from_pictures_to_its_picture(server: Served, done: Any) -> None:
    assert done["state"] == "done", done
    (image,) = done["images"]
    png = server.client.get(image["url"])
    assert png.headers["content-type"] == "image/png"
    assert (image["width"], image["height"], image["seed"]) == (64, 64, 5)
    assert len(png.content) == image["bytes"]
    assert Image.open(io.BytesIO(png.content)).size == (64, 64)
    (reference,) = done["request"]["references"]
    assert reference["reference"] == f"upload:{hashlib.sha256(RED).hexdigest()}"


def test_the_recipe_in_the_picture_names_no_path(server: Served, done: Any, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(server.picture(done))
    recipe, tokens = read_picture(path)
    assert recipe.prompt == "a star"
    assert recipe.references[0].adapter.name == "plus"
    assert tokens[0] is not None
    assert str(server.folder).encode() not in path.read_bytes()
    assert '"/' not in recipe.to_json()


def test_events_tell_everything_in_order(server: Served) -> None:
    job = server.submit(request(num_images=2, steps=3, references=[shown()]), red=RED)
    events = server.events(job)
    kinds = [kind for _, kind, _ in events]
    assert kinds[-1] == "done"
    assert kinds.index("started") < kinds.index("progress") < kinds.index("image")
    made = [data["index"] for _, kind, data in events if kind == "image"]
    assert sorted(made) == [0, 1]  # each is told when its file is written
    assert [one["index"] for one in server.ended(job)["images"]] == [0, 1]
    steps = [data["step"] for _, kind, data in events if kind == "progress"]
    assert steps == sorted(steps)
    assert steps[-1] == 3
    numbers = [int(name.partition("-")[2]) for name, _, _ in events]
    assert numbers == sorted(numbers)
    # again, from the middle
    middle = next(name for name, kind, _ in events if kind == "image")
    rest = server.events(job, headers={"Last-Event-ID": middle})
    assert [kind for _, kind, _ in rest] == ["image", "done"]
    # an id of an earlier server says nothing: from the start
    assert server.events(job, headers={"Last-Event-ID": "00000000-9"})[0][1] == "started"


def test_previews_are_small_jpegs(server: Served) -> None:
    job = server.submit(request(steps=12, references=[shown()]), red=RED)
    previews = [data for _, kind, data in server.events(job) if kind == "preview"]
    import base64

    for data in previews:
        picture = Image.open(io.BytesIO(base64.b64decode(data["jpeg"])))
        assert picture.format == "JPEG"
        assert max(picture.size) <= 256
    assert previews


def test_text_alone_and_json_bodies(server: Served) -> None:
    for body in (request(), request(references=[])):
        assert server.ended(server.submit(body))["state"] == "done"


def test_lists_of_jobs_are_paged(server: Served, done: Any) -> None:
    first = server.get("/jobs", params={"limit": 1}).json()
    assert len(first["jobs"]) == 1
    second = server.get("/jobs", params={"limit": 100, "before": first["next"]}).json()
    assert first["next"] not in {job["id"] for job in second["jobs"]}
    assert done["id"] in {job["id"] for job in [*first["jobs"], *second["jobs"]]}
    states = server.get("/jobs", params={"state": "failed"}).json()["jobs"]
    assert {job["state"] for job in states} <= {"failed"}
    assert server.get("/jobs", params={"limit": 10**9}).status_code == 400


def test_once_only(server: Served) -> None:
    headers = {"Idempotency-Key": "abc"}
    first = server.submit(request(seed=77), headers=headers)
    assert server.submit(request(seed=77), headers=headers)["id"] == first["id"]
    other = server.post("/jobs", json=request(seed=78), headers=headers)
    assert (other.status_code, other.json()["error"]["type"]) == (409, "conflict")
    together: list[str] = []
    with httpx2.Client(base_url=server.address, timeout=60) as client:

        def send() -> None:
            answer = client.post(f"{API}/jobs", json=request(), headers={"Idempotency-Key": "race"})
            together.append(answer.json()["id"])

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(together)) == 1
    assert len(together) == 4


def test_cancel_and_delete(server: Served) -> None:
    running = server.submit(request(steps=150, num_images=8))
    waiting = server.submit(request(steps=150, size=[128, 128]))  # another size: does not join
    server.until(running, lambda job: job["state"] == "running" and job["step"] > 0)
    assert server.job(waiting)["position"] == 0
    assert server.client.delete(f"{API}/jobs/{waiting['id']}").status_code == 202
    assert server.job(waiting)["state"] == "cancelled"
    assert server.client.delete(f"{API}/jobs/{running['id']}").status_code == 202
    ended = server.ended(running)
    assert ended["state"] == "cancelled"
    assert ended["step"] < 150
    assert [kind for _, kind, _ in server.events(running)][-1] == "cancelled"
    assert server.client.delete(f"{API}/jobs/{running['id']}").status_code == 204
    assert server.get(f"/jobs/{running['id']}").status_code == 404


def test_deleting_a_job_deletes_its_pictures(server: Served) -> None:
    job = server.ended(server.submit(request()))
    folder = server.data / "results" / "local" / job["id"]
    assert folder.is_dir()
    assert server.client.delete(f"{API}/jobs/{job['id']}").status_code == 204
    assert not folder.exists()
    assert server.get(f"/jobs/{job['id']}/result/0.png").status_code == 404


def test_a_reader_who_leaves_can_cancel(server: Served) -> None:
    minutes = request(steps=150, num_images=16, size=[192, 192])
    job = server.submit(minutes)
    url = f"{API}/jobs/{job['id']}/events"
    with server.client.stream("GET", url, params={"on_disconnect": "cancel"}) as answer:
        for _, kind, _ in read_events(answer.iter_lines()):
            if kind == "progress":
                break
    assert server.ended(job)["state"] == "cancelled"


def test_batches_give_the_pictures_of_requests_alone(server: Served) -> None:
    """The same requests one by one, and all at once; their pictures differ from one another."""
    mixed = [
        request(seed=index, prompt=prompt, references=[shown(f"part:{colour}", scale=0.9)])
        for index, (prompt, colour) in enumerate(
            (("a star", "red"), ("a circle", "blue"), ("", "blue"), ("a star", "red"))
        )
    ]
    mixed.append(request(seed=9, guidance_scale=2))
    parts = [{"red": RED}, {"blue": BLUE}, {"blue": BLUE}, {"red": RED}, {}]
    alone = [
        server.picture(server.ended(server.submit(one, **pictures)))
        for one, pictures in zip(mixed, parts, strict=True)
    ]
    hold = server.submit(request(steps=60, size=[128, 128]))
    jobs = [server.submit(one, **pictures) for one, pictures in zip(mixed, parts, strict=True)]
    server.client.delete(f"{API}/jobs/{hold['id']}")
    together = [server.picture(server.ended(job)) for job in jobs]
    assert together == alone  # the recipes as well
    assert not any(alike(a, b) for a, b in itertools.combinations(alone, 2))
    text = server.client.get("/metrics").text
    largest = re.search(r'batch_pictures_bucket\{le="2.0"\} (\S+)', text)
    total = re.search(r"batch_pictures_count (\S+)", text)
    assert largest is not None
    assert total is not None
    assert float(largest[1]) < float(total[1])  # some had more than two


# ── pictures and recipes ────────────────────────────────────────────────────────────────────────


def test_a_recipe_without_eta_says_so_where_the_base_has_its_own(tmp_path: Path) -> None:
    made = ip.generate("a star", base="bundled", scale=0, steps=1, progress=False)
    (path,) = made.save(tmp_path)
    for default, expected in ((1.0, 0), (0.0, None), (None, None)):
        restorer = Restorer({"base": {"eta": default}}, list)
        assert restorer.restore(path, None, lambda _: True).request.get("eta") == expected


def test_uploads(server: Served) -> None:
    for body in ({"files": [("a", ("x", BLUE))]}, {"content": BLUE}):
        headers = {"content-type": "image/png"} if "content" in body else None
        answer = server.post("/uploads", headers=headers, **body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        assert (found["width"], found["height"], found["bytes"]) == (40, 40, len(BLUE))
    kept = server.client.get(found["url"])
    assert kept.content == BLUE
    assert kept.headers["content-type"] == "image/png"
    job = server.submit(request(references=[shown(f"upload:{found['hash']}")]))
    assert server.ended(job)["state"] == "done"
    missing = server.post("/jobs", json=request(references=[shown(f"upload:{'0' * 64}")]))
    assert missing.json()["error"]["type"] == "missing_upload"
    assert missing.json()["error"]["param"] == "references.0.reference"
    jpeg = server.post("/uploads", files=[("a", ("x.png", drawn("green", format="JPEG")))])
    url = jpeg.json()["url"]
    assert server.client.get(url).headers["content-type"] == "image/jpeg"  # by its content


def test_a_result_is_a_reference(server: Served, done: Any) -> None:
    job = server.ended(server.submit(request(init_image=f"result:{done['id']}/0", strength=0.5)))
    assert job["state"] == "done", job
    assert job["request"]["init_image"].startswith("upload:")


def test_a_recipe_gives_the_request_back(server: Served, done: Any) -> None:
    png = server.picture(done)
    answer = server.post("/recipe", files=[("png", ("a", png))])
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["missing"] == []
    again = server.ended(server.submit(found["request"]))
    assert pixels(server.picture(again)) == pixels(png)
    # the tokens in the PNG stand for its picture
    reference = found["request"]["references"][0]
    reference.pop("reference")
    reference["image_prompt"] = found["tokens"]["0"]
    once_more = server.ended(server.submit(found["request"]))
    assert once_more["state"] == "done", once_more
    assert pixels(server.picture(once_more)) == pixels(png)
    # which is all that its own recipe knows of the reference
    back = server.post("/recipe", files=[("png", ("a", server.picture(once_more)))]).json()
    (reference,) = back["request"]["references"]
    assert reference["image_prompt"] == back["tokens"]["0"]
    assert "reference" not in reference
    third = server.ended(server.submit(back["request"]))
    assert pixels(server.picture(third)) == pixels(png)
    assert server.post("/recipe", files=[("a", ("a", RED))]).json()["error"]["type"] == "no_recipe"


def test_what_a_recipe_lacks_is_named_by_its_hash(server: Served, done: Any) -> None:
    png = server.picture(done)
    upload = server.data / "uploads" / "local" / hashlib.sha256(RED).hexdigest()
    content = upload.read_bytes()
    upload.unlink()
    found = server.post("/recipe", files=[("png", ("a", png))]).json()
    upload.write_bytes(content)
    place = {"param": "references.0.reference.0", "hash": upload.name, "name": None}
    assert found["missing"] == [place]


# ── catalog ─────────────────────────────────────────────────────────────────────────────────────


def test_the_catalog(server: Served) -> None:
    (base,) = server.get("/bases").json()["bases"]
    assert (base["name"], base["width"], base["steps"]) == ("bundled", 64, 20)
    adapters = {one["name"]: one for one in server.get("/adapters").json()["adapters"]}
    assert {"base", "plus"} <= set(adapters)
    assert adapters["plus"]["default"]
    assert {"style", "composition"} <= {
        one["name"] for one in server.get("/presets").json()["presets"]
    }
    workflows = {one["name"]: one for one in server.get("/workflows").json()["workflows"]}
    assert workflows["product"]["inputs"][0]["name"] == "product"
    assert workflows["product"]["inputs"][0]["kind"] == "picture"
    assert {name for name, one in workflows.items() if not one["served"]} == {
        *("restore-ct", "tune-style")
    }
    health = server.get("/health").json()
    assert health["status"] == "ready"
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").status_code == 200
    assert "imageprompt_queue_jobs" in server.client.get("/metrics").text


def test_the_schema_is_that_of_python(server: Served) -> None:
    from imageprompt.core.schema import json_schema
    from imageprompt.generation.request import Request
    from imageprompt.serve.request_body import NOT_SERVED

    ours, whole = server.get("/schema").json(), json_schema(Request)
    ours = [ours["properties"], ours["$defs"]["Reference"]["properties"]]
    whole = [whole["properties"], whole["$defs"]["Reference"]["properties"]]
    pictures = {"init_image", "inpaint_mask", "reference", "mask", "reference_mask"}
    pictures |= {"negative_reference", "image_prompt", "base", "adapter", "content"}
    for here, there in zip(ours, whole, strict=True):
        assert set(there) - set(here) <= set(NOT_SERVED)
        assert set(here) <= set(there)
        for name, described in here.items():
            if name in pictures:  # what a picture can be differs, no more
                ignored = {"anyOf", "enum"}
                described = {k: v for k, v in described.items() if k not in ignored}
                there[name] = {k: v for k, v in there[name].items() if k not in ignored}
            assert described == json.loads(json.dumps(there[name])), name


def test_the_page_is_served_under_a_strict_policy(server: Served) -> None:
    page = server.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


# ── styles ──────────────────────────────────────────────────────────────────────────────────────


def test_styles_from_adding_to_deleting(server: Served) -> None:
    for name, content in (("red vase", RED), ("blue", BLUE)):
        answer = server.post(
            "/styles",
            files=form({"name": name, "reference": "part:p", "tags": ["t"]}, {"p": content}),
        )
        assert answer.status_code == 201, answer.text
        assert answer.json()["adapter"] == "plus"
    taken = server.post("/styles", files=form({"name": "blue", "reference": "part:p"}, {"p": BLUE}))
    assert (taken.status_code, taken.json()["error"]["param"]) == (409, "name")
    mixed = server.post(
        "/styles/mix", json={"name": "half", "weights": {"red vase": 0.6, "blue": 0.4}}
    )
    assert mixed.status_code == 201, mixed.text
    names = {one["name"] for one in server.get("/styles").json()["styles"]}
    assert names == {"red vase", "blue", "half"}
    found = server.get("/styles", params={"search": "vase"}).json()
    assert [one["name"] for one in found["styles"]] == ["red vase"]
    near = server.post(
        "/styles/search", files=form({"reference": "part:p", "limit": 2}, {"p": BLUE})
    ).json()
    assert near["styles"][0]["name"] == "blue"
    thumbnail = server.get("/styles/red%20vase/thumbnail")
    assert thumbnail.headers["content-type"] == "image/png"
    job = server.ended(server.submit(request(references=[{"style": "blue", "scale": 1}])))
    assert job["state"] == "done", job
    back = server.post("/recipe", files=[("a", ("a", server.picture(job)))]).json()
    assert back["request"]["references"][0]["style"] == "blue"
    for name in ("red%20vase", "blue", "half"):
        assert server.client.delete(f"{API}/styles/{name}").status_code == 204
    assert server.get("/styles").json()["styles"] == []
    gone = server.post("/jobs", json=request(references=[{"style": "blue"}]))
    assert gone.json()["error"]["param"] == "references.0.style"


def test_a_search_text_is_never_a_path(server: Served) -> None:
    for text in ("/etc/passwd", str(server.folder), "../..", "a\x00b"):
        assert server.get("/styles", params={"search": text}).json()["styles"] == []


def test_check_names_pictures_by_their_hashes(server: Served) -> None:
    answer = server.post(
        "/check", files=form({"reference": ["part:a", "part:b"]}, {"a": RED, "b": BLUE})
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    hashes = {hashlib.sha256(one).hexdigest() for one in (RED, BLUE)}
    assert {one["picture"] for one in found["pictures"]} == hashes
    assert str(server.folder) not in answer.text


# ── what is refused ─────────────────────────────────────────────────────────────────────────────

WRONG: dict[str, tuple[Any, int, str | None]] = {
    "not an object": ([], 400, None),
    "unknown field": ({"promt": "x"}, 400, "promt"),
    "wrong type": ({"prompt": 3}, 400, "prompt"),
    "huge count": ({"num_images": 10**6}, 400, "num_images"),
    "huge number": ({"seed": 10**30}, 400, "seed"),
    "huge size": ({"size": [100_000, 100_000]}, 400, "size"),
    "odd size": ({"size": [65, 64]}, 400, "size"),
    "too many steps": ({"steps": 10**6}, 400, "steps"),
    "long prompt": ({"prompt": "x" * 100_000}, 400, "prompt"),
    "path": ({"references": [shown("/etc/passwd")]}, 400, "references.0.reference"),
    "relative path": ({"references": [shown("../../x.png")]}, 400, "references.0.reference"),
    "URL": ({"references": [shown("http://127.0.0.1/")]}, 400, "references.0.reference"),
    "file URL": ({"references": [shown("file:///etc/passwd")]}, 400, "references.0.reference"),
    "Hub id": ({"references": [shown("part:x", adapter="h94/IP-Adapter")]}, 400, None),
    "path in a hash": ({"references": [shown("upload:../../x")]}, 400, "references.0.reference"),
    "other's result": ({"init_image": f"result:{'0' * 32}/0"}, 400, "init_image"),
    "no such part": ({"references": [shown("part:none")]}, 400, "references.0.reference"),
    "base": ({"base": "/models/other"}, 400, "base"),
    "device": ({"device": "cuda"}, 400, "device"),
    "controlnet": ({"controlnet": "x"}, 400, "controlnet"),
    "library": ({"library": "/tmp"}, 400, "library"),
    "encoder": ({"references": [shown(encoder="/x")]}, 400, "references.0.encoder"),
    "faces": ({"references": [shown(faces="/x")]}, 400, "references.0.faces"),
    "style": ({"references": [{"style": "../x"}]}, 400, "references.0.style"),
    "mask": ({"references": [shown(mask="/etc/passwd")]}, 400, "references.0.mask"),
    "many references": ({"references": [shown()] * 10_000}, 400, "references"),
    "many pictures": (
        {"references": [{"reference": ["part:a"] * 10_000}]},
        400,
        "references.0.reference",
    ),
    "scale": ({"references": [shown(scale=99)]}, 400, "references.0.scale"),
    "preset": ({"references": [shown(preset="x")]}, 400, "references.0.preset"),
    "schedule": ({"references": [shown(schedule={})]}, 400, "references.0.schedule"),
    "controls": ({"references": [shown(controls={})]}, 400, "references.0.controls"),
    "progress": ({"progress": True}, 400, "progress"),
    "callback": ({"on_step": "x"}, 400, "on_step"),
    "no source": ({"references": [{}]}, 400, "references.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(server: Served, name: str) -> None:
    body, status, param = WRONG[name]
    answer = server.post("/jobs", json=body)
    check_refused(server, answer, status)
    if param is not None:
        assert answer.json()["error"]["param"] == param


def check_refused(server: Served, answer: httpx2.Response, status: int) -> None:
    """A typed answer without internals, which tells clients not to try again."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"type", "message", "param", "hint"}
    assert answer.headers["x-should-retry"] == "false"
    assert str(server.folder) not in answer.text
    assert "Traceback" not in answer.text
    assert len(answer.text) < 2000


BODIES: dict[str, tuple[bytes, int]] = {
    "not JSON": (b"{", 400),
    "NaN": (b'{"seed": NaN}', 400),
    "twice": (b'{"seed": 1, "seed": 2}', 400),
    "deep": (b'{"references":' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    "digits": (b'{"seed": ' + b"1" * 100_000 + b"}", 400),
    "not UTF-8": (b'{"prompt": "\xff"}', 400),
    "surrogate": (b'{"promp\\ud800t": 1}', 400),
    "empty": (b"", 400),
    "too large": (b" " * (2**20 + 1), 413),
}


@pytest.mark.parametrize("name", BODIES)
def test_wrong_bodies(server: Served, name: str) -> None:
    content, status = BODIES[name]
    answer = server.post("/jobs", content=content, headers={"content-type": "application/json"})
    check_refused(server, answer, status)


def test_a_body_without_a_length_is_limited_while_it_is_read(server: Served) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 2**16
            yield b" " * 2**16

    try:
        answer = server.post(
            "/jobs", content=chunks(), headers={"content-type": "application/json"}
        )
        check_refused(server, answer, 413)
    except httpx2.NetworkError:  # the server has closed while the client still sent
        pass
    assert sent < 400 * 2**16


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_types_of_bodies(server: Served, kind: str) -> None:
    answer = server.post("/jobs", content=b"{}", headers={"content-type": kind})
    check_refused(server, answer, 415)


PICTURES: dict[str, bytes] = {
    "empty": b"",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "GIF": b"GIF89a" + bytes(100),
    "cut short": RED[:60],
    "PNG in name only": b"\x89PNG\r\n\x1a\n" + bytes(200),
}


@pytest.mark.parametrize("name", PICTURES)
def test_wrong_pictures(server: Served, name: str) -> None:
    for answer in (
        server.post("/uploads", files=[("a", ("x.png", PICTURES[name], "image/png"))]),
        server.post("/jobs", files=form(request(references=[shown()]), {"red": PICTURES[name]})),
    ):
        check_refused(server, answer, 400)
        assert answer.json()["error"]["type"] == "invalid_picture"


def test_a_bomb_is_refused_by_its_header(server: Served) -> None:
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, format="PNG")
    answer = server.post("/uploads", files=[("a", ("x", bomb.getvalue()))])
    assert answer.status_code in (400, 413)


def test_wrong_forms(server: Served) -> None:
    base = form(request(), {})
    cases = {
        "no request": [("a", ("x", RED))],
        "unused part": [*base, ("extra", ("x", RED))],
        "part twice": [*form(request(references=[shown()]), {"red": RED}), ("red", ("y", BLUE))],
        "many parts": [*base, *((f"p{i}", ("x", RED)) for i in range(200))],
        "many fields": [*base, *((f"p{i}", (None, "x")) for i in range(200))],
    }
    for name, parts in cases.items():
        answer = server.post("/jobs", files=parts)
        check_refused(server, answer, 400)
        assert answer.json()["error"]["type"] in ("invalid_multipart", "invalid_request"), name
    for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 500):
        answer = server.post("/jobs", content=b"--x\r\n", headers={"content-type": kind})
        check_refused(server, answer, 400)


def test_names_of_files_and_parts_lead_nowhere(server: Served) -> None:
    before = sorted(server.folder.rglob("*"))
    for filename in ("../../evil.png", "/etc/passwd", "a\x00b.png", "x" * 3000, "evil.svg"):
        parts = [form(request(references=[shown()]), {})[0]]
        parts.append(("red", (filename, RED, "image/svg+xml")))
        answer = server.post("/jobs", files=parts)
        assert answer.status_code == 202
        server.ended(answer.json())
    for name in ("../x", "a/b", "x" * 200):
        parts = form(request(references=[shown(f"part:{name}")]), {name: RED})
        check_refused(server, server.post("/jobs", files=parts), 400)
    new = set(server.folder.rglob("*")) - set(before)
    inside = server.data / "results"
    assert all(path.is_relative_to(inside) for path in new if "jobs.sqlite" not in path.name)


def test_paths_in_urls_lead_nowhere(server: Served) -> None:
    for path in (
        "/jobs/../../etc/passwd",
        "/jobs/%2e%2e%2f%2e%2e/events",
        f"/jobs/{'0' * 32}/result/..%2f..%2fjobs.sqlite",
        f"/jobs/{'0' * 32}/result/0.svg",
        "/uploads/..%2f..%2fjobs.sqlite",
        "/uploads/%00",
        f"/uploads/{'0' * 64}",
        "/styles/..%2f..%2fx",
        "/styles/%2e%2e",
        "/nothing",
    ):
        answer = server.client.get(f"{API}{path}")
        assert answer.status_code in (400, 404), path
        assert "error" in answer.json()
    assert server.client.get("/page/../settings.py").status_code == 404
    assert server.client.get("/settings.py").status_code == 404


def test_hosts_and_origins(server: Served) -> None:
    host = server.address.removeprefix("http://")
    port = host.rpartition(":")[2]
    for name in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "",
        "[",
        "127.0.0.1.x",
    ):
        answer = server.get("/bases", headers={"host": name})
        assert answer.status_code == 400, name
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert server.get("/bases", headers={"host": name}).status_code == 200, name
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}", "file://"):
        answer = server.post("/jobs", json=request(), headers={"origin": origin})
        assert answer.status_code == 403, origin
        assert answer.json()["error"]["type"] == "foreign_origin"
        assert "access-control-allow-origin" not in answer.headers
    own = server.post("/jobs", json=request(), headers={"origin": f"http://{host}"})
    assert own.status_code == 202
    deleted = server.client.delete(
        f"{API}/jobs/{own.json()['id']}", headers={"origin": "http://evil.example"}
    )
    assert deleted.status_code == 403


def test_a_slow_body_does_not_hold_others_up(server: Served) -> None:
    address = server.address.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as slow:
        slow.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert server.client.get("/healthz").status_code == 200


def test_garbage_ends_its_own_connection_only(server: Served) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    for content in (
        bytes(range(256)) * 40,
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"
        b"\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                assert b"imageprompt_" not in connection.recv(2**16)  # none smuggled in
        assert server.client.get("/healthz").status_code == 200


def test_wrong_methods_and_websockets(server: Served) -> None:
    answer = server.client.put(f"{API}/jobs", json={})
    check_refused(server, answer, 405)
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    assert server.client.get("/ws", headers=upgrade).status_code == 404


def test_a_killed_worker_of_a_real_engine(server: Served) -> None:
    """Its job runs once more, on another worker, and gives the picture that it would have given."""
    wanted = request(steps=40, seed=3, references=[shown()])
    job = server.submit(wanted, red=RED)
    server.until(job, lambda found: found["step"] > 2)
    os.kill(server.worker(), signal.SIGKILL)
    ended = server.ended(job)
    assert (ended["state"], ended["attempt"]) == ("done", 2)
    again = server.ended(server.submit(wanted, red=RED))
    assert pixels(server.picture(job)) == pixels(server.picture(again))


def test_nothing_private_is_logged(server: Served, done: Any) -> None:
    text = server.log.read_text()
    assert "a star" not in text
    assert "Traceback" not in text, text
