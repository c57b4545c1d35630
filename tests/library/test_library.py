"""The style library: what is added is what encoding makes, opened by look-up, mixed, searched."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import imageprompt as ip
from imageprompt.adapter.compatibility import checked_encoder
from imageprompt.checkpoint.torch_io import tensor_of
from imageprompt.core.errors import EncoderError, NotFoundError, OptionError, PromptError
from imageprompt.core.fingerprint import versions
from imageprompt.library import Library, thumbnail
from imageprompt.library.encoder_setup import load_with_encoder
from imageprompt.library.load_style import PER_STYLE
from imageprompt.library.paths import default_folder
from imageprompt.library.style_file import features_of
from imageprompt.library.thumbnail import CELL, EMPTY, GAP, MARGIN, contact_sheet
from rigs import Rig, build
from tiny_stack import make_pipeline, make_tokenizer

COLOURS = ("red", "green", "blue", "gold")


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path) -> Any:
    """The tiny stack's Plus adapter with its encoder, without a base."""
    return load_with_encoder(base=tiny_folder).adapter


def test_models_are_loaded_once_for_the_library_and_for_generate(
    tiny_folder: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU in float32, which are the library's."""
    from imageprompt import loading
    from imageprompt.encoding.encoders.clip import ClipEncoder

    ip.release()
    files, encoders = [], []
    load, load_clip = loading.load_adapter_file, ClipEncoder.load
    monkeypatch.setattr(
        loading, "load_adapter_file", lambda *args: (files.append(args), load(*args))[1]
    )
    monkeypatch.setattr(
        ClipEncoder,
        "load",
        lambda *args, **more: (encoders.append(args), load_clip(*args, **more))[1],
    )
    picture = Image.new("RGB", (24, 24), "red")
    first, second = (load_with_encoder(base=tiny_folder).adapter for _ in range(2))
    assert first is not second
    assert first.module is second.module
    library.add("red", first, picture)
    options: dict[str, Any] = {"steps": 1, "device": "cpu", "progress": False, "base": tiny_folder}
    by_style = ip.generate(style="red", library=library.folder, **options)
    by_picture = ip.generate("", picture, **options)
    assert by_style.images[0].tobytes() == by_picture.images[0].tobytes()
    assert first.encoder is not None  # the run by a style needs none, and takes nobody's away
    assert (len(files), len(encoders)) == (1, 1)
    ip.release()
    load_with_encoder(base=tiny_folder)
    assert (len(files), len(encoders)) == (2, 2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dot on a colour each."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (48, 40), colour)
        ImageDraw.Draw(picture).ellipse((4 * index, 4, 20 + 4 * index, 20), fill="white")
        picture.save(folder / f"{colour}.png")
    return {colour: folder / f"{colour}.png" for colour in COLOURS}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def filled(library: Library, adapter: Any, pictures: dict[str, Path]) -> Library:
    """Three styles of one picture each."""
    for colour in ("red", "green", "blue"):
        library.add(colour, adapter, pictures[colour], tags=[f"{colour}ish", "plain"])
    return library


# ── added and opened ────────────────────────────────────────────────────────────────────────────


def test_a_style_is_what_encoding_makes(
    library: Library, adapter: Any, pictures: dict[str, Path]
) -> None:
    chosen = [pictures["red"], pictures["gold"]]
    how = {"weights": [1.0, 0.5], "framing": "pad"}
    style = library.add("two", adapter, chosen, tags=["warm"], made_with={"adapter": "plus"}, **how)
    wanted = adapter.encode(chosen, **how)
    opened = library.open("two", adapter)
    assert torch.equal(opened.tokens, wanted.tokens)
    assert torch.equal(opened.null_tokens, wanted.null_tokens)
    assert style.shape == wanted.tokens.shape[1:]
    assert style == library.show("two")
    assert style.tags == ("warm",)
    assert (style.variant, style.adapter.name) == ("plus", "plus")
    assert style.adapter.hash == adapter.fingerprint()
    assert style.encoder is not None
    assert style.encoder.hash == adapter.encoder.fingerprint
    assert [one.name for one in style.references] == ["red.png", "gold.png"]
    assert style.recipe == {"weights": "1, 0.5", "framing": "pad"}
    (features,) = style.features
    assert features.shape == tuple(wanted.features[0].shape)


def test_features_alone_make_a_style(library: Library, adapter: Any) -> None:
    features = torch.randn(2, 5, adapter.spec.feature_dim)
    null = torch.randn(1, 5, adapter.spec.feature_dim)
    style = library.add("made", adapter, features=features, null_features=null)
    wanted = adapter.encode(features=features, null_features=null)
    assert torch.equal(library.open("made", adapter).tokens, wanted.tokens)
    assert style.references == ()
    assert "thumbnail" not in style.tensors


def test_the_folder_can_be_copied(filled: Library, adapter: Any, tmp_path: Path) -> None:
    shutil.copytree(filled.folder, tmp_path / "copy")
    copy = Library(tmp_path / "copy")
    assert copy.styles() == filled.styles()
    assert torch.equal(copy.open("red", adapter).tokens, filled.open("red", adapter).tokens)


def test_half_precision_is_kept(library: Library, tiny_folder: Path) -> None:
    path = tiny_folder / "adapters" / "base.safetensors"
    adapter = ip.Adapter.load(path, dtype=torch.bfloat16)
    library.add("half", adapter, features=torch.randn(1, adapter.spec.feature_dim))
    assert library.open("half", adapter).tokens.dtype == torch.bfloat16


def test_faces_from_a_file_make_a_style(library: Library, tmp_path: Path) -> None:
    adapter = ip.Adapter.create("faceid", denoiser=make_pipeline().unet, encoder=None)
    faces = torch.nn.functional.normalize(torch.randn(2, 512), dim=-1)
    np.save(tmp_path / "me.npy", faces.numpy())
    style = library.add("me", adapter, embeddings=tmp_path / "me.npy", fusion="average")
    wanted = adapter.encode(embeddings=faces, fusion="average").tokens
    assert torch.equal(library.open("me", adapter).tokens, wanted)
    assert [one.name for one in style.references] == ["me.npy"]
    assert (style.encoder, style.recipe) == (None, {"fusion": "average"})


def test_batches_are_no_styles(library: Library, adapter: Any) -> None:
    features = torch.randn(1, 5, adapter.spec.feature_dim)
    with pytest.raises(PromptError, match=r"references for 2 prompts.*a style holds one"):
        library.add("x", adapter, features=[features, features])
    assert library.names() == []


# ── a look-up, not an encoding ──────────────────────────────────────────────────────────────────


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return build("sd15", "plus", tmp_path)


def stocked(rig: Rig, library: Library) -> Any:
    """The library with one style of the rig's adapter, and the same as a plain prompt."""
    features, null = rig.features(1)[0], rig.kind.null_features()
    library.add("style", rig.adapter, features=features, null_features=null)
    return rig.adapter.encode(features=features, null_features=null)


def shown(rig: Rig, library: Library, inputs: Any) -> tuple[Tensor, int]:
    """The denoiser's output with the style, and how many layers of the adapter ran for it."""
    calls = []
    layers = [m for m in rig.adapter.module.modules() if isinstance(m, torch.nn.Linear)]
    rig.adapter.attach(rig.unet)
    try:
        hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
        with rig.adapter.use(library.open("style", rig.adapter), guidance="none"):
            output = rig.host.read(rig.unet, inputs)
    finally:
        rig.adapter.detach()
    for hook in hooks:
        hook.remove()
    return output, len(calls)


def test_opening_is_a_look_up(rig: Rig, library: Library) -> None:
    plain, inputs = stocked(rig, library), rig.host.inputs(1)
    wanted, sites = rig.ours(inputs, plain, guidance="none"), len(rig.adapter.module.ip_adapter)
    first, made = shown(rig, library, inputs)
    again, made_again = shown(rig, Library(library.folder), inputs)
    assert torch.equal(first, wanted)
    assert torch.equal(again, wanted)
    # the null tokens' K', V' belong to the adapter, and are all that is left to make
    assert (made, made_again) == (4 * sites, 2 * sites)


def test_kept_for_other_weights_is_not_used(rig: Rig, library: Library) -> None:
    plain, inputs = stocked(rig, library), rig.host.inputs(1)
    before, _ = shown(rig, library, inputs)
    with torch.no_grad():
        for weight in rig.adapter.module.ip_adapter.parameters():
            weight.mul_(1.5)
    after, _ = shown(rig, library, inputs)
    assert not torch.equal(before, after)
    assert torch.equal(after, rig.ours(inputs, plain, guidance="none"))
    kept = library.folder / ".prepared"
    assert len(list(kept.iterdir())) == 2
    for _ in range(4):
        with torch.no_grad():
            next(rig.adapter.module.ip_adapter.parameters()).mul_(1.5)
        shown(rig, library, inputs)
    assert len(list(kept.iterdir())) == PER_STYLE


def spoil_nothing_in_it(path: Path) -> None:
    path.write_bytes(b"")


def spoil_other_tokens(path: Path) -> None:
    prompt = ip.ImagePrompt.load(path)
    changed = ip.ImagePrompt(prompt.tokens + 1, prompt.null_tokens, prompt.metadata)
    changed.precomputed_kv = prompt.precomputed_kv
    object.__setattr__(changed.precomputed_kv, "tokens", versions([changed.tokens]))
    changed.save(path)


def spoil_values(path: Path) -> None:
    prompt = ip.ImagePrompt.load(path)
    next(iter(prompt.precomputed_kv.key_values.values()))[0][0, 0, 0] = float("nan")
    prompt.save(path)


def spoil_other_weights(path: Path) -> None:
    prompt = ip.ImagePrompt.load(path)
    object.__setattr__(prompt.precomputed_kv, "made_by", "others")
    prompt.save(path)


@pytest.mark.parametrize(
    "spoil", [spoil_nothing_in_it, spoil_other_tokens, spoil_other_weights, spoil_values]
)
def test_spoilt_files_are_made_anew(
    spoil: Callable[[Path], None], rig: Rig, library: Library
) -> None:
    stocked(rig, library)
    inputs = rig.host.inputs(1)
    wanted, _ = shown(rig, library, inputs)
    (kept,) = (library.folder / ".prepared").iterdir()
    spoil(kept)
    output, made = shown(rig, library, inputs)
    assert torch.equal(output, wanted)
    assert made == 4 * len(rig.adapter.module.ip_adapter)
    assert shown(rig, library, inputs)[1] == made / 2  # and the new ones were kept


def test_a_library_that_cannot_be_written_is_still_read(rig: Rig, library: Library) -> None:
    plain, inputs = stocked(rig, library), rig.host.inputs(1)
    (library.folder / ".prepared").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be written to .*computed again at every use"):
        output, _ = shown(rig, library, inputs)
    assert torch.equal(output, rig.ours(inputs, plain, guidance="none"))


def test_removing_leaves_nothing(rig: Rig, library: Library) -> None:
    stocked(rig, library)
    shown(rig, library, rig.host.inputs(1))
    library.remove("style")
    left = [path.name for path in library.folder.rglob("*") if path.is_file()]
    assert left == [".lock"]
    with pytest.raises(NotFoundError, match="style 'style': not in"):
        library.remove("style")


# ── refused, with the reason ────────────────────────────────────────────────────────────────────


def test_another_adapter_is_refused(filled: Library, tiny_folder: Path) -> None:
    base = ip.Adapter.load(tiny_folder / "adapters" / "base.safetensors")
    with pytest.raises(PromptError, match=r"made with .* plus .*not with this base adapter"):
        filled.open("red", base)
    plus = ip.Adapter.load(tiny_folder / "adapters" / "plus.safetensors")
    filled.open("red", plus)
    with torch.no_grad():
        next(plus.parameters()).mul_(2)
    with pytest.raises(PromptError, match="not with this plus adapter"):
        filled.open("red", plus)


def test_another_encoder_is_refused(filled: Library, tiny_folder: Path) -> None:
    plus = ip.Adapter.load(tiny_folder / "adapters" / "plus.safetensors")
    plus.encoding.set_encoder(other_encoder(plus, tiny_folder))
    with pytest.raises(EncoderError, match=r"made with the encoder .*not with this one"):
        filled.open("red", plus)


def other_encoder(adapter: Any, folder: Path) -> Any:
    encoder = checked_encoder(adapter.spec, str(folder / "image_encoder"))
    with torch.no_grad():
        encoder.model.visual_projection.weight.mul_(-1.5)
    return encoder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../escape", "cannot contain /"),
        ("a\\b", "cannot contain"),
        ("C:", "cannot contain :"),
        ("", "the name is empty"),
        (".hidden", "cannot start with"),
        ("-option", "cannot start with"),
        ("end.", "or end with"),
        (" space", "cannot start or end with a space"),
        ("Con", "for a device"),
        ("com1.old", "for a device"),
        ("line\nbreak", "cannot be printed"),
        ("right\u202eleft", "cannot be printed"),
        ("\ud800", "cannot be printed"),
        ("n" * 101, "longer than 100"),
        ("\u00fc" * 101, "longer than 100"),
        (None, "not a text"),
    ],
)
def test_names_that_are_not_safe(name: Any, says: str, library: Library, adapter: Any) -> None:
    with pytest.raises(OptionError, match=says):
        library.add(name, adapter, features=torch.zeros(1, 5, adapter.spec.feature_dim))
    with pytest.raises(OptionError, match=says):
        library.show(name)
    assert not library.folder.exists()


def test_names_of_all_languages(library: Library, adapter: Any) -> None:
    features = torch.ones(1, 5, adapter.spec.feature_dim)
    for name in ("S\u00fc\u00df", "\u9752\u82b1", "two words", "v1.2_b-c"):
        library.add(name, adapter, features=features)
        assert library.show(name).name == name
    assert library.show("Su\u0308\u00df").name == "S\u00fc\u00df"  # decomposed: the same name
    with pytest.raises(OptionError, match="'S\u00fc\u00df' exists already, and some systems"):
        library.add("s\u00fcss", adapter, features=features)
    with pytest.raises(OptionError, match=r"exists already. Choose another name, or replace it"):
        library.add("two words", adapter, features=features)
    old = library.show("two words").hash
    new = library.add("two words", adapter, features=-features, replace=True)
    assert new.hash != old
    assert library.show("two words") == new
    with pytest.raises(NotFoundError, match="Did you mean 'two words'"):
        library.show("two wrods")


@pytest.mark.parametrize(
    "tags", ["text", ["a,b"], [""], [3], ["x" * 61], [str(i) for i in range(51)]]
)
def test_tags_that_make_no_sense(tags: Any, library: Library, adapter: Any) -> None:
    with pytest.raises(OptionError, match="tag"):
        library.add("x", adapter, features=torch.zeros(1, 5, 32), tags=tags)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEPROMPT_LIBRARY", str(tmp_path / "told"))
    assert Library().folder == tmp_path / "told"
    monkeypatch.delenv("IMAGEPROMPT_LIBRARY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_folder() == tmp_path / "data" / "imageprompt" / "library"
    assert Library().names() == []


# ── mixes ───────────────────────────────────────────────────────────────────────────────────────


def test_a_mix_is_the_mean_before_projection(filled: Library, adapter: Any) -> None:
    style = filled.mix({"red": 3, "blue": 1}, "mixed", adapter, tags=["both"])
    red, blue = (filled.show(name) for name in ("red", "blue"))
    mean = 0.75 * features_of(red) + 0.25 * features_of(blue)
    opened = filled.open("mixed", adapter)
    torch.testing.assert_close(opened.tokens, adapter.encode(features=mean).tokens)
    assert torch.equal(opened.null_tokens, filled.open("red", adapter).null_tokens)
    assert style.recipe["mix"] == {"red": 0.75, "blue": 0.25}
    assert style.recipe["of"] == "features"
    assert style.recipe["hashes"] == {"red": red.hash, "blue": blue.hash}
    assert [one.name for one in style.references] == ["red.png", "blue.png"]
    again = filled.mix({"mixed": 0.5, "green": 0.5}, "thrice", adapter)  # features are kept again
    assert again.recipe["of"] == "features"


def test_several_references_are_averaged_by_their_weights(
    filled: Library, adapter: Any, pictures: dict[str, Path]
) -> None:
    filled.add("two", adapter, [pictures["green"], pictures["gold"]], weights=[1.5, 0.5])
    filled.mix({"two": 1, "red": 1}, "mixed", adapter)
    first, second = features_of(filled.show("two"))
    mean = 0.5 * (0.75 * first + 0.25 * second) + 0.5 * features_of(filled.show("red"))
    wanted = adapter.encode(features=mean)
    opened = filled.open("mixed", adapter)
    torch.testing.assert_close(opened.tokens, wanted.tokens)
    torch.testing.assert_close(opened.null_tokens, wanted.null_tokens)


def test_without_an_adapter_tokens_are_mixed(
    filled: Library, adapter: Any, pictures: dict[str, Path]
) -> None:
    style = filled.mix({"red": 0.5, "blue": 0.5}, "mixed")
    assert style.recipe["of"] == "tokens"
    assert style.features == ()
    red, blue, mixed = (filled.open(name, adapter).tokens for name in ("red", "blue", "mixed"))
    torch.testing.assert_close(mixed, (red + blue) / 2)
    assert filled.mix({"mixed": 1, "red": 1}, "of a mix", adapter).recipe["of"] == "tokens"
    filled.add("two", adapter, [pictures["green"], pictures["gold"]])
    with pytest.raises(PromptError, match=r"of 4 and 8 tokens: .* no mean.*--adapter"):
        filled.mix({"red": 0.5, "two": 0.5}, "x")
    with pytest.raises(PromptError, match=r"have no mean. Add them again"):
        filled.mix({"mixed": 0.5, "two": 0.5}, "x", adapter)


def test_faces_are_mixed_part_by_part(library: Library) -> None:
    pipe = make_pipeline()
    adapter = ip.Adapter.create("faceid-plus-v2", denoiser=pipe.unet, encoder=pipe.image_encoder)
    null = torch.zeros(1, 512), torch.randn(1, 5, 32)
    for name in "ab":
        features = torch.randn(1, 512), torch.randn(1, 5, 32)
        library.add(name, adapter, features=features, null_features=null)
    style = library.mix({"a": 0.5, "b": 0.5}, "both", adapter)
    parts = [features_of(library.show(name)) for name in "ab"]
    mean = tuple((x + y) / 2 for x, y in zip(*parts, strict=True))
    wanted = adapter.encode(features=mean, null_features=null).tokens
    torch.testing.assert_close(library.open("both", adapter).tokens, wanted)
    assert style.recipe["of"] == "features"
    assert style.tensors["embedding"].shape == (1, 512)
    for name, strength in (("c", 2.0), ("d", 2.0)):
        features = torch.randn(1, 512), torch.randn(1, 5, 32)
        how = {"null_features": null, "face_strength": strength}
        library.add(name, adapter, features=features, **how)
    assert library.mix({"a": 1, "c": 1}, "unlike", adapter).recipe["of"] == "tokens"
    style = library.mix({"c": 1, "d": 1}, "alike", adapter)
    assert (style.recipe["of"], style.recipe["face_strength"]) == ("features", "2")
    mean = features_of(style)
    strong = adapter.encode(features=mean, null_features=null, face_strength=2.0)
    torch.testing.assert_close(library.open("alike", adapter).tokens, strong.tokens)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"red": 1}, "a mix of 1: needs at least two styles"),
        ({}, "a mix of 0"),
        ({"red": 1, "blue": 0}, "weight 0 of style 'blue'"),
        ({"red": 1, "blue": -1}, "weight -1 of style 'blue'"),
        ({"red": float("nan"), "blue": 1}, "weight nan of style 'red'"),
        ({"red": "much", "blue": 1}, "weight 'much'"),
        ({"red": 1, "grey": 1}, "style 'grey': not in"),
        ([("red", 1)], "needs at least two styles"),
    ],
)
def test_mixes_that_make_no_sense(weights: Any, says: str, filled: Library) -> None:
    with pytest.raises(ip.ImagePromptError, match=says):
        filled.mix(weights, "mixed")
    assert "mixed" not in filled.names()


def test_strangers_are_not_mixed(filled: Library, tiny_folder: Path, adapter: Any) -> None:
    base = load_with_encoder(adapter="base", base=tiny_folder).adapter
    filled.add("other", base, features=torch.randn(1, base.spec.feature_dim))
    with pytest.raises(PromptError, match="'red' and 'other': made with different adapt"):
        filled.mix({"red": 1, "other": 1}, "mixed", adapter)
    with pytest.raises(PromptError, match="not with this base adapter"):
        filled.mix({"red": 1, "blue": 1}, "mixed", base)


# ── search ──────────────────────────────────────────────────────────────────────────────────────


def test_search_by_picture(
    filled: Library, adapter: Any, pictures: dict[str, Path], tiny_folder: Path
) -> None:
    other = load_with_encoder(base=tiny_folder).adapter
    other.encoding.set_encoder(other_encoder(other, tiny_folder))
    filled.add("elsewhere", other, pictures["gold"])
    results = filled.search(pictures["green"], encoder=adapter.encoder)
    assert results.hits[0].style.name == "green"
    assert results.hits[0].score == pytest.approx(1)
    assert [one.score for one in results.hits] == sorted(
        (one.score for one in results.hits), reverse=True
    )
    assert {one.by for one in results.hits} == {"picture"}
    assert results.skipped == ("elsewhere",)
    assert adapter.encoder.fingerprint in results.used
    opened = Image.open(pictures["green"])
    assert filled.search(opened, encoder=adapter.encoder, limit=1).hits == results.hits[:1]
    with pytest.raises(EncoderError, match="needs the image encoder"):
        filled.search(str(pictures["green"]))
    with pytest.raises(ip.ImagePromptError, match=r"nowhere\.png.*no such file"):
        filled.search("nowhere.png", encoder=adapter.encoder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("blue", [("blue", "name")]),
        ("PLAIN", [("blue", "tag"), ("green", "tag"), ("red", "tag")]),
        ("plain redish", [("red", "tag"), ("blue", "tag"), ("green", "tag")]),
        ("red plain thing", [("red", "name"), ("blue", "tag"), ("green", "tag")]),
        ("grene", [("green", "name")]),
        ("ee", [("green", "name")]),
        ("purple", []),
        ("", []),
        ("long " * 2000, []),
    ],
)
def test_search_by_text(text: str, found: list[tuple[str, str]], filled: Library) -> None:
    results = filled.search(text)
    assert [(one.style.name, one.by) for one in results.hits] == found
    assert results.used == "names and tags"


def test_search_by_words_in_the_encoders_space(filled: Library, adapter: Any) -> None:
    tower = text_tower(width=24)
    results = filled.search("red", encoder=adapter.encoder, text_encoder=tower)
    assert [one.by for one in results.hits] == ["name", "words", "words"]
    with torch.no_grad():
        words = tower[0](tower[1]("red", return_tensors="pt").input_ids).text_embeds
    near = {one.style.name: one.score for one in results.hits[1:]}
    for name, score in near.items():
        embedding = tensor_of(filled.show(name).tensors["embedding"])
        assert score == pytest.approx(float(torch.cosine_similarity(words, embedding)), abs=1e-5)
    assert "words" in results.used
    with pytest.raises(EncoderError, match=r"32 wide.*share no space"):
        filled.search("red", encoder=adapter.encoder, text_encoder=text_tower(width=32))


def text_tower(width: int) -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = make_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval(), tokenizer


# ── several at once ─────────────────────────────────────────────────────────────────────────────

TAKE_IN = """
import sys
from imageprompt.core.errors import OptionError
from imageprompt.library import Library
library = Library(sys.argv[1])
for name in sys.argv[3:]:
    try:
        print(library.import_(sys.argv[2], name).name)
    except OptionError:
        print(name, "is taken")
assert "torch" not in sys.modules
"""


def test_processes_that_add_at_once(filled: Library, tmp_path: Path) -> None:
    path = filled.export("red", tmp_path / "red.safetensors")
    target, mine = tmp_path / "shared", [[f"{who}{i}" for i in range(8)] for who in "abc"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE_IN, str(target), str(path), *names, "same"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in mine
    ]
    said = [process.communicate(timeout=300)[0].split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(lines[8] for lines in said) == ["same", "same is taken", "same is taken"]
    library = Library(target)
    assert library.names() == sorted([*(name for names in mine for name in names), "same"])
    assert {style.hash for style in library.styles()} == {filled.show("red").hash}


def test_what_a_kill_leaves_is_swept(filled: Library, adapter: Any) -> None:
    kept = filled.folder / ".prepared"
    kept.mkdir()
    left = [folder / ".red.0a1b2c3d.tmp.safetensors" for folder in (filled.folder, kept)]
    others = [filled.folder / ".tmpAbC123", filled.folder / ".mine.safetensors"]
    for path in (*left, *others):
        path.write_bytes(b"half a style")
    assert len(filled.styles()) == 3
    filled.remove("green")
    assert [path.exists() for path in (*left, *others)] == [False, False, True, True]


# ── pictures of it ──────────────────────────────────────────────────────────────────────────────


def test_contact_sheet(filled: Library, adapter: Any) -> None:
    filled.add("none", adapter, features=torch.zeros(1, 5, adapter.spec.feature_dim))
    sheet = contact_sheet(filled.styles())
    step = CELL + GAP
    corners = [sheet.getpixel((MARGIN + step * i + 4, MARGIN + CELL // 2 + 40)) for i in range(3)]
    assert corners == [(0, 0, 255), (0, 128, 0), EMPTY]
    assert sheet.width == 2 * MARGIN + 3 * step - GAP


def test_a_mix_is_shown_by_its_shares(filled: Library) -> None:
    filled.mix({"red": 3, "blue": 1}, "mixed")
    small = thumbnail.read(filled.show("mixed"))
    assert small is not None
    assert [small.getpixel((x, 200)) for x in (4, 180, 200, 250)] == [
        (255, 0, 0),
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
    ]


def test_long_names_are_wrapped_on_the_sheet(filled: Library, adapter: Any) -> None:
    before = contact_sheet(filled.styles())
    name = "a name " + "that goes on and on " * 4 + "end"
    filled.add(name, adapter, features=torch.zeros(1, 5, adapter.spec.feature_dim), tags=["x"])
    sheet = contact_sheet(filled.styles())
    assert sheet.height > before.height
    top = MARGIN + CELL + 50  # below two lines, which is all the room there was for text
    third_line = sheet.crop((MARGIN, top, MARGIN + CELL, top + 15))
    assert len(third_line.getcolors() or ()) > 2


def test_objects_describe_themselves(filled: Library, adapter: Any) -> None:
    assert repr(filled) == f"Library({str(filled.folder)!r}, 3 styles)"
    style = filled.show("red")
    assert repr(style) == "Style('red', plus, 1 reference, tags redish, plain)"
    shown = Image.open(io.BytesIO(style._repr_png_() or b""))
    assert shown.tobytes() == thumbnail.read(style).tobytes()  # type: ignore[union-attr]
    sheet = Image.open(io.BytesIO(filled._repr_png_() or b""))
    assert sheet.tobytes() == contact_sheet(filled.styles()).tobytes()
    bare = filled.add("bare", adapter, features=torch.zeros(1, 5, adapter.spec.feature_dim))
    assert bare._repr_png_() is None
    assert repr(bare) == "Style('bare', plus, 0 references)"
    assert Library(filled.folder / "none")._repr_png_() is None
    (hit,) = filled.search("red").hits[:1]
    assert (hit.style.name, hit.by) == ("red", "name")
