"""Training on transformers: text is encoded as in a call of the pipeline, an empty one as well."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import imageprompt as ip
from imageprompt.hosts import host_of, training_of
from imageprompt.training import init
from imageprompt.training.config.config import ConditionDropout, TrainingConfig
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.frozen_pipeline import FrozenPipeline
from imageprompt.training.loop.objective import NullConditions, Objective
from text_encoders import TABLE
from training_pipelines import PIPELINES, ROWS, TEXTS, first_step
from transformers_table import CASES


def listen(model: Any) -> list[Tensor]:
    """The outputs of the denoiser's calls."""
    heard: list[Tensor] = []

    def hear(_: Any, __: Any, output: Any) -> None:
        rows = output[0]
        heard.append(torch.stack(list(rows)) if isinstance(rows, list) else rows)

    model.register_forward_hook(hear)
    return heard


class Encoder:
    """What `Adapter.create` asks of an encoder."""

    fingerprint, image_size = "none", 8

    def width(self, feature: object) -> int:
        return 8

    def encode(self, pictures: Any, feature: Any) -> Tensor:
        raise NotImplementedError

    encode_null = encode


def check_step(base: FrozenPipeline, latents: Tensor) -> None:
    """A step from these captions changes every site's V', with one caption dropped."""
    kind: Any = Encoder()
    base.denoiser.requires_grad_(False)
    adapter = ip.Adapter.create(
        "plus", denoiser=base.denoiser, encoder=kind, num_tokens=2, depth=1, heads=1, inner_dim=8
    )
    adapter.module.requires_grad_(True)
    (text, added), (null_text, null_added) = base.encode_text(TEXTS), base.encode_text([""])
    features = torch.linspace(-1, 1, 48).reshape(ROWS, 3, 8)
    batch = Batch(latents, text, features, added)
    nulls = NullConditions(null_text, features[:1] * 0, null_added)
    objective = Objective(dropout=ConditionDropout(0.0, 0.5, 0.0))
    adapter.attach(base.denoiser)
    streams = RandomStreams(range(ROWS))
    with objective.loss(adapter, base.denoiser, base.scheduler, batch, nulls, streams) as (
        losses,
        _,
    ):
        losses.mean().backward()
    adapter.detach()
    assert bool(torch.isfinite(losses).all())
    values = [one.grad for name, one in adapter.module.named_parameters() if "to_v_ip" in name]
    assert len(values) == len(host_of(base.denoiser).describe(base.denoiser).sites)
    assert all(one is not None and bool(one.abs().sum() > 0) for one in values)


class Samples:
    """The same few samples at every step."""

    def __init__(self, batch: Batch, nulls: NullConditions) -> None:
        self.samples, self.nulls = batch, nulls

    def indices(self, *_: int) -> Tensor:
        return torch.arange(ROWS)

    def batch(self, *_: Any) -> Batch:
        return self.samples

    def caption_batch(self, _: Tensor) -> Any:
        return self.samples.features, self.samples.text, [3] * ROWS

    def null_text(self) -> Tensor:
        return self.nulls.text

    def null_added(self) -> dict[str, Tensor]:
        return self.nulls.added

    def null_features(self) -> Any:
        return self.nulls.features


def check_fit(base: FrozenPipeline, latents: Tensor) -> None:
    """K' and V' are fitted where attention is joint and image tokens are as wide as the text."""
    kind: Any = Encoder()
    model = base.denoiser
    adapter = ip.Adapter.create(
        "plus", denoiser=model, encoder=kind, num_tokens=1, depth=1, heads=1, inner_dim=8
    )
    (text, added), (null_text, null_added) = base.encode_text(TEXTS), base.encode_text([""])
    if base.as_tokens(text).shape[2] != adapter.spec.projector.cross_attention_dim:
        return
    features = torch.zeros(ROWS, 3, 8)
    samples = Samples(
        Batch(latents, text, features, added),
        NullConditions(null_text, features[:1], null_added),
    )
    config = TrainingConfig(data="data", output="run", batch_size=init.FITTED_CAPTIONS)
    adapter.attach(model)
    before = {name: value.clone() for name, value in adapter.module.state_dict().items()}
    with patch.object(init, "choose_states", wraps=init.choose_states) as chosen:
        init.fit_layers_to_captions(config, adapter, base, samples, Objective.of(config))
    adapter.detach()
    on, joint = host_of(model), set[str]()
    for site in on.describe(model).sites:
        if on.joint_text_layers(model, site.name) is not None:
            joint |= {f"ip_adapter.{site.file_id}.to_{one}_ip.weight" for one in "kv"}
    rows = {call.args[0].shape[1] for call in chosen.call_args_list}
    assert rows == ({text.shape[1]} if joint else set())
    for name, value in adapter.module.state_dict().items():
        assert bool(torch.isfinite(value).all())
        assert (not torch.equal(value, before[name])) == (name in joint), name


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", TABLE)
def test_text_is_encoded_as_in_sampling(name: str) -> None:
    """Two texts of different lengths, and the empty one of the negative side."""
    text, pipeline = TABLE[name], PIPELINES[name]
    length = {} if text.length is None else {"max_sequence_length": text.length}
    case = dataclasses.replace(
        pipeline,
        parts=text.parts,
        call={**pipeline.call, **text.call, **length},
        attributes={**pipeline.attributes, **text.attributes},
        guidance=text.guidance,
        config={**pipeline.config, **text.config},
    )
    table = CASES[case.host or name]
    model = dataclasses.replace(table, config=table.config | case.config).build()
    heard = listen(model)
    found = first_step(case, model)
    rows = torch.cat(heard)
    sides = dict(zip(text.order.replace(" ", ""), rows.split(ROWS), strict=True))

    base = FrozenPipeline(
        found["pipe"], model, found["pipe"].scheduler, None, training_of(model), text.length
    )
    latents = case.latents(found["sample"])
    times = torch.as_tensor(found["timestep"]).float().expand(ROWS)
    for side, captions in (("p", TEXTS), ("n", [""] * ROWS)):
        heard.clear()
        states, added = base.encode_text(captions)
        with torch.no_grad():
            base.training.predict(model, latents, times, states, added, text.guidance)
        torch.testing.assert_close(heard[0], sides[side], atol=2e-5, rtol=2e-5)
    assert not torch.allclose(sides["p"], sides["n"], atol=1e-4), "the text is not heard"

    check_step(base, latents)
    check_fit(base, latents)

    # the longest caption that is read whole
    tokenizer, limit = base.text_limit
    count = limit - len(tokenizer("").input_ids)
    whole = " ".join(["a"] * (count - 1) + ["red"])
    assert len(tokenizer(whole).input_ids) == limit
    states, added = base.encode_text([whole, f"{whole} star", f"{whole[:-3]}blue"])
    for one in (states, *added.values()):
        torch.testing.assert_close(one[0], one[1], atol=1e-5, rtol=1e-5)
    assert any(not torch.allclose(one[0], one[2], atol=1e-4) for one in (states, *added.values()))
