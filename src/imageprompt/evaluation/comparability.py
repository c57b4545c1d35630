"""Why figures cannot be compared: another encoder, other preprocessing, other references."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from imageprompt.evaluation.settings import Setting
from imageprompt.evaluation.study.results import ADAPTER, CEILING, Results

_SHOWN = 5


def within(results: Results, settings: Collection[Setting]) -> list[str]:
    """What keeps the settings of one study from being compared, a sentence each."""
    return [*_within(results, settings)]


def _within(results: Results, settings: Collection[Setting]) -> Iterator[str]:
    for role, labels in results.extractors.items():
        if len(found := labels.distinct()) > 1:
            yield f"the {role} encoder or its preprocessing changed: {', '.join(found)}"
    bases = {base for base in results.base.distinct() if base}
    if len(bases) > 1:
        yield f"there are several bases: {', '.join(sorted(bases))}"
    elif "base" in results.hashes and len(found := results.hashes["base"].distinct()) > 1:
        yield f"the files of the base changed: {', '.join(found)}"
    counts = {one.name: len(one.lines) for one in settings if one.row == ADAPTER}
    if len({*counts.values()}) > 1:
        shown = ", ".join(f"{name}: {count}" for name, count in [*counts.items()][:_SHOWN])
        more = ", ..." if len(counts) > _SHOWN else ""
        yield f"the number of pictures differs ({shown}{more})"
    generated = [one for one in settings if one.row != CEILING]  # that one has no text
    for name in results.metrics:
        lost = [one for one in generated if one.means[name].missing]
        if len({one.means[name].missing for one in generated}) > 1:
            most = max(lost, key=lambda one: one.means[name].missing)
            missing = most.means[name].missing
            yield (
                f"{name} has no value for some pictures, and not for the same number everywhere "
                f"({most.name}: {missing} of {len(most.lines)})"
            )


def between(a: Results, b: Results, metrics: Collection[str]) -> list[str]:
    """What keeps these metrics of two studies from being compared, a sentence each."""
    from imageprompt.evaluation.metrics import METRICS

    problems = []
    known = {name: METRICS.get(name) for name in metrics}
    roles = {one.extractor for one in known.values() if one is not None and one.extractor}
    for role in sorted(roles & (a.extractors.keys() | b.extractors.keys())):
        one, other = (sorted(_fingerprints(results, role)) for results in (a, b))
        if one != other:
            problems.append(
                f"the {role} encoder or its preprocessing differs: "
                f"{_described(a, role, one)} in A, {_described(b, role, other)} in B"
            )
    return problems


def _fingerprints(results: Results, role: str) -> set[str]:
    return {*results.extractors[role].distinct()} if role in results.extractors else set()


def _described(results: Results, role: str, fingerprints: Collection[str]) -> str:
    """An encoder by its name and preprocessing where the study says them."""
    stated: Any = extractors_of(results).get(role)
    words = [str(stated[key]) for key in ("name", "preprocessing") if stated and stated.get(key)]
    return f"{' '.join([*words, *fingerprints])}" or "none"


def extractors_of(results: Results) -> dict[str, Any]:
    """What the study says of its encoders, by role; {} if it says nothing."""
    environment = results.study.get("environment")
    for place in (results.study, environment):
        found = place.get("extractors") if isinstance(place, dict) else None
        if isinstance(found, dict):
            return {role: one for role, one in found.items() if isinstance(one, dict)}
    return {}
