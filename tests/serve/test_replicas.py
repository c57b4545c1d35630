"""Several servers behind one address: who answers, and what happens when one is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from imageprompt.serve.errors import ApiError
from imageprompt.serve.replicas import (
    AHEAD,
    Lost,
    Message,
    Router,
    answers_of,
    by_affinity,
    mark_of,
)
from imageprompt.serve.settings import Limits
from served import drawn

JOB = "0" * 30
API = "/api/v1"


class Server:
    """Answers with its number, or as it is told."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, list[str]()
        self.status, self.alive, self.breaks = 200, True, False
        self.jobs: list[Any] = []
        self.says, self.queued = "", 0

    async def waiting(self) -> int | None:
        return self.queued if self.alive else None

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        self.asked.append(scope["path"])
        if not self.alive:
            raise Lost
        yield {"type": "http.response.start", "status": self.status, "headers": []}
        if self.breaks:
            raise Lost
        content = {"type": self.says, "server": self.number, "jobs": self.jobs, "bytes": len(body)}
        yield {"type": "http.response.body", "body": json.dumps(content).encode()}


@pytest.fixture
def servers() -> list[Server]:
    return [Server(number) for number in range(3)]


class Client:
    """Sends requests to a router."""

    def __init__(self, servers: list[Server]) -> None:
        self.router = Router(servers, Limits())
        asyncio.run(self.router.look())

    def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        query: str = "",
        **headers: str,
    ) -> tuple[int, Any]:
        given = {"content-type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        sent: list[Message] = []

        async def ask() -> None:
            unread = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Message:
                if unread:
                    return unread.pop()
                await asyncio.sleep(60)
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                sent.append(message)

            await self.router(scope, receive, send)

        asyncio.run(ask())
        content = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(content)

    def post(self, request: Any, **more: Any) -> int:
        status, answer = self.send("POST", f"{API}/jobs", json.dumps(request).encode(), **more)
        assert status == 200
        return int(answer["server"])


@pytest.fixture
def client(servers: list[Server]) -> Client:
    return Client(servers)


def with_reference(name: str, **more: Any) -> Any:
    return {"prompt": "a", "references": [{"reference": name}], **more}


# ── who answers ─────────────────────────────────────────────────────────────────────────────────


def test_the_same_reference_goes_to_the_same_server(client: Client) -> None:
    first = client.post(with_reference("upload:1"))
    assert client.post(with_reference("upload:1", prompt="other", seed=3)) == first
    assert {client.post(with_reference(f"upload:{n}")) for n in range(20)} == {0, 1, 2}


def test_what_needs_nothing_encoded_is_spread(client: Client, servers: list[Server]) -> None:
    assert sorted(client.post({"prompt": "a"}) for _ in range(6)) == [0, 0, 1, 1, 2, 2]
    servers[0].queued = servers[1].queued = 5
    servers[2].queued = 1
    asyncio.run(client.router.look())
    assert [client.post({"prompt": "a"}) for _ in range(4)] == [2, 2, 2, 2]


def test_a_server_at_which_many_jobs_wait_is_asked_last(
    client: Client, servers: list[Server]
) -> None:
    first = client.post(with_reference("upload:1"))
    servers[first].queued = AHEAD
    asyncio.run(client.router.look())
    assert [client.post(with_reference("upload:1")) for _ in range(2)] != [first, first]
    body = json.dumps(with_reference("upload:1")).encode()
    _, answer = client.send("POST", f"{API}/jobs", body, idempotency_key="k")
    assert answer["server"] == first  # a repetition would come there, too


def test_a_form_goes_by_its_pictures(client: Client) -> None:
    def form(prompt: str, picture: bytes) -> int:
        request = json.dumps(with_reference("part:a", prompt=prompt))
        parts = [("request", request.encode()), ("a", picture)]
        text = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n'
            % (name.encode(), content)
            for name, content in parts
        )
        kind = "multipart/form-data; boundary=x"
        _, answer = client.send("POST", f"{API}/jobs", text + b"--x--\r\n", kind)
        return int(answer["server"])

    colours = ("red", "green", "blue", "navy", "orange", "white")
    found = [form("a", drawn(colour)) for colour in colours]
    assert len(set(found)) > 1
    assert found == [form("b", drawn(colour)) for colour in colours]


def test_when_a_server_is_away_only_its_keys_move() -> None:
    keys = [b"%d" % number for number in range(300)]
    before = [by_affinity(key, 3) for key in keys]
    assert {order[0] for order in before} == {0, 1, 2}
    assert [by_affinity(key, 4)[0] for key in keys if by_affinity(key, 4)[0] != 3] == [
        order[0] for key, order in zip(keys, before, strict=True) if by_affinity(key, 4)[0] != 3
    ]


@pytest.mark.parametrize("rest", ["", "/events", "/result/0.png"])
def test_a_job_is_where_its_id_says(rest: str, client: Client, servers: list[Server]) -> None:
    for number in range(3):
        _, answer = client.send("GET", f"{API}/jobs/{mark_of(number)}{JOB}{rest}")
        assert answer["server"] == number
    source = f"result:{mark_of(2)}{JOB}/0"
    assert client.post(with_reference(source)) == 2
    assert client.send("GET", "/metrics", query="replica=1")[1]["server"] == 1


def test_one_client_of_a1111_has_one_server(client: Client) -> None:
    def asked(key: str) -> set[int]:
        paths = ("/sdapi/v1/txt2img", "/sdapi/v1/progress", "/sdapi/v1/interrupt")
        answers = [
            client.send("POST", path, b'{"model": "%d"}' % n, authorization=key)[1]
            for n, path in enumerate(paths)
        ]
        return {answer["server"] for answer in answers}

    found = [asked(f"Basic {number}") for number in range(12)]
    assert all(len(one) == 1 for one in found)
    assert len(set.union(*found)) > 1


def test_uploads_are_kept_by_all(client: Client, servers: list[Server]) -> None:
    servers[1].alive = False
    assert client.send("POST", f"{API}/uploads", b"png", "image/png")[0] == 200
    assert [len(one.asked) for one in servers] == [1, 1, 1]


def test_a_list_has_the_jobs_of_all(client: Client, servers: list[Server]) -> None:
    for server in servers:
        server.jobs = [{"id": server.number, "created": 10 * n + server.number} for n in range(3)]
    _, answer = client.send("GET", f"{API}/jobs", query="limit=4")
    assert [job["created"] for job in answer["jobs"]] == [22, 21, 20, 12]
    servers[1].status = 400
    assert client.send("GET", f"{API}/jobs", query="limit=x")[0] == 400


# ── one is away ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["full", "dead", "without the upload"])
def test_the_next_one_takes_what_the_first_does_not(
    fault: str, client: Client, servers: list[Server]
) -> None:
    first = client.post(with_reference("upload:1"))
    if fault == "full":
        servers[first].status = 429
    elif fault == "without the upload":
        servers[first].status, servers[first].says = 400, "missing_upload"
    else:
        servers[first].alive = False
    second = client.post(with_reference("upload:1"))
    assert second != first
    if fault == "dead":  # it is not asked again before it is known to live
        asked = len(servers[first].asked)
        client.post(with_reference("upload:1"))
        assert len(servers[first].asked) == asked
    servers[first].status, servers[first].alive = 200, True
    asyncio.run(client.router.look())
    assert client.post(with_reference("upload:1")) == first


def test_another_refusal_is_the_answer(client: Client, servers: list[Server]) -> None:
    servers[client.post(with_reference("upload:1"))].status = 400
    body = json.dumps(with_reference("upload:1")).encode()
    assert client.send("POST", f"{API}/jobs", body)[0] == 400


def test_ready_when_all_have_been_seen(servers: list[Server]) -> None:
    servers[1].alive = False
    client = Client(servers)
    with pytest.raises(ApiError):
        client.send("GET", "/readyz")
    servers[1].alive = True
    asyncio.run(client.router.look())
    servers[1].alive = False
    asyncio.run(client.router.look())
    assert client.send("GET", "/readyz")[0] == 200


def test_with_an_idempotency_key_no_other_server_is_asked(
    client: Client, servers: list[Server]
) -> None:
    first = client.post(with_reference("upload:1"), idempotency_key="k")
    servers[first].status = 429
    body = json.dumps(with_reference("upload:1")).encode()
    assert client.send("POST", f"{API}/jobs", body, idempotency_key="k")[0] == 429
    servers[first].alive = False
    with pytest.raises(ApiError) as error:
        client.send("POST", f"{API}/jobs", body, idempotency_key="k")
    assert error.value.status == 503
    assert sum(len(one.asked) for one in servers if one.number != first) == 0


def test_after_the_first_byte_no_other_server_is_asked(
    client: Client, servers: list[Server]
) -> None:
    first = client.post(with_reference("upload:1"))
    servers[first].breaks = True
    with pytest.raises(Lost):
        client.post(with_reference("upload:1"))
    assert sum(len(one.asked) for one in servers) == 2


def test_the_job_of_a_server_that_is_away(client: Client, servers: list[Server]) -> None:
    servers[1].alive = False
    asyncio.run(client.router.look())
    with pytest.raises(ApiError) as error:
        client.send("GET", f"{API}/jobs/{mark_of(1)}{JOB}")
    assert (error.value.status, error.value.retry_after) == (503, 5)
    servers[0].alive = servers[2].alive = False
    asyncio.run(client.router.look())
    for path in ("/readyz", f"{API}/jobs", f"{API}/presets"):
        with pytest.raises(ApiError):
            client.send("GET", path)


# ── the other end ───────────────────────────────────────────────────────────────────────────────


def test_the_end_of_the_iteration_is_the_end_of_the_connection() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        heard.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.append((await receive())["type"])

    async def leave() -> None:
        messages = answers_of(app, {"type": "http"}, b"body")
        assert (await anext(messages))["status"] == 200
        await messages.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert heard == ["http.request", "http.disconnect"]


def test_an_error_of_the_app_is_raised() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("no")

    async def ask() -> None:
        async for _ in answers_of(app, {"type": "http"}, b""):
            pass

    with pytest.raises(ValueError, match="no"):
        asyncio.run(ask())
