"""What the judge of the bundled stacks reads in pictures; nothing on other bases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.workflows.job import Job


def words(job: Job, pictures: Sequence[Image]) -> list[dict[str, str]]:
    """Attribute -> word for each picture; an empty list on other bases."""
    if not job.on_bundled_base:
        return []
    from imageprompt.demo.judge import classify

    return classify(pictures)


def kept(
    job: Job, pictures: Sequence[Image], reference: Image, names: Sequence[str] = ()
) -> list[float]:
    """Share of the reference's attributes (all, or those named) that each picture has."""
    *found, wanted = words(job, [*pictures, reference]) or [{}]
    chosen = names or tuple(wanted)
    return [sum(one[name] == wanted[name] for name in chosen) / len(chosen) for one in found]
