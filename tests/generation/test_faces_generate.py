"""Faces through `generate`: pictures, embeddings, recipes that repeat, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imageprompt as ip
from face_finder import Analysis, embedding, install, picture
from imageprompt import cli
from imageprompt.core.errors import (
    AdapterFileError,
    EncoderError,
    ImagePromptError,
    NotFoundError,
    OptionError,
    PictureError,
    PromptError,
)
from rigs import difference
from tiny_stack import make_pipeline

FACES = {"faceid": "faceid.safetensors", "faceid-plus-v2": "plus.bin", "portrait": "portrait.bin"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of faces for the tiny stack, pictures, embeddings."""
    folder = tmp_path_factory.mktemp("faces")
    torch.manual_seed(0)
    pipe = make_pipeline()
    for variant, name in FACES.items():
        encoder = pipe.image_encoder if "plus" in variant else None
        adapter = ip.Adapter.create(variant, denoiser=pipe.unet, encoder=encoder)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        adapter.save(folder / name)
    picture(red=(10, 10, 60, 70)).save(folder / "me.png")
    picture(red=(10, 10, 30, 40), blue=(50, 20, 90, 70)).save(folder / "two.png")
    picture().save(folder / "nobody.png")
    np.save(folder / "me.npy", embedding("red") / 20)
    np.save(folder / "narrow.npy", np.ones(511, np.float32))
    (folder / "pack").mkdir()
    (folder / "pack" / "rec.onnx").write_bytes(b"weights")
    return folder


def pixels(result: Any) -> Any:
    return torch.from_numpy(np.asarray(result.images[0]).astype(np.float32))


@pytest.mark.parametrize(
    "wishes",
    [
        {"adapter": "plus.bin", "variant": "faceid-plus-v2", "reference": "me.png", "lora": 0.5},
        {"adapter": "faceid.safetensors", "face_embeddings": "me.npy", "lora_mode": "merged"},
        {"adapter": "portrait.bin", "reference": "two.png", "face": "all"},
    ],
    ids=["pictures", "embeddings", "all faces"],
)
def test_recipes_of_faces_repeat(
    wishes: dict[str, Any], files: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    given = {k: str(files / v) if "." in str(v) and k != "lora" else v for k, v in wishes.items()}
    if "reference" in given:
        given["faces"] = Analysis()
    given |= {"base": str(tiny_folder), "steps": 2, "progress": False}
    made = ip.generate("a star", **given)
    (path,) = made.save(tmp_path)
    again = ip.repeat(path, progress=False)  # nothing is asked again: not the variant, not a face
    assert torch.equal(pixels(again), pixels(made))
    plain = ip.generate("a star", **given | {"scale": 0})
    assert difference(pixels(plain), pixels(made)) > 0


def refused() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    me, faceid, plus = {"reference": "me.png"}, {"adapter": "faceid.safetensors"}, "plus.bin"
    finder = {"faces": Analysis()}
    return {
        "which of two": (me | {"adapter": plus}, AdapterFileError, "--variant faceid-plus-v2"),
        "no finder": (me | faceid, EncoderError, "--faces PACK"),
        "no pack": (me | faceid | {"faces": "no-pack"}, NotFoundError, "nothing is downloaded"),
        "no file": (faceid | {"face_embeddings": "none.npy"}, NotFoundError, "no such file"),
        "narrow": (faceid | {"face_embeddings": "narrow.npy"}, PictureError, r"\[511\]"),
        "nobody": (faceid | finder | {"reference": "nobody.png"}, PictureError, "no face was"),
        "no second": (
            me | faceid | finder | {"face": 1},
            PictureError,
            r"it has 1 face\(s\), counted from 0",
        ),
        "no crops": (
            {"adapter": plus, "variant": "faceid-plus-v2", "face_embeddings": "me.npy"},
            PromptError,
            "Give their crops too",
        ),
        "embeddings for plus": (
            {"adapter": "plus", "face_embeddings": "me.npy"},
            PromptError,
            "Give the pictures",
        ),
        "faces for plus": (me | finder | {"adapter": "plus"}, EncoderError, "Leave faces= out"),
        "a choice for plus": (me | {"adapter": "plus", "face": "all"}, PromptError, "Leave it out"),
        "no LoRA": (me | {"adapter": "plus", "lora_mode": "merged"}, OptionError, "has no LoRA"),
        "an encoder": (
            me | faceid | finder | {"encoder": make_pipeline().image_encoder},
            EncoderError,
            "reads only face embeddings",
        ),
        "no mode": (
            me | {"adapter": "plus", "lora_mode": "fused"},
            OptionError,
            "lora mode 'fused': not live or merged",
        ),
        "another variant": (me | faceid | {"variant": "plus"}, OptionError, "of variant faceid"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_is_refused(name: str, files: Path, tiny_folder: Path) -> None:
    wishes, error, words = refused()[name]
    given = {k: str(files / v) if "." in str(v) and isinstance(v, str) else v
             for k, v in wishes.items()}  # fmt: skip
    with pytest.raises(error, match=words) as caught:
        ip.generate("a star", base=str(tiny_folder), steps=1, progress=False, **given)
    assert isinstance(caught.value, ImagePromptError)
    assert "\n" not in str(caught.value)


def test_the_command(
    files: Path,
    tiny_bundled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(monkeypatch)
    monkeypatch.chdir(files)
    out = ["--steps", "1", "--output", str(tmp_path)]
    plus = ["--adapter", "plus.bin", "--reference", "two.png", "--faces", "pack"]
    command = ["generate", *plus, *out, "--face", "1", "--lora-mode", "merged"]
    assert cli.main([*command, "--variant", "faceid-plus-v2"]) == 0
    assert cli.main(command) == 2
    assert "--variant faceid-plus-v2" in capsys.readouterr().err
    faceid = ["--adapter", "faceid.safetensors", "--face-embeddings", "me.npy"]
    assert cli.main(["generate", *faceid, *out]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2
