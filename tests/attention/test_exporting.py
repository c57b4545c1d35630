"""torch.export while an image prompt is in use: refused, and nothing of it stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import imageprompt as ip
from imageprompt.attention import batched_kv
from imageprompt.attention.batched_kv import BatchedKV
from imageprompt.attention.cfg_layout import LAYOUTS
from imageprompt.core.errors import AttachError
from tiny_stack import make_pipeline


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("record", [torch.export.export, torch.jit.trace])
def test_an_export_through_the_hook_is_refused(record: Any) -> None:
    pipe: Any = make_pipeline()
    unet = pipe.unet
    adapter = ip.Adapter.create("base", denoiser=unet, encoder=pipe.image_encoder).attach(unet)
    width = unet.config.cross_attention_dim
    prompt = ip.ImagePrompt(torch.randn(1, 4, width), torch.zeros(1, 4, width))
    sample = torch.randn(1, unet.config.in_channels, 8, 8).repeat(2, 1, 1, 1)
    arguments = (sample, torch.tensor(5), torch.randn(2, 3, width))

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.unet(*tensors, return_dict=False)[0]
            return made

    with adapter.use(prompt, guidance="negative-positive"), torch.no_grad():
        before = Plain()(*arguments)
        with pytest.raises(AttachError, match="imageprompt export"):
            record(Plain(), arguments)
        after = Plain()(*arguments)
    assert not isinstance(after, FakeTensor)
    assert torch.equal(before, after)


def test_rows_that_are_made_while_exporting_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    key_values = [(torch.randn(2, 1, 4, 8), torch.randn(2, 1, 4, 8))]
    batch = BatchedKV(key_values, 1, [])
    like, layout = torch.zeros(4, 4, 8, 8), LAYOUTS["negative-positive"]
    with monkeypatch.context() as exporting, FakeTensorMode(allow_non_fake_inputs=True):
        exporting.setattr(batched_kv, "is_exporting", lambda: True)
        batch.bind(layout, 2, like, (8, 8), [False])
    assert batch.bind(layout, 2, like, (8, 8), [False])
    assert not isinstance(batch.rows[0][0], FakeTensor)
