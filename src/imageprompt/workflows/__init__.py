"""One file per workflow: a whole job that people come for, with its figures.

A file in this folder that ends in a constant `WORKFLOW` is a workflow and needs no registration.
Other packages offer theirs as entry points of the group `imageprompt.workflows`.

    ip.workflows.product(product="shoe.png", style="beach.png", prompt="on a beach")
"""

from __future__ import annotations

import sys
from types import ModuleType

from imageprompt.core.registry import Registry
from imageprompt.workflows.contract import Workflow

__all__ = ["GROUP", "WORKFLOWS", "Workflow"]

GROUP = "imageprompt.workflows"
"""The entry points of other packages that are workflows."""

WORKFLOWS: Registry[Workflow] = Registry(__name__, "WORKFLOW", group=GROUP)


class _Room(ModuleType):
    """This package: its attribute `product` is the workflow, not the file that it is loaded from.

    Python sets a file as an attribute of its package when it is imported.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and hasattr(value, "WORKFLOW")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room


def __getattr__(name: str) -> Workflow:
    found = None if name.startswith("_") else WORKFLOWS.get(name.replace("_", "-"))
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
