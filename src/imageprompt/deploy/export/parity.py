"""Does an exported denoiser compute what the eager one does, at other sizes than the traced ones?

What is compared is the whole way: the same adapter, attached to the denoiser and to its stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.core.errors import OptionError
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.generation.exported.calls import Calls
from imageprompt.generation.exported.denoiser import LEAST_TOKENS

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float16": 2e-2}
"""The largest difference that is allowed; below float32 over the largest value."""
TOKENS = 16  # where the variant has one for each patch
_TIMES = {"UNet2DConditionModel": 981.0, "SD3Transformer2DModel": 981.0}


@dataclass(frozen=True)
class Case:
    """One call: its size in units, and the image prompts in use."""

    height: int
    width: int
    text: int
    scales: tuple[float, ...]
    """One for each reference; none is the base alone."""
    masked: bool = False
    same_as: int | None = None
    """The case that must have the same result: scale 0 is the base."""


# never one position on a side: torch.export rules that out at every level
CASES = (
    Case(3, 2, 7, ()),
    Case(3, 2, 7, (0.0,), same_as=0),
    Case(2, 3, 77, (0.3,)),
    Case(4, 4, 5, (1.0,), masked=True),
    Case(2, 5, 11, (2.0, 0.7), masked=True),
)
_SCALES: tuple[tuple[float, ...], ...] = ((), (0.0,), (0.3,), (1.0,), (2.0,))
"""Those of graphs for one size; the last two with a mask."""
TRACED = {"batch": 3, "text": 9, "prompts": 2, "tokens": 6}
"""The sizes that a graph is traced with; each differs from the others, and from 1."""


def unit(calls: Calls) -> int:
    """Latents on a side that the denoiser halves evenly at every level, or makes one row of."""
    levels = calls.config.get("block_out_channels")
    return 2 ** (len(levels) - 1) if levels else int(calls.config.get("patch_size") or 1)


def traced_sizes(calls: Calls) -> dict[str, int]:
    side = unit(calls)
    sizes = TRACED | {"height": 2 * side, "width": 4 * side}
    for level in range(1, len(calls.config.get("block_out_channels") or ())):
        sizes |= {f"height_{level}": 2 * side >> level, f"width_{level}": 4 * side >> level}
    return sizes | ({"rows": 8} if _is_packed(calls) else {})


def one_picture(calls: Calls, side: int, text: int, tokens: int) -> dict[str, int]:
    """The sizes of a call for one picture with one reference: both sides of guidance, or the one
    row of FLUX. `side` is that of its latents."""
    if _is_packed(calls):
        side //= 2  # four latents are a row
    sizes = {"batch": 1 if _is_packed(calls) else 2, "text": text, "prompts": 1}
    sizes |= {"tokens": max(LEAST_TOKENS, tokens), "height": side, "width": side}
    sizes["rows"] = side * side
    for level in range(1, len(calls.config.get("block_out_channels") or ())):
        sizes |= {f"height_{level}": side >> level, f"width_{level}": side >> level}
    if not _is_packed(calls):
        del sizes["rows"]
    return sizes


def _is_packed(calls: Calls) -> bool:
    return any("rows" in one.shape for one in calls.inputs)


class Parity:
    """The results of the eager denoiser, to compare with."""

    def __init__(
        self,
        denoiser: Any,
        adapter: Adapter,
        calls: Calls,
        fixed: Mapping[str, int] | None = None,
    ) -> None:
        """`fixed` are the sizes of a graph that takes no others."""
        self._adapter, self._calls = adapter, calls
        self._cases = CASES if fixed is None else _of_one_size(fixed, unit(calls))
        self._expected = self._results(denoiser)

    def largest(self, stand_in: Any, precision: str) -> float:
        """The largest difference of the stand-in. Raises OptionError above the tolerance."""
        allowed = TOLERANCES.get(precision, 0.0)
        worst = 0.0
        for number, made in enumerate(self._results(stand_in)):
            same = self._cases[number].same_as
            expected = self._expected[number if same is None else same]
            difference = float((made - expected).abs().max())
            if precision != "float32":
                difference /= float(expected.abs().max())
            if not difference <= allowed:
                raise OptionError(
                    "export",
                    reason=f"it differs from eager by {difference:.2g} at {self._cases[number]}; "
                    f"{allowed:g} is allowed",
                    hint="Nothing was written. Export to another backend, or in float32.",
                )
            worst = max(worst, difference)
        return worst

    def _results(self, denoiser: Any) -> list[Tensor]:
        self._adapter.attach(denoiser)
        try:
            with torch.no_grad():
                found = [self._call(denoiser, case) for case in self._cases]
        finally:
            self._adapter.detach()
        return found

    def _call(self, denoiser: Any, case: Case) -> Tensor:
        gen = torch.Generator().manual_seed(
            self._cases.index(case) if case.same_as is None else case.same_as
        )
        separate = _is_packed(self._calls)
        sides = 1 if separate else 2
        tensors = self._tensors(case, sides, gen)
        with ExitStack() as stack:
            for number, scale in enumerate(case.scales):
                stack.enter_context(
                    self._adapter.use(
                        self._prompt(1 + number, gen),
                        scale=scale,
                        guidance="positive" if separate else "negative-positive",
                        mask=_mask() if case.masked else None,
                    )
                )
            return self._calls.run(denoiser, tensors)

    def _prompt(self, references: int, gen: torch.Generator) -> ImagePrompt:
        """Random tokens of so many pictures, side by side."""
        spec = self._adapter.spec
        count, width = (spec.tokens or TOKENS) * references, spec.cross_attention_dim
        tokens, null = torch.randn(2, 1, count, width, generator=gen)
        return ImagePrompt(tokens, null)

    def _tensors(self, case: Case, sides: int, gen: torch.Generator) -> dict[str, Tensor]:
        side = unit(self._calls)
        height, width = case.height * side, case.width * side
        sizes = {"batch": sides, "text": case.text, "height": height, "width": width}
        sizes["rows"] = height * width
        for level in range(1, 8):
            sizes |= {f"height_{level}": height >> level, f"width_{level}": width >> level}
        made: dict[str, Tensor] = {}
        for one in self._calls.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in one.shape]
            made[one.name] = torch.randn(shape, generator=gen)
        first = self._calls.inputs[0].name
        made[first] = made[first][:1].repeat(sides, *[1] * (made[first].ndim - 1))
        time = _TIMES.get(self._calls.kind.__name__, 0.7)
        made["timestep"] = torch.full((sides,), time)
        if "img_ids" in made:
            made["img_ids"] = _grid(height, width)
            made["txt_ids"] = torch.zeros_like(made["txt_ids"])
        if "time_ids" in made:
            rows = [[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width]]
            made["time_ids"] = torch.tensor(rows * sides)
        return made


def _of_one_size(sizes: Mapping[str, int], side: int) -> tuple[Case, ...]:
    height, width = sizes["height"] // side, sizes["width"] // side
    return tuple(
        Case(
            height,
            width,
            sizes["text"],
            scales,
            masked=scales > (0.5,),
            same_as=0 if scales == (0.0,) else None,
        )
        for scales in _SCALES
    )


def _grid(height: int, width: int) -> Tensor:
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)
    return ids.reshape(-1, 3)


def _mask() -> Any:
    """The left half."""
    import numpy

    mask = numpy.zeros((8, 8), numpy.float32)
    mask[:, :4] = 1
    return mask


def outputs_of(module: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What a part computes in PyTorch."""
    with torch.no_grad():
        made = module(*tensors)
    return [made] if isinstance(made, Tensor) else list(made)


def checked(name: str, made: Sequence[Tensor], expected: Sequence[Tensor], precision: str) -> float:
    """The largest difference of a part, over its largest value if that is above 1.

    Raises OptionError above the tolerance.
    """
    worst = 0.0
    for one, other in zip(made, expected, strict=True):
        largest = max(1.0, float(other.abs().max()))
        worst = max(worst, float((one.float() - other.float()).abs().max()) / largest)
    if not worst <= TOLERANCES[precision]:
        raise OptionError(
            f"export of the {name}",
            reason=f"it differs from eager by {worst:.2g}; {TOLERANCES[precision]:g} is allowed",
            hint="Nothing was written. Export to another backend, or in float32.",
        )
    return worst
