"""Gradient checkpointing that recomputes what is large and cheap, and keeps the rest.

Of a transformer block self-attention is the dear part and its result the small one, so all but that
is computed again in the backward pass; of a frozen resnet only norms and activations, since its
convolutions are dear. And only where there are many positions: a block costs the same at every
resolution, but keeps the more the more positions it has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from imageprompt.training.memory import cpu_attention

_aten: Any = torch.ops.aten
ATTENTION = {
    cpu_attention.attend._opoverload,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
"""The attention kernels of every device."""
MANY = 1024
"""Positions (of all samples together) from which a block is computed again."""
FEW = 128
"""Keys up to which attention is cheap: text and image tokens."""

Dear = Callable[[Any, tuple[Any, ...]], bool]
"""(operation, its arguments): is its result to be kept?"""


def recompute_blocks(denoiser: Any) -> None:
    """Switch gradient checkpointing on, as above, for a denoiser of diffusers.

    Memory is at its peak while the last block runs, with all results before it kept, and in the
    backward pass of the upward blocks: the heap is tidied before.
    """
    denoiser.enable_gradient_checkpointing(_run)
    blocks = denoiser.up_blocks
    blocks[-1].register_forward_pre_hook(lambda *_: _give_back(denoiser.device))
    for block in blocks[::-2]:
        block.register_forward_hook(_tidy_before_backward)


def _tidy_before_backward(_: Any, __: Any, out: Any) -> None:
    """A forward hook: the heap is tidied once the gradient of `out` is there."""
    if out.requires_grad:
        out.register_hook(lambda grad: _give_back(grad.device))


def _run(block: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """What the denoiser calls its resnets and transformer blocks through, one by one."""
    positions = x.numel() // x.shape[1 if x.ndim == 4 else -1]
    if positions < MANY:
        return block(x, *args)
    if isinstance(block, ResnetBlock2D):
        return _recomputed(block, _dear_in(block), x, *args)
    return _recomputed(block, _long_attention, x, *args)


def _long_attention(operation: Any, args: tuple[Any, ...]) -> bool:
    return operation in ATTENTION and args[1].shape[-2] > FEW


def _dear_in(resnet: ResnetBlock2D) -> Dear:
    """The convolutions that something comes after; recomputation stops before the last."""
    kept = [resnet.conv1] if resnet.conv_shortcut is None else [resnet.conv1, resnet.conv2]
    places = {conv.weight.data_ptr() for conv in kept}

    def dear(operation: Any, args: tuple[Any, ...]) -> bool:
        return operation is _aten.convolution.default and args[1].data_ptr() in places

    return dear


def _recomputed(block: Callable[..., Any], dear: Dear, *args: Any) -> Any:
    def policy(_: Any, operation: Any, *given: Any, **__: Any) -> CheckpointPolicy:
        kept = dear(operation, given)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return checkpoint(
        block,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # frozen layers in evaluation mode draw no random numbers
        context_fn=partial(create_selective_checkpoint_contexts, policy),
    )


def _give_back(device: torch.device) -> None:
    """What lies free in the heap between pieces in use, back to the system (glibc, CPU).

    It is a tenth of the peak of an SD1.5 step; to find it takes 10 to 40 ms. What was given back
    has to be taken again, so this is done at the few places that decide the peak.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and device.type == "cpu":
        trim(0)
