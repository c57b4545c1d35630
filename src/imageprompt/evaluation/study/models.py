"""The models of a study, opened once before the first picture: errors come early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.evaluation.study.config import StudyConfig
from imageprompt.generation.apply_references import attach_references, image_prompt
from imageprompt.generation.many import check_controls
from imageprompt.generation.run import prepare
from imageprompt.loading.models import Models, models_of, turn_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.study.references import StudyReference
    from imageprompt.generation.request import Request
    from imageprompt.loading.recipe import Recipe


@dataclass(frozen=True)
class StudyModels:
    """What is known of a study's models once they are loaded."""

    models: Models
    recipe: Recipe
    """Of a picture without a reference: base, options, device, precision, versions."""
    adapters: tuple[Mapping[str, Any], ...]
    """Name, hash and encoder of each."""

    @property
    def environment(self) -> dict[str, Any]:
        """What a picture's bits depend on, beside the study."""
        recipe = self.recipe
        return {"device": recipe.device, "dtype": recipe.dtype, "versions": {**recipe.versions}}

    @property
    def options(self) -> dict[str, Any]:
        """How the pipeline is called."""
        names = ("steps", "guidance_scale", "true_cfg_scale", "guidance", "negative_prompt")
        return {name: getattr(self.recipe, name) for name in names} | {
            "scheduler": self.recipe.scheduler["_class_name"]
        }


def open_models(
    config: StudyConfig,
    references: Sequence[StudyReference],
    *,
    log: Callable[[str], object] = lambda line: None,
) -> StudyModels:
    """Load the base and each adapter, and use it once with each scale, without a picture.

    Adapters that read faces encode all references, because one without a face is an error. Raises
    an ImagePromptError.
    """
    models = models_of(config.base, config.dtype, config.device)
    with models.turn, turn_of(config.base):
        prepared = prepare(config.request("", config.seed), models)
        with loading.few_threads(prepared.base):
            recipe = prepared.recipe()
            adapters = []
            for entry in config.entries:
                try:
                    adapters.append(_check(config, entry, references, models))
                except ImagePromptError as error:
                    what = f"adapter {entry.title}: {error.what}"
                    raise type(error)(what, reason=error.reason, hint=error.hint) from error
    by_hash: dict[str, str] = {}
    for one in adapters:
        first = by_hash.setdefault(f"{one['hash']} {one.get('part')}", one["name"])
        if first != one["name"]:
            log(f"{one['name']} and {first} have the same weights")
    return StudyModels(models, recipe, tuple(adapters))


def _check(
    config: StudyConfig, entry: Any, references: Sequence[StudyReference], models: Models
) -> dict[str, Any]:
    """Attach an adapter, and try its references and scales. Its name, hash and encoder."""

    def request(reference: StudyReference, scale: float) -> Request:
        found = config.request("", config.seed, entry.reference(reference.path, scale))
        found.check()
        return found

    first = prepare(request(references[0], config.scales[0]), models)
    with ExitStack() as stack:
        kept = attach_references(stack, first.opened, first.request, first.base, first.pipe, models)
        loaded, owner = kept[first.opened[0].attachment]
        every = loaded.adapter.spec.feature.reads_faces
        for reference in references if every else references[:1]:
            prepared = prepare(request(reference, config.scales[0]), models)
            prompt = image_prompt(prepared.opened[0], owner, prepared.request)
        for scale in config.scales:
            check_controls(loaded.adapter, prompt, entry.reference(references[0].path, scale))
        encoder = first.opened[0].metadata(loaded, prompt).encoder
    return {
        "name": entry.title,
        "source": loaded.record.name,
        "hash": loaded.record.hash,
        "encoder": None if encoder is None else {"name": encoder.name, "hash": encoder.hash},
        **({} if entry.part is None else {"part": entry.part}),
    }


def check_decoded(studied: StudyModels, config: StudyConfig, picture: Image) -> None:
    """Whether `decoded` works with this base. Raises OptionError."""
    try:
        decoded(studied, config, picture, (64, 64))
    except (
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # of a VAE not known here
        raise OptionError(
            "the ceiling of this base",
            reason=f"its autoencoder cannot be used alone ({type(error).__name__}: {error})",
            hint="Leave it out with --no-ceiling (ceiling: false), or give folders of subjects.",
        ) from error


def decoded(
    studied: StudyModels, config: StudyConfig, picture: Image, size: tuple[int, int]
) -> Image:
    """A picture of `size` after the base's autoencoder: the most that this base can show of it."""
    import torch
    from PIL import ImageOps

    base = studied.models.base(
        config.base, loading.base_folder(config.base), config.dtype, config.device, bars=False
    )
    pipe = base.pipe
    fitted = ImageOps.fit(picture, size)
    with studied.models.turn, turn_of(config.base), loading.few_threads(base), torch.no_grad():
        vae = pipe.vae
        pixels = pipe.image_processor.preprocess(fitted).to(vae.device, vae.dtype)
        video = hasattr(vae.config, "temperal_downsample")
        encoded = vae.encode(pixels.unsqueeze(2) if video else pixels)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        made = vae.decode(latents, return_dict=False)[0]
        images: list[Image] = pipe.image_processor.postprocess(made.squeeze(2) if video else made)
    return images[0]
