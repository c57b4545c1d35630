"""Adapter and torch files made by hand, byte by byte, to be right or to be broken."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ITEM = {"F16": 2, "F32": 4}
Shapes = Mapping[str, tuple[int, ...]]

# SD1.5: widths of the cross-attention layers in the order of their ids (1, 3, 5 ... 31)
SD15 = (320,) * 2 + (640,) * 2 + (1280,) * 5 + (640,) * 3 + (320,) * 3 + (1280,)


def adapter_shapes(widths: tuple[int, ...] = SD15, text: int = 768, feature: int = 1024) -> Shapes:
    """A base adapter in the standard layout: projector, K' and V' of each site."""
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.weight": (4 * text, feature),
        "image_proj.proj.bias": (4 * text,),
        "image_proj.norm.weight": (text,),
        "image_proj.norm.bias": (text,),
    }
    for index, width in enumerate(widths):
        for kind in "kv":
            shapes[f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight"] = (width, text)
    return shapes


def header(shapes: Shapes, dtype: str = "F16", **dtypes: str) -> dict[str, Any]:
    """The safetensors header of these tensors; `dtypes` by the first part of a name."""
    entries: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        kind = dtypes.get(name.split(".")[0], dtype)
        size = ITEM[kind]
        for n in shape:
            size *= n
        entries[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    return entries


def write(path: Path, entries: Any, size: int | None = None) -> Path:
    """A safetensors file of zeros, sparse; `entries` may be the header's text itself."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    if size is None:
        size = max((e["data_offsets"][1] for e in entries.values()), default=0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return path


def whole(path: Path) -> Path:
    """A whole SD1.5 base adapter (of zeros)."""
    return write(path, header(adapter_shapes()))


def torch_zip(path: Path, data: bytes, storages: Mapping[str, bytes], **how: Any) -> Path:
    """A file as torch.save lays it out, round any pickle."""
    with zipfile.ZipFile(path, "w", how.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def tensor_pickle(
    shape: tuple[int, ...], stride: tuple[int, ...], numel: int, offset: int = 0
) -> bytes:
    """The pickle of {"weight": tensor} on storage "0", written by hand."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    return b"".join(
        (
            b"\x80\x02}",
            text("weight"),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            storage + number(numel) + b"tQ",
            number(offset) + numbers(shape) + numbers(stride),
            b"\x89ccollections\nOrderedDict\n)RtRs.",
        )
    )
