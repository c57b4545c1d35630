"""Sites that were counted 0, 1, 2, ... or 0, 2, 4, ... when the file was made.

In the file format, a site's id is its position among all attention layers of the base: 1, 3, 5, ...
for a UNet, where self-attention comes before cross-attention. A loop over the cross-attention
layers alone counts otherwise. The shapes tell site by site which order was counted in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from imageprompt.checkpoint.formats.contract import T
from imageprompt.checkpoint.report import Problem, base_name
from imageprompt.core.spec import HostSpec, Shapes, Site
from imageprompt.hosts import families

_SUFFIXES = ("to_k_ip.weight", "to_v_ip.weight")
OWN_ORDER = "the order of diffusers' attn_processors"


@dataclass(frozen=True)
class CountedIds:
    """How the sites of a file are counted, and the ids that they have in the file format."""

    counted: str
    """The first of the file's ids: "0, 1, 2"."""
    base: HostSpec
    orders: Mapping[str, Mapping[str, str]]
    """Orders of the base's layers that fit all shapes: name -> the file's id -> the base's."""

    @property
    def order(self) -> str | None:
        """The one that is used: diffusers' own, or the only other; None if none or several fit."""
        if OWN_ORDER in self.orders:
            return OWN_ORDER
        return next(iter(self.orders)) if len(self.orders) == 1 else None

    def problem(self) -> Problem:
        own = ", ".join(site.file_id for site in _by_id(self.base)[:3])
        fault = f"site ids are counted {self.counted}, ...: not those of the file format ({own}, "
        fault += f"... for {base_name(self.base.family)})"
        if self.order:
            return Problem(
                "counted-ids",
                f"{fault}; convert --renumber (renumber=True) numbers them, taking {self.order}",
            )
        fitting = " and ".join(self.orders)
        why = f"{fitting} fit the shapes alike" if fitting else "no order of the layers fits them"
        return Problem("counted-ids", f"{fault}, and they cannot be renumbered: {why}")

    def note(self) -> str:
        base = base_name(self.base.family)
        return f"site ids counted {self.counted}, ... became those of {base}, in {self.order}"

    def renumbered(self, sites: Mapping[str, T]) -> dict[str, T]:
        """The tensors under the ids of the file format; as they are if no order is used."""
        ids = self.orders.get(self.order or "", {})
        return {_renamed(name, ids): tensor for name, tensor in sites.items()}


def counted_ids(sites: Shapes, base: HostSpec | None) -> CountedIds | None:
    """How the sites are counted on `base`, or on the published base that has such sites.

    None if they have the ids of the file format, or ids of no such kind.
    """
    ids = {name.split(".", 1)[0] for name in sites}
    if not all(i.isdecimal() for i in ids) or len(sites) != len(_SUFFIXES) * len(ids):
        return None
    numbers = sorted(int(i) for i in ids)
    count = len(numbers)
    if count < 2 or numbers not in ([*range(count)], [*range(0, 2 * count, 2)]):
        return None
    bases = [base] if base else list(families())
    bases = [one for one in bases if len(one.sites) == count and _same_shapes(one, sites)]
    if not bases or any(sorted(int(s.file_id) for s in one.sites) == numbers for one in bases):
        return None
    orders: dict[str, dict[str, str]] = {}
    for name, ordered in _orders(bases[0]).items():
        new = {str(old): site.file_id for old, site in zip(numbers, ordered, strict=True)}
        fits = {_renamed(key, new): shape for key, shape in sites.items()} == bases[0].shapes()
        if fits and new not in orders.values():
            orders[name] = new
    return CountedIds(", ".join(map(str, numbers[:3])), bases[0], orders)


def _same_shapes(base: HostSpec, sites: Shapes) -> bool:
    return Counter(base.shapes().values()) == Counter(sites.values())


def _orders(base: HostSpec) -> dict[str, list[Site]]:
    """The orders that people count in; the first is that of the ids."""
    sections = ("down", "mid", "up")

    def section(site: Site) -> int:
        found = (i for i, name in enumerate(sections) if site.name.startswith(name))
        return next(found, len(sections))

    own = _by_id(base)
    return {
        OWN_ORDER: own,
        "the order down, middle, up": sorted(own, key=section),
        "the alphabetical order": sorted(own, key=lambda site: site.name),
    }


def _by_id(base: HostSpec) -> list[Site]:
    return sorted(base.sites, key=lambda site: int(site.file_id))


def _renamed(name: str, ids: Mapping[str, str]) -> str:
    i, _, rest = name.partition(".")
    return f"{ids.get(i, i)}.{rest}"
