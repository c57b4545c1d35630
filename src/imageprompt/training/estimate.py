"""--dry-run: what would be trained, and the memory, steps and disk that it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imageprompt.core.atomic_files import check_folder
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.dataset import Batch, Samples
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.init.init_adapter import init_adapter
from imageprompt.training.loop.distributed import Processes
from imageprompt.training.loop.objective import NullConditions
from imageprompt.training.open_dataset import open_dataset
from imageprompt.training.train import check_validation, objective_of, pictures_of
from imageprompt.variants import VARIANTS

MEASURED_SIDE = 256
"""Activations are counted in one pass over a picture of this side at most, and scaled by area."""
PER_WEIGHT = 4 + 4 + 8  # the weight, its gradient and Adam's two averages, in float32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a config amounts to; sizes in bytes."""

    variant: str
    host: str
    begins: str
    tokens: int | None
    trained_parameters: int
    frozen_parameters: int
    data: str
    pictures_a_step: int
    steps: int
    epochs: float
    frozen_bytes: int
    trained_bytes: int
    activation_bytes: int
    """Of one process at `batch_size`, kept for the backward pass; an estimate."""
    output_bytes: int
    cache_bytes: int
    """Still to be written; 0 without a cache."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        memory = self.frozen_bytes + self.trained_bytes + self.activation_bytes
        tokens = self.tokens or "one a patch"
        lines = {
            "adapter": f"{self.variant} for {self.host}, tokens: {tokens}, {self.begins}",
            "trained": f"{self.trained_parameters:,} parameters of "
            f"{self.trained_parameters + self.frozen_parameters:,}",
            "data": self.data,
            "steps": f"{self.steps:,} of {self.pictures_a_step:,} pictures: {self.epochs:.3g} "
            "times through the data",
            "memory": f"about {_size(memory)} a process: {_size(self.frozen_bytes)} frozen, "
            f"{_size(self.trained_bytes)} adapter and optimiser, "
            f"{_size(self.activation_bytes)} activations",
            "disk": f"{_size(self.output_bytes)} in the output, {_size(self.cache_bytes)} more in "
            "the cache",
        }
        return "\n".join(f"{name:<8} {line}" for name, line in lines.items())


def plan(config: TrainingConfig) -> Plan:
    """Open everything as `train` does, and train nothing; raises what `train` raises.

    Nothing is written but what a look at the pictures told, which a cache keeps.
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
    )
    encoders = FeatureExtractors(base, variant)
    samples = open_dataset(config.data, None, encoders, pictures_of(config))
    adapter = init_adapter(config, base).attach(base.pipe)
    frozen = _unique([*base.pipe.components.values(), getattr(base.encoder, "model", None)])
    adapter.module.requires_grad_(True)
    trained = sum(weight.numel() for weight in adapter.parameters())
    together = config.batch_size * config.accumulate * processes.count
    averages = 4 * trained if config.ema else 0
    adapter_files = 2 if config.validate_every else 1
    return Plan(
        variant=config.variant,
        host=adapter.spec.host,
        begins="new" if config.adapter is None else f"from {config.adapter}",
        tokens=adapter.spec.tokens,
        trained_parameters=trained,
        frozen_parameters=sum(weight.numel() for weight in frozen),
        data=samples.describe() if config.cache is None else f"{len(samples):,} samples, cached",
        pictures_a_step=together,
        steps=config.steps,
        epochs=config.steps * together / len(samples),
        frozen_bytes=sum(weight.nbytes for weight in frozen),
        trained_bytes=PER_WEIGHT * trained + averages,
        activation_bytes=config.batch_size * _activations(config, base, adapter, samples, frozen),
        output_bytes=(config.keep + 1) * (12 * trained + averages) + adapter_files * 4 * trained,
        cache_bytes=_cache_bytes(config, encoders),
    )


def _cache_bytes(config: TrainingConfig, encoders: FeatureExtractors) -> int:
    from imageprompt.training.cache.prepare import prepare
    from imageprompt.training.data.sources import DataOptions, open_data

    if config.cache is None:
        return 0
    data = DataOptions.of(config.data)
    done = prepare(
        open_data(data),
        encoders,
        pictures_of(config),
        config.cache_folder,
        max_broken=data.max_broken,
        online=config.online,
        dry_run=True,
    )
    return sum(done.room.values())


def _activations(
    config: TrainingConfig, base: Any, adapter: Any, samples: Samples, frozen: list[Tensor]
) -> int:
    """Bytes that one sample's forward pass keeps for its backward pass."""
    nulls, side = NullConditions.of(samples), min(config.resolution, MEASURED_SIDE)
    shape = (base.denoiser.config.in_channels, side // _factor(base), side // _factor(base))
    added = dict(nulls.added)
    if added:
        added["time_ids"] = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
    batch = Batch(torch.randn(1, *shape), nulls.text, nulls.features, added)
    weights = {t.untyped_storage().data_ptr() for t in (*frozen, *adapter.parameters())}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # alive until all is counted, so that no address is used again

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = objective_of(config).loss(
            adapter, base.denoiser, base.scheduler, batch, nulls, RandomStreams.at(0, 0, 1, 0)
        )
        with loss:
            pass
    return int(sum(kept.values()) * (config.resolution / side) ** 2)


def _factor(base: Any) -> int:
    """Pixels of a picture's side for one of its latents'."""
    return int(2 ** (len(base.pipe.vae.config.block_out_channels) - 1))


def _unique(parts: list[Any]) -> list[Tensor]:
    """All weights of the modules among `parts`, each once."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    found = {id(weight): weight for module in modules for weight in module.parameters()}
    return list(found.values())


def _size(count: int) -> str:
    """ "4.4 MB", "1.2 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
