"""What a scale multiplies: the image attention's result, or its keys and values.

With w the scale, C the inner width of the attention, w' = w C / 1280, mu the mean of V' over the
tokens (ComfyUI_IPAdapter_plus 9d076a3, `CrossAttentionPatch.py`):

- V only: w softmax(Q K'^T) V' (the paper)
- K+V: softmax(Q (w K')^T) (w V')
- K+V w/ C penalty: the same with w' for w
- K+mean(V) w/ C penalty: softmax(Q (w' K')^T) ((V' - mu) + w' mu)
"""

from __future__ import annotations

from typing import Literal

Scaling = Literal["V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"]

PENALTY_WIDTH = 1280.0
"""The width at which the penalty is none."""
