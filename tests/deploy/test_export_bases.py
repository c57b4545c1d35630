"""export: denoisers of other families than the bundled UNet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

import imageprompt as ip
import tiny_flux
from imageprompt.core.errors import OptionError
from imageprompt.demo import scenes
from imageprompt.deploy.export import export
from imageprompt.deploy.export.backends import BACKENDS, NotExportable
from imageprompt.deploy.export.modules import Exportable
from imageprompt.deploy.export.parts import Function
from imageprompt.encoding.image_prompt import ImagePrompt
from imageprompt.generation.exported.calls import calls_of
from imageprompt.generation.exported.manifest import DENOISER, Part, Port
from imageprompt.generation.exported.open import Exported
from imageprompt.generation.runtimes import RUNTIMES
from tiny_stack import make_xl_pipeline

pytest.importorskip("openvino")

PICTURE = scenes.draw(next(scenes.stream("test", seed=4)))


def pixels(result: Any) -> Any:
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def saved(pipe: Any, encoder: Any, variant: str, folder: Path) -> tuple[Any, Path, Path]:
    """A pipeline and an adapter with random weights, as a user has them on the disk."""
    adapter = ip.Adapter.create(variant, denoiser=pipe, encoder=encoder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    adapter.save(folder / "adapter.safetensors")
    pipe.save_pretrained(folder / "base")
    return pipe, folder / "base", folder / "adapter.safetensors"


def picture(pipe: Any, file: Path, scale: float) -> Any:
    """A picture with random image tokens."""
    adapter = ip.Adapter.load(file, dtype=torch.float32, base=pipe)
    adapter.attach(pipe)
    shape = (1, adapter.spec.tokens or 4, adapter.spec.cross_attention_dim)
    tokens = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    guidance = "positive" if hasattr(pipe, "transformer") else "negative-positive"
    side = {"height": 32, "width": 32} if hasattr(pipe, "transformer") else {}
    pipe.set_progress_bar_config(disable=True)
    try:
        with adapter.use(ImagePrompt(*tokens), scale=scale, guidance=guidance):
            generator = torch.Generator().manual_seed(5)
            made = pipe("a star", num_inference_steps=2, generator=generator, **side)
    finally:
        adapter.detach()
    return np.asarray(made.images[0]).astype(int)


def flux(folder: Path) -> tuple[Any, Path, Path]:
    return saved(tiny_flux.pipeline(), tiny_flux.NoEncoder(), "base", folder)


def xl(folder: Path) -> tuple[Any, Path, Path]:
    pipe = make_xl_pipeline(one_level=True)
    return saved(pipe, pipe.image_encoder, "base", folder)


def test_sd3(tmp_path: Path, whole: bool) -> None:
    made = export("bundled-sd3", to="openvino", output=tmp_path / "graph", parts=[DENOISER])
    assert 0 < made.manifest.parity[DENOISER] <= 1e-4
    engine = ip.Engine("bundled-sd3", exported=made.folder)
    eager = ip.Engine("bundled-sd3")
    changes: list[dict[str, Any]] = [{"scale": 0.4, "mask": PICTURE}, *([{}] if whole else [])]
    for change in changes:
        arguments: dict[str, Any] = {"reference": PICTURE, "seed": 2, "steps": 2} | change
        ours, theirs = (one.generate(**arguments, progress=False) for one in (engine, eager))
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1, change
    with pytest.raises(OptionError, match="only the graphs of UNets read residuals"):
        calls_of(eager.loaded.pipe.transformer, controlnet=True)


def test_tokens_that_change_with_the_step_are_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 24, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    config = SiglipVisionConfig(**shape, num_hidden_layers=2, num_attention_heads=2)
    SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    pipe = ip.Engine("bundled-sd3").loaded.pipe
    adapter = ip.Adapter.create("instantx-sd3", denoiser=pipe, encoder=tmp_path / "siglip")
    adapter.save(tmp_path / "a.safetensors")
    with pytest.raises(OptionError, match="it reads the rows of the picture") as refused:
        export(pipe, tmp_path / "a.safetensors", to="openvino", output=tmp_path / "graph")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "graph").exists()


@pytest.mark.sample(2)
@pytest.mark.parametrize(("files", "controlnet"), [(flux, False), (xl, True)])
def test_tiny_bases(
    files: Callable[[Path], tuple[Any, Path, Path]], controlnet: bool, tmp_path: Path
) -> None:
    """Parity is measured with residuals where there are such inputs; pictures are made without."""
    pipe, base, adapter = files(tmp_path)
    made = export(
        base,
        adapter,
        to="openvino",
        output=tmp_path / "graph",
        parts=[DENOISER],
        controlnet=controlnet,
    )
    assert 0 < made.manifest.parity[DENOISER] <= 1e-4
    names = {port.name for port in made.manifest.parts[DENOISER].inputs}
    assert names >= ({"text_embeds", "time_ids", "mid_residual"} if controlnet else {"img_ids"})
    exported = Exported.of(None, made.folder).load(base, base, dtype=None, device=None, bars=False)
    ours, theirs, plain = (
        picture(one, adapter, scale)
        for one, scale in ((exported.pipe, 0.7), (pipe, 0.7), (pipe, 0.0))
    )
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(plain - theirs).max() > 1


def test_graphs_of_fixed_sizes_are_for_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of guidance at the base's own size, with as many tokens as its adapter has."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(type(BACKENDS["pt2"]), "fixed_sizes", True)
    pipe, base, adapter = xl(tmp_path)
    made = export(base, adapter, to="pt2", output=tmp_path / "graph", parts=[DENOISER, "vae"])
    assert 0 < made.manifest.parity[DENOISER] <= 1e-4
    for part in made.manifest.parts.values():
        assert all(isinstance(axis, int) for port in part.inputs for axis in port.shape)
    shapes = {port.name: port.shape for port in made.manifest.parts[DENOISER].inputs}
    side = pipe.unet.config.sample_size
    assert shapes["sample"] == (2, 4, side, side)
    tokens = ip.Adapter.load(adapter).spec.tokens
    assert {shapes[name][3] for name in shapes if name.startswith("key_")} == {tokens}
    exported = Exported.of(None, made.folder).load(base, base, dtype=None, device=None, bars=False)
    for scale in (0.7, 0.0):
        ours, theirs = (picture(one, adapter, scale) for one in (exported.pipe, pipe))
        assert np.abs(ours - theirs).max() <= 1
    with pytest.raises(OptionError, match="does not take these sizes"):
        exported.pipe(["a", "b"], num_inference_steps=1)


def test_positions_in_onnx_are_cropped_at_odd_sizes(tmp_path: Path) -> None:
    """(8 - h) // 2 is traced as 4 + (-h) // 2, which ONNX's Div rounds towards 0."""
    embed = PatchEmbed(4, 4, 1, in_channels=2, embed_dim=8, pos_embed_max_size=8)
    axes = ("batch", 2, "height", "width")
    x, y = Port(name="x", shape=axes), Port(name="y", shape=("batch", "rows", 8))
    part = Exportable(Function(embed, embed), (x,), (y,), {"batch": 2, "height": 4, "width": 6})
    (file,) = BACKENDS["onnx"].write(part, tmp_path, "embed", "float32")
    graph = RUNTIMES["openvino"].open(
        tmp_path, Part(files={file: ""}, inputs=(x,), outputs=(y,)), "float32", 1
    )
    for size in ((3, 2), (2, 3), (5, 7), (8, 8)):
        inputs = torch.randn(1, 2, *size)
        (made,) = graph({"x": inputs})
        torch.testing.assert_close(made, embed(inputs), atol=1e-5, rtol=1e-5)


class Odd(nn.Module):
    def forward(self, *tensors: Any) -> Any:
        return torch.linalg.svdvals(tensors[0])


@pytest.mark.sample(2)
@pytest.mark.parametrize("to", ["openvino", "onnx"])
def test_an_operator_that_a_backend_lacks_is_named(to: str, tmp_path: Path) -> None:
    ports = Port(name="x", shape=("batch", 3)), Port(name="y", shape=(3,))
    before = logging.getLogger().level
    part = Exportable(Odd(), ports[:1], ports[1:], {"batch": 4})
    with pytest.raises(NotExportable, match=r"aten[:.]+_?linalg_svd"):
        BACKENDS[to].write(part, tmp_path, "odd", "float32")
    assert logging.getLogger().level == before  # OpenVINO's converter leaves it at ERROR
