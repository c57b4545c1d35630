"""From names to loaded objects: base, adapter, encoder, ControlNet, pictures, each with a hash."""

from __future__ import annotations

from imageprompt.loading.adapter import (
    LoadedAdapter,
    LocatedAdapter,
    adapter_precision,
    adapter_record,
    attach_adapter,
    find_adapter,
    find_encoder,
    load_adapter,
    load_adapter_file,
)
from imageprompt.loading.assets import (
    open_embeddings,
    open_references,
    path_of,
    record_of,
    resolve_file,
)
from imageprompt.loading.pipeline import (
    LoadedPipeline,
    base_folder,
    default_dtype,
    default_size,
    device_of,
    dtype_name,
    few_threads,
    largest_side,
    load_base,
    quiet_loading,
    stated_text_tokens,
    usable_device,
    vae_scale_factor,
)

__all__ = [
    "LoadedAdapter",
    "LoadedPipeline",
    "LocatedAdapter",
    "adapter_precision",
    "adapter_record",
    "attach_adapter",
    "base_folder",
    "default_dtype",
    "default_size",
    "device_of",
    "dtype_name",
    "few_threads",
    "find_adapter",
    "find_encoder",
    "largest_side",
    "load_adapter",
    "load_adapter_file",
    "load_base",
    "open_embeddings",
    "open_references",
    "path_of",
    "quiet_loading",
    "record_of",
    "resolve_file",
    "stated_text_tokens",
    "usable_device",
    "vae_scale_factor",
]
