"""`imageprompt convert` and `inspect` of a 3.5 GB checkpoint, compared as whole processes.

Writes an SD1.5 training checkpoint twice (pytorch_model.bin as older trainers did,
model.safetensors as accelerate does now), and extracts the adapter from each: with imageprompt, and
with the snippet of the reference's README (load everything with torch, filter by key, save). The
two take turns. This process imports nothing heavy, since that would count in a child's peak memory.

    python benchmarks/convert.py --folder /tmp --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MAKER = Path(__file__).with_name("training_checkpoint.py")
FILES = ("pytorch_model.bin", "model.safetensors")

PEER = {
    "pytorch_model.bin": """
import sys, torch
state = torch.load(sys.argv[1], map_location="cpu")
parts = {"image_proj": {}, "ip_adapter": {}}
for key, value in state.items():
    if key.startswith("image_proj_model."):
        parts["image_proj"][key.removeprefix("image_proj_model.")] = value
    elif key.startswith("adapter_modules."):
        parts["ip_adapter"][key.removeprefix("adapter_modules.")] = value
torch.save(parts, sys.argv[2])
""",
    # the same for the newer file, which has no ids
    "model.safetensors": """
import sys, torch
from safetensors.torch import load_file
state = load_file(sys.argv[1])
parts = {"image_proj": {}, "ip_adapter": {}}
for key, value in state.items():
    if key.startswith("image_proj_model."):
        parts["image_proj"][key.removeprefix("image_proj_model.")] = value
    elif "_ip." in key:
        parts["ip_adapter"][key] = value
torch.save(parts, sys.argv[2])
""",
}


@dataclass(frozen=True)
class Row:
    """One command on one file: seconds of every round, and the highest peak memory in MB."""

    what: str
    file: str
    seconds: list[float]
    peak_mb: float

    def __str__(self) -> str:
        middle, best = statistics.median(self.seconds), min(self.seconds)
        return f"{self.what:22} {self.file:20} {middle:8.3f} {best:8.3f} {self.peak_mb:9.1f}"


def measured(command: list[str], caches: Path | None) -> tuple[float, float]:
    """Wall seconds of a whole process, and its peak resident memory in MB.

    `caches` stores compiled modules, as an ordinary installation does; None: where they are now.
    """
    environment = dict(os.environ)
    if caches is not None:
        environment["PYTHONPYCACHEPREFIX"] = str(caches)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
    if process.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command[:4])} ...")
    return seconds, usage.ru_maxrss / 1000


def rows(source: Path, rounds: int, caches: Path | None) -> list[Row]:
    """Ours and the peer's take turns, so that other load affects both."""
    target, peer_target = source.with_name("adapter.safetensors"), source.with_name("peer.bin")
    ours = [sys.executable, "-m", "imageprompt"]
    peer = [sys.executable, "-c", PEER[source.name]]
    commands = {
        "imageprompt convert": [*ours, "convert", str(source), str(target), "--force"],
        "the README's snippet": [*peer, str(source), str(peer_target)],
        "imageprompt inspect": [*ours, "inspect", str(source)],
        "imageprompt --help": [*ours, "--help"],
    }
    measurements: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
    warm_up = caches is not None  # the first round fills them
    for _ in range(warm_up + rounds):
        for what, command in commands.items():
            measurements[what].append(measured(command, caches))
    return [
        Row(
            what,
            source.name,
            [seconds for seconds, _ in times[warm_up:]],
            max(mb for _, mb in times),
        )
        for what, times in measurements.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder with 4 GB free (default: the system's)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file", choices=FILES, help="only this one of the two files")
    parser.add_argument("--quick", action="store_true", help="a small checkpoint, one round")
    parser.add_argument("--source", type=Path, help="one round on this checkpoint: writes none")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    measured_rows: list[Row] = rows(options.source, 1, None) if options.source else []
    files = () if options.source else (options.file,) if options.file else FILES
    print(f"{'process':22} {'file':20} {'median s':>8} {'best s':>8} {'peak MB':>9}")
    with tempfile.TemporaryDirectory() as caches:
        # one at a time, since each is 3.5 GB; the small ones come from one process
        for names in [files] if options.quick else [(name,) for name in files]:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                sources = [Path(folder) / name for name in names]
                make = [sys.executable, str(MAKER), *map(str, sources)]
                subprocess.run([*make, *(["--quick"] if options.quick else [])], check=True)
                os.sync()  # writing back would disturb the measurement
                rounds = 1 if options.quick else options.rounds
                for source in sources:
                    found = rows(source, rounds, None if options.quick else Path(caches))
                    print(*found, sep="\n", flush=True)
                    measured_rows += found
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, files in the page cache")
    if options.json:
        options.json.write_text(
            json.dumps({"rows": [asdict(row) for row in measured_rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
