"""Adapter: projector plus K', V' per site; load, create, attach, encode, use, detach, save."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.compatibility import (
    check_base,
    check_options,
    check_prompt,
    checked_encoder,
    checked_faces,
    feature_dim_of,
)
from imageprompt.adapter.kv_cache import KVCache
from imageprompt.adapter.lora import ActingLora, Mode, act, check_mode, check_strength, pairs_of
from imageprompt.adapter.weights import AdapterModule, new_lora
from imageprompt.attention.active_prompt import ActivePrompt
from imageprompt.attention.cfg_layout import Branch, named_layout
from imageprompt.attention.state import AttentionState
from imageprompt.attention.step_tracker import explicit_timesteps
from imageprompt.checkpoint.formats import FORMATS, Parts
from imageprompt.checkpoint.identify.identify import read_adapter
from imageprompt.checkpoint.write.metadata import adapter_metadata
from imageprompt.checkpoint.write.storage import write_file
from imageprompt.control import Controls, Scale, Scaling
from imageprompt.core.errors import AdapterFileError, AttachError, OptionError
from imageprompt.core.hub import locate_file
from imageprompt.core.spec import AdapterSpec, ProjectorOptions
from imageprompt.encoding.encode import Encoding
from imageprompt.encoding.encoders import Encoder
from imageprompt.encoding.encoders.face import LARGEST, Choice
from imageprompt.encoding.face_embeddings import Embeddings
from imageprompt.encoding.features import Features, Group
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.encoding.masks import open_masks
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.references import Pictures
from imageprompt.variants import VARIANTS, pending, site_shapes

if TYPE_CHECKING:
    from imageprompt.encoding.images.framing import Framing
    from imageprompt.encoding.images.noise import Noise
    from imageprompt.encoding.images.open_image import PictureSource


@dataclass(frozen=True)
class _Attached:
    """Where an adapter is attached and what it does there."""

    place: AttachedDenoiser
    state: AttentionState
    projections: KVCache
    lora: ActingLora


class Adapter:
    """An image-prompt adapter. Make one with `Adapter.load` or `Adapter.create`.

    The weights live in `module`, apart from the base; dtype and device are theirs to keep, results
    are cast to what the base computes in.
    """

    def __init__(self, spec: AdapterSpec, module: AdapterModule) -> None:
        self.spec = spec
        self.module = module
        self.encoding = Encoding(spec, module.image_proj)
        self._attached: _Attached | None = None

    @property
    def encoder(self) -> Encoder | None:
        """What reads pictures: the encoder of the last attach that brought one."""
        return self.encoding.encoder

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
        variant: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Adapter:
        """From a path or a Hub id `owner/repo/sub/file`; what it is, is read off its tensors.

        `variant` settles what neither tensors nor metadata tell, which is "faceid-plus" from
        "faceid-plus-v2". dtype None keeps the file's own. Raises NotFoundError, AdapterFileError
        (also for a variant whose files are known, but that cannot be run yet), OptionError.
        """
        spec, parts = read_adapter(locate_file(source), variant)
        reason = pending(VARIANTS[spec.variant])
        if reason:
            raise AdapterFileError(
                f"{os.fspath(source)} ({spec.variant} for {spec.host})",
                reason=reason,
                hint="imageprompt inspect, validate and convert work with it.",
            )
        with torch.device("meta"):
            projector = VARIANTS[spec.variant].build(spec.projector)
        projector.load_state_dict(dict(parts.projector), assign=True)
        module = AdapterModule.of(projector, parts.sites)
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
        inner_dim: int | None = None,
    ) -> Adapter:
        """New float32 weights for a denoiser (or pipeline) and an image encoder.

        K' starts as a copy of the text's K; V' as a copy of its V (`init="copy"`, the paper) or as
        zeros (`init="zero"`: the untrained adapter leaves the base as it is). LoRA starts as no
        change. `encoder` is None where only a face's embedding is read. depth, heads and inner_dim
        shape a resampler. Raises OptionError for an option the variant has no use for.
        """
        if init not in ("copy", "zero"):
            raise OptionError(f"init={init!r}", reason="it is 'copy' or 'zero'")
        kind = VARIANTS[variant]
        if reason := pending(kind):
            raise OptionError(f"variant {variant!r}", reason=reason, hint="Choose another one.")
        options = ProjectorOptions(tokens=num_tokens, depth=depth, heads=heads, inner_dim=inner_dim)
        check_options(variant, kind.options, options)
        place = AttachedDenoiser.of(denoiser)
        projector = kind.propose(
            feature_dim_of(kind.feature, encoder), place.sites.cross_attention_dim, options
        )
        weights = new_lora(site_shapes(kind, place.sites, projector))
        for site in place.sites.sites:
            key, value = place.host.text_weights(place.denoiser, site.name)
            value = torch.zeros_like(value) if init == "zero" else value
            for name, weight in (("k", key), ("v", value)):
                copied = weight.detach().float().clone()
                weights[f"{site.file_id}.to_{name}_ip.weight"] = copied
        spec = AdapterSpec(
            variant=variant,
            host=place.sites.family,
            feature=kind.feature,
            null_rule=kind.null_rule,
            projector=projector,
        )
        with torch.device(place.device):
            return cls(spec, AdapterModule.of(kind.build(projector), weights))

    # ── attaching ───────────────────────────────────────────────────────────────────────────────

    def attach(
        self,
        pipe: object,
        encoder: object = None,
        *,
        faces: object = None,
        lora: Mode = "live",
    ) -> Adapter:
        """Attach to a diffusers pipeline or a denoiser; returns self.

        Nothing of the pipeline is read but its denoiser. `encoder` (a model, a folder or one of
        ours) is needed to encode pictures. Everything is checked before anything changes: raises
        AttachError, WrongBaseError or EncoderError and leaves the base as it was.

        `faces` finds the faces in pictures for FaceID adapters and portrait: insightface's model
        pack (a folder, or a name in ~/.insightface/models) or a FaceAnalysis that is prepared.

        `lora="merged"` writes the LoRA of FaceID adapters into the base's weights while an image
        prompt is in use, and the weights' own bits back afterwards: steps cost no more than the
        base's then, a change of strength does. "live" leaves all weights alone.
        """
        if self._attached is not None:
            raise AttachError(
                "this adapter", reason="it is attached already", hint="Call detach() first."
            )
        place = AttachedDenoiser.of(pipe)
        check_base(self.spec, self.module, place.sites)
        opened = None if encoder is None else checked_encoder(self.spec, encoder)
        finder = None if faces is None else checked_faces(self.spec, faces)
        pairs = pairs_of(self.module.loras, place.linears(self.module.loras))
        check_mode(lora, pairs, place.denoiser)
        if place.device.type != "meta":
            self.module.to(place.device)  # it may not fit there: before anything is entered
        state = place.install()
        acting = act(lora, state, self, pairs, place.denoiser)
        self._attached = _Attached(place, state, KVCache(self.module, place), acting)
        self.encoding.base = pipe
        if opened is not None:
            self.encoding.open(opened)
        if finder is not None:
            self.encoding.faces = finder
        return self

    def detach(self) -> None:
        """Undo attach, exactly: the base is bit for bit what it was. Harmless when not attached."""
        if self._attached is None:
            return
        in_use = self._attached.state.in_use
        in_use[:] = [entry for entry in in_use if entry.owner is not self]
        self._attached.lora.remove()
        self._attached.place.uninstall()
        self._attached = self.encoding.base = None

    @property
    def attached(self) -> bool:
        """Is it attached to a base?"""
        return self._attached is not None

    def made_by(self) -> str:
        """Names K', V' weights, their precision and the base's: what `precompute_kv` makes is good for
        these. Raises AttachError."""
        return self._need_attached("made_by()").projections.made_by()

    # ── encoding ────────────────────────────────────────────────────────────────────────────────

    def encode(
        self,
        pictures: Pictures | None = None,
        *,
        features: Features | None = None,
        null_features: Group | None = None,
        embeddings: Embeddings | None = None,
        face: Choice = LARGEST,
        fusion: str = "concat",
        weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
        framing: Framing | str | None = None,
        reference_mask: Any = None,
        negative: Pictures | PictureSource | None = None,
        noise: Noise | float | str = 0.0,
        noise_seed: int = 0,
        subtract_text: str | Sequence[str] | Tensor | None = None,
        subtract_strength: float = 1.0,
        text: str | Sequence[str] | Tensor | None = None,
        text_encoder: object = None,
        face_strength: float = 1.0,
    ) -> ImagePrompt:
        """Encode and project references.

        `[a, b]` is one prompt with two references, their tokens side by side; `[[a], [b]]` are two
        prompts, one reference each, for a batch of two text prompts. Ready-made `features` [n, ...]
        are n references of one prompt, a list of such tensors several prompts; `null_features`
        [1, ...] what the encoder makes of the null picture. For FaceID-plus they are a tuple:
        face embeddings [n, 512], patch features of the faces [n, L, F].

        FaceID adapters and portrait read the faces in the pictures: of each the "largest", "all",
        or the one of an index (`face`; 0 is the largest). Or they are given `embeddings`: a file
        (.npy, .safetensors, torch, JSON), an array [512] or [n, 512], or lists of these as of
        pictures; FaceID-plus then reads crops of the same faces as its pictures.

        `fusion` mixes the references of a prompt before they are projected (fusion.py has the
        formulas); any but "concat" leaves one, so that prompts may differ in their numbers.
        `weights`, one a reference (or a list of them for each prompt), multiply the features first;
        with "concat" the tokens, where 0 leaves nothing of a reference.
        "attention-weighted" finds its own: the nearness to `text` or to the other references.

        `framing` frames the pictures (`Framing`, or its words: "squash", "crop:top", "pad",
        "tiles", "crop+sharpen:0.3"); without it the encoder takes the centre. `reference_mask`
        (anything `use(mask=)` takes, in the picture's shape; one, or one a reference) keeps what
        is white and shows the encoder its mean colour elsewhere.

        `negative` pictures stand for "no picture" on the negative side of guidance; `noise`
        (0..1, or "dissolve:0.4": see `Noise`) puts a noisy version of them there, or of the
        references themselves, drawn from `noise_seed`.

        `subtract_text` takes words out of the references: image_embeds - strength * text_embeds
        (InstantStyle). Words need a text encoder of the same space: that of the base where it is
        known to be (SDXL with CLIP bigG), or `text_encoder=` (a folder, or (model, tokenizer)).

        `face_strength` weights what FaceID-plus v2 sees in the face's picture beside the identity
        (s_scale of the published code, ComfyUI's weight_faceidv2).

        Raises PictureError, EncoderError, PromptError, OptionError.
        """
        mixture = EncodeOptions.of(
            fusion=fusion,
            weights=weights,
            framing=framing,
            reference_mask=reference_mask,
            negative=negative,
            noise=noise,
            noise_seed=noise_seed,
            subtract_text=subtract_text,
            subtract_strength=subtract_strength,
            text=text,
            text_encoder=text_encoder,
            face_strength=face_strength,
        )
        return self.encoding.encode(
            pictures, features, null_features, mixture, embeddings=embeddings, face=face
        )

    def project(
        self, features: Group, *, null: bool = False, strength: float | Tensor = 1.0
    ) -> Tensor:
        """Features [B, ...] -> tokens [B, N, W]; differentiable.

        `null=True` applies the variant's null rule to a batch of that size: zero features, or for
        variants whose null picture is encoded, the features given (which then must be its own).
        `strength` (a number, or [B, 1, 1]) is FaceID-plus v2's weight of the picture's features
        beside the face's embedding; other variants have no use for it.
        """
        return self.encoding.project(features, null=null, strength=strength)

    def precompute_kv(self, prompt: ImagePrompt) -> ImagePrompt:
        """Make K', V' of every site ahead and keep them with the prompt, which is returned.

        `prompt.save` writes them along (SDXL Plus in half precision: 5.6 MB), and to switch to the
        prompt, once loaded, takes a look-up instead of a projection. Weights or a precision other
        than these are noticed, and K', V' made anew. Raises AttachError, PromptError.
        """
        attached = self._need_attached("precompute_kv()")
        check_prompt(self.spec, self.fingerprint, prompt)
        attached.projections.precompute(prompt)
        return prompt

    # ── using ───────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def use(
        self,
        prompt: ImagePrompt,
        scale: Scale = 1.0,
        guidance: str | Sequence[Branch] = "auto",
        *,
        lora: float = 1.0,
        preset: str | None = None,
        composition: float | None = None,
        boost: float | None = None,
        schedule: object = None,
        mask: Any = None,
        scaling: Scaling = "V only",
        timesteps: Any = None,
        controls: Controls | None = None,
    ) -> Iterator[ActivePrompt]:
        """While the block runs, the base listens to `prompt`; yields a handle with a live `.scale`.

        Where: `scale` is a number or numbers by site (see `Scale`); a `preset` of PRESETS makes
        the scale its weight, `composition` and `boost` are the further numbers of some. When:
        `schedule` is a `Schedule`, a text ("0-0.4", "0.1-0.8 ease-out"), numbers for the steps or
        a function of the fraction of the loop that has passed. `timesteps` (those of the loop)
        are needed where its calls do not tell, which is an error then. Where in the picture:
        `mask` (see `open_mask`; a list has one for each prompt) is 1 where the reference acts; the
        text acts everywhere, and several references with masks of their own are several blocks,
        one in the other. `scaling` says what the scale multiplies. `controls` takes the place of
        scale, lora, preset, composition, boost, schedule and scaling.

        `guidance` states how the batch is stacked. "auto": the prompts' batch is positive
        throughout, twice that [negative, positive] as diffusers does it, larger ones are told by
        their latents; a loop that draws two pictures with one image prompt without guidance is
        seen as such. A compiled denoiser with several pictures of a prompt needs it explicit_timesteps.

        `lora` (the handle's `.lora`, live) weights the LoRA of FaceID adapters, which acts on the
        whole batch while the block runs. It is apart from `scale`, as published adapters are used,
        but at scale 0 it is off as well: that is the base alone.

        In training, run `backward()` inside the block if the denoiser checkpoints gradients: it
        computes parts of its forward pass again.

        Raises AttachError, PromptError, ScaleError, OptionError, PictureError, GuidanceError.
        """
        attached = self._need_attached("use()")
        place, state = attached.place, attached.state
        place.check()
        check_prompt(self.spec, self.fingerprint, prompt)
        asked = Controls.of(
            controls,
            scale=scale,
            lora=lora,
            preset=preset,
            composition=composition,
            boost=boost,
            schedule=schedule,
            scaling=scaling,
        )
        check_strength(asked.lora, self.module.loras)
        masks = [] if mask is None else open_masks(mask, len(prompt))
        entry = ActivePrompt(
            self,
            place.sites.sites,
            attached.projections.key_values(prompt),
            prompts=len(prompt),
            controls=asked,
            branches=named_layout(guidance),
            masks=[torch.from_numpy(weights)[None, None] for weights in masks],
            timesteps=explicit_timesteps(timesteps),
        )
        state.detect_step_caches(place.denoiser)
        state.in_use.append(entry)
        try:
            attached.lora.update()
            yield entry
        finally:
            if entry in state.in_use:
                state.in_use.remove(entry)
            attached.lora.update()
            entry.close()

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the standard layout, atomically: `.safetensors` with metadata, or `.bin`.

        Weights are written in the dtype they have.
        """
        parts = Parts(self.module.image_proj.state_dict(), self.module.ip_adapter.state_dict())
        seen_by = None if self.encoder is None else self.encoder.fingerprint
        write_file(
            Path(path), FORMATS["standard"].write(parts), adapter_metadata(self.spec, seen_by)
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights, for an optimiser. Created adapters want gradients, loaded ones do not."""
        return self.module.parameters()

    def fingerprint(self) -> str:
        """Short hash of the projector: image prompts are good for adapters that share it."""
        return self.encoding.fingerprint()

    # ── checks ──────────────────────────────────────────────────────────────────────────────────

    def _need_attached(self, call: str) -> _Attached:
        if self._attached is None:
            raise AttachError(
                call, reason="the adapter is attached to nothing", hint="Call attach(pipe) first."
            )
        return self._attached
