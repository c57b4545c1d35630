"""One image prompt in use on a denoiser: what it adds at each site at the current step.

Controls are compiled to numbers beforehand; here they meet K', V' and the batch.
Shapes: P prompts, B batch, H heads, Q query positions, N image tokens, D head width, S sites.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imageprompt.attention.batched_kv import BatchedKV
from imageprompt.attention.cfg_layout import Branch, CFGLayout, named_layout
from imageprompt.attention.compiled import Slot, level_size, new_slot
from imageprompt.attention.decoupled import ImageTerm, KeyValue, scale_key_value
from imageprompt.attention.step_tracker import StepPosition
from imageprompt.control.controls import Controls, ScaleTable, compile_scales, penalties
from imageprompt.control.scales import Scale
from imageprompt.core.errors import GuidanceError
from imageprompt.core.spec import Site

if TYPE_CHECKING:
    from imageprompt.attention.text_tokens import TextTokens

LIVE = ("scale", "lora", "controls", "guidance")
"""The attributes of a handle that may be set while it is in use."""
_FIXED = ("owner", "state", "thread", "prompts", "layout", "timesteps", "called", "unsure")

_versions = count(1)


@dataclass(frozen=True)
class ExportedRows:
    """What one image prompt adds in an exported graph."""

    sites: Sequence[tuple[Tensor, Tensor, Tensor] | None]
    """K', V' [B, H, N, D] and the scale of each row [B], for every reader; None where it has no
    part."""
    masks: Mapping[int, Tensor]
    """The mask [B, Q] of each level, of ones where there is none."""
    has_norms: bool
    """Does it also read the rows of the picture (`ImageTerm.norms`)?"""


class ActivePrompt:
    """The handle that `Adapter.use` yields: set `scale`, `lora`, `controls` or `guidance` any time.

    A new value takes effect at the next call of the denoiser. Setting any other attribute raises
    AttributeError.

    `key_values` and `masks` are those of `BatchedKV`; `layout` and `timesteps` are what the user
    stated about the loop, None where they are inferred. `places` has for every place of the
    denoiser where image terms are added the site that acts there; None: each site at its own.
    `timed` makes K', V' of a timestep [1], if they depend on it, for the positive side alone or
    with `negative=True` for both; `norms` are those of `ImageTerm`, for each site. With
    `negative_picture` a picture of its own stands on the negative side; with `positive_only`
    nothing does, and K', V' of the negative rows are never read.
    """

    def __init__(
        self,
        owner: object,
        state: object,
        sites: Sequence[Site],
        key_values: Sequence[KeyValue],
        *,
        prompts: int,
        controls: Controls,
        layout: CFGLayout | None = None,
        masks: Sequence[Tensor] = (),
        timesteps: Sequence[float] | None = None,
        places: Sequence[int | None] | None = None,
        timed: Callable[..., Sequence[KeyValue]] | None = None,
        norms: Sequence[tuple[Tensor, Tensor]] | None = None,
        negative_picture: bool = False,
        positive_only: bool = False,
    ) -> None:
        self.owner, self.state = owner, state
        self.thread = threading.get_ident()
        self.called = False  # was the denoiser called?
        self.unsure: set[int] = set()  # loops whose layout nothing has confirmed
        self.prompts = prompts
        self.layout = layout
        self.timesteps = timesteps
        self._sites = sites
        self._places = list(range(len(sites))) if places is None else list(places)
        self._timed, self._norms = timed, norms
        self._negative_picture, self._positive_only = negative_picture, positive_only
        self._negative_scales: Tensor | None = None
        self._by_row: tuple[Any, Tensor | None] = (None, None)
        self._time: tuple[object, bool] = (None, False)
        self._batch = BatchedKV(key_values, prompts, masks)
        self._step, self._steps = 0, 1
        self._negative_seen = False
        self._scaled: dict[int, tuple[float, KeyValue]]
        device = key_values[0][0].device
        self._scales, self._switches = (
            torch.zeros(1, len(sites), device=device) for _ in range(2)
        )  # [steps, S]: the scale of each site, and 1 where it is not 0
        self._lora_on = torch.zeros((), device=device)
        self._lora_off = torch.zeros((), device=device)
        self._version = 0  # of the controls, unique across all prompts
        self._compile(controls)

    def __repr__(self) -> str:
        return f"ActivePrompt({self.prompts} prompt(s), {self._controls!r})"

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in (*LIVE, *_FIXED):
            raise AttributeError(f"ActivePrompt has no attribute {name!r}. {_nearest(name)}")
        super().__setattr__(name, value)

    # ── controls, live ──────────────────────────────────────────────────────────────────────────

    @property
    def controls(self) -> Controls:
        """All controls. Live: new ones take effect at the next call of the denoiser."""
        return self._controls

    @controls.setter
    def controls(self, controls: Controls) -> None:
        self._compile(Controls.of(controls))

    @property
    def scale(self) -> Scale:
        """The scale: a number 0..2, or numbers by site in any notation of `Scale`. Live."""
        return self._controls.scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        self._compile(replace(self._controls, scale=scale))

    @property
    def lora(self) -> float:
        """The strength of the adapter's LoRA, if it has any: a number 0..2. Live.

        LoRA is off where the scale is 0 at every site: that is the base alone.
        """
        return self._controls.lora

    @lora.setter
    def lora(self, lora: float) -> None:
        self._compile(replace(self._controls, lora=lora))

    @property
    def guidance(self) -> CFGLayout | None:
        """How the next calls stack their batch, as in `Adapter.use`; None where it is inferred.

        Live: set it to "negative" and "positive" where each side of guidance has its own call.
        """
        return self.layout

    @guidance.setter
    def guidance(self, guidance: str | Sequence[Branch]) -> None:
        self.layout = named_layout(guidance)

    @property
    def is_timed(self) -> bool:
        """Does the step of a call matter?"""
        schedule = self._controls.schedule
        return schedule is not None and not schedule.is_constant

    def _compile(self, controls: Controls, steps: int | None = None) -> None:
        """Compile controls, for a loop of `steps` steps if given. Wrong controls change nothing."""
        if self._sites[0].kind == "text":
            from imageprompt.attention.text_tokens import check_controls

            check_controls(controls)
        table = compile_scales(controls, self._sites, steps or self._steps)
        if self._positive_only:
            table = replace(table, negative=((0.0,) * len(self._sites),) * len(table.values))
        self._controls, self._table, self._scaled = controls, table, {}
        if steps is not None:
            self._steps, self._step = steps, 0
        scales = _penalised(table, penalties(controls, self._sites))
        self._scales = _write(self._scales, scales)
        self._switches = _write(self._switches, [[float(x != 0) for x in row] for row in scales])
        if table.negative is not None:
            self._negative_scales = torch.tensor(table.negative, device=self._scales.device)
        self._lora_on = _write(self._lora_on, controls.lora)
        self._version = next(_versions)
        self._select_step(self._step)

    def scale_rows(self, numbers: Tensor) -> None:
        """Multiply V' of each prompt by its number [P], beside the scale; for training."""
        self._batch.scale_rows(numbers)
        self._scaled = {}

    # ── the step ────────────────────────────────────────────────────────────────────────────────

    def go_to(self, position: StepPosition) -> None:
        """Select the step of a call; the table of a loop is compiled once."""
        if position.steps != self._steps:
            self._compile(self._controls, position.steps)
            schedule = self._controls.schedule
            if schedule is not None and not any(schedule.factors(self._steps)):
                warnings.warn(
                    f"{schedule!r} is 0 at each of the {self._steps} steps: the reference "
                    "has no effect",
                    stacklevel=2,
                )
        if position.step != self._step:
            self._select_step(position.step)

    def _select_step(self, step: int) -> None:
        """Rows of tables are views and numbers come from a list, so a step costs no operation."""
        self._step = step
        self._values = self._table.values[step]
        self._scale_row, self._switch_row = self._scales[step], self._switches[step]
        self._acts = any(self._values)
        self._lora_strength = self._lora_on if self._acts else self._lora_off

    @property
    def lora_strength(self) -> Tensor:
        """The strength of LoRA at this step, as a tensor: a new value recompiles nothing."""
        return self._lora_strength

    @property
    def adds_lora(self) -> bool:
        """Does LoRA act?"""
        return self._controls.lora != 0 and self._acts

    @property
    def contribution(self) -> tuple[Any, ...]:
        """Equal for two calls if this prompt adds the same to both, given the same queries."""
        return (self._version, self._values, self._batch.key)

    def set_time(self, timestep: object, step: object, layout: CFGLayout) -> None:
        """Take on the K', V' of a timestep, where they depend on it; once in a step.

        `step` is what is known of the step, None for nothing. Null rows are made where the layout
        of the call has a negative branch.
        """
        negative = "negative" in layout
        if self._timed is None:
            return
        if step is not None and self._time in ((step, negative), (step, True)):
            return
        time = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
        self._batch.replace(self._timed(time.flatten()[:1], negative=negative))
        self._time, self._scaled = (step, negative), {}

    # ── the batch ───────────────────────────────────────────────────────────────────────────────

    def bind(
        self, layout: CFGLayout, images_per_prompt: int, like: Tensor, size: tuple[int, int]
    ) -> None:
        """Prepare for a batch of latents `like` of a size: a block per branch, `images_per_prompt`
        rows of each prompt in it."""
        if self._batch.bind(layout, images_per_prompt, like, size, self._table.on_negative):
            self._scaled = {}
            self._move_to(like.device)
            if "negative" in layout:
                self._negative_seen = True

    def _move_to(self, device: torch.device) -> None:
        if self._scales.device != device:
            self._scales, self._switches = self._scales.to(device), self._switches.to(device)
            self._lora_on, self._lora_off = self._lora_on.to(device), self._lora_off.to(device)
            if self._negative_scales is not None:
                self._negative_scales = self._negative_scales.to(device)
            self._select_step(self._step)

    def close(self) -> None:
        """Warn about what had no effect, and about what nothing has confirmed."""
        if not self.called:
            warnings.warn(
                "the denoiser of this adapter was never called inside use() (in this thread or "
                "task): the image prompt had no effect; attach the adapter to the pipeline that "
                "runs, and call it in the thread of use() or in a copy of its context",
                stacklevel=4,
            )
        if self.unsure:
            warnings.warn(
                "two equal halves of one single step were read as the two sides of guidance; pass "
                "guidance='negative-positive' (or 'none' for two pictures) to use()",
                stacklevel=4,
            )
        stated = self._controls.negative_scale is not None
        if stated and self._batch.key and not self._negative_seen:
            warnings.warn(
                f"negative_scale={self._controls.negative_scale:g} had no effect: no call had a "
                "negative side of guidance",
                stacklevel=4,
            )
        if any(self._table.on_negative) and self._batch.key and not self._negative_seen:
            warnings.warn(
                f"preset {self._controls.preset!r} shows the reference to the negative rows of "
                "guidance, but no call had any: those sites had no effect",
                stacklevel=4,
            )

    # ── at a site ───────────────────────────────────────────────────────────────────────────────

    def acts_at(self, place: int) -> bool:
        """Does the adapter add image terms at this place?"""
        return self._places[place] is not None

    def term(self, place: int, q: Tensor) -> ImageTerm | None:
        """The image term at a place for queries [B * frames, H, Q, D]; None where it is off.

        A scale of exactly 0 switches the site off.
        """
        index = self._on_at(place)
        if index is None:
            return None
        key, value = self._scaled_key_value(index)
        rows = int(key.shape[0])
        frames, rest = divmod(int(q.shape[0]), rows)
        if rest:
            raise GuidanceError(
                f"{q.shape[0]} rows at a site of a call with {rows}",
                reason="the batch was cut after the call began (FasterCache does so, and SD3's "
                "perturbed attention)",
                hint="Do without while an adapter is in use.",
            )
        mask = self._batch.mask(q)
        if frames > 1:  # video: frames are flattened into the batch
            key = key.repeat_interleave(frames, dim=0)
            value = value.repeat_interleave(frames, dim=0)
            if mask is not None and mask.shape[0] > 1:
                mask = mask.repeat_interleave(frames, dim=0)
        weight = self._weights()[index]
        if frames > 1 and weight.ndim:
            weight = weight.repeat_interleave(frames, dim=0)
        norms = None if self._norms is None else self._norms[index]
        return ImageTerm(key.to(q.dtype), value.to(q.dtype), weight, mask, norms)

    def _on_at(self, place: int) -> int | None:
        """The site that acts at a place in this call; None where nothing does."""
        index = self._places[place]
        if index is None or not self._table.included[index] or self._lacks_negative_rows(index):
            return None
        return None if self._values[index] == 0.0 or self._off_on_negative(index) else index

    def text_tokens(self, place: int, positions: int) -> TextTokens | None:
        """The tokens that follow the text there, of a picture of so many positions; None if off.

        The scale is what they count; with the scaling "K+V" it multiplies them instead.
        """
        from imageprompt.attention.text_tokens import TextTokens, branch_weights

        index = self._on_at(place)
        if index is None:
            return None
        tokens = self._scaled_key_value(index)[0][:, 0]
        rows = {"positive": self._values[index], "negative": self._values[index]}
        if self._table.negative is not None:
            rows["negative"] = self._table.negative[self._step][index]
        numbers = [rows[branch] for branch in self._batch.layout]
        if self._controls.scaling != "V only":
            numbers = [float(number != 0) for number in numbers]
        like = torch.empty(0, device=tokens.device).expand(1, 1, positions, 0)
        mask = self._batch.mask(like)
        return TextTokens(tokens, branch_weights(numbers, len(tokens), mask, tokens.device))

    def slots(self, levels: Sequence[int], latents: tuple[int, int]) -> list[Slot | None]:
        """What compiled graphs read at each place, which is at that level of the denoiser.

        A site that is off has weights of 0: so no scale, step, mask or preset is another graph.
        """
        sizes = [level_size(*latents, level) for level in range(max(levels) + 1)]
        masks = [self._batch.level_mask(size) for size in sizes]
        weights = self._weights()
        found: list[Slot | None] = []
        for index, level in zip(self._places, levels, strict=True):
            if index is None:
                found.append(None)
                continue
            on = self._table.included[index] and not self._lacks_negative_rows(index)
            weight = masks[level] * weights[index] if on else torch.zeros_like(masks[level])
            norms = None if self._norms is None else self._norms[index]
            found.append(new_slot(*self._scaled_key_value(index), weight, norms))
        return found

    def exported(self, levels: Sequence[int], latents: tuple[int, int]) -> ExportedRows:
        """What exported graphs read of it; `levels` are those of the readers, as in `slots`."""
        rows, weights = int(self._batch.rows[0][0].shape[0]), self._weights()
        zeros = torch.zeros(rows)
        sites: list[tuple[Tensor, Tensor, Tensor] | None] = []
        for index in self._places:
            if index is None:
                sites.append(None)
                continue
            on = self._table.included[index] and not self._lacks_negative_rows(index)
            scale = weights[index].float().flatten().expand(rows) if on else zeros
            sites.append((*self._scaled_key_value(index), scale))
        sizes = {level: level_size(*latents, level) for level in set(levels)}
        masks = {level: self._batch.level_mask(size)[:, 0, :, 0] for level, size in sizes.items()}
        return ExportedRows(sites, masks, self._norms is not None)

    def _weights(self) -> Tensor:
        """What image terms are multiplied by: [S], or [S, B, 1, 1, 1] where rows differ."""
        if self._controls.scaling != "V only":
            return self._switch_row
        layout = self._batch.layout
        if self._table.negative is None or "negative" not in layout:
            return self._scale_row
        key = (self._version, self._step, self._batch.key)
        if self._by_row[0] != key:
            self._by_row = (key, self._weights_by_row(layout))
        assert self._by_row[1] is not None
        return self._by_row[1]

    def _weights_by_row(self, layout: CFGLayout) -> Tensor:
        assert self._negative_scales is not None
        negative = self._negative_scales[self._step]
        if "positive" not in layout:
            return negative
        branches = [negative if branch == "negative" else self._scale_row for branch in layout]
        repeats = self._batch.rows[0][0].shape[0] // len(layout)
        by_row = torch.stack(branches, dim=1).repeat_interleave(repeats, dim=1)
        return by_row[:, :, None, None, None]

    def _off_on_negative(self, index: int) -> bool:
        """Has a call of the negative side alone nothing here?"""
        negative, layout = self._table.negative, self._batch.layout
        return negative is not None and "positive" not in layout and not negative[self._step][index]

    @property
    def needs_negative(self) -> str:
        """What of it a call without a negative side would ignore; "" for nothing."""
        if self._negative_picture:
            return "a negative picture"
        return "" if self._controls.negative_scale is None else "negative_scale"

    def _lacks_negative_rows(self, index: int) -> bool:
        return self._table.on_negative[index] and "negative" not in self._batch.layout

    def _scaled_key_value(self, index: int) -> KeyValue:
        """K' and V' as `Controls.scaling` wants them; cached while the scale stays the same."""
        key_value, scaling = self._batch.rows[index], self._controls.scaling
        if scaling == "V only":
            return key_value
        mean = scaling.startswith("K+mean")
        if torch.is_grad_enabled():
            return scale_key_value(*key_value, self._scale_row[index], mean=mean)
        number, scaled = self._scaled.get(index, (-1.0, key_value))
        if number != self._values[index]:
            scaled = scale_key_value(*key_value, self._scale_row[index], mean=mean)
            self._scaled[index] = (self._values[index], scaled)
        return scaled


def _nearest(name: str) -> str:
    if name in (item.name for item in fields(Controls)):
        return f"Set handle.controls = dataclasses.replace(handle.controls, {name}=...)."
    near = get_close_matches(name, LIVE, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Live are: {', '.join(LIVE)}."


def _penalised(table: ScaleTable, penalties: Sequence[float]) -> list[list[float]]:
    return [
        [value * penalty for value, penalty in zip(row, penalties, strict=True)]
        for row in table.values
    ]


def _write(tensor: Tensor, numbers: object) -> Tensor:
    """`numbers` ([n, S], or one) written into `tensor`.

    A new tensor is returned where their shape differs, or where `tensor` was created in inference
    mode and cannot be written to outside of it.
    """
    values = torch.tensor(numbers)
    if values.shape != tensor.shape or tensor.is_inference():
        return values.to(tensor.device)
    return tensor.copy_(values)
