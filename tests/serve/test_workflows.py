"""Workflows as jobs of `imageprompt serve`, against a live server on the bundled stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from served import Served, drawn, form, served

RED, BLUE = drawn("red"), drawn("blue")
PLAIN = {"picture": "part:red", "scales": [0.5], "num_images": 1, "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


def asked(server: Served, name: str, data: Any, **pictures: bytes) -> Any:
    if pictures:
        return server.post(f"/workflows/{name}", files=form(data, pictures))
    return server.post(f"/workflows/{name}", json=data)


def test_other_routes_take_no_workflow(server: Served) -> None:
    """Its inputs would not be held against what a request may name."""
    data = {"workflow": "variations", "inputs": {"base": "/etc"}, "pictures": {}}
    for path in ("/jobs", "/workflows/variations"):
        assert server.post(path, json=data).status_code in (400, 422), path


def test_a_workflow_is_a_job_with_a_report(server: Served) -> None:
    answer = asked(server, "variations", PLAIN, red=RED)
    assert answer.status_code == 202, answer.text
    events = [kind for _, kind, _ in server.events(answer.json())]
    assert events[-2:] == ["image", "done"]
    assert "progress" in events
    job = server.job(answer.json())
    assert (job["state"], len(job["images"])) == ("done", 1)
    assert job["request"]["workflow"] == "variations"
    assert job["images"][0]["seed"] == 5
    report = server.client.get(job["urls"]["report"]).json()
    assert report["pictures"][0]["label"].startswith("scale 0.5, seed 5")
    assert report["measured"]["near_copies"] in (0, 1)
    assert report["cost"] | {"seconds": 0} == {
        "generated": 1,
        "denoising_steps": 2,
        "seconds": 0,
    }
    assert [one["width"] for one in report["checks"]] == [40]
    whole = json.dumps(report).encode() + server.picture(job)
    assert str(server.folder).encode() not in whole
    hashed = job["request"]["pictures"]["picture"]
    again = asked(server, "variations", PLAIN | {"picture": [hashed]}).json()
    assert server.picture(server.ended(again)) == server.picture(job)
    assert server.client.delete(job["urls"]["self"]).status_code == 204
    assert server.client.get(job["urls"]["report"]).status_code == 404


def test_a_workflow_that_fails_says_why_in_one_line(server: Served) -> None:
    job = asked(
        server, "restyle", {"content": "part:a", "style": "part:b", "steps": 2}, a=RED, b=RED
    ).json()
    ended = server.ended(job)
    assert ended["state"] == "failed"
    assert "are the same picture, where two are needed" in ended["error"]["message"]
    assert server.get(f"/jobs/{job['id']}/report").status_code == 404


def test_one_that_runs_is_cancelled_within_a_step(server: Served) -> None:
    job = asked(server, "variations", PLAIN | {"steps": 150, "num_images": 16}, red=RED).json()
    server.until(job, lambda found: found["step"] > 0)
    server.client.delete(job["urls"]["self"])
    assert server.ended(job)["state"] == "cancelled"


REFUSED: dict[str, tuple[str, Any, int, str]] = {
    "no such workflow": ("nothing", PLAIN, 404, "no such workflow"),
    "reads folders": ("tune-style", {"domain": "/etc"}, 400, "which no request can name"),
    "reads scans": ("restore-ct", {"scan": "/etc/passwd"}, 400, "which no request can name"),
    "a path": ("variations", {"picture": "/etc/passwd"}, 400, "not part:NAME"),
    "a URL": ("variations", {"picture": ["http://localhost/a.png"]}, 400, "not part:NAME"),
    "a number": ("variations", {"picture": [3]}, 400, "not part:NAME"),
    "no picture": ("variations", {}, 400, "it must be given"),
    "no object": ("variations", [], 400, "not an object"),
    "too many": ("variations", PLAIN | {"num_images": 999}, 400, "num_images"),
    "many steps": ("variations", PLAIN | {"steps": 9999}, 400, "steps"),
    "spread wide": ("variations", PLAIN | {"scales": [0.5] * 9, "num_images": 9}, 400, "81 pic"),
    "large": ("variations", PLAIN | {"size": [8192, 8192]}, 400, "size"),
    "a device": ("variations", PLAIN | {"device": "cuda"}, 400, "not a part of the API"),
    "a library": ("concept", {"style": "oil", "library": "/"}, 400, "not a part of the API"),
    "an adapter": ("variations", PLAIN | {"adapter": "/a"}, 400, "not a part of the API"),
    "an object": ("people", {"order": {"a": 1}}, 400, "order: not of the right type"),
    "embeddings": ("people", {"embedding": "/a.npy"}, 400, "not a part of the API"),
    "a typing error": ("variations", {"pictur": "part:red"}, 400, "Did you mean picture?"),
    "not sent": ("variations", PLAIN | {"picture": f"upload:{'0' * 64}"}, 400, "no such upload"),
    "as a job": ("../jobs", {"workflow": "variations", "inputs": {}}, 400, "no such field"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, server: Served) -> None:
    workflow, data, status, words = REFUSED[name]
    answer = asked(server, workflow, data)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert any(one in error["message"] + error["hint"] for one in words.split("|")), answer.text
