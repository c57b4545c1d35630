"""Published protocols, one file each: the data set that it reads, and how its figures are made.

A file in this folder that ends in a constant `PROTOCOL` is one and needs no registration.
"""

from __future__ import annotations

from imageprompt.core.registry import Registry
from imageprompt.evaluation.protocols.contract import Choice, Figure, Protocol, ProtocolData

__all__ = ["PROTOCOLS", "Choice", "Figure", "Protocol", "ProtocolData"]

PROTOCOLS: Registry[Protocol] = Registry(__name__, "PROTOCOL")
