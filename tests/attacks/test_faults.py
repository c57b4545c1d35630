"""Full disks, kills at every moment, links, and two processes at once: nothing half, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks import faults
from attacks.faults import WRITES, Scene, Write, child, spread

MOMENTS = 50


@pytest.fixture(params=WRITES, ids=str, scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.of(request.param, tmp_path_factory.mktemp("writes"))


# ── kills ───────────────────────────────────────────────────────────────────────────────────────


def test_sigkill_at_fifty_moments(scene: Scene) -> None:
    for moment in spread(len(scene.calls), MOMENTS):
        here = scene.copy()
        when = f"before call {moment}, {scene.calls[moment]}"
        assert faults.killed(scene.write, here, moment) == -signal.SIGKILL, when
        assert scene.problems(here) == [], when
        assert scene.problems_after_next(here) == [], when


def test_a_kill_in_the_middle_of_a_write(scene: Scene) -> None:
    for size in {0, 1, scene.size // 2, scene.size - 1} if scene.size else ():
        here = scene.copy()
        assert faults.killed_in_write(scene.write, here, size) == -signal.SIGXFSZ, size
        assert scene.problems(here) == [], size
        assert scene.problems_after_next(here) == [], size
