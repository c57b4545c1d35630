"""The tables of docs/migrate: their flags exist, their values parse, their blocks are the same."""

from __future__ import annotations

import re
import shlex

import pytest

import imageprompt as ip
from guides import DOCS
from imageprompt import cli
from imageprompt.control import Schedule
from imageprompt.control.controls import requested_scales
from imageprompt.control.presets import PRESETS
from imageprompt.control.scales import site_scales
from imageprompt.encoding.fusion import FUSIONS
from imageprompt.encoding.images.framing import Framing
from imageprompt.encoding.images.noise import Noise
from imageprompt.hosts import HOSTS

PAGES = ("comfyui", "diffusers", "invokeai", "tencent")
FAMILIES = {spec.family: spec for spec in HOSTS["unet"].families()}
# What the nodes of InvokeAI select: names of sites contain one of these
# (invokeai/app/invocations/ip_adapter.py).
INVOKEAI = {
    "style": (["up_blocks.1"], ["up_blocks.0.attentions.1"]),
    "composition": (["down_blocks.2", "mid_block"], ["down_blocks.2.attentions.1"]),
    "style_precise": (
        ["up_blocks.1", "down_blocks.2", "mid_block"],
        ["up_blocks.0.attentions.1", "down_blocks.2.attentions.1"],
    ),
    "style_strong": (
        ["up_blocks.0", "up_blocks.1", "up_blocks.2", "down_blocks.0", "down_blocks.1"],
        [f"up_blocks.{i}.attentions.{j}" for i in range(3) for j in range(3)]
        + [f"down_blocks.{i}.attentions.{j}" for i in range(2) for j in range(3)]
        + ["down_blocks.2.attentions.0", "down_blocks.2.attentions.2"],
    ),
}


def flags(page: str) -> list[tuple[str, str]]:
    """Every flag in a page's inline code that begins with one, with its value."""
    text = (DOCS / "migrate" / f"{page}.md").read_text("utf-8")
    found = []
    for code in re.findall(r"(?<!`)`(--[^`]+)`(?!`)", text):
        words = shlex.split(code)
        for index, word in enumerate(words):
            if word.startswith("--"):
                after = words[index + 1] if index + 1 < len(words) else ""
                found.append((word, "" if after.startswith("--") else after))
    return found


THEIRS = set(
    re.findall(r"^\| `(--\w+)", (DOCS / "migrate/tencent.md").read_text(), re.MULTILINE)
) | {
    "--data_root_path",
    "--weight_decay",
    "--logging_dir",
}


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist_and_values_parse(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = ""
    for words in (["generate"], ["train"], ["presets"], ["convert"]):
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        known += capsys.readouterr().out
    ours = [(flag, value) for flag, value in flags(page) if flag not in THEIRS]
    assert all(re.search(rf"{flag}\b", known) for flag, _ in ours), ours
    concrete = [(flag, value) for flag, value in ours if value and not value[0].isupper()]
    for flag, value in concrete:
        if flag == "--preset":
            assert value in PRESETS
        elif flag == "--framing":
            Framing.parse(value)
        elif flag == "--noise":
            Noise.parse(value)
        elif flag == "--schedule":
            Schedule.of(value)
        elif flag == "--fusion":
            assert value in FUSIONS
    assert page in ("diffusers", "tencent") or len(concrete) > 3


def test_ways_of_combining_are_ours() -> None:
    text = (DOCS / "migrate/comfyui.md").read_text("utf-8")
    (row,) = re.findall(r"^\| IPAdapter Combine Embeds \| (.*) \|$", text, re.MULTILINE)
    named = [name.removeprefix("--fusion ") for name in re.findall(r"`([^`]+)`", row)]
    assert named == ["concat", "add", "subtract", "average", "norm average", "max", "min"]
    assert set(named) <= set(FUSIONS)


def test_invokeais_methods_select_the_same_sites() -> None:
    text = (DOCS / "migrate/invokeai.md").read_text("utf-8")
    for method, theirs in INVOKEAI.items():
        (row,) = re.findall(rf"^\| `{method}` \| `(.*)` \| `(.*)` \|$", text, re.MULTILINE)
        for ours, family, parts in zip(row, ("sd15", "sdxl"), theirs, strict=True):
            sites = FAMILIES[family].sites
            flag, value = shlex.split(ours)
            if flag == "--preset":
                entries = requested_scales(ip.Controls(preset=value, scale=1.0), sites)
                chosen = {s.name for s, one in zip(sites, entries, strict=True) if one is not None}
            else:
                by_site = {name: float(n) for name, n in (e.split("=") for e in value.split(","))}
                numbers = site_scales(by_site, sites)
                chosen = {s.name for s, one in zip(sites, numbers, strict=True) if one}
            assert chosen == {s.name for s in sites if any(part in s.name for part in parts)}, (
                method,
                family,
            )


def test_keys_of_the_training_config_exist() -> None:
    text = (DOCS / "migrate/tencent.md").read_text("utf-8")
    table = text.split("| `tutorial_train*.py` |")[1].split("\n\n")[0]
    keys = {
        name
        for cell in re.findall(r"\| ([^|]*) \|$", table, re.MULTILINE)
        for name in re.findall(r"`([a-z_]+)`", cell)
    }
    fields = ip.TrainingConfig.__dataclass_fields__
    assert len(keys) > 10
    assert keys <= set(fields)


def test_every_node_of_comfyui_has_its_row() -> None:
    """Display names of the nodes of ComfyUI_IPAdapter_plus that do not have Batch in them."""
    nodes = (
        "IPAdapter", "IPAdapter Advanced", "IPAdapter FaceID", "IPAdapter FaceID Kolors",
        "IPAdapter Tiled", "IPAdapter Embeds", "IPAdapter Style & Composition SDXL",
        "IPAdapter Mad Scientist", "IPAdapter ClipVision Enhancer", "from Params",
        "IPAdapter Precise Style Transfer", "IPAdapter Precise Composition",
        "IPAdapter Unified Loader", "Unified Loader FaceID", "IPAdapter Model Loader",
        "IPAdapter InsightFace Loader", "Unified Loader Community", "IPAdapter Encoder",
        "IPAdapter Combine Embeds", "IPAdapter Noise", "Prep Image For ClipVision",
        "IPAdapter Save Embeds", "Load Embeds", "IPAdapter Weights", "Weights From Strategy",
        "Prompt Schedule", "Combine Weights", "IPAdapter Regional Conditioning", "Combine Params",
    )  # fmt: skip
    text = (DOCS / "migrate/comfyui.md").read_text("utf-8")
    table = text.split("| node |")[1].split("\n\n")[0]
    cells = " ".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE))
    assert [name for name in nodes if name not in cells] == []
