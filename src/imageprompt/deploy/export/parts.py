"""What is exported beside the denoiser: VAE, text encoders, image encoder, projector, K' and V'.

Shapes: B batch, C channels of the latents, T text tokens, N image tokens, W their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from imageprompt.attention.decoupled import norm_heads, split_heads
from imageprompt.deploy.export.modules import Exportable
from imageprompt.generation.exported.manifest import Port
from imageprompt.generation.exported.vae import DECODER, ENCODER
from imageprompt.loading import vae_scale_factor
from imageprompt.variants import VARIANTS, key_norm, reading_of, value_norm

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.core.spec import Site

TEXT_ENCODER, IMAGE_ENCODER, KEY_VALUES = "text-encoder", "image-encoder", "key-values"
_TEXT_OUTPUTS = ("last_hidden_state", "pooler_output", "text_embeds")
_TRACED = {"batch": 2, "height": 4, "width": 6, "tokens": 6, "prompts": 2}


class Function(nn.Module):
    """A function of tensors with the model that it calls."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._call = model, call

    def forward(self, *tensors: Tensor) -> Any:
        return self._call(*tensors)


def other_parts(pipe: Any, adapter: Adapter, sites: list[Site]) -> Iterator[tuple[str, Exportable]]:
    """Every part beside the denoiser that a pipeline and an adapter have, with its name."""
    if type(getattr(pipe, "vae", None)).__name__ == "AutoencoderKL":
        yield from _vae(pipe)
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if (model := getattr(pipe, name, None)) is not None:
            yield name.replace("_", "-"), _text_encoder(pipe, name, model)
    if (encoder := adapter.encoder) is not None and not adapter.spec.feature.reads_faces:
        yield IMAGE_ENCODER, _image_encoder(encoder, adapter)
    yield KEY_VALUES, _key_values(adapter, sites)


def _vae(pipe: Any) -> Iterator[tuple[str, Exportable]]:
    vae, factor = pipe.vae, vae_scale_factor(pipe)
    channels = vae.config.latent_channels
    latents = Port(name="latents", shape=("batch", channels, "height", "width"))
    picture = ("batch", 3, "pixel_height", "pixel_width")
    sizes = _TRACED | {name: _TRACED[name.removeprefix("pixel_")] * factor for name in picture[2:]}
    yield (
        DECODER,
        Exportable(
            Function(vae, lambda z: vae.decode(z, return_dict=False)[0]),
            (latents,),
            (Port(name="picture", shape=picture),),
            sizes,
        ),
    )
    yield (
        ENCODER,
        Exportable(
            Function(vae, lambda x: vae.encode(x).latent_dist.parameters),
            (Port(name="picture", shape=picture),),
            (Port(name="moments", shape=("batch", 2 * channels, "height", "width")),),
            sizes,
        ),
    )


def _text_encoder(pipe: Any, name: str, model: Any) -> Exportable:
    """Its states, those before its last layer, and what it pools; as many tokens as it is given."""
    tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)
    length = min(int(getattr(tokenizer, "model_max_length", 77)), 512)

    def call(ids: Tensor) -> tuple[Tensor, ...]:
        made = model(ids, output_hidden_states=True)
        return (made.hidden_states[-2], *(made[one] for one in outputs))

    import torch

    with torch.no_grad():
        made = model(torch.ones(1, length, dtype=torch.int64), output_hidden_states=True)
    outputs = [one for one in _TEXT_OUTPUTS if made.get(one) is not None]
    width = made.hidden_states[-2].shape[-1]
    ports = [Port(name="penultimate_hidden_state", shape=("batch", length, width))]
    for one in outputs:
        shape = tuple(made[one].shape[1:])
        ports.append(Port(name=one, shape=("batch", *shape)))
    ids = Port(name="input_ids", shape=("batch", length), dtype="int64")
    return Exportable(Function(model, call), (ids,), tuple(ports), _TRACED)


def _image_encoder(encoder: Any, adapter: Adapter) -> Exportable:
    """Normalised pixels -> image tokens."""
    feature, projector = adapter.spec.feature.image, adapter.module.image_proj
    side, spec = encoder.image_size, adapter.spec

    def call(pixels: Tensor) -> Tensor:
        made: Tensor = projector(encoder.feature_of(pixels, feature))
        return made

    model = nn.ModuleList([encoder.model, projector])
    tokens = Port(name="tokens", shape=("batch", spec.tokens or "tokens", spec.cross_attention_dim))
    pixels = Port(name="pixel_values", shape=("batch", 3, side, side))
    return Exportable(Function(model, call), (pixels,), (tokens,), _TRACED)


def _key_values(adapter: Adapter, sites: list[Site]) -> Exportable:
    """Image tokens -> K', V' of every place, as the denoiser reads them."""
    kind = reading_of(VARIANTS[adapter.spec.variant], adapter.spec.reading)

    def call(tokens: Tensor) -> tuple[Tensor, ...]:
        made = []
        for site, (key, value) in zip(sites, adapter.module.key_values(tokens), strict=True):
            for x, eps in ((key, key_norm(kind, site.kind)), (value, value_norm(kind, site.kind))):
                x = split_heads(x, site.heads)
                made.append(x if eps is None else norm_heads(x, None, eps))
        return tuple(made)

    ports = [
        Port(
            name=f"{name}_{number}",
            shape=("prompts", site.heads, "tokens", site.inner_dim // site.heads),
        )
        for number, site in enumerate(sites)
        for name in ("key", "value")
    ]
    tokens = Port(name="tokens", shape=("prompts", "tokens", adapter.spec.cross_attention_dim))
    return Exportable(Function(adapter.module.ip_adapter, call), (tokens,), tuple(ports), _TRACED)


def at_other_sizes(part: Exportable) -> tuple[Tensor, ...]:
    """Inputs of other sizes than the part was traced with."""
    other: Mapping[str, int] = {name: size + size // 2 for name, size in part.sizes.items()}
    return Exportable(part.module, part.inputs, part.outputs, other).example(seed=1)
