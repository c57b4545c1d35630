"""The LoRA of an adapter on a denoiser: live beside its layers, or merged into their weights.

Both act only while the adapter is in use and leave no trace. LoRA that the user has loaded is not
touched, in whichever order the two come and go: both modes reach below the wrappers that peft puts
around a linear layer.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from imageprompt.adapter.weights import Lora
from imageprompt.attention.compiled import Hook, eager_hook
from imageprompt.attention.state import AttentionState
from imageprompt.core.errors import AttachError
from imageprompt.core.fingerprint import versions

LoraMode = Literal["live", "merged"]
"""How LoRA acts. "live" adds its product to the output of a linear layer. "merged" adds it to the
weights: this costs memory (the original weights are kept) and time when the strength changes, but
nothing per step."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Pairs = list[tuple[nn.Module, Lora]]
"""Linear layers, each with its LoRA."""


class InstalledLora(Protocol):
    """An adapter's LoRA on the denoiser it is attached to."""

    def update(self) -> None:
        """Take on the strength that the adapter's active prompts ask for."""

    def remove(self) -> None:
        """Undo the installation, exactly."""


def pair_with_layers(
    loras: Mapping[str, Mapping[str, Lora]],
    linears: Mapping[str, Mapping[str, nn.Module]],
    mode: LoraMode,
    denoiser: nn.Module,
) -> Pairs:
    """Each linear layer with its LoRA; both mappings are by file id, then by kind (q, k, v, out).

    Changes nothing. Raises AttachError where merging would not be exact.
    """
    pairs = [
        (_innermost(linears[file_id][kind]), lora)
        for file_id, kinds in loras.items()
        for kind, lora in kinds.items()
    ]
    if mode == "merged":
        _check_mergeable(pairs, denoiser)
    return pairs


def install_lora(
    mode: LoraMode, state: AttentionState, owner: object, pairs: Pairs, denoiser: nn.Module
) -> InstalledLora:
    """Install the LoRA of an adapter; it acts while `owner` is in use."""
    if mode == "live":
        return LiveLora(state, owner, pairs)
    return MergedLora(state, owner, pairs, denoiser)


# ── live ────────────────────────────────────────────────────────────────────────────────────────


class LiveLora:
    """Adds strength x LoRA(x) to the output of linear layers: no weight of the base changes."""

    def __init__(self, state: AttentionState, owner: object, pairs: Pairs) -> None:
        self._state, self.owner, self._pairs = state, owner, pairs
        self.strength: Tensor | None = None
        """What compiled graphs read; set before each call."""
        state.strength_readers = [*state.strength_readers, self]
        self._handles = [
            linear.register_forward_hook(Hook(partial(self._add, lora))) for linear, lora in pairs
        ]

    def update(self) -> None:
        """The hooks read the strength at every call; only copies of the weights may be stale."""
        for _, lora in self._pairs:
            lora.forget()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        readers = self._state.strength_readers
        self._state.strength_readers = [one for one in readers if one is not self]
        self.update()

    def _add(self, lora: Lora, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if torch.compiler.is_compiling():
            strength = self.strength
        else:
            strength = self._state.lora_strength(self.owner)
        if strength is None:
            return None
        return torch.addcmul(out, lora(args[0]), strength.to(out.device, out.dtype))


# ── merged ──────────────────────────────────────────────────────────────────────────────────────


class MergedLora:
    """Writes W + strength x up @ down into the weights while `owner` is in use, and W back after.

    Before every call of the denoiser the weights are brought to the current strength. At strength
    or scale 0, and outside `use()`, they are the base's own, bit for bit. An exception or an
    interrupt while they are written puts every one of them back.
    """

    def __init__(
        self, state: AttentionState, owner: object, pairs: Pairs, denoiser: nn.Module
    ) -> None:
        self._state, self._owner, self._pairs = state, owner, pairs
        self._denoiser = weakref.ref(denoiser)
        self._last: tuple[Tensor | None, object] | None = (None, ())  # None while they are written
        self._strength: float | None = 0.0  # of every weight; None while they are written
        hook = eager_hook(self._before_forward, check=self._check_copy)
        self._hook = denoiser.register_forward_pre_hook(hook)

    def _before_forward(self, *_: object) -> None:
        self.update()

    def _check_copy(self) -> None:
        if self._strength != 0:
            raise AttachError(
                "a copy of this denoiser",
                reason="a LoRA is merged into its weights while an image prompt is in use, so the "
                "copy would keep it",
                hint="Copy or save it outside use(), or attach with lora='live'.",
            )

    def update(self) -> None:
        strength = self._state.lora_strength(self._owner)
        version = () if strength is None else versions([strength])
        last = (strength, version)
        known = self._last
        if known is None or known[0] is not strength or known[1] != version:
            self._last = None
            # reading the number waits for the device
            self._write(0.0 if strength is None else float(strength))
            self._last = last

    def remove(self) -> None:
        self._hook.remove()
        self._write(0.0)

    def _write(self, strength: float) -> None:
        if strength == self._strength:
            return
        denoiser = self._denoiser()
        if strength and denoiser is not None:  # it may have been offloaded since attach()
            _check_mergeable(self._pairs, denoiser)
        self._strength = None
        try:
            changed = self._write_all(strength)
        except BaseException:
            self._write_all(0.0)  # if this is interrupted too, the next update() does it
            self._strength = 0.0
            raise
        self._strength = strength
        if any(changed):
            warnings.warn(
                f"{sum(changed)} weights were changed while a LoRA was merged into them (by fusing "
                "another?): the change is kept, up to rounding",
                stacklevel=2,
            )

    def _write_all(self, strength: float) -> list[bool]:
        with torch.no_grad():
            return [
                _merged.setdefault(linear, _MergedWeight(linear)).write(self, strength, lora)
                for linear, lora in self._pairs
            ]


class _Merged(NamedTuple):
    """What the weight of a layer holds: its own bits, what was added, and the sum's bits."""

    original: Tensor
    added: dict[int, tuple[float, Lora]]
    bit_sum: int | None
    """None while the weight is written: its content is then unknown."""


class _MergedWeight:
    """The weight of one linear layer: its original bits, and the LoRA that was added to it.

    The original is kept from before the first write until after the last, and what is known of the
    weight changes in one step: an interrupt at any point leaves enough to restore it.
    """

    def __init__(self, linear: Any) -> None:
        self._linear = weakref.ref(linear)
        self._now: _Merged | None = None  # no copy while nothing is added

    def write(self, owner: object, strength: float, lora: Lora) -> bool:
        """Write the weight with `owner`'s LoRA at this strength; 0 removes it.

        Returns whether the weight had been changed from outside meanwhile; that change is kept.
        """
        linear: Any = self._linear()
        weight: Tensor = linear.weight
        now = self._now
        if now is None and not strength:
            return False
        changed = False
        if now is None:
            original, added = weight.clone(), dict[int, tuple[float, Lora]]()
        else:
            original, added = now.original.to(weight.device, weight.dtype), dict(now.added)
            changed = (
                now.bit_sum is not None
                and now.original.dtype == weight.dtype
                and _bit_sum(weight) != now.bit_sum
            )
            if changed:
                difference = weight.float() - _sum(original, now.added).float()
                original = original + difference.to(original.dtype)
        before = dict(added)
        added.pop(id(owner), None)
        if strength:
            added[id(owner)] = (strength, lora)
        total = _sum(original, added)
        self._now = _Merged(original, before, None)
        weight.copy_(total)
        self._now = _Merged(original, added, _bit_sum(weight)) if added else None
        return changed


def _sum(original: Tensor, added: Mapping[int, tuple[float, Lora]]) -> Tensor:
    """original + every strength x up @ down, summed in float32 or wider and rounded once."""
    if not added:
        return original
    wide = torch.promote_types(original.dtype, torch.float32)
    total = original.to(wide)
    for strength, lora in added.values():
        down, up = (part.weight.to(original.device, wide) for part in (lora.down, lora.up))
        total = total.addmm(up, down, alpha=strength)
    return total.to(original.dtype)


_merged: weakref.WeakKeyDictionary[nn.Module, _MergedWeight] = weakref.WeakKeyDictionary()
"""One per linear layer, whichever adapters add to it."""


def _innermost(linear: Any) -> nn.Module:
    """The base's own linear layer, below any wrappers of peft."""
    while isinstance(inner := getattr(linear, "base_layer", None), nn.Module):
        linear = inner
    return linear  # type: ignore[no-any-return]


def _check_mergeable(pairs: Pairs, denoiser: nn.Module) -> None:
    problem = next((why for linear, lora in pairs if (why := _why_unmergeable(linear, lora))), "")
    if problem or _streams_weights(denoiser):
        raise AttachError(
            "lora='merged' on this denoiser",
            reason=f"LoRA cannot be merged into weights that are "
            f"{problem or 'offloaded or cast at each call'}",
            hint="Use lora='live'.",
        )


def _why_unmergeable(linear: Any, lora: Lora) -> str:
    """Why LoRA cannot be merged into the weight of this layer; "" if it can."""
    weight = linear._parameters.get("weight")
    if weight is None or type(linear) is not nn.Linear or type(weight) is not nn.Parameter:
        return f"quantised or computed ({type(linear).__name__})"
    if weight.device.type == "meta":
        return "offloaded layer by layer"
    if weight.dtype not in FLOATS or type(weight.data) is not Tensor:
        return f"quantised ({weight.dtype})"
    if any(parameter.requires_grad for parameter in lora.parameters()):
        return "trained together with it"
    return ""


def _streams_weights(denoiser: nn.Module) -> bool:
    """Do hooks of diffusers load or cast the weights for every call?"""
    registries = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    names = {"group_offloading", "lazy_prefetch_group_offloading", "layerwise_casting"}
    return any(registry is not None and registry.hooks.keys() & names for registry in registries)


def _bit_sum(weight: Tensor) -> int:
    """Sum of the bits of a weight, to notice that it was changed."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(weight.detach().view(integer).sum())
