"""train --dry-run: what a config would train, and the memory, steps and disk that it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.adapter.adapter import Adapter
from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import as_text
from imageprompt.training.cache.open import open_dataset
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.dataset import Batch, Dataset, RandomStreams
from imageprompt.training.data.feature_extractors import FeatureExtractors, feature_to_read
from imageprompt.training.data.latents import Vae
from imageprompt.training.data.views import PictureOptions
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.init import init_trained
from imageprompt.training.loop.distributed import Processes
from imageprompt.training.loop.objective import NullConditions, Objective, objective_of
from imageprompt.training.memory.int8 import stored_weights
from imageprompt.training.train import check_validation
from imageprompt.variants import VARIANTS

MAX_SIDE = 256
"""Activations are measured in one pass over a picture of at most this side, and scaled by area."""
BYTES_PER_WEIGHT = 4 + 4 + 8  # the weight, its gradient and Adam's two moments, in float32


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """What a config amounts to; sizes in bytes."""

    variant: str
    host: str
    starts_from: str
    """ "new" or "from FILE"."""
    tokens: int | None
    """None: one per patch."""
    trained_parameters: int
    frozen_parameters: int
    data: str
    pictures_per_step: int
    steps: int
    epochs: float
    frozen_bytes: int
    trained_bytes: int
    """Weights, gradients, optimiser state and average."""
    activation_bytes: int
    """Kept for the backward pass, per process at `batch_size`; an estimate."""
    output_bytes: int
    cache_bytes: int
    """Still to be written; 0 without a cache."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        memory = self.frozen_bytes + self.trained_bytes + self.activation_bytes
        tokens = self.tokens or "one per patch"
        lines = {
            "adapter": f"{self.variant} for {self.host}, tokens: {tokens}, {self.starts_from}",
            "trained": f"{self.trained_parameters:,} parameters of "
            f"{self.trained_parameters + self.frozen_parameters:,}",
            "data": self.data,
            "steps": f"{self.steps:,} of {self.pictures_per_step:,} pictures: {self.epochs:.3g} "
            "epochs",
            "memory": f"about {_size(memory)} per process: {_size(self.frozen_bytes)} frozen, "
            f"{_size(self.trained_bytes)} adapter and optimiser, "
            f"{_size(self.activation_bytes)} activations",
            "disk": f"{_size(self.output_bytes)} for the output, {_size(self.cache_bytes)} more "
            "for the cache",
        }
        return as_text(f"{name:<8} {line}" for name, line in lines.items())


def estimate_run(config: TrainingConfig) -> RunEstimate:
    """Open everything as `train` does, but train nothing. Raises the errors of `train`.

    Only the scan of the pictures is written, and only if there is a cache.
    """
    check_folder(config.folder)
    check_validation(config)
    processes = Processes(config.device)
    variant = VARIANTS[config.variant]
    base = FrozenPipeline.load(
        config.base,
        config.encoder,
        precision=config.mixed_precision,
        device=config.device,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=config.max_sequence_length,
        int8=config.quantize == "int8",
    )
    base.check_guidance_scale(config.guidance_scale)
    extractors = FeatureExtractors(base, variant, feature_to_read(config))
    dataset = open_dataset(
        config.data, None, extractors, PictureOptions.of(config), pairs=config.pairs
    )
    adapter = init_trained(config, base).attach(base.pipe)
    each = (adapter,) if isinstance(adapter, Adapter) else adapter.adapters
    specs = [one.spec for one in each]
    tokens = [spec.tokens for spec in specs if spec.tokens is not None]
    frozen = _unique([*base.pipe.components.values(), getattr(base.encoder, "model", None)])
    adapter.module.requires_grad_(True)
    trained = sum(weight.numel() for weight in adapter.parameters())
    pictures_per_step = config.batch_size * config.accumulate * processes.count
    ema_bytes = 4 * trained if config.ema else 0
    adapter_files = 2 if config.validate_every else 1
    activations = _activation_bytes(config, base, extractors.vae, adapter, dataset, frozen)
    return RunEstimate(
        variant=config.variant if config.pairs == "none" else f"a pair of {config.variant}",
        host=specs[0].host,
        starts_from="new" if config.adapter is None else f"from {config.adapter}",
        tokens=sum(tokens) if len(tokens) == len(specs) else None,
        trained_parameters=trained,
        frozen_parameters=sum(weight.numel() for weight in frozen),
        data=dataset.describe() if config.cache is None else f"{len(dataset):,} samples, cached",
        pictures_per_step=pictures_per_step,
        steps=config.steps,
        epochs=config.steps * pictures_per_step / len(dataset),
        frozen_bytes=sum(weight.nbytes for weight in frozen),
        trained_bytes=BYTES_PER_WEIGHT * trained + ema_bytes,
        activation_bytes=config.batch_size * activations,
        output_bytes=(config.keep + 1) * (12 * trained + ema_bytes) + adapter_files * 4 * trained,
        cache_bytes=_cache_bytes(config, extractors),
    )


def _cache_bytes(config: TrainingConfig, extractors: FeatureExtractors) -> int:
    if config.cache is None:
        return 0
    from imageprompt.training.cache.build import build_cache_for

    report = build_cache_for(config, extractors=extractors, dry_run=True)
    return sum(report.new_bytes.values())


def _activation_bytes(
    config: TrainingConfig,
    base: Any,
    vae: Vae,
    adapter: Any,
    dataset: Dataset,
    frozen: list[Tensor],
) -> int:
    """Bytes that one sample's forward pass keeps for its backward pass.

    Measured at one or two small sizes; a part is the same at every size (a transformer's text), the
    rest grows with the area.
    """
    nulls, objective = NullConditions.of(dataset), objective_of(config)
    weights = [*frozen, *adapter.parameters()]

    def at(side: int) -> int:
        added = dict(nulls.added)
        if "text_embeds" in added:
            added["time_ids"] = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
        latents = torch.randn(1, vae.channels, side // vae.factor, side // vae.factor)
        batch = Batch(latents, nulls.text, nulls.features, added)
        return saved_bytes(objective, adapter, base, batch, nulls, weights)

    side = min(config.resolution, MAX_SIDE)
    largest = at(side)
    if side == config.resolution:
        return largest
    by_area = (largest - at(side // 2)) / 3  # what a quarter of the larger area adds
    return int(largest + by_area * 4 * ((config.resolution / side) ** 2 - 1))


def saved_bytes(
    objective: Objective,
    adapter: Any,
    base: Any,
    batch: Batch,
    nulls: NullConditions,
    weights: list[Tensor],
) -> int:
    """Bytes that the forward pass of a batch keeps for its backward pass, beside the weights.

    `base` has a denoiser and a scheduler.
    """
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        streams = RandomStreams.at(0, 0, len(batch.latents), 0)
        loss = objective.loss(adapter, base.denoiser, base.scheduler, batch, nulls, streams)
        with loss:
            pass
    return sum(saved.values())


def _unique(parts: list[Any]) -> list[Tensor]:
    """All weights of the modules among `parts`, each once."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    found = {id(weight): weight for module in modules for weight in stored_weights(module)}
    return list(found.values())


def _size(count: int) -> str:
    """ "4.4 MB", "1.2 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
