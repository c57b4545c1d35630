"""`write_report`: the page of a study. `write_comparison`: that of two settings, pair by pair."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imageprompt.core import __version__
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.evaluation.balance import Axes
from imageprompt.evaluation.compare import Comparison
from imageprompt.evaluation.report.figures import bar, figure, signed
from imageprompt.evaluation.report.pictures import Gallery
from imageprompt.evaluation.report.sections import comparison_sections, study_sections
from imageprompt.evaluation.report.summary import MAX_SETTINGS
from imageprompt.evaluation.study.results import Results, read_results

REPORT = "report.html"


def write_report(folder: str | os.PathLike[str], axes: Axes | None = None) -> Path:
    """Write `report.html` beside the results of a study, finished or not; returns its path.

    `axes` are the metrics of likeness and of following the text, by default those preferred of the
    ones measured. Equal results give equal bytes. Raises NotFoundError, OptionError, WriteError.
    """
    results = read_results(folder)
    _check_rows(results)
    gallery = Gallery(Path(folder))
    context = study_sections(results, axes or Axes.of(results.metrics), gallery)
    path = results.folder / REPORT
    _write(path, "study.html", context, gallery)
    return path


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write a comparison as a page, with the pairs that differ most; returns its path."""
    target = Path(path)
    gallery = Gallery(target.parent)
    _write(target, "comparison.html", comparison_sections(comparison, gallery), gallery)
    return target


def _check_rows(results: Results) -> None:
    if not len(results):
        raise OptionError(
            f"study {str(results.folder)!r}",
            reason="has no results yet",
            hint="Run `imageprompt evaluate` first.",
        )
    settings = {*zip(results.adapter.codes.tolist(), results.scale.tolist(), strict=True)}
    if len(settings) > MAX_SETTINGS:
        raise OptionError(
            f"study {str(results.folder)!r}",
            reason=f"has {len(settings)} adapters and scales; a page shows {MAX_SETTINGS}",
            hint="Compare parts of it: imageprompt compare STUDY --adapter A --adapter B.",
        )


def _write(path: Path, template: str, context: Mapping[str, Any], gallery: Gallery) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "signed": signed}
    text = environment.get_template(template).render(
        **context,
        bar=bar,
        css=(here / "page.css").read_text("utf-8"),
        js=(here / "page.js").read_text("utf-8"),
        version=__version__,
        broken=_broken(gallery.broken.items()),
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _broken(found: Iterable[tuple[Path, str]]) -> list[str]:
    return sorted({f"{path.name}: {reason}" for path, reason in found})
