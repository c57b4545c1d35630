"""The null rule: what stands for "no picture", for every rule and every kind of feature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from imageprompt.core.spec import Feature, HostSpec, Site
from imageprompt.variants import VARIANTS, encode_null, null_features, site_kinds


class Encoder:
    """Records what it is shown: features are the mean of the pixels, or -1 for null pixels."""

    image_size = 12

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def encode(self, pictures: list[Image.Image], feature: str) -> Tensor:
        self.shown += [(picture.size, picture.getextrema()) for picture in pictures]
        return torch.full((len(pictures), 5), 7.0)

    def encode_null(self, feature: str) -> Tensor:
        return torch.full((1, 5), -1.0)


def test_encoded_by_every_rule() -> None:
    encoder = Encoder()
    assert encode_null("zero features", encoder, "image_embeds").tolist() == [[0.0] * 5]
    assert encode_null("zero pixels", encoder, "image_embeds").tolist() == [[-1.0] * 5]
    assert not encoder.shown
    assert encode_null("black picture", encoder, "image_embeds").tolist() == [[7.0] * 5]
    assert encoder.shown == [((12, 12), ((0, 0),) * 3)]


@pytest.mark.parametrize("rule", ["zero pixels", "black picture"])
def test_features_of_an_encoded_null(rule: Any) -> None:
    like, faces, encoded = torch.ones(3, 5), torch.ones(1, 4), torch.full((1, 5), -1.0)
    assert null_features(rule, like, encoded) is encoded
    found = null_features(rule, (faces, like[:1]), encoded)
    assert isinstance(found, tuple)
    assert found[0].tolist() == [[0.0] * 4]  # the face embedding is zero under every rule
    assert found[1] is encoded
    assert null_features(rule, like, None) is None  # it cannot be made without an encoder
    assert null_features(rule, (faces, like), None) is None


def test_zero_features_need_no_encoder() -> None:
    like = torch.ones(3, 5, dtype=torch.bfloat16)
    found = null_features("zero features", like, None)
    assert isinstance(found, Tensor)
    assert (found.shape, found.dtype, found.abs().sum()) == (like.shape, like.dtype, 0)
    both = null_features("zero features", (like, torch.ones(3, 2)), torch.ones(1, 2))
    assert isinstance(both, tuple)
    assert [part.tolist() for part in both] == [[[0.0] * 5] * 3, [[0.0] * 2] * 3]


def test_rules_of_the_published_variants() -> None:
    rules = {variant.name: variant.null_rule for variant in VARIANTS}
    assert rules == {
        "base": "zero features",
        "faceid": "zero features",
        "faceid-plus": "zero pixels",
        "faceid-plus-kolors": "zero features",
        "faceid-plus-v2": "zero pixels",
        "full": "zero pixels",
        "instantx": "zero features",
        "instantx-sd3": "zero features",
        "plus": "zero pixels",
        "portrait": "zero features",
        "portrait-unnorm": "zero features",
        "redux": "no tokens",
        "xlabs": "black picture",
    }
    assert all(isinstance(variant.feature, Feature) for variant in VARIANTS)


def test_shapes_of_some_sites() -> None:
    """`HostSpec.shapes` is the one place with the shapes of K' and V'."""
    site = {"inner_dim": 6, "heads": 2, "cross_attention_dim": 4, "role": "other"}
    sites = (
        Site(name="a", file_id="0", kind="joint double", **site),  # type: ignore[arg-type]
        Site(name="b", file_id="1", kind="joint single", **site),  # type: ignore[arg-type]
    )
    host = HostSpec(family="x", sites=sites)
    first = {"0.to_k_ip.weight": (6, 4), "0.to_v_ip.weight": (6, 4)}
    assert host.shapes(("joint double",)) == first
    assert host.shapes(("joint double",), bias=True) == first | {
        "0.to_k_ip.bias": (6,),
        "0.to_v_ip.bias": (6,),
    }
    assert len(host.shapes()) == 4
    assert host.shapes(site_kinds(VARIANTS["faceid"])) == {}
