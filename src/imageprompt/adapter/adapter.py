"""Adapter: a projector, and K', V' of every site; load, create, attach, encode, use, save."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.adapter.build import new_module, read_module
from imageprompt.adapter.compatibility import (
    check_base,
    check_free,
    check_lora,
    check_prompt,
    check_text_projection,
    checked_encoder,
    checked_faces,
)
from imageprompt.adapter.kv_cache import KVCache, TokenCache
from imageprompt.adapter.weights import AdapterModule
from imageprompt.attention.active_prompt import ActivePrompt
from imageprompt.attention.cfg_layout import Branch, named_layout
from imageprompt.attention.state import AttentionState
from imageprompt.attention.step_tracker import parse_timesteps
from imageprompt.control import DEFAULT_SCALE, Controls, Scale, Scaling
from imageprompt.core.errors import AttachError, OptionError, PromptError
from imageprompt.core.spec import AdapterSpec, Entry, ProjectorOptions, Site
from imageprompt.encoding.encode import ReferenceEncoder
from imageprompt.encoding.encoders import Encoder, own_encoder
from imageprompt.encoding.encoders.contract import LARGEST, FaceChoice
from imageprompt.encoding.features import Features, Group
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.encoding.options import EncodeOptions
from imageprompt.encoding.references import Pictures
from imageprompt.variants import VARIANTS, entry_at, key_norm, reading_of, value_norm

if TYPE_CHECKING:
    from imageprompt.adapter.lora import InstalledLora, LoraMode
    from imageprompt.encoding.face_embeddings import Embeddings
    from imageprompt.encoding.images.framing import Framing
    from imageprompt.encoding.images.noise import Noise
    from imageprompt.encoding.images.open_image import PictureSource


@dataclass(frozen=True)
class _Attachment:
    """What an adapter is attached to, and what it has installed there."""

    denoiser: AttachedDenoiser
    state: AttentionState
    sites: tuple[Site, ...]
    """Those that the adapter acts at."""
    places: tuple[int | None, ...]
    """For every place where the denoiser can take image terms, the index of the site among them."""
    kv_cache: KVCache
    lora: InstalledLora | None
    lora_mode: LoraMode

    def is_current(self, lora_mode: LoraMode) -> bool:
        """Is everything still in place, with LoRA in this mode?"""
        return self.denoiser.intact() and self.lora_mode == lora_mode

    def update_lora(self) -> None:
        if self.lora is not None:
            self.lora.update()


class Adapter:
    """An image-prompt adapter. Make one with `Adapter.load` or `Adapter.create`.

    The weights are in `module`, apart from the base, with a dtype and device of their own; results
    are cast to the dtype of the base.
    """

    def __init__(self, spec: AdapterSpec, module: AdapterModule) -> None:
        self.spec = spec
        self.module = module
        self.encoding = ReferenceEncoder(spec, module.image_proj)
        self._attachment: _Attachment | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        """An unattached copy, which shares nothing with this one that can change.

        The image encoder is copied too; a face encoder, which never changes, is shared.
        """
        made = _restored(
            self.spec, copy.deepcopy(self.module, memo), copy.deepcopy(self.encoder, memo)
        )
        made.encoding.face_encoder = self.encoding.face_encoder
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle restores it unattached, with its image encoder and without a face encoder."""
        return _restored, (self.spec, self.module, self.encoder)

    @property
    def encoder(self) -> Encoder | None:
        """The image encoder: that of the last `attach` with one."""
        return self.encoding.encoder

    def __repr__(self) -> str:
        where = "attached" if self.attached else "not attached"
        tokens = self.spec.tokens or "one per patch"
        return f"Adapter({self.spec.variant} for {self.spec.host}, tokens: {tokens}, {where})"

    # ── load and create ───────────────────────────────────────────────────────────────────────────

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        variant: str | None = None,
        reading: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        base: object = None,
    ) -> Adapter:
        """Load a file: a path, or a Hub id `owner/repo/sub/file`. Its tensors tell what it is.

        `variant` is needed only where neither tensors nor metadata decide: between "faceid-plus"
        and "faceid-plus-v2". `reading` runs the file by the equation of another program where the
        two differ: "comfyui" or "diffsynth" for InstantX's adapter for FLUX.

        `base` is the pipeline or denoiser that a light adapter (`imageprompt compress`) was made
        for: its K' and V' are differences to that one's own. Other files do not need it.

        dtype None keeps that of the file; float8 becomes float16, with a warning. Raises
        NotFoundError, OptionError, and AdapterFileError, also for a known variant that cannot run
        yet, for weights that are not finite and for whole numbers (int8).
        """
        spec, module = read_module(source, variant, dtype, base)
        reading_of(VARIANTS[spec.variant], reading or "")  # raises for one that it does not have
        spec = replace(spec, reading=reading or "")
        return cls(spec, module.to(device=device).requires_grad_(False))

    @classmethod
    def create(
        cls,
        variant: str,
        *,
        denoiser: object,
        encoder: object,
        num_tokens: int | None = None,
        init: Literal["copy", "zero"] | None = None,
        depth: int | None = None,
        heads: int | None = None,
        inner_dim: int | None = None,
        feature: str | None = None,
    ) -> Adapter:
        """New float32 weights for a denoiser (or pipeline) and an image encoder.

        K' starts as a copy of the text's K where that is as wide as image tokens. V' starts as a
        copy of the text's V (`init="copy"`, the paper; default in cross-attention) or as zeros
        (`init="zero"`: the untrained adapter changes nothing; default in joint attention). LoRA
        starts without effect. `encoder` is None for variants that read only face embeddings.
        `feature` is the output of the encoder that is read (default: the variant's): image_embeds
        or pooler_output by projectors of vectors, hidden_states[-2] or last_hidden_state by those
        of patches. `depth`, `heads` and `inner_dim` shape a resampler. Raises OptionError for an
        option that the variant or the base does not have, EncoderError for a feature that the
        encoder does not make, AttachError for a denoiser without sites.
        """
        options = ProjectorOptions(tokens=num_tokens, depth=depth, heads=heads, inner_dim=inner_dim)
        return cls(*new_module(variant, denoiser, encoder, init, options, feature))

    # ── attach and detach ─────────────────────────────────────────────────────────────────────────

    def attach(
        self,
        pipe: object,
        encoder: object = None,
        *,
        faces: object = None,
        lora: LoraMode = "live",
    ) -> Adapter:
        """Attach to a diffusers pipeline or a denoiser; returns self.

        Of a pipeline only the denoiser is used. `encoder` (a model, a folder or one of ours) is
        needed to encode pictures; with the pipeline's own goes its `feature_extractor`.

        Everything is checked before anything changes: AttachError, WrongBaseError, EncoderError and
        OptionError leave the base as it was. Where it is attached already, to this denoiser, a new
        encoder or new faces replace the old ones.

        `faces` finds the faces in pictures, for FaceID adapters and portrait: insightface's model
        pack (a folder, or a name in ~/.insightface/models) or a prepared FaceAnalysis.

        `lora="merged"` writes the LoRA of FaceID adapters into the weights of the base while an
        image prompt is in use, and restores them afterwards, bit for bit: steps then cost what
        they cost the base, but a change of strength takes time. "live" changes no weight.
        """
        base = AttachedDenoiser.of(pipe)
        check_free(None if self._attachment is None else self._attachment.denoiser, base)
        check_base(self.spec, self.module, base.spec)
        check_text_projection(self.spec, base)
        if encoder is not None and encoder is getattr(pipe, "image_encoder", None):
            encoder = own_encoder(pipe)  # with the pipeline's way to prepare pictures
        image_encoder = None if encoder is None else checked_encoder(self.spec, encoder)
        face_encoder = None if faces is None else checked_faces(self.spec, faces)
        loras = self.module.loras
        check_lora(lora, 1.0, has_lora=bool(loras))
        if self._attachment is None:
            self._attachment = self._install(base, lora)
        elif not self._attachment.is_current(lora):
            self.detach()
            self._attachment = self._install(base, lora)
        self.encoding.base = pipe
        if image_encoder is not None:
            self.encoding.set_encoder(image_encoder)
        if face_encoder is not None:
            self.encoding.face_encoder = face_encoder
        return self

    def _install(self, base: AttachedDenoiser, lora: LoraMode) -> _Attachment:
        """Install everything, or nothing; raises AttachError."""
        loras = self.module.loras
        if loras:
            from imageprompt.adapter.lora import install_lora, pair_with_layers

            pairs = pair_with_layers(loras, base.linears(loras), lora, base.denoiser)
        self.module.to(base.execution_device)  # may run out of memory: so before all else
        kind = reading_of(VARIANTS[self.spec.variant], self.spec.reading)
        entries = [entry_at(kind, site.kind) for site in base.spec.places]
        state = base.install()
        try:
            places = _places(state, entries)
        except AttachError:
            base.uninstall()
            raise
        installed = install_lora(lora, state, self, pairs, base.denoiser) if loras else None
        pairs_of = zip(base.spec.places, entries, strict=True)
        sites = tuple(site for site, entry in pairs_of if entry is not None)
        norms = [(key_norm(kind, site.kind), value_norm(kind, site.kind)) for site in sites]
        cache = KVCache if self.module.sites else TokenCache
        kv_cache = cache(self.module, base, sites, norms, check_text_projection(self.spec, base))
        return _Attachment(base, state, sites, places, kv_cache, installed, lora)

    def detach(self) -> None:
        """Undo `attach`: the base is bit for bit what it was. Does nothing if not attached.

        Uses of this adapter that are still active end; those of other adapters go on.
        """
        if self._attachment is None:
            return
        state = self._attachment.state
        state.leave(*(prompt for prompt in state.open if prompt.owner is self))
        if self._attachment.lora is not None:
            self._attachment.lora.remove()
        self._attachment.denoiser.uninstall()
        self._attachment = self.encoding.base = None

    @property
    def attached(self) -> bool:
        """Is it attached to a base?"""
        return self._attachment is not None

    def made_by(self) -> str:
        """Identifies the K', V' weights, their precision and the base's.

        What `precompute_kv` stores is valid for these. Raises AttachError.
        """
        return self._need_attachment("made_by()").kv_cache.made_by()

    # ── encode ────────────────────────────────────────────────────────────────────────────────────

    def encode(
        self,
        pictures: Pictures | None = None,
        *,
        features: Features | None = None,
        null_features: Group | None = None,
        embeddings: Embeddings | None = None,
        face: FaceChoice = LARGEST,
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
        """Encode and project references: pictures, face embeddings or ready-made features.

        `[a, b]` is one prompt with two references, their tokens side by side; `[[a], [b]]` are two
        prompts with one reference each, for a batch of two text prompts. `features` [n, ...] are n
        references of one prompt, a list of such tensors several prompts; `null_features` [1, ...]
        are the encoder's features of the null picture. For FaceID-plus both are tuples: face
        embeddings [n, 512] and patch features of the faces [n, L, F].

        FaceID adapters and portrait read the faces in the pictures: the "largest" of each, "all",
        or one by its index (`face`; 0 is the largest). `embeddings` supplies them instead: a file
        (.npy, .safetensors, torch, JSON), an array [512] or [n, 512], or lists of these like those
        of pictures; FaceID-plus also needs crops of the same faces as its pictures.

        `fusion` combines the references of a prompt before projection (`encoding.fusion` has the
        formulas). All but "concat" result in one reference, so that prompts may have different
        numbers of them. `weights`, one per reference (or a list of them per prompt), multiply the
        features; with "concat" they multiply the tokens, and 0 removes a reference.
        "attention-weighted" computes the weights: from the similarity to `text` or to the other
        references.

        `framing` crops or pads the pictures (a `Framing` or its text: "squash", "crop:top", "pad",
        "tiles", "crop+sharpen:0.3"); the default is the encoder's centre crop. `reference_mask`
        (anything `use(mask=)` takes, in the picture's shape; one, or one per reference) keeps the
        white area and replaces the rest with the encoder's mean colour.

        `negative` pictures stand for "no picture" on the negative side of guidance. `noise`
        (0..1, or "dissolve:0.4": see `Noise`) puts a noisy version of them there, or else of the
        references, drawn from `noise_seed`.

        `subtract_text` removes words from the references: image_embeds - strength * text_embeds
        (InstantStyle). It needs a text encoder of the same space: the base's where it is known to
        be one (SDXL with CLIP bigG), or `text_encoder=` (a folder, or (model, tokenizer)).

        `face_strength` weights the patch features of FaceID-plus v2 beside the face embedding
        (s_scale in the published code, weight_faceidv2 in ComfyUI).

        Raises PictureError, EncoderError, PromptError, OptionError.
        """
        options = EncodeOptions.of(
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
            pictures, features, null_features, options, embeddings=embeddings, face=face
        )

    def project(
        self, features: Group, *, null: bool = False, strength: float | Tensor = 1.0
    ) -> Tensor:
        """Features [B, ...] -> tokens [B, N, W]; differentiable.

        `null=True` applies the variant's null rule to a batch of that size: zeros, or for variants
        that encode a null picture the given features, which must be those of that picture.
        `strength` (a number, or [B, 1, 1]) weights the patch features of FaceID-plus v2 beside the
        face embedding; other variants ignore it.
        """
        return self.encoding.project(features, null=null, strength=strength)

    @property
    def precomputes(self) -> bool:
        """Can K', V' of its prompts be computed before they are used?"""
        return bool(self.module.sites) and not self.spec.is_timed

    def precompute_kv(self, prompt: ImagePrompt) -> ImagePrompt:
        """Compute K', V' of every site and store them with the prompt, which is returned.

        `prompt.save` writes them to its file (5.6 MB for SDXL Plus in half precision). Using the
        loaded prompt then takes a look-up instead of a projection. If the weights or the precision
        have changed since, K' and V' are computed anew. Raises AttachError, PromptError.
        """
        attachment = self._need_attachment("precompute_kv()")
        check_prompt(self.spec, self.fingerprint, prompt)
        if not self.precomputes:
            raise PromptError(
                f"K', V' of a {self.spec.variant} adapter",
                reason="they depend on the timestep"
                if self.spec.is_timed
                else "it has none: its tokens follow those of the text",
                hint="Use the prompt as it is.",
            )
        attachment.kv_cache.precompute(prompt)
        return prompt

    # ── use ───────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def use(
        self,
        prompt: ImagePrompt,
        scale: Scale = DEFAULT_SCALE,
        guidance: str | Sequence[Branch] = "auto",
        *,
        lora: float = 1.0,
        preset: str | None = None,
        composition: float | None = None,
        boost: float | None = None,
        negative_scale: float | None = None,
        schedule: object = None,
        mask: Any = None,
        scaling: Scaling = "V only",
        timesteps: Any = None,
        controls: Controls | None = None,
    ) -> Iterator[ActivePrompt]:
        """While the block runs, the base follows `prompt` too; yields a live handle.

        Set `.scale`, `.lora` or `.controls` of the handle at any time.

        How strongly and where in the network: `scale` is a number 0..2 or numbers by site (see
        `Scale`); the default is `control.DEFAULT_SCALE`, 0.8. With a `preset` (of `PRESETS`, in
        any spelling) the scale is its weight; `composition` and `boost` are further weights of
        some presets. `scaling` says what the scale multiplies. `negative_scale` is the scale
        of the negative side of guidance (XLabs' neg_ip_scale), by default the same.

        When: `schedule` is a `Schedule`, a text ("0-0.4", "0-40%", "0.1-0.8 ease-out"), numbers
        for the steps, or a function of the fraction of the loop that has passed. `timesteps` are
        those of the loop, needed only where its calls do not tell the step, which is an error.

        Where in the picture: `mask` (see `open_mask`; a list has one per prompt) is 1 where the
        reference acts. The text acts everywhere. For several references with a mask each, nest
        blocks.

        `controls` replaces scale, lora, preset, composition, boost, negative_scale, schedule and
        scaling.

        `guidance` says how the batch is stacked: a name of `LAYOUTS` or a sequence of branches.
        "auto" asks the pipeline that runs whether it is guided; in a loop of your own the latents
        tell, which guidance repeats. Where two readings are left, that is a GuidanceError, or a
        warning if there was a single step. In a loop that calls the denoiser once for each side,
        set `.guidance` of the handle to "negative" or "positive" before the calls.

        The prompt is in use in this thread or asyncio task (and in tasks started inside the
        block), nowhere else. If the denoiser was never called in the block, a warning says so.

        `lora` is the strength of the LoRA of FaceID adapters, which acts on the whole batch. It is
        independent of `scale`, as published adapters are used, except that scale 0 turns LoRA off
        as well: that is the base alone.

        In training with gradient checkpointing, call `backward()` inside the block: it runs parts
        of the forward pass again.

        Raises AttachError, PromptError, ScaleError, OptionError, PictureError, GuidanceError.
        """
        attachment = self._need_attachment("use()")
        base, state = attachment.denoiser, attachment.state
        base.check()
        check_prompt(self.spec, self.fingerprint, prompt)
        controls = Controls.of(
            controls,
            scale=scale,
            lora=lora,
            preset=preset,
            composition=composition,
            boost=boost,
            negative_scale=negative_scale,
            schedule=schedule,
            scaling=scaling,
        )
        check_lora("live", controls.lora, has_lora=attachment.lora is not None)
        alone = self.spec.null_rule == "no tokens" and prompt.null_tokens is None
        if alone and controls.negative_scale is not None:
            raise OptionError(
                f"negative_scale with a {self.spec.variant} adapter",
                reason="nothing stands for 'no picture': the negative side reads the text alone",
                hint="Encode with negative= (--negative-reference), or leave it out.",
            )
        cache, timed = attachment.kv_cache, self.spec.is_timed
        masks = [] if mask is None else _open_masks(mask, len(prompt))
        handle = ActivePrompt(
            self,
            state,
            attachment.sites,
            cache.placeholders(prompt) if timed else cache.key_values(prompt),
            places=attachment.places,
            timed=partial(cache.key_values_at, prompt) if timed else None,
            norms=cache.norms(),
            prompts=len(prompt),
            controls=controls,
            layout=named_layout(guidance),
            masks=[torch.from_numpy(weights)[None, None] for weights in masks],
            timesteps=parse_timesteps(timesteps),
            negative_picture=bool(prompt.metadata.keys() & {"negative", "noise"}),
            positive_only=alone,
        )
        state.enter(handle)
        try:
            attachment.update_lora()
            yield handle
        finally:
            state.leave(handle)
            attachment.update_lora()
        handle.close()

    # ── save ──────────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the standard layout, atomically: `.safetensors` with metadata, or `.bin`.

        Weights keep their dtype. Raises NotFoundError for a missing folder.
        """
        from imageprompt.checkpoint.formats import FORMATS, Parts
        from imageprompt.checkpoint.torch_io import write_file
        from imageprompt.checkpoint.write import adapter_metadata

        parts = Parts(self.module.image_proj.state_dict(), self.module.ip_adapter.state_dict())
        encoder = None if self.encoder is None else self.encoder.fingerprint
        write_file(
            Path(path), FORMATS["standard"].write(parts), adapter_metadata(self.spec, encoder)
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights, for an optimiser. Those of created adapters require gradients, those of
        loaded ones do not."""
        return self.module.parameters()

    def fingerprint(self) -> str:
        """Short hash of the projector: adapters that share it can use each other's prompts."""
        return self.encoding.fingerprint()

    def _need_attachment(self, call: str) -> _Attachment:
        if self._attachment is None:
            raise AttachError(
                call, reason="the adapter is not attached", hint="Call attach(pipe) first."
            )
        return self._attachment


def _restored(spec: AdapterSpec, module: AdapterModule, encoder: Encoder | None) -> Adapter:
    adapter = Adapter(spec, module)
    if encoder is not None:
        adapter.encoding.set_encoder(encoder)
    return adapter


def _places(state: AttentionState, entries: Sequence[Entry | None]) -> tuple[int | None, ...]:
    """For every reader of a state, the number of the adapter's site that acts there, or None.

    `entries` says of every site of the denoiser where the adapter adds image terms, None for sites
    that it leaves alone. Raises AttachError where the denoiser cannot take them there.
    """
    acting = [site for site, entry in enumerate(entries) if entry is not None]
    numbers = {site: number for number, site in enumerate(acting)}
    places = tuple(
        numbers[reader.site] if entries[reader.site] == reader.entry else None
        for reader in state.readers
    )
    if len(set(places) - {None}) < len(acting):
        raise AttachError(
            "this adapter on this base",
            reason="the base's layers do not take image tokens the way the adapter adds them",
            hint="Use the base that it was made for.",
        )
    return places


def _open_masks(mask: Any, prompts: int) -> Any:
    from imageprompt.encoding.masks import open_masks

    return open_masks(mask, prompts)
