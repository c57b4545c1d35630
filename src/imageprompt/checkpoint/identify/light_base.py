"""Light adapters on their base: K and V of the text from a model or its files, and whose they are.

In files as in models, a layer's K and V are `to_k` and `to_v`, those of the text beside joint
attention `add_k_proj` and `add_v_proj`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from imageprompt.checkpoint.identify.base_config import BaseConfig
from imageprompt.checkpoint.read.light import expanded, refuse_without_base
from imageprompt.checkpoint.read.stored_tensor import StoredTensor, TensorSource
from imageprompt.checkpoint.torch_io import TorchTensor, tensor_of
from imageprompt.core.fingerprint import fingerprint
from imageprompt.core.spec import HostSpec

SITES = "ip_adapter."
ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_OF_TEXT = {"k": ("add_k_proj", "to_k"), "v": ("add_v_proj", "to_v")}


def site_name(file_id: str, kind: str) -> str:
    """The name of K' or V' of a site in the standard layout."""
    return f"{SITES}{file_id}.to_{kind}_ip.weight"


def fingerprints(text: Mapping[str, Tensor]) -> dict[str, str]:
    """Of weights of the text, by the precision that they are rounded to first: a base that was
    loaded in that precision has the same."""
    return {
        name: fingerprint({key: weight.detach().to(dtype) for key, weight in text.items()})
        for name, dtype in ROUNDED.items()
    }


def on_weights(source: TensorSource, text: Mapping[str, Tensor]) -> TensorSource:
    """A light source on these weights of a base; another base than it was made for is a warning.

    Raises AdapterFileError for a base that it does not fit.
    """
    form = source.light
    if form is None:
        return source
    wide = {name: TorchTensor(text[name].float()) for name in form.on_base if name in text}
    whole = expanded(source, wide)
    found = fingerprints({name: text[name] for name in form.on_base})
    if form.fingerprints and not any(form.fingerprints.get(key) == found[key] for key in found):
        warnings.warn(
            f"{source.path}: a light adapter for another base than this one"
            + (f" ({form.base})" if form.base else "")
            + "; beside other K and V it is another adapter",
            stacklevel=4,
        )
    return whole


def on_files(source: TensorSource, base: BaseConfig | None) -> TensorSource:
    """The same on the files of a base. Raises AdapterFileError without any."""
    form = source.light
    if form is None:
        return source
    stored = None if base is None else base.weights()
    if base is None or stored is None:
        refuse_without_base(source.path, form.base)
    text = {name: tensor_of(one) for name, one in _of_text(base.spec, stored.tensors).items()}
    return on_weights(source, {name: text[name] for name in form.on_base if name in text})


def _of_text(spec: HostSpec, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for site in spec.sites:
        for kind, layers in _OF_TEXT.items():
            names = (f"{site.name}.{layer}.weight" for layer in layers)
            own = next((stored[name] for name in names if name in stored), None)
            if own is not None:
                found[site_name(site.file_id, kind)] = own
    return found
