"""One file per runtime: it opens a graph that `imageprompt export` wrote, and runs it.

A file in this folder that ends in a constant `RUNTIME` is a runtime and needs no registration.
"""

from imageprompt.core.registry import Registry
from imageprompt.generation.runtimes.contract import Graph, Runtime

RUNTIMES: Registry[Runtime] = Registry(__name__, "RUNTIME")

__all__ = ["RUNTIMES", "Graph", "Runtime"]
