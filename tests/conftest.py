"""Shared by all tests: import paths, one torch thread, the same random numbers every time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # bases, peer, ops: used by tests as well


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Seed torch where a test has loaded it; tests that do not need torch do not pay for it."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
    return
