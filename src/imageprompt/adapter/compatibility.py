"""Does an adapter suit a base, an encoder, a prompt? Mismatches are told in one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

from imageprompt.adapter.weights import AdapterModule
from imageprompt.checkpoint.identify.identify import likely_families
from imageprompt.core.errors import EncoderError, OptionError, PromptError, WrongBaseError
from imageprompt.core.spec import AdapterSpec, Feature, HostSpec, ProjectorOptions, Shapes
from imageprompt.encoding.encoders import Encoder, open_encoder
from imageprompt.encoding.encoders.face import FaceEncoder, open_faces
from imageprompt.encoding.features import encoder_hint
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.variants import VARIANTS, site_shapes
from imageprompt.variants.tensor_shapes import FACE_DIM, LORA_RANK


def check_base(spec: AdapterSpec, module: AdapterModule, sites: HostSpec) -> None:
    """Same ids, same widths. Raises WrongBaseError naming the likely base."""
    ours = {name: tuple(w.shape) for name, w in module.ip_adapter.state_dict().items()}
    theirs = site_shapes(VARIANTS[spec.variant], sites, spec.projector, module.rank or LORA_RANK)
    if ours == theirs:
        return
    families = likely_families({n: shape for n, shape in ours.items() if "_ip." in n})
    made_for = " or ".join(families) if families else spec.host
    odd = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    raise WrongBaseError(
        f"this {spec.variant} adapter on a {sites.family} base",
        reason=f"it has {_sites(ours)} sites of text width {spec.cross_attention_dim}, the base "
        f"{_sites(theirs)} of {sites.cross_attention_dim}; {len(odd)} tensors do not fit "
        f"({', '.join(odd[:5])})",
        hint=f"It was made for {made_for}: use such a base, or another adapter.",
    )


def checked_encoder(spec: AdapterSpec, encoder: object) -> Encoder:
    """An encoder, opened. Raises EncoderError where its features are of another width."""
    if spec.feature.image is None:
        raise EncoderError(
            f"an image encoder for a {spec.variant} adapter",
            reason="it reads embeddings of faces alone",
            hint="Leave it out; faces= takes insightface's model pack.",
        )
    opened = open_encoder(encoder)
    width = opened.width(spec.feature.image)
    if width != spec.feature_dim:
        raise EncoderError(
            f"an image encoder whose {spec.feature} are {width} wide",
            reason=f"this {spec.variant} adapter reads {spec.feature_dim}",
            hint=encoder_hint(spec),
        )
    return opened


def checked_faces(spec: AdapterSpec, source: object) -> FaceEncoder:
    """A face encoder, opened. Raises EncoderError where the adapter reads no faces."""
    if not spec.feature.reads_faces:
        raise EncoderError(
            f"a face encoder for a {spec.variant} adapter",
            reason=f"it reads {spec.feature} of whole pictures",
            hint="Leave faces= out.",
        )
    return open_faces(source)


def check_prompt(spec: AdapterSpec, projector: Callable[[], str], prompt: ImagePrompt) -> None:
    """Raises PromptError for a prompt of another width, or of a projector of another name."""
    if not isinstance(prompt, ImagePrompt):
        raise PromptError(
            f"a {type(prompt).__name__}",
            reason="it is no image prompt",
            hint="Make one with adapter.encode().",
        )
    width = prompt.tokens.shape[-1]
    if width != spec.cross_attention_dim:
        raise PromptError(
            f"an image prompt {width} wide",
            reason=f"this adapter's tokens are {spec.cross_attention_dim} wide",
            hint="Encode the pictures with this adapter.",
        )
    made_by = prompt.metadata.get("projector")
    if made_by is not None and made_by != projector():
        raise PromptError(
            f"an image prompt of projector {made_by}",
            reason=f"this adapter's projector is {projector()}, which reads others",
            hint="Encode the pictures again with this adapter.",
        )


def check_options(variant: str, known: Sequence[str], options: ProjectorOptions) -> None:
    """Raises OptionError for a wish that the variant does not know, or that is no number."""
    given = [f.name for f in fields(options) if getattr(options, f.name) is not None]
    for name in given:
        value = getattr(options, name)
        if name not in known or not isinstance(value, int) or value < 1:
            rule = "a whole number above 0" if name in known else f"{variant} has no such option"
            raise OptionError(
                f"{'num_tokens' if name == 'tokens' else name}={value!r}",
                reason=rule,
                hint=f"Options of {variant}: {', '.join(known) or 'none'}.",
            )


def feature_dim_of(feature: Feature, encoder: object) -> int:
    """Width of what the projector reads: the image encoder's, or that of a face embedding."""
    if feature.image is None:
        return FACE_DIM
    return open_encoder(encoder).width(feature.image)


def _sites(shapes: Shapes) -> int:
    return sum(name.endswith("to_k_ip.weight") for name in shapes)
