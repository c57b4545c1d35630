"""Calls that a compiled graph must leave to Python.

Importing this module loads torch._dynamo, so import it only while a graph is being compiled.

Two things cannot run inside a graph: the step tracker reads the memory address of a timestep, and
merged LoRA writes to weights that a graph only reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="schedules and merged LoRA run between graphs: compile without fullgraph"
)
def run_outside_graph(call: Callable[..., None], *arguments: Any) -> None:
    """`call(*arguments)`, with a graph break around it."""
    call(*arguments)
