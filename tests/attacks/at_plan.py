"""Plans: the configs of a base that a stranger has made; no weights are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .attack import Attack, Door, outside

PARTS = ("unet", "vae", "text_encoder", "image_encoder")
DEEP = "[" * 100_000


def base(folder: Path) -> Path:
    """The configs of the bundled base."""
    from imageprompt.core import bundled

    place = folder / "base"
    place.mkdir()
    own = bundled.folder()
    (place / "model_index.json").write_text((own / "model_index.json").read_text())
    for part in PARTS:
        (place / part).mkdir()
        (place / part / "config.json").write_text((own / part / "config.json").read_text())
    return place


def changed(part: str, says: str, outcome: str = "refused", **values: Any) -> Attack:
    """A config has these values; the first one gives the row its name."""

    def make(folder: Path) -> Path:
        place = base(folder)
        path = _path(place, part)
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return place

    (key, value), *_ = values.items()
    return Attack(f"{part}: {key} {str(value)[:40]}", make, says, outcome)  # type: ignore[arg-type]


def stands(part: str, name: str, make: Callable[[Path], Any], says: str) -> Attack:
    """Something else stands in the place of a config."""

    def made(folder: Path) -> Path:
        place = base(folder)
        path = _path(place, part)
        path.unlink()
        make(path)
        return place

    return Attack(f"{part} {name}", made, says)


def _path(place: Path, part: str) -> Path:
    return place / "model_index.json" if part == "index" else place / part / "config.json"


def _out(path: Path) -> None:
    row = Path(*path.parts[: path.parts.index("base")])
    path.symlink_to(outside(row) / "secret.json")


def _terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def _files() -> Iterator[Attack]:
    for part in ("index", "unet"):
        yield stands(part, "leads out", _out, "leads out")
        yield stands(part, "is a pipe", os.mkfifo, "no such file")
        yield stands(part, "is a terabyte", _terabyte, "limit")
        yield stands(part, "is deep", lambda path: path.write_text(DEEP), "deep")
        yield stands(part, "is a list", lambda path: path.write_text("[]"), "not a JSON object")
    yield Attack("no folder", lambda folder: folder / "nothing", "neither")
    yield Attack("an empty folder", lambda folder: folder, "no such file")


def _configs() -> Iterator[Attack]:
    for kind in ("os", "PreTrainedModel", "../x", "UNet2DModel"):
        yield changed("index", "cannot count", unet=["diffusers", kind])
        yield changed("index", "cannot count", text_encoder=["transformers", kind])
    yield changed("index", "autoencoder", vae=["diffusers", "AutoencoderTiny"])
    yield changed("index", "cannot count", unet=1)
    yield changed("index", "no such file", text_encoder_2=["transformers", "CLIPTextModel"])
    yield changed(
        "index", "no such file", **{"text_encoder/../..": ["transformers", "T5EncoderModel"]}
    )
    for part, key in (
        ("unet", "layers_per_block"),
        ("unet", "transformer_layers_per_block"),
        ("vae", "layers_per_block"),
        ("text_encoder", "num_hidden_layers"),
        ("image_encoder", "num_hidden_layers"),
    ):
        yield changed(part, "", **{key: 129})
        yield changed(part, "", **{key: [[129]]})
        yield changed(part, "", **{key: 10**18})
        yield changed(part, "", **{key: -1})
    blocks = ["DownBlock2D"] * 300
    yield changed("unet", "", down_block_types=blocks, block_out_channels=[32] * 300)
    yield changed("vae", "", block_out_channels=[32] * 900, down_block_types=["x"] * 900)
    yield changed("vae", "", block_out_channels=1)
    yield changed("vae", "", block_out_channels=[])
    for key in ("block_out_channels", "cross_attention_dim", "attention_head_dim", "in_channels"):
        for value in (0, "x", {}, 2**40):
            outcome = "read" if (key, value) == ("cross_attention_dim", 0) else "refused"
            yield changed("unet", "", outcome, **{key: value})
    for key in ("hidden_size", "num_attention_heads", "patch_size", "image_size"):
        for value in (0, "x", 2**40):
            yield changed("image_encoder", "", **{key: value})
    yield changed("image_encoder", "", "read", image_size=2**19, patch_size=1)  # nothing is drawn
    yield changed("text_encoder", "", max_position_embeddings="\x1b[2J")
    yield changed("text_encoder", "", "read", max_position_embeddings=2**19)
    yield changed("text_encoder", "", vocab_size="__import__('os')")
    yield changed("unet", "", "read", _name_or_path="/etc/passwd")
    yield changed("text_encoder", "", "read", auto_map={"AutoModel": "evil.py--Model"})
    yield changed("text_encoder", "", "read", attn_implementation="owner/kernel")


def _count(place: Any, out: Path) -> object:
    from imageprompt.deploy.plan.open import counted

    return counted(place).title[:0] + "counted"


IMPORTS = ("tests.attacks.loaded_plan",)
DOORS = (Door("plan: configs of a base", _count, (*_files(), *_configs()), IMPORTS),)
