"""z-image: ZImageTransformer2DModel, single blocks with the rows of the picture first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._training import chat_before, encode_prompt, pad_rows
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import Conditions, Training, argument

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = {"n_layers": 30, "n_heads": 30, "dim": 3840, "cap_feat_dim": 2560}
MAX_LENGTH = 512
"""Tokens of a caption, with those of the chat template."""


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    return block_sites(
        "layers.{}.attention",
        config["n_layers"],
        inner_dim=config["dim"],
        heads=config["n_heads"],
        cross_attention_dim=config["cap_feat_dim"],
        kind="joint single",
    )


def _read(args: Arguments, kwargs: KeywordArguments) -> Call:
    """Lists of latents [C, frames, height, width] and of texts, the positive ones first."""
    import torch

    latents = argument(args, kwargs, 0, "x")
    if not isinstance(latents[0], torch.Tensor):
        raise AttachError(
            "Z-Image with references of its own (omni mode)",
            reason="its rows are not laid out as picture and text",
            hint="Leave them out, and use an image prompt.",
        )
    if len({tuple(one.shape) for one in latents}) > 1:
        raise AttachError(
            "Z-Image with pictures of several sizes in one call",
            reason="an image prompt needs one size",
            hint="Make them one size after the other.",
        )
    patch = argument(args, kwargs, 7, "patch_size") or 2
    frames, height, width = latents[0].shape[1:]
    texts = argument(args, kwargs, 2, "cap_feats")
    return Call(
        torch.stack(list(latents)),
        argument(args, kwargs, 1, "t"),
        texts[0] if len(texts) == 1 else None,
        (height // patch, width // patch) if frames == 1 else (0, 0),
        positive_first=True,
    )


def _encode_text(pipe: Any, captions: list[str], max_length: int | None) -> Any:
    """Qwen's states, padded to one length, and their mask."""
    rows, _ = encode_prompt(pipe, list(captions), max_length)
    states, mask = pad_rows(rows, max_length or MAX_LENGTH)
    return states, {"cap_mask": mask}


def _predict(
    denoiser: Any,
    latents: Tensor,
    timesteps: Tensor,
    text: Tensor,
    added: Conditions,
    guidance_scale: float,
) -> Tensor:
    """Time runs from 0 (noise) to 1, and sampling takes the negative of the output."""
    import torch

    mask = added["cap_mask"]
    outputs = denoiser(
        list(latents.unsqueeze(2)),
        (1000 - timesteps) / 1000,
        [states[own] for states, own in zip(text, mask, strict=True)],
        return_dict=False,
    )[0]
    return -torch.stack(list(outputs)).squeeze(2)


HOST = TransformerHost(
    name="z-image",
    summary="ZImageTransformer2DModel: Z-Image and Z-Image-Turbo",
    denoiser_class="ZImageTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint single": Layer(rows="picture first")},
    reader=lambda config: _read,
    training=Training(
        _encode_text,
        _predict,
        conditions=("cap_mask",),
        max_length=MAX_LENGTH,
        reserved=lambda pipe: chat_before(
            pipe.tokenizer, add_generation_prompt=True, enable_thinking=True
        ),
    ),
)
