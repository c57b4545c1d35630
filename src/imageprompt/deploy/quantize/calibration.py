"""Calls to calibrate with: the pipeline runs with image prompts in use, and its calls are kept.

A calibration on text alone never sees K' and V', and one at a few timesteps misses what activations
are at the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.engine import Engine
from imageprompt.generation.exported.denoiser import stand_in

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from imageprompt.adapter.adapter import Adapter
    from imageprompt.generation.exported.manifest import Manifest
    from imageprompt.generation.runtimes import Graph

LEAST = 8
"""References that a calibration needs."""
STEPS = 8
CALLS = 48
"""The most calls that are kept."""
PROMPTS = ("", "a photo", "a painting of a house", "a portrait")
SCALES = (1.0, 0.6, 0.3)
"""Texts and scales that take turns from reference to reference."""


class Recorder:
    """A graph whose calls can be kept."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.kept: list[dict[str, Tensor]] = []
        self.wanted: Callable[[int], bool] = lambda _: False
        """Is the call of that number, from 0, kept?"""
        self._number = 0

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        if self.wanted(self._number):
            self.kept.append({name: one.detach().clone() for name, one in tensors.items()})
        self._number += 1
        return self._graph(tensors)

    def restart(self, wanted: Callable[[int], bool]) -> None:
        self._number, self.wanted = 0, wanted


def with_graph(pipe: Any, manifest: Manifest, graph: Graph) -> Any:
    """The pipeline of an exported base, with another graph in the place of its own."""
    attribute = manifest.base.attribute
    before = getattr(pipe, attribute)
    denoiser = stand_in(type(before), dict(before.config), manifest, graph)
    made = copy(pipe)
    setattr(made, attribute, denoiser)
    made.set_progress_bar_config(disable=True)
    return made


def check_references(count: int) -> None:
    """Raises OptionError for a set that is too small."""
    if count < LEAST:
        raise OptionError(
            f"{count} references to calibrate with",
            reason=f"{LEAST} are needed: activations differ from picture to picture",
            hint=f"Give a folder with {2 * LEAST} or more; half of them are compared afterwards.",
        )


def record(
    pipe: Any,
    manifest: Manifest,
    graph: Graph,
    adapter: Adapter,
    encoder: Any,
    references: Sequence[Image],
    on_step: Callable[[], object],
) -> list[dict[str, Tensor]]:
    """The inputs of calls at all timesteps, each reference at some of them."""
    recorder = Recorder(graph)
    engine = Engine(with_graph(pipe, manifest, recorder), adapter=adapter, encoder=encoder)
    every = max(1, -(-len(references) * STEPS // CALLS))
    for number, picture in enumerate(references):
        recorder.restart(lambda call, first=number: (call + first) % every == 0)  # type: ignore[misc]
        engine.generate(
            PROMPTS[number % len(PROMPTS)],
            picture,
            scale=SCALES[number % len(SCALES)],
            steps=STEPS,
            seed=number,
            progress=False,
        )
        on_step()
    engine.release()
    return recorder.kept
