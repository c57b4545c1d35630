"""One image prompt in use on a denoiser: what each of its sites is to add at the present step.

Everything asked for was compiled to numbers before; here they meet K', V' and the batch.
Shapes: P prompts, B batch, H heads, Q query positions, N image tokens, D head width, S sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from imageprompt.attention.batched_kv import BatchedKV
from imageprompt.attention.cfg_layout import CFGLayout
from imageprompt.attention.decoupled import ImageTerm, KeyValue, scaled_pair
from imageprompt.attention.step_tracker import StepPosition
from imageprompt.control import Controls, Scale
from imageprompt.control.scale_table import ScaleTable, compile_scales, penalties
from imageprompt.core.errors import GuidanceError
from imageprompt.core.spec import Site

_versions = count(1)


class ActivePrompt:
    """One image prompt in use: K', V' and masks (see `BatchedKV`), and live controls.

    `timesteps` are those of the loop, where its calls do not tell.
    """

    def __init__(
        self,
        owner: object,
        sites: Sequence[Site],
        pairs: Sequence[KeyValue],
        *,
        prompts: int,
        controls: Controls,
        branches: CFGLayout | None = None,
        masks: Sequence[Tensor] = (),
        timesteps: Sequence[float] | None = None,
    ) -> None:
        self.owner = owner
        self.prompts = prompts
        self.branches = branches
        self.timesteps = timesteps
        self._sites = sites
        self._batch = BatchedKV(pairs, prompts, masks)
        self._step, self._steps = 0, 1
        self._negative_seen = False
        self._scaled: dict[int, tuple[float, KeyValue]]
        device = pairs[0][0].device
        self._rows, self._gates = (torch.zeros(1, len(sites), device=device) for _ in range(2))
        self._full = torch.zeros((), device=device)
        self._none = torch.zeros((), device=device)
        self._version = 0  # of the controls; one of its own for every use
        self._follow(controls)

    # ── what is asked for, live ─────────────────────────────────────────────────────────────────

    @property
    def controls(self) -> Controls:
        """All that is asked for. Live: others take effect at the next call of the denoiser."""
        return self._controls

    @controls.setter
    def controls(self, controls: Controls) -> None:
        self._follow(Controls.of(controls))

    @property
    def scale(self) -> Scale:
        """The scale: a number 0..2, or any notation of numbers by site. Live."""
        return self._controls.scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        self._follow(replace(self._controls, scale=scale))

    @property
    def lora(self) -> float:
        """How strongly the adapter's LoRA acts, where it has any: a number 0..2. Live.

        It does not act where the scale is 0 at every site: that is the base alone.
        """
        return self._controls.lora

    @lora.setter
    def lora(self, lora: float) -> None:
        self._follow(replace(self._controls, lora=lora))

    @property
    def is_timed(self) -> bool:
        """Does it matter which step a call is?"""
        schedule = self._controls.schedule
        return schedule is not None and not schedule.is_constant

    def _follow(self, controls: Controls, steps: int | None = None) -> None:
        """Compile controls, for a loop of so many steps if told; nothing changes if they are
        wrong."""
        compiled = compile_scales(controls, self._sites, steps or self._steps)
        self._controls, self._table, self._scaled = controls, compiled, {}
        if steps is not None:
            self._steps, self._step = steps, 0
        rows = _penalised(compiled, penalties(controls, self._sites))
        self._rows = _written(self._rows, rows)
        self._gates = _written(self._gates, [[float(x != 0) for x in row] for row in rows])
        self._full = _written(self._full, controls.lora)
        self._version = next(_versions)
        self._enter(self._step)

    # ── when ────────────────────────────────────────────────────────────────────────────────────

    def at(self, moment: StepPosition) -> None:
        """Be at a step of a loop; its table is made once."""
        if moment.steps != self._steps:
            self._follow(self._controls, moment.steps)
            schedule = self._controls.schedule
            if schedule is not None and not any(schedule.factors(self._steps)):
                warnings.warn(
                    f"{schedule!r} is 0 at each of the {self._steps} steps: the reference does "
                    "nothing",
                    stacklevel=2,
                )
        if moment.step != self._step:
            self._enter(moment.step)

    def _enter(self, step: int) -> None:
        """Rows of tables are views, and numbers come from a list: a step costs no operation."""
        self._step = step
        self._values = self._table.values[step]
        self._row, self._gate = self._rows[step], self._gates[step]
        self._acts = any(self._values)
        self.strength = self._full if self._acts else self._none
        """LoRA's strength at this step, a tensor: changing it recompiles nothing."""

    @property
    def contribution(self) -> tuple[Any, ...]:
        """Equal between two calls if this adds the same to both, for the same queries."""
        return (self._version, self._values, self._batch.layout)

    @property
    def adds_lora(self) -> bool:
        """Does LoRA act? Inside a compiled graph that is left to its strength."""
        return torch.compiler.is_compiling() or (self._controls.lora != 0 and self._acts)

    # ── for which batch ─────────────────────────────────────────────────────────────────────────

    def bind(self, branches: CFGLayout, copies: int, like: Tensor) -> None:
        """Be ready for a batch of latents `like`: `copies` rows of each prompt in each branch."""
        if self._batch.bind(branches, copies, like, self._table.on_negative):
            self._scaled = {}
            self._to(like.device)
            if "negative" in branches:
                self._negative_seen = True

    def _to(self, device: torch.device) -> None:
        if self._rows.device != device:
            self._rows, self._gates = self._rows.to(device), self._gates.to(device)
            self._full, self._none = self._full.to(device), self._none.to(device)
            self._enter(self._step)

    def close(self) -> None:
        """Say what came to nothing, once."""
        if any(self._table.on_negative) and self._batch.layout and not self._negative_seen:
            warnings.warn(
                f"preset {self._controls.preset!r} shows a part to the negative rows of guidance, "
                "and no call had one: those sites stayed as they were",
                stacklevel=4,
            )

    # ── at a site ───────────────────────────────────────────────────────────────────────────────

    def term(self, index: int, q: Tensor) -> ImageTerm | None:
        """The image term of site `index` for queries [B * frames, H, Q, D]; None where it is off.

        A scale of exactly 0 switches the site off, except inside a compiled graph: there the value
        stays a tensor, so that changing it costs no recompilation.
        """
        if not self._table.included[index] or self._is_pushed_nowhere(index):
            return None
        if not torch.compiler.is_compiling() and self._values[index] == 0.0:
            return None
        key, value = self._scaled_pair(index)
        rows = int(key.shape[0])
        frames, rest = divmod(int(q.shape[0]), rows)
        if rest:
            raise GuidanceError(
                f"{q.shape[0]} rows at a site of a call with {rows}",
                reason="the batch was cut after the call began (FasterCache does so)",
                hint="Disable that cache while an adapter is in use.",
            )
        mask = self._batch.region(q)
        if frames > 1:  # video: the batch was flattened with its frames
            key = key.repeat_interleave(frames, dim=0)
            value = value.repeat_interleave(frames, dim=0)
            if mask is not None and mask.shape[0] > 1:
                mask = mask.repeat_interleave(frames, dim=0)
        weights = self._row if self._controls.scaling == "V only" else self._gate
        return ImageTerm(key.to(q.dtype), value.to(q.dtype), weights[index], mask)

    def _is_pushed_nowhere(self, index: int) -> bool:
        return self._table.on_negative[index] and "negative" not in self._batch.branches

    def _scaled_pair(self, index: int) -> KeyValue:
        """K' and V' as the way of scaling wants them; kept while the number stays the same."""
        pair, scaling = self._batch.pairs[index], self._controls.scaling
        if scaling == "V only":
            return pair
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return scaled_pair(*pair, self._row[index], mean=scaling.startswith("K+mean"))
        number, known = self._scaled.get(index, (-1.0, pair))
        if number != self._values[index]:
            known = scaled_pair(*pair, self._row[index], mean=scaling.startswith("K+mean"))
            self._scaled[index] = (self._values[index], known)
        return known


def _penalised(compiled: ScaleTable, penalties: Sequence[float]) -> list[list[float]]:
    return [
        [value * penalty for value, penalty in zip(row, penalties, strict=True)]
        for row in compiled.values
    ]


def _written(tensor: Tensor, numbers: object) -> Tensor:
    """`numbers` ([n, S], or one) in `tensor`; in a new one where their shape differs, or where
    `tensor` was made in inference mode and could not be written to outside."""
    made = torch.tensor(numbers)
    if made.shape != tensor.shape or tensor.is_inference():
        return made.to(tensor.device)
    return tensor.copy_(made)
