"""Pictures made during training with held-out references and fixed seeds, on a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imageprompt.core.atomic_files import write_atomically
from imageprompt.core.errors import OptionError
from imageprompt.training.cache.encoders import FeatureExtractors, faces_of, joined
from imageprompt.training.config.config import ValidationConfig
from imageprompt.training.data.sources import DataOptions, open_data

if TYPE_CHECKING:
    from imageprompt.training.frozen_pipeline import FrozenPipeline
    from imageprompt.training.loop.trainer import Trainer

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))
LARGEST_CELL, GAP, HEAD = 256, 8, 22
PAPER, INK = (252, 252, 250), (32, 32, 36)


@dataclass(frozen=True)
class Shown:
    """A held-out reference, and what `Adapter.encode` takes of it."""

    picture: Image.Image
    wanted: dict[str, Any]


class Validation:
    """Makes the pictures of a step: a row a reference, a column a prompt, always the same noise.

    The score is the mean cosine between the image encoder's `image_embeds` of a reference and of
    the picture made with the first prompt. It tells whether pictures come closer to their
    references, not whether they are good: look at the sheets. Without an image encoder (FaceID)
    there is none.
    """

    def __init__(
        self,
        base: FrozenPipeline,
        encoders: FeatureExtractors,
        config: ValidationConfig,
        size: int,
        folder: Path,
    ) -> None:
        self.pipe, self.encoder = base.pipe, base.encoder
        self.config, self.size, self.folder = config, size, folder
        self.shown = _faces(config, encoders) if encoders.reads_faces else _pictures(config)
        self.sheets: list[Path] = []
        self.pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """Write `step-N.png` and return {"score": ...}, empty where nothing can tell one."""
        columns = [self._painted(trainer.adapter, prompt) for prompt in self.config.prompts]
        references = [one.picture for one in self.shown]
        sheet = contact_sheet(references, self.config.prompts, columns)
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{trainer.step}.png"
        with write_atomically(path) as temporary:
            sheet.save(temporary)
        self.sheets.append(path)
        trainer.metrics.picture(trainer.step, "validation", sheet)
        if self.encoder is None:
            return {}
        return {"score": likeness(self.encoder, columns[0], references)}

    def _painted(self, adapter: Any, prompt: str) -> list[Image.Image]:
        """One picture a reference."""
        wishes, made = self.config, []
        for row, reference in enumerate(self.shown):
            encoded = adapter.encode(**reference.wanted)
            with adapter.use(encoded, scale=wishes.scale):
                latents = self.pipe(
                    prompt=prompt,
                    height=self.size,
                    width=self.size,
                    num_inference_steps=wishes.steps,
                    guidance_scale=wishes.guidance,
                    generator=torch.Generator().manual_seed(wishes.seed + row),
                    output_type="latent",
                ).images
            made += self._decoded(latents)
        return made

    def _decoded(self, latents: Tensor) -> list[Image.Image]:
        """By the VAE in its own precision, which pipelines take to be the denoiser's."""
        vae = self.pipe.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        clean = latents.to(vae.dtype) / vae.config.scaling_factor + shift
        pixels = vae.decode(clean, return_dict=False)[0]
        found: list[Image.Image] = self.pipe.image_processor.postprocess(pixels.float())
        return found


def likeness(encoder: Any, made: Sequence[Image.Image], of: Sequence[Image.Image]) -> float:
    """Mean cosine between the embeddings of pictures and of their references."""
    ours, theirs = (
        torch.nn.functional.normalize(encoder.encode(list(rows), "image_embeds").float(), dim=1)
        for rows in (made, of)
    )
    return float((ours * theirs).sum(1).mean())


def check_references(config: ValidationConfig, reads_faces: bool) -> None:
    """Before anything is loaded: are there references? Raises OptionError."""
    if reads_faces:
        if not isinstance(config.references, str):
            raise OptionError(
                f"validation.references {config.references!r}",
                reason="references of faces need identity embeddings",
                hint="Name a data list with id_embed_file, of faces that are not in `data`.",
            )
    else:
        chosen_references(config)


def _pictures(config: ValidationConfig) -> list[Shown]:
    from imageprompt.encoding.images.open_image import open_picture

    opened = [open_picture(path) for path in chosen_references(config)]
    return [Shown(picture, {"pictures": [picture]}) for picture in opened]


def _faces(config: ValidationConfig, encoders: FeatureExtractors) -> list[Shown]:
    """From a data list, whose records have a face embedding each."""
    records = open_data(DataOptions.of(str(config.references)))
    shown = []
    for index in range(min(config.count, len(records))):
        record = records.record(index)
        picture = record.open_reference()
        faces = faces_of([record.id_embeds()], [record.key])
        encoded = encoders.image([picture]) if encoders.reads_pictures else None
        wanted = {
            "features": joined(encoders.feature, encoded, faces),
            "null_features": encoders.null(faces),
        }
        shown.append(Shown(picture, wanted))
    return shown


def chosen_references(config: ValidationConfig) -> list[Path]:
    """The first `count` pictures of the folder or list. Raises OptionError."""
    named = config.references
    paths = [Path(one).expanduser() for one in ([named] if isinstance(named, str) else named)]
    inside = [
        path
        for place in paths
        for path in (sorted(place.iterdir()) if place.is_dir() else [place])
        if path.suffix.lower() in SUFFIXES
    ][: config.count]
    if not inside:
        raise OptionError(
            f"validation.references {named!r}",
            reason="there is no picture",
            hint="Name a folder of pictures that are not in `data`, or set validate_every: 0.",
        )
    return inside


def contact_sheet(
    references: Sequence[Image.Image],
    prompts: Sequence[str],
    columns: Sequence[Sequence[Image.Image]],
) -> Image.Image:
    """References on the left, beside each what was made with it; the prompts on top."""
    cell = min(LARGEST_CELL, columns[0][0].width)
    step = cell + GAP
    size = (GAP + (1 + len(columns)) * step, HEAD + len(references) * step)
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    heads = ["reference", *(f"\u201c{prompt}\u201d" for prompt in prompts)]
    for column, (head, pictures) in enumerate(zip(heads, [references, *columns], strict=True)):
        left = GAP + column * step
        pen.text((left, 5), _cut(head, font, cell), font=font, fill=INK)
        for row, picture in enumerate(pictures):
            fitted = picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (left, HEAD + row * step))
    return sheet


def _cut(text: str, font: Any, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
