"""The adapter at the start of a run: new, or loaded from a file."""

from __future__ import annotations

from typing import Any

from imageprompt.adapter.adapter import Adapter
from imageprompt.core.errors import OptionError
from imageprompt.loading import load_adapter_file
from imageprompt.training.config.config import TrainingConfig
from imageprompt.training.data.feature_extractors import feature_to_read
from imageprompt.training.loop.logging import log
from imageprompt.variants import VARIANTS

_KEYS = {"tokens": "tokens", "depth": "depth", "heads": "heads", "width": "inner_dim"}
"""Config key -> field of the projector's spec."""


def init_adapter(config: TrainingConfig, base: Any) -> Adapter:
    """A new adapter for a base, or the one in the file `config.adapter`, in float32.

    Raises OptionError if the file and the config disagree.
    """
    options = {key: getattr(config, key) for key in _KEYS if getattr(config, key) is not None}
    if config.adapter is None:
        return _create(config, base, options)
    loaded = load_adapter_file(config.adapter, variant=config.variant)
    in_file = {key: getattr(loaded.spec.projector, field) for key, field in _KEYS.items()}
    changed = {key: value for key, value in options.items() if value != in_file[key]}
    if not changed:
        return loaded
    if set(changed) != {"tokens"}:
        raise OptionError(
            f"adapter {config.adapter!r}",
            reason=f"its projector has {_listed(in_file)}, but the config has {_listed(changed)}",
            hint="Only the number of tokens can be changed: leave the others out.",
        )
    return _with_other_tokens(config, base, loaded, in_file | changed)


def _create(config: TrainingConfig, base: Any, options: dict[str, Any]) -> Adapter:
    reads_pictures = not VARIANTS[config.variant].feature.faces_only
    return Adapter.create(
        config.variant,
        denoiser=base.denoiser,
        encoder=base.encoder if reads_pictures else None,
        init=config.init,
        num_tokens=options.get("tokens"),
        depth=options.get("depth"),
        heads=options.get("heads"),
        inner_dim=options.get("width"),
        feature=str(feature_to_read(config)),
    )


def _with_other_tokens(
    config: TrainingConfig, base: Any, loaded: Adapter, options: dict[str, Any]
) -> Adapter:
    """A new adapter with the file's weights wherever they fit; logs which do not."""
    known = VARIANTS[config.variant].options
    options = {key: value for key, value in options.items() if _KEYS[key] in known}
    adapter = _create(config, base, options)
    in_file, initial = loaded.module.state_dict(), adapter.module.state_dict()
    new = [name for name, value in initial.items() if in_file[name].shape != value.shape]
    adapter.module.load_state_dict(
        initial | {name: value for name, value in in_file.items() if name not in new}
    )
    log(
        f"{options['tokens']} tokens: {', '.join(new)} initialised anew,"
        " all other weights loaded from the file"
    )
    return adapter


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
