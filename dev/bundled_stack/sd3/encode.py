"""Encode the pool with the finished bundled stack: latents, and references for the adapters."""

from __future__ import annotations

import sys
from pathlib import Path

from bundled_stack import features, latents
from imageprompt.core import bundled


def encode(work: Path, part: int, parts: int) -> None:
    """Encode every `parts`-th shard; finished shards are skipped."""
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionModelWithProjection

    vae = AutoencoderKL.from_pretrained(bundled.folder() / "vae").eval()
    latents.encode_shards(work, part, parts, vae)
    tower = CLIPVisionModelWithProjection.from_pretrained(bundled.folder() / "image_encoder").eval()
    features.encode_shards(work, part, parts, tower)


if __name__ == "__main__":
    encode(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
