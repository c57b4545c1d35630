"""What a workflow is: typed inputs, its steps on an engine, and what it measures."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.core.schema import Field, options, plain_numbers, validate
from imageprompt.generation.option_values import MODELS, SAMPLING

if TYPE_CHECKING:
    from imageprompt.generation.engine import Engine
    from imageprompt.workflows.job import Job
    from imageprompt.workflows.result import WorkflowResult

_LAST = (SAMPLING, MODELS)
"""The groups of inputs that workflows share."""


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A named job. Calling it runs it: `WORKFLOW(product="shoe.png", style="beach.png")`.

    `inputs` is a dataclass; its annotated fields (see `core.schema`) are the flags of the command
    and the arguments in Python. `steps(inputs, job)` does the work: it generates by `job`, and
    hands over pictures and figures to it. Nothing heavy is imported before it is called.
    """

    name: str
    summary: str
    """What a person gets, in one line."""
    inputs: type[Any]
    steps: Callable[[Any, Job], None]
    measures: Mapping[str, str]
    """Figure -> what it tells, in one line. `*` ends the name of a family of figures."""
    references: tuple[str, ...] = ()
    """The inputs that are pictures to take something from: they are checked before the work."""
    extra: str | None = None
    """The extra of this package that it needs."""

    def fields(self) -> list[Field]:
        """The inputs: a workflow's own groups first, in each those that must be given first."""
        found = list(options(self.inputs))
        groups = [one.option.group for one in found]
        groups.sort(key=lambda group: _LAST.index(group) if group in _LAST else -1)
        return sorted(found, key=lambda one: (groups.index(one.option.group), not one.required))

    def __call__(
        self,
        *,
        engine: Engine | None = None,
        progress: bool = True,
        on_progress: Callable[[str, int, int], object] | None = None,
        **inputs: Any,
    ) -> WorkflowResult:
        """Run it; `inputs` are those of `fields()`.

        `engine` keeps models loaded between runs: it replaces the inputs base, adapter, encoder,
        dtype and device. `progress` shows a bar; `on_progress` is called with ("product: picture 2
        of 4", steps done, all steps) instead.

        Raises an ImagePromptError, before anything is loaded wherever possible.
        """
        from imageprompt.workflows.job import run

        checked = self.check(inputs)
        return run(self, checked, engine=engine, progress=progress, on_progress=on_progress)

    def check(self, inputs: Mapping[str, Any]) -> Any:
        """The inputs as an instance of `self.inputs`. Raises OptionError."""
        known = {one.name: one for one in self.fields()}
        for name in inputs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise OptionError(
                    f"input {name!r} of workflow {self.name}",
                    reason="no such input",
                    hint=f"Did you mean {near[0]}?" if near else f"Inputs: {', '.join(known)}.",
                )
        for one in known.values():
            if one.required and inputs.get(one.name) is None:
                raise OptionError(
                    f"workflow {self.name} without {one.flag}",
                    reason="it must be given",
                    hint=f"{one.flag} {one.option.metavar}: {one.option.help}.",
                )
        given = {name: plain_numbers(value) for name, value in inputs.items() if value is not None}
        return validate(self.inputs, given, what=f"workflow {self.name}")

    def as_dict(self) -> dict[str, Any]:
        """Name, inputs and measures, as plain data for JSON."""
        return {
            "name": self.name,
            "summary": self.summary,
            "extra": self.extra,
            "inputs": [dict(_described(one)) for one in self.fields()],
            "measures": [
                {"name": name, "summary": summary} for name, summary in self.measures.items()
            ],
        }


def _described(one: Field) -> Iterator[tuple[str, Any]]:
    yield "name", one.name
    yield "flag", one.flag
    yield "help", one.option.help
    yield "required", one.required
    yield "default", None if one.required else one.default
    for name in ("ge", "le"):
        if (limit := getattr(one.option, name)) is not None:
            yield {"ge": "minimum", "le": "maximum"}[name], limit
