"""Gradient checkpointing that recomputes what is cheap: attention's results are kept.

Of a transformer block attention is the dear part and its result the small one; a frozen resnet
keeps little, and its convolutions are dear. So only transformer blocks are computed again in the
backward pass, and of these all but attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from imageprompt.training import blocked

_aten: Any = torch.ops.aten
KEPT = [
    blocked.attend._opoverload,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""The attention kernels of every device; their results are a fifth of what a block would keep."""


def recompute_blocks(denoiser: Any) -> None:
    """Switch gradient checkpointing on, as above, for a denoiser of diffusers."""
    denoiser.enable_gradient_checkpointing(_run)


def _run(module: Callable[..., Any], *args: Any) -> Any:
    """What the denoiser calls its blocks through: resnets and transformer blocks, one by one."""
    if isinstance(module, nn.Module) and not _has_attention(module):
        return module(*args)
    return checkpoint(
        module,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # frozen layers in evaluation mode draw no random numbers
        context_fn=partial(create_selective_checkpoint_contexts, KEPT),
    )


def _has_attention(module: nn.Module) -> bool:
    return any(name.rsplit(".", 1)[-1].startswith("attn") for name, _ in module.named_modules())
