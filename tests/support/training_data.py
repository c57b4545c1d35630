"""Small training sets on disk, and the frozen parts of the tiny pipeline, for the data's tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imageprompt.encoding.encoders.clip import ClipEncoder

CAPTIONS = ("a red star", "a blue square", "a star", "a red square", "blue")


class Parts:
    """What encodes: a tiny pipeline (SDXL's if `xl`) with its own way to encode text."""

    def __init__(self, *, xl: bool = False) -> None:
        from tiny_stack import make_pipeline, make_xl_pipeline

        torch.manual_seed(5)
        self.pipe: Any = make_xl_pipeline() if xl else make_pipeline()
        self.encoder = ClipEncoder(self.pipe.image_encoder, self.pipe.feature_extractor)
        self.calls = {"moments": 0, "text": 0, "image": 0}
        self._count()

    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls["text"] += len(captions)
        with torch.no_grad():
            found = self.pipe.encode_prompt(
                list(captions),
                device="cpu",
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        return found[0], {"text_embeds": found[2]} if len(found) == 4 else {}

    @property
    def text_limit(self) -> tuple[Any, int]:
        return self.pipe.tokenizer, int(self.pipe.tokenizer.model_max_length)

    conditions = ("text_embeds",)
    patch_size = 1

    def _count(self) -> None:
        """Count what is encoded."""
        vae, encoder = self.pipe.vae, self.encoder
        encode_vae, encode = vae.encode, encoder.encode

        def counted_vae(x: Tensor) -> Any:
            self.calls["moments"] += len(x)
            return encode_vae(x)

        def counted(pictures: Any, feature: Any) -> Tensor:
            self.calls["image"] += len(pictures)
            return encode(pictures, feature)

        vae.encode, encoder.encode = counted_vae, counted  # type: ignore[method-assign]


def picture(index: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """A picture of its own for each index."""
    rng = np.random.default_rng(index)
    small = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def picture_bytes(index: int, size: tuple[int, int] = (20, 16)) -> bytes:
    stream = io.BytesIO()
    picture(index, size).save(stream, "PNG")
    return stream.getvalue()


def size_of(index: int) -> tuple[int, int]:
    """Wide, square and tall pictures in turn."""
    return ((32, 16), (20, 20), (16, 32))[index % 3]


def write_folder(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (20, 16),
    sizes: bool = False,
    broken: Sequence[int] = (),
) -> Path:
    """Pictures 000.png ... with captions beside them; those of `broken` are cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        content = picture_bytes(index, size_of(index) if sizes else size)
        if index in broken:
            content = content[: len(content) // 2]
        (folder / f"{index:03d}.png").write_bytes(content)
        (folder / f"{index:03d}.txt").write_text(CAPTIONS[index % len(CAPTIONS)])
    return folder


def write_list(folder: Path, count: int, *, lines: bool = False) -> Path:
    """The same pictures in a JSON list (or JSON lines) beside them."""
    write_folder(folder, count)
    entries = [
        {"image_file": f"{index:03d}.png", "text": CAPTIONS[index % len(CAPTIONS)]}
        for index in range(count)
    ]
    path = folder / ("list.jsonl" if lines else "list.json")
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries, indent=1)
    path.write_text(text)
    return path


def write_shards(folder: Path, count: int, shards: int) -> str:
    """The same pictures in tar shards; returns the pattern that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        with tarfile.open(folder / f"set-{number:02d}.tar", "w") as tar:
            for index in range(number * count // shards, (number + 1) * count // shards):
                add_member(tar, f"{index:03d}.png", picture_bytes(index))
                add_member(tar, f"{index:03d}.txt", CAPTIONS[index % len(CAPTIONS)].encode())
    return str(folder / f"set-{{00..{shards - 1:02d}}}.tar")


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
