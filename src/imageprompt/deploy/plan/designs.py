"""Which adapter comes within a number of parameters: variants on the published bases, light forms.

Parameters are counted from the shapes of the tensors: K', V' and the projector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imageprompt.core.errors import NotFoundError
from imageprompt.core.spec import HostSpec, ProjectorOptions
from imageprompt.deploy.plan.bases import BASES
from imageprompt.deploy.plan.open import ALIASES, counted, new_adapter
from imageprompt.deploy.plan.plan import AdapterWeights, CountedBase
from imageprompt.variants import VARIANTS, has_place, site_kinds

REAL_TIME, FULL = 50_000_000, 200_000_000
"""Parameters that suit real time, and a full adapter of a large base."""
OFFERED = ("base", "full", "plus")
"""Variants that read pictures and train here."""
NARROW = {"plus": 640}
"""Variants whose projector can be narrower, and the width that is told."""
_HEAD = 64


@dataclass(frozen=True, kw_only=True)
class Design:
    """A variant on a base, and how it comes within a number of parameters."""

    base: str
    variant: str
    projector: int
    key_values: int
    """Of K' and V', whole."""
    rank: int | None
    """Of every K' and V', the largest that fits; None: whole."""
    fitted: int
    """Parameters of the form that fits; the fewest that it can have where none does."""
    fits: bool

    @property
    def share(self) -> float:
        """What is left of K' and V'."""
        return (self.fitted - self.projector) / self.key_values

    @property
    def form(self) -> str:
        if not self.fits:
            return "no: the projector alone is too large"
        return "whole" if self.rank is None else f"light, {self.share:.0%} of K', V'"

    def as_row(self) -> dict[str, Any]:
        """For a table, in millions."""
        whole = self.key_values + self.projector
        numbers = {"K', V'": self.key_values, "projector": self.projector, "whole": whole}
        return {
            "base": self.base,
            "variant": self.variant,
            **{name: f"{number / 1e6:,.1f} M" for name, number in numbers.items()},
            "within the budget": self.form,
            "rank": self.rank if self.fits else None,
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "variant": self.variant,
            "key_values": self.key_values,
            "projector": self.projector,
            "parameters": self.key_values + self.projector,
            "fits": self.fits,
            "rank": self.rank,
            "share": round(self.share, 4),
            "fitted_parameters": self.fitted,
        }


def designs(parameters: int, base: str | None = None) -> list[Design]:
    """The variants on the published bases, or on one, beside a budget. Raises NotFoundError."""
    name = None if base is None else ALIASES.get(base, base)
    if name is not None and name not in BASES:
        raise NotFoundError(
            f"base {base!r}", reason="not a published base", hint=f"Use {', '.join(BASES)}."
        )
    names = BASES if name is None else (name,)
    return [design for one in names for design in _of_base(counted(one), parameters)]


def suits(parameters: int) -> str:
    """What adapters of that size are for."""
    if parameters <= REAL_TIME:
        return (
            "Up to 50 M parameters suit real time: any adapter of SD1.5, on larger bases the "
            "variant base in low rank (imageprompt compress)."
        )
    if parameters <= FULL:
        return "120 to 200 M are a full adapter: on SDXL the variant plus at a third of K', V'."
    return "More than 200 M are what published adapters of large bases have; most runs need less."


def _of_base(base: CountedBase, parameters: int) -> Iterator[Design]:
    for variant in (VARIANTS[name] for name in OFFERED):
        if not has_place(variant, base.host):
            continue
        forms = {variant.name: new_adapter(variant, base)}
        if variant.name in NARROW:
            width = NARROW[variant.name]
            options = ProjectorOptions(inner_dim=width, heads=width // _HEAD)
            forms[f"{variant.name}, width {width}"] = new_adapter(variant, base, options)
        step = _step(base.host, site_kinds(variant))
        least = min(form.projector for form in forms.values())
        for title, form in forms.items():
            if title == variant.name or form.projector == least:
                yield _design(base.name, title, form, step, parameters)


def _step(host: HostSpec, kinds: Any) -> int:
    """Parameters of one more rank at every K' and V'."""
    return sum(sum(shape) for shape in host.shapes(kinds).values())


def _design(base: str, title: str, form: AdapterWeights, step: int, parameters: int) -> Design:
    left = parameters - form.projector
    whole = left >= form.sites
    rank = None if whole else max(left // step, 1)
    fitted = form.projector + (form.sites if rank is None else min(rank * step, form.sites))
    return Design(
        base=base,
        variant=title,
        projector=form.projector,
        key_values=form.sites,
        rank=rank,
        fitted=fitted,
        fits=fitted <= parameters,
    )
