"""Every route asks for a key; nothing but the page and two probes is open. No worker is started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from imageprompt import cli
from imageprompt.core.errors import ImagePromptError, NotFoundError, OptionError, PictureError
from imageprompt.serve.app import PAGE, make_app
from imageprompt.serve.dialects import dialect_of
from imageprompt.serve.errors import ApiError, Problem, problem_of
from imageprompt.serve.files import Files
from imageprompt.serve.keys import Keys
from imageprompt.serve.rate_limit import RateLimit
from imageprompt.serve.request_body import REFERENCE, TOP
from imageprompt.serve.service import Service
from imageprompt.serve.settings import Limits, Settings
from imageprompt.serve.store import ENDED, JobRecord, State, Store, StoreThread
from served import drawn
from toy_server import picture_of


def with_client(
    folder: Path,
    check: Callable[[httpx2.AsyncClient, Any], Awaitable[None]],
    clock: Callable[[], float] = time.monotonic,
    **more: Any,
) -> None:
    """Run a check against the app, without a process."""

    async def run() -> None:
        settings = Settings(data=str(folder / "data"), library=str(folder / "library"), **more)
        app = make_app(Service(settings), clock)
        transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await check(client, app)

    asyncio.run(run())


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, as the schema and the app itself list them."""
    listed = [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    own = [(m, r.path) for r in app.routes if isinstance(r, APIRoute) for m in r.methods]
    return sorted({*listed, *own, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nothing")})


def test_every_route_needs_a_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret = keys.add("alice")
    seen = 0
    files = {f"/{path.relative_to(PAGE).as_posix()}" for path in PAGE.rglob("*")}
    public = {"/", "/docs", "/healthz", "/readyz", *files} - {"/index.html", "/docs.html"}

    async def check(client: httpx2.AsyncClient, guard: Any) -> None:
        nonlocal seen
        routes = routes_of(guard._app)
        for method, path in routes:
            filled = re.sub(r"\{\w+\}", "x", path)
            for headers in (
                {},
                {"authorization": f"Bearer {secret}x"},
                {"authorization": f"Basic {secret}"},
                {"authorization": secret},
                {"authorization": "Bearer "},
            ):
                answer = await client.request(method, filled, headers=headers)
                if answer.status_code != 401:
                    assert path in public, (method, path)
                    assert method == "GET"
                else:
                    assert answer.headers["www-authenticate"] == dialect_of(path).challenge
                    assert '"unauthorized"' in answer.text
                seen += 1
            # no other method opens it either
            for other in ("POST", "PUT", "DELETE", "PATCH"):
                assert (await client.request(other, filled)).status_code == 401
        right = await client.get("/api/v1/presets", headers={"authorization": f"Bearer {secret}"})
        assert right.status_code == 200
        in_url = await client.get(f"/api/v1/presets?key={secret}&token={secret}")
        assert in_url.status_code == 401

    with_client(tmp_path, check, keys=str(tmp_path / "keys.json"))
    assert seen > 100


def test_there_is_one_route_for_everything_that_the_page_of_the_api_lists(tmp_path: Path) -> None:
    """docs/http-api.md names every route, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text("utf-8")
    named = set()
    for cell in re.findall(r"^\| (`(?:GET|POST|DELETE) .*?`) \|", page, re.MULTILINE):
        method, path = re.findall(r"(GET|POST|DELETE) ([^ ?`]+)", cell)[0]
        named.add((method, re.sub(r"\{\w+\}", "{}", path)))
    named.add(("GET", "/styles/{}/thumbnail"))

    async def check(_: httpx2.AsyncClient, guard: Any) -> None:
        found = {
            (
                method,
                re.sub(r"\{\w+\}", "{}", path.removeprefix("/api/v1")).replace(
                    "result/{}", "result/{}.png"
                ),
            )
            for method, path in routes_of(guard._app)
            if path.startswith("/api/v1")
        }
        assert found == named

    with_client(tmp_path, check)


def test_openapi_has_the_request(tmp_path: Path) -> None:
    async def check(client: httpx2.AsyncClient, _: Any) -> None:
        described = (await client.get("/openapi.json")).json()
        body = described["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]
        properties = body["application/json"]["schema"]["properties"]
        assert set(properties) == set(TOP)
        assert set(properties["references"]["items"]["properties"]) == set(REFERENCE)
        assert "$defs" not in json.dumps(body)
        assert set(body["multipart/form-data"]["schema"]["properties"]) == {"request"}
        tags = {tag["name"] for tag in described["tags"]}
        for path, operations in described["paths"].items():
            for method, operation in operations.items():
                assert operation["description"], path
                assert len(operation["tags"]) == 1
                assert set(operation["tags"]) <= tags
                assert "422" not in operation["responses"]  # wrong requests are 400 here
                assert "default" in operation["responses"]
                if method == "post" and path.startswith("/api/"):
                    assert operation["requestBody"]["required"], path
        references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
        assert references == set(described["components"]["schemas"])

    with_client(tmp_path, check)


def test_a_body_has_the_fields_that_openapi_says(tmp_path: Path) -> None:
    """Of routes whose fields are their own; what is refused names them all."""

    async def check(client: httpx2.AsyncClient, _: Any) -> None:
        described = (await client.get("/openapi.json")).json()["paths"]
        for path in ("styles", "styles/search", "styles/mix", "check"):
            content = described[f"/api/v1/{path}"]["post"]["requestBody"]["content"]
            schema = content["application/json"]["schema"]
            answer = await client.post(f"/api/v1/{path}", json={"x": 1})
            assert answer.status_code == 400
            hint = answer.json()["error"]["hint"]
            assert hint == f"The fields are {', '.join(schema['properties'])}."
            assert set(schema["required"]) <= set(schema["properties"])

    with_client(tmp_path, check)


def test_errors_of_the_server_tell_nothing(tmp_path: Path) -> None:
    async def check(client: httpx2.AsyncClient, guard: Any) -> None:
        def broken() -> None:
            raise RuntimeError("secret in /home/somebody")

        guard._app.state.service.library.styles = lambda tag: broken()
        answer = await client.get("/api/v1/styles")
        assert answer.status_code == 500
        assert answer.json() == {
            "error": {
                "type": "internal",
                "message": "an error of the server",
                "param": None,
                "hint": "Its log has the details.",
            }
        }

    with_client(tmp_path, check)


def test_paths_are_left_out_of_problems() -> None:
    for error, wanted in (
        (NotFoundError("style 'x'", reason="not in /srv/lib/styles"), "style 'x': not in styles"),
        (
            OptionError("--init-image x", reason="no", hint="Give --mask (mask= in Python)."),
            "init_image x: no",
        ),
        (PictureError("picture '/a b/c.png'", reason="cut"), "picture '/a b/c.png': cut"),
        (OptionError("~/models/x.safetensors", reason="bad"), "x.safetensors: bad"),
    ):
        problem = problem_of(error)
        assert "/srv" not in problem.message + problem.hint
        if " b/" not in wanted:
            assert problem.message == wanted
    assert problem_of(ImagePromptError("x")).type == "invalid_request"


def test_retry_after_is_whole_honest_and_at_most_two_minutes() -> None:
    problem = Problem("queue_full", "x")
    for seconds, wanted in ((0.2, "1"), (17.4, "17"), (1e9, "120")):
        assert ApiError(429, problem, retry_after=seconds).headers() == {"retry-after": wanted}
    assert ApiError(400, problem).headers() == {"x-should-retry": "false"}
    assert "x-should-retry" not in ApiError(503, problem).headers()


def test_who_leaves_while_a_part_of_the_body_arrives_is_gone(tmp_path: Path) -> None:
    async def check() -> None:
        settings = Settings(data=str(tmp_path / "data"), library=str(tmp_path / "library"))
        part: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            asked.set()
            return await part

        async def send(message: Any) -> None:
            raise AssertionError(message)

        names = {"host": "localhost", "content-type": "application/json", "content-length": "2"}
        scope = {
            "type": "http",
            "method": "POST",
            "scheme": "http",
            "path": "/api/v1/jobs",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in names.items()],
            "server": ("localhost", 80),
        }
        request = asyncio.create_task(make_app(Service(settings))(scope, receive, send))
        await asyncio.wait_for(asked.wait(), timeout=60)
        part.set_result({"type": "http.request", "body": b"{}", "more_body": False})
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(check())


# ── how often ──────────────────────────────────────────────────────────────────────────────────


def test_a_key_has_so_many_requests_a_minute() -> None:
    now = 1000.0
    limit = RateLimit(30, lambda: now)
    assert [limit.take("a") for _ in range(30)] == [0.0] * 30
    seconds = limit.take("a")
    assert seconds == pytest.approx(2)
    assert limit.take("b") == 0  # another key
    now += seconds - 0.01
    assert limit.take("a") == pytest.approx(0.01)  # a refused request costs nothing
    now += 0.01
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(2)
    now += 1e6  # no more than a minute's worth is saved
    assert sum(limit.take("a") == 0 for _ in range(100)) == 30


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    now = 0.0
    keys = Keys(tmp_path / "keys.json")
    alice, bob = ({"authorization": f"Bearer {keys.add(name)}"} for name in ("alice", "bob"))

    async def check(client: httpx2.AsyncClient, guard: Any) -> None:
        nonlocal now
        for _ in range(7):
            assert (await client.get("/api/v1/presets", headers=alice)).status_code == 200
        for path, kind in (("/api/v1/presets", "rate_limit"), ("/v1/models", "rate_limit_error")):
            refused = await client.get(path, headers=alice)
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == kind
            assert refused.headers["retry-after"] == "9"  # 60 / 7, whole and not too early
            assert "x-should-retry" not in refused.headers
        assert (await client.post("/api/v1/jobs", headers=alice)).status_code == 429
        for path in ("/", "/healthz", "/app.js"):  # what needs no key is not counted
            assert (await client.get(path, headers=alice)).status_code == 200
        for _ in range(9):  # nor is who has none
            assert (await client.get("/api/v1/presets")).status_code == 401
        assert (await client.get("/api/v1/presets", headers=bob)).status_code == 200
        now += 9
        assert (await client.get("/api/v1/presets", headers=alice)).status_code == 200
        assert (await client.get("/api/v1/presets", headers=alice)).status_code == 429
        told = (await client.get("/metrics", headers=bob)).text
        assert "imageprompt_rate_limited_total 4.0" in told
        assert 'http_requests_total{route="none",status="429"} 4.0' in told

    more = {"keys": str(tmp_path / "keys.json"), "requests_per_minute": 7}
    with_client(tmp_path, check, clock=lambda: now, **more)


# ── keys and files ──────────────────────────────────────────────────────────────────────────────


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = Keys(path)
    with pytest.raises(NotFoundError, match="--add-key"):
        keys.all()
    first, second = keys.add("a"), keys.add("b")
    assert len(first) > 40
    assert first != second
    assert first.removeprefix("ip-") not in path.read_text()
    owners = {keys.owner(first), keys.owner(second)}
    assert len(owners) == 2
    assert None not in owners
    for wrong in ("", "ip-", first[:-1], f"{first} ", "\udcff"):
        assert keys.owner(wrong) is None
    with pytest.raises(OptionError, match="exists already"):
        keys.add("a")
    with pytest.raises(OptionError):
        keys.add("../x")
    keys.remove("a")
    assert keys.owner(first) is None
    with pytest.raises(NotFoundError, match="There are: b"):
        keys.remove("a")
    path.write_text(json.dumps({"keys": [{"id": "x"}]}))
    with pytest.raises(OptionError):
        keys.all()


def test_every_path_is_made_of_checked_parts(tmp_path: Path) -> None:
    files = Files(tmp_path, Limits())
    job, digest = "0" * 32, "0" * 64
    for owner in ("..", "a/b", "", "A", "a" * 33, "a\x00", "a\n"):
        with pytest.raises(OptionError):
            files.upload(owner, digest)
    for wrong in ("..", "", "0" * 63, f"{'0' * 63}/", "A" * 64, f"{digest}\n"):
        with pytest.raises(OptionError):
            files.upload("local", wrong)
        with pytest.raises(OptionError):
            files.results("local", wrong)
    kept = files.keep("local", drawn("red"))
    assert files.read_upload("local", kept.hash) == drawn("red")
    assert files.read_upload("other", kept.hash) is None
    assert list(files.old_uploads(-5)) == [("local", kept.hash)]
    assert list(files.old_uploads(5)) == []
    few = Files(tmp_path, Limits(uploaded_bytes_of_one_key=len(drawn("red")) + 10))
    few.keep("local", drawn("red"))  # it is there already
    with pytest.raises(ApiError, match="too many uploads"):
        few.keep("local", drawn("blue"))
    few.remove_upload("local", kept.hash)
    few.keep("local", drawn("blue"))
    files.keep_result("local", job, 3, b"x")
    assert [one.index for one in files.results_of("local", job)] == [3]
    files.remove_results("local", job)
    files.remove_results("local", job)
    assert list(files.all_jobs()) == []


def test_uploads_are_kept_as_long_as_a_job_needs_them(tmp_path: Path) -> None:
    async def check() -> None:
        settings = Settings(data=str(tmp_path), library=str(tmp_path / "l"), keep_uploads=0)
        service = Service(settings)
        needed, unneeded = (service.files.keep("local", drawn(c)).hash for c in ("red", "blue"))
        job = JobRecord(id="0" * 32, owner="local", request={})
        service._store.start()
        await service._store.change(partial(Store.add, job=job, uploads=[needed]))
        for digest in (needed, unneeded):
            os.utime(service.files.upload("local", digest), (1, 1))
        await service._sweep()
        assert service.files.read_upload("local", needed) == drawn("red")
        assert service.files.read_upload("local", unneeded) is None
        service._store.stop()

    asyncio.run(check())


def test_old_jobs_are_deleted_and_do_not_come_back(tmp_path: Path) -> None:
    """By age, with files and rows; never those that wait or run, also if the store is lost."""
    hours = 3600.0
    now = time.time()
    ages = {"a": 30.0, "b": 20.0, "c": 30.0, "d": 30.0, "e": 30.0}
    states: dict[str, State] = {"a": "done", "b": "done", "c": "running", "d": "queued"}
    states["e"] = "failed"

    def service_of(**more: Any) -> Service:
        service = Service(Settings(data=str(tmp_path), library=str(tmp_path / "l"), **more))
        service._store.start()
        return service

    def record(letter: str) -> JobRecord:
        state, then = states[letter], now - ages[letter] * hours
        ended = then if state in ENDED else None
        return JobRecord(
            id=letter * 32, owner="local", request={}, state=state, created=then, ended=ended
        )

    async def check() -> None:
        service = service_of()  # for ever
        upload = service.files.keep("local", drawn("red")).hash
        for letter in states:
            added = partial(Store.add, job=record(letter), uploads=[upload], once=letter)
            await service._store.change(added)
            service.files.keep_result("local", letter * 32, 0, picture_of("a star", 1, 0))
            path = service.files.result("local", letter * 32, 0)
            os.utime(path, (now - ages[letter] * hours,) * 2)
        await service._sweep()
        assert await service._store.look_up(Store.known) == {one * 32 for one in "abcde"}
        service._store.stop()

        service = service_of(keep_jobs=24.0)  # another server
        blocked = service.files.remove_results
        service.files.remove_results = refusing("a" * 32, blocked)  # type: ignore[method-assign]
        await service._sweep()
        assert await service._store.look_up(Store.known) == {one * 32 for one in "abcd"}
        service.files.remove_results = blocked  # type: ignore[method-assign]
        await service._sweep()
        assert await service._store.look_up(Store.known) == {one * 32 for one in "bcd"}
        assert sorted(job for _, job in service.files.all_jobs()) == [one * 32 for one in "bcd"]
        assert await service._store.look_up(partial(Store.once, owner="local", once="a")) is None
        assert b"imageprompt_jobs_removed_total 2.0" in service.metrics.text()
        await service._rebuild()
        assert await service._store.look_up(Store.known) == {one * 32 for one in "bcd"}
        service._store.stop()

        for file in tmp_path.glob("jobs.sqlite*"):
            file.unlink()
        service = service_of(keep_jobs=24.0)  # the pictures are all that is known
        await service._rebuild()
        assert await service._store.look_up(Store.known) == {"b" * 32}
        service._store.stop()

    asyncio.run(check())


def refusing(name: str, call: Callable[[str, str], None]) -> Callable[[str, str], None]:
    def refused(owner: str, job: str) -> None:
        if job == name:
            raise PermissionError
        call(owner, job)

    return refused


def test_a_change_that_fails_harms_no_other(tmp_path: Path) -> None:
    """Changes that are committed together fail one by one."""

    async def check() -> None:
        store = StoreThread(tmp_path / "jobs.sqlite")
        assert store.start()
        jobs = [JobRecord(id=f"{n:032x}", owner="a", request={}) for n in (1, 2, 1, 3)]
        changes = [store.change(partial(Store.add, job=job)) for job in jobs]
        results = await asyncio.gather(*changes, return_exceptions=True)
        assert [type(one).__name__ for one in results] == [
            *("NoneType", "NoneType", "IntegrityError", "NoneType")
        ]
        assert len(await store.look_up(Store.known)) == 3
        assert [one.id for one in await store.look_up(Store.unfinished)] == [
            f"{n:032x}" for n in (1, 2, 3)
        ]
        store.stop()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "without --keys"),
        ({"host": "example.org"}, "without --keys"),
        ({"adapter": ("x",)}, "NAME=FILE"),
        ({"adapter": ("../x=y",)}, "NAME=FILE"),
        ({"adapter": ("a=b", "a=c")}, "given twice"),
        ({"port": 70000}, "--port"),
        ({"requests_per_minute": 0}, "--requests-per-minute 0"),
        ({"keep_jobs": 0.5}, "--keep-jobs 0.5"),
        ({"device": "x"}, "device"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Settings(data=str(tmp_path), **options).check()


def test_the_command_line_loads_none_of_it() -> None:
    code = (
        "import sys, imageprompt.cli, imageprompt.cli.serve as serve;"
        "from imageprompt.core.console import Parser; serve.add_serve(Parser());"
        "print([n for n in ('torch', 'fastapi', 'uvicorn', 'prometheus_client', 'pydantic')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import imageprompt.cli.serve as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main(["serve", "--data", str(tmp_path)]) == 2
    assert "pip install imageprompt[serve]" in capsys.readouterr().err
