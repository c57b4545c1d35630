"""An adapter's LoRA on a denoiser: live beside its linear maps, or merged into their weights.

Either acts only while the adapter is in use and leaves no trace. LoRA that the user has loaded
stays what it is, in whichever order the two come and go: both ways reach below the wrappers that
peft puts round a linear map.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from imageprompt.adapter.weights import Lora
from imageprompt.attention.state import AttentionState
from imageprompt.core.errors import AttachError, OptionError
from imageprompt.core.fingerprint import versions

Mode = Literal["live", "merged"]
"""How LoRA acts: "live" adds its product to what a linear map returns; "merged" adds it to the
weights, which costs memory (the weights are kept) and a moment when the strength changes, and then
nothing a step."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Pairs = list[tuple[nn.Module, Lora]]


class ActingLora(Protocol):
    """An adapter's LoRA on the denoiser it is attached to."""

    def update(self) -> None:
        """Act as strongly as the adapter's prompts in use ask for."""

    def remove(self) -> None:
        """Leave, exactly."""


def pairs_of(
    loras: Mapping[str, Mapping[str, Lora]], linears: Mapping[str, Mapping[str, nn.Module]]
) -> Pairs:
    """The linear maps and their LoRA; both by file id, then by kind: q, k, v, out."""
    return [
        (_innermost(linears[i][kind]), lora)
        for i, layer in loras.items()
        for kind, lora in layer.items()
    ]


_NONE = "this adapter has no LoRA"


def check_mode(mode: str, pairs: Pairs, denoiser: nn.Module) -> None:
    """Raises OptionError for what is no mode or has no LoRA, AttachError where merging would not be
    exact."""
    known = mode in ("live", "merged")
    if not known or (mode == "merged" and not pairs):
        rule = _NONE if known else "it is 'live' or 'merged'"
        raise OptionError(f"lora={mode!r}", reason=rule, hint="Leave it out.")
    if mode == "merged":
        _check_mergeable(pairs, denoiser)


def check_strength(strength: float, loras: object) -> None:
    """Raises OptionError for a strength that has no LoRA to act on."""
    if strength != 1 and not loras:
        raise OptionError(f"lora={strength:g}", reason=_NONE, hint="Leave it out.")


def _check_mergeable(pairs: Pairs, denoiser: nn.Module) -> None:
    reason = next((why for linear, lora in pairs if (why := _unmergeable(linear, lora))), "")
    if reason or _streamed(denoiser):
        raise AttachError(
            "lora='merged' on this denoiser",
            reason=f"a LoRA cannot be merged into weights that are "
            f"{reason or 'offloaded or cast as they are needed'}",
            hint="Use lora='live'.",
        )


def act(
    mode: Mode, state: AttentionState, owner: object, pairs: Pairs, denoiser: nn.Module
) -> ActingLora:
    """The LoRA of an adapter, acting from now on while `owner` is in use."""
    if mode == "live":
        return LiveLora(state, owner, pairs)
    return MergedLora(state, owner, pairs, denoiser)


class LiveLora:
    """Adds strength x LoRA(x) to the linear maps' outputs: no weight of the base changes."""

    def __init__(self, state: AttentionState, owner: object, pairs: Pairs) -> None:
        self._carrier, self._owner = state, owner
        self._handles = [
            linear.register_forward_hook(partial(self._add, lora)) for linear, lora in pairs
        ]

    def update(self) -> None:
        """The hooks ask for the strength themselves."""

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, lora: Lora, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        strength = self._carrier.strength(self._owner)
        if strength is None:
            return None
        return torch.addcmul(out, lora(args[0]), strength.to(out.dtype))


class MergedLora:
    """Writes W + strength x up @ down into the weights while `owner` is in use, and W back after.

    Before every call of the denoiser the weights are brought to the strength of that moment: at
    strength or scale 0, and outside `use()`, they are the base's own bits.
    """

    def __init__(
        self, state: AttentionState, owner: object, pairs: Pairs, denoiser: nn.Module
    ) -> None:
        self._carrier, self._owner, self._pairs = state, owner, pairs
        self._denoiser = weakref.ref(denoiser)
        self._seen: tuple[Tensor | None, object] = (None, ())
        self._strength = 0.0
        self._hook = denoiser.register_forward_pre_hook(self._before)

    def _before(self, *_: object) -> None:
        if torch.compiler.is_compiling():
            from imageprompt.attention.graph_break import outside

            outside(self.update)
        else:
            self.update()

    def update(self) -> None:
        strength = self._carrier.strength(self._owner)
        version = () if strength is None else versions([strength])
        if self._seen[0] is not strength or self._seen[1] != version:
            self._seen = (strength, version)  # reading the number would wait for the device
            self._write(0.0 if strength is None else float(strength))

    def remove(self) -> None:
        self._hook.remove()
        self._write(0.0)

    def _write(self, strength: float) -> None:
        if strength == self._strength:
            return
        denoiser = self._denoiser()
        if strength and denoiser is not None:  # it may have been offloaded since
            _check_mergeable(self._pairs, denoiser)
        self._strength = strength
        with torch.no_grad():
            changed = [
                _merged.setdefault(linear, _Merged(linear)).add(self, strength, lora)
                for linear, lora in self._pairs
            ]
        if any(changed):
            warnings.warn(
                f"{sum(changed)} weights were changed while a LoRA was merged into them (by fusing "
                "another?): the change is kept, but for rounding",
                stacklevel=2,
            )


class _Merged:
    """The weight of a linear map that adapters have added to: its own bits, and what was added."""

    def __init__(self, linear: Any) -> None:
        self._linear = weakref.ref(linear)
        self._own: Tensor | None = None  # while nothing is added there is no copy
        self._written = 0
        self._added: dict[int, tuple[float, Lora]] = {}

    def add(self, owner: object, strength: float, lora: Lora) -> bool:
        """Write the weight with this LoRA of `owner`, with none at strength 0.

        Returns whether somebody else had changed the weight meanwhile; then that is kept too.
        """
        linear: Any = self._linear()
        weight: Tensor = linear.weight
        own = weight.clone() if self._own is None else self._own.to(weight.device, weight.dtype)
        kept = self._own is not None and self._own.dtype == weight.dtype  # else all was cast
        changed = kept and _bits(weight) != self._written
        if changed:
            own += (weight.float() - self._sum(own).float()).to(own.dtype)
        self._added.pop(id(owner), None)
        if strength:
            self._added[id(owner)] = (strength, lora)
        weight.copy_(self._sum(own))
        self._own = own if self._added else None
        self._written = _bits(weight)
        return changed

    def _sum(self, own: Tensor) -> Tensor:
        """own + every strength x up @ down, added up in float32 and rounded once."""
        if not self._added:
            return own
        wide = torch.promote_types(own.dtype, torch.float32)
        total = own.to(wide)
        for strength, lora in self._added.values():
            down, up = (part.weight.to(own.device, wide) for part in (lora.down, lora.up))
            total = total.addmm(up, down, alpha=strength)
        return total.to(own.dtype)


_merged: weakref.WeakKeyDictionary[nn.Module, _Merged] = weakref.WeakKeyDictionary()
"""One of each linear map, whichever adapters add to it."""


def _innermost(linear: Any) -> nn.Module:
    """The base's own linear map, below the wrappers of peft; those may come and go."""
    while isinstance(inner := getattr(linear, "base_layer", None), nn.Module):
        linear = inner
    return linear  # type: ignore[no-any-return]


def _unmergeable(linear: Any, lora: Lora) -> str:
    """What the weights of a linear map are, if LoRA cannot be merged into them; else ""."""
    weight = linear._parameters.get("weight")
    if weight is None or type(linear) is not nn.Linear or type(weight) is not nn.Parameter:
        return f"quantised or computed ({type(linear).__name__})"
    if weight.device.type == "meta":
        return "offloaded piece by piece"
    if weight.dtype not in FLOATS or type(weight.data) is not Tensor:
        return f"quantised ({weight.dtype})"
    if any(parameter.requires_grad for parameter in lora.parameters()):
        return "to be trained with it"
    return ""


def _streamed(denoiser: nn.Module) -> bool:
    """Do diffusers' hooks bring the weights in, or cast them, for each call anew?"""
    hooks = (getattr(module, "_diffusers_hook", None) for module in denoiser.modules())
    names = ("group_offloading", "lazy_prefetch_group_offloading", "layerwise_casting")
    return any(hook is not None and hook.hooks.keys() & {*names} for hook in hooks)


def _bits(weight: Tensor) -> int:
    """Tells two weights apart, by the sum of their bits."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(weight.detach().view(whole).sum())
