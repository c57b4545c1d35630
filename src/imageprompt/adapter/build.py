"""The spec and the weights of an adapter: read from a file, or new ones for a base."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from imageprompt.adapter.attachment import AttachedDenoiser, is_exported
from imageprompt.adapter.compatibility import check_options, feature_source
from imageprompt.adapter.weights import AdapterModule, new_lora
from imageprompt.checkpoint.identify.identify import read_adapter
from imageprompt.checkpoint.read.open import locate_adapter
from imageprompt.checkpoint.read.stored_tensor import TORCH_DTYPES, TensorSource
from imageprompt.checkpoint.tensor_bytes import not_computable
from imageprompt.core.errors import AdapterFileError, OptionError, WrongBaseError
from imageprompt.core.spec import AdapterSpec, ProjectorOptions, Site
from imageprompt.variants import VARIANTS, chosen_feature, entry_at, site_shapes

Built = tuple[AdapterSpec, AdapterModule]


def read_module(
    source: str | os.PathLike[str],
    variant: str | None,
    dtype: torch.dtype | None = None,
    base: object = None,
) -> Built:
    """The adapter in a file, on the CPU; see `Adapter.load`. dtype None keeps that of the file."""
    on_base = None if base is None else partial(_on_base, base)
    spec, parts = read_adapter(locate_adapter(source), variant, on_base)
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


def _on_base(base: object, source: TensorSource) -> TensorSource:
    from imageprompt.checkpoint.identify.light_base import on_weights

    on = AttachedDenoiser.of(base)
    if is_exported(on.denoiser):
        raise AdapterFileError(
            source.path.name,
            reason="a light adapter needs the weights of its base, and an exported base has none",
            hint="Expand it first: imageprompt convert LIGHT FULL.safetensors --base DIR.",
        )
    return on_weights(source, text_weights(on))


def text_weights(base: AttachedDenoiser) -> dict[str, Tensor]:
    """K and V of the text by the names of the K' and V' beside them, on the CPU.

    Only where they read what image tokens are: the shapes are equal.
    """
    from imageprompt.adapter.offloading import StoredWeights

    stored, found = StoredWeights(base.denoiser), dict[str, Tensor]()
    for site in base.spec.sites:
        pair = base.host.text_weights(base.denoiser, site.name) or ()
        for kind, weight in zip("kv", pair, strict=False):
            if tuple(weight.shape) == (site.inner_dim, site.cross_attention_dim):
                name = f"ip_adapter.{site.file_id}.to_{kind}_ip.weight"
                found[name] = stored.read(weight).detach().cpu()
    return found


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = ((name, weight) for name, weight in weights.items() if name.startswith(prefix))
    return {name.removeprefix(prefix): weight for name, weight in found}


def new_module(
    variant: str,
    denoiser: object,
    encoder: object,
    init: str | None,
    options: ProjectorOptions,
    feature: str | None = None,
) -> Built:
    """A new adapter, on the denoiser's device and in float32; see `Adapter.create`."""
    if init not in ("copy", "zero", None):
        raise OptionError(f"init={init!r}", reason="must be 'copy' or 'zero'")
    kind = VARIANTS[variant]
    reads = chosen_feature(kind, feature)
    check_options(variant, kind.options, options)
    base = AttachedDenoiser.of(denoiser)
    if not any(entry_at(kind, site.kind) for site in base.spec.sites):
        raise WrongBaseError(
            f"a new {variant} adapter on a {base.spec.family} base",
            reason="it adds image tokens at none of the base's attention layers",
            hint="Choose another variant.",
        )
    width, encoder_type = feature_source(reads, encoder)
    projector = kind.propose(width, base.spec.cross_attention_dim, options)
    shapes = site_shapes(kind, base.spec, projector)
    weights = {**_new_extras(shapes), **new_lora(shapes)}
    from imageprompt.adapter.offloading import StoredWeights

    stored, device = StoredWeights(base.denoiser), base.execution_device
    copied = 0
    for site in base.spec.sites:
        if entry_at(kind, site.kind) is None:
            continue
        shape = (site.inner_dim, site.cross_attention_dim)
        text_weights = base.host.text_weights(base.denoiser, site.name)
        if text_weights is None or tuple(text_weights[0].shape) != shape:
            key, value = _first_weights(site)
        else:
            copied += 1
            key, value = (stored.read(weight) for weight in text_weights)
            zero = init == "zero" or (init is None and site.kind != "cross")
            value = torch.zeros_like(value) if zero else value
        for name, weight in (("k", key), ("v", value)):
            weights[f"{site.file_id}.to_{name}_ip.weight"] = weight.detach().float().clone()
    if init == "copy" and not copied:
        raise OptionError(
            "init='copy'",
            reason=f"the text of a {base.spec.family} base has no K and V as wide as image tokens",
            hint="Leave it out: V' starts at zero.",
        )
    spec = AdapterSpec(
        variant=variant,
        host=base.spec.family,
        feature=reads,
        null_rule=kind.null_rule,
        projector=projector,
        encoder_type=encoder_type,
    )
    with torch.device(device):
        module = AdapterModule.of(kind.build(projector), weights)
    return spec, module.to(device)


def _new_extras(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What some variants have beside K' and V': biases are 0, norms 1, modulations 0."""
    new: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        kind = name.partition(".")[2]
        if kind.endswith(".bias") or kind == "norm_ip.linear.weight":
            new[name] = torch.zeros(shape)
        elif kind.startswith("norm_"):
            new[name] = torch.ones(shape)
    return new


def _first_weights(site: Site) -> tuple[Tensor, Tensor]:
    """New K' and V' where there are no weights of the text to start from: V' is zero.

    So the new adapter changes nothing; K' gets a gradient from the second step on.
    """
    key = torch.nn.Linear(site.cross_attention_dim, site.inner_dim, bias=False).weight
    return key, torch.zeros_like(key)


# ── weights at the door ────────────────────────────────────────────────────────────────────────


def check_finite(source: str, weights: Mapping[str, Tensor]) -> None:
    """Raises AdapterFileError for NaN or infinity, with their number and the first tensor's name.

    One sum per tensor; only where that is not finite are the numbers looked at one by one.
    """
    wrong = {name: count for name, weight in weights.items() if (count := _not_finite(weight))}
    if wrong:
        total = sum(weights[name].numel() for name in wrong)
        raise AdapterFileError(
            source,
            reason=f"{sum(wrong.values())} of {total} numbers are NaN or infinite in "
            f"{len(wrong)} of {len(weights)} tensors, the first is {next(iter(wrong))}",
            hint="Training has diverged, or the file is damaged: use an earlier checkpoint, or "
            "download it again.",
        )


def computable(
    source: str, weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The weights with float8 as `dtype`, by default float16, which holds each of its numbers.

    Warns about float8; raises AdapterFileError for whole numbers, whose scales a file would need.
    """
    dtypes = {name: str(weight.dtype).removeprefix("torch.") for name, weight in weights.items()}
    whole, small = not_computable({name: TORCH_DTYPES[dtype] for name, dtype in dtypes.items()})
    if whole:
        raise AdapterFileError(
            source,
            reason=f"{len(whole)} of {len(weights)} tensors are {weights[whole[0]].dtype} without "
            f"scales, the first is {whole[0]}",
            hint="Use the file it was quantised from.",
        )
    if small:
        wide = dtype or torch.float16
        warnings.warn(
            f"{source}: {len(small)} of {len(weights)} tensors are "
            f"{dtypes[small[0]]}, read as "
            f"{str(wide).removeprefix('torch.')}; the precision they have lost stays lost",
            stacklevel=4,
        )
        return {**weights, **{name: weights[name].to(wide) for name in small}}
    return dict(weights)


def _not_finite(weight: Tensor) -> int:
    if not weight.dtype.is_floating_point:
        return 0
    if weight.dtype.itemsize == 1:
        weight = weight.half()
    if torch.isfinite(weight.sum()):  # torch sums half precision in float32, and fast
        return 0
    return int((~torch.isfinite(weight)).sum())  # 0 where only the sum has overflown
