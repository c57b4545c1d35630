"""Everything wrong that a user can give the command: exit code 2, one line, no leftovers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import imageprompt as ip
from hostile_pictures import HOSTILE
from imageprompt import cli
from tiny_stack import make_pipeline

Arguments = list[str]


@pytest.fixture
def refused(
    tiny_bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `imageprompt generate` with a good reference unless told; returns its one line."""
    good = tmp_path / "good.png"
    Image.new("RGB", (16, 16), "red").save(good)

    def run(*arguments: str, reference: str | None = str(good)) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        shown = [] if reference is None else ["--reference", reference]
        command = ["generate", *shown, "--steps", "1", "--output", str(tmp_path / "out")]
        try:
            code = cli.main([*command, *arguments])
        except SystemExit as stopped:  # what argparse refuses
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        assert code == 2
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(("imageprompt: error: ", "imageprompt generate: "))
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return run


# ── references ──────────────────────────────────────────────────────────────────────────────────


def test_no_reference(refused: Callable[..., str]) -> None:
    assert "--reference" in refused(reference=None)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_references(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "hostile.png"
    path.write_bytes(HOSTILE[name][0])
    assert "hostile.png" in refused(reference=str(path))


def test_references_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file" in refused(reference=str(tmp_path / "none.png"))
    assert "a folder" in refused(reference=str(tmp_path))
    assert "no such file" in refused(reference="")


# ── numbers and words ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "2.5"], "0 (the base alone) to 2"),
        (["--scale", "-0.5"], "-0.5"),
        (["--scale", "nan"], "nan"),
        (["--scale", "much"], "scale 'much': not a number"),
        (["--seed", "-1"], "seed -1"),
        (["--seed", "1.5"], "generate: argument --seed: invalid int value: '1.5'"),
        (["--num-images", "0"], "num images 0"),
        (["--num-images", "1000001"], "1000000"),
        (["--batch-size", "65"], "from 1 to 64"),
        (["--steps", "0"], "from 1 to 1000"),
        (["--guidance-scale", "inf"], "guidance scale"),
        (["--size", "wide"], "not a size in pixels. Write 512 or 512x768"),
        (["--size", "64x0"], "height 0"),
        (["--size", "100000x100000"], "width 100000"),
        (["--size", "8000x8000"], "million pixels"),
        (["--size", "15x15"], "Try 16x16"),
        (["--dtype", "float64"], "float32, float16, bfloat16"),
        (["--device", "toaster"], "toaster"),
        (["--device", "cuda:63"], "cuda:63"),
        (["--prompt", "x" * 30_000], "20000 characters"),
        (
            ["--refrence", "x"],
            "generate: unknown flag --refrence. Did you mean --reference? See im",
        ),
        (["--refrence=x"], "unknown flag --refrence. Did you mean --reference?"),
        (["--guide", "7"], "unknown flag --guide. Did you mean --guidance"),
        (
            ["--ref", "x"],
            "unknown flag --ref. Did you mean --reference? See imageprompt generate -",
        ),
        (["x.png"], "generate: unexpected argument 'x.png'. See imageprompt generate --help"),
    ],
)
def test_impossible_options(arguments: Arguments, words: str, refused: Callable[..., str]) -> None:
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["generat"], "unknown command generat. Did you mean generate? See imageprompt --help"),
        (["prepare"], "unknown command prepare. See imageprompt --help"),
        (["--json", "demo"], "unknown flag --json. See imageprompt --help"),
        (["--versoin"], "unknown flag --versoin. Did you mean --version? See imageprompt --help"),
    ],
)
def test_wrong_commands(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"imageprompt: {line}\n"


def test_a_flag_of_a_command_below_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["library", "list", "--shet", "x.png"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "imageprompt library list: unknown flag --shet. Did you mean --sheet? "
        "See imageprompt library list --help\n"
    )


# ── adapters ────────────────────────────────────────────────────────────────────────────────────

FILES = {
    "empty": b"",
    "short": b"1234",
    "HTML": b"<!DOCTYPE html><html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "endless header": (2**40).to_bytes(8, "little") + b"{}",
    "pickle of a stranger": b"cos\nsystem\n(S'touch /tmp/hacked'\ntR.",
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_adapters(
    name: str, suffix: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / f"wrong.{suffix}"
    path.write_bytes(FILES[name])
    assert f"wrong.{suffix}" in refused("--adapter", str(path))


def test_a_picture_and_other_weights_are_no_adapters(
    refused: Callable[..., str], tiny_folder: Path, tmp_path: Path
) -> None:
    picture, other = tmp_path / "picture.safetensors", tmp_path / "other.safetensors"
    Image.new("RGB", (16, 16)).save(picture, format="PNG")
    save_file({"model.weight": torch.zeros(4, 4)}, other)
    for path in (picture, other, tiny_folder / "unet" / "diffusion_pytorch_model.safetensors"):
        assert path.name in refused("--adapter", str(path))


def test_an_adapter_for_another_base(
    refused: Callable[..., str], tiny_folder: Path, tmp_path: Path
) -> None:
    """Widths of SDXL's cross-attention on a base of another width."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=2048,
        norm_num_groups=4,
    )
    pipe = make_pipeline()
    path = tmp_path / "xl.safetensors"
    ip.Adapter.create("base", denoiser=unet, encoder=pipe.image_encoder).save(path)
    message = refused("--adapter", str(path))
    assert "2048" in message
    assert "32" in message


def test_adapters_and_bases_that_are_not_there(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "base, plus" in refused("--adapter", "pluss")
    assert "HF_HUB_OFFLINE" in refused("--adapter", "someone/adapters/plus.safetensors")
    assert "no-such-base" in refused("--base", "no-such-base")
    assert "HF_HUB_OFFLINE" in refused("--base", "someone/base")
    assert "model_index.json" in refused("--base", str(tmp_path))
    assert "the folder contains no weights" in refused("--adapter", str(tmp_path))


# ── encoders ────────────────────────────────────────────────────────────────────────────────────


def test_encoders_of_the_wrong_width_or_kind(
    refused: Callable[..., str], tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    other = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        image_size=16, patch_size=8, projection_dim=16,
    )  # fmt: skip
    CLIPVisionModelWithProjection(other).save_pretrained(tmp_path / "narrow")
    for adapter, wanted in (("plus", 32), ("base", 24)):
        message = refused("--adapter", adapter, "--encoder", str(tmp_path / "narrow"))
        assert "16 wide" in message
        assert str(wanted) in message
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("--encoder", str(tmp_path / "empty"))
    assert "no-such" in refused("--encoder", "no-such")
    shutil.copytree(tiny_folder / "text_encoder", tmp_path / "text")
    assert "text" in refused("--encoder", str(tmp_path / "text"))


# ── recipes and folders ─────────────────────────────────────────────────────────────────────────


def test_recipes_that_are_none(refused: Callable[..., str], tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    Image.new("RGB", (16, 16)).save(plain)
    assert "no imageprompt recipe" in refused("--recipe", str(plain), reference=None)
    assert "no such file" in refused("--recipe", str(tmp_path / "none.png"), reference=None)


def test_a_hostile_recipe(refused: Callable[..., str], tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    from imageprompt.loading.recipe import RECIPE_KEY

    made = ip.generate(reference=str(tmp_path / "good.png"), steps=1, progress=False)
    data = json.loads(made.recipe.to_json()) | {"steps": 10**9}
    info = PngInfo()
    info.add_itxt(RECIPE_KEY, json.dumps(data), zip=True)
    made.images[0].save(tmp_path / "hostile.png", pnginfo=info)
    message = refused("--recipe", str(tmp_path / "hostile.png"), reference=None)
    assert "steps: not a whole number from 1 to 1000" in message


def test_a_recipe_with_an_image_prompt_of_another_shape(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    from imageprompt.loading.recipe import write_picture

    made = ip.generate(reference=str(tmp_path / "good.png"), steps=1, progress=False)
    strange = ip.ImagePrompt(torch.zeros(1, 4, 7), torch.zeros(1, 4, 7))
    strange.save(tmp_path / "p.safetensors")
    tokens = (tmp_path / "p.safetensors").read_bytes()
    path = tmp_path / "strange.png"
    for data, words in ((tokens, "7 wide"), (b"\xff" * 40, "not a saved image prompt")):
        write_picture(path, made.images[0], made.recipe, [data])
        assert words in refused("--recipe", str(path), reference=None)


def test_an_output_that_is_no_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    good = str(tmp_path / "good.png")
    assert "is a file" in refused("--output", good)
    assert "is a file" in refused("--output", f"{good}/inside")


def test_a_full_disk_leaves_nothing_half_written(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    half = Image.Image.save

    def save(image: Image.Image, path: Path, **options: object) -> None:
        half(image, path, **options)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", save)
    assert "No space left on device" in refused()
