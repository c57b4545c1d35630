"""Faces: detected, chosen and cropped; embeddings read from files, arrays and pictures."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import imageprompt as ip
from face_finder import LENGTH, Analysis, embedding, install, picture
from imageprompt import cli
from imageprompt.core.errors import (
    EncoderError,
    ImagePromptError,
    NotFoundError,
    OptionError,
    PictureError,
    PromptError,
)
from imageprompt.encoding.face_embeddings import read_embeddings
from imageprompt.encoding.face_encoder import FaceEncoder, align_face, open_face_encoder
from tiny_stack import make_pipeline

TWO = {"red": (10, 10, 30, 40), "blue": (50, 20, 90, 70)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    return make_pipeline()


@pytest.fixture
def attached(pipe: Any) -> Any:
    """Attaches a new adapter of a variant and detaches it at the end."""
    made: list[Any] = []

    def attach(variant: str, **options: Any) -> Any:
        torch.manual_seed(1)
        reads = variant.startswith("faceid-plus")
        encoder = pipe.image_encoder if reads else None
        adapter = ip.Adapter.create(variant, denoiser=pipe.unet, encoder=encoder)
        made.append(adapter.attach(pipe, encoder=encoder, **options))
        return adapter

    yield attach
    for adapter in made:
        adapter.detach()


# ── found ────────────────────────────────────────────────────────────────────────────────────────


def test_faces_are_listed_largest_first() -> None:
    found = FaceEncoder(Analysis()).find(picture(**TWO))
    assert [face.box for face in found] == [TWO["blue"], TWO["red"]]
    assert [face.index for face in found] == [0, 1]
    assert found[0].size == (40, 50)
    assert found[0].score == 0.9
    assert np.array_equal(found[0].embedding.numpy(), embedding("blue"))
    assert np.array_equal(found[1].embedding.numpy(), embedding("red"))


def test_a_face_that_fills_its_picture_is_found_with_a_border() -> None:
    filled = picture(green=(0, 0, 96, 80))
    assert Analysis().get(np.asarray(filled)) == []
    (face,) = FaceEncoder(Analysis()).find(filled)
    assert face.box == (0, 0, 96, 80)
    assert face.points[0].tolist() == pytest.approx([0.3 * 96, 0.4 * 80])
    assert face.crop().getpixel((112, 112)) == (0, 255, 0)  # from the picture, not the border


@pytest.mark.parametrize(
    ("which", "names"),
    [("largest", ["blue"]), (0, ["blue"]), (1, ["red"]), ("all", ["blue", "red"])],
)
def test_faces_are_chosen(which: Any, names: list[str]) -> None:
    chosen = FaceEncoder(Analysis()).choose(picture(**TWO), which)
    assert [face.embedding.tolist() for face in chosen] == [embedding(n).tolist() for n in names]


@pytest.mark.parametrize(
    ("which", "given", "error", "words"),
    [
        (2, TWO, PictureError, r"it has 2 face\(s\), counted from 0"),
        ("largest", {}, PictureError, "no face was found in it"),
        (-1, TWO, OptionError, "'largest', 'all'"),
        (True, TWO, OptionError, "'largest', 'all'"),
        (1.0, TWO, OptionError, "'largest', 'all'"),
        ("smallest", TWO, OptionError, "'largest', 'all'"),
        (None, TWO, OptionError, "'largest', 'all'"),
    ],
)
def test_no_such_face(which: Any, given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FaceEncoder(Analysis()).choose(picture(**given), which)


def test_a_pack_that_fails_or_holds_another_recogniser(attached: Callable[..., Any]) -> None:
    class Broken(Analysis):
        def get(self, bgr: Any) -> list[Any]:
            raise ValueError("Got invalid dimensions\nfor input")

    class Narrow(Analysis):
        def get(self, bgr: Any) -> list[Any]:
            found = super().get(bgr)
            for one in found:
                one.embedding = one.embedding[:256]
            return found

    with pytest.raises(EncoderError, match=r"it failed \(Got invalid dimensions\)"):
        FaceEncoder(Broken()).find(picture(**TWO))
    with pytest.raises(PictureError, match=r"the shape is \[256\], not \[512\]"):
        attached("faceid", faces=Narrow()).encode([picture(**TWO)])


def test_the_crop_maps_key_points_to_where_arcface_has_them() -> None:
    """In a picture linear in x and y, bilinear sampling is exact, so colours encode positions."""
    wanted = 2 * np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
         [70.7299, 92.2041]]
    )  # fmt: skip
    y, x = np.mgrid[0:250, 0:250]
    slope = Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))
    turn = 0.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    points = wanted @ turn.T + (110, 20)
    crop = np.asarray(align_face(slope, points)).astype(float)
    ys, xs = np.mgrid[0:224, 0:224]
    places = np.stack([xs, ys], -1) @ turn.T + (110, 20)
    inside = ((places >= 0) & (places <= 249)).all(-1)
    assert inside.mean() > 0.5
    assert abs(crop[..., :2] - places)[inside].max() <= 0.5 + 1e-6
    far = ((places < -1) | (places > 250)).any(-1)
    assert far.any()
    assert not crop[far].any()
    with pytest.raises(PictureError, match="all in one place"):
        align_face(slope, np.ones((5, 2)))


# ── from pictures to prompts ─────────────────────────────────────────────────────────────────────


def unit(*names: str) -> Tensor:
    rows = torch.stack([torch.from_numpy(embedding(name)) for name in names])
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("variant", ["faceid", "portrait"])
def test_pictures_of_faces(variant: str, attached: Callable[..., Any]) -> None:
    adapter = attached(variant, faces=Analysis())
    prompt = adapter.encode([picture(**TWO), picture(green=(30, 30, 60, 60))])
    assert torch.equal(prompt.tokens, adapter.encode(features=unit("blue", "green")).tokens)
    both = adapter.encode([picture(**TWO)], face="all")
    assert torch.equal(both.tokens, adapter.encode(features=unit("blue", "red")).tokens)
    batch = adapter.encode([[picture(**TWO)], [picture(green=(30, 30, 60, 60))]])
    wanted = adapter.encode(features=[unit("blue"), unit("green")])
    assert torch.equal(batch.tokens, wanted.tokens)
    assert batch.null_tokens is not None
    assert torch.equal(batch.null_tokens, wanted.null_tokens)


def test_portrait_unnorm_reads_raw_embeddings(attached: Callable[..., Any]) -> None:
    adapter = attached("portrait-unnorm", faces=Analysis())
    raw = torch.from_numpy(embedding("blue"))[None]
    wanted = adapter.encode(features=raw[:, None])
    assert torch.equal(adapter.encode([picture(**TWO)]).tokens, wanted.tokens)
    assert torch.equal(adapter.encode(embeddings=raw).tokens, wanted.tokens)
    both = adapter.encode([picture(**TWO)], face="all")
    assert both.tokens.shape[1] == 2 * 16  # 16 per face, as in ComfyUI_IPAdapter_plus
    with pytest.raises(PictureError, match="10 to 30 long"):
        adapter.encode(embeddings=unit("blue"))


@pytest.mark.parametrize("variant", ["faceid-plus", "faceid-plus-v2"])
def test_faceid_plus_also_reads_the_crop(variant: str, attached: Callable[..., Any]) -> None:
    adapter = attached(variant, faces=Analysis())
    crops = [face.crop() for face in FaceEncoder(Analysis()).find(picture(**TWO))]
    hidden = adapter.encoder.encode(crops, "hidden_states[-2]")
    wanted = adapter.encode(features=(unit("blue", "red"), hidden))
    found = adapter.encode([picture(**TWO)], face="all")
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.null_tokens, wanted.null_tokens)
    given = adapter.encode(crops, embeddings=unit("blue", "red"))
    assert torch.equal(given.tokens, wanted.tokens)


def test_several_faces_of_several_prompts(attached: Callable[..., Any]) -> None:
    """16 tokens per face, side by side as in the reference code; each prompt has its own."""
    adapter = attached("portrait", faces=Analysis())
    prompt = adapter.encode([[picture(**TWO)] * 2, [picture(green=(9, 9, 50, 50))] * 2])
    assert prompt.tokens.shape[:2] == (2, 32)
    one = adapter.encode(features=unit("blue")).tokens
    assert torch.allclose(prompt.tokens[0], torch.cat([one[0], one[0]]), atol=1e-6)
    nothing = adapter.project(torch.zeros(1, 512))
    assert torch.allclose(prompt.null_tokens, nothing.repeat(2, 2, 1), atol=1e-6)
    with pytest.raises(PromptError, match="same number"):
        adapter.encode([[picture(**TWO)], [picture(green=(9, 9, 50, 50))] * 2])


def wrong_calls() -> dict[str, tuple[str, dict[str, Any], str]]:
    one, pic = unit("red"), picture(**TWO)
    plus = "faceid-plus"
    return {
        "nothing": ("faceid", {}, "either pictures or ready-made features"),
        "features and embeddings": ("faceid", {"features": one, "embeddings": one}, "either"),
        "pictures beside embeddings": (
            "faceid",
            {"pictures": [pic], "embeddings": one},
            "embeddings only",
        ),
        "no pictures": (plus, {"embeddings": one}, "Give their crops too"),
        "too few pictures": (
            plus,
            {"pictures": [pic], "embeddings": unit("red", "blue")},
            "2 face embedding.s. beside 1 picture",
        ),
        "a choice without pictures": ("faceid", {"embeddings": one, "face": 1}, "Leave it out"),
        "framing": ("faceid", {"pictures": [pic], "framing": "squash"}, "whole pictures"),
        "a mask": (
            "faceid",
            {"pictures": [pic], "reference_mask": torch.ones(8, 8)},
            "whole pictures",
        ),
        "no such choice": ("faceid", {"pictures": [pic], "face": "biggest"}, "'largest'"),
        "no face": ("faceid", {"pictures": [picture()]}, "no face was found"),
        "an empty list": ("faceid", {"embeddings": []}, "at least one"),
        "an empty prompt": ("faceid", {"embeddings": [[one], []]}, "at least one"),
        "numbers": ("faceid", {"embeddings": [0.1] * 512}, "neither a file nor an array"),
        "whole numbers": ("faceid", {"embeddings": torch.ones(512, dtype=torch.int64)}, "floating"),
        "too narrow": ("faceid", {"embeddings": torch.ones(511)}, r"the shape is \[511\]"),
        "three-dimensional": ("faceid", {"embeddings": torch.ones(1, 1, 512)}, r"\[1, 1, 512\]"),
        "NaN": ("faceid", {"embeddings": torch.full((512,), torch.nan)}, "face 0 is not finite"),
        "zero": ("faceid", {"embeddings": torch.zeros(2, 512)}, "face 0 is zero"),
        "none": ("faceid", {"embeddings": torch.zeros(0, 512)}, r"\[0, 512\]"),
        "too many": ("faceid", {"embeddings": torch.ones(257, 512)}, "1 to 256"),
    }  # fmt: skip


@pytest.mark.parametrize("name", wrong_calls())
def test_wrong_calls_are_refused_in_one_line(name: str, attached: Callable[..., Any]) -> None:
    variant, call, words = wrong_calls()[name]
    adapter = attached(variant, faces=Analysis())
    with pytest.raises(ImagePromptError, match=words) as caught:
        adapter.encode(**call)
    assert "\n" not in str(caught.value)


def test_faces_are_for_adapters_of_faces(pipe: Any, attached: Callable[..., Any]) -> None:
    plus = ip.Adapter.create("plus", denoiser=pipe.unet, encoder=pipe.image_encoder, depth=1)
    with pytest.raises(EncoderError, match="reads hidden_states"):
        plus.attach(pipe, faces=Analysis())
    assert not plus.attached
    with pytest.raises(PromptError, match="face embeddings for a plus adapter"):
        plus.encode(embeddings=unit("red"))
    with pytest.raises(EncoderError, match=r"attach\(pipe, faces=PACK\) or --faces"):
        attached("faceid").encode([picture(**TWO)])
    portrait = ip.Adapter.create("portrait", denoiser=pipe.unet, encoder=None)
    with pytest.raises(EncoderError, match="reads only face embeddings"):
        portrait.attach(pipe, encoder=pipe.image_encoder)
    with pytest.raises(EncoderError, match="not a model pack or a FaceAnalysis"):
        open_face_encoder(3)


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────

ROWS = torch.stack([torch.from_numpy(embedding(name)) for name in ("red", "blue")])


def npy(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def torch_file(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def tensors(path: Path, **named: Tensor) -> Path:
    save_file(named, path)
    return path


def text(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


READABLE: dict[str, Callable[[Path], Path]] = {
    "npy": lambda p: npy(p / "a.npy", ROWS.numpy()),
    "npy by column": lambda p: npy(p / "a.npy", np.asfortranarray(ROWS.numpy())),
    "npy, big-endian doubles": lambda p: npy(p / "a.npy", ROWS.numpy().astype(">f8")),
    "safetensors": lambda p: tensors(p / "a.safetensors", faces=ROWS),
    "two tensors": lambda p: tensors(p / "a.safetensors", a=ROWS[0].clone(), b=ROWS[1].clone()),
    "torch": lambda p: torch_file(p / "a.pt", ROWS),
    "torch, old": lambda p: torch_file(p / "a", ROWS, _use_new_zipfile_serialization=False),
    "torch, strided": lambda p: torch_file(p / "a.bin", ROWS.T.contiguous().T),
    "torch, listed": lambda p: torch_file(p / "a.ipadpt", [ROWS[:1], ROWS[1]]),
    "torch, named": lambda p: torch_file(p / "a.pt", {"id": {"one": ROWS[:1], "two": ROWS[1]}}),
    "numpy in torch": lambda p: torch_file(p / "a.bin", ROWS.numpy()),
    "numpy in old torch": lambda p: torch_file(
        p / "a.bin", ROWS.numpy().astype(">f4"), _use_new_zipfile_serialization=False
    ),
    "JSON": lambda p: text(p / "a.json", ROWS.tolist()),
}


@pytest.mark.parametrize("name", READABLE)
def test_embeddings_are_read(name: str, tmp_path: Path) -> None:
    found = read_embeddings(READABLE[name](tmp_path))
    assert found.dtype == torch.float32
    assert torch.equal(found, ROWS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    found = read_embeddings(tensors(tmp_path / "a.safetensors", faces=ROWS[0].to(dtype)))
    assert torch.equal(found, ROWS[:1].to(dtype).float())


def lying_header(path: Path) -> Path:
    """A file whose header announces 2^40 numbers."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2147483648, 512), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 2048)
    return path


class Harm:
    def __reduce__(self) -> Any:
        return print, ("harm",)


def cut(path: Path, *, by: int) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:-by] if by > 0 else content + b"\0" * -by)
    return path


def swapped(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pickled objects": (lambda p: npy(p / "a.npy", np.array([Harm()])), "not floating-point"),
    "whole numbers": (lambda p: npy(p / "a.npy", np.ones(512, int)), "not floating-point"),
    "a lying header": (lambda p: lying_header(p / "a.npy"), "the limit is"),
    "cut": (lambda p: cut(npy(p / "a.npy", ROWS.numpy()), by=1), "cut off"),
    "too long": (lambda p: cut(npy(p / "a.npy", ROWS.numpy()), by=-1), "something follows"),
    "no header": (lambda p: written(p / "a.npy", b"\x93NUMPY\x01\x00\xff\xff{"), "header"),
    "an open bracket": (
        lambda p: swapped(npy(p / "a.npy", ROWS.numpy()), b"512)", b"512$"), "header is damaged",
    ),
    "many faces": (lambda p: npy(p / "a.npy", np.ones((257, 512), "f4")), "the limit is"),
    "NaN": (lambda p: npy(p / "a.npy", np.full(512, np.nan)), "face 0 is not finite"),
    "zero": (lambda p: npy(p / "a.npy", np.zeros(512)), "face 0 is zero"),
    "narrow": (lambda p: npy(p / "a.npy", np.ones((2, 128))), r"the shape is \[2, 128\]"),
    "a scalar": (lambda p: npy(p / "a.npy", np.float32(1)), r"the shape is \[\]"),
    "deep": (lambda p: npy(p / "a.npy", np.ones((2, 1, 512))), r"the shape is \[2, 1, 512\]"),
    "safetensors of integers": (
        lambda p: tensors(p / "a.safetensors", a=torch.ones(512, dtype=torch.int32)),
        "I32, not floating-point",
    ),
    "a large safetensors": (
        lambda p: tensors(p / "a.safetensors", a=torch.ones(400, 512)), "the limit is",
    ),
    "a hostile pickle": (
        lambda p: written(p / "a.pt", pickle.dumps(Harm())), "builtins.print|did not write",
    ),
    "a hostile torch file": (lambda p: torch_file(p / "a.pt", Harm()), "print"),
    "a number in torch": (lambda p: torch_file(p / "a.pt", [ROWS, 3]), "other than tensors"),
    "numpy objects in torch": (
        lambda p: torch_file(p / "a.pt", np.ones(512, int)), "not of floating-point numbers",
    ),
    "a JSON table": (lambda p: text(p / "a.json", {"a": [1]}), "JSON"),
    "ragged JSON": (lambda p: text(p / "a.json", [[1.0] * 512, [1.0]]), "equal length"),
    "words in JSON": (lambda p: text(p / "a.json", ["a"] * 512), "not a JSON list of numbers"),
    "broken JSON": (lambda p: written(p / "a.json", b"[1, 2"), "not a JSON list"),
    "deep JSON": (lambda p: written(p / "a.json", b"[" * 100_000), "nested more than 4 deep"),
    "a picture": (lambda p: written(p / "a.npy", b"\x89PNG\r\n\x1a\n" + b"\1" * 600), "a picture"),
    "empty": (lambda p: written(p / "a.npy", b""), "empty"),
    "a folder": (lambda p: p, "a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_embeddings(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = UNREADABLE[name]
    path = make(tmp_path)
    with pytest.raises(PictureError, match=words) as caught:
        read_embeddings(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "adapter" not in str(caught.value)
    assert capsys.readouterr().out == ""  # no code in a file is run


def test_no_embeddings(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_embeddings(tmp_path / "none.npy")


def test_embeddings_are_normalised_with_one_warning(
    attached: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = attached("faceid")
    path = npy(tmp_path / "a.npy", ROWS.numpy())
    with pytest.warns(UserWarning, match=f"2 face embedding.s. of length {LENGTH:.0f}") as said:
        prompt = adapter.encode(embeddings=path)
    assert len(said) == 1
    wanted = adapter.encode(features=unit("red", "blue"))
    assert torch.equal(prompt.tokens, wanted.tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = unit("red", "blue").half()
        assert adapter.encode(embeddings=[half[0], half[1]]).tokens.shape == wanted.tokens.shape
        batch = adapter.encode(embeddings=[[half[0]], [half[1]]])
    assert torch.allclose(batch.tokens.flatten(0, 1), wanted.tokens[0], atol=1e-2)


# ── insightface ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def insightface(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return install(monkeypatch)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "w600k.onnx").write_bytes(b"weights")
    return folder


def test_a_pack_is_opened_by_its_full_path(
    insightface: dict[str, Any],
    pack: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Never by a bare name: insightface would download a pack that it does not find."""
    assert len(FaceEncoder.load(pack).find(picture(**TWO))) == 2
    assert insightface["name"] == str(pack)
    assert insightface["allowed_modules"] == ["detection", "recognition"]
    assert insightface["det_size"] == (640, 640)
    monkeypatch.setattr("imageprompt.encoding.face_encoder.PACKS", pack.parent)
    monkeypatch.chdir(pack.parent.parent)
    FaceEncoder.load("pack")
    assert insightface["name"] == str(pack)
    assert capsys.readouterr().out == ""


def test_packs_that_cannot_be_opened(
    insightface: dict[str, Any], pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imageprompt.encoding.face_encoder.PACKS", tmp_path / "packs")
    with pytest.raises(NotFoundError, match="nothing is downloaded"):
        FaceEncoder.load("buffalo_l")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EncoderError, match=r"no .onnx files"):
        FaceEncoder.load(empty)
    assert "name" not in insightface
    insightface["models"] = {"detection": 1}
    with pytest.raises(EncoderError, match="no model for recognition"):
        FaceEncoder.load(pack)
    insightface["models"] = {}
    with pytest.raises(EncoderError, match="cannot open it"):
        FaceEncoder.load(pack)


def test_without_insightface(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(EncoderError, match=r"insightface is not installed.*imageprompt\[faces\]"):
        FaceEncoder.load(pack)


def test_the_command(
    insightface: dict[str, Any], pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, crops, saved = tmp_path / "two.png", tmp_path / "crops", tmp_path / "me.npy"
    picture(**TWO).save(path)
    command = ["faces", str(path), "--faces", str(pack)]
    everyone = ["--face", "all", "--save", str(saved), "--crops", str(crops)]
    assert cli.main([*command, "--json", *everyone]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["box"] for row in rows] == [list(TWO["blue"]), list(TWO["red"])]
    assert torch.allclose(read_embeddings(saved), unit("blue", "red"))
    written = [ip.open_picture(file) for file in sorted(crops.iterdir())]
    assert [(crop.size, crop.getpixel((112, 130))) for crop in written] == [
        ((224, 224), (0, 0, 255)),
        ((224, 224), (255, 0, 0)),
    ]
    assert cli.main([*command, "--json"]) == 0  # all are listed, but the largest is saved
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert cli.main([*command, "--save", str(saved)]) == 0
    assert torch.allclose(read_embeddings(saved), unit("blue"))
    capsys.readouterr()
    assert cli.main([*command, "--face", "1", "--raw", "--save", str(saved)]) == 0
    assert "10.0, 10.0, 30.0, 40.0" in capsys.readouterr().out
    assert torch.equal(read_embeddings(saved), ROWS[:1])
    nobody = tmp_path / "nobody.png"
    picture().save(nobody)
    assert cli.main(["faces", str(path), str(nobody), *command[2:], "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["index"] for row in rows] == [0, 1, None]
    assert cli.main(["faces", str(nobody), *command[2:], "--save", str(saved)]) == 2
    assert "no face was found" in capsys.readouterr().err
    for wrong in (["--face", "2"], ["--face", "best"], ["--save", str(tmp_path / "me.bin")]):
        assert cli.main([*command, *wrong]) == 2
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert said.out == ""
    assert not (tmp_path / "me.bin").exists()
