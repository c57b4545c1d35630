"""tune-style: an adapter trained further on one domain, measured before and after.

The pictures of the domain are split: most are trained with, some decide how much of the training
is kept, some measure. Pictures of all kinds are mixed into the training, and others
of them say what is forgotten. Between the weights before and after training lie adapters that have
gained much and forgotten little (WiSE-FT, arXiv 2109.01903): the one that has gained most within
what may be forgotten is taken.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from imageprompt.core import bundled
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.schema import Option
from imageprompt.generation.option_values import FILE
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import HOW, GenerationInputs, control

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from imageprompt.evaluation.study.results import Results
    from imageprompt.training.train import TrainResult
    from imageprompt.workflows.job import Job

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_PICTURES = 20_000
LEAST = 12
"""Pictures of a domain."""
VALIDATION = 16
"""Pictures that are looked at during training, at most."""
CHOOSING = 48
"""Pictures that decide how much of the training is kept, at most, of either kind."""
VALIDATIONS = 8
TRIES = 5
"""Shares of the change of weights that are tried: all, a half, and halves between."""
BEFORE, AFTER = "before", "after"
_CHECKED = 64
_TEXTS = (".txt",)

ON_BUNDLED: Mapping[str, Any] = {
    "resolution": 64,
    "steps": 400,
    "batch_size": 32,
    "learning_rate": 5e-4,
    "betas": [0.9, 0.99],
    "drop": {"image": 0.05, "text": 0.6, "both": 0.05},
    "timesteps": {"uniform": 0.35, "mean": 1.6, "std": 1.2},
}
ON_OTHERS: Mapping[str, Any] = {
    "resolution": 512,
    "crop": "random",
    "steps": 2000,
    "batch_size": 8,
    "learning_rate": 1e-5,
    "drop": {"image": 0.05, "text": 0.15, "both": 0.05},
}


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """A folder of pictures of one kind, and how to train."""

    domain: Annotated[
        Any,
        Option(
            "folder of pictures of the domain, each with its caption in a .txt file or without",
            metavar="DIR",
            json=FILE,
            group=HOW,
        ),
    ]
    general: Annotated[
        Any,
        Option(
            "folder of pictures of all kinds, to keep and measure what the adapter knows (default: "
            "drawn ones on the bundled stack, else none)",
            metavar="DIR",
            json=FILE,
            group=HOW,
        ),
    ] = None
    share: Annotated[
        float,
        control(
            "pictures of all kinds to train with, as a share of those of the domain (default 0.5)",
            metavar="S",
            ge=0,
            le=10,
        ),
    ] = 0.5
    forgetting: Annotated[
        float,
        control(
            "how much of what the adapter knew may be lost: match on pictures of all kinds, where "
            "0 is without a reference and 1 the autoencoder (default 0.03)",
            metavar="F",
            ge=0,
            le=1,
        ),
    ] = 0.03
    references: Annotated[
        int,
        control(
            "pictures that measure, of the domain and of all kinds each; none of them is trained "
            "with (default 24)",
            metavar="N",
            ge=2,
            le=1000,
        ),
    ] = 24
    train_steps: Annotated[
        int | None,
        control(
            "training steps (default 400 on the bundled stack, else 2000)",
            metavar="N",
            ge=1,
            le=1_000_000,
        ),
    ] = None
    set: Annotated[
        Any,
        Option(
            "change a key of the training config: learning_rate=1e-5; may be repeated",
            metavar="KEY=VALUE",
            repeat=True,
            json={"type": "array", "items": {"type": "string"}},
            group=HOW,
        ),
    ] = ()
    metric: Annotated[
        str | None,
        control(
            "what is measured: see `imageprompt score --list` (default attributes on the bundled "
            "stack, else clip-i)",
            metavar="NAME",
        ),
    ] = None
    extractor: Annotated[
        str | None,
        control("its model: clip=openai/clip-vit-large-patch14", metavar="ROLE=SOURCE"),
    ] = None
    work: Annotated[
        Any,
        Option(
            "folder of the training run; what was interrupted there goes on (default: a temporary "
            "one)",
            metavar="DIR",
            json=FILE,
            group=HOW,
        ),
    ] = None
    num_images: Annotated[
        int, control("references shown before and after (default 4)", metavar="N", ge=1, le=16)
    ] = 4


@dataclass(frozen=True)
class Split:
    """Which picture is for what."""

    train: Sequence[Path]
    validation: Sequence[Path]
    test: Sequence[Path]


def steps(inputs: Inputs, job: Job) -> None:
    base = _base(inputs, job)
    domain = _split(_pictures_in(inputs.domain, "domain"), inputs.references)
    job.check("domain", domain.test[:_CHECKED])
    if inputs.work is not None:
        _tune(inputs, job, base, domain, Path(inputs.work).expanduser())
        return
    with tempfile.TemporaryDirectory(prefix="imageprompt-tune-") as temporary:
        _tune(inputs, job, base, domain, Path(temporary))


def _tune(inputs: Inputs, job: Job, base: str, domain: Split, work: Path) -> None:
    """Train and measure in the folder `work`, which may be gone afterwards."""
    general = _general(inputs, job, work, len(domain.train), len(domain.validation))
    adapter = _adapter(inputs, job)
    config = _config(inputs, job, base, adapter, work, domain)
    _copy(work / "data", [*domain.train, *general.train])
    job.report(f"training, {config.steps} steps", 0, 4 * TRIES)
    trained = _train(config, inputs)
    job.measured |= {"trained_steps": trained.step, "training_seconds": trained.seconds}
    parts = {"domain": domain} | ({"general": general} if general.test else {})
    if not general.test:
        job.notes.append("what is forgotten was not measured: give --general DIR")
    made = [path for path in (trained.adapter, trained.best) if path is not None]
    tuned = _kept(inputs, job, base, work, adapter, made, parts)
    adapters = {BEFORE: adapter, AFTER: str(tuned)}
    for number, (name, test) in enumerate({"domain": domain.test, "general": general.test}.items()):
        job.report(f"measuring {name}", (2 + number) * TRIES, 4 * TRIES)
        if test:
            results = _evaluate(inputs, job, base, work / name, test, adapters)
            job.count(*_cost(results))
            _figures(job, name, results)
            if name == "domain":
                _show(job, results, inputs.num_images)
    adapter_file = tuned.read_bytes()
    job.file("-adapter.safetensors", lambda path: path.write_bytes(adapter_file))


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def _base(inputs: Inputs, job: Job) -> str:
    """The base by name: it is loaded for training, and again for measuring. Raises OptionError."""
    base = job.engine.loaded.name if inputs.base is None else inputs.base
    if not isinstance(base, str | os.PathLike):
        raise OptionError(
            "a loaded pipeline", reason="training loads its own", hint="Give its folder or Hub id."
        )
    return os.fspath(base)


def _pictures_in(folder: Any, name: str) -> list[Path]:
    """The pictures of a folder and those below, in one order. Raises OptionError, PictureError."""
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise OptionError(f"{name} {str(folder)!r}", reason="no such folder")
    found = sorted(islice(_files(top), MOST_PICTURES + 1))
    if len(found) > MOST_PICTURES:
        raise OptionError(f"{name} {str(folder)!r}", reason=f"more than {MOST_PICTURES:,} pictures")
    if len(found) < LEAST:
        raise PictureError(
            f"{name} {str(folder)!r}",
            reason=f"{len(found)} pictures, where {LEAST} are needed",
            hint="A few hundred are usual.",
        )
    return found


def _files(top: Path) -> Iterator[Path]:
    for path in top.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink():
            yield path


def _split(pictures: Sequence[Path], references: int) -> Split:
    """At most a third measures, at most a sixth validates; spread over the order of names."""
    count = len(pictures)
    test = min(references, count // 3)
    validation = min(max(VALIDATION, min(CHOOSING, references)), count // 6)
    at = np.linspace(0, count - 1, test + validation).round().astype(int).tolist()
    held = at[:: max(1, len(at) // validation)][:validation]
    apart = set(at)
    return Split(
        [one for i, one in enumerate(pictures) if i not in apart],
        [pictures[i] for i in held],
        [pictures[i] for i in at if i not in set(held)],
    )


def _general(inputs: Inputs, job: Job, work: Path, trained: int, validation: int) -> Split:
    """Pictures of all kinds: to train with, to choose by, and to measure with."""
    wanted = round(inputs.share * trained)
    if inputs.general is not None:
        found = _split(_pictures_in(inputs.general, "general"), inputs.references)
        every = max(1, len(found.train) // max(wanted, 1))
        return Split(found.train[::every][:wanted], found.validation, found.test)
    if not job.on_bundled_base:
        return Split((), (), ())
    from imageprompt.demo import scenes

    parts = []
    for name, split, count in (
        ("mixed", "train", wanted),
        ("choosing", "validation", validation),
        ("other", "test", inputs.references),
    ):
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{index:06}.png" for index in range(count)]
        for path, scene in zip(paths, scenes.stream(split, seed=17), strict=False):
            scenes.draw(scene).save(path)
            path.with_suffix(".txt").write_text(scenes.caption(scene), encoding="utf-8")
        parts.append(paths)
    return Split(*parts)


def _copy(folder: Path, pictures: Sequence[Path]) -> None:
    """The pictures and their captions, numbered; those of an earlier run stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(pictures):
        for suffix in (path.suffix, *_TEXTS):
            source = path.with_suffix(suffix)
            target = folder / f"{index:06}{suffix.lower()}"
            if source.is_file() and not source.is_symlink() and not target.exists():
                with write_atomically(target) as temporary:
                    shutil.copyfile(source, temporary)


# ── training ────────────────────────────────────────────────────────────────────────────────────


def _adapter(inputs: Inputs, job: Job) -> str:
    """The file to begin with. Raises NotFoundError, OptionError."""
    from imageprompt import loading

    if not isinstance(inputs.adapter, str | os.PathLike | None):
        raise OptionError("a loaded adapter", reason="training reads a file", hint="Give its path.")
    located = loading.find_adapter(
        inputs.adapter, loading.base_folder(_base(inputs, job)), cached_only=False
    )
    return str(located.path)


def _config(inputs: Inputs, job: Job, base: str, adapter: str, work: Path, domain: Split) -> Any:
    """The training config. Raises OptionError."""
    from imageprompt.loading import load_adapter_file
    from imageprompt.training.config.config import TrainingConfig

    chosen = dict(ON_BUNDLED if job.on_bundled_base else ON_OTHERS)
    if inputs.train_steps is not None:
        chosen["steps"] = inputs.train_steps
    every = max(1, chosen["steps"] // VALIDATIONS)
    validation: dict[str, Any] = {
        "references": list(map(str, domain.validation[:VALIDATION])),
        "count": len(domain.validation[:VALIDATION]),
    }
    if inputs.steps is not None:
        validation["steps"] = inputs.steps
    if inputs.guidance_scale is not None:
        validation["guidance"] = inputs.guidance_scale
    elif job.on_bundled_base:
        validation["guidance"] = bundled.GUIDANCE
    precision = {"float16": "fp16", "bfloat16": "bf16"}.get(str(inputs.dtype), "no")
    plain = chosen | {
        "base": base,
        "adapter": adapter,
        "variant": load_adapter_file(adapter).spec.variant,
        "encoder": None if inputs.encoder is None else os.fspath(inputs.encoder),
        "data": str(work / "data"),
        "cache": str(work / "cache"),
        "output": str(work / "run"),
        "schedule": "cosine",
        "ema": 0.99,
        "warmup": min(100, chosen["steps"] // 10),
        "seed": inputs.seed,
        "checkpoint_every": 0 if inputs.work is None else every,
        "validate_every": every,
        "validation": validation,
        "trackers": [],
        "mixed_precision": precision,
        "device": inputs.device,
    }
    return TrainingConfig.load(plain, list(inputs.set))


def _train(config: Any, inputs: Inputs) -> TrainResult:
    """Raises OptionError if it was stopped by a signal."""
    from imageprompt.training.train import train

    result = train(config, resume=inputs.work is not None, progress=False)
    if result.adapter is None:
        raise OptionError(
            f"training at step {result.step}",
            reason="was stopped",
            hint="Run it again with the same --work DIR, and it goes on.",
        )
    return result


# ── how much of it is kept ──────────────────────────────────────────────────────────────────────


def _kept(
    inputs: Inputs,
    job: Job,
    base: str,
    work: Path,
    before: str,
    trained: Collection[Path],
    parts: Mapping[str, Split],
) -> Path:
    """The adapter furthest on the way from before to trained that forgets no more than it may.

    Of several that were trained, the one that gains most. The share is found by halving: what is
    lost, and one standard error of it, must be within `forgetting`. The adapter from before where
    none is, or nothing is gained. All on pictures that measure nothing else.
    """
    folder = work / "kept"
    folder.mkdir(parents=True, exist_ok=True)

    @cache
    def file(tuned: Path, share: float) -> Path:
        path = folder / f"{tuned.stem}-{share:g}.safetensors"
        _between(before, tuned, share, path)
        return path

    @cache
    def values(kind: str, path: Path) -> Values:
        bounds, adapters = path == Path(before), {AFTER: str(path)}
        place = folder / f"{kind}-{BEFORE if bounds else path.stem}"
        results = _evaluate(inputs, job, base, place, parts[kind].validation, adapters, bounds)
        job.count(*_cost(results))
        return _values(results, adapters)

    def changed(kind: str, path: Path) -> NDArray[np.float64]:
        """How much nearer each picture is, of the way from the control to the ceiling."""
        old = values(kind, Path(before))
        change, way = _differences(old[AFTER], values(kind, path)[AFTER]), _way(old)
        if len(change) < 2:
            raise OptionError(
                f"metric {_metric(inputs, job)}",
                reason=f"has no value for the pictures ({kind}) that choose",
                hint="Name another: --metric.",
            )
        return change / way if way else np.zeros_like(change)

    def within(share: float) -> bool:
        change = changed("general", file(tuned, share))
        job.measured[f"kept_general_{share:g}"] = float(change.mean())
        error = change.std(ddof=1) / np.sqrt(len(change))
        return bool(change.mean() - error >= -inputs.forgetting)

    job.report("choosing how much is kept", TRIES, 4 * TRIES)
    tuned = max(trained, key=lambda one: changed("domain", file(one, 1.0)).mean())
    kept, too_far, share = 0.0, 1.0, 1.0
    for number in range(TRIES if "general" in parts else 0):
        job.report(f"choosing how much is kept, {share:.0%}", TRIES + number, 4 * TRIES)
        kept, too_far = (share, too_far) if within(share) else (kept, share)
        if kept == 1:
            break
        share = (kept + too_far) / 2
    kept = kept if "general" in parts else 1.0
    gain = float(changed("domain", file(tuned, kept)).mean()) if kept else 0.0
    kept = kept if gain > 0 else 0.0
    job.measured |= {"kept": kept, "kept_domain": gain}
    if not kept:
        job.notes.append("nothing is gained within what may be forgotten: the adapter is as it was")
    return file(tuned, kept)  # at 0 the weights from before, whatever they were read from


def _between(before: str, tuned: Path, share: float, path: Path) -> None:
    """Write the adapter whose weights lie this far from those before to those after training."""
    import torch

    from imageprompt.loading import load_adapter_file

    adapter, after = load_adapter_file(before), load_adapter_file(tuned)
    with torch.no_grad():
        for weight, other in zip(adapter.parameters(), after.parameters(), strict=True):
            weight.lerp_(other, share)
    adapter.save(path)


# ── figures ─────────────────────────────────────────────────────────────────────────────────────

Values = Mapping[str, Mapping[str, float]]
"""Row of a study -> file of the reference -> value of the metric."""


def _evaluate(
    inputs: Inputs,
    job: Job,
    base: str,
    folder: Path,
    pictures: Sequence[Path],
    adapters: Mapping[str, str],
    bounds: bool = True,
) -> Results:
    """A study of these adapters with these references, without text.

    `bounds`: also the control and the ceiling. Raises an ImagePromptError.
    """
    from imageprompt.evaluation.study.config import StudyConfig
    from imageprompt.evaluation.study.run import Study

    references = folder / "references"
    _copy(references, pictures)
    plain: dict[str, Any] = {
        "output": str(folder / "study"),
        "references": str(references),
        "prompts": [""],
        "adapters": [{"adapter": path, "name": name} for name, path in adapters.items()],
        "scales": [1.0],
        "seed": inputs.seed,
        "base": base,
        "steps": inputs.steps,
        "guidance_scale": inputs.guidance_scale,
        "size": inputs.size,
        "dtype": inputs.dtype,
        "device": inputs.device,
        "metrics": [_metric(inputs, job)],
        "control": bounds,
        "ceiling": bounds,
    }
    if inputs.extractor is not None:
        role, _, source = inputs.extractor.partition("=")
        plain["extractors"] = {role: source}
    given = {name: value for name, value in plain.items() if value is not None}
    return Study(StudyConfig.load(given)).run(progress=False, report=False).results()


def _cost(results: Results) -> tuple[int, int]:
    """Pictures that a study generated, and their denoising steps."""
    from imageprompt.loading.recipe import read_picture

    rows = (row for row in range(len(results)) if results.row[row] in ("adapter", "control"))
    made = sorted({results.picture_path(row) for row in rows})
    recipe = read_picture(made[0])[0]
    return len(made), len(made) * recipe.steps


def _metric(inputs: Inputs, job: Job) -> str:
    return inputs.metric or ("attributes" if job.on_bundled_base else "clip-i")


def _values(results: Results, adapters: Collection[str]) -> Values:
    """The finite values of the adapters, of the control and of the ceiling."""
    metric = next(iter(results.metrics))
    rows = {name: results.where(row="adapter", adapter=name) for name in adapters}
    rows |= {row: results.where(row=row) for row in ("control", "ceiling")}
    return {
        row: {
            Path(str(reference)).name: value
            for reference, value in zip(one.reference, one.metrics[metric].tolist(), strict=True)
            if np.isfinite(value)
        }
        for row, one in rows.items()
    }


def _way(values: Values) -> float:
    """From the control to the ceiling, whichever is larger; 0 where there is no way."""
    way = _mean(values["ceiling"]) - _mean(values["control"])
    return way if abs(way) > 1e-9 else 0.0


def _differences(old: Mapping[str, float], new: Mapping[str, float]) -> NDArray[np.float64]:
    """For each reference that has both values."""
    both = sorted(old.keys() & new.keys())
    return np.array([new[key] - old[key] for key in both])


def _mean(found: Mapping[str, float]) -> float:
    return float(np.mean(list(found.values()))) if found else np.nan


def _figures(job: Job, name: str, results: Results) -> None:
    """Means before and after, their paired difference with its interval, control and ceiling."""
    from imageprompt.evaluation.statistics.paired import compare_differences

    values = _values(results, (BEFORE, AFTER))
    figures = {"match": values}
    if next(iter(results.metrics)) == "attributes":
        figures["whole"] = {
            row: {key: float(value == 1) for key, value in found.items()}
            for row, found in values.items()
        }
    for what, found in figures.items():
        for row, one in found.items():
            if one:
                job.measured[f"{name}_{what}_{row}"] = _mean(one)
    changes = {what: _differences(found[BEFORE], found[AFTER]) for what, found in figures.items()}
    if way := _way(values):
        for row in (BEFORE, AFTER):
            place = (_mean(values[row]) - _mean(values["control"])) / way
            job.measured[f"{name}_place_{row}"] = place
        changes["place"] = changes["match"] / way
    for what, change in changes.items():
        compared = compare_differences(change)
        interval = compared.interval
        job.measured[f"{name}_{what}_change"] = [compared.difference, interval.low, interval.high]


def _show(job: Job, results: Results, count: int) -> None:
    """The first references, before and after; the pictures are those of the study."""
    from imageprompt.encoding.images.open_image import open_picture
    from imageprompt.loading.recipe import read_picture
    from imageprompt.workflows.result import WorkflowPicture

    metric = next(iter(results.metrics))
    for row in range(len(results)):
        number = results.reference.distinct().index(str(results.reference[row]))
        if results.row[row] != "adapter" or number >= count:
            continue
        path = results.picture_path(row)
        recipe, tokens = read_picture(path)
        measured = {metric: round(float(results.metrics[metric][row]), 4)}
        label = f"reference {number}, {results.adapter[row]}"
        image = open_picture(path)
        job.pictures.append(WorkflowPicture(label, image, recipe, tokens, measured))
        reference = results.reference_path(row)
        if results.adapter[row] == BEFORE and reference is not None:
            job.show(f"reference {number}", open_picture(reference))


WORKFLOW = Workflow(
    name="tune-style",
    summary="an adapter trained further on a folder of one kind, measured before and after",
    inputs=Inputs,
    steps=steps,
    measures={
        "domain_match_*": "the metric on held-out pictures of the domain: before, after, control "
        "(no reference), ceiling (the base's autoencoder)",
        "domain_match_change": "mean difference and its 95 % interval",
        "domain_place_*": "the match between control (0) and ceiling (1): before, after, change",
        "domain_whole_*": "share of pictures with all five attributes; drawn scenes only",
        "general_*": "the same on pictures of all kinds: what is forgotten",
        "kept": "share of the change of weights that is in the adapter",
        "kept_domain": "change of the place with it, on pictures that chose it",
        "kept_general_*": "the same on pictures of all kinds, for each share that was tried",
        "trained_steps": "all, or with --set patience=N until validation no longer improved",
        "training_seconds": "wall time of the training",
    },
)
