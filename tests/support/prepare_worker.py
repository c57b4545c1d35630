"""Builds caches in separate processes: one that has loaded everything forks the others.

A line of standard input is JSON [data, cache, result]: a child is forked, its process id is
printed, and the numbers of entries that it encoded are written to `result`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from imageprompt.training.cache import encode
from imageprompt.training.cache.build import CacheReport, build_cache
from imageprompt.training.data import scan
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.sources import open_data
from imageprompt.training.data.views import PictureOptions
from imageprompt.variants import VARIANTS
from training_data import Parts

PICTURES = PictureOptions(resolution=16, crop="random", views=2)


def run(parts: Parts, data: Path, cache: Path, **options: Any) -> CacheReport:
    """Build a cache: by default for a plus adapter, with two random crops of each picture."""
    variant, pictures = options.pop("variant", "plus"), options.pop("pictures", PICTURES)
    extractors = FeatureExtractors(parts, VARIANTS[variant])
    return build_cache(open_data(str(data)), extractors, pictures, cache, **options)


def serve() -> None:
    """Fork a child for every line. Small shards, so that there are many moments for a kill."""
    torch.set_num_threads(1)
    encode.SHARD_ENTRIES, scan.UNIT = 3, 8
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
