"""Tiny pipelines of the hosts that are transformers, with everything that `generate` needs."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import diffusers
import pytest

import text_encoders
import training_pipelines
import transformer_pipelines
from imageprompt.loading.pipeline import TEXT_TOKENS_KEY
from transformer_pipelines import scheduler, vae
from transformers_table import CASES

SIZE = (32, 32)
SIZES = {"pixart": (256, 256), "sana": (64, 64), "hunyuan-dit": (64, 64), "hidream": (16, 16)}
EIGHTH = ("pixart", "hunyuan-dit", "lumina2")  # diffusers takes it that their VAE halves thrice
CONFIG: dict[str, dict[str, Any]] = {"pixart": {"sample_size": 32}, "sana": {"sample_size": 16}}
FLOW_SDE = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
HOSTS = list(text_encoders.TABLE)


def open_pipeline(name: str) -> Any:
    """A tiny pipeline with everything that `generate` needs."""
    case, text = training_pipelines.PIPELINES[name], text_encoders.TABLE[name]
    known = transformer_pipelines.PIPELINES[case.name].parts
    table = CASES[case.host or name]
    config = {**table.config, **case.config, **text.config, **CONFIG.get(name, {})}
    parts = {
        "transformer": dataclasses.replace(table, config=config).build(),
        "scheduler": known.get("scheduler", scheduler(**case.options))(),
        "vae": vae(4, 3) if name in EIGHTH else known["vae"](),
        **text.parts(),
    }
    if name == "sana":
        parts["scheduler"] = scheduler("DPMSolverMultistepScheduler", **FLOW_SDE)()
    if name == "wan":
        parts["vae"].register_to_config(scale_factor_spatial=2)
    if name == "hidream":
        parts["transformer"].register_to_config(**{TEXT_TOKENS_KEY: text_encoders.LENGTH})
    kind = getattr(diffusers, case.name)
    wanted = list(inspect.signature(kind.__init__).parameters.values())[1:]
    missing = [one.name for one in wanted if one.default is inspect.Parameter.empty]
    pipe = kind(**{**dict.fromkeys(missing), **parts})
    for attribute, value in {**case.attributes, **text.attributes}.items():
        setattr(pipe, attribute, value)
    return pipe


def reopened(name: str, kind: Any, **config: Any) -> Any:
    """Another pipeline of a host's parts, whose transformer has another config."""
    table = CASES[name]
    parts = open_pipeline(name).components
    parts["transformer"] = dataclasses.replace(table, config={**table.config, **config}).build()
    known = inspect.signature(kind.__init__).parameters
    return kind(**{part: value for part, value in parts.items() if part in known})


def small_only(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    """No pictures of a million pixels, to which some pipelines scale what is asked for."""
    module = sys.modules[type(pipe).__module__]
    for name, sizes in (
        ("SUPPORTED_SHAPE", [(64, 64)]),
        ("ASPECT_RATIO_512_BIN", {"1.0": [64.0, 64.0]}),
        ("PREFERRED_KONTEXT_RESOLUTIONS", [(64, 64)]),
    ):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, sizes)
