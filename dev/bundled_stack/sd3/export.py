"""Assemble the SD3 stack in diffusers' own layout; what the bundled stack has already is linked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bundled_stack.export import STACK as BUNDLED
from bundled_stack.export import declare_float32, load_ema, replace_folder
from bundled_stack.sd3.base import TEXT_TOKENS, TRANSFORMER, build
from bundled_stack.sd3.text import text_tower
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.loading.pipeline import TEXT_TOKENS_KEY

STACK = BUNDLED.with_name(bundled.FOLDERS[bundled.SD3])
LIMIT = 18_000_000
# files that are the same in another folder, relative to their own
LINKS = {
    "vae/diffusion_pytorch_model.safetensors": (
        "../../stack/vae/diffusion_pytorch_model.safetensors"
    ),
    "text_encoder_2/model.safetensors": "../text_encoder/model.safetensors",
    "image_encoder/model.safetensors": "../../stack/image_encoder/model.safetensors",
    "tokenizer/tokenizer.json": "../../stack/tokenizer/tokenizer.json",
    "tokenizer_2/tokenizer.json": "../../stack/tokenizer/tokenizer.json",
}
COPIES = ("image_encoder/config.json", "feature_extractor/preprocessor_config.json")


def zero_t5(words: list[str]) -> tuple[Any, Any]:
    """A tokenizer and a T5 whose states are exactly zero: the pipeline does not load without."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in words)]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TRANSFORMER["joint_attention_dim"],
        d_kv=8,
        d_ff=8,
        num_layers=1,
        num_heads=1,
    )
    torch.manual_seed(6)
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return tokenizer, encoder.eval()


def pipeline(work: Path) -> Any:
    """The trained stack as a plain StableDiffusion3Pipeline in float32."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    from bundled_stack.tokenizer import build_tokenizer

    loaded = AutoencoderKL.from_pretrained(bundled.folder() / "vae")
    config = {**loaded.config, "shift_factor": 0.0}  # the pipeline adds it to the latents
    vae = AutoencoderKL.from_config({k: v for k, v in config.items() if k != "_name_or_path"})
    vae.load_state_dict(loaded.state_dict())
    tokenizer, t5 = zero_t5(scenes.all_words())
    transformer = load_ema(work, "sd3-base", build())
    transformer.register_to_config(**{TEXT_TOKENS_KEY: TEXT_TOKENS})
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae.eval(),
        text_encoder=text_tower(),
        tokenizer=build_tokenizer(),
        text_encoder_2=text_tower(),
        tokenizer_2=build_tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    )


def export(work: Path, target: Path = STACK) -> int:
    """Write the folder (pipeline, adapters if trained). Returns the size of its own files."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline(work).to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        declare_float32(fresh / part / "config.json")
    for name in COPIES:
        (fresh / name).parent.mkdir()
        shutil.copyfile(BUNDLED / name, fresh / name)
    for name, original in LINKS.items():
        (fresh / name).unlink(missing_ok=True)
        (fresh / name).symlink_to(original)
    return replace_folder(target, fresh, work / "sd3-adapters", LIMIT)


if __name__ == "__main__":
    print(export(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else STACK))
