"""The published adapters and the encoders that they read.

Sizes are not repeated here: they follow from the variant, the host and the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from imageprompt.core.spec import Feature, HostSpec, ProjectorOptions, ProjectorSpec
from imageprompt.hosts import families
from imageprompt.variants import VARIANTS, Variant, twins
from imageprompt.variants.tensor_shapes import FACE_DIM

VIT_H, VIT_G, VIT_L = "CLIP ViT-H/14", "CLIP ViT-bigG/14", "CLIP ViT-L/14"
VIT_L_336, SIGLIP, ARCFACE = "CLIP ViT-L/14 at 336 pixels", "SigLIP-so400m-384", "ArcFace"
_WIDTHS: dict[str, dict[str, int]] = {
    VIT_H: {"image_embeds": 1024, "hidden_states[-2]": 1280},
    VIT_G: {"image_embeds": 1280, "hidden_states[-2]": 1664},
    VIT_L: {"image_embeds": 768, "hidden_states[-2]": 1024},
    VIT_L_336: {"image_embeds": 768, "hidden_states[-2]": 1024},
    SIGLIP: {"pooler_output": 1152, "hidden_states[-2]": 1152, "last_hidden_state": 1152},
    ARCFACE: {"face_embeds": FACE_DIM, "raw face_embeds": FACE_DIM},
    f"{ARCFACE} and {VIT_H}": {"face_embeds + hidden_states[-2]": 1280},
    f"{ARCFACE} and {VIT_L_336}": {"raw face_embeds + hidden_states[-2]": 1024},
}
"""The features of the encoders in use, and their widths."""
POSITIONS = {VIT_H: 257, VIT_G: 257, VIT_L: 257, VIT_L_336: 577, SIGLIP: 729}
"""Hidden states per picture, the class token included."""
_DEFAULT = ProjectorOptions()


@dataclass(frozen=True)
class PublishedAdapter:
    """A published file: `name` without suffix; `variant` may be a twin."""

    name: str
    variant: str
    host: str
    encoder: str
    options: ProjectorOptions = _DEFAULT
    note: str = ""
    """How it differs from files with the same tensors."""
    needs: str = ""
    """What it needs besides, where that does not run here."""

    @property
    def architecture(self) -> Variant:
        """The variant, or the variant that it is a twin of."""
        return next(v for v in VARIANTS if self.variant in (v.name, *twins(v)))

    @property
    def host_spec(self) -> HostSpec:
        return next(spec for spec in families() if spec.family == self.host)

    @property
    def projector(self) -> ProjectorSpec:
        variant = self.architecture
        width = _WIDTHS[self.encoder][str(variant.feature)]
        return variant.propose(width, self.host_spec.cross_attention_dim, self.options)


_INSTANTID = (
    "also needs its own ControlNet",
    "an InstantID adapter needs its own ControlNet (IdentityNet) with keypoint pictures",
)
_FACE = f"{ARCFACE} and {VIT_H}"
PUBLISHED = (
    PublishedAdapter("ip-adapter_sd15", "base", "sd15", VIT_H),
    PublishedAdapter(
        "ip-adapter_sd15_light", "base", "sd15", VIT_H, note="leaves more to the text"
    ),
    PublishedAdapter("ip-adapter_sd15_vit-G", "base", "sd15", VIT_G),
    PublishedAdapter("ip-adapter-plus_sd15", "plus", "sd15", VIT_H),
    PublishedAdapter("ip-adapter-plus-face_sd15", "plus-face", "sd15", VIT_H),
    PublishedAdapter("ip-adapter-full-face_sd15", "full", "sd15", VIT_H),
    PublishedAdapter("ip-adapter_sdxl", "base", "sdxl", VIT_G),
    PublishedAdapter("ip-adapter_sdxl_vit-h", "base", "sdxl", VIT_H),
    PublishedAdapter("ip-adapter-plus_sdxl_vit-h", "plus", "sdxl", VIT_H),
    PublishedAdapter("ip-adapter-plus-face_sdxl_vit-h", "plus-face", "sdxl", VIT_H),
    PublishedAdapter("ip-adapter-faceid_sd15", "faceid", "sd15", ARCFACE),
    PublishedAdapter("ip-adapter-faceid-plus_sd15", "faceid-plus", "sd15", _FACE),
    PublishedAdapter("ip-adapter-faceid-plusv2_sd15", "faceid-plus-v2", "sd15", _FACE),
    PublishedAdapter("ip-adapter-faceid_sdxl", "faceid", "sdxl", ARCFACE),
    PublishedAdapter("ip-adapter-faceid-plusv2_sdxl", "faceid-plus-v2", "sdxl", _FACE),
    PublishedAdapter("ip-adapter-faceid-portrait_sd15", "portrait", "sd15", ARCFACE),
    PublishedAdapter(
        "ip-adapter-faceid-portrait-v11_sd15", "portrait", "sd15", ARCFACE, note="trained later"
    ),
    PublishedAdapter("ip-adapter-faceid-portrait_sdxl", "portrait", "sdxl", ARCFACE),
    PublishedAdapter("ip-adapter-faceid-portrait_sdxl_unnorm", "portrait-unnorm", "sdxl", ARCFACE),
    PublishedAdapter("InstantID", "portrait-unnorm", "sdxl", ARCFACE, _DEFAULT, *_INSTANTID),
    PublishedAdapter(
        "Kolors-IP-Adapter-Plus",
        "plus",
        "kolors",
        VIT_L_336,
        ProjectorOptions(inner_dim=2048, heads=12),
    ),
    PublishedAdapter(
        "Kolors-IP-Adapter-FaceID-Plus",
        "faceid-plus-kolors",
        "kolors",
        f"{ARCFACE} and {VIT_L_336}",
    ),
    PublishedAdapter("flux-ip-adapter", "xlabs", "flux", VIT_L),
    PublishedAdapter("flux-ip-adapter-v2", "xlabs", "flux", VIT_L, ProjectorOptions(tokens=16)),
    PublishedAdapter(
        "FLUX.1-dev-IP-Adapter", "instantx", "flux", SIGLIP, ProjectorOptions(tokens=128)
    ),
    PublishedAdapter("flux1-redux-dev", "redux", "flux", SIGLIP),
    PublishedAdapter("SD3.5-Large-IP-Adapter", "instantx-sd3", "sd3", SIGLIP),
)


def encoder_name(feature: Feature, width: int) -> str | None:
    """The encoder whose feature has this width; None if there is none."""
    return next(
        (name for name, widths in _WIDTHS.items() if widths.get(str(feature)) == width), None
    )


def likely_encoder(feature: Feature, width: int, published: Iterable[str]) -> str | None:
    """The encoder of these published files if they agree, else one of that feature and width."""
    names = set(published)
    encoders = {one.encoder for one in PUBLISHED if one.name in names}
    return encoders.pop() if len(encoders) == 1 else encoder_name(feature, width)


def stated_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Feature -> width of the image encoder of a config.json; empty if it describes none."""
    vision: Any = config.get("vision_config") or config
    if not isinstance(vision, dict) or "patch_size" not in vision:
        return {}
    stages = vision.get("hidden_sizes")
    hidden = vision.get("hidden_size")
    before = hidden
    if isinstance(stages, list) and len(stages) > 1:
        before, hidden = stages[-2:]
    if not (_is_width(hidden) and _is_width(before)):
        return {}
    widths = {"hidden_states[-2]": before, "pooler_output": hidden, "last_hidden_state": hidden}
    projected = config.get("projection_dim", vision.get("projection_dim"))
    return widths | ({"image_embeds": projected} if _is_width(projected) else {})


def _is_width(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 2**31


def published_as(
    variants: Iterable[str], host: str, projector: ProjectorSpec
) -> tuple[PublishedAdapter, ...]:
    """The published files of these variants with this projector on this host."""
    names = set(variants)
    likely = (one for one in PUBLISHED if one.variant in names and one.host == host)
    return tuple(one for one in likely if one.projector == projector)
