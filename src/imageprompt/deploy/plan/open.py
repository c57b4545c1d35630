"""From names to what a plan needs: a published base by name, a pipeline by its configs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from imageprompt.checkpoint.identify.base_config import read_config
from imageprompt.core import bundled
from imageprompt.core.errors import (
    NotFoundError,
    OptionError,
    WrongBaseError,
    printable,
    shortened,
)
from imageprompt.core.hub import hub_id, locate_file, no_such_file
from imageprompt.core.spec import HostSpec, ProjectorOptions
from imageprompt.deploy.plan.bases import BASES, VIT_H, Part, PublishedBase
from imageprompt.deploy.plan.curve import Curve
from imageprompt.deploy.plan.gpus import Gpu
from imageprompt.deploy.plan.plan import (
    MAX_BATCH,
    MAX_SIZE,
    MAX_STEPS,
    AdapterWeights,
    CountedBase,
    Model,
    Plan,
)
from imageprompt.hosts import HOSTS
from imageprompt.variants import VARIANTS, Variant, projector_shapes, site_shapes

MAX_NUMBER, MAX_POSITIONS = 2**19, 4096
"""Of a config: of its channels, words ..., and of the sides of its latents."""
MAX_LIST, MAX_SITES = 64, 500
"""Of a config: the blocks in a list; and the attention layers of a denoiser."""
_LARGEST = {
    "pos_embed_max_size": MAX_POSITIONS,
    "sample_size": MAX_POSITIONS,
    "transformer_layers_per_block": 16,  # SDXL has 10
    "layers_per_block": 8,  # all have 2
    "layers": 64,  # of FLUX 38, of the largest text and image encoders 48
}
"""Part of a key -> its largest number: every layer becomes an object."""
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
VAE = "AutoencoderKL"
CLIP_VISION = "clip_vision_model"
DTYPES = ("float32", "float16", "bfloat16")
ALIASES = {"flux": "flux-dev", "sd3": "sd35-large"}
FACE_DIM = 512  # of an ArcFace embedding
_T5_TOKENS = 256
_HAVE_DENOISERS = ("unet", "transformer")
_STEPS = 50


def plan(
    base: str | os.PathLike[str] = bundled.NAME,
    adapter: str | os.PathLike[str] | None = "plus",
    *,
    size: tuple[int, int] | int | None = None,
    dtype: str = "float16",
    steps: int | None = None,
    batch_size: int = 1,
    gpu: Gpu | None = None,
    saved_prompts: bool = False,
) -> Plan:
    """What a base with an adapter needs in memory and time, from configs alone.

    `base` is a published base by name, the folder of a pipeline, or its Hub id, of which only
    configs are read. `adapter` is the name of a variant, an adapter file, or None. Without a `gpu`,
    seconds are those of an assumed one. `saved_prompts`: the pictures are encoded already. Raises
    OptionError, NotFoundError.
    """
    found = counted(base)
    for name, value, most in (("steps", steps, MAX_STEPS), ("batch size", batch_size, MAX_BATCH)):
        if value is not None and not 1 <= value <= most:
            raise OptionError(f"{name} {value}", reason=f"not from 1 to {most}")
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r}", reason=f"not one of {', '.join(DTYPES)}")
    width, height = (size, size) if isinstance(size, int) else size or (found.size, found.size)
    if not all(8 <= side <= MAX_SIZE for side in (width, height)):
        raise OptionError(f"size {width}x{height}", reason=f"not from 8 to {MAX_SIZE} pixels")
    return Plan(
        base=found,
        adapter=None if adapter is None else _adapter(adapter, found),
        size=(width, height),
        batch=batch_size,
        steps=steps or found.steps,
        dtype=dtype,
        saved_prompts=saved_prompts,
        gpu=gpu,
    )


def counted(base: str | os.PathLike[str]) -> CountedBase:
    """What is known of a base. Raises OptionError, NotFoundError."""
    name = ALIASES.get(str(base), str(base))
    if name in BASES:
        figures = json.loads((files(__package__) / "counted.json").read_text())[name]
        return _counted(name, BASES[name], figures, _host(BASES[name].denoiser))
    from imageprompt.deploy.plan.measure import count_base

    try:
        published = pipeline_configs(base)
        host = _host(published.denoiser)
        if len(host.sites) > MAX_SITES:
            raise ValueError(f"more than {MAX_SITES} attention layers")
        return _counted(str(base), published, count_base(published), host)
    except (OptionError, NotFoundError):
        raise
    except Exception as error:  # the libraries raise anything for values that nobody expected
        told = (str(error).splitlines() or [""])[0]
        raise OptionError(
            f"base {str(base)!r}",
            reason=f"its configs describe no model ({shortened(printable(told), 200)})",
        ) from error


def _counted(
    name: str, base: PublishedBase, figures: Mapping[str, Any], host: HostSpec
) -> CountedBase:
    config = base.image_encoder.config
    hidden = config["hidden_size"]
    pooled = config.get("projection_dim", hidden)
    t5 = [part.config for part, _ in base.text.values() if isinstance(part, Part) and _is_t5(part)]
    return CountedBase(
        name=name,
        title=base.title,
        host=host,
        denoiser=Model.of(figures["denoiser"]),
        vae=Model.of(figures["vae"]),
        text={title: Model.of(one) for title, one in figures["text"].items()},
        image_encoder=Model.of(figures["image_encoder"]),
        reserved={name: Curve(*one) for name, one in figures["reserved"].items()},
        feature_dims={"image_embeds": pooled, "pooler_output": hidden}
        | dict.fromkeys(("hidden_states[-2]", "last_hidden_state"), hidden),
        size=base.size,
        steps=base.steps,
        rows=base.rows,
        vae_in_float32=base.vae_in_float32,
        convolutions=base.denoiser.kind.startswith("UNet"),
        wide_t5=sum(one["d_model"] * one["d_ff"] * one["num_layers"] for one in t5),
    )


def _is_t5(part: Part) -> bool:
    return part.kind == "T5EncoderModel"


def _host(denoiser: Part) -> HostSpec:
    config = {"_class_name": denoiser.kind, **denoiser.config}
    for host in HOSTS:
        spec = host.from_config(config)
        if spec is not None:
            return spec
    raise OptionError(f"a {denoiser.kind}", reason="no host describes it")


# ── adapters ────────────────────────────────────────────────────────────────────────────────────


def _adapter(adapter: str | os.PathLike[str], base: CountedBase) -> AdapterWeights:
    variant = VARIANTS.get(str(adapter))
    return _from_file(adapter, base) if variant is None else new_adapter(variant, base)


def new_adapter(
    variant: Variant, base: CountedBase, options: ProjectorOptions | None = None
) -> AdapterWeights:
    """What a new adapter of a variant would add to a base."""
    feature = variant.feature
    width = FACE_DIM if feature.image is None else base.feature_dims[feature.image]
    options = options or ProjectorOptions()
    spec = variant.propose(width, base.host.cross_attention_dim, options)
    return AdapterWeights(
        variant.name,
        _weights(site_shapes(variant, base.host, spec)),
        _weights(projector_shapes(variant, spec)),
        reads_pictures=feature.image is not None,
    )


def _from_file(adapter: str | os.PathLike[str], base: CountedBase) -> AdapterWeights:
    """Raises WrongBaseError if the file was made for another base."""
    from imageprompt.checkpoint.identify.identify import identify
    from imageprompt.checkpoint.read.open import locate_source, open_source

    found = identify(open_source(locate_source(adapter)), base.host)
    name = Path(adapter).name
    if any(problem.code == "wrong-base" for problem in found.problems):
        raise WrongBaseError(
            f"{name} for {base.name}",
            reason=f"the file was made for {found.host}",
            hint="Name the base that it was made for.",
        )
    variants = [VARIANTS[variant] for variant in found.variants]
    return AdapterWeights(
        name,
        _weights({key: tensor.shape for key, tensor in found.parts.sites.items()}),
        _weights({key: tensor.shape for key, tensor in found.parts.projector.items()}),
        reads_pictures=not variants or variants[0].feature.image is not None,
    )


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


# ── pipelines ───────────────────────────────────────────────────────────────────────────────────


def pipeline_configs(base: str | os.PathLike[str]) -> PublishedBase:
    """A pipeline by the configs in its folder or on the Hub. Raises OptionError, NotFoundError."""
    from imageprompt.deploy.plan.measure import COUNTED_CLASSES

    location = bundled.folder(str(base)) if str(base) in bundled.FOLDERS else base
    if hub_id(location) is None and not Path(location).expanduser().is_dir():
        near = get_close_matches(str(base), [*BASES, *bundled.FOLDERS], n=1)
        raise NotFoundError(
            f"base {str(base)!r}",
            reason="neither a published base nor a pipeline folder",
            hint=(f"Did you mean {near[0]!r}? " if near else "")
            + f"Known by name: {', '.join(BASES)}.",
        )
    index = _config(location, "model_index.json")
    parts = {
        name: given[1]
        for name, given in index.items()
        if isinstance(given, list) and len(given) == 2 and isinstance(given[1], str)
    }
    name = next((name for name in _HAVE_DENOISERS if name in parts), None)
    if name is None or parts[name] not in COUNTED_CLASSES:
        kind = "a pipeline without a denoiser" if name is None else f"a {parts[name]}"
        raise OptionError(
            f"base {str(base)!r}: {kind}",
            reason="plan cannot count it",
            hint=f"It counts {', '.join(COUNTED_CLASSES)}.",
        )
    denoiser = Part("diffusers", parts[name], _plain(_config(location, f"{name}/config.json")))
    if parts.get("vae") != VAE:
        raise OptionError(
            f"base {str(base)!r}", reason=f"its autoencoder is not an {VAE}", hint="Name another."
        )
    vae = Part("diffusers", VAE, _plain(_config(location, "vae/config.json")))
    text = {
        f"{part} ({kind})": (_text_part(location, part, kind), _tokens(location, part))
        for part, kind in parts.items()
        if part.startswith("text_encoder")
    }
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    flux = parts[name] == "FluxTransformer2DModel"
    sample = denoiser.config.get("sample_size") or 128
    return PublishedBase(
        family="",
        title=str(base),
        denoiser=denoiser,
        vae=vae,
        text=text,
        image_encoder=_image_encoder(location, parts),
        size=factor * sample if isinstance(sample, int) else 1024,
        steps=_STEPS,
        rows=1 if flux else 2,
        vae_in_float32=bool(vae.config.get("force_upcast")),
    )


def _config(location: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """A config in a pipeline's folder or repository. Raises NotFoundError, OptionError."""
    local = Path(location).expanduser()
    if not local.is_dir():
        return _checked(read_config(locate_file(f"{os.fspath(location)}/{name}"), None), name)
    if not (local / name).is_file():
        raise no_such_file(local / name)
    return _checked(read_config(local / name, local), name)


def _checked(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Raises OptionError for sizes beyond any model."""
    for key, value in config.items():
        listed = value if isinstance(value, list) else [value]
        numbers = [n for one in listed for n in (one if isinstance(one, list) else [one])]
        if len(numbers) > MAX_LIST:
            raise OptionError(f"{name}: {key[:60]!r}", reason=f"more than {MAX_LIST} values")
        most = next((most for part, most in _LARGEST.items() if part in key), MAX_NUMBER)
        if any(isinstance(n, int) and not -1 <= n <= most for n in numbers):
            raise OptionError(f"{name}: {key[:60]!r}", reason=f"not a number up to {most}")
    return config


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the model's size, without what is about the file."""
    ours = ("architectures", "attn_implementation", "auto_map", "dtype", "torch_dtype")
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in ours
    }


def _text_part(location: str | os.PathLike[str], part: str, kind: str) -> Part:
    if kind not in TEXT_ENCODERS:
        raise OptionError(
            f"a {kind[:60]}",
            reason="plan cannot count it",
            hint=f"It counts {', '.join(TEXT_ENCODERS)}.",
        )
    return Part("transformers", kind, _plain(_config(location, f"{part}/config.json")))


def _tokens(location: str | os.PathLike[str], part: str) -> int:
    config = _config(location, f"{part}/config.json")
    return int(config.get("max_position_embeddings") or _T5_TOKENS)


def _image_encoder(location: str | os.PathLike[str], parts: Mapping[str, str]) -> Part:
    """The pipeline's own, or one in its folder, or else the one that most adapters read."""
    name = "image_encoder/config.json"
    if parts.get("image_encoder") == VIT_H.kind or (Path(location).expanduser() / name).is_file():
        config = _config(location, name)
        if config.get("model_type", CLIP_VISION) == CLIP_VISION:
            return Part("transformers", VIT_H.kind, _plain(config))
    return VIT_H
