"""lumina2: Lumina2Transformer2DModel, single blocks whose text has its own length in each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._training import encode_prompt, words_before
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training, argument, linear_mu

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {
    "num_layers": 26,
    "num_attention_heads": 24,
    "hidden_size": 2304,
    "cap_feat_dim": 2304,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    return block_sites(
        "layers.{}.attn",
        config["num_layers"],
        inner_dim=config["hidden_size"],
        heads=config["num_attention_heads"],
        cross_attention_dim=config["cap_feat_dim"],
        kind="joint single",
    )


class _Calls:
    """Reads calls with latents [B, C, height, width] and the mask [B, T] of a padded text."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._patch = config.get("patch_size") or 2
        self._last: tuple[Any, int] = (None, -1)
        self._starts: tuple[int, ...] = ()

    def __call__(self, args: Arguments, kwargs: KeywordArguments) -> Call:
        sample = argument(args, kwargs, 0, "hidden_states")
        height, width = (int(side) // self._patch for side in sample.shape[2:])
        return Call(
            sample,
            argument(args, kwargs, 1, "timestep"),
            argument(args, kwargs, 2, "encoder_hidden_states"),
            (height, width),
            separate=True,
            starts=self._starts_of(argument(args, kwargs, 3, "encoder_attention_mask")),
        )

    def _starts_of(self, mask: Tensor) -> tuple[int, ...]:
        """The first row of the picture: after a text without its padding. Read once."""
        version = -1 if mask.is_inference() else mask._version
        if self._last[0] is not mask or version != self._last[1]:
            self._last = (mask, version)
            self._starts = tuple(map(int, mask.sum(dim=1).tolist()))
        return self._starts


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """Gemma's states, and their mask; as in sampling, no instruction goes before an empty text."""
    import torch

    empty = torch.tensor([not caption for caption in captions])
    guided = bool(empty.any())
    states, mask, *null = encode_prompt(
        pipe, captions, max_length, do_classifier_free_guidance=guided
    )
    if guided:
        states[empty], mask[empty] = (one[empty] for one in null)
    return states, {"encoder_attention_mask": mask}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Time runs from 0 (noise) to 1, and sampling takes the negative of the output."""
    prediction: Tensor = denoiser(
        hidden_states=latents,
        timestep=1 - timesteps / 1000,
        encoder_hidden_states=text,
        return_dict=False,
        **added,
    )[0]
    return -prediction


def _mu(denoiser: Any, scheduler_config: Any, positions: int) -> float:
    """The pipeline counts the channels of a latent in place of its positions."""
    return linear_mu(denoiser, scheduler_config, denoiser.config.in_channels)


HOST = TransformerHost(
    name="lumina2",
    summary="Lumina2Transformer2DModel: Lumina-Image 2.0",
    denoiser_class="Lumina2Transformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint single": Layer(rows="text by row first")},
    reader=_Calls,
    training=Training(
        _encode_text,
        _predict,
        conditions=("encoder_attention_mask",),
        reserved=lambda pipe: words_before(pipe.tokenizer, f"{pipe.system_prompt} <Prompt Start> "),
        mu=_mu,
    ),
)
