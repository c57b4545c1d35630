"""Train the Plus adapter of the grown world, like those of the other stacks.

Twelve of its sixteen tokens first learn one word of the caption each, the other four where the
objects are. Then the base itself is a teacher: what it predicts when told the full caption.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundled_stack import adapters
from bundled_stack.base import Captions
from bundled_stack.checkpoints import load_state
from bundled_stack.grown import pool, vision
from bundled_stack.grown.base import SETTLED, near_weights
from bundled_stack.grown.export import pipeline
from bundled_stack.grown.features import changed_copies
from bundled_stack.grown.labels import near_objects, objects
from bundled_stack.sd3.adapters import fit_to_captions
from bundled_stack.sd3.base import PlainAttention
from imageprompt.demo import scenes_128 as scenes
from imageprompt.hosts import training_of
from imageprompt.training.config.config import Timesteps
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.loop.noise_schedule import NoiseSchedule
from imageprompt.training.loop.objective import NullConditions, Objective, RandomDraws

OPTIONS = {"plus": {"num_tokens": 16, "depth": 4, "inner_dim": 96, "heads": 2}}


@dataclass
class TaughtBatch(Batch):
    """Also the states of the full captions, and which latents are near an object [b, 1, h, w]."""

    full: adapters.TextStates = field(kw_only=True)
    near: Tensor = field(kw_only=True)


class TaughtObjective(Objective):
    """The error to the sample, and as much to what the base predicts for its full caption."""

    @contextmanager
    def loss_from_draws(
        self,
        adapter: Any,
        denoiser: Any,
        schedule: NoiseSchedule,
        batch: Batch,
        nulls: NullConditions,
        draws: RandomDraws,
    ) -> Iterator[Tensor]:
        """Loss [b] for given random draws; differentiable inside the block."""
        assert isinstance(batch, TaughtBatch)
        times = schedule.model_timesteps[draws.times]
        noisy = schedule.add_noise(batch.latents, draws.noise, draws.times)
        predict = partial(training_of(denoiser).predict, denoiser, noisy, times)
        text, added = nulls.in_dropped_rows(batch, draws.drop_text)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                taught = predict(*batch.full, 1.0).float()
            with self.in_use(adapter, batch.features, nulls.features, draws):
                found = predict(text, added, 1.0).float()
                target = schedule.target(batch.latents, draws.noise, draws.times)
                settled = times < 1000 * SETTLED
                yield taught_loss(found, target, taught, batch.near, settled, ~draws.drop_image)


def taught_loss(
    found: Tensor, target: Tensor, taught: Tensor, near: Tensor, settled: Tensor, shown: Tensor
) -> Tensor:
    """Loss [b]; `near` [b, 1, h, w] are the latents near objects, which count more.

    A teacher's prediction has none of the chance of one picture, which photographs are full of. But
    a caption does not tell exactly where objects are: before they are settled, the teacher predicts
    their mean over many places, and near them only the sample counts. `shown` [b]: with reference.
    """
    settled, shown = settled[:, None, None, None], shown[:, None, None, None]
    weights = near_weights(near)
    of_teacher = torch.where(settled, weights, 1 - near) * shown
    errors = weights * (found - target) ** 2 + of_teacher * (found - taught) ** 2
    return errors.flatten(1).mean(1)


def word_positions(scene: scenes.Scene) -> list[int]:
    """Where the twelve most telling words of a full caption stand, after the start token."""
    words = scenes.caption(scene).split()
    first = [1, 2, 3, 4]  # size, texture, colour, shape
    second = words.index("a", 4) if scene.relation else 0
    between = second - 1 if scene.relation else words.index("on") - 1
    last = len(words) - 2  # the colour of the ground
    rows = [*first, between, *(second + index for index in first), last - 1, last, len(words)]
    return [row + 1 for row in rows]


def in_reading_order(scene: scenes.Scene) -> scenes.Scene:
    """The same picture told from left to right or from top to bottom, which its reference shows."""
    relation = {"right of": "left of", "below": "above"}.get(scene.relation, scene.relation)
    return replace(scene, things=scene.in_reading_order(), relation=relation)


def geometry(scene: scenes.Scene) -> list[list[float]]:
    """Centre, size and turn of both objects, [2, 4]; of one alone twice."""
    rows = [
        [thing.x / scenes.SIZE, thing.y / scenes.SIZE, thing.radius / scenes.SIZE, thing.rotation]
        for thing in scene.things
    ]
    return [rows[0], rows[-1]]


class GrownDataset(adapters.CaptionedDataset):
    """Latents, captions and encoded references of the first `count` of `total` pictures."""

    def __init__(
        self,
        work: Path,
        kind: str,
        base: adapters.TrainableBase,
        null_features: Tensor,
        *,
        count: int,
        total: int,
    ) -> None:
        super().__init__(base, null_features)
        parts = [load_state(path) for path in sorted(work.glob(f"features-{count}-*.ckpt"))]
        self.same = torch.cat([part[f"same_{kind}"] for part in parts])
        self.other = torch.cat([part[f"other_{kind}"] for part in parts])
        self.scenes = list(islice(scenes.stream("train"), count))
        self.changed: list[frozenset[str]] = []
        for index, part in enumerate(parts):
            start = len(self.changed)
            chosen = self.scenes[start : start + len(part[f"same_{kind}"])]
            self.changed += [named for _, named in changed_copies(chosen, index)]
        self.latents = load_state(work / f"latents-{total}.ckpt")["values"][:count]
        self.near = near_objects(objects(self.scenes)).bool()
        self.often = pool.chances(self.scenes)

    def indices(self, step: int, batch: int, seed: int) -> Tensor:
        """Scenes with small objects, or two, come oftener."""
        rng = np.random.default_rng([seed, step])
        return torch.from_numpy(rng.choice(len(self), size=batch, p=self.often))

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        """Also what the teacher is told, and where the objects are."""
        full = [scenes.caption(self.scenes[index]) for index in indices.tolist()]
        return TaughtBatch(
            **vars(super().batch(indices, streams)),
            full=self.base.encode_text(full),
            near=self.near[indices].float(),
        )

    def corrected_caption(self, index: int, rng: np.random.Generator) -> str:
        more = {key for key in scenes.keys(self.scenes[index]) if rng.random() < 0.15}
        return scenes.caption(self.scenes[index], self.changed[index] | more)

    def partial_caption(self, index: int, rng: np.random.Generator) -> str:
        return scenes.random_caption(self.scenes[index], rng, full=0.05, empty=0.5)

    def full_captions(self, indices: Tensor) -> list[str]:
        return [scenes.caption(scene) for scene in self._read(indices)]

    def choose_words(self, states: Tensor, indices: Tensor, words: int) -> Tensor:
        rows = torch.tensor([word_positions(scene) for scene in self._read(indices)])
        assert rows.shape[1] == words
        return states.gather(1, rows[:, :, None].expand(-1, -1, states.shape[2]))

    def geometry(self, indices: Tensor) -> list[Tensor]:
        both = torch.tensor([geometry(scene) for scene in self._read(indices)])
        return list(both.unbind(1))

    def _read(self, indices: Tensor) -> list[scenes.Scene]:
        return [in_reading_order(self.scenes[index]) for index in indices.tolist()]


def grown_base(work: Path, count: int, total: int) -> adapters.TrainableBase:
    """The stack of the grown world, with its own image encoder."""
    pipe, captions = pipeline(work, total), Captions(scenes.all_words())
    pipe.transformer.set_attn_processor(PlainAttention())

    @torch.no_grad()
    def encode(lines: list[str]) -> adapters.TextStates:
        tokens = torch.tensor([captions.encode(line) for line in lines])
        out = pipe.text_encoder(tokens, output_hidden_states=True)
        states, pooled = out.hidden_states[-2], out.text_embeds
        added = {"pooled_projections": torch.cat([pooled, pooled], 1)}
        return torch.cat([states, states], 2), added

    return adapters.TrainableBase(
        pipe,
        pipe.transformer,
        vision.load(work),
        encode,
        rate=1.5e-3,
        timesteps=Timesteps(uniform=0.35, mean=1.5, std=1.2),
        shift=1.0,
        contradicting=0.3,
        places=4,
        name="grown-",
        options=OPTIONS,
        objective=TaughtObjective,
        dataset=partial(GrownDataset, count=count, total=total),
        warm_start_steps=4500,
        fit_layers=fit_to_captions,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--count", type=int, default=24_000, help="references")
    parser.add_argument("--total", type=int, default=48_000, help="pictures in the pool")
    torch.manual_seed(7)
    options = parser.parse_args()
    opened = grown_base(options.work, options.count, options.total)
    adapters.train(opened, options.work, "plus", options.steps)
