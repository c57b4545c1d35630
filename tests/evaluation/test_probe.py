"""`imageprompt probe`: its measures, shares and roles, and a run of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imageprompt as ip
from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import ImagePromptError
from imageprompt.demo import scenes
from imageprompt.evaluation.probing.measures import (
    MEASURES,
    PictureStatistics,
    picture_statistics,
    to_lab,
)
from imageprompt.evaluation.probing.run import group_paths, shorten_paths, site_paths
from imageprompt.evaluation.probing.shares import Bootstrap, interval, role
from imageprompt.hosts.unet import FAMILIES, HOST

RNG = np.random.default_rng(3)
SCENES = list(islice(scenes.stream("validation", seed=5), 24))


def statistics_of(scene: scenes.Scene) -> PictureStatistics:
    return picture_statistics(scenes.draw(scene))


def changed(names: list[str]) -> list[scenes.Scene]:
    return [scenes.change(scene, names, RNG) for scene in SCENES]


# ── measures ───────────────────────────────────────────────────────────────────────

MOVED = [
    replace(scene, x=other.x, y=other.y, radius=other.radius)
    for scene, other in zip(
        [scenes.change(scene, ["shape"], RNG) for scene in SCENES], SCENES[::-1], strict=True
    )
]
CHANGES = {
    "colour": changed(["colour", "background"]),
    "texture": changed(["texture"]),
    "layout": MOVED,
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_reacts_to_its_own_change_only(measure: str) -> None:
    """Mean distance to the same scenes with one thing changed."""
    distance = MEASURES[measure]
    found = {
        name: np.mean(
            [
                distance(statistics_of(a), statistics_of(b))
                for a, b in zip(SCENES, others, strict=True)
            ]
        )
        for name, others in CHANGES.items()
    }
    own = found.pop(measure)
    assert max(found.values()) < 0.5 * own
    assert distance(statistics_of(SCENES[0]), statistics_of(SCENES[0])) == pytest.approx(
        0, abs=1e-4
    )


def test_lab_of_known_colours() -> None:
    """White, black, and sRGB's red and grey, as published tables have them."""
    rgb = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [119, 119, 119]], np.uint8)
    wanted = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [50.03, 0, 0]]
    np.testing.assert_allclose(to_lab(rgb), wanted, atol=0.02)


def test_colour_distance_of_plain_pictures_is_that_of_their_colours() -> None:
    red, grey = (picture_statistics(Image.new("RGB", (9, 5), c)) for c in ((255, 0, 0), (119,) * 3))
    between = np.linalg.norm(np.array([53.24, 80.09, 67.20]) - [50.03, 0, 0])
    assert MEASURES["colour"](red, grey) == pytest.approx(between, abs=0.05)
    assert MEASURES["layout"](red, grey) == 0  # no edges
    assert MEASURES["texture"](red, grey) == 0


def test_pictures_of_other_sizes_are_compared() -> None:
    scene = SCENES[0]
    large = picture_statistics(scenes.draw(scene, 256), (64, 64))
    assert MEASURES["layout"](large, statistics_of(scene)) < 0.05
    assert MEASURES["colour"](large, statistics_of(scene)) < 2.3


# ── shares and roles ────────────────────────────────────────────────────────────────────────────


def test_shares_are_parts_of_what_all_sites_gain() -> None:
    none, every = np.full(40, 10.0), np.full(40, 2.0)
    found = Bootstrap(40).share(none, every, np.full(40, 6.0))
    assert found is not None
    assert interval(found) == interval(np.full(10, 0.5))
    assert "to" not in str(interval(found))  # one value is no interval
    noisy = none + RNG.normal(0, 1, 40)
    assert Bootstrap(40).share(noisy, noisy + RNG.normal(0, 1, 40), every) is None


@pytest.mark.parametrize(
    ("style", "layout", "expected"),
    [
        (0.8, 0.1, "style"),
        (0.1, 0.8, "layout"),
        (0.6, 0.6, "both"),
        (0.1, 0.15, "little"),
        (0.01, 0.0, "little"),
    ],
)
def test_roles(style: float, layout: float, expected: str) -> None:
    bootstrap = Bootstrap(50)
    noise = RNG.normal(0, 0.1, (2, 50))
    noise -= noise.mean(1, keepdims=True)
    assert role(bootstrap.means(style + noise[0]), bootstrap.means(layout + noise[1])) == expected


def test_site_paths_and_their_short_names() -> None:
    """SD1.5 has sixteen transformers with a site each, SDXL eleven with seventy sites."""
    for family, groups in (("sd15", 16), ("sdxl", 11)):
        spec = HOST.from_config(FAMILIES[family])
        assert spec is not None
        names = site_paths(spec.sites, each=False)
        assert len(names) == groups
        assert [name[0] for name in names] == sorted((n[0] for n in names), key="dmu".index)
        assert sorted(site_paths(spec.sites, each=True)) == sorted(site.name for site in spec.sites)
        assert shorten_paths([n for n in names if "up_blocks.1" in n], spec.sites) == [
            "up_blocks.1"
        ]
        assert shorten_paths(names[1:2], spec.sites) == names[1:2]
        assert shorten_paths(["mid_block.attentions.0"], spec.sites) == ["mid_block"]


def test_blocks_of_a_transformer_are_grouped() -> None:
    """Both layers of a block of SD3.5 are one part; FLUX's 57 blocks are twelve groups."""
    from imageprompt.hosts import flux, sd3

    config = {**sd3.PUBLISHED, "dual_attention_layers": (0, 1)}
    names = site_paths(tuple(sd3.HOST.sites(config)), each=False)
    assert names == [f"transformer_blocks.{i}" for i in range(config["num_layers"])]
    assert group_paths(names[:16]) == {name: [name] for name in names[:16]}
    sites = tuple(flux.HOST.sites(flux.PUBLISHED))
    groups = group_paths(site_paths(sites, each=False))
    assert list(groups)[:1] == ["transformer_blocks.0-4"]
    assert list(groups)[-1] == "single_transformer_blocks.35-37"
    assert len(groups) == 12
    paths = [path for group in groups.values() for path in group]
    assert [f"{path}.attn" for path in paths] == [site.name for site in sites]
    assert (
        shorten_paths(groups["transformer_blocks.0-4"], sites) == groups["transformer_blocks.0-4"]
    )


# ── a run ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The command on the bundled stack with as few pictures as possible."""
    folder = tmp_path_factory.mktemp("probe")
    options = ["--count", "4", "--steps", "4", "--output", str(folder)]
    assert cli.main(["probe", *options]) == 0
    return json.loads((folder / "probe.json").read_text()), folder


def test_it_finds_the_sites_of_the_bundled_base(found: tuple[dict[str, Any], Path]) -> None:
    rows = {row["name"]: row for row in found[0]["rows"]}
    carried = {name: row["carried"] for name, row in rows.items()}
    style, layout = carried["up_blocks.1.attentions.1"], carried["down_blocks.0.attentions.0"]
    assert style["colour"]["low"] > style["layout"]["high"]
    assert layout["layout"]["low"] > 0.2
    assert abs(carried["mid_block.attentions.0"]["colour"]["value"]) < 0.1
    assert rows["all sites"]["cosine"] > rows["no site"]["cosine"] + 0.2
    assert rows["all sites"]["matches"]["colour"] > rows["no site"]["matches"]["colour"]


def test_it_measures_the_blocks_of_a_transformer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundled SD3, with a random adapter and as few pictures as possible."""
    from diffusers import SD3Transformer2DModel

    stack = bundled.folder(bundled.SD3)
    transformer = SD3Transformer2DModel.from_pretrained(stack, subfolder="transformer")
    encoder = stack / "image_encoder"
    adapter = ip.Adapter.create("base", denoiser=transformer, encoder=encoder)
    adapter.save(path := tmp_path / "random.safetensors")
    options = ["--base", bundled.SD3, "--adapter", str(path), "--count", "2", "--steps", "1"]
    assert cli.main(["probe", *options, "--json", "--output", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    blocks = [f"transformer_blocks.{i}" for i in range(6)]
    assert [row["name"] for row in report["rows"][:7]] == ["no site", *blocks]
    sheet = tmp_path / "out" / "probe.png"
    assert sheet.is_file()


def test_the_files_it_writes(found: tuple[dict[str, Any], Path]) -> None:
    report, folder = found
    written = {path.name for path in folder.iterdir()}
    assert written == {"probe.png", "probe.json", *(f"{n}.json" for n in report["confirmed"])}
    for name in report["confirmed"]:
        assert json.loads((folder / f"{name}.json").read_text()) == report["suggested"][name]
    with Image.open(folder / "probe.png") as sheet:
        assert min(sheet.size) > 500


def test_a_tiny_base_with_random_weights(tiny_folder: Path) -> None:
    """Any base works: the result is complete and finite, whatever it is."""
    picture = scenes.draw(SCENES[0])
    logged: list[str] = []
    result = ip.probe(
        [picture],
        base=tiny_folder,
        seeds=3,
        steps=2,
        sites=True,
        log=logged.append,
        progress=False,
    )
    settings = 2 + len(result.sites)
    assert f"{settings} settings x 1 reference(s) x 3 seed(s) = {3 * settings} " in logged[0]
    assert [row.name for row in result.sites] == site_paths(_sites(tiny_folder), each=True)
    assert all(row.cosine is not None and np.isfinite(row.cosine) for row in result.rows)
    json.dumps(result.as_dict(), allow_nan=False)
    assert "role" in str(result)


def test_a_loaded_pipeline() -> None:
    """SDXL-shaped, with its own adapter; both are restored at the end."""
    from tiny_stack import make_xl_pipeline

    pipe = make_xl_pipeline()
    adapter = ip.Adapter.create("base", denoiser=pipe.unet, encoder=pipe.image_encoder)
    processors = dict(pipe.unet.attn_processors)
    result = ip.probe(
        [scenes.draw(scene) for scene in SCENES[:2]],
        base=pipe,
        adapter=adapter,
        encoder=pipe.image_encoder,
        prompt=["a star", "red"],
        steps=1,
        size=(32, 16),
        progress=False,
    )
    assert [row.name for row in result.sites][:2] == [
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
    ]
    assert result.all_sites.pictures[0].size == (32, 16)
    assert not adapter.attached
    assert processors == pipe.unet.attn_processors


def test_models_are_loaded_once_and_pictures_are_those_of_generate(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second probe loads nothing; what all sites generate is what `generate` does."""
    from imageprompt import loading

    loads: list[object] = []
    load = loading.load_base
    monkeypatch.setattr(
        loading, "load_base", lambda *args, **more: (loads.append(args), load(*args, **more))[1]
    )
    ip.release()
    picture = scenes.draw(SCENES[0])
    options: dict[str, Any] = {"base": tiny_folder, "steps": 2, "progress": False}
    results = [ip.probe([picture], prompt="a star", seed=3, **options) for _ in range(2)]
    made = ip.generate("a star", picture, scale=1.0, seed=300_000, **options)
    assert len(loads) == 1
    for result in results:
        assert result.all_sites.pictures[0].tobytes() == made.images[0].tobytes()
    ip.release()


def _sites(folder: Path) -> Any:
    config = json.loads((folder / "unet" / "config.json").read_text())
    spec = HOST.from_config(config)
    assert spec is not None
    return spec.sites


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"references": []}, "no references"),
        ({"references": "a.png"}, "not a list of pictures"),
        ({"scale": 0.0}, "carries nothing"),
        ({"scale": float("nan")}, "a number from 0"),
        ({"seeds": 0}, "not a whole number >= 1"),
        ({"batch_size": 0}, "batch size"),
        ({"guidance_scale": float("nan")}, "guidance"),
        ({"size": (63, 64)}, "multiples of 8"),
        ({"prompt": ["a", "b"]}, "neither one text for all"),
        ({"references": ["no.png"]}, "no.png"),
    ],
)
def test_wrong_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImagePromptError, match=reason):
        ip.probe(**{"references": [scenes.draw(SCENES[0])], "progress": False} | options)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--count", "0"], "a whole number from 1"),
        (["--count", "2", "--reference", "a.png"], "drawn references"),
        (["--base", "somewhere"], "suit bundled and bundled-sd3 only"),
    ],
)
def test_wrong_flags(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", *flags]) == 2
    assert said in capsys.readouterr().err


# ── roles in a base's config ────────────────────────────────────────────────────────────────────


def _config(roles: object) -> dict[str, Any]:
    config = json.loads((bundled.folder() / "unet" / "config.json").read_text())
    return config | {"_imageprompt_roles": roles}


def test_a_config_states_roles() -> None:
    spec = HOST.from_config(_config({"style": ["mid_block", "up_blocks.0.attentions.1"]}))
    assert spec is not None
    assert {site.name[:9] for site in spec.sites if site.role == "style"} == {
        "mid_block",
        "up_blocks",
    }
    assert sum(site.role == "other" for site in spec.sites) == 5


def test_the_bundled_base_states_what_was_measured() -> None:
    """Loaded through diffusers, which keeps the entry and ignores it."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(bundled.folder(), subfolder="unet")
    roles = {site.name.split(".attentions")[0]: site.role for site in HOST.describe(unet).sites}
    assert roles == {
        "down_blocks.0": "layout",
        "down_blocks.1": "other",
        "mid_block": "other",
        "up_blocks.0": "other",
        "up_blocks.1": "style",
    }


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("style", "must map style and layout"),
        ({"mood": ["up_blocks.1"]}, "must map style and layout"),
        ({"style": "up_blocks.1"}, "a list of sites"),
        ({"style": ["up_blocks.7"]}, "up_blocks.7"),
        ({"style": ["up_blocks.1"], "layout": ["up_blocks.1.attentions.0"]}, "two roles"),
    ],
)
def test_invalid_roles_in_a_config(roles: object, said: str) -> None:
    with pytest.raises(ImagePromptError, match=said):
        HOST.from_config(_config(roles))
