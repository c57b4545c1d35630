"""A host whose adapters are read, checked and converted, but not run yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import HostSpec, Shapes, Site


@dataclass(frozen=True)
class FilesOnlyHost:
    """A transformer base, described by its config's class and a function from config to sites."""

    name: str
    summary: str
    denoiser_class: str
    published: Mapping[str, Any]
    """The parts of the published config that decide the sites."""
    sites: Callable[[Mapping[str, Any]], Iterator[Site]]
    pipeline_attribute: str = "transformer"
    attachable: bool = False

    def claims(self, denoiser: object) -> bool:
        return type(denoiser).__name__ == self.denoiser_class

    def from_config(self, config: Mapping[str, Any]) -> HostSpec | None:
        if config.get("_class_name") != self.denoiser_class:
            return None
        try:
            sites = tuple(self.sites({**self.published, **config}))
        except (TypeError, ValueError) as error:
            raise AttachError(
                f"a {self.denoiser_class} config",
                reason=f"its numbers make no model ({error})",
                hint="Give the config.json of a base.",
            ) from None
        return HostSpec(family=self.name, sites=sites)

    def from_weights(self, shapes: Shapes) -> HostSpec | None:
        return None  # nobody keeps a frozen transformer beside its adapter

    def families(self, cross_attention_dim: int | None = None) -> Iterator[HostSpec]:
        if cross_attention_dim in (None, self._family.cross_attention_dim):
            yield self._family

    @cached_property
    def _family(self) -> HostSpec:
        return HostSpec(family=self.name, sites=tuple(self.sites(self.published)))
