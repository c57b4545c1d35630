"""Gradient checkpointing that recomputes what is large and cheap, and keeps the rest.

In a transformer block, self-attention is expensive to compute and its result cheap to store, so
everything else is recomputed in the backward pass. In a frozen resnet only norms and activations
are recomputed, because its convolutions are expensive. Blocks with few positions are not
checkpointed: the overhead of a block is the same at every resolution, what it stores is not.
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
MIN_POSITIONS = 1024
"""Positions (of all samples together) from which a block is recomputed."""
MAX_CHEAP_KEYS = 128
"""Number of keys up to which attention is cheap: text and image tokens."""

IsExpensive = Callable[[Any, tuple[Any, ...]], bool]
"""(operation, its arguments): is its result kept instead of recomputed?"""


def enable_selective_checkpointing(denoiser: Any) -> None:
    """Enable this kind of gradient checkpointing for a diffusers denoiser.

    Memory peaks while the last block runs, with all earlier results stored, and in the backward
    pass of the upward blocks; free heap memory is returned to the system just before.
    """
    denoiser.enable_gradient_checkpointing(_run_block)
    blocks = denoiser.up_blocks
    blocks[-1].register_forward_pre_hook(lambda *_: _trim_heap(denoiser.device))
    for block in blocks[::-2]:
        block.register_forward_hook(_trim_before_backward)


def _trim_before_backward(_: Any, __: Any, out: Any) -> None:
    """A forward hook that trims the heap as soon as the gradient of `out` is known."""
    if out.requires_grad:
        out.register_hook(lambda grad: _trim_heap(grad.device))


def _run_block(block: Callable[..., Any], x: Tensor, *args: Any) -> Any:
    """Called by the denoiser in place of each resnet and transformer block."""
    positions = x.numel() // x.shape[1 if x.ndim == 4 else -1]
    if positions < MIN_POSITIONS:
        return block(x, *args)
    if isinstance(block, ResnetBlock2D):
        return _checkpointed(block, _expensive_in(block), x, *args)
    return _checkpointed(block, _is_long_attention, x, *args)


def _is_long_attention(operation: Any, args: tuple[Any, ...]) -> bool:
    return operation in ATTENTION and args[1].shape[-2] > MAX_CHEAP_KEYS


def _expensive_in(resnet: ResnetBlock2D) -> IsExpensive:
    """The convolutions that others follow; recomputation stops before the last one."""
    convs = [resnet.conv1] if resnet.conv_shortcut is None else [resnet.conv1, resnet.conv2]
    weights = {conv.weight.data_ptr() for conv in convs}

    def expensive(operation: Any, args: tuple[Any, ...]) -> bool:
        return operation is _aten.convolution.default and args[1].data_ptr() in weights

    return expensive


def _checkpointed(block: Callable[..., Any], expensive: IsExpensive, *args: Any) -> Any:
    def policy(_: Any, operation: Any, *op_args: Any, **__: Any) -> CheckpointPolicy:
        keep = expensive(operation, op_args)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return checkpoint(
        block,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # frozen layers in evaluation mode draw no random numbers
        context_fn=partial(create_selective_checkpoint_contexts, policy),
    )


def _trim_heap(device: torch.device) -> None:
    """Return free heap memory to the system (glibc, CPU).

    This is a tenth of the peak of an SD1.5 step, and takes 10 to 40 ms. Memory that was returned
    has to be allocated again, so this happens only at the few places that decide the peak.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and device.type == "cpu":
        trim(0)
