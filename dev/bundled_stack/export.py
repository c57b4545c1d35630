"""Assemble the trained parts into one folder in diffusers' own layout, weights in float16."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bundled_stack.base import Base, scheduler
from bundled_stack.checkpoints import load_state
from bundled_stack.latents import load_vae
from bundled_stack.tokenizer import build_tokenizer
from bundled_stack.vision import VisionWithHeads
from imageprompt.demo.judge import Judge

STACK = Path(__file__).resolve().parents[2] / "src" / "imageprompt" / "demo" / "stack"
LIMIT = 26_000_000


def load_ema(work: Path, name: str, model: Any) -> Any:
    """Load the EMA weights of a run into a module."""
    state = load_state(work / f"{name}.ckpt")
    model.load_state_dict(state["model"] | state["ema"]["average"])
    return model.eval().requires_grad_(False)


def pipeline(work: Path) -> Any:
    """The trained stack as a plain StableDiffusionPipeline in float32."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPImageProcessorPil

    base = load_ema(work, "base-0", Base())
    vision = load_ema(work, "vision", VisionWithHeads())
    base.unet.set_default_attn_processor()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=base.text,
        tokenizer=build_tokenizer(),
        unet=base.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=processor,
        image_encoder=vision.tower,
        requires_safety_checker=False,
    )


def export(work: Path, target: Path = STACK) -> int:
    """Write the folder (pipeline, judge, adapters if trained). Returns its size in bytes."""
    from safetensors.torch import save_file

    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline(work).to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    for part in ("text_encoder", "image_encoder"):
        declare_float32(fresh / part / "config.json")
    judge = load_ema(work, "judge", Judge())
    save_file(
        {name: value.half().contiguous() for name, value in judge.state_dict().items()},
        fresh / "judge.safetensors",
    )
    return replace_folder(target, fresh, work / "adapters", LIMIT)


def replace_folder(target: Path, fresh: Path, adapters: Path, limit: int) -> int:
    """Add the trained adapters to the fresh folder, and put it in place of the target.

    Returns the size of its files in bytes, without links. Raises RuntimeError above `limit`.
    """
    (fresh / "adapters").mkdir()
    for trained in sorted(adapters.glob("*.safetensors")):
        shutil.copyfile(trained, fresh / "adapters" / trained.name)
    paths = [path for path in fresh.rglob("*") if not path.is_symlink()]
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if size > limit:
        raise RuntimeError(f"the stack has {size:,} bytes, more than {limit:,}")
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return size


def declare_float32(config: Path) -> None:
    """Make plain `from_pretrained` load float32: transformers follows the config."""
    settings = json.loads(config.read_text())
    settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    print(export(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else STACK))
