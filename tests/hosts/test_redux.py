"""FLUX Redux: tokens after those of the text, and a scale of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import imageprompt as ip
from guides import DOCS, commands, run
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.variants import VARIANTS
from tiny_flux import FEATURES, NoEncoder, make, noise, pipeline, siglip
from transformers_table import CASES, SIDE, TEXT

CASE = CASES["flux"]
REFERENCE = DOCS / "reference.png"


def redux() -> dict[str, Tensor]:
    """Large weights, so that the effect is large."""
    return {
        "redux_up.weight": noise(3 * TEXT, FEATURES, seed=1),
        "redux_up.bias": noise(3 * TEXT, seed=2),
        "redux_down.weight": noise(TEXT, 3 * TEXT, seed=3) * 4,
        "redux_down.bias": noise(TEXT, seed=4),
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("redux") / "redux.safetensors"
    save_file(redux(), path)
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return CASE.build()


@pytest.fixture
def adapter(file: Path, model: Any) -> Any:
    loaded = ip.Adapter.load(file).attach(model)
    yield loaded
    loaded.detach()


def prompt_of(adapter: ip.Adapter, *seeds: int, patches: int = 6) -> ip.ImagePrompt:
    """A prompt for each seed."""
    return adapter.encode(features=[noise(1, patches, FEATURES, seed=s) * 4 for s in seeds])


def longer(inputs: dict[str, Any], *tokens: Tensor) -> dict[str, Any]:
    """The call of a base whose text is followed by these tokens."""
    text = torch.cat((inputs["encoder_hidden_states"], *tokens), dim=1)
    return {**inputs, "encoder_hidden_states": text, "txt_ids": torch.zeros(text.shape[1], 3)}


def read_weighted(model: Any, inputs: dict[str, Any], weights: Tensor) -> Tensor:
    """The base's prediction if row i attends to row j weights[i, j] times; written down plainly."""
    from diffusers.models.transformers import transformer_flux

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
        counted = torch.exp(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5) * weights
        out = (counted / counted.sum(-1, keepdim=True)) @ v
        return out.transpose(1, 2).to(query.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_flux, "dispatch_attention_fn", attention)
        return CASE.read(model, inputs)


# ── one call ────────────────────────────────────────────────────────────────────────────────────


def test_scale_1_is_a_longer_text_and_scale_0_the_base(model: Any, adapter: ip.Adapter) -> None:
    """Bit for bit, a prompt for each row; nothing of the adapter is left in the base."""
    inputs = CASE.inputs(2)
    prompts = prompt_of(adapter, 7, 8)
    weights = redux()
    up = noise(1, 6, FEATURES, seed=7) * 4 @ weights["redux_up.weight"].T + weights["redux_up.bias"]
    own = up * up.sigmoid() @ weights["redux_down.weight"].T + weights["redux_down.bias"]
    assert torch.allclose(prompts.tokens[:1], own, atol=1e-5)
    plain = CASE.read(model, inputs)
    expected = CASE.read(model, longer(inputs, prompts.tokens))
    with adapter.use(prompts, scale=1.0) as handle:
        assert torch.equal(CASE.read(model, inputs), expected)
        named = ("hidden_states", "encoder_hidden_states")
        first = [inputs[name] for name in named]
        others = {name: x for name, x in inputs.items() if name not in named}
        with torch.no_grad():
            assert torch.equal(model(*first, **others, return_dict=False)[0], expected)
        handle.scale = 0.0
        assert torch.equal(CASE.read(model, inputs), plain)
    assert (expected - plain).abs().max() > 0.02
    assert model.state_dict().keys() == CASE.build().state_dict().keys()
    adapter.detach()
    assert torch.equal(CASE.read(model, inputs), plain)


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_the_scale_is_how_often_other_rows_count_a_token(
    scale: float, model: Any, adapter: ip.Adapter
) -> None:
    """Two references in use at once, each with its own: to one another they are text."""
    inputs, text = CASE.inputs(1), 5
    first, second = prompt_of(adapter, 7), prompt_of(adapter, 8, patches=4)
    weights = torch.ones(text + 10 + SIDE**2, text + 10 + SIDE**2).double()
    weights[:, text : text + 6] = scale
    weights[:, text + 6 : text + 10] = 0.5
    weights[text : text + 6, text : text + 6] = 1
    weights[text + 6 : text + 10, text + 6 : text + 10] = 1
    expected = read_weighted(model, longer(inputs, first.tokens, second.tokens), weights)
    with adapter.use(first, scale=scale), adapter.use(second, scale=0.5):
        found = CASE.read(model, inputs)
    assert (found - expected).abs().max() < 1e-5
    assert (found - CASE.read(model, inputs)).abs().max() > 0.02


def test_a_small_scale_changes_little_where_small_tokens_change_much(
    model: Any, adapter: ip.Adapter
) -> None:
    """ComfyUI and diffusers multiply the tokens: here that is the scaling "K+V"."""
    inputs, prompt = CASE.inputs(1), prompt_of(adapter, 7)
    plain = CASE.read(model, inputs)
    with adapter.use(prompt, scale=1e-4):
        assert (CASE.read(model, inputs) - plain).abs().max() < 1e-3
    with adapter.use(prompt, scale=1e-4, scaling="K+V"):
        found = CASE.read(model, inputs)
    assert torch.equal(found, CASE.read(model, longer(inputs, prompt.tokens * 1e-4)))
    assert (found - plain).abs().max() > 0.01


def test_a_mask_weights_the_rows_of_the_picture(model: Any, adapter: ip.Adapter) -> None:
    """The rows of the text take its mean, and so do those of a picture to edit (Kontext)."""
    inputs, prompt, text = CASE.inputs(1), prompt_of(adapter, 7), 5
    rows = SIDE**2
    edited = noise(1, rows, 4, seed=3)
    inputs["hidden_states"] = torch.cat((inputs["hidden_states"], edited), dim=1)
    inputs["img_ids"] = torch.cat((inputs["img_ids"], inputs["img_ids"] + torch.eye(3)[0]))
    mask = np.zeros((SIDE, SIDE))
    mask[: SIDE // 2] = 1
    weights = torch.ones(text + 6 + 2 * rows, text + 6 + 2 * rows).double()
    weights[:, text : text + 6] = 0.4
    weights[text : text + 6, text : text + 6] = 1
    weights[text + 6 : text + 6 + rows, text : text + 6] = 0.8
    weights[text + 6 + rows // 2 : text + 6 + rows, text : text + 6] = 0
    expected = read_weighted(model, longer(inputs, prompt.tokens), weights)
    with adapter.use(prompt, scale=0.8, mask=mask):
        found = CASE.read(model, inputs)
    assert (found - expected).abs().max() < 1e-5


def test_both_sides_of_guidance_in_one_batch(model: Any, adapter: ip.Adapter) -> None:
    """The negative rows read the text alone, or a negative picture at a scale of its own."""
    inputs, prompt = CASE.inputs(2), prompt_of(adapter, 7)
    sides = [{n: x[i : i + 1] if len(x) == 2 else x for n, x in inputs.items()} for i in (0, 1)]
    with adapter.use(prompt, scale=0.7, guidance="negative-positive"):
        both = CASE.read(model, inputs)
    with adapter.use(prompt, scale=0.7, guidance="none"):
        positive = CASE.read(model, sides[1])
    assert torch.allclose(both[:1], CASE.read(model, sides[0]), atol=1e-6)
    assert torch.allclose(both[1:], positive, atol=1e-6)
    pictured = ip.ImagePrompt(prompt.tokens, prompt_of(adapter, 9).tokens, prompt.metadata)
    with adapter.use(pictured, scale=0.7, negative_scale=0.3, guidance="negative-positive"):
        both = CASE.read(model, inputs)
    with adapter.use(prompt_of(adapter, 9), scale=0.3):
        negative = CASE.read(model, sides[0])
    assert torch.allclose(both, torch.cat((negative, positive)), atol=1e-6)


def test_beside_an_adapter_of_xlabs(model: Any, adapter: ip.Adapter) -> None:
    """Both act, as on a base whose text is longer; each is taken away alone."""
    inputs, prompt = CASE.inputs(1), prompt_of(adapter, 7)
    other = ip.Adapter.create("base", denoiser=model, encoder=NoEncoder(), num_tokens=3)
    for weight in other.parameters():
        weight.data = noise(*weight.shape, seed=weight.numel())
    other.attach(model)
    second = other.encode(features=noise(1, FEATURES), null_features=torch.zeros(1, FEATURES))
    with other.use(second, scale=0.7):
        expected = CASE.read(model, longer(inputs, prompt.tokens))
        with adapter.use(prompt, scale=1.0):
            found = CASE.read(model, inputs)
    other.detach()
    assert torch.equal(found, expected)
    with adapter.use(prompt, scale=1.0):
        alone = CASE.read(model, inputs)
    assert torch.equal(alone, CASE.read(model, longer(inputs, prompt.tokens)))
    assert (alone - found).abs().max() > 0.01


@pytest.mark.slow
def test_graphs_without_breaks(file: Path) -> None:
    """One with a bias and one without; any scale, mask and prompt runs in them."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = CASE.small().build()
    adapter = ip.Adapter.load(file).attach(model)
    inputs, prompt = CASE.inputs(1), prompt_of(adapter, 7)
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    mask = np.ones((SIDE, SIDE))
    mask[0] = 0
    counts = []
    for options in ({"scale": 1.0}, {"scale": 0.5}, {"scale": 0.3}, {"scale": 1.0, "mask": mask}):
        with adapter.use(prompt, guidance="none", **options):
            found = CASE.read(compiled, inputs)
            assert torch.allclose(found, CASE.read(model, inputs), atol=1e-5)
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2]
    torch._dynamo.reset()


# ── what has no meaning ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "style"}, "preset 'style'.*every layer reads.*Give one number"),
        ({"scale": {"transformer_blocks.0": 1.0}}, "scale = .*every layer reads"),
        ({"scaling": "K+mean(V) w/ C penalty"}, "scaling .*no K' and V' of their own"),
        ({"negative_scale": 0.5}, "negative_scale with a redux adapter"),
        ({"lora": 0.5}, "has no LoRA"),
    ],
)
def test_controls_without_meaning(options: dict[str, Any], words: str, adapter: ip.Adapter) -> None:
    with (
        pytest.raises(ip.ImagePromptError, match=words) as caught,
        adapter.use(prompt_of(adapter, 7), **options),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_calls_without_meaning(model: Any, adapter: ip.Adapter) -> None:
    no_base: Any = None
    prompt, features = prompt_of(adapter, 7), noise(2, 6, FEATURES)
    mask = {"joint_attention_kwargs": {"attention_mask": torch.zeros(1, 1, 21, 21)}}
    with (
        adapter.use(prompt),
        pytest.raises(ip.ImagePromptError, match="makes the text longer than that mask"),
    ):
        CASE.read(model, {**CASE.inputs(1), **mask})
    with pytest.raises(ip.ImagePromptError, match="weights of references for a redux adapter"):
        adapter.encode(features=features, weights=[1, 0.5])
    with pytest.raises(ip.ImagePromptError, match="K', V' of a redux adapter"):
        adapter.precompute_kv(prompt)
    with pytest.raises(ip.ImagePromptError, match="training of a redux adapter"):
        FeatureExtractors(no_base, VARIANTS["redux"])
    with pytest.raises(ip.ImagePromptError, match="new redux adapter on a flux base"):
        ip.Adapter.create("redux", denoiser=model, encoder=NoEncoder())


@pytest.mark.parametrize("host", ["chroma", "sd3", "z-image"])
def test_other_bases_say_so_and_stay_as_they_are(host: str, file: Path) -> None:
    case = CASES[host]
    other, adapter = case.build(), ip.Adapter.load(file)
    plain = case.read(other, case.inputs(1))
    with pytest.raises(ip.ImagePromptError, match=f"redux adapter on a {host} base.*made for flux"):
        adapter.attach(other)
    assert not adapter.attached
    assert torch.equal(case.read(other, case.inputs(1)), plain)


def test_a_text_of_another_width(model: Any, tmp_path: Path) -> None:
    weights = redux()
    save_file(
        {**weights, "redux_down.weight": noise(24, 3 * TEXT), "redux_down.bias": noise(24)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ip.ImagePromptError, match="tokens are 24 wide, the base's text is 32"):
        ip.Adapter.load(tmp_path / "a.safetensors").attach(model)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_its_file_through_the_commands(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ip.inspect(file)
    assert (report.format, report.variants, report.host) == ("style-model", ("redux",), "flux")
    assert report.ok
    assert "tokens after those of the text, text width 32" in str(report)
    assert "Load Style Model" in str(report)
    standard, back = tmp_path / "standard.safetensors", tmp_path / "back.safetensors"
    ip.convert(file, standard)
    assert {name.partition(".")[0] for name in load_file(standard)} == {"image_proj"}
    ip.convert(standard, back, to="style-model")
    first, last = load_file(file), load_file(back)
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert ip.diff(file, standard).same
    adapter = ip.Adapter.load(back)
    adapter.save(tmp_path / "saved.safetensors")
    assert ip.diff(file, tmp_path / "saved.safetensors").same
    save_file({n: x for n, x in first.items() if n != "redux_up.bias"}, back)
    assert [problem.code for problem in ip.inspect(back).problems] == ["missing"]
    with pytest.raises(ip.ImagePromptError, match=r"redux_up\.bias"):
        ip.Adapter.load(back)
    assert run(["convert", str(file), str(tmp_path / "x.safetensors"), "--to", "xlabs"]) == 2
    assert "this adapter has no sites" in " ".join(capsys.readouterr().err.split())


def test_validated_for_a_base(file: Path, tmp_path: Path) -> None:
    assert ip.validate(file).ok
    CASE.build().save_pretrained(tmp_path / "transformer")
    assert ip.validate(file, base=tmp_path).ok
    for base, words in {"sdxl": "follow those of the text", "flux": "32 wide"}.items():
        (finding,) = ip.validate(file, base=base).findings
        assert finding.code == "wrong-base"
        assert words in finding.message


# ── pipelines ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline()


@pytest.fixture(scope="module")
def encoder() -> Any:
    return siglip()


def test_a_picture_equals_diffusers_prior(file: Path, pipe: Any, encoder: Any) -> None:
    """FluxPriorReduxPipeline makes the text states, and FluxPipeline the picture."""
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessorPil

    embedder = ReduxImageEncoder(FEATURES, TEXT)
    embedder.load_state_dict(redux())
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    texts = [pipe.text_encoder, pipe.tokenizer, pipe.text_encoder_2, pipe.tokenizer_2]
    prior = FluxPriorReduxPipeline(encoder, processor, embedder, *texts)
    picture = Image.open(REFERENCE).convert("RGB")
    states = prior(picture, prompt="a star")
    expected = make(pipe, steps=2, **states)
    adapter = ip.Adapter.load(file).attach(pipe, encoder=encoder)
    with adapter.use(adapter.encode([REFERENCE]), scale=1.0):
        found = make(pipe, steps=2, max_sequence_length=512)
    adapter.detach()
    assert torch.equal(found, expected)
    assert (found - make(pipe, steps=2, max_sequence_length=512)).abs().max() > 1e-4


def test_the_negative_side_reads_its_text_alone(file: Path, pipe: Any, encoder: Any) -> None:
    """Under true guidance; a negative picture follows the negative text, at its own scale."""
    guided = {"negative_prompt": ["bad"], "true_cfg_scale": 2.0, "steps": 2}
    adapter = ip.Adapter.load(file).attach(pipe, encoder=encoder)
    other = Image.new("RGB", (16, 16), "red")
    texts: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: texts.append(kwargs["encoder_hidden_states"].shape[1]),
        with_kwargs=True,
    )
    with adapter.use(adapter.encode([REFERENCE]), schedule="0-0.5"):
        make(pipe, **guided)
    assert texts == [8 + 4, 8, 8, 8]
    texts.clear()
    prompt = adapter.encode([REFERENCE, other], negative=other)
    with adapter.use(prompt, negative_scale=0.5):
        make(pipe, **guided)
    assert texts == [8 + 8] * 4
    hook.remove()
    with (
        adapter.use(prompt),
        pytest.raises(ip.ImagePromptError, match="a negative picture with FluxPipeline"),
    ):
        make(pipe)
    adapter.detach()


def test_generated_repeated_and_kept(file: Path, pipe: Any, encoder: Any, tmp_path: Path) -> None:
    """Recipes repeat to the bit; a batch of requests, a saved prompt and a style give the same."""
    options = {"steps": 2, "size": (16, 16), "progress": False, "seed": 3, "scale": 0.6}
    made = ip.generate(
        "a star", reference=REFERENCE, adapter=file, base=pipe, encoder=encoder, **options
    )
    made.save(tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.png")
    again = ip.repeat(path, base=pipe, encoder=encoder, progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes()
    adapter = ip.Adapter.load(file).attach(pipe, encoder=encoder)
    adapter.encode([REFERENCE]).save(tmp_path / "prompt.safetensors")
    library = ip.Library(tmp_path / "styles")
    library.add("one", adapter, REFERENCE)
    assert library.open("one", adapter).null_tokens is None
    adapter.detach()
    kept = {"image_prompt": tmp_path / "prompt.safetensors", "adapter": file, "base": pipe}
    saved = ip.generate("a star", **kept, **options)
    assert saved.images[0].tobytes() == made.images[0].tobytes()
    requests = [
        {"prompt": "a star", "reference": picture, **options}
        for picture in (REFERENCE, Image.new("RGB", (16, 16), "red"))
    ]
    rows: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    engine = ip.Engine(base=pipe, adapter=file, encoder=encoder)
    both = engine.generate_many(requests, batch_size=2, progress=False)
    hook.remove()
    assert rows == [2, 2]
    assert both[0].images[0].tobytes() == made.images[0].tobytes()
    assert both[1].images[0].tobytes() != both[0].images[0].tobytes()


def test_the_guide_to_redux(
    file: Path, pipe: Any, encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command, on a tiny FLUX and a repository of the same layout: the encoder is found."""
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("base")
    encoder.save_pretrained("redux/image_encoder")
    published = Path("redux") / "flux1-redux-dev.safetensors"
    published.write_bytes(file.read_bytes())
    local = {
        "cat.jpg": str(REFERENCE),
        "black-forest-labs/FLUX.1-dev": "base",
        "black-forest-labs/FLUX.1-Redux-dev/flux1-redux-dev.safetensors": str(published),
    }
    command = commands(DOCS / "transformers.md", needs_downloads=True)[-1]
    words = [local.get(word, word) for word in command]
    assert run([*words, "--steps", "1", "--size", "16", "--output", "out"]) == 0
    assert len(list(Path("out").glob("*.png"))) == 1
