"""Builds a feature cache: VAE moments, text states and image features, each encoded once.

A build may be killed at any moment and continued, and several processes may share it: the address
of an entry follows from what it is computed from, and its partition is locked while it is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import OptionError, printable, shortened
from imageprompt.training.cache.cached_dataset import CacheIndex, index_path, open_store
from imageprompt.training.cache.encode import CacheEncoder, OnProgress
from imageprompt.training.cache.plan import CachePlan
from imageprompt.training.cache.store import Store, check_free_space
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.feature_extractors import (
    FeatureExtractors,
    dataset_fingerprint,
    feature_to_read,
)
from imageprompt.training.data.scan import Quarantine, Scan
from imageprompt.training.data.sources import DataOptions, Records, open_data
from imageprompt.training.data.views import PictureOptions

KIND_NAMES = {"moments": "pictures", "text": "captions", "features": "image features"}
"""What people call the kinds of entries."""

Log = Callable[[str], None]


@dataclass
class CacheReport:
    """What `build_cache` did. `encoded`, `existing`: entries by kind, made now and found."""

    path: Path
    """The file of the index."""
    samples: int
    index: CacheIndex | None = None
    """None after a dry run."""
    encoded: dict[str, int] = field(default_factory=dict)
    existing: dict[str, int] = field(default_factory=dict)
    new_bytes: dict[str, int] = field(default_factory=dict)
    """Disk space of the entries that were missing, by kind."""
    damaged: list[str] = field(default_factory=list)
    """Shards that were removed, and why."""
    broken: list[str] = field(default_factory=list)
    """Samples that cannot be read, and why."""
    truncated_captions: int = 0
    """Captions with more tokens than the text encoder reads."""
    upscaled: int = 0
    """Pictures smaller than the size they are trained at."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """All but the index, as plain values."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "index"}
        return plain | {"path": str(self.path)}


def build_cache(
    records: Records,
    extractors: FeatureExtractors,
    options: PictureOptions,
    folder: Path,
    *,
    max_broken: float = 0.02,
    online: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    batch_size: int = 8,
    log: Log = lambda line: None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> CacheReport:
    """Encode everything that these records need and the cache in `folder` lacks.

    `online` leaves image features out. `verify` reads all entries and replaces damaged ones.
    `dry_run` checks all pictures and stops before encoding. `log` receives the disk space needed,
    and later the numbers of truncated captions and upscaled pictures. Raises OptionError (disk too
    small, unlimited views), PictureError (too many broken), CacheError (disk full, picture
    replaced).
    """
    started = time.monotonic()
    if options.fixed_views == 0:
        raise OptionError(
            "views: 0",
            reason="an unlimited number of random crops cannot be cached",
            hint="Set views to 4, or train without `cache`.",
        )
    check_folder(folder).mkdir(parents=True, exist_ok=True)
    quarantine = Quarantine(len(records), max_broken, records.problems())
    scan = Scan(records, folder / "survey", faces=extractors.reads_faces)
    # a build decodes pictures when it encodes them, once
    result = scan.run(
        quarantine, decode=dry_run, on_progress=_counted(on_progress, "scan", len(records))
    )
    plan = CachePlan(result, extractors, options, online)
    path = index_path(folder, records, extractors, options, online)
    report = CacheReport(path, plan.samples)
    stores = {kind: open_store(folder, kind, extractors.model_ids[kind]) for kind in plan.kinds}
    report.damaged = [line for store in stores.values() for line in _drop_damaged(store, verify)]
    for kind, store in stores.items():
        entries = plan.entries(kind)
        missing = int((~store.has(entries.addresses)).sum())
        report.existing[kind] = len(entries.addresses) - missing
        report.new_bytes[kind] = missing * entries.largest
        if missing:
            size = format_bytes(report.new_bytes[kind])
            log(f"{missing:,} {KIND_NAMES[kind]} to encode: {size}")
    _check_space(report.new_bytes, folder, log)
    if not dry_run:
        encoder = CacheEncoder(
            records,
            extractors,
            plan,
            stores,
            quarantine,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        encoder.encode_pictures()
        encoder.encode_captions()
        report.encoded = encoder.encoded
        scan.save(result)
    report.broken, report.upscaled = quarantine.lines(), plan.upscaled
    if not dry_run:
        tokens = plan.token_counts(stores["text"])
        report.truncated_captions = int((tokens > extractors.max_tokens).sum())
        _log_changes(report, extractors.max_tokens, log)
        fingerprint = dataset_fingerprint(records, extractors, options)
        report.index = plan.index(tokens, report.broken, fingerprint)
        known = CacheIndex.load(path, records, extractors, options, online)
        if known is None or not known.equals(report.index):
            report.index.save(path)
    report.seconds = time.monotonic() - started
    return report


def build_cache_for(
    config: TrainingConfig,
    *,
    extractors: FeatureExtractors | None = None,
    verify: bool = False,
    dry_run: bool = False,
    log: Log = lambda line: None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> CacheReport:
    """`build_cache` for everything that a config's run reads. Raises the same errors.

    Models are loaded unless `extractors` are given.
    """
    if config.cache_folder is None:
        raise OptionError(
            "config key 'cache'",
            reason="names no folder",
            hint="Add a line `cache: FOLDER`, or --set cache=FOLDER.",
        )
    data = DataOptions.of(config.data)
    records = open_data(data)  # before the models, so that errors in the data show at once
    if extractors is None:
        from imageprompt.training.frozen_pipeline import FrozenPipeline
        from imageprompt.variants import VARIANTS

        base = FrozenPipeline.load(
            config.base,
            config.encoder,
            precision=config.mixed_precision,
            device=config.device or device_of_rank(),
            max_length=config.max_sequence_length,
        )
        feature = feature_to_read(config)
        extractors = FeatureExtractors(base, VARIANTS[config.variant], feature)
    options = PictureOptions.of(config)
    extractors.check_sizes(options.sizes)
    return build_cache(
        records,
        extractors,
        options,
        config.cache_folder,
        max_broken=data.max_broken,
        online=config.online or config.pairs != "none",
        verify=verify,
        dry_run=dry_run,
        log=log,
        on_progress=on_progress,
    )


def device_of_rank() -> str | None:
    """The accelerator of this process if torchrun started several; None: the best one."""
    import torch

    rank, count = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    return f"cuda:{int(rank) % count}" if rank is not None and count > 1 else None


def format_bytes(size: int) -> str:
    """ "4.40 MB", "1.20 GB"."""
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"


def _counted(on_progress: OnProgress, phase: str, total: int) -> Callable[[int], None]:
    """A callback that adds up the numbers it receives."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        on_progress(phase, done, total)

    return add


def _check_space(new_bytes: dict[str, int], folder: Path, log: Log) -> None:
    """Report the disk space needed before it is used. Raises OptionError if it is not free."""
    needed, features = sum(new_bytes.values()), new_bytes.get("features", 0)
    if needed:
        log(f"{format_bytes(needed)} in total in {str(folder)!r}")
    if features > max(needed / 2, 10**9):
        log(f"online: true would save the {format_bytes(features)} of image features")
    check_free_space(folder, needed)


def _log_changes(report: CacheReport, max_tokens: int, log: Log) -> None:
    """Report upscaled pictures and truncated captions."""
    if report.upscaled:
        log(f"{report.upscaled:,} pictures are smaller than the training size and are upscaled")
    if report.truncated_captions:
        log(
            f"{report.truncated_captions:,} captions are longer than {max_tokens} tokens and are "
            "truncated"
        )


def _drop_damaged(store: Store, verify: bool) -> list[str]:
    """Remove damaged shards; a line for each. `verify` reads all content, not only headers."""
    if verify:
        store.check()
    lines = []
    for shard, reason in list(store.damaged.items()):
        with store.writing(shard.partition("-")[0]):
            if store.drop(shard, deep=verify):
                lines.append(printable(f"{store.folder / shard}: {shortened(reason)}"))
    return lines
