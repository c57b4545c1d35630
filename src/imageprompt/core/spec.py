"""The frozen descriptions that every room shares: Site, HostSpec, ProjectorSpec, AdapterSpec."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Tensor names and their shapes: identification looks at nothing else."""

ImageFeature = Literal["image_embeds", "pooler_output", "hidden_states[-2]", "last_hidden_state"]
"""Output of an image encoder: pooled [F] (image_embeds, pooler_output) or per patch [L, F]."""

FaceFeature = Literal["face_embeds", "raw face_embeds"]
"""ArcFace embedding of a face [512]; `face_embeds` is normalised to length 1, raw ones are not."""


@dataclass(frozen=True)
class Feature:
    """The input of a projector: an output of an image encoder, a face embedding, or both."""

    image: ImageFeature | None = None
    face: FaceFeature | None = None

    @classmethod
    def parse(cls, text: str) -> Feature:
        """The inverse of `str(feature)`, the form in file metadata. Raises ValueError."""
        for feature in _FEATURES:
            if str(feature) == text:
                return feature
        raise ValueError(f"unknown feature {text!r}")

    @property
    def reads_faces(self) -> bool:
        return self.face is not None

    @property
    def faces_only(self) -> bool:
        """True if no image encoder is needed."""
        return self.image is None

    @property
    def normalises_faces(self) -> bool:
        return self.face == "face_embeds"

    @property
    def is_vector(self) -> bool:
        """True for one vector [F] per reference, not one per patch or face."""
        return self in _VECTORS

    def __str__(self) -> str:
        return " + ".join(part for part in (self.face, self.image) if part)


_VECTORS = (Feature("image_embeds"), Feature("pooler_output"), Feature(face="face_embeds"))
_FEATURES = (
    *_VECTORS,
    Feature("hidden_states[-2]"),
    Feature("last_hidden_state"),
    Feature(face="raw face_embeds"),
    Feature("hidden_states[-2]", "face_embeds"),
    Feature("hidden_states[-2]", "raw face_embeds"),
)

FEATURES = frozenset(map(str, _FEATURES))
"""The names of all features, as in file metadata."""

NullRule = Literal["zero features", "zero pixels", "black picture", "no tokens"]
"""What replaces the picture on the negative branch of guidance, before the projector. "no tokens":
nothing does, and that branch reads the text alone."""

SiteKind = Literal["cross", "joint", "joint double", "joint single", "text"]
"""How text and picture meet: in cross-attention, in joint attention with an out-projection of the
picture's rows alone ("joint"; "joint double" in FLUX, whose blocks return text and picture), or in
one sequence ("joint single"). "text" is no attention layer but the text of a call, which image
tokens can follow."""

EVERY_KIND: tuple[SiteKind, ...] = ("cross", "joint", "joint double", "joint single")

Entry = Literal["attention", "all rows", "all rows rotated", "among rows", "block", "text"]
"""Where image terms are added: to the rows of the picture before the out-projection of attention
(cross-attention has no others), to those of the text as well (their queries as they are, or after
the rotary embedding), or to the picture after its block. "among rows": before the out-projection,
and the rows attend to one another there once more. "text": image tokens follow those of the text,
and nothing is added."""

Role = Literal["style", "layout", "other"]

Stage = Literal["input", "middle", "output"]
"""Before, in or after the middle of a denoiser."""

OWN_BASE = "unet"
"""The family of every UNet that is not one of the published ones."""

RESAMPLER_HEAD_DIM = 64
"""Head width of every published resampler: it has (rows of `to_q`) / 64 heads."""


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
    """0 if only the tensors of a base are known: they do not determine it."""
    cross_attention_dim: int
    """Width of the tokens that K' and V' read."""
    role: Role
    kind: SiteKind = "cross"
    transformer_index: int | None = None
    """The number of its transformer in sampling order; None if the host does not state it."""
    stage: Stage = "middle"


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """Any attention layer of the denoiser, self-attention included: adapters may have LoRA here."""

    name: str
    file_id: str
    inner_dim: int
    """Width that q reads and the output projection writes."""
    input_dim: int
    """Width that k and v read: that of the text in cross-attention, else `inner_dim`."""


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """A base architecture as an adapter sees it."""

    family: str
    sites: tuple[Site, ...]
    layers: tuple[AttentionLayer, ...] = ()
    """Every attention layer in the order of the file ids; empty for hosts without LoRA adapters."""
    text: Site | None = None
    """The text of a call as a place for image tokens; None where the host cannot append any."""

    @property
    def places(self) -> tuple[Site, ...]:
        """Where adapters can act: the sites, and the text where it can be appended to."""
        return self.sites if self.text is None else (*self.sites, self.text)

    @property
    def cross_attention_dim(self) -> int:
        """Width of the tokens that K' and V' read: that of the text."""
        return self.places[0].cross_attention_dim

    def shapes(
        self, kinds: Container[SiteKind] | None = None, *, bias: bool = False
    ) -> dict[str, Shape]:
        """Shapes of K' and V' by their names in files, at all sites or those of some kinds."""
        shapes: dict[str, Shape] = {}
        for site in self.sites:
            for kind in "kv" if kinds is None or site.kind in kinds else "":
                name = f"{site.file_id}.to_{kind}_ip"
                shapes[f"{name}.weight"] = (site.inner_dim, site.cross_attention_dim)
                if bias:
                    shapes[f"{name}.bias"] = (site.inner_dim,)
        return shapes


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """Everything needed to build a projector; read from tensor shapes, never from a file name."""

    feature_dim: int
    cross_attention_dim: int
    tokens: int | None = None
    """Tokens per reference; None if every patch becomes one."""
    depth: int = 0
    heads: int = 0
    inner_dim: int = 0
    """Inner width of a resampler or of an MLP."""
    face_dim: int = 0
    """Width of the face embedding, for projectors that read one beside the picture's features."""
    time_dim: int = 0
    """Width of the sinusoidal timestep embedding, for projectors that depend on the timestep."""


@dataclass(frozen=True, kw_only=True)
class ProjectorOptions:
    """Options of a new projector; None means the variant's published default."""

    tokens: int | None = None
    depth: int | None = None
    heads: int | None = None
    inner_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """An adapter: its variant, the host it was made for, and its projector."""

    variant: str
    host: str
    feature: Feature
    null_rule: NullRule
    projector: ProjectorSpec
    reading: str = ""
    """Whose equation it runs by: a name of the variant's `readings`; "" for its makers'."""
    encoder_type: str = ""
    """The `model_type` of the image encoder that it was made for; "" if unknown, or CLIP."""

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
    def is_timed(self) -> bool:
        """Do the tokens depend on the timestep? Then a prompt holds features instead."""
        return self.projector.time_dim > 0

    @property
    def depth(self) -> int:
        return self.projector.depth

    @property
    def heads(self) -> int:
        return self.projector.heads

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as written to metadata and recipes."""
        values = {**asdict(self), "feature": str(self.feature)}
        optional = ("reading", "encoder_type")
        return {name: value for name, value in values.items() if value or name not in optional}


@dataclass(frozen=True)
class Call:
    """One call of a denoiser, as its host reads it."""

    sample: Tensor
    """The latents; the rows of the batch are dimension 0."""
    timestep: object
    text: Tensor | None
    size: tuple[int, int]
    """Height and width of the positions of the picture at level 0; (0, 0) if they form no grid."""
    references: int = 0
    """Positions after those of the picture that hold pictures to edit (FLUX Kontext)."""
    separate: bool = False
    """Does each side of guidance have a call of its own, instead of a part of the batch?"""
    positive_first: bool = False
    """Are the positive rows the first of a batch with both sides of guidance (Z-Image)?"""
    starts: tuple[int, ...] = ()
    """The first position of the picture in every row of the batch, where it follows a text of the
    row's own length (Lumina2)."""


Arguments = tuple[Any, ...]
KeywordArguments = dict[str, Any]
CallReader = Callable[[Arguments, KeywordArguments], Call]
"""From the arguments of a call to what it is."""
