"""The adapter that a run begins with: new, from a published one, or taught the captions first."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from imageprompt.adapter.adapter import Adapter
from imageprompt.core.console import Bars
from imageprompt.core.errors import OptionError
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.init.caption_warm_start import chosen_states, fit_projector_to_captions
from imageprompt.training.loop.logging import log
from imageprompt.variants import VARIANTS

WORDS_BATCH = 64


def init_adapter(config: TrainingConfig, base: Any) -> Adapter:
    """A new adapter for a base, or that of `config.adapter`, in float32.

    Raises OptionError where the file and the config disagree.
    """
    if config.adapter is None:
        return _created(config, base, config.projector)
    loaded = Adapter.load(config.adapter, variant=config.variant, dtype=torch.float32)
    spec = loaded.spec
    names = {"num_tokens": "tokens", "depth": "depth", "heads": "heads", "width": "width"}
    theirs = {name: getattr(spec.projector, field) for name, field in names.items()}
    changed = {name: v for name, v in config.projector.items() if v != theirs[name]}
    if not changed:
        return loaded
    if set(changed) != {"num_tokens"}:
        raise OptionError(
            f"adapter {config.adapter!r}",
            reason=f"its projector has {_listed(theirs)}, the config asks for {_listed(changed)}",
            hint="Only the number of tokens can be changed: leave the others out.",
        )
    return _with_other_tokens(config, base, loaded, theirs | changed)


def _created(config: TrainingConfig, base: Any, options: dict[str, int]) -> Adapter:
    reads_pictures = not VARIANTS[config.variant].feature.faces_only
    return Adapter.create(
        config.variant,
        denoiser=base.denoiser,
        encoder=base.encoder if reads_pictures else None,
        init=config.init,
        **options,
    )


def _with_other_tokens(
    config: TrainingConfig, base: Any, loaded: Adapter, options: dict[str, Any]
) -> Adapter:
    """All that fits is kept; what depends on the number of tokens is made anew, and said."""
    named = {"num_tokens": "tokens"}
    known = VARIANTS[config.variant].options
    wanted = {k: v for k, v in options.items() if named.get(k, k) in known and v is not None}
    adapter = _created(config, base, wanted)
    theirs, ours = loaded.module.state_dict(), adapter.module.state_dict()
    anew = [name for name, value in ours.items() if theirs[name].shape != value.shape]
    kept = {name: value for name, value in theirs.items() if name not in anew}
    adapter.module.load_state_dict(ours | kept)
    log(f"{options['num_tokens']} tokens: {', '.join(anew)} made anew, the rest is the file's")
    return adapter


def caption_warm_start(
    config: TrainingConfig, adapter: Adapter, samples: Any, on_progress: bool
) -> None:
    """Teach the projector the captions' text states before the denoiser is run at all."""
    tokens = adapter.spec.tokens
    if tokens is None or not hasattr(samples, "captioned"):
        raise OptionError(
            f"warm_start: captions with {config.variant}",
            reason="it needs a projector with a fixed number of tokens that reads pictures",
            hint="Write warm_start: none.",
        )

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        indices = samples.indices(step, WORDS_BATCH, config.seed)
        features, states, counts = samples.captioned(indices)
        device = next(adapter.parameters()).device
        chosen = [
            chosen_states(states[row : row + 1], int(count), tokens)
            for row, count in enumerate(counts)
        ]
        return features.float().to(device), torch.cat(chosen).float().to(device)

    adapter.module.requires_grad_(True)
    steps = config.warm_start_steps
    with Bars(on_progress and sys.stderr.isatty()) as bars:
        left = fit_projector_to_captions(
            adapter.module.image_proj,
            pairs,
            steps,
            on_progress=lambda step: bars.update("warm start", step, steps),
        )
    if on_progress:
        log(f"warm start: {left:.1%} of the captions' variance is left unexplained")


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
