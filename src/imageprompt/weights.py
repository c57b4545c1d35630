"""The weights of an adapter as a module: a projector, and K', V' of every site."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from imageprompt.carrier import KeyValue


class SiteWeights(nn.Module):
    """K' and V' of one site: text-width tokens -> the site's inner width, no bias."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.to_k_ip = _linear(key)
        self.to_v_ip = _linear(value)


class AdapterModule(nn.Module):
    """All weights of an adapter; its state-dict keys are those of the standard file."""

    def __init__(self, image_proj: nn.Module, sites: Mapping[str, SiteWeights]) -> None:
        super().__init__()
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleDict(sites)

    def pairs(self, tokens: Tensor) -> list[KeyValue]:
        """K', V' [B, N, width] of tokens [B, N, W], site by site in file order."""
        return [
            (site.to_k_ip(tokens), site.to_v_ip(tokens))  # type: ignore[operator]
            for site in self.ip_adapter.values()
        ]


def _linear(weight: Tensor) -> nn.Linear:
    """A linear layer without bias that owns `weight` [out, in] as it is."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer
