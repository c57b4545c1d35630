"""What judge and image encoder learn of a scene: its words, and what each of 16x16 cells shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imageprompt.demo import scenes_128 as scenes
from imageprompt.demo.judge_128 import ALONE, CELL_HEADS, CELLS, HEADS

ABSENT = -100  # the label of what a scene does not have
FINE = 4  # parts of a cell's side in its outline
NEAR = 1.6  # radii within which a cell can say where in the object it lies
SHAPE_WEIGHT = 3.0
CELL_OUTPUTS = sum(CELL_HEADS.values()) + 3


def labels(chosen: list[scenes.Scene]) -> Tensor:
    """Index of the word of every head, [n, heads]; ABSENT where a scene has none."""
    rows = []
    for scene in chosen:
        words = {"relation": ALONE} | scene.words()
        rows.append([HEADS[name].index(words[name]) if name in words else ABSENT for name in HEADS])
    return torch.tensor(rows)


def objects(chosen: list[scenes.Scene]) -> Tensor:
    """Which object in reading order is at the centre of each cell, 0 for none: uint8 [n, 256]."""
    found = np.zeros((len(chosen), CELLS, CELLS), np.uint8)
    for row, scene in zip(found, chosen, strict=True):
        for index, thing in enumerate(scene.in_reading_order(), start=1):
            row[scenes.mask(thing, CELLS)] = index
    return torch.from_numpy(found).flatten(1)


def near_objects(owners: Tensor) -> Tensor:
    """Which latents lie in an object or beside it, by `objects`: 0 or 1, [n, 1, 16, 16]."""
    inside = (owners > 0).float().view(-1, 1, CELLS, CELLS)
    return F.max_pool2d(inside, 3, stride=1, padding=1)


def outlines(chosen: list[scenes.Scene]) -> Tensor:
    """The parts of each cell that an object covers: uint8 [n, 256, 16]."""
    side = CELLS * FINE
    found = np.zeros((len(chosen), side, side), np.uint8)
    for row, scene in zip(found, chosen, strict=True):
        for thing in scene.things:
            row[scenes.mask(thing, side)] = 1
    cells = found.reshape(-1, CELLS, FINE, CELLS, FINE).transpose(0, 1, 3, 2, 4)
    return torch.from_numpy(cells.reshape(len(chosen), CELLS**2, FINE**2))


def offsets(chosen: list[scenes.Scene]) -> Tensor:
    """Where each cell lies in the nearest object, in its radii, and the radius: half [n, 256, 3].

    In pixels over 64; nan where no object is near.
    """
    axis = (np.arange(CELLS, dtype=np.float32) + 0.5) * (scenes.SIZE / CELLS)
    found = np.full((len(chosen), CELLS, CELLS, 3), np.nan, np.float16)
    for row, scene in zip(found, chosen, strict=True):
        distances = np.full((CELLS, CELLS), NEAR, np.float32)
        for thing in scene.things:
            dx = np.broadcast_to((axis[None, :] - thing.x) / thing.radius, (CELLS, CELLS))
            dy = np.broadcast_to((axis[:, None] - thing.y) / thing.radius, (CELLS, CELLS))
            distance = np.hypot(dx, dy)
            nearer = distance < distances
            distances[nearer] = distance[nearer]
            row[nearer, 0], row[nearer, 1] = dx[nearer], dy[nearer]
            row[nearer, 2] = thing.radius / 64
    return torch.from_numpy(found).flatten(1, 2)


def cell_labels(words: Tensor, owners: Tensor) -> dict[str, Tensor]:
    """Labels [n, 256] for CELL_HEADS from `labels` and `objects`; ABSENT where a cell has none."""
    names, owners = list(HEADS), owners.long()
    result = {"object": owners}
    for name in scenes.OBJECT_WORDS:
        both = words[:, [names.index(f"first {name}"), names.index(f"second {name}")]]
        both = F.pad(both, (1, 0), value=ABSENT)
        result[name] = both.gather(1, owners)
    for name in scenes.GROUND_WORDS:
        ground = words[:, names.index(name), None].expand_as(owners)
        result[name] = ground.masked_fill(owners > 0, ABSENT)
    return result


def word_loss(logits: dict[str, Tensor], words: Tensor) -> Tensor:
    """Sum of the cross-entropies of all heads."""
    return torch.stack(
        [
            F.cross_entropy(logits[name].float(), words[:, index], ignore_index=ABSENT)
            for index, name in enumerate(HEADS)
        ]
    ).nansum()


def cell_word_loss(logits: Tensor, words: Tensor, owners: Tensor, *, even: bool = False) -> Tensor:
    """Sum of the cross-entropies of all cells' heads, for logits [n, 256, sum of CELL_HEADS].

    All cells count alike; with `even` all objects do, however small, and shapes three times.
    """
    targets = cell_labels(words, owners)
    parts = logits.float().split(list(CELL_HEADS.values()), 2)
    cells = F.one_hot(owners.long(), CELL_HEADS["object"]).sum(1).gather(1, owners.long())
    losses = []
    for name, part in zip(CELL_HEADS, parts, strict=True):
        rows, target = part.transpose(1, 2), targets[name]
        loss = F.cross_entropy(rows, target, ignore_index=ABSENT, reduction="none")
        own = even and name in scenes.OBJECT_WORDS
        weights = (target != ABSENT) / (cells if own else 1)
        factor = SHAPE_WEIGHT if even and name == "shape" else 1
        losses.append(factor * (loss * weights).sum() / weights.sum())
    return torch.stack(losses).sum()


def cell_loss(
    outputs: Tensor, words: Tensor, owners: Tensor, places: Tensor, *, even: bool = False
) -> Tensor:
    """`cell_word_loss` and the error of the cells' `offsets`; outputs are [n, 256, CELL_OUTPUTS].

    Who knows where in an object it lies learns its outline much faster.
    """
    logits, found = outputs.float().split([CELL_OUTPUTS - 3, 3], 2)
    known = places.isnan().logical_not()
    error = F.smooth_l1_loss(found[known], places[known].float())
    return cell_word_loss(logits, words, owners, even=even) + 4 * error
