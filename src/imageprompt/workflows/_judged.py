"""What the judge of the bundled stacks reads in pictures; nothing on other bases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.workflows.job import Job

OBJECT = ("shape", "colour", "texture")
SCENE = ("background", "style")
"""The attributes of an object, and of what is behind it."""


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


def obeyed(job: Job, pictures: Sequence[Image], prompt: str) -> list[float]:
    """Share of the words of a scene in the prompt that each picture shows; NaN where none is."""
    from imageprompt.demo.scenes import named_words

    named = named_words(prompt)
    if not named:
        return [float("nan")] * len(pictures)
    found = words(job, pictures)
    return [sum(one[name] == word for name, word in named.items()) / len(named) for one in found]
