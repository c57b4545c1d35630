"""Runs `prepare` in processes of its own for the tests: one that has loaded all forks the others.

A line of standard input is JSON [data, cache, result]: a child is forked, its number is printed,
and what it has encoded is written to `result`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from imageprompt.training.cache import encode_missing
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.cache.prepare import Prepared, prepare
from imageprompt.training.data import scan
from imageprompt.training.data.framing import PictureOptions
from imageprompt.training.data.sources import open_data
from imageprompt.variants import VARIANTS
from training_data import Parts

FRAMING = PictureOptions(resolution=16, crop="random", views=2)


def run(parts: Parts, data: Path, cache: Path, **options: Any) -> Prepared:
    """Prepare for a plus adapter, two random crops of each picture, unless told otherwise."""
    variant, framing = options.pop("variant", "plus"), options.pop("framing", FRAMING)
    encoders = FeatureExtractors(parts, VARIANTS[variant])
    return prepare(open_data(str(data)), encoders, framing, cache, **options)


def serve() -> None:
    """Fork a child for every line. Small shards, so that there are many moments to be killed at."""
    torch.set_num_threads(1)
    encode_missing.SHARD_ENTRIES, scan.UNIT = 3, 8
    parts = Parts()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are forgotten at once
    print("ready", flush=True)
    for line in sys.stdin:
        data, cache, result = map(Path, json.loads(line))
        number = os.fork()
        if number:
            print(number, flush=True)
            continue
        done = run(parts, data, cache)
        result.with_suffix(".part").write_text(json.dumps(done.encoded))
        result.with_suffix(".part").rename(result)
        os._exit(0)


if __name__ == "__main__":
    serve()
