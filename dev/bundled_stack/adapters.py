"""Train the base and the Plus adapter of the bundled stack with the package's own trainer.

First the projector learns the words of full captions (`training/init.py`), then
the adapter is trained like any other.
"""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bundled_stack import pool
from bundled_stack.base import Captions
from bundled_stack.export import pipeline
from bundled_stack.latents import load_latents
from imageprompt.demo import scenes
from imageprompt.hosts import training_of
from imageprompt.training.config.config import ConditionDropout, Timesteps, TrainingConfig
from imageprompt.training.data.dataset import Batch, Dataset, RandomStreams, indices_at
from imageprompt.training.init import choose_states, fit_projector_to_captions
from imageprompt.training.loop.objective import Objective
from imageprompt.training.loop.trainer import Trainer

OPTIONS: dict[str, dict[str, Any]] = {
    "base": {"num_tokens": 4},
    "plus": {"num_tokens": 12, "depth": 4, "inner_dim": 64, "heads": 1},
}
WARM_START_BATCH = 64
FULL_CAPTION = 11  # tokens of "a striped red star on a plain blue background", with start and end


TextStates = tuple[Tensor, dict[str, Tensor]]
"""States of texts [n, l, d], and the denoiser's other conditions by text [n, ...]."""


@dataclass(frozen=True)
class TrainableBase:
    """A finished base as adapters are trained on it, and what suits it."""

    pipe: Any
    denoiser: Any
    image_encoder: Any
    encode_text: Callable[[list[str]], TextStates]
    rate: float
    timesteps: Timesteps
    shift: float | None = None
    """Of the noise levels that are drawn; the scheduler's own by default."""
    init: Literal["copy", "zero"] | None = None
    contradicting: float = 0.2
    """Share of samples whose reference the caption contradicts."""
    places: int = 0
    """Of an adapter with more tokens, those that first learn where the object is."""
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: OPTIONS)
    dataset: Callable[..., Dataset] | None = None
    """Its samples, where they are not those of the pool."""
    objective: type[Objective] = Objective
    warm_start_steps: int = 3000
    fit_layers: Callable[[Any, Any, int], None] | None = None
    """Where K' and V' start instead: fits those of an adapter to samples, for so many words."""
    name: str = ""
    """Begins the names of its files in the work folder."""


def unet_base(work: Path) -> TrainableBase:
    """The bundled stack."""
    pipe, captions = pipeline(work), Captions()

    @torch.no_grad()
    def encode(lines: list[str]) -> TextStates:
        tokens = torch.tensor([captions.encode(line) for line in lines])
        return pipe.text_encoder(tokens).last_hidden_state, {}

    # the outline is decided in the first steps of sampling, where there is little but noise
    times = Timesteps(uniform=0.35, mean=1.6, std=1.2)
    return TrainableBase(pipe, pipe.unet, pipe.image_encoder, encode, 9e-4, times)


def place_tokens(geometry: Tensor, count: int, like: Tensor) -> Tensor:
    """Tokens [b, count, W] of centre, size and turn [b, 4], at the strength of text states `like`.

    Fixed random directions: what they mean, K' and V' learn from the denoiser.
    """
    middle, scale = torch.tensor([[0.5, 0.5, 0.36, 0.0], [16.0, 16.0, 22.0, 10.0]])
    values = (geometry - middle) * scale
    waves = torch.cat([values, *(f(k * values) for k in (1, 2) for f in (torch.sin, torch.cos))], 1)
    generator = torch.Generator().manual_seed(12)
    directions = torch.randn(waves.shape[1], count * like.shape[2], generator=generator)
    tokens = (waves @ directions) / waves.shape[1] ** 0.5
    return tokens.unflatten(1, (count, -1)) * like.std() + like.mean((0, 1))


class DrawnDataset(Dataset):
    """Samples whose text is encoded by the base; subclasses set `scenes` and draw the batches."""

    scenes: Sequence[Any]

    def __init__(self, base: TrainableBase, null_features: Any) -> None:
        self.base, self._null_features = base, null_features
        self._null_text, self._null_added = base.encode_text([""])

    def __len__(self) -> int:
        return len(self.scenes)

    def null_text(self) -> Tensor:
        return self._null_text

    def null_added(self) -> dict[str, Tensor]:
        return self._null_added

    def null_features(self) -> Any:
        return self._null_features


class CaptionedDataset(DrawnDataset):
    """Samples whose captions an adapter can learn first.

    Subclasses also set the latents, and the features of the references: `same`, and `other`, of
    references that show something else.
    """

    latents: Tensor
    same: Tensor
    other: Tensor

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        """Random partial captions; some of the references contradict their caption."""
        seeds = streams.integers(2**62).tolist()
        contradicting = streams.rand() < self.base.contradicting
        lines = []
        for row, index in enumerate(indices.tolist()):
            rng = np.random.default_rng(seeds[row])
            if contradicting[row]:
                lines.append(self.corrected_caption(index, rng))
            elif rng.random() < 0.3:
                lines.append("a shape")
            else:
                lines.append(self.partial_caption(index, rng))
        mask = contradicting.reshape(-1, *(1,) * (self.same.ndim - 1))
        features = torch.where(mask, self.other[indices], self.same[indices]).float()
        text, added = self.base.encode_text(lines)
        return Batch(self.latents[indices].float(), text, features, added)

    @abstractmethod
    def corrected_caption(self, index: int, rng: np.random.Generator) -> str:
        """A caption that tells what the other reference shows differently, and some more words."""

    @abstractmethod
    def partial_caption(self, index: int, rng: np.random.Generator) -> str:
        """A caption with some of the words."""

    @abstractmethod
    def full_captions(self, indices: Tensor) -> list[str]:
        """Captions that tell all that a reference shows."""

    @abstractmethod
    def choose_words(self, states: Tensor, indices: Tensor, words: int) -> Tensor:
        """The rows of so many words of `full_captions`, [b, l, d] -> [b, words, d]."""

    @abstractmethod
    def geometry(self, indices: Tensor) -> list[Tensor]:
        """Centre, size and turn [b, 4] of each object."""

    def caption_states(self, step: int, tokens: int, places: int) -> tuple[Tensor, Tensor]:
        """Features of the references of a step; the states of their captions, tokens of places."""
        indices = indices_at(step, WARM_START_BATCH, len(self), seed=1)
        denoiser = self.base.denoiser
        with torch.no_grad():
            states = self.base.encode_text(self.full_captions(indices))[0]
            states = training_of(denoiser).as_tokens(
                denoiser, self.choose_words(states, indices, tokens - places)
            )
        if places:
            objects = self.geometry(indices)
            own = [place_tokens(one, places // len(objects), states) for one in objects]
            states = torch.cat((states, *own), dim=1)
        return self.same[indices].float(), states


class SceneDataset(CaptionedDataset):
    """Latents, captions and encoded references of the pool."""

    def __init__(self, work: Path, kind: str, base: TrainableBase, null_features: Tensor) -> None:
        super().__init__(base, null_features)
        self.latents = load_latents(work)
        self.scenes = pool.load_scenes(work / "pool")
        shards = [
            torch.load(work / f"features-{index}.pt", mmap=True, weights_only=True)
            for index in pool.shards(work / "pool")
        ]
        self.same = torch.cat([shard[f"same_{kind}"] for shard in shards])
        self.other = torch.cat([shard[f"other_{kind}"] for shard in shards])
        self.changed = torch.cat([shard["changed"] for shard in shards])

    def corrected_caption(self, index: int, rng: np.random.Generator) -> str:
        changed = zip(scenes.ATTRIBUTES, self.changed[index], strict=True)
        named = {name for name, differs in changed if differs or rng.random() < 0.2}
        return scenes.caption(self.scenes[index], named)

    def partial_caption(self, index: int, rng: np.random.Generator) -> str:
        return scenes.random_caption(self.scenes[index], rng, full=0.05, empty=0.5)

    def full_captions(self, indices: Tensor) -> list[str]:
        return [scenes.caption(self.scenes[index]) for index in indices.tolist()]

    def choose_words(self, states: Tensor, indices: Tensor, words: int) -> Tensor:
        return choose_states(states, FULL_CAPTION, words)

    def geometry(self, indices: Tensor) -> list[Tensor]:
        return [torch.tensor([self.scenes[index].geometry() for index in indices.tolist()])]


def fit(
    base: TrainableBase,
    attached: Any,
    samples: Dataset,
    output: Path,
    kind: type[Objective] = Objective,
    **own: Any,
) -> None:
    """Train an attached adapter, or pair, with what all share; it ends with its EMA weights."""
    config = TrainingConfig(
        data=str(output.parent),
        output=str(output),
        learning_rate=base.rate,
        betas=(0.9, 0.99),
        ema=0.998,
        scales=(0.5, 1.0),  # at half scale, a picture still decides what the text leaves open
        schedule="cosine",
        decay_from=0.5,
        timesteps=base.timesteps,
        shift=base.shift,
        **own,
    )
    trainer = Trainer(
        attached,
        base.denoiser,
        base.pipe.scheduler,
        samples,
        config,
        config.folder,
        objective=replace(kind.of(config), autocast=True),  # the base is in float32
    )
    trainer.run()
    trainer.use_ema_weights()


def train(base: TrainableBase, work: Path, variant: str, steps: int, batch: int = 32) -> None:
    """Train one adapter for this many steps and save it; an unfinished run is resumed."""
    from imageprompt.adapter.adapter import Adapter

    kind = "embeds" if variant == "base" else "hidden"
    side = base.image_encoder.config.image_size
    with torch.no_grad():
        out = base.image_encoder(torch.zeros(1, 3, side, side), output_hidden_states=True)
    null = torch.zeros_like(out.image_embeds) if variant == "base" else out.hidden_states[-2]
    samples: Any = (base.dataset or SceneDataset)(work, kind, base, null)
    start = work / f"warm-start-{base.name}{variant}.safetensors"
    if not start.exists():
        torch.manual_seed(4)
        adapter = Adapter.create(
            variant,
            denoiser=base.denoiser,
            encoder=base.image_encoder,
            init=base.init,
            **base.options[variant],
        )
        tokens = base.options[variant]["num_tokens"]
        places = base.places if tokens > base.places else 0
        count = min(base.warm_start_steps, steps)
        left = fit_projector_to_captions(
            adapter.module.image_proj,
            lambda step: samples.caption_states(step, tokens, places),
            count,
        )
        print(
            f"{variant}: {left:.1%} of the captions' variance unexplained after {count} steps",
            flush=True,
        )
        if base.fit_layers is not None:
            base.fit_layers(adapter, samples, tokens - places)
        adapter.save(start)
    adapter = Adapter.load(start).attach(base.pipe, encoder=base.image_encoder)
    fit(
        base,
        adapter,
        samples,
        work / f"run-{base.name}{variant}",
        base.objective,
        steps=steps,
        batch_size=batch,
        checkpoint_every=300,
        # many captions are empty anyway; dropping the text beside a contradicting reference would
        # teach the adapter that the reference is wrong
        drop=ConditionDropout(image=0.06, text=0.0, both=0.06),
    )
    target = work / f"{base.name}adapters" / f"{variant}.safetensors"
    target.parent.mkdir(exist_ok=True)
    adapter.module.half()
    adapter.save(target)


def main(open_base: Callable[[Path], TrainableBase]) -> None:
    """The command line: work folder, variant and steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("variant", choices=sorted(OPTIONS))
    parser.add_argument("steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    options = vars(parser.parse_args())
    train(open_base(options["work"]), **options)


if __name__ == "__main__":
    main(unet_base)
