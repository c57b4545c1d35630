"""Opens what a request names (base, adapter, encoder, pictures), each with its name and hash."""

from __future__ import annotations

from imageprompt.loading.adapter import AdapterChoice, brought_adapter, find_adapter, load_adapter
from imageprompt.loading.controlnet import find_controlnet, load_controlnet
from imageprompt.loading.encoder import find_encoder
from imageprompt.loading.pipeline import (
    Base,
    base_folder,
    device_of,
    dtype_name,
    few_threads,
    load_base,
    quiet_loading,
    usable_device,
)
from imageprompt.loading.sources import open_embeddings, open_references, same_file, source_of

__all__ = [
    "AdapterChoice",
    "Base",
    "base_folder",
    "brought_adapter",
    "device_of",
    "dtype_name",
    "few_threads",
    "find_adapter",
    "find_controlnet",
    "find_encoder",
    "load_adapter",
    "load_base",
    "load_controlnet",
    "open_embeddings",
    "open_references",
    "quiet_loading",
    "same_file",
    "source_of",
    "usable_device",
]
