"""Does an adapter fit a base, an encoder, a prompt? Each mismatch is one error with the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from imageprompt.adapter.weights import AdapterModule
from imageprompt.checkpoint.identify.identify import likely_families
from imageprompt.core.errors import (
    AttachError,
    EncoderError,
    OptionError,
    PromptError,
    WrongBaseError,
)
from imageprompt.core.spec import (
    AdapterSpec,
    Feature,
    HostSpec,
    ImageFeature,
    ProjectorOptions,
    Shapes,
)
from imageprompt.encoding.encoders import Encoder, open_encoder
from imageprompt.encoding.features import encoder_hint
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.variants import VARIANTS, has_place, projected_as_text, site_shapes
from imageprompt.variants.tensor_shapes import FACE_DIM, LORA_RANK

if TYPE_CHECKING:
    from torch import nn

    from imageprompt.adapter.attachment import AttachedDenoiser
    from imageprompt.encoding.face_encoder import FaceEncoder


def check_free(attached: AttachedDenoiser | None, base: AttachedDenoiser) -> None:
    """Raises AttachError for an adapter that is attached to another denoiser than `base`'s."""
    if attached is not None and attached.denoisers != base.denoisers:
        raise AttachError(
            "this adapter",
            reason=f"already attached, to another {type(attached.denoiser).__name__} than that "
            f"of this pipeline",
            hint="Call detach() first, or attach a copy: copy.deepcopy(adapter).attach(pipe).",
        )


def check_base(spec: AdapterSpec, module: AdapterModule, sites: HostSpec) -> None:
    """Compare file ids and shapes. Raises WrongBaseError that names the likely base."""
    variant = VARIANTS[spec.variant]
    if not module.sites:
        _check_text(spec, has_place(variant, sites), sites)
        return
    adapter = {name: tuple(w.shape) for name, w in module.ip_adapter.state_dict().items()}
    base = site_shapes(variant, sites, spec.projector, module.rank or LORA_RANK)
    if adapter == base:
        return
    from imageprompt.checkpoint.identify.counted_ids import counted_ids  # for few files

    keys = {n: shape for n, shape in adapter.items() if "_ip." in n}
    counted = counted_ids(keys, sites)
    if counted:
        raise WrongBaseError(
            f"this {spec.variant} adapter on a {sites.family} base",
            reason=counted.problem().message,
            hint="Convert the file, with --base naming this base if it is your own.",
        )
    families = likely_families({n: shape for n, shape in adapter.items() if "_ip." in n})
    made_for = " or ".join(families) if families else spec.host
    misfits = [n for n in {**adapter, **base} if adapter.get(n) != base.get(n)]
    raise WrongBaseError(
        f"this {spec.variant} adapter on a {sites.family} base",
        reason=f"the adapter has {_count_sites(adapter)} sites of text width "
        f"{spec.cross_attention_dim}, the base has {_count_sites(base)} of "
        f"{sites.cross_attention_dim}; {len(misfits)} tensors do not fit "
        f"({', '.join(misfits[:5])})",
        hint=f"It was made for {made_for}: use such a base, or another adapter.",
    )


def _check_text(spec: AdapterSpec, possible: bool, base: HostSpec) -> None:
    """Can tokens follow the text of this base? Raises WrongBaseError."""
    equal = base.cross_attention_dim == spec.cross_attention_dim
    if possible and equal:
        return
    raise WrongBaseError(
        f"this {spec.variant} adapter on a {base.family} base",
        reason=f"its tokens are {spec.cross_attention_dim} wide, the base's text is "
        f"{base.cross_attention_dim}"
        if possible
        else "its tokens follow those of the text, in a text that the base was not trained on",
        hint=f"It was made for {spec.host}: use such a base, or another adapter.",
    )


def check_text_projection(spec: AdapterSpec, base: AttachedDenoiser) -> nn.Linear | None:
    """The layer that projects the base's text and this adapter's tokens; None for other adapters.

    Raises WrongBaseError.
    """
    if not projected_as_text(VARIANTS[spec.variant]):
        return None
    denoiser: Any = base.denoiser
    layer = getattr(denoiser, "text_encoder_hid_proj", None)  # where diffusers' own adapter is on
    layer = getattr(denoiser, "encoder_hid_proj", None) if layer is None else layer
    width = getattr(layer, "in_features", None)
    if width != spec.cross_attention_dim:
        found = "does not project its text" if width is None else f"projects text of width {width}"
        raise WrongBaseError(
            f"this {spec.variant} adapter on a {base.spec.family} base",
            reason=f"its tokens are {spec.cross_attention_dim} wide and are projected by the base, "
            f"which {found}",
            hint="Use Kolors, or another adapter.",
        )
    return cast("nn.Linear", layer)


def checked_encoder(spec: AdapterSpec, encoder: object) -> Encoder:
    """An image encoder, opened. Raises EncoderError if its features have the wrong width."""
    if spec.feature.image is None:
        raise EncoderError(
            f"an image encoder for a {spec.variant} adapter",
            reason="the adapter reads only face embeddings",
            hint="Leave it out; faces= takes insightface's model pack.",
        )
    opened = open_encoder(encoder)
    found = getattr(opened, "model_type", "")
    if spec.encoder_type and found and found != spec.encoder_type:
        raise EncoderError(
            f"an image encoder of type {found}",
            reason=f"this {spec.variant} adapter reads {spec.feature} of {spec.encoder_type}",
            hint="Use the encoder it was trained with.",
        )
    width = opened.width(spec.feature.image)
    if width != spec.feature_dim:
        raise EncoderError(
            f"an image encoder whose {spec.feature} are {width} wide",
            reason=f"this {spec.variant} adapter reads {spec.feature_dim}",
            hint=encoder_hint(spec),
        )
    return opened


def checked_faces(spec: AdapterSpec, source: object) -> FaceEncoder:
    """A face encoder, opened. Raises EncoderError if the adapter reads no faces."""
    if not spec.feature.reads_faces:
        raise EncoderError(
            f"a face encoder for a {spec.variant} adapter",
            reason=f"the adapter reads {spec.feature} of whole pictures",
            hint="Leave faces= out.",
        )
    from imageprompt.encoding.face_encoder import open_face_encoder

    return open_face_encoder(source)


def check_prompt(spec: AdapterSpec, projector: Callable[[], str], prompt: ImagePrompt) -> None:
    """Raises PromptError for a prompt of another width, or of a projector with another hash."""
    if not isinstance(prompt, ImagePrompt):
        raise PromptError(
            f"a {type(prompt).__name__}",
            reason="not an image prompt",
            hint="Make one with adapter.encode().",
        )
    width = prompt.tokens.shape[-1]
    expected = spec.feature_dim if spec.is_timed else spec.cross_attention_dim
    if width != expected:
        raise PromptError(
            f"an image prompt {width} wide",
            reason=f"this adapter's {'features' if spec.is_timed else 'tokens'} are {expected} "
            "wide",
            hint="Encode the pictures with this adapter.",
        )
    made_by = prompt.metadata.get("projector")
    if made_by is not None and made_by != projector():
        raise PromptError(
            f"an image prompt of projector {made_by}",
            reason=f"this adapter has another projector, {projector()}",
            hint="Encode the pictures again with this adapter.",
        )


def check_options(variant: str, known: Sequence[str], options: ProjectorOptions) -> None:
    """Raises OptionError for an option that the variant does not have, or a bad value."""
    changed = [f.name for f in fields(options) if getattr(options, f.name) is not None]
    for name in changed:
        value = getattr(options, name)
        if name not in known or not isinstance(value, int) or value < 1:
            number = "must be a whole number above 0"
            raise OptionError(
                f"{'num_tokens' if name == 'tokens' else name}={value!r}",
                reason=number if name in known else f"{variant} has no such option",
                hint=f"Options of {variant}: {', '.join(known) or 'none'}.",
            )


def check_lora(mode: str, strength: float, *, has_lora: bool) -> None:
    """Raises OptionError for an unknown mode, and for a mode or strength without LoRA."""
    if mode not in ("live", "merged"):
        raise OptionError(f"lora={mode!r}", reason="must be 'live' or 'merged'")
    if not has_lora and (mode == "merged" or strength != 1):
        value = repr(mode) if mode == "merged" else f"{strength:g}"
        raise OptionError(f"lora={value}", reason="this adapter has no LoRA", hint="Leave it out.")


def feature_source(feature: Feature, encoder: object) -> tuple[int, str]:
    """Width of what the projector reads, the image encoder's or that of a face embedding; and the
    encoder's type, "" for CLIP's.

    Raises EncoderError for an encoder that does not make the feature.
    """
    if encoder is None and feature.faces_only:
        return FACE_DIM, ""
    opened = open_encoder(encoder)
    found = getattr(opened, "model_type", "")
    width = opened.width(cast(ImageFeature, feature.image or feature.face))
    return width, "" if found.startswith("clip") else found


def _count_sites(shapes: Shapes) -> int:
    return sum(name.endswith("to_k_ip.weight") for name in shapes)
