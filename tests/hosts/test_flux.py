"""FLUX: XLabs' adapters against diffusers' own, InstantX's equation, references, graphs."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import imageprompt as ip
from guides import DOCS, blocks, commands, run
from tiny_flux import FEATURES, NoEncoder, make, noise, pipeline, siglip
from transformers_table import CASES, DIM, HEADS, SIDE

CASE = CASES["flux"]
WIDTH = HEADS * DIM
PORTS: dict[str | None, tuple[float, ...]] = {
    None: (-0.8245043, -0.1653024, 0.9543575, -0.0284298),
    "comfyui": (-0.7889956, -0.1921715, 0.9665938, -0.0226202),
    "diffsynth": (-0.8228126, -0.1597535, 0.9476894, -0.0205655),
}
"""Reading of an InstantX adapter -> the last row of a picture by the program that has it."""


def xlabs(tokens: int = 4) -> dict[str, dict[str, Tensor]]:
    projector = {
        "proj.weight": noise(tokens * 32, FEATURES, seed=1),
        "proj.bias": noise(tokens * 32, seed=2),
        "norm.weight": noise(32, seed=3) + 1,
        "norm.bias": noise(32, seed=4),
    }
    sites = {
        f"{site}.to_{kind}_ip.{part}": noise(*shape, seed=10 + site)
        for site in (0, 1)
        for kind in "kv"
        for part, shape in (("weight", (WIDTH, 32)), ("bias", (WIDTH,)))
    }
    return {"image_proj": projector, "ip_adapter": sites}


def instantx(width: int = 16) -> dict[str, dict[str, Tensor]]:
    projector = {
        "proj.0.weight": noise(2 * FEATURES, FEATURES, seed=1),
        "proj.0.bias": noise(2 * FEATURES, seed=2),
        "proj.2.weight": noise(3 * 32, 2 * FEATURES, seed=3),
        "proj.2.bias": noise(3 * 32, seed=4),
        "norm.weight": noise(32, seed=5) + 1,
        "norm.bias": noise(32, seed=6),
    }
    sites = {
        f"{site}.to_{kind}_ip.weight": noise(WIDTH, 32, seed=20 + site + ord(kind))
        for site in range(4)
        for kind in "kv"
    }
    return {"image_proj": projector, "ip_adapter": sites}


def write(path: Path, parts: dict[str, dict[str, Tensor]]) -> Path:
    tensors = {f"{part}.{name}": x for part, found in parts.items() for name, x in found.items()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("batch", [1, 2])
def test_xlabs_equals_diffusers(batch: int, tmp_path: Path) -> None:
    """One picture for each row, of which diffusers makes the right ones only from embeddings."""
    parts, inputs = xlabs(), CASE.inputs(batch)
    peer = CASE.build()
    peer._load_ip_adapter_weights(copy.deepcopy(parts))
    for processor in peer.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.7]
    features = noise(batch, 1, FEATURES, seed=9)
    kwargs = {"ip_adapter_image_embeds": [features]}
    with torch.no_grad():
        expected = peer(**inputs, joint_attention_kwargs=kwargs, return_dict=False)[0]
    model = CASE.build()
    plain = CASE.read(model, inputs)
    adapter = ip.Adapter.load(write(tmp_path / "a.safetensors", parts)).attach(model)
    assert adapter.spec.variant == "xlabs"
    prompt = adapter.encode(features=list(features), null_features=torch.zeros(1, FEATURES))
    with adapter.use(prompt, scale=0.7):
        found = CASE.read(model, inputs)
    assert (found - expected).abs().max() < 1e-5
    assert (expected - plain).abs().max() > 0.1


def rotated(q: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """q [B, S, H, D] turned by the positions of its rows, pair by pair, an axis after the other."""
    angles = []
    for axis, width in enumerate(CASE.config["axes_dims_rope"]):
        position = torch.cat((inputs["txt_ids"], inputs["img_ids"]))[:, axis].double()
        period = 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(position[:, None] / period)
    turn = torch.polar(torch.ones(()).double(), torch.cat(angles, -1))[:, None]
    pairs = torch.view_as_complex(q.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).float()


@pytest.mark.parametrize("reading", [None, "comfyui", "diffsynth"])
def test_instantx_adds_before_the_projection_to_the_text_rows_of_single_blocks_too(
    reading: str | None, tmp_path: Path
) -> None:
    """q is normalised, not rotated; K' is normalised, V' is not (the line is commented out).

    ComfyUI's port does normalise V', DiffSynth's rotates q in single blocks.
    """
    model, inputs = CASE.build(), CASE.inputs(2)
    path = write(tmp_path / "a.safetensors", instantx())
    adapter = ip.Adapter.load(path, reading=reading).attach(model)
    assert adapter.spec.variant == "instantx"
    prompt = adapter.encode(
        features=[noise(1, FEATURES, seed=s) for s in (7, 8)],
        null_features=torch.zeros(1, FEATURES),
    )
    weights = adapter.module.ip_adapter.state_dict()
    for number, (path, _, output, _) in enumerate(CASE.layers):
        layer, site = model.get_submodule(path), 2 * number
        seen: list[Tensor] = []
        queries: list[Tensor] = []
        target: Any = layer.get_submodule(output) if output else layer
        hooks = [layer.norm_q.register_forward_hook(lambda m, a, o, q=queries: q.append(o) or None)]
        if output:
            hooks.append(target.register_forward_pre_hook(lambda m, a, s=seen: s.append(a[0])))
        else:
            hooks.append(target.register_forward_hook(lambda m, a, o, s=seen: s.append(o) or None))
        CASE.read(model, inputs)
        with adapter.use(prompt, scale={path: 0.7}):
            CASE.read(model, inputs)
        for hook in hooks:
            hook.remove()
        k, v = (prompt.tokens @ weights[f"{site}.to_{kind}_ip.weight"].T for kind in "kv")
        k, v = (x.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for x in (k, v))
        k = k / (k.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        if reading == "comfyui":
            v = v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        q = queries[0]
        if reading == "diffsynth" and not output:
            q = rotated(q, inputs)
        scores = q.transpose(1, 2) @ k.transpose(-1, -2) / DIM**0.5
        term = (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        assert torch.allclose(seen[1] - seen[0], 0.7 * term, atol=1e-5)


@pytest.mark.parametrize("reading", sorted(PORTS, key=str))
def test_a_reading_equals_the_program_that_it_is_named_after(
    reading: str | None, tmp_path: Path
) -> None:
    """The last numbers of a picture; the programs' own terms were run beside to get them."""
    heads = {"attention_head_dim": 128, "num_attention_heads": 2, "axes_dims_rope": [16, 56, 56]}
    case = replace(CASE, config={**CASE.config, **heads})
    parts = instantx()
    parts["ip_adapter"] = {
        name: noise(256, 32, seed=20 + i) for i, name in enumerate(parts["ip_adapter"])
    }
    model, inputs = case.build(), case.inputs(2)
    path = write(tmp_path / "a.safetensors", parts)
    adapter = ip.Adapter.load(path, reading=reading).attach(model)
    prompt = adapter.encode(
        features=[noise(1, FEATURES, seed=s) for s in (7, 8)],
        null_features=torch.zeros(1, FEATURES),
    )
    with adapter.use(prompt, scale=0.7):
        found = case.read(model, inputs)
    assert torch.allclose(found[1, -1], torch.tensor(PORTS[reading]), atol=1e-5)


def test_a_reading_is_one_of_the_variants_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", xlabs())
    with pytest.raises(ip.ImagePromptError, match="reading 'comfyui' of a xlabs adapter"):
        ip.Adapter.load(path, reading="comfyui")
    path = write(tmp_path / "b.safetensors", instantx())
    with pytest.raises(ip.ImagePromptError, match="use: comfyui, diffsynth"):
        ip.Adapter.load(path, reading="comfy")


def test_references_of_kontext_get_no_image_term(tmp_path: Path) -> None:
    """Position ids (1, row, column) are a picture to edit: with a mask or without."""
    model, inputs = CASE.build(), CASE.inputs(1)
    rows = inputs["hidden_states"]
    references = inputs["img_ids"] + torch.tensor([1.0, 0, 0])
    inputs["hidden_states"] = torch.cat((rows, noise(1, SIDE * SIDE, 4, seed=3)), dim=1)
    inputs["img_ids"] = torch.cat((inputs["img_ids"], references))
    adapter = ip.Adapter.load(write(tmp_path / "a.safetensors", instantx())).attach(model)
    seen: list[Tensor] = []
    model.transformer_blocks[0].attn.to_out[0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    prompt = adapter.encode(
        features=noise(1, FEATURES, seed=7), null_features=torch.zeros(1, FEATURES)
    )
    plain = CASE.read(model, inputs)
    for mask in (None, torch.ones(8, 8).numpy()):
        with adapter.use(prompt, scale=1.0, mask=mask):
            assert not torch.equal(CASE.read(model, inputs), plain)
    for changed in seen[1:]:
        difference = (changed - seen[0]).abs()
        assert difference[:, : SIDE * SIDE].amax(-1).min() > 1e-3
        assert not difference[:, SIDE * SIDE :].any()


@pytest.mark.slow
@pytest.mark.sample(6)
@pytest.mark.parametrize("name", ["flux", "sd3", "pixart", "flux2", "qwen-image", "sana"])
def test_graphs_without_breaks(name: str) -> None:
    """A whole graph, the same for any scale, mask and step; equal to eager."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    case = CASES[name].small()
    model, inputs = case.build(), case.inputs(2)
    adapter = ip.Adapter.create("base", denoiser=model, encoder=NoEncoder(), num_tokens=3)
    for weight in adapter.parameters():
        weight.data = noise(*weight.shape, seed=weight.numel())
    adapter.attach(model)
    prompt = adapter.encode(features=noise(1, FEATURES), null_features=torch.zeros(1, FEATURES))
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    half = torch.zeros(8, 8)
    half[:4] = 1
    with adapter.use(prompt, scale=1.0, guidance="none") as handle:
        for scale in (1.0, 0.3, 0.0):
            handle.scale = scale
            assert torch.allclose(case.read(compiled, inputs), case.read(model, inputs), atol=1e-5)
        count = counter.frame_count
    with adapter.use(prompt, scale=1.0, guidance="none", mask=half.numpy()):
        assert torch.allclose(case.read(compiled, inputs), case.read(model, inputs), atol=1e-5)
    assert counter.frame_count == count
    torch._dynamo.reset()


# ── in diffusers' pipeline ──────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline()


@pytest.fixture
def attached(pipe: Any, tmp_path: Path) -> Any:
    adapter = ip.Adapter.load(write(tmp_path / "a.safetensors", xlabs())).attach(pipe)
    yield adapter
    adapter.detach()


def prompt_of(adapter: ip.Adapter, *seeds: int) -> ip.ImagePrompt:
    return adapter.encode(
        features=[noise(1, FEATURES, seed=s) * 9 for s in seeds],
        null_features=noise(1, FEATURES, seed=77) * 9,
    )


def test_each_side_of_true_guidance_is_known(pipe: Any, attached: ip.Adapter) -> None:
    """The pipeline calls the positive side first; the text of a call tells which it is."""
    guided = {"negative_prompt": ["bad"], "true_cfg_scale": 2.0}
    plain = make(pipe, **guided)
    prompt = prompt_of(attached, 1)
    with attached.use(prompt, scale=1.0):
        found = make(pipe, **guided)
    with attached.use(prompt, scale=1.0) as handle:
        handle.guidance = "positive"
        calls = iter(["negative", "positive"] * 4)
        hook = pipe.transformer.register_forward_hook(
            lambda *_: setattr(handle, "guidance", next(calls))
        )
        stated = make(pipe, **guided)
        hook.remove()
    assert torch.equal(found, stated)
    assert not torch.equal(found, plain)
    with attached.use(prompt, scale=0):
        assert torch.equal(make(pipe, **guided), plain)


def test_the_negative_side_has_a_picture_and_a_scale_of_its_own(
    pipe: Any, attached: ip.Adapter
) -> None:
    """As XLabs' neg_ip_scale: the scale of the negative pass, whatever that of the positive one."""
    guided = {"negative_prompt": ["bad"], "true_cfg_scale": 2.0}
    prompt = prompt_of(attached, 1)
    found = []
    for scale in (None, 0.25, 0.0):
        with attached.use(prompt, scale=1.0, negative_scale=scale):
            found.append(make(pipe, **guided))
        with attached.use(prompt, scale=1.0) as handle:
            scales = iter([1.0 if scale is None else scale, 1.0] * 4)
            hook = pipe.transformer.register_forward_hook(
                lambda *_, scales=scales: setattr(handle, "scale", next(scales))
            )
            by_hand = make(pipe, **guided)
            hook.remove()
        assert torch.allclose(found[-1], by_hand, atol=1e-6)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    with (
        pytest.raises(ip.ImagePromptError, match="negative_scale with FluxPipeline"),
        attached.use(prompt, negative_scale=0.5),
    ):
        make(pipe)


def test_a_pass_without_a_negative_side_takes_no_negative_picture(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "FEATURES", 128)
    adapter = ip.Adapter.load(write(tmp_path / "a.safetensors", xlabs()))
    adapter.attach(pipe, encoder=ip.bundled.folder() / "image_encoder")
    picture = DOCS / "reference.png"
    prompt = adapter.encode([picture], negative=picture)
    with (
        pytest.raises(ip.ImagePromptError, match="a negative picture with FluxPipeline"),
        adapter.use(prompt),
    ):
        make(pipe)
    with adapter.use(prompt):
        make(pipe, negative_prompt=[""], true_cfg_scale=2.0)
    adapter.detach()


def test_the_step_of_a_call_comes_from_the_pipeline(pipe: Any, attached: ip.Adapter) -> None:
    """The transformer is called with a fresh number; the pipeline knows where it is."""

    def stop_halfway(pipe: Any, step: int, time: Any, kwargs: Any) -> Any:
        handle.scale = 1.0 if step + 1 < 2 else 0.0
        return kwargs

    prompt = prompt_of(attached, 1)
    with attached.use(prompt, scale=1.0, schedule="0-0.5"):
        scheduled = make(pipe)
    with attached.use(prompt, scale=1.0) as handle:
        by_hand = make(pipe, callback_on_step_end=stop_halfway)
        whole = make(pipe)
    assert torch.equal(scheduled, by_hand)
    assert not torch.equal(scheduled, whole)


def test_one_reference_for_each_text(pipe: Any, attached: ip.Adapter) -> None:
    prompts = prompt_of(attached, 1, 2)
    with attached.use(prompts, scale=1.0):
        both = make(pipe, "a star", "a heart", steps=2)
    with attached.use(prompt_of(attached, 1, 3), scale=1.0):
        other = make(pipe, "a star", "a heart", steps=2)
    assert torch.allclose(both[0], other[0], atol=1e-5)
    assert not torch.allclose(both[1], other[1], atol=1e-4)
    with (
        pytest.raises(ip.ImagePromptError, match="2 image prompts for 1 text"),
        attached.use(prompts),
    ):
        make(pipe)


def test_a_recipe_keeps_the_reading(pipe: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", instantx())
    prompt = ip.Adapter.load(path).encode(
        features=noise(1, FEATURES, seed=7) * 9, null_features=torch.zeros(1, FEATURES)
    )
    made = {
        reading: ip.generate(
            "a star",
            image_prompt=prompt,
            adapter=path,
            reading=reading,
            base=pipe,
            steps=1,
            size=(16, 16),
            progress=False,
        )
        for reading in (None, "comfyui")
    }
    assert made[None].images[0].tobytes() != made["comfyui"].images[0].tobytes()
    made["comfyui"].save(tmp_path / "out")
    (picture,) = (tmp_path / "out").glob("*.png")
    again = ip.repeat(picture, base=pipe, progress=False)
    assert again.images[0].tobytes() == made["comfyui"].images[0].tobytes()
    assert again.recipes[0].references[0].adapter.spec["reading"] == "comfyui"


def test_instantx_reads_a_picture_by_siglip(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = siglip()
    encoder.save_pretrained(tmp_path / "siglip")
    pipe.save_pretrained(tmp_path / "base")
    path, reference = write(tmp_path / "a.safetensors", instantx()), DOCS / "reference.png"
    words = ["generate", "--base", str(tmp_path / "base"), "--adapter", str(path)]
    words += ["--steps", "1", "--size", "16", "--reference", str(reference), "--prompt", "a star"]
    own = ["--encoder", str(tmp_path / "siglip")]
    assert run([*words, *own, "--output", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    with torch.no_grad():
        squashed = Image.open(reference).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None] / 255 * 2 - 1
        pooled = encoder(pixels).pooler_output
    made = ip.generate(
        "a star",
        image_prompt=ip.Adapter.load(path).encode(
            features=pooled, null_features=torch.zeros(1, FEATURES)
        ),
        adapter=path,
        base=pipe,
        steps=1,
        size=(16, 16),
        seed=ip.repeat(picture, progress=False).recipes[0].seed,
        progress=False,
    ).images[0]
    difference = np.asarray(made, int) - np.asarray(Image.open(picture), int)
    assert abs(difference).max() <= 1
    capsys.readouterr()
    assert run(words) == 2
    assert "reads pooler_output of size" in capsys.readouterr().err
    clip = str(ip.bundled.folder() / "image_encoder")
    assert run([*words, "--encoder", clip]) == 2
    assert f"whose pooler_output are 128 wide: this instantx adapter reads {FEATURES}" in (
        " ".join(capsys.readouterr().err.split())
    )


# ── the guide, docs/transformers.md ─────────────────────────────────────────────────────────────


def test_the_guide_to_transformers(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command and its snippet, on a tiny FLUX and a tiny encoder instead of the published."""
    page = DOCS / "transformers.md"
    encoder = ip.bundled.folder() / "image_encoder"
    monkeypatch.setattr(sys.modules[__name__], "FEATURES", 128)
    local = {
        "cat.jpg": str(DOCS / "reference.png"),
        "fog.jpg": str(DOCS / "reference.png"),
        "black-forest-labs/FLUX.1-dev": str(tmp_path / "base"),
        "XLabs-AI/flux-ip-adapter-v2/ip_adapter.safetensors": str(
            write(tmp_path / "a.safetensors", xlabs())
        ),
        "openai/clip-vit-large-patch14": str(encoder),
    }
    pipe.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    first, guided, _ = commands(page, needs_downloads=True)
    small_run = ["--steps", "2", "--size", "16", "--output"]
    words = [local.get(word, word) for word in first]
    assert run([*words, *small_run, "out"]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert run([*(local.get(word, word) for word in guided), *small_run, "guided"]) == 0
    (picture,) = (tmp_path / "guided").glob("*.png")
    again = ip.repeat(picture, progress=False)
    assert again.recipes[0].true_cfg_scale == 4
    assert again.recipes[0].references[0].controls["negative_scale"] == 0.5
    assert again.images[0].tobytes() == Image.open(picture).tobytes()
    for more in (["--negative-prompt", "bad"], ["--negative-reference", local["cat.jpg"]]):
        # diffusers would ignore it in silence
        assert run([*words, *more, "--output", "none"]) == 2

    (snippet,) = blocks(page, "python", needs_downloads=True)
    torch.save(instantx(), tmp_path / "ip-adapter.bin")

    def small(text: str) -> Any:
        return pipe(text, num_inference_steps=2, height=16, width=16, max_sequence_length=8)

    known: dict[str, Any] = {"pooled": noise(2, FEATURES, seed=3), "pipe": pipe}
    known["small"] = small
    exec(snippet.replace('pipe("a cat', 'small("a cat'), known)
    known["adapter"].detach()
