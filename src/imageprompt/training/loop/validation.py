"""Validation pictures: held-out references, fixed seeds, a score, and one contact sheet a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from imageprompt.adapter.adapter import Adapter
from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.contact_sheet import Page, text_height
from imageprompt.core.errors import OptionError
from imageprompt.encoding.encoders.contract import pooled_feature
from imageprompt.training.config.config import ValidationConfig
from imageprompt.training.data.feature_extractors import (
    FeatureExtractors,
    combine_features,
    stack_faces,
)
from imageprompt.training.data.sources import DataOptions, open_data

if TYPE_CHECKING:
    from imageprompt.training.frozen_pipeline import FrozenPipeline
    from imageprompt.training.loop.trainer import Trainer

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))
MIN_CELL, MAX_CELL, GAP, TEXT = 128, 256, 8, 12  # px


@dataclass(frozen=True)
class HeldOutReference:
    """A reference picture, and the arguments with which `Adapter.encode` encodes it."""

    picture: Image.Image
    encode_arguments: dict[str, Any]


class Validation:
    """Generates pictures at a step: one row a reference, one column a prompt, the same noise.

    The score is the mean cosine between the image encoder's pooled features of each reference and
    of the picture made with the first prompt. A pair sees each as content and as style. It measures
    closeness to the references, not picture quality: look at the sheets. Without an image encoder
    (FaceID) there is no score.
    """

    def __init__(
        self,
        base: FrozenPipeline,
        encoders: FeatureExtractors,
        config: ValidationConfig,
        size: int,
        folder: Path,
        *,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        from imageprompt.generation.pipeline_call import check_text_to_image

        self.base, self.pipe, self.encoder = base, base.pipe, base.encoder
        self.config, self.size, self.folder, self.log = config, size, folder, log
        load = _load_faces if encoders.reads_faces else _load_pictures
        self.references = load(config, encoders)
        self.sheets: list[Path] = []
        self.pipe.set_progress_bar_config(disable=True)
        check_text_to_image(self.pipe)

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """Write `step-N.png`; returns {"score": ...}, or {} without an image encoder."""
        pictures, metrics = [reference.picture for reference in self.references], {}
        with self.base.unparked():
            columns = [self._generate(trainer.adapter, prompt) for prompt in self.config.prompts]
            if self.encoder is not None and pooled_feature(self.encoder) is not None:
                metrics["score"] = similarity(self.encoder, columns[0], pictures)
        sheet = contact_sheet(pictures, self.config.prompts, columns)
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{trainer.step}.png"
        with write_atomically(path) as temporary:
            sheet.save(temporary)
        self.sheets.append(path)
        trainer.metrics.picture(trainer.step, "validation", sheet)
        score = f"score {metrics['score']:.4f}, " if metrics else ""
        self.log(f"validation at step {trainer.step}: {score}pictures in {path}")
        return metrics

    def _generate(self, adapter: Any, prompt: str) -> list[Image.Image]:
        """One picture a reference."""
        from imageprompt.generation.engine import Engine
        from imageprompt.generation.pipeline_call import guided_by

        config, pictures = self.config, []
        guidance: dict[str, Any] = {guided_by(self.pipe): config.guidance}
        engine = Engine(self.pipe)
        for row, reference in enumerate(self.references):
            shown: dict[str, Any]
            if isinstance(adapter, Adapter):
                shown = {"image_prompt": adapter.encode(**reference.encode_arguments)}
            else:
                shown = {"content": reference.picture, "style": reference.picture}
            made = engine.generate(
                prompt,
                **shown,
                adapter=adapter,
                scale=config.scale,
                size=(self.size, self.size),
                steps=config.steps,
                **guidance,
                seed=config.seed + row,
                progress=False,
            )
            pictures += made.images
        return pictures


def similarity(encoder: Any, made: Sequence[Image.Image], of: Sequence[Image.Image]) -> float:
    """CLIP-I with the encoder's own pooled features: the mean over pictures and references."""
    from imageprompt.evaluation.metrics.clip_i import METRIC

    feature = pooled_feature(encoder)
    ours, theirs = (encoder.encode([*rows], feature).float().cpu().numpy() for rows in (made, of))
    return float(METRIC.compare(ours, theirs).mean())


# ── references ──────────────────────────────────────────────────────────────────────────────────


def check_references(config: ValidationConfig, reads_faces: bool) -> None:
    """Raises OptionError if there are no references; cheap, so it runs before anything loads."""
    if reads_faces:
        if not isinstance(config.references, str):
            raise OptionError(
                f"validation.references {config.references!r}",
                reason="references of faces need identity embeddings",
                hint="Name a data list with id_embed_file, of faces that are not in `data`.",
            )
    else:
        reference_paths(config)


def reference_paths(config: ValidationConfig) -> list[Path]:
    """The first `count` pictures of the folder or list. Raises OptionError if there are none."""
    named = config.references
    paths = [Path(path).expanduser() for path in ([named] if isinstance(named, str) else named)]
    pictures = [
        file
        for path in paths
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.suffix.lower() in SUFFIXES
    ][: config.count]
    if not pictures:
        raise OptionError(
            f"validation.references {named!r}",
            reason="no pictures found",
            hint="Name a folder of pictures that are not in `data`, or set validate_every: 0.",
        )
    return pictures


def _load_pictures(config: ValidationConfig, _: FeatureExtractors) -> list[HeldOutReference]:
    from imageprompt.encoding.images.open_image import open_picture

    pictures = [open_picture(path) for path in reference_paths(config)]
    return [HeldOutReference(picture, {"pictures": [picture]}) for picture in pictures]


def _load_faces(config: ValidationConfig, encoders: FeatureExtractors) -> list[HeldOutReference]:
    """From a data list whose records have a face embedding each."""
    records = open_data(DataOptions.of(str(config.references)))
    references = []
    for index in range(min(config.count, len(records))):
        record = records.record(index)
        picture = record.open_reference()
        faces = stack_faces([record.id_embeds()], [record.key])
        features = encoders.encode_references([picture]) if encoders.reads_pictures else None
        encode_arguments = {
            "features": combine_features(encoders.feature, features, faces),
            "null_features": encoders.null_features(faces),
        }
        references.append(HeldOutReference(picture, encode_arguments))
    return references


# ── sheet ───────────────────────────────────────────────────────────────────────────────────────


def contact_sheet(
    references: Sequence[Image.Image],
    prompts: Sequence[str],
    columns: Sequence[Sequence[Image.Image]],
) -> Image.Image:
    """References on the left, the picture of each prompt beside them, prompts on top."""
    cell = max(MIN_CELL, min(MAX_CELL, columns[0][0].width))
    step = cell + GAP
    heads = ["reference", *(f"\u201c{prompt}\u201d" for prompt in prompts)]
    top = GAP + max(text_height(head, size=TEXT, width=cell) for head in heads) + GAP
    page = Page(GAP + len(heads) * step, top + len(references) * step, cell=cell)
    for column, (head, pictures) in enumerate(zip(heads, [references, *columns], strict=True)):
        left = GAP + column * step
        page.text(left, GAP, head, size=TEXT, at="left", width=cell)
        for row, picture in enumerate(pictures):
            page.picture(picture, left, top + row * step, size=(cell, cell))
    return page.image
