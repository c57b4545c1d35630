"""What a compiled graph leaves to Python. Importing it loads torch._dynamo: do so while compiling.

A place in a loop is read off the memory of a timestep, of which a graph knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="a schedule of a reference is read off the timestep's memory: compile without fullgraph"
)
def outside(call: Callable[[object], None], timestep: object) -> None:
    """`call(timestep)`, with a break of the graph round it."""
    call(timestep)
