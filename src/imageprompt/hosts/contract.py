"""The interface of a host: what the other files of this folder implement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Arguments, HostSpec, KeywordArguments, Role, Shapes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageprompt.attention.state import AttentionState

Conditions = dict[str, Any]
"""Conditions of a denoiser beside its text states, tensors [b, ...] by its own names."""

ROLES_KEY = "_imageprompt_roles"
"""The key of a denoiser's config that may state which sites carry style and layout."""


def argument(args: Arguments, kwargs: KeywordArguments, position: int, name: str) -> Any:
    """An argument of a call, given by position or by name; None if it is not."""
    return args[position] if len(args) > position else kwargs.get(name)


def with_argument(
    args: Arguments, kwargs: KeywordArguments, position: int, name: str, value: Any
) -> tuple[Arguments, KeywordArguments]:
    """The arguments of a call with another value for one that is given by position or by name."""
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


EncodeText = Callable[[Any, list[str], int | None], "tuple[Tensor, Conditions]"]
"""(pipeline, n captions, max_length) -> text states [n, l, d] and conditions [n, ...].

As the pipeline makes them; l is the same for all captions. `max_length` is the pipeline's
`max_sequence_length`, None the default; OptionError where it has none.
"""
Predict = Callable[[Any, "Tensor", "Tensor", "Tensor", Conditions, float], "Tensor"]
"""(denoiser, latents, timesteps, text states, conditions, guidance scale) -> prediction.

What the scheduler is given for noisy latents [b, c, h, w], in their shape. Timesteps [b] are the
scheduler's (0 to 1000). Only guidance-distilled bases read the guidance scale.
"""
Mu = Callable[[Any, Any, int], float]
"""(denoiser, scheduler's config, positions of a picture) -> mu.

What the pipeline hands a scheduler with `use_dynamic_shifting`.
"""


def linear_mu(denoiser: Any, scheduler_config: Any, positions: int) -> float:
    """Linear in the positions, between the two shifts of the scheduler: FLUX and most others."""
    stated = scheduler_config.get
    first, last = stated("base_image_seq_len", 256), stated("max_image_seq_len", 4096)
    low, high = stated("base_shift", 0.5), stated("max_shift", 1.15)
    return float(low + (high - low) * (positions - first) / (last - first))


def sampling_length(pipe: Any) -> int | None:
    """The `max_sequence_length` of a call that states none; None: it is no option there."""
    option = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return None if option is None else option.default


@dataclass(frozen=True)
class Training:
    """How adapters are trained on a host."""

    encode_text: EncodeText
    predict: Predict
    conditions: tuple[str, ...] = ()
    """The names of the conditions that `encode_text` may return."""
    tokenizer: str = "tokenizer"
    """The pipeline's component that cuts the text of the states into tokens."""
    max_length: int | None = None
    """How many of them are read unless the config says; None: as many as in sampling."""
    reserved: Callable[[Any], int] = lambda pipe: 0
    """How many of those are no caption's: the words that the pipeline writes before it."""
    clip: str = ""
    """The tokenizer of a CLIP whose states are read as well."""
    packed: bool = False
    """Does the pipeline pack 2 x 2 latents into a row?"""
    mu: Mu = linear_mu
    as_tokens: Callable[[Any, Tensor], Tensor] = lambda denoiser, text: text
    """(denoiser, text states) -> what the sites' attention reads, as wide as image tokens."""

    def patch_size(self, denoiser: Any) -> int:
        """Latent positions on a side that the denoiser reads as one."""
        if self.packed:
            return 2
        stated = denoiser.config.get("patch_size") or denoiser.config.get("all_patch_size", (1,))
        return int(stated if isinstance(stated, int) else stated[-1])

    def text_limit(self, pipe: Any, max_length: int | None) -> tuple[Any, int]:
        """The tokenizer of the text states, and the number of its tokens that are read."""
        clip, tokenizer = (getattr(pipe, one, None) for one in (self.clip, self.tokenizer))
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        limit = 0
        if tokenizer is not None:  # SD3 may have no T5
            stated = max_length or self.max_length or sampling_length(pipe)
            limit = int(stated or tokenizer.model_max_length) - self.reserved(pipe)
        if clip is not None and clip.model_max_length > limit:
            return clip, int(clip.model_max_length)
        return tokenizer, limit


class Host(Protocol):
    """A denoiser family as adapter files know it.

    Loads no torch, except for configs that only diffusers can interpret.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def attachable(self) -> bool:
        """Can adapters run on it? If so it is an `AttachableHost`, else it is for files only."""

    @property
    def training(self) -> Training | None:
        """How adapters are trained on it; None: they cannot be."""

    def claims(self, denoiser: object) -> bool:
        """Does this denoiser belong to the family?"""

    def families(self, cross_attention_dim: int | None = None) -> Iterator[HostSpec]:
        """The published bases (of one text width, if given), derived from their configs.

        None where files of another host fit them: a file cannot tell which it was made for.
        """

    def published(self) -> list[HostSpec]:
        """Every published base."""

    def from_config(self, config: Mapping[str, Any]) -> HostSpec | None:
        """The sites of a denoiser with this config; None if it is of another class.

        A config that is not described here is built on the meta device, which loads torch.
        """

    def from_weights(self, shapes: Shapes) -> HostSpec | None:
        """The sites of a denoiser whose state dict has these tensors; None if it is another."""


class JointTextLayers(NamedTuple):
    """The layers of the text's keys and values, and the norm of its keys over a head, if any."""

    key: nn.Module
    value: nn.Module
    norm: nn.Module | None


class AttachableHost(Host, Protocol):
    """A denoiser family that adapters can be attached to."""

    def describe(self, denoiser: nn.Module) -> HostSpec:
        """The sites of a denoiser (its weights may be on the meta device)."""

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Any, Any] | None:
        """The weights [inner_dim, width of the text] of the text's K and V at a site.

        None where the text has none of its own. New K' and V' start from them if image tokens are
        as wide as the text.
        """

    def joint_text_layers(self, denoiser: nn.Module, name: str) -> JointTextLayers | None:
        """What makes keys and values of the text's states at a site of joint attention.

        None at other sites, and where the text has no layers of its own.
        """

    def linears(self, denoiser: nn.Module, name: str) -> Mapping[str, nn.Module]:
        """The linear layers of the attention layer of that name: q, k, v and out.

        Raises AttachError where the layer does not use them.
        """

    def install(self, denoiser: nn.Module, spec: HostSpec, state: AttentionState) -> Any:
        """Let every site read the state; returns what `remove` needs. All sites or none."""

    def intact(self, installed: Any) -> bool:
        """Is everything that `install` put there still in place?"""

    def remove(self, installed: Any) -> None:
        """The exact inverse of `install`."""


# ── roles ───────────────────────────────────────────────────────────────────────────────────────

_STATED_ROLES: tuple[Role, ...] = ("style", "layout")


def stated_roles(names: Sequence[str], stated: Any) -> Callable[[str], Role]:
    """A function from site name to the role that a config states. Raises AttachError."""
    if not isinstance(stated, Mapping) or not set(stated) <= set(_STATED_ROLES):
        raise _malformed_roles("must map style and layout to lists of sites")
    roles: dict[str, Role] = {}
    for role in _STATED_ROLES:
        paths = stated.get(role, [])
        if not isinstance(paths, list | tuple) or not all(isinstance(p, str) for p in paths):
            raise _malformed_roles(f"{role} must be a list of sites")
        for path in paths:
            covered = [name for name in names if name == path or name.startswith(f"{path}.")]
            if not covered:
                raise _malformed_roles(f"no site is named {path!r} or starts with it")
            taken = next((name for name in covered if roles.get(name, role) != role), None)
            if taken:
                raise _malformed_roles(f"{taken} has two roles")
            roles.update(dict.fromkeys(covered, role))
    return lambda name: roles.get(name, "other")


def _malformed_roles(reason: str) -> AttachError:
    return AttachError(
        f"{ROLES_KEY} in the base's config",
        reason=reason,
        hint='Write {"style": ["up_blocks.1"], "layout": ["down_blocks.0"]}, or leave it out.',
    )
