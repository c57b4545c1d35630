"""inspect and validate: what is said of whole, damaged and foreign files, and that it is true."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import bad_weights, source
from torch import Tensor

import imageprompt as ip
from forge import header, write
from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.variants import VARIANTS, site_kinds
from published import OTHERS
from trainers import KINDS, SAVERS, SITES, WITH_LORA, projector_state, standard, wrapper

KEYS = {"format", "host", "variants", "tokens", "parameters", "encoder", "lora_rank", "dtypes"}
KEYS |= {"metadata", "problems"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("command", ["inspect", "validate", "convert", "diff"])
def test_help_has_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  imageprompt {command}" in text
    assert ("exit codes: " in text) == (command != "convert")
    assert all(len(line) <= 100 for line in text.splitlines())


def remedies(report: ip.AdapterReport) -> dict[str, str]:
    return {advice["where"]: advice["line"] for advice in report.as_dict()["remedies"]}


# ── whole files ──────────────────────────────────────────────────────────────────────────────────

READS = {
    "base": ("image_embeds", 20, 4),
    "plus": ("hidden_states[-2]", 20, 6),
    "faceid": ("face_embeds", 512, 4),
    "portrait": ("face_embeds", 512, 16),
    "portrait-unnorm": ("raw face_embeds", 512, 16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_of_every_kind(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "inspect", source(tmp_path, kind), "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data.keys() >= KEYS
    assert kind in data["variants"]
    assert data["format"] == "standard"
    assert data["host"] == "unet"
    assert data["problems"] == []
    tensors = standard(wrapper("sd15", kind))
    assert data["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert data["tensors"] == len(tensors)
    assert data["lora_rank"] == (4 if kind in WITH_LORA else None)
    assert data["dtypes"]["image_proj"] == ["float32"]
    assert ("lora" in data["dtypes"]) == (kind in WITH_LORA)
    if kind in READS:
        feature, width, tokens = READS[kind]
        assert data["encoder"]["feature"] == feature
        assert data["encoder"]["width"] == width
        assert data["tokens"] == tokens


def test_the_name_of_a_file_tells_nothing(tmp_path: Path) -> None:
    path = source(tmp_path, "plus")
    other = tmp_path / "ip-adapter-faceid-plusv2_sdxl.pt"
    shutil.copy(path, other)
    a, b = ip.inspect(path).as_dict(), ip.inspect(other).as_dict()
    differ = {key for key in a if a[key] != b[key]}
    assert differ == {"path", "files", "remedies"}


def test_the_text_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = source(tmp_path, "faceid-plus")
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    for words in ("complete image-prompt adapter", "faceid-plus or faceid-plus-v2", "rank 4"):
        assert words in out
    assert "shortcut" in out  # what differs between the two
    names = [line.split()[0] for line in out.split("what to do\n")[1].splitlines()]
    assert names == ["base", "encoder", "imageprompt", "diffusers", "ComfyUI"]


def test_metadata_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    tensors = {name: t.contiguous() for name, t in standard(wrapper("sd15", "base")).items()}
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path, {"title": "\x1b[2Jgone\nformat   lies", "long": "x" * 1000})
    text = str(ip.inspect(path))
    assert "\\x1b[2Jgone\\nformat" in text
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) < 600
    assert ip.inspect(path).as_dict()["metadata"]["title"].startswith("\\x1b[2Jgone\\n")


# ── the remedy is true ───────────────────────────────────────────────────────────────────────────


def test_one_token_per_patch_is_counted_where_the_encoder_is_known(tmp_path: Path) -> None:
    """Full-face: its tokens are the hidden states of the encoder that its width tells."""
    assert ip.inspect(source(tmp_path, "full")).tokens is None
    wide = {"image_proj.proj.0.weight": torch.randn(1280, 1280)}
    wide |= {"image_proj.proj.0.bias": torch.ones(1280)}
    wide |= {"image_proj.proj.2.weight": torch.randn(24, 1280)}
    report = ip.inspect(source(tmp_path, "full", **wide))
    assert (report.encoder["name"], report.tokens) == ("CLIP ViT-H/14", 257)


@pytest.mark.sample(4)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_for_diffusers_and_here_work(kind: str, tmp_path: Path) -> None:
    from tiny_stack import make_pipeline

    advice = remedies(ip.inspect(source(tmp_path, kind)))
    pipe = make_pipeline()
    pipe.unet = SITES["sd15"].unet()
    exec(advice["diffusers"], {"pipe": pipe})
    assert pipe.unet.encoder_hid_proj is not None
    if "cross" not in site_kinds(VARIANTS[kind]):
        line = advice["imageprompt"]
        assert line.endswith(".attach(pipe)") or line.startswith("imageprompt generate ")
    else:
        path = re.search(r"--adapter (\S+)", advice["imageprompt"])
        line = f'adapter = imageprompt.Adapter.load("{path[1]}")' if path else advice["imageprompt"]
        known: dict[str, Any] = {"imageprompt": ip}
        exec(line.split("; ")[0], known)
        known["adapter"].attach(SITES["sd15"].unet())
        assert known["adapter"].spec.variant == kind


@pytest.mark.parametrize(
    ("variant", "option"), [("plus", {"depth": 2}), ("base", {"num_tokens": 8})]
)
def test_what_diffusers_cannot_load_is_said(
    variant: str, option: dict[str, int], tmp_path: Path
) -> None:
    from tiny_stack import make_pipeline

    pipe = make_pipeline()
    adapter = ip.Adapter.create(variant, denoiser=pipe.unet, encoder=pipe.image_encoder, **option)
    adapter.save(tmp_path / "adapter.safetensors")
    advice = remedies(ip.inspect(tmp_path / "adapter.safetensors"))
    assert "cannot load it" in advice["diffusers"]
    line = {"weight_name": "adapter.safetensors", "image_encoder_folder": None}
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        pipe.load_ip_adapter(str(tmp_path), subfolder="", **line)


def test_a_checkpoint_is_converted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SAVERS["training_folder"](wrapper("sd15", "base"), tmp_path / "run")
    advice = remedies(ip.inspect(folder))
    monkeypatch.chdir(tmp_path)
    assert cli.main(advice["first"].split()[1:]) == 0
    assert Path("adapter.safetensors").is_file()
    assert "adapter.safetensors" in advice["imageprompt"]
    assert 'weight_name="adapter.safetensors"' in advice["diffusers"]


# ── damaged files ────────────────────────────────────────────────────────────────────────────────


def test_what_is_missing_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone: dict[str, Any] = {f"ip_adapter.{i}.to_k_ip.weight": None for i in range(1, 17, 2)}
    path = source(tmp_path, **gone)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 1
    assert "with 1 problem\n" in out
    assert "8 of 36" in out
    assert "ip_adapter.1.to_k_ip.weight" in out
    assert "imageprompt generate" not in out
    assert "first  download it again" in out
    code, out, _ = run(capsys, "inspect", path, "--json")
    assert code == 1
    assert [problem["code"] for problem in json.loads(out)["problems"]] == ["missing"]


def test_a_deep_look_finds_what_shapes_hide(tmp_path: Path) -> None:
    zeros = {"ip_adapter.7.to_v_ip.weight": torch.zeros(32, 24)}
    path = source(tmp_path, **bad_weights(float("inf")), **zeros)
    assert ip.inspect(path).ok
    report = ip.inspect(path, deep=True)
    assert [problem.code for problem in report.problems] == ["not-finite", "constant"]
    assert "ip_adapter.5.to_v_ip.weight" in report.problems[0].message
    assert "ip_adapter.7.to_v_ip.weight" in report.problems[1].message
    assert report.hashes.keys() == {"sha256-ends", "sha256"}
    repairs = [advice.line.split(" ")[2] for advice in report.remedies if advice.where == "first"]
    assert repairs == ["earlier", "later"]  # two problems, two ways out


def test_a_bias_of_zeros_is_no_fault(tmp_path: Path) -> None:
    zeros = {"image_proj.proj.bias": torch.zeros(4 * 24), "image_proj.norm.weight": torch.ones(24)}
    assert ip.inspect(source(tmp_path, **zeros), deep=True).ok


def test_the_encoder_of_a_published_file_is_known_where_widths_are_not_enough(
    tmp_path: Path,
) -> None:
    """Kolors reads CLIP ViT-L/14 at 336 pixels, whose features are as wide as those at 224."""
    path = write(tmp_path / "k.safetensors", header(OTHERS["Kolors-IP-Adapter-Plus"].shapes()))
    report = ip.inspect(path)
    assert report.host == "kolors"
    assert report.encoder["name"] == "CLIP ViT-L/14 at 336 pixels"
    assert remedies(report)["imageprompt"].endswith("--encoder openai/clip-vit-large-patch14-336")


def test_files_that_are_no_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gan = {"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 4)}
    save_file(gan, tmp_path / "lora.safetensors")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>")
    for name, words in (("lora", "LoRA"), ("page", "web page"), ("none", "no such path")):
        for command in ("inspect", "convert"):
            target = [str(tmp_path / "out.safetensors")] * (command == "convert")
            path = tmp_path / f"{name}.safetensors"
            code, out, err = run(capsys, command, path, *target)
            assert (code, out) == (2, "")
            assert words in err
            assert len(err.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


# ── validate ─────────────────────────────────────────────────────────────────────────────────────


def codes(found: Any) -> list[str]:
    return [finding.code for finding in found.findings]


def test_validate_says_every_finding_on_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, report = source(tmp_path, **bad_weights(float("nan"))), tmp_path / "report.json"
    tensors = load_file(path)
    del tensors["image_proj.norm.bias"]
    save_file(tensors, path)
    code, out, _ = run(capsys, "validate", path, "--report", report)
    assert code == 1
    lines = out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["missing", "not-finite"]
    data = json.loads(report.read_text())
    assert [finding["code"] for finding in data["findings"]] == ["missing", "not-finite"]
    assert data["ok"] is False


def test_validate_of_a_whole_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "validate", source(tmp_path))
    assert code == 0
    assert "no problems found (complete, finite, not constant)" in out
    assert len(out.splitlines()) == 1


def test_validate_of_no_adapter_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.bin").write_text("<html><head>")
    code, out, err = run(capsys, "validate", tmp_path / "page.bin")
    assert (code, err) == (1, "")
    assert "no-adapter" in out
    assert "web page" in out


def test_validate_with_a_base(tmp_path: Path) -> None:
    made = wrapper("sd15", "base")
    path = source(tmp_path)
    SITES["sd15"].unet().save_pretrained(tmp_path / "base" / "unet")
    assert ip.validate(path, base=tmp_path / "base").ok
    assert ip.validate(path, base=tmp_path / "base" / "unet").ok
    (published,) = ip.validate(path, base="sdxl").findings
    assert published.code == "wrong-base"
    assert published.message == (
        "made for custom UNet (16 sites, text width 24), not for sdxl (70 sites, text width 2048)"
    )
    SITES["sdxl"].unet().save_config(tmp_path / "other")
    (found,) = ip.validate(path, base=tmp_path / "other").findings
    assert found.code == "wrong-base"
    assert found.message.endswith("not for custom UNet (70 sites, text width 16)")
    assert made  # the adapter was not trained from this base's weights, so nothing is "untrained"


def test_a_wrong_base_is_said_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = source(tmp_path), tmp_path / "out.safetensors"
    wrong = "made for custom UNet (16 sites, text width 24), not for sdxl"
    code, out, _ = run(capsys, "inspect", path, "--base", "sdxl")
    assert code == 1
    assert f"  wrong-base  {wrong}" in out
    assert "first  use it with the base that it was made for" in out
    code, out, _ = run(capsys, "validate", path, "--base", "sdxl")
    assert (code, out.startswith(f"{path}: wrong-base: {wrong}")) == (1, True)
    code, _, err = run(capsys, "convert", path, target, "--base", "sdxl")
    assert (code, wrong in err, target.exists()) == (2, True, False)


def test_the_bundled_stack_is_a_base_and_an_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "plus"):
        adapter = bundled.adapter(name)
        code, out, _ = run(capsys, "validate", adapter, "--base", "bundled", "--encoder", "bundled")
        assert (code, "fits the base, fits the encoder" in out) == (0, True)
        assert ip.inspect(adapter, base="bundled", deep=True).ok
        assert ip.diff(adapter, adapter, base="bundled").same
    found = ip.validate(source(tmp_path), base="bundled", encoder="bundled").findings
    assert [finding.code for finding in found] == ["wrong-base", "wrong-encoder"]


def test_validate_with_an_encoder(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    shape = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPVisionConfig(hidden_size=16, projection_dim=20, **shape).save_pretrained(tmp_path / "fits")
    CLIPVisionConfig(hidden_size=20, projection_dim=24, **shape).save_pretrained(tmp_path / "other")
    SiglipVisionConfig(hidden_size=20, **shape).save_pretrained(tmp_path / "siglip")
    base, plus = source(tmp_path), source(tmp_path, "plus")
    assert ip.validate(base, encoder=tmp_path / "fits").ok
    assert codes(ip.validate(base, encoder=tmp_path / "other")) == ["wrong-encoder"]
    assert codes(ip.validate(base, encoder=tmp_path / "siglip")) == ["wrong-encoder"]
    assert codes(ip.validate(plus, encoder=tmp_path / "fits")) == ["wrong-encoder"]
    assert ip.validate(plus, encoder=tmp_path / "other").ok
    face = source(tmp_path, "faceid")
    (found,) = ip.validate(face, encoder=tmp_path / "fits").findings
    assert "ArcFace" in found.message


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--base", None, "sd15"),
        ("--base", "[]", "not a JSON object"),
        ("--base", '{"_class_name": "StableAudioDiTModel"}', "StableAudioDiTModel"),
        ("--encoder", None, "config.json"),
        ("--encoder", '{"hidden_size": 4}', "does not describe an image encoder"),
    ],
)
def test_bases_and_encoders_that_are_none(
    option: str,
    content: str | None,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / "folder" / "config.json").write_text(content)
    code, out, err = run(capsys, "validate", source(tmp_path), option, tmp_path / "folder")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_report_needs_a_folder_before_the_work_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = tmp_path / "adapter.safetensors", tmp_path / "none" / "report.json"
    code, _, err = run(capsys, "convert", source(tmp_path), target, "--report", report)
    assert code == 2
    assert "no such folder" in err
    assert not target.exists()


def test_projectors_of_the_test_are_those_of_files() -> None:
    """Key counts of the published files, apart from the widths."""
    gen = torch.Generator().manual_seed(0)
    counts = {"faceid": 6, "faceid-plus": 56, "portrait": 6, "portrait-unnorm": 51, "full": 6}
    found: dict[str, dict[str, Tensor]] = {k: projector_state(k, 24, gen) for k in counts}
    assert {kind: len(state) for kind, state in found.items()} == counts
