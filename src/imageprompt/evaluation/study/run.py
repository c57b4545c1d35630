"""A study from its config to its results: resumable at any moment, nothing twice, nothing lost.

Rows are made in chunks: generated, scored, and appended to `results.jsonl` in one write. What a
chunk holds depends on the plan alone, so a resumed study makes the same batches again, and its
lines are those of one that was never stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core import bundled
from imageprompt.core.atomic_files import append_line, check_folder, locked, sweep, write_atomically
from imageprompt.core.console import Bars
from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import is_inside
from imageprompt.evaluation.phrases import counted
from imageprompt.evaluation.scoring import FeatureStore, Scorer
from imageprompt.evaluation.scoring.texts import read_texts
from imageprompt.evaluation.settings import settings_of
from imageprompt.evaluation.study import resume
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.evaluation.study.judging import Judge, judge_all
from imageprompt.evaluation.study.measure import LineMaker, check_metrics, default_metrics
from imageprompt.evaluation.study.models import (
    StudyModels,
    check_decoded,
    decoded,
    open_models,
)
from imageprompt.evaluation.study.pairs import with_parts
from imageprompt.evaluation.study.plan import Case, Grid, Plan, Row
from imageprompt.evaluation.study.references import (
    StudyReference,
    check_pictures,
    drawn_references,
    references_in,
)
from imageprompt.evaluation.study.results import (
    CEILING,
    CONTROL,
    PLAN,
    RESULTS,
    STUDY,
    Results,
    read_results,
)
from imageprompt.evaluation.study.summary import summarise

if TYPE_CHECKING:
    from imageprompt.evaluation.protocols import Protocol, ProtocolData

FEATURES = "features.sqlite"
"""Features of all pictures, in the folder of a study: a resumed one reads the same bits."""
LOCK = ".lock"
MAX_PROMPTS = 100_000
DRAWN_PROMPTS = (
    "a star",
    "a striped heart",
    "a red shape",
    "a dotted shape on a white background",
    "a ring on a gradient blue background",
)
"""Texts for the bundled stack: each names a part of a scene."""


@dataclass(frozen=True)
class Estimate:
    """What a study is going to make, and how long that takes."""

    rows: int
    pictures: int
    done: int
    """Rows that exist already."""
    seconds_per_picture: float
    seconds: float
    """For what is missing, without scoring."""

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self)}


@dataclass(frozen=True)
class StudyResult:
    """A finished study. `summary` has the control, each adapter at each scale, and the ceiling."""

    folder: Path
    summary: tuple[Mapping[str, Any], ...]
    study: Mapping[str, Any]
    """What study.json says."""
    report: Path | None

    def results(self) -> Results:
        """The lines, in columns."""
        return read_results(self.folder)

    @property
    def conclusions(self) -> list[str]:
        """What it says, in sentences: which scale is best, and which adapter is better."""
        from imageprompt.evaluation.conclusions import conclusions

        return conclusions(self.results())

    def as_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        plain = {
            "folder": str(self.folder),
            "report": None if self.report is None else str(self.report),
            "rows": self.study["rows"],
            "pictures": self.study["pictures"],
            "ceiling": self.study["ceiling"],
            "summary": [*self.summary],
            "conclusions": self.conclusions,
        }
        protocol = self.study.get("protocol")
        return plain | ({} if protocol is None else {"protocol": protocol})


class Study:
    """A study with its references, texts and plan; nothing is loaded before it runs."""

    def __init__(self, config: StudyConfig, root: Path | None = None) -> None:
        """`root` is what references are named relative to: the folder of the study's file.

        Raises NotFoundError, PictureError, OptionError.
        """
        self.config = config = with_parts(config)
        self.folder = check_folder(config.folder)
        self.root = self.folder if root is None else root
        self.protocol: Protocol | None = None
        self.data: ProtocolData | None = None
        references: Sequence[StudyReference]
        cases: Sequence[Case]
        if config.protocol is not None:
            from imageprompt.evaluation.protocols import PROTOCOLS

            self.protocol = PROTOCOLS[config.protocol]
            self.protocol.check(config)
            data = Path(str(config.data)).expanduser()
            self.data = self.protocol.read(data, self.root, config.limit)
            references, cases = self.data.references, self.data.cases
        else:
            references = self._references()
            cases = Grid(len(references), self._prompts())
        self.plan = Plan.of(config, references, cases)

    def _references(self) -> list[StudyReference]:
        if self.config.references is not None:
            return references_in(self.config.references, self.root)
        return drawn_references(self.folder, self.config.count, self.config.base)

    def _prompts(self) -> list[str]:
        given = self.config.prompts
        if given is None:
            return [*DRAWN_PROMPTS] if self.config.base in bundled.ONE_OBJECT else [""]
        if isinstance(given, str):
            given = tuple(line for line in map(str.strip, read_texts(given)) if line)
            what = f"prompts {self.config.prompts!r}"
        else:
            what = "prompts"
        if not given:
            raise OptionError(what, reason="no text in it", hint='Write one a line; [""] for none.')
        if len(given) > MAX_PROMPTS:
            raise OptionError(what, reason=f"{len(given):,} texts; the limit is {MAX_PROMPTS:,}")
        return [*dict.fromkeys(given)]

    @cached_property
    def metrics(self) -> list[str]:
        """The names of the metrics."""
        return [*self.config.metrics] or default_metrics(self.config)

    def describe(self) -> str:
        """How many pictures are made, in one line."""
        plan = self.plan
        adapters = len({*plan.made_by})
        settings = adapters * len(plan.scales)
        counts = {
            "adapter": adapters,
            "scale": len(plan.scales),
            "pair of reference and prompt": len(plan.cases),
            "seed": len(plan.seeds),
        }
        parts = " x ".join(counted(count, name) for name, count in counts.items())
        control = plan.pictures - settings * len(plan.cases) * len(plan.seeds)
        return f"{plan.pictures:,} pictures: {parts}, and {control:,} without an adapter"

    # ── running ─────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        *,
        judge: Judge | None = None,
        log: Callable[[str], object] = lambda line: None,
        progress: bool = True,
        report: bool = True,
    ) -> StudyResult:
        """Make what is missing, score it, and write the results, with `report` also its page.

        Raises an ImagePromptError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(), Bars(progress) as bars:
            store = FeatureStore(self.folder / FEATURES)
            try:
                scorer, studied = self._open(store, log)
                maker = LineMaker(self.folder, self.config, self.plan, studied, scorer)
                stated = self._stated(scorer, studied)
                resume.check_unchanged(self.folder, stated)
                resume.write_json(self.folder / PLAN, stated)
                log(self.describe())
                self._make_missing(maker, studied, bars)
                return self._finish(stated, scorer, judge, bars, report)
            finally:
                store.close()

    def estimate(self, *, log: Callable[[str], object] = lambda line: None) -> Estimate:
        """Check everything, and measure how long a picture takes. Raises an ImagePromptError."""
        store = FeatureStore()
        try:
            _, studied = self._open(store, log)
        finally:
            store.close()
        rows = next(row for chunk in self.plan.chunks() for row in chunk if row.row != CONTROL)
        batch = [self._request(rows)] * min(self.config.batch_size, self.plan.pictures)
        self._generate(batch[:1], studied)  # the first one warms up
        start = time.perf_counter()
        self._generate(batch, studied)
        each = (time.perf_counter() - start) / len(batch)
        done = resume.count_lines(self.folder)
        missing = self.plan.pictures * (1 - done / len(self.plan))
        return Estimate(len(self.plan), self.plan.pictures, done, each, each * missing)

    def _locked(self) -> Any:
        sweep(self.folder)
        return locked(
            self.folder / LOCK,
            f"output folder {str(self.folder)!r}",
            timeout=0,
            reason="another study is running there",
            hint="Wait for it, stop it, or choose another output.",
        )

    def _open(
        self, store: FeatureStore, log: Callable[[str], object]
    ) -> tuple[Scorer, StudyModels]:
        """Everything that can be wrong, before the first picture."""
        scorer = Scorer(
            self.metrics, self.config.extractors, store=store, device=self.config.device
        )
        check_metrics(scorer, self.plan)
        check_pictures(self.plan.references)
        for prompt in self.plan.prompts:
            self.config.request(prompt, self.config.seed).check()
        studied = open_models(self.config, self.plan.references, log=log)
        if self.plan.ceiling and self.plan.decoded:
            check_decoded(studied, self.config, self.plan.references[0].picture.open())
        return scorer, studied

    def _stated(self, scorer: Scorer, studied: StudyModels) -> dict[str, Any]:
        """What plan.json says: all that the lines depend on."""
        extractors = {
            role: {
                "name": one.name,
                "fingerprint": one.fingerprint,
                "preprocessing": one.preprocessing,
            }
            for role, one in scorer.open_extractors().items()
        }
        stated = {
            "config": self.config.identity() | {"metrics": self.metrics},
            **self.plan.identity(),
            "base": {"name": self.config.base, "hash": studied.recipe.base.hash},
            "adapters": studied.adapters,
            "options": studied.options,
            "extractors": extractors,
            "environment": studied.environment,
            "root": os.path.relpath(self.root, self.folder).replace(os.sep, "/"),
        }
        plain: dict[str, Any] = json.loads(json.dumps(stated))  # tuples become lists
        return plain

    # ── making rows ─────────────────────────────────────────────────────────────────────────────

    def _make_missing(self, maker: LineMaker, studied: StudyModels, bars: Bars) -> None:
        finished, done = resume.finished_rows(self.folder, self.plan, maker.expected), 0
        for chunk in self.plan.chunks():
            if done >= finished:
                self._make_pictures(chunk, studied, bars, done)
                lines = maker.lines(chunk)
                text = "\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
                append_line(self.folder / RESULTS, text)
            done += len(chunk)
            bars.update("row", done, len(self.plan))

    def _make_pictures(
        self, chunk: Sequence[Row], studied: StudyModels, bars: Bars, done: int
    ) -> None:
        """The pictures that are made for these rows; all of them, unless all exist.

        A batch with a part of them would round differently.
        """
        mine = [row for row in chunk if row.new]
        if all((self.folder / row.picture).exists() for row in mine):
            return
        for folder in {(self.folder / row.picture).parent for row in mine}:
            if not is_inside(folder, self.folder):
                raise OptionError(str(folder), reason="leads out of the study", hint="Remove it.")
            folder.mkdir(parents=True, exist_ok=True)
        if mine[0].row == CEILING:
            for row in mine:
                self._make_ceiling(row, studied)
            return

        from imageprompt.loading.recipe import write_picture

        def save(result: Any) -> None:
            tokens = [prompt.to().as_bytes() for prompt in result.image_prompts]
            path = self.folder / mine[result.request].picture
            write_picture(path, result.images[0], result.recipes[0], tokens)
            bars.update("row", done + result.request, len(self.plan))

        self._generate([self._request(row) for row in mine], studied, save)

    def _request(self, row: Row) -> Any:
        reference = None
        if row.adapter is not None:
            path = self.plan.references[row.reference].path
            beside = None if row.beside is None else self.plan.references[row.beside].path
            reference = self.config.entries[row.adapter].reference(path, row.scale or 0.0, beside)
        request = self.config.request(row.prompt or "", row.seed or 0, reference)
        request.check()
        return request

    def _generate(
        self,
        requests: Sequence[Any],
        studied: StudyModels,
        save: Callable[[Any], object] | None = None,
    ) -> None:
        from imageprompt.generation.engine import run_requests

        run_requests(requests, batch_size=self.config.batch_size, on_image=save)

    def _make_ceiling(self, row: Row, studied: StudyModels) -> None:
        """Another picture of the subject as it is, or the reference after the autoencoder."""
        picture = self.plan.references[row.source or 0].picture.open()
        if self.plan.decoded:
            picture = decoded(studied, self.config, picture, self._size)
        with write_atomically(self.folder / row.picture) as temporary:
            picture.save(temporary, format="PNG")

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        from imageprompt.encoding.images.open_image import picture_size

        first = next(self.plan.chunks())[0]
        return picture_size(self.folder / first.picture)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def _finish(
        self,
        stated: Mapping[str, Any],
        scorer: Scorer,
        judge: Judge | None,
        bars: Bars,
        report: bool,
    ) -> StudyResult:
        results = read_results(self.folder)
        references = [one.picture for one in self.plan.references]
        summary = summarise(results, scorer, references, on_setting=partial(bars.update, "setting"))
        study = {
            **stated,
            "rows": len(results),
            "pictures": self.plan.pictures,
            "ceiling": self._ceiling_kind(),
            "summary": summary,
        }
        verdicts = None
        if judge is not None:
            verdicts = judge_all(results, judge, on_picture=partial(bars.update, "judged"))
            study["judge"] = {"rated": len(verdicts.scores), "failed": len(verdicts.failed)}
        if self.protocol is not None and self.data is not None:
            from imageprompt.evaluation.protocols.contract import Measured

            measured = Measured(settings_of(results), self.data, scorer, verdicts)
            study["protocol"] = self.protocol.report(measured)
        resume.write_json(self.folder / STUDY, study)
        page = _write_report(self.folder) if report else None
        return StudyResult(self.folder, tuple(summary), study, page)

    def _ceiling_kind(self) -> str | None:
        if not self.plan.ceiling:
            return None
        if self.plan.decoded:
            return "the reference after the base's autoencoder"
        return "another picture of the same subject"


def evaluate(
    study: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    judge: Judge | None = None,
    log: Callable[[str], object] | None = None,
    progress: bool = True,
) -> StudyResult:
    """Generate and score what a study asks for; see `StudyConfig` for its keys.

    `study` is a YAML file or a mapping, `overrides` are "key=value" strings. A study that was
    stopped goes on where it was. `judge` rates each picture in the end (see `study.judging`).
    `log` receives the number of pictures, and what else there is to say. Raises an
    ImagePromptError, before the first picture wherever possible.
    """
    root = None
    if not isinstance(study, StudyConfig):
        if not isinstance(study, Mapping):
            root = Path(study).expanduser().parent
        study = StudyConfig.load(study, overrides)
    elif overrides:
        raise OptionError(
            "overrides",
            reason="only apply to a study given as a file or a mapping",
            hint="Use dataclasses.replace.",
        )
    return Study(study, root).run(judge=judge, log=log or (lambda line: None), progress=progress)


def _write_report(folder: Path) -> Path:
    from imageprompt.evaluation.report import write_report

    return write_report(folder)
