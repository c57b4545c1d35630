"""What a server survives: killed workers and servers, full disks, overload, a second server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from served import API, PATIENCE, TOY, Served, pixels, read_events, served
from toy_server import picture_of


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, toy=True) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for tests that it survives."""
    with served(tmp_path_factory.mktemp("lasting"), toy=True) as running:
        yield running


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def again(server: Served, *options: str) -> Served:
    """Another server on the same data."""
    return Served(server.folder, *options, toy=True)


def assert_right(server: Served, job: Any) -> None:
    """The job is done, with the picture of its own request."""
    found = server.ended(job)
    assert found["state"] == "done", found
    seed, prompt = found["request"].get("seed", 1), found["request"]["prompt"]
    assert len(found["images"]) == found["request"].get("num_images", 1)
    for image in found["images"]:
        expected = pixels(picture_of(prompt, seed, image["index"]))
        assert pixels(server.picture(job, image["index"])) == expected


def test_a_killed_worker_starts_again_and_its_jobs_run_once_more(lasting: Served) -> None:
    first = lasting.submit({"prompt": "hang"})
    others = [lasting.submit({"prompt": f"p{seed}", "seed": seed}) for seed in range(5)]
    lasting.until(first, lambda job: job["step"] > 0)
    os.kill(lasting.worker(), signal.SIGKILL)
    for job in (first, *others):
        assert_right(lasting, job)
    assert lasting.job(first)["attempt"] == 2
    assert all(lasting.job(job)["attempt"] <= 2 for job in others)
    kinds = [(kind, data) for _, kind, data in lasting.events(first)]
    assert ("started", {"attempt": 2}) in kinds


def test_a_cancelled_job_does_not_run_again_when_its_worker_dies(server: Served) -> None:
    job = server.submit({"prompt": "hang"})
    server.until(job, lambda found: found["step"] > 0)
    worker = server.worker()
    os.kill(worker, signal.SIGSTOP)  # it cannot answer
    assert server.client.delete(f"{API}/jobs/{job['id']}").status_code == 202
    os.kill(worker, signal.SIGKILL)
    found = server.ended(job)
    assert (found["state"], found["attempt"]) == ("cancelled", 1)


def test_a_poisoned_job_fails_alone(lasting: Served) -> None:
    poison = lasting.submit({"prompt": "crash"})
    others = [lasting.submit({"prompt": f"slow p{seed}", "seed": seed}) for seed in range(3)]
    refused = lasting.submit({"prompt": "refuse"})
    found = lasting.ended(poison)
    assert found["state"] == "failed"
    assert found["error"]["type"] == "crashed"
    for job in others:
        assert_right(lasting, job)
    assert_right(lasting, lasting.submit({"prompt": "crash once"}))  # a second crash would end it
    assert lasting.ended(refused)["error"] == {
        "type": "invalid_option",
        "message": "no",
        "param": None,
        "hint": "",
    }
    assert lasting.get("/health").json()["status"] == "ready"


@pytest.mark.sample(3)
@pytest.mark.parametrize("moment", [0.6, 0.0, 0.05])
def test_a_killed_server_loses_nothing(tmp_path: Path, moment: float) -> None:
    """Killed while jobs wait, run and end; the next server ends them all, each once."""
    server = Served(tmp_path, toy=True)
    jobs = [
        server.submit({"prompt": f"slow {seed}", "seed": seed, "num_images": 2})
        for seed in range(3)
    ]
    time.sleep(moment)
    worker = server.worker()
    server.close()
    wait_until(lambda: not Path(f"/proc/{worker}").exists() or _zombie(worker))  # by itself
    server = again(server)
    try:
        for job in jobs:
            assert_right(server, job)
        listed = server.get("/jobs").json()["jobs"]
        assert sorted(job["id"] for job in listed) == sorted(job["id"] for job in jobs)
        assert not list(server.data.rglob("*.tmp*"))
    finally:
        server.close()


def _zombie(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


def test_a_job_that_was_to_end_does_not_run_again(server: Served) -> None:
    job = server.submit({"prompt": "hang"})
    server.until(job, lambda found: found["step"] > 0)
    assert server.client.delete(f"{API}/jobs/{job['id']}").status_code == 202
    server.close()
    server = again(server)
    try:
        assert server.job(job)["state"] == "cancelled"
    finally:
        server.close()


def test_a_lost_store_is_rebuilt_from_the_pictures(server: Served) -> None:
    job = server.submit({"prompt": "kept", "seed": 4, "num_images": 2})
    assert_right(server, job)
    gone = server.ended(server.submit({"prompt": "deleted"}))
    server.client.delete(f"{API}/jobs/{gone['id']}")
    server.close()
    for file in server.data.glob("jobs.sqlite*"):
        file.write_bytes(b"this is no database" * 100)
    server = again(server)
    try:
        wait_until(lambda: server.get("/jobs").json()["jobs"])
        (only,) = server.get("/jobs").json()["jobs"]
        assert (only["id"], only["state"], only["request"]["prompt"]) == (job["id"], "done", "kept")
        assert_right(server, job)
        assert list(server.data.glob("jobs.sqlite.damaged-*"))
    finally:
        server.close()


def test_two_servers_cannot_share_a_folder(lasting: Served) -> None:
    other = subprocess.run(
        [sys.executable, str(TOY), "server", "--port", "0", "--data", str(lasting.data)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert other.returncode == 2
    assert "another server uses it" in other.stderr
    assert len(other.stderr.splitlines()) == 1


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_drains(server: Served) -> None:
    running = server.submit({"prompt": "slow", "steps": 20})
    waiting = server.submit({"prompt": "slow later", "size": [128, 128]})
    events: list[tuple[str, str, Any]] = []
    waiting_events: list[tuple[str, str, Any]] = []

    def follow(job: Any, into: list[Any]) -> None:
        url = f"{server.address}{API}/jobs/{job['id']}/events"
        with httpx2.stream("GET", url, timeout=60) as answer:
            into.extend(read_events(answer.iter_lines()))

    readers = [
        threading.Thread(target=follow, args=pair)
        for pair in ((running, events), (waiting, waiting_events))
    ]
    for reader in readers:
        reader.start()
    server.until(running, lambda job: job["step"] > 0)
    server.terminate()
    wait_until(lambda: server.client.get("/readyz").status_code == 503)
    assert server.client.get("/readyz").json()["error"]["type"] == "draining"
    refused = server.post("/jobs", json={"prompt": "late"})
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert server.process.wait(timeout=PATIENCE) == 0
    for reader in readers:
        reader.join(timeout=PATIENCE)
    assert events[-1][1] == "done"  # the stream ended whole
    assert {kind for _, kind, _ in waiting_events} == {"queued"}
    server.close()
    server = again(server)
    try:
        assert server.job(running)["state"] == "done"
        assert_right(server, waiting)
    finally:
        server.close()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """It would wait an hour for the job."""
    with served(tmp_path, "--drain", "3600", toy=True) as server:
        job = server.submit({"prompt": "hang"})
        server.until(job, lambda found: found["step"] > 0)
        server.terminate()
        wait_until(lambda: server.client.get("/readyz").status_code == 503)
        server.terminate()
        assert server.process.wait(timeout=PATIENCE) is not None


def test_the_drain_has_a_deadline_and_jobs_go_on_afterwards(tmp_path: Path) -> None:
    server = Served(tmp_path, "--drain", "0.3", toy=True)
    job = server.submit({"prompt": "hang"})
    server.until(job, lambda found: found["step"] > 0)
    server.terminate()
    assert server.process.wait(timeout=PATIENCE) == 0
    server.close()
    server = again(server)
    try:
        assert_right(server, job)
    finally:
        server.close()


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


def test_overload_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    with served(tmp_path, "--queue", "5", toy=True) as server:
        hold = server.submit({"prompt": "slow", "size": [64, 64], "steps": 9})
        server.until(hold, lambda job: job["state"] == "running")
        answers = [
            server.post("/jobs", json={"prompt": f"p{seed}", "seed": seed}) for seed in range(20)
        ]
        taken = [one.json() for one in answers if one.status_code == 202]
        refused = [one for one in answers if one.status_code != 202]
        assert len(taken) >= 5
        assert refused
        for one in refused:
            assert one.status_code == 429
            assert one.json()["error"]["type"] == "queue_full"
            assert 1 <= int(one.headers["retry-after"]) <= 120
            assert "x-should-retry" not in one.headers
        for job in taken:
            assert_right(server, job)


def test_keys_part_clients_from_one_another(tmp_path: Path) -> None:
    from imageprompt import cli

    keys = tmp_path / "keys.json"
    secrets = {}
    for name in ("alice", "bob"):
        done = subprocess.run(
            [sys.executable, "-m", "imageprompt", "serve", "--keys", str(keys), "--add-key", name],
            capture_output=True,
            text=True,
            check=True,
        )
        secrets[name] = done.stdout.strip()
        assert secrets[name] not in keys.read_text()
    assert (keys.stat().st_mode & 0o777) == 0o600
    with served(tmp_path, "--keys", str(keys), toy=True) as server:
        alice, bob = ({"authorization": f"Bearer {secrets[name]}"} for name in secrets)
        answer = server.post("/jobs", json={"prompt": "hers"}, headers=alice)
        job = answer.json()
        url = f"{API}/jobs/{job['id']}"
        wait_until(lambda: server.client.get(url, headers=alice).json()["state"] == "done")
        for path in (url, f"{url}/events", f"{url}/result/0.png"):
            assert server.client.get(path, headers=alice).status_code == 200
            assert server.client.get(path, headers=bob).status_code == 404
            assert server.client.get(path).status_code == 401
        assert server.client.delete(url, headers=bob).status_code == 404
        assert server.get("/jobs", headers=bob).json()["jobs"] == []
        stolen = {"init_image": f"result:{job['id']}/0", "prompt": "x"}
        assert server.post("/jobs", json=stolen, headers=bob).status_code == 400
        for path in ("/", "/healthz", "/readyz"):
            assert server.client.get(path).status_code == 200
        # a key that is removed is refused at once
        assert cli.main(["serve", "--keys", str(keys), "--remove-key", "alice"]) == 0
        assert server.client.get(url, headers=alice).status_code == 401


def test_a_disk_that_refuses(lasting: Served) -> None:
    """The system lets the server write no more: what cannot be kept fails or is refused."""
    import resource

    assert_right(lasting, lasting.submit({"prompt": "before"}))
    running = lasting.submit({"prompt": "very slow"})
    lasting.until(running, lambda job: job["step"] > 0)
    pid, unlimited = lasting.process.pid, resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, unlimited))
    refused = lasting.post("/jobs", json={"prompt": "late"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "storage")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    ended = lasting.ended(running)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert ended["error"]["type"] == "storage"
    time.sleep(2.1)
    assert_right(lasting, lasting.submit({"prompt": "after"}))
    assert str(lasting.data) not in refused.text + str(ended)


def test_a_full_disk(tmp_path: Path) -> None:
    """A small file system: jobs fail with words, or are refused; with room again all is well."""
    small = tmp_path / "data"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with served(tmp_path, toy=True) as server:
            assert_right(server, server.submit({"prompt": "before"}))
            running = server.submit({"prompt": "slow"})
            server.until(running, lambda job: job["step"] > 0)
            filler = small / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(2**16))
            failed = server.post("/jobs", json={"prompt": "late"})
            assert failed.status_code == 503
            assert failed.json()["error"]["type"] == "storage"
            filler.unlink()
            ended = server.ended(running)
            assert ended["state"] == "done" or ended["error"]["type"] == "storage"
            time.sleep(2.1)
            assert_right(server, server.submit({"prompt": "after"}))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
        shutil.rmtree(small, ignore_errors=True)
