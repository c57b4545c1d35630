"""The frozen nouns: Site, HostSpec, ProjectorSpec, AdapterSpec. Nothing of torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Tensor names and their shapes: all that identification ever looks at."""

ImageFeature = Literal["image_embeds", "hidden_states[-2]", "pooler_output"]
"""Output of an image encoder: pooled [F] (image_embeds, pooler_output) or per patch [L, F]."""

FaceFeature = Literal["face_embeds", "raw face_embeds"]
"""ArcFace embedding of a face [512]; `face_embeds` is normalised to length 1, raw is not."""


@dataclass(frozen=True)
class Feature:
    """What a projector reads: an output of an image encoder, a face embedding, or both."""

    image: ImageFeature | None = None
    face: FaceFeature | None = None

    @classmethod
    def parse(cls, text: str) -> Feature:
        """The inverse of `str(feature)`, as metadata of files has it. Raises ValueError."""
        for feature in _FEATURES:
            if str(feature) == text:
                return feature
        raise ValueError(f"unknown feature {text!r}")

    @property
    def reads_faces(self) -> bool:
        return self.face is not None

    @property
    def faces_only(self) -> bool:
        """No image encoder is involved."""
        return self.image is None

    @property
    def normalises_faces(self) -> bool:
        return self.face == "face_embeds"

    @property
    def is_vector(self) -> bool:
        """One vector [F] per reference, not one per patch or face."""
        return self in _VECTORS

    def __str__(self) -> str:
        return " + ".join(part for part in (self.face, self.image) if part)


_VECTORS = (Feature("image_embeds"), Feature("pooler_output"), Feature(face="face_embeds"))
_FEATURES = (
    *_VECTORS,
    Feature("hidden_states[-2]"),
    Feature(face="raw face_embeds"),
    Feature("hidden_states[-2]", "face_embeds"),
)

NullRule = Literal["zero features", "zero pixels", "black picture"]
"""What stands in for "no picture" on the negative side of guidance, before the projector."""

SiteKind = Literal["cross", "joint", "joint double", "joint single"]
"""How text meets the picture: cross-attention, SD3's joint blocks, FLUX's double or single ones."""

Role = Literal["style", "layout", "other"]

Stage = Literal["input", "middle", "output"]
"""Before, in or after the middle of a denoiser."""

OWN_BASE = "unet"
"""The family of every UNet that is not a published one."""

RESAMPLER_HEAD_DIM = 64
"""Head width of every published resampler: its heads are the rows of `to_q` / 64."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One attention layer where image tokens can be attended to."""

    name: str
    """Module path inside the denoiser, e.g. `mid_block.attentions.0.transformer_blocks.0.attn2`."""
    file_id: str
    """Its number in adapter files: the position among the denoiser's attention processors."""
    inner_dim: int
    """Width of the attention inside (heads x head dim)."""
    heads: int
    """0 where only a base's tensors were seen: they do not tell."""
    cross_attention_dim: int
    """Width of the tokens that K' and V' read."""
    role: Role
    kind: SiteKind = "cross"
    transformer_index: int | None = None
    """The number of its transformer in sampling order; None where that is not described."""
    stage: Stage = "middle"


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """Any attention layer of the denoiser, self-attention too: where an adapter may have LoRA."""

    name: str
    file_id: str
    inner_dim: int
    """Width of what q and the output projection read and write."""
    input_dim: int
    """Width of what k and v read: the text's in cross-attention, else `inner_dim`."""


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """A base architecture as an adapter sees it."""

    family: str
    sites: tuple[Site, ...]
    layers: tuple[AttentionLayer, ...] = ()
    """Every attention layer in the order of the file ids; empty where no adapter asks for it."""

    @property
    def cross_attention_dim(self) -> int:
        """Width of the tokens that K' and V' read, which is that of the text."""
        return self.sites[0].cross_attention_dim

    def shapes(self) -> dict[str, Shape]:
        """Shapes of K' and V' in file naming: the template that a file is held against."""
        return {
            f"{site.file_id}.to_{kind}_ip.weight": (site.inner_dim, site.cross_attention_dim)
            for site in self.sites
            for kind in "kv"
        }


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """Everything needed to build a projector; read off tensor shapes, never off a file name."""

    feature_dim: int
    cross_attention_dim: int
    tokens: int | None = None
    """Tokens per reference; None where every patch becomes one."""
    depth: int = 0
    heads: int = 0
    inner_dim: int = 0
    """Inner width of a resampler or of an MLP."""
    face_dim: int = 0
    """Width of the face embedding, where a projector reads one beside the picture's features."""
    time_dim: int = 0
    """Width of the timestep's sinusoids, where a projector is modulated by the timestep."""


@dataclass(frozen=True, kw_only=True)
class ProjectorOptions:
    """Wishes for a new projector; None stands for the variant's published default."""

    tokens: int | None = None
    depth: int | None = None
    heads: int | None = None
    inner_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What an adapter is: its variant, the host it was made for, and its projector."""

    variant: str
    host: str
    feature: Feature
    null_rule: NullRule
    projector: ProjectorSpec

    @property
    def tokens(self) -> int | None:
        return self.projector.tokens

    @property
    def cross_attention_dim(self) -> int:
        return self.projector.cross_attention_dim

    @property
    def feature_dim(self) -> int:
        return self.projector.feature_dim

    @property
    def depth(self) -> int:
        return self.projector.depth

    @property
    def heads(self) -> int:
        return self.projector.heads

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as metadata and recipes have them."""
        return {**asdict(self), "feature": str(self.feature)}
