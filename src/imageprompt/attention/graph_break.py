"""What a compiled graph leaves to Python. Importing it loads torch._dynamo: do so while compiling.

A place in a loop is read off the memory of a timestep, of which a graph knows nothing; LoRA that is
merged is written into weights, which a graph only reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="schedules of references, and LoRA that is merged, are looked after between graphs: "
    "compile without fullgraph"
)
def outside(call: Callable[..., None], *arguments: Any) -> None:
    """`call(*arguments)`, with a break of the graph round it."""
    call(*arguments)
