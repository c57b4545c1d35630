"""Train the image encoder, a stock CLIPVisionModelWithProjection: what is where in a scene.

The adapters will read the projected embedding and `hidden_states[-2]`, so linear heads on both are
trained on every attribute and on the geometry. A dense head predicts each patch's part of the
outline, which teaches shapes much faster than labels alone.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bundled_stack import pool
from bundled_stack.timed_run import TimedRun
from bundled_stack.vae import to_tensor
from imageprompt.demo import scenes

CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 128,
    "hidden_act": "gelu",
}
COUNTS = [len(words) for words in scenes.VOCABULARY.values()]


class VisionWithHeads(nn.Module):
    """The tower with its training heads; only the tower is exported."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        torch.manual_seed(2)
        self.tower: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG))
        self.tower.set_attn_implementation("eager")
        with torch.no_grad():  # the stock initialisation suits towers ten times as wide
            for name, weight in self.tower.named_parameters():
                if weight.ndim == 2 and "embedding" not in name:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * 0.8)
            self.tower.vision_model.embeddings.patch_embedding.weight.mul_(3.0)
            nn.init.normal_(self.tower.vision_model.embeddings.position_embedding.weight, std=0.3)
        width = CONFIG["hidden_size"]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.pooled = nn.Linear(CONFIG["projection_dim"], sum(COUNTS) + 4)
        self.tokens = nn.Linear(width, sum(COUNTS) + 4)
        self.patches = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the embedding and the mean token, [b, classes + 4] each; outlines [b, 64, 16]."""
        out = self.tower(x, output_hidden_states=True)
        hidden = self.norm(out.hidden_states[-2])
        embeds = F.layer_norm(out.image_embeds, out.image_embeds.shape[-1:])
        return self.pooled(embeds), self.tokens(hidden.mean(1)), self.patches(hidden[:, 1:])


def attribute_loss(outputs: Tensor, labels: Tensor, geometry: Tensor) -> Tensor:
    """Cross-entropy of the five attributes plus the error of the geometry, scaled to about 1."""
    *logits, place = torch.split(outputs.float(), [*COUNTS, 4], dim=1)
    loss = sum(
        (F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)), place.new_zeros(())
    )
    scale = place.new_tensor([8.0, 8.0, 20.0, 6.0])
    centre = place.new_tensor([0.5, 0.5, 0.36, 0.0])
    return loss + 0.5 * F.smooth_l1_loss(place, (geometry - centre) * scale)


def accuracies(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Fraction of correct answers per attribute."""
    parts = torch.split(outputs, [*COUNTS, 4], dim=1)
    return {
        name: float((part.argmax(1) == labels[:, i]).float().mean())
        for i, (name, part) in enumerate(zip(scenes.ATTRIBUTES, parts, strict=False))
    }


def outlines(labels: np.ndarray[Any, Any], geometry: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The cells of a 32x32 grid that the object covers, by patch: uint8 [n, 64, 16]."""
    axis = (np.arange(32, dtype=np.float32) + 0.5) * 2
    result = np.zeros((len(labels), 64, 16), np.uint8)
    for index, (row, place) in enumerate(zip(labels, geometry, strict=True)):
        x, y, radius = place[:3] * scenes.SIZE
        cos, sin = np.cos(place[3]), np.sin(place[3])
        dx, dy = axis[None, :] - x, axis[:, None] - y
        u, v = (dx * cos + dy * sin) / radius, (dy * cos - dx * sin) / radius
        inside = scenes.signed_distance(scenes.SHAPES[row[0]], u, v) < 0
        result[index] = inside.reshape(8, 4, 8, 4).transpose(0, 2, 1, 3).reshape(64, 16)
    return result


def held_out(count: int, split: str = "validation") -> tuple[Tensor, Tensor]:
    """Pictures and labels of a held-out split."""
    chosen = list(islice(scenes.stream(split, seed=77), count))
    pictures = to_tensor(np.stack([scenes.render(scene) for scene in chosen]))
    return pictures, torch.tensor([scene.labels() for scene in chosen])


@torch.no_grad()
def evaluate(run: TimedRun) -> None:
    """Log the accuracy of the EMA weights on held-out scenes."""
    model = VisionWithHeads().eval()
    model.load_state_dict(run.ema_state())
    x, labels = held_out(800)
    pooled, tokens, _ = model(x)
    accuracy = {f"embeds_{key}": value for key, value in accuracies(pooled, labels).items()}
    accuracy |= {f"tokens_{key}": value for key, value in accuracies(tokens, labels).items()}
    run.log(**accuracy)


def train(work: Path, minutes: float, autocast: bool = True) -> None:
    """Train for this many minutes; an unfinished run is resumed."""
    model = VisionWithHeads()
    run = TimedRun(
        work, "vision", model, minutes=minutes, rate=1.2e-3, decay=0.03, ema=0.998, flat=0.3
    )
    pictures = pool.load(work / "pool", "pictures")
    labels, geometry = pool.load(work / "pool", "labels"), pool.load(work / "pool", "geometry")
    dense = outlines(labels, geometry)
    rng = np.random.default_rng([3, run.steps])
    while not run.done:
        chosen = rng.integers(len(pictures), size=64)
        x = to_tensor(pictures[chosen])
        x = (x * (1 + 0.04 * torch.randn(len(x), 3, 1, 1)) + 0.03 * torch.randn_like(x)).clamp(
            -1, 1
        )
        target, place = torch.from_numpy(labels[chosen]).long(), torch.from_numpy(geometry[chosen])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pooled, tokens, patches = model(x)
        first = attribute_loss(pooled, target, place)
        second = attribute_loss(tokens, target, place)
        third = F.binary_cross_entropy_with_logits(
            patches.float(), torch.from_numpy(dense[chosen]).float()
        )
        run.step(
            first + second + third, len(x), {"embeds": first, "tokens": second, "dense": third}
        )
        if run.steps % 600 == 0:
            evaluate(run)
    evaluate(run)


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]))
