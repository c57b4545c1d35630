"""The spec and the weights of an adapter: read from a file, or new ones for a base."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.compatibility import check_options, feature_dim_of
from imageprompt.adapter.weight_checks import check_finite, computable
from imageprompt.adapter.weights import AdapterModule, new_lora
from imageprompt.checkpoint.identify.identify import read_adapter
from imageprompt.checkpoint.read.open import locate_adapter
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.core.spec import AdapterSpec, ProjectorOptions
from imageprompt.variants import VARIANTS, pending, site_shapes

Built = tuple[AdapterSpec, AdapterModule]


def read_module(
    source: str | os.PathLike[str], variant: str | None, dtype: torch.dtype | None = None
) -> Built:
    """The adapter in a file, on the CPU; see `Adapter.load`. dtype None keeps that of the file."""
    spec, parts = read_adapter(locate_adapter(source), variant)
    if reason := pending(VARIANTS[spec.variant]):
        raise AdapterFileError(
            f"{os.fspath(source)} ({spec.variant} for {spec.host})",
            reason=reason,
            hint="Use imageprompt inspect, validate or convert on it.",
        )
    name = os.fspath(source)
    weights = {
        **{f"image_proj.{key}": value for key, value in parts.projector.items()},
        **{f"ip_adapter.{key}": value for key, value in parts.sites.items()},
    }
    check_finite(name, weights)
    weights = computable(name, weights, dtype)
    with torch.device("meta"):
        projector = VARIANTS[spec.variant].build(spec.projector)
    projector.load_state_dict(_part(weights, "image_proj."), assign=True)
    module = AdapterModule.of(projector, _part(weights, "ip_adapter."))
    return spec, module if dtype is None else module.to(dtype)


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = ((name, weight) for name, weight in weights.items() if name.startswith(prefix))
    return {name.removeprefix(prefix): weight for name, weight in found}


def new_module(
    variant: str, denoiser: object, encoder: object, init: str, options: ProjectorOptions
) -> Built:
    """A new adapter, on the denoiser's device and in float32; see `Adapter.create`."""
    if init not in ("copy", "zero"):
        raise OptionError(f"init={init!r}", reason="must be 'copy' or 'zero'")
    kind = VARIANTS[variant]
    if reason := pending(kind):
        raise OptionError(f"variant {variant!r}", reason=reason, hint="Choose another one.")
    check_options(variant, kind.options, options)
    base = AttachedDenoiser.of(denoiser)
    projector = kind.propose(
        feature_dim_of(kind.feature, encoder), base.spec.cross_attention_dim, options
    )
    weights = new_lora(site_shapes(kind, base.spec, projector))
    from imageprompt.adapter.offloading import StoredWeights

    stored, device = StoredWeights(base.denoiser), base.execution_device
    for site in base.spec.sites:
        text_weights = base.host.text_weights(base.denoiser, site.name)
        key, value = (stored.read(weight) for weight in text_weights)
        value = torch.zeros_like(value) if init == "zero" else value
        for name, weight in (("k", key), ("v", value)):
            weights[f"{site.file_id}.to_{name}_ip.weight"] = weight.detach().float().clone()
    spec = AdapterSpec(
        variant=variant,
        host=base.spec.family,
        feature=kind.feature,
        null_rule=kind.null_rule,
        projector=projector,
    )
    with torch.device(device):
        module = AdapterModule.of(kind.build(projector), weights)
    return spec, module.to(device)
