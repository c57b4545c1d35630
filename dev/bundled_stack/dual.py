"""Train the content and style adapters of a stack together, on drawn pairs of references.

The content reference of a picture has its shape at the same place, and another look; the style
reference has its look and another shape. First both projectors learn words: those for the shape
and where it is, and those for the look.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundled_stack.adapters import DrawnDataset, TextStates, TrainableBase, fit, place_tokens
from bundled_stack.base import Captions
from bundled_stack.checkpoints import load_state, save_atomic
from bundled_stack.export import STACK
from bundled_stack.features import encode
from bundled_stack.vae import to_tensor
from imageprompt import loading
from imageprompt.adapter.adapter import Adapter
from imageprompt.adapter.pair import AdapterPair
from imageprompt.core import bundled
from imageprompt.demo import scenes
from imageprompt.demo.scenes import Scene
from imageprompt.hosts import training_of
from imageprompt.training.config.config import (
    ConditionDropout,
    PartConfig,
    Timesteps,
)
from imageprompt.training.data.dataset import Batch, RandomStreams, indices_at
from imageprompt.training.init import fit_projector_to_captions
from imageprompt.training.loop.pair_objective import PairObjective
from imageprompt.variants._projectors import ResamplerLayer

COUNT, LOOKS = 12_288, 4  # targets, and content references of each
LOOK = ("colour", "texture", "background", "style")
TAUGHT = 6  # content tokens that learn "a star"; the others learn where it is
OPTIONS: dict[str, dict[str, Any]] = {
    "content": {"num_tokens": 10, "depth": 4, "inner_dim": 64, "heads": 1},
    "style": {"num_tokens": 11, "depth": 3, "inner_dim": 64, "heads": 1},
}
WARM_START_STEPS, WARM_START_BATCH = 800, 64


def unet_base(stack: Path) -> TrainableBase:
    """The exported UNet stack."""
    from diffusers.models.attention_processor import AttnProcessor

    pipe = loading.load_base(bundled.NAME, stack, dtype="float32", device="cpu", bars=False).pipe
    captions = Captions()
    pipe.unet.set_attn_processor(AttnProcessor())  # trains faster than SDPA on a CPU
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.image_encoder):
        part.requires_grad_(False)

    @torch.no_grad()
    def encode_text(lines: list[str]) -> TextStates:
        tokens = torch.tensor([captions.encode(line) for line in lines])
        return pipe.text_encoder(tokens).last_hidden_state, {}

    times = Timesteps(uniform=0.35, mean=1.6, std=1.2)
    return TrainableBase(pipe, pipe.unet, pipe.image_encoder, encode_text, 9e-4, times)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


def other_look(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same shape at the same place, its look drawn anew without regard to the old one."""
    while True:
        drawn = scenes.random_scene(rng)
        if (scene.shape, drawn.colour) not in scenes.HELD_OUT_PAIRS:
            return replace(scene, **{name: getattr(drawn, name) for name in LOOK})


def draw_references(part: int, count: int) -> tuple[list[Scene], list[list[Scene]]]:
    """Targets, and `LOOKS` content references of each. No pair that training never shows."""
    targets = list(islice(scenes.stream("train", seed=100 + part), count))
    rng = np.random.default_rng([11, part])
    return targets, [[other_look(scene, rng) for _ in range(LOOKS)] for scene in targets]


@torch.no_grad()
def encode_pictures(base: TrainableBase, count: int, path: Path) -> None:
    """Write latents and features of `count` targets, and the features of their references."""
    if path.exists():
        return
    targets, contents = draw_references(0, count)
    vae, parts = base.pipe.vae, range(0, count, 128)
    state: dict[str, list[Tensor]] = {"latents": [], "style": [], "content": []}
    for start in parts:
        rows = slice(start, start + 128)
        drawn = to_tensor(np.stack([scenes.render(scene) for scene in targets[rows]]))
        latents = vae.encode(drawn).latent_dist.mode() * vae.config.scaling_factor
        state["latents"].append(latents.half())
        state["style"].append(encode(base.image_encoder, drawn)[1])
        flat = [scenes.render(one) for every in contents[rows] for one in every]
        state["content"].append(encode(base.image_encoder, to_tensor(np.stack(flat)))[1])
    save_atomic({name: torch.cat(values) for name, values in state.items()}, path)


class PairDataset(DrawnDataset):
    """Latents and partial captions of the targets, features of a content and a style reference."""

    def __init__(self, work: Path, base: TrainableBase, count: int = COUNT) -> None:
        path = work / "pairs.pt"  # the stacks share autoencoder and tower
        encode_pictures(base, count, path)
        state = load_state(path)
        self.latents, self.style, self.content = (
            state[name] for name in ("latents", "style", "content")
        )
        self.scenes = draw_references(0, count)[0]
        by_look: dict[tuple[str, ...], list[int]] = {}
        for index, scene in enumerate(self.scenes):
            by_look.setdefault(look_of(scene), []).append(index)
        self.same_look = [by_look[look_of(scene)] for scene in self.scenes]
        with torch.no_grad():
            zeros = torch.zeros(1, 3, scenes.SIZE, scenes.SIZE)
            null = base.image_encoder(zeros, output_hidden_states=True).hidden_states[-2]
        super().__init__(base, (null, null))

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        """Mostly empty captions; a style reference of another shape wherever there is one."""
        lines, styles = [], []
        for seed, index in zip(streams.integers(2**62).tolist(), indices.tolist(), strict=True):
            rng, scene = np.random.default_rng(seed), self.scenes[index]
            same = self.same_look[index]
            others = [i for i in same if self.scenes[i].shape != scene.shape] or same
            styles.append(others[rng.integers(len(others))])
            if rng.random() < 0.1:
                lines.append("a shape")
            else:
                lines.append(scenes.random_caption(scene, rng, full=0.05, empty=0.55))
        contents = indices * LOOKS + streams.integers(LOOKS)
        features = (self.content[contents].float(), self.style[styles].float())
        text, added = self.base.encode_text(lines)
        return Batch(self.latents[indices].float(), text, features, added)

    def as_tokens(self, lines: list[str]) -> Tensor:
        """The states of texts as the base's attention reads them, [b, l, W]."""
        denoiser = self.base.denoiser
        return training_of(denoiser).as_tokens(denoiser, self.base.encode_text(lines)[0])

    def content_states(self, step: int) -> tuple[Tensor, Tensor]:
        """Features of content references; the states of "a star" and tokens of where it is."""
        indices = indices_at(step, WARM_START_BATCH, len(self.content), seed=1)
        chosen = [self.scenes[index // LOOKS] for index in indices.tolist()]
        lines = [scenes.caption(scene, {"shape"}) for scene in chosen]
        with torch.no_grad():
            states = self.as_tokens(lines)[:, :TAUGHT]
        free = OPTIONS["content"]["num_tokens"] - TAUGHT
        geometry = torch.tensor([scene.geometry() for scene in chosen])
        places = place_tokens(geometry, free, states)
        return self.content[indices].float(), torch.cat((states, places), dim=1)

    def style_states(self, step: int) -> tuple[Tensor, Tensor]:
        """Features of pictures, and the states of "a striped red shape on a blue background"."""
        indices = indices_at(step, WARM_START_BATCH, len(self.scenes), seed=2)
        lines = [scenes.caption(self.scenes[index], {*LOOK}) for index in indices.tolist()]
        with torch.no_grad():
            states = self.as_tokens(lines)[:, : OPTIONS["style"]["num_tokens"]]
        return self.style[indices].float(), states


def look_of(scene: Scene) -> tuple[str, ...]:
    """The four words of its look."""
    return tuple(getattr(scene, name) for name in LOOK)


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def warm_start(base: TrainableBase, samples: PairDataset, path: Path, steps: int) -> None:
    """Write a pair whose projectors have learned the words."""
    if path.exists():
        return
    torch.manual_seed(4)
    made: list[Adapter] = []
    pairs: Mapping[str, Callable[[int], tuple[Tensor, Tensor]]] = {
        "content": samples.content_states,
        "style": samples.style_states,
    }
    for part, options in OPTIONS.items():
        adapter = Adapter.create(
            "plus", denoiser=base.denoiser, encoder=base.image_encoder, init=base.init, **options
        )
        left = fit_projector_to_captions(adapter.module.image_proj, pairs[part], steps)
        print(f"{part}: {left:.1%} of the variance unexplained", flush=True)
        made.append(adapter)
    AdapterPair(*made).save(path)


@torch.no_grad()
def deepen(adapter: Adapter, depth: int) -> None:
    """Add layers that change nothing: diffusers and ComfyUI read resamplers of depth 4 alone."""
    spec, projector = adapter.spec.projector, adapter.module.image_proj
    layers: Any = projector.layers
    torch.manual_seed(14)
    for _ in range(depth - len(layers)):
        layer = ResamplerLayer(spec.inner_dim, spec.heads)
        for added in (layer[0].to_out, layer[1][-1]):
            added.weight *= 1e-5
        layers.append(layer.to(next(projector.parameters())))
    adapter.spec = replace(adapter.spec, projector=replace(spec, depth=depth))


def train(
    base: TrainableBase, work: Path, steps: int, stack: Path, batch: int = 32, count: int = COUNT
) -> None:
    """Train a pair for this many steps, and put it into the stack; an unfinished run is resumed."""
    work.mkdir(parents=True, exist_ok=True)
    samples = PairDataset(work, base, count)
    start = work / f"{base.name}pair-start.safetensors"
    warm_start(base, samples, start, min(WARM_START_STEPS, steps))
    pair = AdapterPair.load(start).attach(base.pipe, encoder=base.image_encoder)
    fit(
        base,
        pair,
        samples,
        work / f"{base.name}run-pair",
        PairObjective,
        steps=steps,
        batch_size=batch,
        checkpoint_every=200,
        drop=ConditionDropout(image=0.03, text=0.0, both=0.03),
        style=PartConfig(drop=0.24, off=0.6),  # so that content alone leaves the look free
    )
    if base.denoiser is getattr(base.pipe, "unet", None):  # others read no pair for SD3
        deepen(pair.style, OPTIONS["content"]["depth"])
    pair.module.half()
    target = work / f"{base.name}adapters" / f"{bundled.PAIR}.safetensors"  # for the next export
    target.parent.mkdir(exist_ok=True)
    pair.save(target)
    shutil.copyfile(target, stack / "adapters" / target.name)


def main(open_base: Callable[[Path], TrainableBase], stack: Path) -> None:
    """The command line: work folder and steps; the pair is put into the stack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--stack", type=Path, default=stack, help="the exported stack")
    options = vars(parser.parse_args())
    train(open_base(options["stack"]), **options)


if __name__ == "__main__":
    main(unet_base, STACK)
