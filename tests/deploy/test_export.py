"""export: a denoiser with image prompts as inputs, and what a runtime does with it."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import weakref
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import imageprompt as ip
from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core import bundled
from imageprompt.core.errors import AttachError, NotFoundError, OptionError, WrongBaseError
from imageprompt.demo import scenes
from imageprompt.deploy import export as of_export
from imageprompt.deploy.export import Export, export
from imageprompt.generation.exported.manifest import DENOISER, NAME, Manifest, check_trusted, trust
from imageprompt.generation.exported.open import Exported
from imageprompt.generation.runtimes import openvino as of_openvino
from served import alike, served

pytest.importorskip("openvino")

PICTURES = [scenes.draw(one) for one in islice(scenes.stream("test", seed=1), 2)]
TWO: dict[str, Any] = {
    "reference": PICTURES[0],
    "also": [ip.Reference(reference=PICTURES[1], adapter="base", scale=0.5, schedule="0-0.5")],
    "seed": 3,
    "num_images": 2,
    "steps": 3,
    "progress": False,
}
"""Two references, of adapters with 16 and 4 tokens, the second in half of the steps."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(to="openvino", output=tmp_path_factory.mktemp("exported"), parts=[DENOISER])


@pytest.fixture(scope="module")
def engine(made: Export) -> ip.Engine:
    return ip.Engine(exported=made.folder)


def pixels(result: Any) -> Any:
    return np.stack([np.asarray(image) for image in result.images]).astype(int)


def test_the_folder_says_what_it_is(made: Export) -> None:
    manifest = Manifest.read(made.folder)
    assert manifest == made.manifest
    assert 0 < manifest.parity[DENOISER] <= 1e-4
    names = [port.name for port in manifest.parts[DENOISER].inputs]
    assert names[:4] == ["sample", "timestep", "encoder_hidden_states", "scales"]
    assert len(manifest.readers) == 7
    assert f"value_{len(manifest.readers) - 1}" == names[-1]
    manifest.check_files(made.folder)
    null = load_file(made.folder / manifest.null_tokens)["null_tokens"]
    assert manifest.extra_files.keys() == {manifest.null_tokens}
    engine = ip.Engine()
    adapter = ip.Adapter.load(bundled.adapter(), dtype=torch.float32)
    adapter.attach(engine.loaded.pipe, encoder=engine.loaded.pipe.image_encoder)
    prompt = adapter.encode([PICTURES[0]])
    adapter.detach()
    torch.testing.assert_close(null, prompt.null_tokens, atol=1e-6, rtol=1e-5)


def test_pictures_are_those_of_pytorch_and_nothing_is_exported_again(
    engine: ip.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"scale": 0.3},
        {"preset": "style"},
        {"mask": PICTURES[1], "also": []},
        {"scale": 0, "reference": None, "also": [], "prompt": "a red star"},
    )
    for change in changes:
        arguments = TWO | change
        ours, theirs = engine.generate(**arguments), ip.generate(**arguments)
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1, change
    assert ours.recipes[0].base == theirs.recipes[0].base
    assert "openvino" in ours.recipes[0].versions


def test_the_weights_of_the_denoiser_are_not_loaded(engine: ip.Engine) -> None:
    unet = engine.loaded.pipe.unet
    assert sum(p.untyped_storage().nbytes() for p in unet.parameters()) < 10_000
    assert sum(p.numel() for p in unet.parameters()) > 7_000_000


def test_what_the_graph_cannot_do_is_one_line(engine: ip.Engine) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipe = engine.loaded.pipe
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(AttnProcessor())
    try:
        with pytest.raises(OptionError, match=r"processor AttnProcessor at .* on an exported base"):
            pipe("", num_inference_steps=1)
    finally:
        pipe.unet.set_attn_processor(before)
    residuals = {"down_block_additional_residuals": [torch.zeros(1)]}
    sample, text = torch.zeros(1, 16, 8, 8), torch.zeros(1, 4, 128)
    with pytest.raises(OptionError, match="--controlnet"):
        pipe.unet(sample, 5, text, **residuals)
    with pytest.raises(OptionError, match="reads"):
        pipe.unet(sample[:, :4], 5, text)


def test_other_folders_bases_and_runtimes_are_refused(
    made: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="no exported base"):
        Exported.of("openvino", tmp_path)
    with pytest.raises(OptionError, match="was exported for openvino"):
        Exported.of("onnxruntime", made.folder)
    with pytest.raises(OptionError, match="--exported DIR"):
        ip.Engine(runtime="openvino")
    with pytest.raises(OptionError, match="runtime 'openvino2'"):
        ip.Engine(runtime="openvino2", exported=made.folder)
    with pytest.raises((WrongBaseError, OptionError), match="config"):
        ip.Engine(base="bundled-sd3", exported=made.folder)
    with pytest.raises(OptionError, match="computes in float32 or bfloat16"):
        ip.Engine(exported=made.folder, dtype="float16")
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    with (copy / "denoiser.xml").open("a") as stream:
        stream.write(" ")
    with pytest.raises(OptionError, match="not the file that the manifest describes"):
        ip.Engine(exported=copy)
    stated = json.loads((copy / NAME).read_text())
    for change, reason in (
        ({"format": 2}, "format"),
        ({"parts": {}}, "no denoiser"),
        ({"extra_files": {"../a": "0"}}, "not the name of a file"),
        ({"readers": stated["readers"][1:]}, "it names 6 sites, and its denoiser reads 7"),
    ):
        (copy / NAME).write_text(json.dumps(stated | change))
        with pytest.raises(OptionError, match=reason):
            Manifest.read(copy)
    (copy / NAME).write_text("[" * 1000)
    with pytest.raises(OptionError):
        Manifest.read(copy)
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(OptionError, match=r"pip install 'imageprompt\[deploy\]'"):
        ip.Engine(exported=made.folder)


def test_an_adapter_that_acts_elsewhere_is_refused(engine: ip.Engine) -> None:
    exported: Any = engine.loaded.pipe.unet._imageprompt_exported
    readers = exported._readers
    exported._readers = readers[1:]
    try:
        with pytest.raises(AttachError, match="graph lacks"):
            engine.generate(reference=PICTURES[0], steps=1, progress=False)
    finally:
        exported._readers = readers


def test_packages_of_strangers_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(OptionError, match="stranger's program"):
        check_trusted(tmp_path / "denoiser.pt2", "ab" * 32, "it is machine code")
    trust(["ab" * 32])
    check_trusted(tmp_path / "denoiser.pt2", "ab" * 32, "it is machine code")


def test_a_large_model_is_compiled_for_one_size_until_sizes_keep_changing(
    made: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And always once at a time: its weights would take their memory twice."""
    kept: list[weakref.ref[Any]] = []
    sizes: list[str] = []
    real = of_openvino.in_own_thread

    def watched(compiled: Callable[[], Any]) -> Any:
        assert all(one() is None for one in kept)
        request = real(compiled)
        kept.append(weakref.ref(request))
        (batch, *_) = request.get_compiled_model().input("sample").get_partial_shape()
        sizes.append(str(batch))
        return request

    monkeypatch.setattr(of_openvino, "in_own_thread", watched)
    monkeypatch.setattr(of_openvino, "SMALL", 0)
    monkeypatch.setattr(of_openvino, "MOST_CHANGES", 2)
    engine = ip.Engine(exported=made.folder)
    quick = TWO | {"steps": 1}
    first = pixels(engine.generate("", **quick, batch_size=2))
    for rows in (1, 2, 1):
        other = pixels(engine.generate("", **quick, batch_size=rows))
        assert np.abs(first - other).max() <= 1
    assert sizes == ["4", "2", "?"]


def test_a_size_that_could_not_be_compiled_is_tried_again() -> None:
    asked: list[Any] = []

    def compiled(shapes: Any) -> str:
        asked.append(shapes)
        if len(asked) == 1:
            raise OptionError("no memory")
        return "request"

    request_for = of_openvino._OneSize(compiled)
    with pytest.raises(OptionError):
        request_for({"x": [1]})
    assert request_for({"x": [1]}) == "request"
    assert asked == [{"x": [1]}] * 2


def test_a_server_on_an_exported_base(made: Export, tmp_path: Path) -> None:
    """Its picture is the one that `generate --runtime` makes."""
    runtime = ["--runtime", "openvino", "--exported", str(made.folder)]
    PICTURES[0].save(tmp_path / "a.png")
    request = {"references": [{"reference": "part:a"}], "seed": 6, "steps": 2}
    with served(tmp_path, *runtime) as server:
        job = server.ended(server.submit(request, a=(tmp_path / "a.png").read_bytes()))
        assert job["state"] == "done", job
        ours = server.picture(job)
    arguments = [*runtime, "--reference", str(tmp_path / "a.png"), "--seed", "6", "--steps", "2"]
    assert cli.main(["generate", *arguments, "--output", str(tmp_path / "out")]) == 0
    (file,) = (tmp_path / "out").glob("*.png")
    assert alike(ours, file.read_bytes())


class SignalStack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's stack_t")
def test_signals_keep_their_stack(made: Export) -> None:
    """OpenVINO gives the thread that compiles another one, and unmaps it with the model."""

    def stack() -> tuple[Any, ...]:
        found = SignalStack()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
        return found.address, found.flags, found.size

    before = stack()
    engine = ip.Engine(exported=made.folder)
    engine.generate("", PICTURES[0], steps=1, progress=False)
    assert stack() == before


def test_a_folder_with_other_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match="holds other files"):
        export(to="openvino", output=tmp_path)


def test_a_backend_that_is_not_installed_names_its_extra(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from importlib.util import find_spec

    if find_spec("executorch") is not None:
        pytest.skip("executorch is installed")
    code = cli.main(["export", "--to", "executorch", "--output", str(tmp_path / "new")])
    assert code == 2
    assert "imageprompt[executorch]" in capfd.readouterr().err


def test_the_commands_of_the_guide(
    made: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With the folder that is there in the place of another export."""
    told: dict[str, Any] = {}

    def exported(base: Any, **arguments: Any) -> Export:
        told.update(arguments, base=base)
        shutil.copytree(made.folder, arguments["output"])
        return made

    monkeypatch.setattr(of_export, "export", exported)
    monkeypatch.chdir(tmp_path)
    PICTURES[0].save("a.png")
    first, second = commands(DOCS / "export.md")
    assert cli.main(first) == 0
    assert (told["base"], told["to"], told["output"]) == ("bundled", "openvino", Path("exported"))
    assert "denoiser.xml" in capfd.readouterr().out
    assert cli.main([*second, "--steps", "1"]) == 0
    picture = capfd.readouterr().out.strip()
    assert cli.main(["generate", "--exported", "exported", "--recipe", picture]) == 0
