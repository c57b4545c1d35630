"""One file per backend: what a module is exported to.

A file in this folder that ends in a constant `BACKEND` is a backend and needs no registration.
"""

from imageprompt.core.registry import Registry
from imageprompt.deploy.export.backends.contract import Backend, NotExportable

BACKENDS: Registry[Backend] = Registry(__name__, "BACKEND")

__all__ = ["BACKENDS", "Backend", "NotExportable"]
