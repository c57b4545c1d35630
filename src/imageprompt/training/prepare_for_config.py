"""From a config to a filled feature cache: opens what `prepare` needs, and asks for no more."""

from __future__ import annotations

import os
from collections.abc import Callable

from imageprompt.core.errors import OptionError
from imageprompt.training.cache.encode_missing import OnProgress
from imageprompt.training.cache.encoders import FeatureExtractors
from imageprompt.training.cache.prepare import Prepared, prepare
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.sources import DataOptions, open_data
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.train import pictures_of
from imageprompt.variants import VARIANTS


def prepare_for(
    config: TrainingConfig,
    *,
    encoders: FeatureExtractors | None = None,
    verify: bool = False,
    dry_run: bool = False,
    log: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Prepared:
    """Fill the cache that `config` names with all that its run reads. Raises as `prepare` does.

    `encoders` are loaded where they are not given.
    """
    if config.cache is None:
        raise OptionError(
            "config key 'cache'",
            reason="it names no folder to prepare",
            hint="Add a line `cache: FOLDER`, or --set cache=FOLDER.",
        )
    data = DataOptions.of(config.data)
    records = open_data(data)  # before the models: what is wrong with it is told at once
    if encoders is None:
        base = FrozenPipeline.load(
            config.base,
            config.encoder,
            precision=config.mixed_precision,
            device=config.device or device_of_rank(),
        )
        encoders = FeatureExtractors(base, VARIANTS[config.variant])
    return prepare(
        records,
        encoders,
        pictures_of(config),
        config.cache_folder,
        max_broken=data.max_broken,
        online=config.online,
        verify=verify,
        dry_run=dry_run,
        log=log,
        on_progress=on_progress,
    )


def device_of_rank() -> str | None:
    """The accelerator of this process where torchrun has started several; None: the best one."""
    import torch

    rank, count = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    return f"cuda:{int(rank) % count}" if rank is not None and count > 1 else None
