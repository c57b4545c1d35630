"""lumina2: Lumina2Transformer2DModel, single blocks whose text has its own length in each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imageprompt.core.spec import Arguments, Call, KeywordArguments, Site
from imageprompt.hosts._transformer import Layer, TransformerHost, block_sites
from imageprompt.hosts.contract import argument

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


HOST = TransformerHost(
    name="lumina2",
    summary="Lumina2Transformer2DModel: Lumina-Image 2.0",
    denoiser_class="Lumina2Transformer2DModel",
    published_config=PUBLISHED,
    sites=_sites,
    layers={"joint single": Layer(rows="text by row first")},
    reader=_Calls,
)
