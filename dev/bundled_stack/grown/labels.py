"""What judge and image encoder learn of a scene: its words, and what each of 16x16 cells shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imageprompt.demo import scenes_128 as scenes
from imageprompt.demo.judge_128 import ALONE, CELL_HEADS, CELLS, HEADS

ABSENT = -100  # the label of what a scene does not have


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


def cell_loss(logits: Tensor, words: Tensor, owners: Tensor) -> Tensor:
    """Sum of the cross-entropies of all cells' heads, for logits [n, 256, sum of CELL_HEADS]."""
    targets = cell_labels(words, owners)
    parts = logits.float().split(list(CELL_HEADS.values()), 2)
    return torch.stack(
        [
            F.cross_entropy(part.flatten(0, 1), targets[name].flatten(), ignore_index=ABSENT)
            for name, part in zip(CELL_HEADS, parts, strict=True)
        ]
    ).sum()
