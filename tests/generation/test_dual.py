"""A pair of adapters: one file with both, and content= and style= of generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import guides
import imageprompt as ip
from imageprompt.adapter.pair import AdapterPair
from imageprompt.core import bundled, errors
from imageprompt.core.hub import part_of, split_part
from imageprompt.generation import generate, repeat
from imageprompt.generation.reference import Reference, is_picture
from imageprompt.generation.request import Request

QUICK: dict[str, Any] = {"steps": 2, "progress": False}
RED, BLUE = (Image.new("RGB", (20, 16), name) for name in ("red", "blue"))


@pytest.fixture(scope="module")
def pair_file(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose two adapters differ."""
    plus = tiny_folder / "adapters" / "plus.safetensors"
    pair = AdapterPair(ip.Adapter.load(plus), ip.Adapter.load(plus))
    with torch.no_grad():
        for weight in pair.style.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    path = tmp_path_factory.mktemp("pair") / "dual.safetensors"
    pair.save(path)
    return path


def bits(result: ip.GenerationResult) -> list[bytes]:
    return [image.tobytes() for image in result.images]


# ── the file ──────────────────────────────────────────────────────────────────────────────────────


def test_a_pair_is_saved_and_loaded_bit_for_bit(pair_file: Path, tmp_path: Path) -> None:
    pair = AdapterPair.load(pair_file)
    assert pair.module.state_dict().keys() == load_file(pair_file).keys()
    assert {adapter.spec.variant for adapter in pair.adapters} == {"plus"}
    pair.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == pair_file.read_bytes()


def test_each_half_becomes_a_standard_file(pair_file: Path, tmp_path: Path) -> None:
    for part in ("content", "style"):
        done = ip.convert(part_of(pair_file, part), tmp_path / f"{part}.safetensors")
        assert (done.layout, done.variants, done.left_out) == ("standard", ("plus",), 0)
    found = load_file(tmp_path / "style.safetensors")
    whole = load_file(pair_file)
    assert {f"style.{name}" for name in found} == {n for n in whole if n.startswith("style.")}
    assert all(torch.equal(found[name], whole[f"style.{name}"]) for name in found)
    joined = AdapterPair(
        *(ip.Adapter.load(tmp_path / f"{n}.safetensors") for n in ("content", "style"))
    )
    joined.save(tmp_path / "joined.safetensors")
    assert load_file(tmp_path / "joined.safetensors").keys() == whole.keys()


def test_inspect_and_validate_report_on_both(pair_file: Path, tmp_path: Path) -> None:
    report = ip.inspect(pair_file)
    assert report.ok
    assert report.as_dict()["pair"].keys() == {"content", "style"}
    assert str(report).count("complete image-prompt adapter") == 2
    assert ip.inspect(part_of(pair_file, "style")).ok
    assert ip.validate(pair_file).ok
    tensors = load_file(pair_file)
    name = next(name for name in tensors if name.startswith("style.") and "to_v_ip" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", {"pair": "content and style"})
    found = ip.validate(tmp_path / "nan.safetensors").findings
    assert [one.message.partition(":")[0] for one in found] == ["style"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{pair}", "holds a pair of adapters.*#content or .*#style"),
        ("{plus}#style", "holds no pair of adapters, so it has no style"),
        ("{pair}#colour", "no such path"),
    ],
)
def test_the_wrong_half_is_an_error(
    pair_file: Path, tiny_folder: Path, name: str, message: str
) -> None:
    plus = tiny_folder / "adapters" / "plus.safetensors"
    with pytest.raises(errors.ImagePromptError, match=message):
        ip.Adapter.load(name.format(pair=pair_file, plus=plus))


def test_names_of_halves() -> None:
    assert split_part("a/b.safetensors#style") == ("a/b.safetensors", "style")
    for name in ("a.safetensors", "#style", "a#b", "a#style/c"):
        assert split_part(name) == (name, "")


# ── generate ──────────────────────────────────────────────────────────────────────────────────────


def test_content_and_style_are_two_references(tiny_bundled: Path, pair_file: Path) -> None:
    together = generate(content=RED, style=BLUE, adapter=pair_file, scale=0.7, **QUICK)
    apart = generate(
        reference=RED,
        adapter=part_of(pair_file, "content"),
        scale=0.7,
        also=[Reference(reference=BLUE, adapter=part_of(pair_file, "style"), scale=0.7)],
        **QUICK,
    )
    assert bits(together) == bits(apart)
    swapped = generate(content=BLUE, style=RED, adapter=pair_file, scale=0.7, **QUICK)
    assert bits(together) != bits(swapped)
    names = [one.adapter.name for one in together.recipes[0].references]
    assert names == [part_of(pair_file, part) for part in ("content", "style")]


def test_each_has_its_own_scale_schedule_and_mask(tiny_bundled: Path, pair_file: Path) -> None:
    look = {"style": BLUE, "adapter": pair_file}

    def made(**style: Any) -> list[bytes]:
        also = [Reference(**look, **style)]
        return bits(generate(content=RED, adapter=pair_file, scale=0.5, also=also, **QUICK))

    both = made()
    alone = bits(generate(content=RED, adapter=pair_file, scale=0.5, **QUICK))
    assert made(scale=0.0) == alone != both
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    assert len({*both, *made(schedule="0-0.5"), *made(mask=left.numpy()), *alone}) == 4


def test_a_loaded_pair_and_a_repeat(tiny_bundled: Path, pair_file: Path, tmp_path: Path) -> None:
    made = generate(content=RED, style=BLUE, adapter=pair_file, **QUICK)
    loaded = generate(content=RED, style=BLUE, adapter=AdapterPair.load(pair_file), **QUICK)
    assert bits(loaded) == bits(made)
    picture = made.save(tmp_path)[0]
    assert bits(repeat(picture, progress=False)) == bits(made)
    assert bits(repeat(picture, scale=0.1, progress=False)) != bits(made)


def test_the_base_brings_its_own_pair(tiny_bundled: Path, pair_file: Path) -> None:
    own = tiny_bundled / "adapters" / "dual.safetensors"
    own.write_bytes(pair_file.read_bytes())
    try:
        made = generate(content=RED, style=BLUE, **QUICK)
        by_name = generate(reference=RED, adapter="dual#content", **QUICK)
    finally:
        own.unlink()
    assert [one.adapter.name for one in made.recipes[0].references] == [
        "dual#content",
        "dual#style",
    ]
    assert by_name.recipes[0].references[0].adapter.name == "dual#content"
    with pytest.raises(errors.NotFoundError, match="Adapters of this base: base, plus"):
        generate(content=RED, **QUICK)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("look.png", True), ("look.JPEG", True), ("./look", True), ("C:\\look", True),
        ("upload:ab", True), (b"bytes", True), (Path("look"), True), (["a", "b"], True),
        ("watercolour", False), ("v1.5", False), ("png", False), (None, False), (7, False),
    ],
)  # fmt: skip
def test_a_style_is_a_picture_or_a_name(style: object, expected: bool) -> None:
    assert is_picture(style) is expected


def test_a_style_of_the_library_beside_a_content_picture() -> None:
    first, second = Request.of(content="a.png", style="ink", scale=0.6).references
    assert (first.reference, first.adapter, first.style) == ("a.png", "dual#content", None)
    assert (second.style, second.adapter, second.scale) == ("ink", None, 0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": "a.png", "reference": "b.png"}, "--content and --reference: cannot be comb"),
        ({"style": "b.png", "image_prompt": "c.safetensors"}, "--style and --image-prompt"),
        ({"content": "a.png", "adapter": "dual#style"}, "--content with 'dual#style'.*single one"),
        ({"content": "a.png", "scale": 3}, "scale"),
    ],
)
def test_bad_pairs_are_refused_before_loading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ImagePromptError, match=message):
        Request.of(**options).check()


def test_a_single_adapter_is_no_pair(tiny_folder: Path) -> None:
    single = ip.Adapter.load(tiny_folder / "adapters" / "plus.safetensors")
    with pytest.raises(errors.OptionError, match="this is a single one"):
        Request.of(content=RED, adapter=single)


def test_the_command_line(
    tiny_bundled: Path, pair_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imageprompt.cli import main

    for name, picture in (("a", RED), ("b", BLUE)):
        picture.save(tmp_path / f"{name}.png")
    flags = ["--content", str(tmp_path / "a.png"), "--style", str(tmp_path / "b.png")]
    flags += ["--adapter", str(pair_file), "--steps", "2", "--output", str(tmp_path), "--json"]
    assert main(["generate", *flags]) == 0
    recipe = json.loads(capsys.readouterr().out)["pictures"][0]["recipe"]
    assert [one["adapter"]["name"][-8:] for one in recipe["references"]] == ["#content", "rs#style"]


def test_the_guide_runs(
    tiny_bundled: Path, pair_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command and snippet of docs/dual.md, on the tiny stack with a pair."""
    for name, picture in (("a", RED), ("b", BLUE)):
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundled, "STEPS", 2)
    own = tiny_bundled / "adapters" / "dual.safetensors"
    own.write_bytes(pair_file.read_bytes())
    try:
        for command in guides.commands(guides.DOCS / "dual.md"):
            assert guides.run(command) == 0, command
        (tmp_path / "scenes" / "train").mkdir(parents=True)
        full = "a dotted red star on a plain blue background"
        (tmp_path / "scenes" / "train" / "0.txt").write_text(full)
        names: dict[str, Any] = {}
        for snippet in guides.blocks(guides.DOCS / "dual.md", "python"):
            exec(snippet, names)
    finally:
        own.unlink()
    assert len(names["apart"].images) == 1
    assert {"content.safetensors", "style.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert "pairs: self-made" in (tmp_path / "config.yaml").read_text()
    split = [
        (tmp_path / "scenes" / "train" / f"0.{side}_caption.txt").read_text()
        for side in ("content", "style")
    ]
    assert split == ["a star", "a dotted red shape on a plain blue background"]
