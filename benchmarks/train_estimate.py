"""Memory of training a Plus adapter on FLUX.1 dev, counted on one or two blocks of its true width.

All blocks of a kind keep the same for the backward pass, so two small models tell what each adds.
Nothing is trained. `imageprompt train --dry-run` counts the same on the whole base.

    python benchmarks/train_estimate.py [--side 512] [--size dev|tiny] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.utils import logging

from training_parts import PARTS, EncoderSizes
from transformer_bases import SIZES, Size, build, inputs

BLOCKS = {"dev": (19, 38), "tiny": (2, 2)}
BYTES_PER_TRAINED = 16  # weight, gradient and Adam's two moments, float32
PATCHES, FEATURE = 729, 1152  # of SigLIP so400m at 384 pixels
Row = dict[str, float]


class SigLip(EncoderSizes):
    """Its width alone."""

    def width(self, feature: str) -> int:
        return FEATURE


def count(size: Size, *, checkpointing: bool, int8: bool) -> Row:
    """Bytes of the frozen transformer and of what a picture keeps; trained parameters."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    import imageprompt as ip
    from imageprompt.training.data.dataset import Batch
    from imageprompt.training.estimate import saved_bytes
    from imageprompt.training.loop.objective import NullConditions, Objective
    from imageprompt.training.memory.int8 import store_as_int8, stored_weights

    model: Any = build("flux", size, dtype=torch.bfloat16)
    if int8:
        store_as_int8(model)
    if checkpointing:
        model.enable_gradient_checkpointing()
    kind = SigLip(PARTS["sd15"])
    adapter = ip.Adapter.create("plus", denoiser=model, encoder=kind, num_tokens=16).attach(model)
    call = inputs("flux", size, 1, dtype=torch.bfloat16)
    pooled = {"pooled_projections": call["pooled_projections"]}
    features, latents = torch.randn(1, PATCHES, FEATURE), torch.randn(1, 16, *(2 * size.side,) * 2)
    batch = Batch(latents, call["encoder_hidden_states"], features, pooled)
    nulls = NullConditions(batch.text, features, pooled)
    frozen = stored_weights(model)
    base = SimpleNamespace(
        denoiser=model, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    )
    known = [*frozen, *model.buffers(), *adapter.parameters()]
    return {
        "frozen": sum(weight.nbytes for weight in frozen),
        "kept": saved_bytes(Objective(), adapter, base, batch, nulls, known),
        "trained": sum(weight.numel() for weight in adapter.parameters()),
    }


def whole(name: str, side: int, *, checkpointing: bool, int8: bool) -> Row:
    """The same of all blocks."""
    size = replace(SIZES["flux"][name], side=side // 16)
    double, single = BLOCKS[name]
    options = {"checkpointing": checkpointing, "int8": int8}
    one, two_double, two_single = (
        count(replace(size, blocks=blocks, single=singles), **options)
        for blocks, singles in ((1, 1), (2, 1), (1, 2))
    )
    return {
        what: one[what]
        + (double - 1) * (two_double[what] - one[what])
        + (single - 1) * (two_single[what] - one[what])
        for what in one
    }


def main() -> None:
    """Print one line per option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--size", choices=tuple(BLOCKS), default="dev")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    print(f"FLUX.1 {args.size}, Plus, {args.side} pixels, batch 1, GB")
    print(f"{'':26}{'frozen':>9}{'adapter':>9}{'picture':>9}{'sum':>9}")
    rows = []
    for title, checkpointing, int8 in (
        ("bfloat16", False, False),
        ("bfloat16, checkpointing", True, False),
        ("int8, checkpointing", True, True),
    ):
        row = whole(args.size, args.side, checkpointing=checkpointing, int8=int8)
        parts = [row["frozen"], BYTES_PER_TRAINED * row["trained"], row["kept"]]
        parts.append(sum(parts))
        print(f"{title:26}" + "".join(f"{part / 1e9:>9.2f}" for part in parts), flush=True)
        rows.append({"what": title, **row})
    print(f"trained: {rows[0]['trained'] / 1e6:,.1f} M parameters")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
