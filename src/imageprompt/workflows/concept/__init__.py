"""concept: a style library spoken to in words, with their strengths measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from imageprompt.core.schema import Option
from imageprompt.generation.option_values import FILE
from imageprompt.generation.option_values import MODELS as MODELS_GROUP
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import GenerationInputs, control

if TYPE_CHECKING:
    from imageprompt.library import Library, Style
    from imageprompt.workflows.concept.calibration import Curve
    from imageprompt.workflows.concept.phrase import Wish
    from imageprompt.workflows.job import Job

EVERYTHING = "everything"
"""The preset that takes all of the reference."""
LOOK = ("colour", "texture", "background", "style")
"""The judge's attributes that are style."""
_SWITCHES = 5


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """Words of strength and names of styles."""

    style: Annotated[
        str,
        control(
            'styles of the library, each with a word of strength: "strongly watercolour, a hint '
            'of ukiyo-e, without ink"; also German and Chinese words, and 30 %',
            metavar="WORDS",
        ),
    ]
    prompt: Annotated[str, control("what is to be seen (default: nothing)", metavar="TEXT")] = ""
    library: Annotated[
        Any,
        Option(
            "folder of the library (default: the user's own)",
            metavar="DIR",
            json=FILE,
            group=MODELS_GROUP,
        ),
    ] = None
    preset: Annotated[
        str,
        control(
            "what to take of the styles: a preset, or everything (default style)", metavar="NAME"
        ),
    ] = "style"
    calibrate: Annotated[
        bool,
        control("measure how the adapter answers to scales, so that words are evenly spaced"),
    ] = False
    num_images: Annotated[
        int, control("seeds of each variation (default 2)", metavar="N", ge=1, le=16)
    ] = 2


def steps(inputs: Inputs, job: Job) -> None:
    from imageprompt.library import Library, thumbnail
    from imageprompt.workflows.concept import calibration, phrase

    preset = _preset(inputs.preset)
    library = Library(inputs.library)
    wishes = phrase.parse(inputs.style, {one.name: one.tags for one in library.styles()})
    wanted = [one for one in wishes if one.strength > 0]
    styles = _shown(library, wanted)
    encoder = calibration.encoder_of(job, styles)
    plan = _variations([one.style for one in wanted], phrase.MORE, phrase.LESS)
    own = (1 + len(plan)) * inputs.num_images
    curve = _curve(job, inputs, library, styles, encoder, preset, own)
    styles = _shown(library, wanted)  # a calibration has written their files

    def scales_of(factors: Sequence[float]) -> list[float]:
        """The scale of each wanted style, its strength times a factor."""
        strengths = [
            min(one.strength * factor, phrase.STRONGEST)
            for one, factor in zip(wanted, factors, strict=True)
        ]
        return strengths if curve is None else [curve.scale(one) for one in strengths]

    alone = job.generate(
        inputs.prompt, scale=0.0, num_images=inputs.num_images, size=inputs.size
    ).images
    for style in styles:
        if (picture := thumbnail.read(style)) is not None:
            job.check(f"style {style.name}", [picture], size=False)  # a thumbnail is small
            job.show(f"style {style.name}", picture)
    job.show("the text alone", alone[0])
    _echo(job, wishes, wanted, scales_of([1.0] * len(wanted)), calibrated=curve is not None)
    for label, factors in plan:
        made = _generate(job, inputs, library, styles, scales_of(factors), preset)
        for index, image in enumerate(made):
            job.add(f"{label}, seed {inputs.seed + index}", image, made, index)
        if all(factor == 1 for factor in factors):
            _measure(job, styles, made.images, alone, encoder)
    job.measured["switch_ms"] = _switch_ms(job, library, styles[0])


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def _preset(name: str) -> str | None:
    """Raises OptionError."""
    from imageprompt.control.presets import find_preset

    return None if name == EVERYTHING else find_preset(name).name


def _shown(library: Library, wanted: Sequence[Wish]) -> list[Style]:
    return [library.show(one.style) for one in wanted]


def _variations(
    names: Sequence[str], more: float, less: float
) -> list[tuple[str, tuple[float, ...]]]:
    """Label, and the factor of each style's strength: as said, weaker, stronger, more of each."""
    count = len(names)
    found = [
        ("as said", (1.0,) * count),
        ("weaker", (less,) * count),
        ("stronger", (more,) * count),
    ]
    if count > 1:
        for index, name in enumerate(names):
            factors = tuple(more if i == index else less for i in range(count))
            found.append((f"more {name}", factors))
    return found


def _generate(
    job: Job,
    inputs: Inputs,
    library: Library,
    styles: Sequence[Style],
    scales: Sequence[float],
    preset: str | None,
) -> Any:
    from imageprompt.generation.reference import Reference

    asked: list[dict[str, Any]] = [
        {"style": style.name, "scale": scale, "preset": preset}
        for style, scale in zip(styles, scales, strict=True)
    ]
    first, *rest = asked
    return job.generate(
        inputs.prompt,
        **first,
        also=[Reference(**one) for one in rest],
        library=library.folder,
        num_images=inputs.num_images,
        size=inputs.size,
    )


# ── words ───────────────────────────────────────────────────────────────────────────────────────


def _curve(
    job: Job,
    inputs: Inputs,
    library: Library,
    styles: Sequence[Style],
    encoder: Any,
    preset: str | None,
    own: int,
) -> Curve | None:
    """The curve that is kept for the styles' adapter, a new one, or None with a note.

    `own` is the number of pictures that will be generated beside the calibration.
    """
    from imageprompt.workflows.concept import calibration

    key = calibration.key_of(job, preset)
    more = islice(calibration.others(library, styles), calibration.MOST_STYLES - len(styles))
    family = [*styles, *more]
    job.expect(own + (calibration.cost(len(family)) if inputs.calibrate else 0))
    if inputs.calibrate:
        curve = calibration.calibrate(
            job,
            library,
            family,
            encoder,
            prompt=inputs.prompt,
            preset=preset,
            size=inputs.size,
        )
        calibration.keep(library, family, key, curve)
        return curve
    known = [*styles, *calibration.others(library, styles)]
    found = calibration.stored(known, styles[0].adapter.hash, key)
    if found is None:
        job.notes.append(
            "words are plain scales, because this adapter is not calibrated; --calibrate samples "
            f"{calibration.cost(len(family))} pictures once, and keeps the result in the library"
        )
    return found


def _echo(
    job: Job,
    wishes: Sequence[Wish],
    wanted: Sequence[Wish],
    scales: Sequence[float],
    *,
    calibrated: bool,
) -> None:
    """The resolved words, in the figures, and so in the recipes."""
    by_style = dict(zip((one.style for one in wanted), scales, strict=True))
    job.measured["words"] = [
        {
            "style": one.style,
            "said": one.said,
            "strength": one.strength,
            "scale": by_style.get(one.style, 0.0),
        }
        for one in wishes
    ]
    job.measured["calibrated"] = calibrated
    for one in wishes:
        said = f"{one.said} " if one.said else ""
        scale = by_style.get(one.style)
        result = "left out" if scale is None else f"strength {one.strength:g}, scale {scale:g}"
        job.notes.append(f"{said}{one.style}: {result}")


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def _measure(
    job: Job, styles: Sequence[Style], made: Sequence[Any], alone: Sequence[Any], encoder: Any
) -> None:
    from imageprompt.library import thumbnail
    from imageprompt.workflows import _judged
    from imageprompt.workflows.concept.calibration import scores

    for style in styles:
        job.measured[f"style_{style.name}"] = float(scores(made, style, encoder).mean())
        control_ = float(scores(alone, style, encoder).mean())
        job.measured[f"style_{style.name}_text_alone"] = control_
        reference = thumbnail.read(style)
        if reference is not None and (shares := _judged.kept(job, made, reference, LOOK)):
            job.measured[f"look_kept_{style.name}"] = float(np.mean(shares))


def _switch_ms(job: Job, library: Library, style: Style) -> float:
    """Milliseconds to open a style that was used before, until it can be sampled (median)."""
    import torch

    from imageprompt import loading
    from imageprompt.loading.models import turn_of

    loaded = job.engine.loaded
    located = loading.find_adapter(style.adapter.name, loaded.folder, cached_only=True)
    adapter, taken = job.engine.adapter_file(located), []
    with turn_of(loaded.pipe), torch.no_grad():
        adapter.attach(loaded.pipe)
        try:
            for _ in range(1 + _SWITCHES):
                started = time.perf_counter()
                with adapter.use(library.open(style.name, adapter)) as handle:
                    taken.append(1e3 * (time.perf_counter() - started))
                    handle.called = True  # nothing is sampled here
        finally:
            adapter.detach()
    return float(np.median(taken[1:]))


WORKFLOW = Workflow(
    name="concept",
    summary="pictures in styles of a library, as strong as words say, with variations",
    inputs=Inputs,
    steps=steps,
    measures={
        "words": "the resolved words: style, what was said, strength 0..1.2, scale",
        "calibrated": "whether scales are evenly spaced in the measured style (--calibrate)",
        "style_*": "mean cosine of the pictures and the style, by the encoder that made the style; "
        "beside it that of the text alone",
        "look_kept_*": "share of colour, texture, background and its style that are those of the "
        "style; the judge of the bundled stacks only",
        "switch_ms": "milliseconds to switch to a style that was used before (median)",
    },
)
