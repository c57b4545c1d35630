"""What one line of the demo holds: a reference, the text against it, the pictures made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imageprompt.demo.scenes import Scene

PROMPT = "a shape"  # says nothing: what the picture shows comes from the reference, or from chance
TEXT_SCALE = 0.6
SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEPT = 2  # references that the sweep over scale is made with


@dataclass
class Row:
    """One reference and what was generated with it."""

    scene: Scene
    reference: Path
    changed: str  # the attribute that the text names otherwise
    text: str
    wanted: dict[str, str]
    made: dict[str, list[Path]] = field(default_factory=dict)
    seen: dict[str, list[dict[str, str]]] = field(default_factory=dict)
