"""Adapters by the other doors: bases and encoders to compare with, prompts, convert, diff, load."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hostile import HOSTILE

from .adapter_doors import (
    CONVERTS,
    MIB,
    TORCH,
    Make,
    converts,
    differs,
    loads,
    on_base,
    on_encoder,
    reads_prompt,
    validates,
)
from .at_folders import (
    FOLDERS,
    SHARDS,
    SOUND,
    TWO,
    distributed,
    fifo,
    folder_of,
    hole,
    indexed,
    link,
    outside,
    shard,
    text,
)
from .at_safetensors import SAFETENSORS
from .at_torch_files import BOMBS, lazily, many, torch_zip
from .attack import Attack, Door, content
from .forged import (
    bomb,
    call,
    legacy,
    now,
    pickled,
    torch_file,
    vector,
)

# ── bases and encoders ──────────────────────────────────────────────────────────────────────────

UNET = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}


def config(value: Any) -> Make:
    """A folder with a config.json: a text as it is, anything else as JSON."""
    data = value if isinstance(value, str) else lambda: json.dumps(now(value))
    return folder_of(text("config.json", data))


CONFIGS: list[tuple[str, Any, str]] = [
    ("deep", "[" * 100_000, "deep"),
    ("100 tables deep", '{"a":' * 100 + "1" + "}" * 100, "deep"),
    ("a list", "[]", "not a JSON object"),
    ("of 5000 digits", '{"a":' + "9" * 5000 + "}", "digits"),
    ("of NaN", '{"a":NaN}', "not a number"),
    ("of 1e400", '{"a":1e400}', "too large"),
    ("not UTF-8", '{"a":"\udcff"}', ""),
    ("2 MB", lambda: '{"a":"' + "x" * (2 * MIB) + '"}', "the limit is"),
    ("300,000 tables", lambda: '{"a":[' + "{}," * 300_000 + "1]}", ""),
    ("an empty text", "", ""),
    ("cut off", '{"a":"', ""),
]

BASES: list[Attack] = [
    *(
        Attack(f"a config that is {what}", folder_of(text("config.json", value)), says)
        for what, value, says in CONFIGS
    ),
    Attack("a config that is a pipe", folder_of(fifo("config.json")), "pipe or device"),
    Attack(
        "a config that leads out",
        folder_of(lambda f: text("c", json.dumps(UNET))(f.parent), link("config.json", "../c")),
        "leads out",
    ),
    Attack(
        "a config that is a folder", folder_of(lambda f: (f / "config.json").mkdir()), "a folder"
    ),
    Attack("a config that is a device", folder_of(link("config.json", "/dev/zero")), "leads out"),
    Attack("a config of a gigabyte", folder_of(hole("config.json", 1 << 30)), "the limit is"),
    *(
        Attack(f"a class called {str(name)[:20]}", config({"_class_name": name}), "")
        for name in ([], {}, 7, None, "\x1b[2J", "X" * 900_000, [["a"] * 100])
    ),
    *(
        Attack(
            f"a UNet with {key} {str(now(value))[:20]}",
            config(lambda key=key, value=value: UNET | {key: now(value)}),
            says,
        )
        for key, value, says in [
            ("layers_per_block", 10**9, "layers"),
            ("layers_per_block", [10**9] * 4, "layers"),
            ("layers_per_block", -5, ""),
            ("layers_per_block", 10**30, "layers"),
            ("layers_per_block", "2", ""),
            ("layers_per_block", [1, 2], ""),
            ("layers_per_block", [[1]], ""),
            ("transformer_layers_per_block", 10**9, "layers"),
            ("transformer_layers_per_block", [[10**9]] * 4, "layers"),
            ("transformer_layers_per_block", "x", ""),
            ("reverse_transformer_layers_per_block", [10**9] * 4, "layers"),
            ("block_out_channels", lambda: [320] * 100_000, "values"),
            ("block_out_channels", "3204", ""),
            ("block_out_channels", None, ""),
            ("down_block_types", lambda: ["CrossAttnDownBlock2D"] * 20_000, "values"),
            ("down_block_types", [[]] * 4, ""),
            ("down_block_types", [{}] * 4, ""),
            ("down_block_types", 7, ""),
            ("attention_head_dim", 0, ""),
            ("attention_head_dim", [], ""),
        ]
    ),
    *(
        Attack(
            f"a FLUX with {key} {str(value)[:20]}",
            config({"_class_name": "FluxTransformer2DModel", key: value}),
            says,
        )
        for key, value, says in [
            ("num_layers", 10**12, "layers"),
            ("num_single_layers", 10**12, "layers"),
            ("num_layers", "19", ""),
            ("num_layers", None, ""),
            ("num_layers", [19], ""),
            ("num_layers", 1.5, ""),
            ("num_attention_heads", "x" * 1000, "not a whole number"),
            ("num_attention_heads", [1] * 1000, "not a whole number"),
            ("attention_head_dim", None, ""),
        ]
    ),
    Attack(
        "a FLUX whose heads are a text, a billion wide",
        config(
            {
                "_class_name": "FluxTransformer2DModel",
                "num_attention_heads": "x",
                "attention_head_dim": 10**9,
            }
        ),
        "not a whole number",
    ),
    *(
        Attack(
            f"an SD3 with {key} {str(value)[:20]}",
            config({"_class_name": "SD3Transformer2DModel", key: value}),
            says,
        )
        for key, value, says in [
            ("num_layers", 10**12, "layers"),
            ("num_layers", {}, ""),
            ("num_attention_heads", None, ""),
            ("dual_attention_layers", 7, ""),
            ("caption_projection_dim", [], ""),
        ]
    ),
    Attack(
        "weights that lead out",
        folder_of(
            text("config.json", json.dumps(UNET | {"layers_per_block": 2})),
            outside("diffusion_pytorch_model.safetensors"),
        ),
        "leads out",
        "read",
    ),
    Attack(
        "weights that are a pipe",
        folder_of(
            text("config.json", json.dumps(UNET)), fifo("diffusion_pytorch_model.safetensors")
        ),
        "",
        "read",
    ),
    Attack(
        "weights that are broken",
        folder_of(
            text("config.json", json.dumps(UNET)),
            text("diffusion_pytorch_model.safetensors", b"PK" * 8),
        ),
        "cut off",
        "read",
    ),
]

VISION = {"hidden_size": 1280, "patch_size": 14, "projection_dim": 1024}
ENCODERS: list[Attack] = [
    *(
        Attack(f"a config that is {what}", folder_of(text("config.json", value)), says)
        for what, value, says in CONFIGS
    ),
    Attack("a config that is a pipe", folder_of(fifo("config.json")), "pipe or device"),
    Attack(
        "a config that leads out",
        folder_of(lambda f: text("c", json.dumps(VISION))(f.parent), link("config.json", "../c")),
        "leads out",
    ),
    *(
        Attack(f"{key} of {str(value)[:20]}", config(VISION | {key: value}), "", outcome)
        for key, value, outcome in [
            ("vision_config", [1], "refused"),
            ("vision_config", "hidden_size", "refused"),
            ("vision_config", 7, "refused"),
            ("hidden_size", "1280", "refused"),
            ("hidden_size", [1280], "refused"),
            ("hidden_size", 10**30, "refused"),
            ("hidden_size", True, "refused"),
            ("hidden_size", -1, "refused"),
            ("projection_dim", "1024", "read"),
            ("projection_dim", {}, "read"),
        ]
    ),
]

# ── prompts ─────────────────────────────────────────────────────────────────────────────────────

PROMPTS: list[Attack] = [
    Attack(
        "a torch zip of tokens",
        torch_zip({"tokens": vector(4)}, {"0": bytes(16)}),
        "not a safetensors file",
    ),
    Attack(
        "61 names on one deflated storage",
        torch_zip(many(61, lambda i: vector(26 * MIB // 4)), {"0": lambda: bomb(26)}),
        "not a safetensors file",
    ),
    Attack(
        "a pickle that runs code",
        lazily(lambda: pickled(call("os", "system", "touch canary"))),
        "not a safetensors file",
    ),
    Attack(
        "a legacy torch file",
        lazily(lambda: legacy({"tokens": vector(4)}, ["0"], (4, bytes(16)))),
        "not a safetensors file",
    ),
    Attack("a DCP folder", distributed((8,), *TWO), "a folder"),
    Attack("a folder", folder_of(SOUND), "a folder"),
    Attack("an index of shards", indexed({"a": "s"}, shard("s")), "not a safetensors file"),
    Attack("a pipe", lambda folder: os.mkfifo(folder / "x") or folder / "x", "pipe or device"),
    Attack("a device", lambda folder: Path("/dev/zero"), "pipe or device"),
    Attack("an empty file", content(b""), "not a safetensors file"),
    Attack("a picture", content(b"\x89PNG\r\n\x1a\n" + bytes(600)), "not a safetensors file"),
    Attack(
        "a torch file called .safetensors",
        lazily(lambda: torch_file({"tokens": vector(4)}, {"0": bytes(16)}), "a.safetensors"),
        "not a safetensors file",
    ),
    Attack("a header of a gigabyte", content((1 << 30).to_bytes(8, "little") + b"{"), "limit"),
    Attack(
        "a sound file",
        content(
            b"\x40\0\0\0\0\0\0\0"
            + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(64)
            + b"\0"
        ),
        "1 tensors",
        "read",
    ),
]


# ── the same files by other doors ───────────────────────────────────────────────────────────────

CONVERSIONS: list[Attack] = [
    *(
        replace(one, says="" if one.outcome == "read" else one.says)
        for one in SAFETENSORS
        if one.name.startswith("metadata")
    ),
    *(one for one in BOMBS if "stream" in one.name),
    *(one for one in SHARDS if "leads out" in one.says),
    *(one for one in FOLDERS if "leads out" in one.says),
]

# ── what the suite of the readers has already, by other doors ───────────────────────────────────


def known(without: tuple[str, ...] = ()) -> list[Attack]:
    """The files of tests/support/hostile.py that cannot be opened."""
    skipped = ("unreadable", "dangling link", *without)
    kinds = {n: k for n, k in HOSTILE.items() if not k.opens and n not in skipped}
    return [Attack(name, kind.make, kind.says) for name, kind in kinds.items()]


def reported(attacks: list[Attack]) -> list[Attack]:
    """The same for `validate`, which reports what is no adapter instead of raising."""
    return [Attack(one.name, one.make, one.says, "read") for one in attacks]


DOORS: tuple[Door, ...] = (
    Door("convert", converts, CONVERSIONS, CONVERTS),
    Door(
        "validate --base", on_base, BASES, ("imageprompt.checkpoint.validate", "torch", "diffusers")
    ),
    Door("validate --encoder", on_encoder, ENCODERS, ("imageprompt.checkpoint.validate",)),
    Door("validate", validates, reported(known(("pipe",))), ("imageprompt.checkpoint.validate",)),
    Door("diff", differs, known(), ("imageprompt.checkpoint.diff", "numpy")),
    Door("Adapter.load", loads, known(), TORCH),
    Door("prompt files", reads_prompt, PROMPTS, TORCH),
)
