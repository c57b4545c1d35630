"""Paints the same references with one site on at a time, and measures what comes across.

Every setting is painted with the same references, texts and seeds: no site, all sites, each place
alone. What a place carries is told from how much nearer its pictures are to their references than
the pictures without a reference are, as a share of how much nearer all sites together bring them.
The sites that carry style and those that carry layout are then painted together, with other seeds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imageprompt.control import one_scale
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.evaluation.probing.result import ROLES, ProbeResult, Row, places, shortened
from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.core.spec import Site
    from imageprompt.encoding.images.open_image import PictureSource
    from imageprompt.evaluation.probing.study import Reading


def probe(
    references: Sequence[PictureSource],
    *,
    base: Any = None,
    adapter: str | os.PathLike[str] | Adapter | None = None,
    variant: str | None = None,
    encoder: Any = None,
    faces: Any = None,
    prompt: str | Sequence[str] = "",
    scale: float = 1.0,
    sites: bool = False,
    seeds: int = 1,
    seed: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int = 4,
    read: Reading | None = None,
    shows: Sequence[Mapping[str, str]] | None = None,
    on_progress: Callable[[str], object] | None = None,
    progress: bool = True,
) -> ProbeResult:
    """What each transformer of a base (with `sites`, each attention layer) carries of a reference.

    `prompt` is the text beside every reference, or one text for each: a picture can only bring what
    a text leaves open, so name what your texts will name. Each reference is painted with `seeds`
    seeds. `read` says what pictures show, such as {"shape": "star"}, where something can tell, and
    `shows` what each reference shows, where not all that `read` reads off it is to be compared;
    `on_progress` hears the cost before anything is painted. All else is as in `generate`. Raises an
    ImagePromptError.
    """
    texts = _texts(references, prompt)
    if one_scale(scale, "scale") == 0:
        raise OptionError("scale 0", reason="a site that is off carries nothing", hint="Try 1.")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise OptionError(f"seeds {seeds!r}", reason="how many they are: a whole number from 1")
    shown = Reference(
        reference=list(references),
        adapter=adapter,
        variant=variant,
        encoder=encoder,
        faces=faces,
        scale=scale,
    )
    request = Request(
        references=(shown,),
        base=base,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        size=size,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        progress=progress,
    )
    request.check()
    started = time.monotonic()
    from tqdm import tqdm

    from imageprompt import loading
    from imageprompt.adapter.attachment import AttachedDenoiser
    from imageprompt.evaluation.probing.sampling import Painter, opened
    from imageprompt.evaluation.probing.study import SHOWN, Study

    pictures, _ = loading.open_references(references)
    with opened(request, shown) as found:
        all_sites = AttachedDenoiser.of(found.pipe).spec.sites
        alone = {name: {name: scale} for name in places(all_sites, each=sites)}
        once = len(texts) * seeds
        if on_progress is not None:
            on_progress(_cost(len(alone), len(texts), seeds))
        with tqdm(total=(2 + len(alone)) * once, unit="picture", disable=not progress) as bar:
            painter = Painter(found, pictures, texts, batch_size, bar.update)
            study = Study(painter, pictures, scale=scale, seeds=seeds, read=read, shows=shows)
            none, every, *rows = study.run(alone, seed)
            suggested = _suggested(rows, all_sites, scale)
            if suggested:
                bar.total = bar.n + (2 + len(suggested)) * once
            checked = study.run(suggested, seed + seeds)[2:] if suggested else []
    settings = {
        **found.names,
        "references": len(texts),
        "prompts": list(dict.fromkeys(texts)),
        "seeds": seeds,
        "seed": seed,
        "scale": scale,
        "options": dict(found.options),
        "seconds": round(time.monotonic() - started, 1),
    }
    kept = tuple(pictures[:SHOWN])
    return ProbeResult(settings, none, every, tuple(rows), suggested, tuple(checked), kept)


def _texts(references: Sequence[PictureSource], prompt: str | Sequence[str]) -> list[str]:
    """One text for each reference. Raises PictureError, OptionError."""
    if isinstance(references, str | bytes | os.PathLike) or not isinstance(references, Sequence):
        raise PictureError("references", reason="a list of pictures")
    if not references:
        raise PictureError("references", reason="there are none", hint="Give at least one picture.")
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    texts = texts * len(references) if len(texts) == 1 else texts
    if len(texts) != len(references) or not all(isinstance(text, str) for text in texts):
        raise OptionError(
            f"{len(texts)} texts for {len(references)} reference(s)",
            reason="one text for all of them, or one for each",
        )
    return texts


def _cost(places: int, references: int, seeds: int) -> str:
    once = references * seeds
    return (
        f"{2 + places} settings x {references} reference(s) x {seeds} seed(s) ="
        f" {(2 + places) * once} pictures, and up to {4 * once} to check what comes out"
    )


def _suggested(
    rows: Sequence[Row], sites: Sequence[Site], scale: float
) -> dict[str, Mapping[str, float]]:
    """A scale for each role that any site has."""
    chosen = {role: [row.name for row in rows if row.role == role] for role in ROLES}
    return {
        role: dict.fromkeys(shortened(names, sites), scale)
        for role, names in chosen.items()
        if names
    }
