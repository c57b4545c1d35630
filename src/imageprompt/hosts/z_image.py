"""z-image: ZImageTransformer2DModel, single blocks with the rows of the picture first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import argument

PUBLISHED = {"n_layers": 30, "n_heads": 30, "dim": 3840, "cap_feat_dim": 2560}


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


HOST = TransformerHost(
    name="z-image",
    summary="ZImageTransformer2DModel: Z-Image and Z-Image-Turbo",
    denoiser_class="ZImageTransformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint single": Layer(rows="picture first")},
    reader=lambda config: _read,
)
