"""`probe`: sample the same references with one site on at a time, and measure what they carry.

Every setting uses the same references, texts and seeds: no site, all sites, each site alone. What
a site carries is how much nearer it brings pictures to their references, compared with pictures
without a reference, as a share of how much nearer all sites together bring them. The sites that
carry style and those that carry layout are then sampled together, with other seeds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imageprompt.control import one_scale
from imageprompt.core.console import Bars
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.evaluation.probing.result import ROLES, ProbeResult, SettingResult
from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.core.spec import Site
    from imageprompt.encoding.images.open_image import PictureSource
    from imageprompt.evaluation.probing.evaluate import Classifier

_STAGES = ("input", "middle", "output")
_MOST_ALONE = 16
"""With more parts than this, neighbouring blocks are measured together: in 12 groups or so."""


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
    classify: Classifier | None = None,
    expected: Sequence[Mapping[str, str]] | None = None,
    log: Callable[[str], object] | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Measure what each part of a base carries: each transformer of a UNet, each block of a
    transformer (neighbours together where there are many), or with `sites` each attention layer.

    `prompt` is the text beside every reference, or a list with one text for each. A reference can
    only add what its text leaves open, so name in it what your own texts will name. Each reference
    is sampled with `seeds` seeds. `classify` names what pictures show, such as {"shape": "star"},
    and `expected` what each reference shows (default: what `classify` says of it). `log` receives
    the number of pictures before sampling starts. All other arguments are those of `generate`.
    Raises an ImagePromptError.
    """
    texts = _texts(references, prompt)
    if one_scale(scale, "scale") == 0:
        raise OptionError("scale 0", reason="a site at scale 0 carries nothing", hint="Try 1.")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise OptionError(f"seeds {seeds!r}", reason="not a whole number >= 1")
    reference = Reference(
        reference=list(references),
        adapter=adapter,
        variant=variant,
        encoder=encoder,
        faces=faces,
        scale=scale,
    )
    request = Request(
        references=(reference,),
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
    from imageprompt import loading
    from imageprompt.evaluation.probing.evaluate import PICTURES_SHOWN, SettingEvaluator
    from imageprompt.evaluation.probing.sampling import Sampler, open_models

    pictures, _ = loading.open_references(references)
    with open_models(request) as models, Bars(progress) as bars:
        paths = site_paths(models.sites, each=sites)
        groups = {path: [path] for path in paths} if sites else group_paths(paths)
        alone = {name: dict.fromkeys(group, scale) for name, group in groups.items()}
        per_setting = len(texts) * seeds
        if log is not None:
            log(_cost(len(alone), len(texts), seeds))
        counter = _Counter(bars)
        counter.start("picture", (2 + len(alone)) * per_setting)
        sampler = Sampler(models, request, pictures, texts, counter.add)
        evaluator = SettingEvaluator(
            sampler, pictures, scale=scale, seeds=seeds, classify=classify, expected=expected
        )
        no_sites, with_all, *results = evaluator.run(alone, seed)
        suggested = _suggest(results, models.sites, scale)
        confirmation = []
        if suggested:
            counter.start("confirming picture", (2 + len(suggested)) * per_setting)
            confirmation = evaluator.run(suggested, seed + seeds)[2:]
    settings = {
        **models.names,
        "references": len(texts),
        "prompts": list(dict.fromkeys(texts)),
        "seeds": seeds,
        "seed": seed,
        "scale": scale,
        "options": dict(models.options),
        "seconds": round(time.monotonic() - started, 1),
    }
    return ProbeResult(
        settings,
        no_sites,
        with_all,
        tuple(results),
        suggested,
        tuple(confirmation),
        tuple(pictures[:PICTURES_SHOWN]),
    )


def site_paths(sites: Sequence[Site], *, each: bool) -> list[str]:
    """Paths in the denoiser's order: one for each transformer of a UNet and each block of a
    transformer, or with `each` for each site."""
    order = sorted(range(len(sites)), key=lambda i: (_STAGES.index(sites[i].stage), i))
    names = [sites[i].name for i in order]
    return names if each else list(dict.fromkeys(map(_transformer, names)))


def shorten_paths(paths: Collection[str], sites: Sequence[Site]) -> list[str]:
    """The fewest, shortest paths for the same sites: a block's name if all of it is included.

    `up_blocks.1` for `up_blocks.1.attentions.0` and `.1`, if the block has no more.
    """
    names = [site.name for site in sites]
    chosen = {name for name in names if _within(name, paths)}
    found: list[str] = []
    for name in names:
        if name in chosen and not _within(name, found):
            parts = name.split(".")
            first = 1 if parts[0] == "mid_block" else 2  # `up_blocks` alone is too general
            heads = (".".join(parts[:end]) for end in range(first, len(parts) + 1))
            found.append(next(h for h in heads if {n for n in names if _within(n, [h])} <= chosen))
    return found


def group_paths(paths: Sequence[str]) -> dict[str, list[str]]:
    """Each path alone; of more than 16, neighbours of one list, as `transformer_blocks.0-4`."""
    if len(paths) <= _MOST_ALONE:
        return {path: [path] for path in paths}
    count = -(-len(paths) // 12)
    lists: dict[str, list[str]] = {}
    for path in paths:
        lists.setdefault(path.rpartition(".")[0], []).append(path)
    found: dict[str, list[str]] = {}
    for blocks in lists.values():
        for start in range(0, len(blocks), count):
            group = blocks[start : start + count]
            last = f"-{group[-1].rpartition('.')[2]}" if len(group) > 1 else ""
            found[group[0] + last] = group
    return found


def _transformer(site: str) -> str:
    """`up_blocks.1.attentions.0`, or a transformer's block, from the name of a site in it."""
    above, inside, _ = site.partition(".transformer_blocks.")
    return above if inside else site.rpartition(".")[0]


def _within(site: str, paths: Iterable[str]) -> bool:
    """Is the site one of these, or inside one of them?"""
    return any(site == path or site.startswith(f"{path}.") for path in paths)


def _texts(references: Sequence[PictureSource], prompt: str | Sequence[str]) -> list[str]:
    """One text for each reference. Raises PictureError, OptionError."""
    if isinstance(references, str | bytes | os.PathLike) or not isinstance(references, Sequence):
        raise PictureError("references", reason="not a list of pictures")
    if not references:
        raise PictureError("no references", hint="Give at least one picture.")
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    texts = texts * len(references) if len(texts) == 1 else texts
    if len(texts) != len(references) or not all(isinstance(text, str) for text in texts):
        raise OptionError(
            f"{len(texts)} texts for {len(references)} reference(s)",
            reason="neither one text for all of them nor one for each",
            hint="Give as many texts as references.",
        )
    return texts


def _cost(sites: int, references: int, seeds: int) -> str:
    per_setting = references * seeds
    return (
        f"{2 + sites} settings x {references} reference(s) x {seeds} seed(s) ="
        f" {(2 + sites) * per_setting} pictures, and up to {4 * per_setting} to confirm the result"
    )


def _suggest(
    results: Sequence[SettingResult], sites: Sequence[Site], scale: float
) -> dict[str, Mapping[str, float]]:
    """A scale for each role that any site has."""
    chosen = {role: _paths_of(results, role) for role in ROLES}
    return {
        role: dict.fromkeys(shorten_paths(names, sites), scale)
        for role, names in chosen.items()
        if names
    }


def _paths_of(results: Sequence[SettingResult], role: str) -> list[str]:
    scales = [row.scale for row in results if row.role == role]
    return [path for scale in scales if isinstance(scale, Mapping) for path in scale]


class _Counter:
    """Counts pictures on a progress bar."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def start(self, phase: str, total: int) -> None:
        self._phase, self._done, self._total = phase, 0, total
        self._show()

    def add(self) -> None:
        self._done += 1
        self._show()

    def _show(self) -> None:
        self._bars.update(self._phase, self._done, self._total)
