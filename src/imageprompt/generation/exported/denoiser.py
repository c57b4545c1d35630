"""A denoiser that a runtime computes: it stands in the place of a pipeline's UNet or transformer.

It is of the base's own class, so hosts, adapters and pipelines know it, but its weights take no
memory: nothing reads them. Adapters attach to it as to any other; their K', V', scales and masks
become inputs of the graph.

Shapes: B batch, R image prompts in use, H heads, N image tokens, D head width, Q query positions,
S places where image terms are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imageprompt.adapter.attachment import EXPORTED, state_of
from imageprompt.attention.active_prompt import ExportedRows
from imageprompt.core.errors import AttachError, OptionError
from imageprompt.generation.exported.calls import calls_of
from imageprompt.generation.exported.manifest import DENOISER
from imageprompt.hosts import host_of

if TYPE_CHECKING:
    from imageprompt.generation.exported.manifest import Manifest, Reader
    from imageprompt.generation.runtimes import Graph

MOST_REPEATS = 64
"""How often the tokens of a prompt may be repeated to match those of another."""
LEAST_TOKENS = 2
"""After a call with one token OpenVINO 2026.4 computes later calls of other sizes wrongly."""


def stand_in(kind: Any, config: Mapping[str, Any], manifest: Manifest, graph: Graph) -> nn.Module:
    """A denoiser of class `kind` whose calls `graph` computes."""
    with torch.device("meta"):
        denoiser: nn.Module = kind.from_config(dict(config))
    without_weights(denoiser)
    exported = _Exported(denoiser, manifest, graph)
    setattr(denoiser, EXPORTED, exported)
    denoiser.forward = exported.forward
    return denoiser


def without_weights(model: nn.Module) -> None:
    """Give a model on the meta device weights on the CPU that take no memory."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                zeros = _weightless(weight)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _weightless(buffer)
    model.eval()


def _weightless(tensor: Tensor) -> Tensor:
    """A tensor of that shape that takes the memory of one number."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.zeros((), dtype=dtype).expand(tensor.shape)


class _Exported:
    """The forward of a stand-in."""

    def __init__(self, denoiser: nn.Module, manifest: Manifest, graph: Graph) -> None:
        self._denoiser, self._graph = denoiser, graph
        self._calls = calls_of(denoiser, controlnet=manifest.controlnet)
        self._readers = manifest.readers
        shapes = [port.shape for port in manifest.parts[DENOISER].inputs if port.name == "key_0"]
        stated = shapes[0][3] if shapes and len(shapes[0]) == 5 else None
        self._tokens = stated if isinstance(stated, int) else None
        """Those of each prompt, in a graph for one number of them."""
        self._levels = sorted({reader.level for reader in manifest.readers})
        self._sites = host_of(denoiser).describe(denoiser).sites
        self._processors = [
            (name, module, type(module.processor))
            for name, module in denoiser.named_modules()
            if hasattr(module, "processor")
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's own arguments and result. Raises OptionError, AttachError."""
        self._check_untouched()
        tensors = self._calls.read(args, kwargs)
        tensors |= self._prompts(tensors, args, kwargs)
        made = self._graph(tensors)[0]
        return self._calls.output(made, kwargs)

    # ── image prompts ───────────────────────────────────────────────────────────────────────────

    def _prompts(
        self, call: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Scales, masks, K' and V' of the prompts in use; those of none add nothing."""
        state = state_of(self._denoiser)
        prompts = [] if state is None else state.active
        if state is None or not prompts:
            return self._nothing(call)
        if any(one.adds_lora for one in prompts) and state.strength_readers:
            raise OptionError(
                "an adapter with LoRA on an exported base",
                reason="LoRA changes weights, which the graph has inside",
                hint="Use an adapter without LoRA, or generate without --runtime.",
            )
        told = state.read(args, dict(kwargs))
        if told.references:
            raise OptionError(
                "pictures to edit on an exported base",
                reason="its graph reads the rows of one picture",
                hint="Generate without --runtime.",
            )
        size = told.size if 0 not in told.size else (1, next(iter(call.values())).shape[1])
        numbers = self._numbers(state.readers)
        return self._inputs(
            [self._checked(one.exported(state.levels, size), numbers) for one in prompts], numbers
        )

    def _numbers(self, readers: Sequence[Any]) -> list[int]:
        """For every reader of the graph the number of it among those of the state."""
        known = {
            (self._sites[one.site].name, one.entry): number
            for number, one in enumerate(readers)
            if one.site < len(self._sites)
        }
        wanted = [(reader.site, reader.entry) for reader in self._readers]
        if missing := [site for site, entry in wanted if (site, entry) not in known]:
            raise AttachError(
                f"an exported graph with {len(wanted)} sites",
                reason=f"this base has {len(self._sites)}, and lacks {missing[0]}",
                hint="Export this base.",
            )
        return [known[one] for one in wanted]

    def _checked(self, rows: ExportedRows, numbers: Sequence[int]) -> ExportedRows:
        """Raises AttachError for an adapter that acts where the graph adds nothing."""
        acts = {number for number, site in enumerate(rows.sites) if site is not None}
        if rows.has_norms or not acts <= set(numbers):
            raise AttachError(
                f"this adapter on an exported graph with {len(numbers)} sites",
                reason=f"it acts at {len(acts)} places, {len(acts - set(numbers))} of which the "
                "graph lacks",
                hint="Export the base with this adapter.",
            )
        return rows

    def _inputs(self, prompts: Sequence[ExportedRows], numbers: Sequence[int]) -> dict[str, Tensor]:
        least = max(LEAST_TOKENS, math.lcm(*(_tokens(one) for one in prompts)))
        tokens = self._tokens or least
        if tokens % least:
            raise OptionError(
                f"references with {' and '.join(str(_tokens(one)) for one in prompts)} tokens",
                reason=f"the graph reads {tokens} of each",
                hint="Use one picture a reference, or export to openvino, which reads any number.",
            )
        if any(tokens > MOST_REPEATS * _tokens(one) for one in prompts):
            raise OptionError(
                f"references with {' and '.join(str(_tokens(one)) for one in prompts)} tokens",
                reason="the graph reads as many tokens of each, and these have no small multiple",
                hint="Use the same number of pictures, or adapters with as many tokens.",
            )
        found: dict[str, Tensor] = {}
        scales = []
        for place, number in enumerate(numbers):
            terms = [_term(one, number, self._readers[place]) for one in prompts]
            # repeated tokens draw the attention of one: the sum of their weights is the same
            for i, kind in enumerate(("key", "value")):
                rows = [term[i].repeat(1, 1, tokens // term[i].shape[2], 1) for term in terms]
                found[f"{kind}_{place}"] = torch.stack(rows, dim=1).float()
            scales.append(torch.stack([term[2] for term in terms], dim=1))
        found["scales"] = torch.stack(scales)
        for level in self._levels:
            masks = [one.masks[level] for one in prompts]
            found[f"mask_{level}"] = torch.stack(masks, dim=1)
        return found

    def _nothing(self, call: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = {
            axis: size
            for one in self._calls.inputs
            for axis, size in zip(one.shape, call[one.name].shape, strict=True)
            if isinstance(axis, str)
        }
        batch = sizes["batch"]
        found = {"scales": torch.zeros(len(self._readers), batch, 1)}
        for level in self._levels:
            found[f"mask_{level}"] = torch.ones(batch, 1, self._calls.positions(sizes, level))
        for place, reader in enumerate(self._readers):
            tokens = self._tokens or LEAST_TOKENS
            zeros = torch.zeros(batch, 1, reader.heads, tokens, reader.head_dim)
            found |= {f"key_{place}": zeros, f"value_{place}": zeros}
        return found

    # ── what a graph cannot do ──────────────────────────────────────────────────────────────────

    def _check_untouched(self) -> None:
        """Raises OptionError for what was set on the denoiser, and would have no effect."""
        from imageprompt.hosts._unet_processor import SiteProcessor

        if getattr(self._denoiser, "peft_config", None):
            raise _unknown("LoRA that was loaded into it", "pipe.unload_lora_weights()")
        if getattr(self._denoiser, "is_cache_enabled", False):
            raise _unknown("a step cache", "disable_cache() of the denoiser")
        for name, module, kind in self._processors:
            now = type(module.processor)
            if now is not kind and now is not SiteProcessor:
                raise _unknown(f"the attention processor {now.__name__} at {name}", "remove it")
        for block in getattr(self._denoiser, "up_blocks", ()):
            if getattr(block, "s1", None) is not None:
                raise _unknown("FreeU", "pipe.disable_freeu()")


def _unknown(what: str, remedy: str) -> OptionError:
    return OptionError(
        f"{what} on an exported base",
        reason="its graph was made without, so it would have no effect",
        hint=f"Undo it ({remedy}), or generate without --runtime.",
    )


def _tokens(rows: ExportedRows) -> int:
    return next(int(site[0].shape[2]) for site in rows.sites if site is not None)


def _term(rows: ExportedRows, number: int, reader: Reader) -> tuple[Tensor, Tensor, Tensor]:
    """K', V' and scales of a prompt at a place; zeros where its adapter has no part."""
    term = rows.sites[number]
    if term is not None:
        return term
    like = next(site for site in rows.sites if site is not None)
    batch, _, tokens, _ = like[0].shape
    zeros = torch.zeros(batch, reader.heads, tokens, reader.head_dim)
    return zeros, zeros, torch.zeros(batch)
