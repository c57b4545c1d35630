"""Presets as tables of numbers, scales in every notation, and their exports."""

from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import preset_numbers
from formulas import by_formula, capture
from hosts_table import CASES
from ids import stable
from imageprompt.control import DEFAULT_SCALE, MAX_SCALE, Controls, Schedule, site_scales, sliders
from imageprompt.control.controls import compile_scales
from imageprompt.control.exports import comfyui_string, diffusers_scale
from imageprompt.control.presets import PRESETS, find_preset
from imageprompt.core.errors import ImagePromptError, OptionError, ScaleError
from imageprompt.core.spec import HostSpec, Site
from imageprompt.hosts.unet import HOST
from peer import diffusers_embeds, diffusers_load, site_ids
from rigs import Rig, build, difference

FAMILIES = {spec.family: spec for spec in HOST.families()}
NUMBERS = {"sd15": preset_numbers.SD15, "sdxl": preset_numbers.SDXL}
LIKE = {"sd2": "sd15", "kolors": "sdxl"}
EXTRA = {"composition": 0.6, "boost": 0.5}
ROLES = {
    "style": ({7: 0.8, 8: 0.8, 9: 0.8}, {6: 0.8}),
    "layout": ({4: 0.8, 5: 0.8, 6: 0.8}, {3: 0.8}),
    "style and layout": ({4: 0.6, 5: 0.6, 6: 0.6, 7: 0.8, 8: 0.8, 9: 0.8}, {3: 0.6, 6: 0.8}),
}
"""InstantStyle: SD1.5's up_blocks.1 and down_blocks.2 + mid_block, SDXL's two attentions."""
DICTS: list[Any] = [
    {"down": {"block_2": [0.0, 1.0]}},
    {"up": {"block_1": [0.2, 1.0, 0.4]}, "mid": 0.7, "down": 0.3},
    {"up": 0.5, "down": {"block_1": 0.9}, "mid": [1.2]},
]


def full(preset: str, **more: Any) -> Controls:
    """A preset with every weight that it reads."""
    extra = {name: value for name, value in EXTRA.items() if PRESETS[preset].reads == name}
    return Controls(**{"scale": 0.8, "preset": preset, **extra, **more})


def by_transformer(controls: Controls, sites: tuple[Site, ...]) -> dict[int, tuple[float, bool]]:
    """Transformer -> its scale, and whether it is on the negative rows; only those included."""
    made = compile_scales(controls, sites, 1)
    found: dict[int, tuple[float, bool]] = {}
    for site, value, included, negative in zip(
        sites, made.values[0], made.included, made.on_negative, strict=True
    ):
        assert site.transformer_index is not None
        if included:
            scale = (value, negative)
            assert found.setdefault(site.transformer_index, scale) == scale
    return found


def numbers(text: str) -> dict[int, tuple[float, bool]]:
    """`0-3:0.8 4:-0.125` -> {0: (0.8, False), ... 4: (0.125, True)}."""
    found = {}
    for part in text.split():
        where, value = part.split(":")
        first, _, last = where.partition("-")
        for t in range(int(first), int(last or first) + 1):
            found[t] = (float(value.lstrip("-")), value.startswith("-"))
    return found


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────


def test_every_preset_has_its_numbers() -> None:
    for known in NUMBERS.values():
        assert set(known) | set(ROLES) == set(PRESETS)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "kolors"])
@pytest.mark.parametrize("preset", preset_numbers.SD15)
def test_comfyui_to_the_last_digit(preset: str, family: str) -> None:
    found = by_transformer(full(preset), FAMILIES[family].sites)
    assert found == numbers(NUMBERS[LIKE.get(family, family)][preset])


@pytest.mark.parametrize("preset", ROLES)
def test_instantstyle(preset: str) -> None:
    for family, wanted in zip(("sd15", "sdxl"), ROLES[preset], strict=True):
        found = by_transformer(
            full(preset) if "and" in preset else Controls(scale=0.8, preset=preset),
            FAMILIES[family].sites,
        )
        assert found == {t: (value, False) for t, value in wanted.items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_in_any_spelling(preset: str) -> None:
    """Case, spaces, hyphens and underscores do not matter; the name that is kept is our own."""
    words = preset.replace("-", " ")
    for spelling in (words.title(), words.replace(" ", "-"), words.upper().replace(" ", "_")):
        assert find_preset(spelling) is PRESETS[preset]
        controls = Controls(preset=spelling)
        assert controls.preset == preset
        assert controls == Controls(preset=preset)
        assert controls.as_dict()["preset"] == preset


def test_one_default_scale() -> None:
    """In Controls, Adapter.use, sliders, Reference and so in generate."""
    import imageprompt as ip

    assert Controls().scale == ip.Reference(reference="a.png").scale == DEFAULT_SCALE == 0.8
    assert inspect.signature(ip.Adapter.use).parameters["scale"].default == DEFAULT_SCALE
    assert sliders() == Controls(preset="style and composition", composition=DEFAULT_SCALE)
    assert MAX_SCALE == 2


def test_composition_and_boost_are_the_scale_where_left_out() -> None:
    sites = FAMILIES["sdxl"].sites
    for preset, transformer in (("style and composition", 3), ("style transfer precise", 3)):
        controls = Controls(preset=preset, scale=0.7)
        assert by_transformer(controls, sites)[transformer][0] == 0.7
        assert not any(compile_scales(Controls(preset=preset, scale=0.0), sites, 1).values[0])


def test_sliders() -> None:
    found = by_transformer(sliders(style=1.5, content=0.25), FAMILIES["sdxl"].sites)
    assert found == {3: (0.25, False), 6: (1.5, False)}
    with pytest.raises(ScaleError, match=r"composition = 2\.5"):
        sliders(style=1.0, content=2.5)


def test_another_unet_goes_by_its_roles() -> None:
    """The tiny host: style is its first up block, layout its last down block and its middle."""
    sites = HOST.describe(CASES["tiny"].unet()).sites
    style = {site.name.split(".attentions")[0] for site in sites if site.role == "style"}
    assert style == {"up_blocks.0"}
    for preset, role in (("style transfer", "style"), ("composition", "layout")):
        values = compile_scales(Controls(preset=preset), sites, 1).values[0]
        assert values == tuple(DEFAULT_SCALE * (site.role == role) for site in sites)


# ── notations ───────────────────────────────────────────────────────────────────────────────────


def test_comfyui_layer_weights_are_a_scale() -> None:
    sites = FAMILIES["sdxl"].sites
    assert by_transformer(Controls(scale="3: 0.5,6:1.25"), sites) == {
        3: (0.5, False),
        6: (1.25, False),
    }
    assert Controls(scale={3: 0.5}) == Controls(scale={3: 0.5})
    text = json.loads(json.dumps({3: 0.5, 6: 1.0}))  # JSON has string keys
    assert site_scales(text, sites) == site_scales({3: 0.5, 6: 1.0}, sites)


def test_instantstyle_lists_are_a_scale() -> None:
    """`name in site`, as in their attention processors."""
    sites = FAMILIES["sdxl"].sites
    names = ["up_blocks.0.attentions.1", "down_blocks.2.attentions.1"]
    assert set(by_transformer(Controls(scale=names), sites)) == {3, 6}
    for everywhere in ("block", "blocks"):  # transformer_blocks is in every name
        assert set(by_transformer(Controls(scale=[everywhere]), sites)) == set(range(11))
    assert set(by_transformer(Controls(scale=["mid_block", "up_blocks.0"]), sites)) == {4, 5, 6, 7}


@pytest.mark.parametrize("host", ["sd15", "sdxl", "tiny"])
@pytest.mark.parametrize("scale", DICTS, ids=stable)
def test_diffusers_dictionaries_are_read_as_diffusers_does(scale: Any, host: str) -> None:
    from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales

    unet = CASES[host].unet()
    if host == "tiny":
        scale = {"down": {"block_1": [0.4]}, "mid": 0.5}
    expanded = _maybe_expand_lora_scales(unet, [copy.deepcopy(scale)], default_scale=0.0)[0]
    sites = HOST.describe(unet).sites
    found = [value or 0.0 for value in site_scales(scale, sites)]
    wanted = [next(v for k, v in expanded.items() if site.name.startswith(k)) for site in sites]
    assert found == wanted


@pytest.mark.parametrize(
    ("host", "controls"),
    [
        ("sd15", Controls(scale=DICTS[1])),
        ("sdxl", Controls(scale=DICTS[0])),
        ("sdxl", Controls(preset="strong style transfer", scale=0.7)),
        ("sd15", Controls(preset="style and composition", scale=0.9, composition=0.4)),
    ],
    ids=stable,
)
def test_equal_to_diffusers(host: str, controls: Controls, tmp_path: Path) -> None:
    """The same dictionary in both, or a preset here and its export there."""
    from diffusers.loaders import IPAdapterMixin

    rig = build(host, "plus", tmp_path)
    inputs = rig.host.inputs(2)
    unet = diffusers_load(copy.deepcopy(rig.unet), rig.state)
    pipe = type("Pipe", (), {"unet": unet, "unet_name": "unet"})()
    exported = diffusers_scale(controls, HOST.describe(rig.unet).sites)
    IPAdapterMixin.set_ip_adapter_scale(pipe, exported)
    embeds = diffusers_embeds(rig.features(1), rig.kind.null_features())
    added = {**inputs.get("added_cond_kwargs", {}), "image_embeds": [embeds]}
    theirs = rig.host.read(unet, {**inputs, "added_cond_kwargs": added})
    ours = rig.ours(inputs, rig.prompt(1), controls=controls)
    assert difference(ours, theirs) <= 1e-5
    assert difference(ours, rig.host.read(rig.unet, inputs)) > 1e-3


# ── exports ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("preset", PRESETS)
def test_exports_come_back_as_they_were(preset: str, family: str) -> None:
    sites = FAMILIES[family].sites
    controls = full(preset) if preset not in ROLES else Controls(preset=preset, scale=0.8)
    wanted = {t: value for t, (value, _) in by_transformer(controls, sites).items()}
    layers = comfyui_string(controls, sites)
    assert {t: v for t, (v, _) in by_transformer(Controls(scale=layers), sites).items()} == wanted
    if any(compile_scales(controls, sites, 1).on_negative):
        with pytest.raises(OptionError, match="negative rows"):
            diffusers_scale(controls, sites)
        return
    back = by_transformer(Controls(scale=diffusers_scale(controls, sites)), sites)
    assert {t: value for t, (value, _) in back.items() if value} == wanted


def test_exports_as_text() -> None:
    sites = FAMILIES["sdxl"].sites
    both = Controls(preset="style and composition", scale=1.0, composition=0.5)
    assert comfyui_string(both, sites) == "3:0.5,6:1.0"
    assert diffusers_scale(both, sites) == {
        "down": {"block_1": [0.0, 0.0], "block_2": [0.0, 0.5]},
        "mid": 0.0,
        "up": {"block_0": [0.0, 1.0, 0.0], "block_1": [0.0, 0.0, 0.0]},
    }
    uneven = Controls(scale={sites[0].name: 1.0, "down_blocks.1": 0.5})
    for export in (comfyui_string, diffusers_scale):
        with pytest.raises(OptionError, match="its sites differ"):
            export(uneven, sites)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`imageprompt presets NAME`: the same numbers, from the shell; without torch."""
    from imageprompt.cli import main

    assert main(["presets", "style and composition", "--composition", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comfyui"] == "3:0.5,6:0.8"
    assert found["diffusers"]["up"]["block_0"] == [0.0, 0.8, 0.0]
    assert [row["scale"] for row in found["transformers"]] == [0, 0, 0, 0.5, 0, 0, 0.8, 0, 0, 0, 0]
    assert main(["presets", "style transfer precise", "--base", "sd15", "--boost", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("style transfer precise on sd15\n")
    assert "4:0.125,5:0.5" in printed
    assert "cannot show a reference to the negative rows" in printed
    assert main(["presets", "--boost", "0.5"]) == 2
    assert "--boost without a preset" in capsys.readouterr().err
    assert main(["presets", "styl"]) == 2
    assert "no such preset" in capsys.readouterr().err


def test_controls_as_json() -> None:
    for controls in (
        Controls(),
        full("composition precise", schedule=Schedule.parse("0.1-0.8 ease-out"), lora=0.5),
        Controls(scale={"down": {"block_2": [0.0, 1.0]}}, scaling="K+V"),
    ):
        assert Controls.from_dict(json.loads(json.dumps(controls.as_dict()))) == controls
    with pytest.raises(OptionError, match="cannot be written"):
        Controls(schedule=Schedule(curve=math.cos)).as_dict()
    with pytest.raises(OptionError, match="an object with keys"):
        Controls.from_dict({"scales": 1.0})


# ── at the sites ────────────────────────────────────────────────────────────────────────────────


def check_sites(rig: Rig, **use: Any) -> None:
    """Compare every row of every site with the equations of `Controls.scaling`, in float64."""
    controls = Controls(**use)
    sites = HOST.describe(rig.unet).sites
    compiled = compile_scales(controls, sites, 1)
    layers = {i: name.removesuffix(".processor") for i, (name, _) in site_ids(rig.unet).items()}
    seen, handles = capture(rig.unet, list(layers.values()))
    features = rig.features(1)
    prompt = rig.adapter.encode(
        features=[f.double() for f in features], null_features=rig.kind.null_features().double()
    )
    try:
        rig.ours(rig.host.inputs(2, dtype=torch.float64), prompt, **use)
    finally:
        for handle in handles:
            handle.remove()
    negative, positive = prompt.null_tokens[0], prompt.tokens[0]
    for site, value, negated in zip(sites, compiled.values[0], compiled.on_negative, strict=True):
        x, text, found = seen[site.name]
        to_k = rig.state["ip_adapter"][f"{site.file_id}.to_k_ip.weight"].double()
        to_v = rig.state["ip_adapter"][f"{site.file_id}.to_v_ip.weight"].double()
        rows = [positive, None] if negated else [negative, positive]
        for i, tokens in enumerate(rows):
            images = []
            if value and tokens is not None:
                pair = (tokens @ to_k.T, tokens @ to_v.T)
                images = [scaled(*pair, value, controls.scaling)]
            layer = rig.unet.get_submodule(site.name)
            expected = by_formula(layer, x[i], text[i], images)
            assert (found[i] - expected).abs().max() < 1e-7, (site.name, i)


def scaled(
    k: torch.Tensor, v: torch.Tensor, w: float, scaling: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """K', V' and the factor of the attention result."""
    penalised = w * k.shape[-1] / 1280
    if scaling == "V only":
        return k, v, w
    if scaling == "K+V":
        return k * w, v * w, 1.0
    if scaling == "K+V w/ C penalty":
        return k * penalised, v * penalised, 1.0
    mean = v.mean(0, keepdim=True)
    return k * penalised, (v - mean) + mean * penalised, 1.0


@pytest.mark.parametrize("scaling", ["K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"])
def test_ways_of_scaling(scaling: str, tmp_path: Path) -> None:
    rig = build("tiny", "base", tmp_path, dtype=torch.float64)
    check_sites(rig, scale={"down_blocks": 0.5, "mid_block": 1.5}, scaling=scaling)


@pytest.mark.parametrize("preset", ["style transfer precise", "composition precise"])
def test_precise_presets_show_the_other_part_to_the_negative_rows(
    preset: str, tmp_path: Path
) -> None:
    check_sites(
        build("sd15", "base", tmp_path, dtype=torch.float64), preset=preset, scale=1.0, boost=0.5
    )


def test_without_guidance_negative_sites_have_no_effect(tmp_path: Path) -> None:
    """With one warning: there was no negative row to show the reference to."""
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(1)
    with pytest.warns(UserWarning, match="no call had any"):
        precise = rig.ours(inputs, rig.prompt(1), preset="style transfer precise")
    style = rig.ours(inputs, rig.prompt(1), preset="style transfer")
    assert torch.equal(precise, style)


def test_branches_in_calls_of_their_own(tmp_path: Path) -> None:
    """Guidance in two calls: each half as in one batch, without a warning."""
    rig = build("sd15", "base", tmp_path)
    inputs = rig.host.inputs(2)
    use = {"preset": "style transfer precise", "boost": 0.5}
    together = rig.ours(inputs, rig.prompt(1), **use)
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(rig.prompt(1), guidance=["positive"], **use) as handle:
        for row, branch in ((1, "positive"), (0, "negative")):
            handle.layout = (branch,)
            half = {name: value[[row]] for name, value in inputs.items() if name != "timestep"}
            alone = rig.host.read(rig.unet, {**half, "timestep": inputs["timestep"]})
            assert difference(alone, together[[row]]) <= 1e-5


def test_live_controls(tmp_path: Path) -> None:
    rig = build("sdxl", "base", tmp_path)
    inputs, prompt = rig.host.inputs(2), rig.prompt(1)
    base = rig.host.read(rig.unet, inputs)
    wanted = rig.ours(inputs, prompt, preset="style transfer", scale=0.5)
    scaled_k = rig.ours(inputs, prompt, scale=0.7, scaling="K+V")
    with_mean = rig.ours(inputs, prompt, scale=0.7, scaling="K+mean(V) w/ C penalty")
    precise = rig.ours(inputs, prompt, scale=0.7, preset="style transfer precise")
    rig.adapter.attach(rig.unet)
    with rig.adapter.use(prompt, preset="style transfer") as handle:
        handle.scale = 0.5
        assert torch.equal(rig.host.read(rig.unet, inputs), wanted)
        handle.scale = 0.0
        assert torch.equal(rig.host.read(rig.unet, inputs), base)
        with pytest.raises(ScaleError):
            handle.scale = {"mid_block": 1.0}  # the preset takes one number
        assert handle.scale == 0.0
        with pytest.raises(OptionError, match="takes Controls"):
            handle.controls = {"scale": 0.5}
        handle.controls = Controls(scale=0.3, scaling="K+V")
        rig.host.read(rig.unet, inputs)
        handle.scale = 0.7
        assert torch.equal(rig.host.read(rig.unet, inputs), scaled_k)
        handle.controls = Controls(scale=0.7, scaling="K+mean(V) w/ C penalty")
        assert torch.equal(rig.host.read(rig.unet, inputs), with_mean)
        handle.controls = Controls(preset="style transfer precise", scale=0.7)
        assert torch.equal(rig.host.read(rig.unet, inputs), precise)


# ── bad input ──────────────────────────────────────────────────────────────────────────────

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"preset": "style transfr"}, "Did you mean 'style transfer'"),
    ({"preset": "Style_Transfr"}, "Did you mean 'style transfer'"),
    ({"preset": 3}, "no such preset"),
    ({"preset": "linear", "scale": {"style": 1.0}}, "a number from 0 to 2"),
    ({"preset": "linear", "scale": math.nan}, "a number from 0"),
    ({"preset": "composition", "composition": 0.5}, "not used by 'composition'"),
    ({"composition": 0.5}, "no preset is given"),
    ({"preset": "style transfer precise", "boost": 2.5}, "from 0"),
    ({"scaling": "V"}, "Use one of: V only"),
    ({"scale": {}}, "names no site"),
    ({"scale": []}, "names of blocks"),
    ({"scale": [0.5, 1.0]}, "schedule="),
    ({"scale": "3=1"}, "For example: 3:1.0,6:0.5"),
    ({"scale": "3:x"}, "from 0 to 2"),
    ({"scale": "99:1"}, "no transformer of that number"),
    ({"scale": ["up_block.7"]}, "no site of this base"),
    ({"scale": {"down": {"block_9": 1.0}}}, "no site of this base"),
    ({"scale": {"down": {"block_2": [0.0, 1.0, 0.5]}}}, "no site of this base"),
    ({"scale": {"down": {"2": 1.0}}}, "block_0"),
    ({"scale": {"down": 1.0, "style": 1.0}}, "only down, mid and up"),
    ({"scale": {"up": [0.1, 0.2]}}, "a number from 0 to 2"),
    ({"scale": {("a",): 1.0}}, "must be a string or a number"),
    ({"controls": Controls(), "scale": 0.5}, "replace all other arguments"),
    ({"controls": {"scale": 0.5}}, "takes Controls"),
    ({"lora": -1}, "from 0"),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    made = build("sdxl", "base", tmp_path_factory.mktemp("rig"))
    made.adapter.attach(made.unet)
    return made


@pytest.mark.parametrize(("use", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_bad_input(use: dict[str, Any], says: str, rig: Rig) -> None:
    """One line, and nothing is in use after it."""
    inputs = rig.host.inputs(2)
    with pytest.raises(ImagePromptError) as caught, rig.adapter.use(rig.prompt(1), **use):
        pass
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(rig.host.read(rig.unet, inputs), rig.host.read(rig.unet, inputs))


def test_a_preset_without_sites_on_a_base() -> None:
    spec: HostSpec = FAMILIES["sdxl"]
    without = tuple(site for site in spec.sites if site.role != "style")
    with pytest.raises(OptionError, match="none of its sites"):
        compile_scales(Controls(preset="style"), without, 1)
