"""Adapter: projector plus K', V' per site; load, create, attach, encode, use, detach, save."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.attachment import Place
from imageprompt.carrier import Carrier, InUse
from imageprompt.checkpoint.detect import likely_families, read_adapter
from imageprompt.checkpoint.formats import FORMATS, Parts
from imageprompt.checkpoint.published import encoder_name
from imageprompt.checkpoint.storage import write_file
from imageprompt.controls import Scale
from imageprompt.encoders import Encoder, open_encoder
from imageprompt.errors import (
    AdapterFileError,
    AttachError,
    EncoderError,
    OptionError,
    PictureError,
    PromptError,
    WrongBaseError,
)
from imageprompt.fingerprint import fingerprint, versions
from imageprompt.guidance import Branch, named_layout
from imageprompt.locate import locate_file
from imageprompt.projections import Projections
from imageprompt.prompt import ImagePrompt
from imageprompt.spec import POOLED, AdapterSpec, HostSpec, ProjectorOptions
from imageprompt.variants import VARIANTS, pending
from imageprompt.weights import AdapterModule, SiteWeights

if TYPE_CHECKING:
    from imageprompt.encoders.pictures import PictureSource

Features = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class _Attached:
    """Where an adapter is attached and what it does there."""

    place: Place
    carrier: Carrier
    projections: Projections


class Adapter:
    """An image-prompt adapter. Make one with `Adapter.load` or `Adapter.create`.

    The weights live in `module`, apart from the base; dtype and device are theirs to keep, results
    are cast to what the base computes in.
    """

    def __init__(self, spec: AdapterSpec, module: AdapterModule) -> None:
        self.spec = spec
        self.module = module
        self.encoder: Encoder | None = None
        self._attached: _Attached | None = None
        self._encoded_null: Tensor | None = None  # the encoder's features of the null picture
        self._null: tuple[Any, Tensor] | None = None  # its tokens, and the weights that made them
        self._fingerprint: tuple[Any, str] | None = None

    def __repr__(self) -> str:
        where = "attached" if self._attached else "not attached"
        tokens = self.spec.tokens or "one per patch"
        return f"Adapter({self.spec.variant} for {self.spec.host}, tokens: {tokens}, {where})"

    # ── making ──────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Adapter:
        """From a path or a Hub id `owner/repo/sub/file`; what it is, is read off its tensors.

        dtype None keeps the file's own. Raises NotFoundError, AdapterFileError (also for a variant
        whose files are known, but that cannot be run yet).
        """
        spec, parts = read_adapter(locate_file(source))
        reason = pending(VARIANTS[spec.variant])
        if reason:
            raise AdapterFileError(
                f"{os.fspath(source)} ({spec.variant} for {spec.host})",
                rule=reason,
                remedy="imageprompt inspect, validate and convert work with it.",
            )
        with torch.device("meta"):
            projector = VARIANTS[spec.variant].build(spec.projector)
        projector.load_state_dict(dict(parts.projector), assign=True)
        ids = sorted({name.split(".", 1)[0] for name in parts.sites}, key=int)
        sites = {
            i: SiteWeights(*(parts.sites[f"{i}.to_{kind}_ip.weight"] for kind in "kv")) for i in ids
        }
        module = AdapterModule(projector, sites)
        return cls(spec, module.to(device=device, dtype=dtype).requires_grad_(False))

    @classmethod
    def create(
        cls,
        variant: str,
        *,
        denoiser: object,
        encoder: object,
        num_tokens: int | None = None,
        init: Literal["copy", "zero"] = "copy",
        depth: int | None = None,
        heads: int | None = None,
        width: int | None = None,
    ) -> Adapter:
        """New float32 weights for a denoiser (or pipeline) and an image encoder.

        K' starts as a copy of the text's K; V' as a copy of its V (`init="copy"`, the paper) or as
        zeros (`init="zero"`: the untrained adapter leaves the base as it is). depth, heads and
        width shape a resampler. Raises OptionError for an option the variant has no use for.
        """
        if init not in ("copy", "zero"):
            raise OptionError(f"init={init!r}", rule="it is 'copy' or 'zero'")
        kind = VARIANTS[variant]
        if reason := pending(kind):
            raise OptionError(f"variant {variant!r}", rule=reason, remedy="Choose another one.")
        options = ProjectorOptions(tokens=num_tokens, depth=depth, heads=heads, width=width)
        _check_options(variant, kind.options, options)
        place = Place.of(denoiser)
        feature_width = open_encoder(encoder).width(kind.feature)
        projector = kind.propose(feature_width, place.sites.text_width, options)
        weights = {}
        for site in place.sites.sites:
            key, value = place.host.text_weights(place.denoiser, site.name)
            value = torch.zeros_like(value) if init == "zero" else value
            weights[site.file_id] = SiteWeights(*(w.detach().float().clone() for w in (key, value)))
        spec = AdapterSpec(
            variant=variant,
            host=place.sites.family,
            feature=kind.feature,
            null_rule=kind.null_rule,
            projector=projector,
        )
        with torch.device(place.device):
            return cls(spec, AdapterModule(kind.build(projector), weights))

    # ── attaching ───────────────────────────────────────────────────────────────────────────────

    def attach(self, pipe: object, encoder: object = None) -> Adapter:
        """Attach to a diffusers pipeline or a denoiser; returns self.

        Nothing of the pipeline is read but its denoiser. `encoder` (a model, a folder or one of
        ours) is needed to encode pictures. Everything is checked before anything changes: raises
        AttachError, WrongBaseError or EncoderError and leaves the base as it was.
        """
        if self._attached is not None:
            raise AttachError(
                "this adapter", rule="it is attached already", remedy="Call detach() first."
            )
        place = Place.of(pipe)
        self._check_base(place.sites)
        opened = None if encoder is None else self._checked_encoder(encoder)
        if place.device.type != "meta":
            self.module.to(place.device)
        self._attached = _Attached(place, place.enter(), Projections(self.module, place))
        if opened is not None:
            self.encoder, self._encoded_null, self._null = opened, None, None
        return self

    def detach(self) -> None:
        """Undo attach, exactly: the base is bit for bit what it was. Harmless when not attached."""
        if self._attached is None:
            return
        in_use = self._attached.carrier.in_use
        in_use[:] = [entry for entry in in_use if entry.owner is not self]
        self._attached.place.leave()
        self._attached = None

    # ── encoding ────────────────────────────────────────────────────────────────────────────────

    def encode(
        self,
        pictures: Sequence[PictureSource] | Sequence[Sequence[PictureSource]] | None = None,
        *,
        features: Features | None = None,
        null_features: Tensor | None = None,
    ) -> ImagePrompt:
        """Encode and project references.

        `[a, b]` is one prompt with two references, their tokens side by side; `[[a], [b]]` are two
        prompts, one reference each, for a batch of two text prompts. Ready-made `features` [n, ...]
        are n references of one prompt, a list of such tensors several prompts; `null_features`
        [1, ...] what the encoder makes of the null picture. Raises PictureError, EncoderError,
        PromptError.
        """
        if (pictures is None) == (features is None):
            raise PromptError(
                "encode()", rule="it takes either pictures or features", remedy="Give one of them."
            )
        with torch.no_grad():
            groups = _groups(features) if features is not None else self._encoded(pictures)
            self._check_features(groups)
            n = len(groups[0])
            tokens = self.project(torch.cat(list(groups)))
            tokens = tokens.reshape(len(groups), -1, tokens.shape[-1])
            null = self._null_tokens(null_features, groups[0][:1])
            if null is not None:
                null = null.expand(len(groups), -1, -1).repeat(1, n, 1)
        return ImagePrompt(tokens, null, self._prompt_metadata(n))

    def project(self, features: Tensor, *, null: bool = False) -> Tensor:
        """Features [B, ...] -> tokens [B, N, W]; differentiable.

        `null=True` applies the variant's null rule to a batch of that size: zero features, or for
        variants whose null picture is encoded, the features given (which then must be its own).
        """
        if null and self.spec.null_rule == "zero features":
            features = torch.zeros_like(features)
        weight = next(self.module.image_proj.parameters())
        tokens: Tensor = self.module.image_proj(features.to(weight.device, weight.dtype))
        return tokens

    def prepare(self, prompt: ImagePrompt) -> ImagePrompt:
        """Make K', V' of every site ahead and keep them with the prompt, which is returned.

        `prompt.save` writes them along (SDXL Plus in half precision: 5.6 MB), and to switch to the
        prompt, once loaded, takes a look-up instead of a projection. Weights or a precision other
        than these are noticed, and K', V' made anew. Raises AttachError, PromptError.
        """
        attached = self._need_attached("prepare()")
        self._check_prompt(prompt)
        attached.projections.prepare(prompt)
        return prompt

    # ── using ───────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def use(
        self,
        prompt: ImagePrompt,
        scale: Scale = 1.0,
        guidance: str | Sequence[Branch] = "auto",
    ) -> Iterator[InUse]:
        """While the block runs, the base listens to `prompt`; yields a handle with a live `.scale`.

        `guidance` states how the batch is stacked. "auto": the prompts' batch is positive
        throughout, twice that [negative, positive] as diffusers does it, larger ones are told by
        their latents; a pipeline that draws two pictures of a prompt without guidance is seen as
        such. A compiled denoiser with several pictures of a prompt needs it stated.

        In training, run `backward()` inside the block if the denoiser checkpoints gradients: it
        computes parts of its forward pass again.

        Raises AttachError, PromptError, ScaleError, GuidanceError.
        """
        attached = self._need_attached("use()")
        place, carrier = attached.place, attached.carrier
        place.check()
        self._check_prompt(prompt)
        entry = InUse(
            self,
            place.sites.sites,
            attached.projections.pairs(prompt),
            prompts=len(prompt),
            scale=scale,
            branches=named_layout(guidance),
        )
        carrier.in_use.append(entry)
        try:
            yield entry
        finally:
            if entry in carrier.in_use:
                carrier.in_use.remove(entry)

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the standard layout, atomically: `.safetensors` with metadata, or `.bin`.

        Weights are written in the dtype they have.
        """
        parts = Parts(self.module.image_proj.state_dict(), self.module.ip_adapter.state_dict())
        write_file(Path(path), FORMATS["standard"].write(parts), self._metadata())

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights, for an optimiser. Created adapters want gradients, loaded ones do not."""
        return self.module.parameters()

    def fingerprint(self) -> str:
        """Short hash of the projector: image prompts are good for adapters that share it."""
        state = versions(self.module.image_proj.parameters())
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, fingerprint(self.module.image_proj.state_dict()))
        return self._fingerprint[1]

    def _metadata(self) -> dict[str, str]:
        spec = self.spec
        metadata = {
            "generator": "imageprompt",
            "variant": spec.variant,
            "host": spec.host,
            "feature": spec.feature,
            "feature_width": str(spec.feature_width),
            "null_rule": spec.null_rule,
            "tokens": str(spec.tokens or "one per patch"),
        }
        if self.encoder is not None:
            metadata["encoder"] = self.encoder.fingerprint
        return metadata

    def _prompt_metadata(self, references: int) -> dict[str, str]:
        metadata = {
            "variant": self.spec.variant,
            "projector": self.fingerprint(),
            "references": str(references),
        }
        if self.encoder is not None:
            metadata["encoder"] = self.encoder.fingerprint
        return metadata

    # ── checks ──────────────────────────────────────────────────────────────────────────────────

    def _need_attached(self, call: str) -> _Attached:
        if self._attached is None:
            raise AttachError(
                call, rule="the adapter is attached to nothing", remedy="Call attach(pipe) first."
            )
        return self._attached

    def _check_base(self, sites: HostSpec) -> None:
        """Same ids, same widths. Raises WrongBaseError naming the likely base."""
        ours = {name: tuple(w.shape) for name, w in self.module.ip_adapter.state_dict().items()}
        theirs = sites.shapes()
        if ours == theirs:
            return
        families = likely_families(ours)
        made_for = " or ".join(families) if families else self.spec.host
        odd = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        raise WrongBaseError(
            f"this {self.spec.variant} adapter on a {sites.family} base",
            rule=f"it has {len(ours) // 2} sites of text width {self.spec.text_width}, the base "
            f"{len(theirs) // 2} of {sites.text_width}; {len(odd)} tensors do not fit "
            f"({', '.join(odd[:5])})",
            remedy=f"It was made for {made_for}: use such a base, or another adapter.",
        )

    def _checked_encoder(self, encoder: object) -> Encoder:
        opened = open_encoder(encoder)
        width = opened.width(self.spec.feature)
        if width != self.spec.feature_width:
            raise EncoderError(
                f"an image encoder whose {self.spec.feature} are {width} wide",
                rule=f"this {self.spec.variant} adapter reads {self.spec.feature_width}",
                remedy=_encoder_hint(self.spec),
            )
        return opened

    def _check_features(self, groups: Sequence[Tensor]) -> None:
        counts = sorted({len(group) for group in groups})
        if len(counts) != 1 or counts[0] == 0:
            raise PromptError(
                f"prompts with {' and '.join(map(str, counts)) or 'no'} reference(s)",
                rule="every prompt of a batch has the same number, at least one",
                remedy="Give each prompt as many references as the others.",
            )
        ndim = 2 if self.spec.feature in POOLED else 3
        for group in groups:
            if group.ndim != ndim or group.shape[-1] != self.spec.feature_width:
                shape = "[n, F]" if ndim == 2 else "[n, L, F]"
                raise EncoderError(
                    f"features of shape {list(group.shape)}",
                    rule=f"{self.spec.feature} of this adapter are {shape}, "
                    f"F = {self.spec.feature_width}",
                    remedy=_encoder_hint(self.spec),
                )

    def _check_prompt(self, prompt: ImagePrompt) -> None:
        if not isinstance(prompt, ImagePrompt):
            raise PromptError(
                f"a {type(prompt).__name__}",
                rule="it is no image prompt",
                remedy="Make one with adapter.encode().",
            )
        width = prompt.tokens.shape[-1]
        if width != self.spec.text_width:
            raise PromptError(
                f"an image prompt {width} wide",
                rule=f"this adapter's tokens are {self.spec.text_width} wide",
                remedy="Encode the pictures with this adapter.",
            )
        made_by = prompt.metadata.get("projector")
        if made_by is not None and made_by != self.fingerprint():
            raise PromptError(
                f"an image prompt of projector {made_by}",
                rule=f"this adapter's projector is {self.fingerprint()}, which reads others",
                remedy="Encode the pictures again with this adapter.",
            )

    # ── features ────────────────────────────────────────────────────────────────────────────────

    def _encoded(self, pictures: Any) -> list[Tensor]:
        """Features of every prompt's references, [n, ...] each."""
        from imageprompt.encoders.pictures import open_picture

        groups = _picture_groups(pictures)
        encoder = self._need_encoder("pictures")
        opened = [open_picture(picture) for group in groups for picture in group]
        features = encoder.encode(opened, self.spec.feature)
        return list(torch.split(features, [len(group) for group in groups]))

    def _null_tokens(self, null_features: Tensor | None, like: Tensor) -> Tensor | None:
        """Tokens [1, N, W] of "no picture", by the variant's rule; None if they cannot be had.

        The null picture is the same for every prompt, so its tokens are made once.
        """
        if null_features is not None:
            self._check_features([null_features])
            return self.project(null_features[:1])
        features = self._null_features(like)
        if features is None:
            return None
        state = (tuple(features.shape), *versions(self.module.image_proj.parameters()))
        if self._null is None or self._null[0] != state:
            self._null = (state, self.project(features))
        return self._null[1]

    def _null_features(self, like: Tensor) -> Tensor | None:
        if self.spec.null_rule == "zero features":
            return torch.zeros_like(like)
        if self._encoded_null is None and self.encoder is not None:
            self._encoded_null = self.encoder.encode_null(self.spec.feature)
        return self._encoded_null

    def _need_encoder(self, what: str) -> Encoder:
        if self.encoder is None:
            raise EncoderError(
                f"no image encoder for {what}",
                rule=f"{self.spec.feature} {self.spec.feature_width} wide are needed",
                remedy="Pass encoder= to attach(), or ready-made features= to encode().",
            )
        return self.encoder


def _groups(features: Features) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def _picture_groups(pictures: Any) -> list[list[PictureSource]]:
    """[[...], ...]: the references of every prompt. Raises PictureError when there is none."""
    if not isinstance(pictures, list | tuple):
        pictures = [pictures]
    nested = [isinstance(entry, list | tuple) for entry in pictures]
    groups = [list(entry) for entry in pictures] if all(nested) else [list(pictures)]
    if not pictures or any(not group for group in groups) or (any(nested) and not all(nested)):
        raise PictureError(
            "references",
            rule="a list of pictures, or one non-empty list for each prompt",
            remedy="Give at least one picture: encode([picture]) or encode([[a], [b]]).",
        )
    return groups


def _check_options(variant: str, known: Sequence[str], options: ProjectorOptions) -> None:
    given = [f.name for f in fields(options) if getattr(options, f.name) is not None]
    for name in given:
        value = getattr(options, name)
        if name not in known or not isinstance(value, int) or value < 1:
            rule = "a whole number above 0" if name in known else f"{variant} has no such option"
            raise OptionError(
                f"{'num_tokens' if name == 'tokens' else name}={value!r}",
                rule=rule,
                remedy=f"Options of {variant}: {', '.join(known) or 'none'}.",
            )


def _encoder_hint(spec: AdapterSpec) -> str:
    name = encoder_name(spec.feature, spec.feature_width)
    return f"It was made for {name}." if name else "Use the encoder it was trained with."
