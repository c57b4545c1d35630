"""Generators of hostile and broken files: every kind a stranger, a bad download or a crash makes.

Each of `HOSTILE` writes its file into an empty folder and returns the path to open. Nothing is
stored as a blob; large ones are sparse.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge import adapter_shapes, header, tensor_pickle, torch_zip, whole, write

CANARY = "canary"


@dataclass(frozen=True)
class Hostile:
    """One kind; `says` are words of the line that it must end in, `opens`: only its content is
    wrong, and `says` is the code of the problem that inspection must name."""

    make: Callable[[Path], Path]
    says: str
    opens: bool = False


# ── what it may say ─────────────────────────────────────────────────────────────────────────────


def content(data: bytes, name: str = "file.safetensors") -> Callable[[Path], Path]:
    """A file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def headed(change: Callable[[dict[str, Any]], Any], size: int | None = None) -> Any:
    """A whole adapter, its header changed (in place, or the text that is returned)."""

    def make(folder: Path) -> Path:
        entries = header(adapter_shapes((8, 8), 16, 8))
        full = max(e["data_offsets"][1] for e in entries.values())
        changed = change(entries)
        return write(
            folder / "file.safetensors",
            entries if changed is None else changed,
            full if size is None else size,
        )

    return make


def shift(name: str, by: int) -> Callable[[dict[str, Any]], None]:
    """Move a tensor by some bytes."""

    def change(entries: dict[str, Any]) -> None:
        begin, end = entries[name]["data_offsets"]
        entries[name]["data_offsets"] = [begin + by, end + by]

    return change


def renamed(name: str) -> Callable[[Path], Path]:
    """A whole adapter with one more tensor of this name."""
    return lambda folder: write(
        folder / "file.safetensors", header({**adapter_shapes((8, 8), 16, 8), name: (1,)})
    )


def twice(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries)
    name, entry = next(iter(entries.items()))
    return f'{{"{name}": {json.dumps(entry)}, {text[1:]}'.encode()


def cut(name: str, keep: float) -> Callable[[Path], Path]:
    """A whole safetensors adapter, or a torch file, of which the end is missing."""

    def make(folder: Path) -> Path:
        path = folder / name
        if path.suffix == ".safetensors":
            whole(path)
        else:
            torch_zip(path, tensor_pickle((64, 64), (64, 1), 4096), {"0": bytes(4 * 4096)})
        os.truncate(path, int(path.stat().st_size * keep))
        return path

    return make


class _Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def attack(folder: Path, protocol: int = 2) -> bytes:
    """A pickle that would leave a canary."""
    return pickle.dumps({"weight": _Call(os.system, f"touch {folder / CANARY}")}, protocol)


def attacks(protocol: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "file.bin").write_bytes(attack(folder, protocol))
        return folder / "file.bin"

    return make


def zipped_attack(folder: Path) -> Path:
    return torch_zip(folder / "file.bin", attack(folder), {})


def evaluated(folder: Path) -> Path:
    code = f"open({str(folder / CANARY)!r}, 'w')"
    return torch_zip(folder / "file.bin", pickle.dumps(_Call(eval, code)), {})


def distributed_attack(folder: Path) -> Path:
    (folder / ".metadata").write_bytes(attack(folder, 4))
    return folder


def pickled(data: bytes) -> Callable[[Path], Path]:
    """A torch file with this pickle and one storage of 4 values."""
    return lambda folder: torch_zip(folder / "file.bin", data, {"0": bytes(16)})


def colliding(index: int) -> bytes:
    """A name and a value; Python gives all of these names one hash."""
    return b"\x8a\x0a" + (index * (2**61 - 1)).to_bytes(10, "little") + b"N"


def laughs(depth: int = 30) -> bytes:
    """Tables that hold the next table twice: 2**30 paths lead through them."""
    tables: dict[str, Any] = {"end": 1}
    for _ in range(depth):
        tables = {"a": tables, "b": tables}
    return pickle.dumps(tables)


def bomb(folder: Path) -> Path:
    """50 kB that unpack to a pickle of 50 MB."""
    return torch_zip(folder / "file.bin", bytes(50 << 20), {}, compression=zipfile.ZIP_DEFLATED)


def crowded(folder: Path) -> Path:
    """A zip directory that claims 3 GB (sparse)."""
    path = folder / "file.bin"
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(3 << 30)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3 << 30, 0, 0))
    return path


def doubled(folder: Path) -> Path:
    """A zip with two records of one name: readers differ in which they take."""
    storages = {"0": bytes(16), "1": bytes(16)}
    path = torch_zip(folder / "file.bin", tensor_pickle((4,), (1,), 4), storages)
    path.write_bytes(path.read_bytes().replace(b"archive/data/1", b"archive/data/0"))
    return path


def unreadable(folder: Path) -> Path:
    path = whole(folder / "file.safetensors")
    path.chmod(0)
    return path


def dangling(folder: Path) -> Path:
    (folder / "file.safetensors").symlink_to(folder / "gone")
    return folder / "file.safetensors"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "file.safetensors")
    return folder / "file.safetensors"


def folder_of_pipes(folder: Path) -> Path:
    for name in ("model_index.json", "latest"):
        os.mkfifo(folder / name)
    return folder


def folder_of(*files: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in files:
            (folder / name).write_bytes(b"{}")
        return folder

    return make


def pipeline(folder: Path) -> Path:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def shards(index: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.safetensors.index.json").write_text(index)
        return folder

    return make


def partitions(folder: Path) -> Path:
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"PK")
    return folder


def changed(change: Callable[[dict[str, tuple[int, ...]]], None], **dtypes: str) -> Any:
    """A whole SD1.5 adapter with other tensors or dtypes."""

    def make(folder: Path) -> Path:
        shapes = dict(adapter_shapes())
        change(shapes)
        return write(folder / "file.safetensors", header(shapes, **dtypes))

    return make


def without(*names: str) -> Callable[[dict[str, tuple[int, ...]]], None]:
    return lambda shapes: [shapes.pop(name) for name in names] and None


def infinite(folder: Path) -> Path:
    """One NaN and one infinity at the end of a tensor in the middle."""
    path = whole(folder / "file.safetensors")
    entries = header(adapter_shapes())
    start = path.stat().st_size - max(e["data_offsets"][1] for e in entries.values())
    end = start + entries["ip_adapter.9.to_k_ip.weight"]["data_offsets"][1]
    with path.open("r+b") as file:
        file.seek(end - 4)
        file.write(struct.pack("<2H", 0x7E00, 0x7C00))
    return path


PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
DEEP = b"[" * 200_000
SHARD = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})

HOSTILE: dict[str, Hostile] = {
    # 1-5: no weights at all
    "empty": Hostile(content(b""), "0 bytes"),
    "shorter than a header": Hostile(content(b"1234567"), "7 bytes"),
    "git-LFS pointer": Hostile(
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "git lfs pull",
    ),
    "HTML": Hostile(content(b"\n<!DOCTYPE html><html><body>401</body></html>"), "web page"),
    "picture": Hostile(content(PNG), "a picture"),
    "GGUF": Hostile(content(b"GGUF" + bytes(64)), "GGUF"),
    "tar": Hostile(content(b"a".ljust(257, b"\0") + b"ustar" + bytes(250)), "tar archive"),
    "text": Hostile(content("Größe: 3 Tensoren\n".encode() * 40), "this is text"),
    "JSON": Hostile(content(b'{"error": "Repository not found"}'), "JSON"),
    "zeros": Hostile(content(bytes(4096)), "zeros only"),
    "noise": Hostile(content(bytes(range(255, 127, -1)) * 8), "neither a safetensors"),
    # 6-9: safetensors headers
    "header of 2^40 bytes": Hostile(content((2**40).to_bytes(8, "little") + b"{}"), "claims"),
    "header longer than the file": Hostile(content(b"\0\1\0\0\0\0\0\0{}"), "cut off"),
    "overlap": Hostile(headed(shift("ip_adapter.1.to_k_ip.weight", -2)), "overlap"),
    "hole": Hostile(headed(shift("ip_adapter.3.to_v_ip.weight", 2)), "leave a hole"),
    "trailing bytes": Hostile(headed(lambda entries: None, 10_000), "follow the last tensor"),
    "truncated": Hostile(cut("file.safetensors", 0.5), "bytes are missing"),
    "truncated in the header": Hostile(cut("file.safetensors", 0.00001), "cut off"),
    "duplicate names": Hostile(headed(twice), "the same name appears twice"),
    "no JSON": Hostile(headed(lambda entries: b"{not json}"), "not valid JSON"),
    "nested without end": Hostile(headed(lambda entries: b'{"a":' + DEEP), "header"),
    "a million items": Hostile(
        headed(lambda entries: b'{"a":[' + b"[]," * 3_000_000 + b"0]}"), "items"
    ),
    "no offsets": Hostile(
        headed(lambda entries: entries.update(a={"dtype": "F16", "shape": [1]})), "does not say"
    ),
    "negative offsets": Hostile(headed(shift("image_proj.proj.weight", -99)), "does not say"),
    "shape unlike its bytes": Hostile(
        headed(lambda entries: entries["image_proj.norm.bias"].update(shape=[2**62, 2**62])),
        "does not say",
    ),
    "unknown dtype": Hostile(
        headed(lambda entries: entries["image_proj.norm.bias"].update(dtype="F3")), "dtype"
    ),
    "metadata of numbers": Hostile(
        headed(lambda entries: entries.update(__metadata__={"a": 1})), "metadata"
    ),
    # 10: numbers
    "NaN and infinity": Hostile(infinite, "not-finite", opens=True),
    # 11-12: pickles
    "hostile pickle, protocol 0": Hostile(attacks(0), "system, which no weights need"),
    "hostile pickle, protocol 2": Hostile(attacks(2), "system, which no weights need"),
    "hostile pickle, protocol 5": Hostile(attacks(5), "system, which no weights need"),
    "hostile pickle in a torch file": Hostile(zipped_attack, "system, which no weights need"),
    "pickle that evaluates": Hostile(evaluated, "builtins.eval"),
    "hostile pickle in a DCP folder": Hostile(distributed_attack, "system, which no weights need"),
    "numpy's way to run text": Hostile(
        pickled(b"cnumpy.testing._private.utils\nrunstring\n."), "runstring"
    ),
    "torch's way to run code": Hostile(pickled(b"ctorch.hub\nload\n."), "torch.hub.load"),
    "extension codes": Hostile(pickled(b"\x80\x02\x82\x01."), "opcode 0x82"),
    "a remembered place of 2^32": Hostile(pickled(b"\x80\x02}r\xff\xff\xff\xff."), "empty table"),
    "bytes of 2^60": Hostile(pickled(b"\x8e" + (2**60).to_bytes(8, "little")), "cut off"),
    "a number of 255 bytes as a size": Hostile(
        pickled(b"\x80\x02ctorch\nSize\n((\x8a\xff" + b"\x7f" * 255 + b"ttR."), "type tuple"
    ),
    "two million operations": Hostile(pickled(b"}" * 2_000_000 + b"."), "operations"),
    "two million memories": Hostile(pickled(b"}" + b"\x94" * 2_000_000 + b"."), "operations"),
    "tables in tables": Hostile(pickled(laughs()), "values"),
    "tuples in tuples as a name": Hostile(
        pickled(b"}N" + b"\x85" * 400_000 + b"2\x86Ns."), "name of type tuple"
    ),
    "numbers of one hash as names": Hostile(
        pickled(b"}(" + b"".join(map(colliding, range(200_000))) + b"u."), "name of type int"
    ),
    "tensor larger than its storage": Hostile(
        pickled(tensor_pickle((5,), (1,), 4)), "claims more"
    ),
    "tensor that repeats one value": Hostile(
        pickled(tensor_pickle((2**30, 2**30), (0, 0), 4)), "malformed"
    ),
    "tensor before its storage": Hostile(
        pickled(tensor_pickle((1,), (1,), 4, offset=-1)), "malformed"
    ),
    "storage larger than its record": Hostile(
        pickled(tensor_pickle((5,), (1,), 5)), "missing or cut off"
    ),
    "truncated torch file": Hostile(cut("file.pt", 0.6), "cut off"),
    "truncated legacy torch file": Hostile(
        content(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M"), "cut off"
    ),
    "zip bomb": Hostile(bomb, "the limit is"),
    "zip directory of 3 GB": Hostile(crowded, "zip directory"),
    "two records of one name": Hostile(doubled, "twice"),
    "zip without a pickle": Hostile(content(b"PK\5\6" + bytes(18)), "torch did not write"),
    # 13-15: whole files of the wrong thing
    "missing layers": Hostile(
        changed(without(*(f"ip_adapter.{i}.to_k_ip.weight" for i in range(1, 15, 2)))),
        "missing",
        opens=True,
    ),
    "extra layers": Hostile(
        changed(lambda shapes: shapes.update({"ip_adapter.99.to_k_ip.weight": (320, 768)})),
        "extra",
        opens=True,
    ),
    "mixed dtypes": Hostile(changed(lambda shapes: None, image_proj="F32"), "", opens=True),
    # 16: names
    "names like paths": Hostile(renamed("image_proj.../../../etc/passwd"), "a tensor is called"),
    "names that steer a terminal": Hostile(renamed("image_proj.\x1b[2J"), "a tensor is called"),
    "names without end": Hostile(renamed("image_proj." + "x" * 9000), "a tensor is called"),
    # 17: no file
    "unreadable": Hostile(unreadable, "Permission denied"),
    "dangling link": Hostile(dangling, "which does not exist"),
    "pipe": Hostile(pipe, "not a regular file"),
    "folder": Hostile(folder_of("readme.md"), "contains no weights"),
    "folder with pipes": Hostile(folder_of_pipes, "contains no weights"),
    "folder with two files": Hostile(folder_of("a.bin", "b.safetensors"), "2 weight files"),
    "pipeline folder": Hostile(pipeline, "StableDiffusionPipeline"),
    "missing shard": Hostile(shards(SHARD), "1 of its 1 shards are missing"),
    "shard outside the folder": Hostile(
        shards('{"weight_map": {"a": "../../etc/passwd"}}'), "not plain file names"
    ),
    "ZeRO-3 partitions": Hostile(partitions, "zero_to_fp32"),
}  # fmt: skip
