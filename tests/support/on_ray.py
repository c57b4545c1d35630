"""A Ray cluster of this process, and what `imageprompt` does on it; run in a network of its own.

    unshare -n sh -c 'ip link set lo up; exec python on_ray.py FOLDER'

Ray listens on all addresses, so tests run it where nobody else is. FOLDER has a pipeline in
`stack`, rows in `jobs.jsonl`, pictures and captions in `data`, and keys in `keys.json` with one of
them in `key`. What happened is written to FOLDER/found.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PORT = 8123
PATIENCE = 500.0
"""Seconds."""
JOBS = 24


def main() -> None:
    import ray

    folder = Path(sys.argv[1])
    began = time.monotonic()
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=sys.argv[2],  # short: it has sockets
    )
    found: dict[str, Any] = {"seconds to start Ray": time.monotonic() - began}
    address = ray.get_runtime_context().gcs_address
    try:
        found["batch"] = batch(folder, address)
        found["cache"] = cache(folder, address)
        found["serve"] = serve(folder)
    finally:
        (folder / "found.json").write_text(json.dumps(found, indent=1))
        ray.shutdown()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "imageprompt", *words]


def batch(folder: Path, address: str) -> Any:
    """A batch on the cluster, one of whose workers is killed in its first shard."""
    began = time.monotonic()
    words = ["batch", str(folder / "jobs.jsonl"), "--output", str(folder / "out")]
    words += ["--base", str(folder / "stack"), "--steps", "1", "--size", "32"]
    words += ["--rows-per-shard", "4", "--workers", "2", "--ray", address]
    process = subprocess.Popen(command(*words))
    claims = folder / "out" / "claims"
    until(lambda: claims.is_dir() and any(claims.glob("*.attempts")))
    killed = kill("ray::ShardMaker")
    code = process.wait(PATIENCE)
    return {"code": code, "killed": killed, "seconds": time.monotonic() - began}


def cache(folder: Path, address: str) -> Any:
    began = time.monotonic()
    words = ["build-cache", str(folder / "config.yaml"), "--json", "--ray", address]
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "wall": time.monotonic() - began}


# ── Ray Serve ───────────────────────────────────────────────────────────────────────────────────


def serve(folder: Path) -> Any:
    """Two servers; the one that most jobs are on is killed while they wait."""
    import httpx2
    from ray import serve as ray_serve

    from imageprompt.core.errors import OptionError
    from imageprompt.serve import ray_app

    arguments = {"replicas": "2", "keys": str(folder / "keys.json"), "data": str(folder / "served")}
    arguments |= {"base": str(folder / "stack"), "library": str(folder / "library")}
    refused = []
    for wrong in ({"replicas": "0"}, {"replicas": "x"}, {"keys": None}, {"port": "1"}):
        try:
            ray_app.app(arguments | wrong)
        except OptionError as error:
            refused.append(str(error))
    began = time.monotonic()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    ray_serve.run(ray_app.app(arguments), name="imageprompt", route_prefix="/")
    key = (folder / "key").read_text().strip()
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{PORT}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=PATIENCE,
        trust_env=False,
    ) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        found: dict[str, Any] = {"seconds to start": time.monotonic() - began, "refused": refused}
        found |= ask(client, folder)
        found |= survive(client)
    ray_serve.delete("imageprompt")
    found["left"] = processes("imageprompt.serve.worker.process")
    ray_serve.shutdown()
    return found


def ask(client: Any, folder: Path) -> dict[str, Any]:
    """One job, its events and its picture; where jobs of two references go."""
    found: dict[str, Any] = {
        "without a key": client.get("/api/v1/jobs", headers=NOBODY).status_code
    }
    job = ended(client, taken(client, seed=1))
    found["state"] = job["state"]
    found["picture"] = client.get(job["images"][0]["url"]).content[:4].decode("latin-1")
    with client.stream("GET", job["urls"]["events"]) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("event: ")]
    found["events"] = [line.removeprefix("event: ") for line in lines]
    for name in ("red", "blue"):
        content = (folder / f"{name}.png").read_bytes()
        kind = {"content-type": "image/png"}
        kept = client.post("/api/v1/uploads", content=content, headers=kind).json()
        jobs = [taken(client, seed=n, references=reference(kept)) for n in range(3)]
        found[name] = sorted({job["id"][:2] for job in jobs})
        assert all(ended(client, job)["state"] == "done" for job in jobs)
    found["page"] = client.get("/").status_code
    return found


NOBODY = {"Authorization": ""}


def survive(client: Any) -> dict[str, Any]:
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda seed: taken(client, seed=seed, prompt=f"{seed}"), range(JOBS)))
    victim = max("01", key=lambda mark: sum(job["id"][1] == mark for job in jobs))
    killed = kill(f"ServeReplica:imageprompt:server-{victim}")
    began = time.monotonic()
    meanwhile = [ended(client, taken(client, seed=n, prompt="meanwhile"))["id"] for n in range(2)]
    states = [ended(client, job)["state"] for job in jobs]
    again = time.monotonic() - began
    kept = client.get("/api/v1/jobs?limit=200").json()["jobs"]
    ids = {job["id"] for job in jobs}
    return {
        "killed": killed,
        "meanwhile": sorted({name[:2] for name in meanwhile}),
        "victim": f"0{victim}",
        "states": sorted(set(states)),
        "seconds until all were done": again,
        "kept": sum(job["id"] in ids for job in kept),
        "pictures": sum(len(job["images"]) for job in kept if job["id"] in ids),
    }


def reference(kept: Any) -> Any:
    return [{"reference": f"upload:{kept['hash']}"}]


def taken(client: Any, **request: Any) -> Any:
    plain = {"prompt": "a", "steps": 1, "size": [32, 32]}
    answer = client.post("/api/v1/jobs", json=plain | request)
    assert answer.status_code == 202, answer.text
    return answer.json()


def ended(client: Any, job: Any) -> Any:
    """The job, when it has ended; a server that is away says when to ask again."""
    found: list[Any] = []

    def look() -> bool:
        answer = client.get(f"/api/v1/jobs/{job['id']}")
        assert answer.status_code in (200, 503), answer.text
        found.append(answer.json())
        return found[-1].get("state") in ("done", "failed", "cancelled")

    until(look)
    return found[-1]


# ── processes ───────────────────────────────────────────────────────────────────────────────────


def until(true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes(words: str) -> list[int]:
    """Those of this network, by what is in their command lines."""
    here, found = Path("/proc/self/ns/net").readlink(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inside = (path / "ns" / "net").readlink() == here
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if inside and words in line:
            found.append(int(path.name))
    return found


def kill(words: str) -> int:
    """Kill the first of these processes; how many there were."""
    found = processes(words)
    if found:
        os.kill(found[0], signal.SIGKILL)
    return len(found)


if __name__ == "__main__":
    main()
