"""Gradient checkpointing that recomputes what is large and cheap, and keeps the rest.

Of a transformer block attention is the dear part and its result the small one, so all but attention
is computed again in the backward pass, and that only where there are many positions: a block costs
the same at every resolution, but keeps the more the more positions it has. Of a frozen resnet only
norms and activations are computed again; its convolutions are dear.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from imageprompt.training import blocked

_aten: Any = torch.ops.aten
ATTENTION = [
    blocked.attend._opoverload,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""The attention kernels of every device."""
DEAR_IN_RESNETS = [_aten.convolution.default, _aten.addmm.default]
MANY = 1024
"""Positions (of all samples together) from which a transformer block is computed again."""


def recompute_blocks(denoiser: Any) -> None:
    """Switch gradient checkpointing on, as above, for a denoiser of diffusers."""
    denoiser.enable_gradient_checkpointing(_run)


def _run(block: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """What the denoiser calls its resnets and transformer blocks through, one by one."""
    if isinstance(block, ResnetBlock2D):
        return _recomputed(block, DEAR_IN_RESNETS, x, *args)
    if x.ndim == 3 and x.shape[0] * x.shape[1] < MANY:
        return block(x, *args)
    return _recomputed(block, ATTENTION, x, *args)


def _recomputed(block: Callable[..., Any], kept: list[Any], *args: Any) -> Any:
    return checkpoint(
        block,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # frozen layers in evaluation mode draw no random numbers
        context_fn=partial(create_selective_checkpoint_contexts, kept),
    )
