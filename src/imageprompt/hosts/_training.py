"""What trainable hosts share: text as pipelines encode it, and packed latents.

Shapes: b samples, c channels of latents h x w, l text tokens. Loads no torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import OptionError
from imageprompt.hosts.contract import sampling_length

if TYPE_CHECKING:
    from torch import Tensor


def encode_prompt(pipe: Any, captions: list[str], max_length: int | None, **more: Any) -> Any:
    """What the pipeline's `encode_prompt` returns for captions, as in a call of the pipeline.

    Without a negative prompt, unless `more` asks for it. Raises OptionError for a `max_length` that
    calls of the pipeline do not take.
    """
    accepted = inspect.signature(pipe.encode_prompt).parameters
    wanted = {
        "device": pipe._execution_device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    required = [one.name for one in list(accepted.values())[1:] if one.default is one.empty]
    options = dict.fromkeys(required)  # prompt_2: the same text as prompt
    options |= {name: value for name, value in wanted.items() if name in accepted} | more
    length = sampling_length(pipe)
    if max_length is not None and length is None:
        raise OptionError(
            f"max_sequence_length: {max_length}",
            reason=f"{type(pipe).__name__} has no such option",
            hint="Leave it out.",
        )
    if length is not None:
        options["max_sequence_length"] = max_length or length
    return pipe.encode_prompt(captions, **options)


def words_before(tokenizer: Any, text: str) -> int:
    """The tokens of a text that the pipeline writes before every caption."""
    return len(tokenizer(text).input_ids) - len(tokenizer("").input_ids)


def chat_before(tokenizer: Any, *messages: dict[str, Any], **options: Any) -> int:
    """The tokens of a chat template before the caption of a user, after these messages."""
    mark = "caption" * 8
    chat = [*messages, {"role": "user", "content": mark}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, **options)
    return words_before(tokenizer, text.partition(mark)[0])


def pad_rows(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """States [k, d] of several texts as [n, length, d], and their mask, bool [n, length].

    What is too long is cut off.
    """
    import torch

    states = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool, device=states.device)
    for row, own in enumerate(rows):
        count = min(len(own), length)
        states[row, :count], mask[row, :count] = own[:count], True
    return states, mask


def pack(latents: Tensor) -> Tensor:
    """Latents [b, c, h, w] as rows of 2 x 2 positions, [b, h/2 w/2, 4 c]."""
    b, c, h, w = latents.shape
    parts = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(b, h * w // 4, 4 * c)


def unpack(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`, for latents shaped like `like`."""
    b, c, h, w = like.shape
    parts = rows.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(b, c, h, w)


def grid_ids(like: Tensor, axes: int = 3) -> Tensor:
    """Position ids [h/2 w/2, axes] of packed latents: 0, row, column and, with four axes, 0."""
    import torch

    height, width = like.shape[-2] // 2, like.shape[-1] // 2
    ids = torch.zeros(height, width, axes, device=like.device)
    ids[..., 1] = torch.arange(height, device=like.device)[:, None]
    ids[..., 2] = torch.arange(width, device=like.device)
    return ids.flatten(0, 1)
