"""Every diffusers pipeline with a UNet: attach, use, scale 0 is the plain pipeline, detach."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shlex
import typing
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import imageprompt as ip
import pipelines_parts as parts
from imageprompt import cli
from imageprompt.core.errors import AttachError, GuidanceError, WrongBaseError
from pipelines_table import DOCS, PIPELINES, Case, render


@cache
def kinds() -> dict[str, type]:
    """The pipelines of diffusers whose `unet` is one that the unet host describes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(_walk())


def _walk() -> Iterator[tuple[str, type]]:
    import diffusers
    from diffusers import pipelines

    for module in pkgutil.walk_packages(pipelines.__path__, "diffusers.pipelines."):
        if not module.name.rpartition(".")[2].startswith("pipeline_"):
            continue
        if "unet:" not in Path(find_spec(module.name).origin).read_text():
            continue  # most are for transformers, and slow to import
        for name, kind in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isclass(kind)
                and issubclass(kind, diffusers.DiffusionPipeline)
                and kind.__module__ == module.name
                and _holds_unet(kind)
            ):
                yield name, kind


def _holds_unet(kind: type) -> bool:
    from diffusers import UNet2DConditionModel, UNetMotionModel

    expected = inspect.signature(kind.__init__).parameters.get("unet")
    if expected is None:
        return False
    allowed = typing.get_args(expected.annotation) or (expected.annotation,)
    return bool({UNet2DConditionModel, UNetMotionModel} & set(allowed))


SEEN = [name for name, case in PIPELINES.items() if not case.unseen]
RUN = [name for name in SEEN if not PIPELINES[name].refused]
REFUSED = [name for name in SEEN if PIPELINES[name].refused]
pytestmark = pytest.mark.filterwarnings("ignore")  # many are deprecated and warn


def build(name: str) -> Any:
    case = PIPELINES[name]
    changes = bool(case.before or case.refused or "PAG" in name)  # its processors stay changed
    pipe = parts.make(kinds()[name], case.unet, case.factories, own_unet=changes)
    if case.before is not None:
        case.before(pipe)
    return pipe


def run(pipe: Any, case: Case) -> Tensor:
    """Two steps; returns the output of the pipeline as one tensor."""
    known = inspect.signature(pipe.__call__).parameters
    options: dict[str, Any] = {
        "prompt": "a star",
        "negative_prompt": "blue",
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "generator": torch.Generator().manual_seed(5),
        "output_type": "latent",
    }
    options = {name: value for name, value in options.items() if name in known} | case.call
    torch.manual_seed(6)  # a few draw numbers without their generator
    with torch.no_grad():
        made = pipe(**options)[0]
    return made if isinstance(made, Tensor) else torch.as_tensor(made)


def adapter_for(pipe: Any) -> ip.Adapter:
    torch.manual_seed(7)
    adapter = ip.Adapter.create("base", denoiser=pipe.unet, encoder=parts.PARTS["image_encoder"]())
    for weights in adapter.parameters():
        weights.data.normal_(std=0.5)
    return adapter


def prompt_of(adapter: ip.Adapter, *, null: int = 1) -> ip.ImagePrompt:
    made = adapter.encode(features=torch.randn(1, 24, generator=torch.Generator().manual_seed(8)))
    noise = torch.randn(made.tokens.shape, generator=torch.Generator().manual_seed(null))
    return ip.ImagePrompt(made.tokens, noise)


class _Seen(Exception):
    """Ends a pipeline after the first call of its denoiser."""


def first_call(pipe: Any, case: Case) -> Tensor:
    """The output of the denoiser's first call, [B, ...]."""
    kept = []

    def keep(_: Any, __: Any, made: Any) -> None:
        kept.append(made[0])
        raise _Seen

    hook, processors = pipe.unet.register_forward_hook(keep), dict(pipe.unet.attn_processors)
    try:
        with pytest.raises(_Seen):
            run(pipe, case)
    finally:
        hook.remove()
        pipe.unet.set_attn_processor(processors)  # some restore theirs only at the end
    return kept[0]


def state(pipe: Any) -> tuple[Any, ...]:
    """Everything that an adapter must leave unchanged."""
    processors = {name: id(processor) for name, processor in pipe.unet.attn_processors.items()}
    hooks = [len(getattr(m, h)) for m in pipe.unet.modules() for h in _HOOKS]
    return processors, hooks, list(pipe.unet.state_dict())


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def test_the_table_knows_every_pipeline() -> None:
    assert set(PIPELINES) == set(kinds())


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", RUN)
def test_contract(name: str) -> None:
    """Scale 0 is the plain pipeline to the bit; with a reference it differs; detach is exact."""
    case, pipe = PIPELINES[name], build(name)
    net = Watched(getattr(pipe, "controlnet", None))
    plain = run(pipe, case)
    assert plain.isfinite().all()
    before, adapter = state(pipe), adapter_for(pipe)
    prompt, other_null = prompt_of(adapter), prompt_of(adapter, null=2)
    adapter.attach(pipe)
    with adapter.use(prompt, scale=0.0, guidance=case.guidance):
        assert torch.equal(run(pipe, case), plain)
    with adapter.use(prompt, guidance=case.guidance):
        net.watch()
        with_picture = run(pipe, case)
        first = first_call(pipe, case)
    with adapter.use(other_null, guidance=case.guidance):
        changed = first_call(pipe, case)
    _check_schedule(pipe, case, adapter, prompt, plain, with_picture)
    adapter.detach()
    assert with_picture.isfinite().all()
    assert not torch.equal(with_picture, plain)
    # the null tokens act on the negative rows only
    rows = ["p" if torch.equal(*pair) else "n" for pair in zip(first, changed, strict=True)]
    assert "".join(rows) == case.rows
    net.check()
    assert state(pipe) == before
    assert torch.equal(run(pipe, case), plain)


def _check_schedule(
    pipe: Any, case: Case, adapter: ip.Adapter, prompt: Any, plain: Tensor, full: Tensor
) -> None:
    """A schedule over half of the loop has half of the effect, or is refused; never wrong."""
    with adapter.use(prompt, guidance=case.guidance, schedule="0.5-1"):
        if case.steps == "unknown":
            with pytest.raises(GuidanceError, match="timesteps="):
                run(pipe, case)
            return
        half = run(pipe, case)
    assert not torch.equal(half, full)
    assert torch.equal(half, plain) == (case.steps == "one")


class Watched:
    """Inputs and outputs of a ControlNet's first call, with an image prompt and without."""

    def __init__(self, net: Any) -> None:
        self.seen: list[list[Tensor]] = []
        self.net, self.expected = net, 1
        if net is not None:
            self.hook = net.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, _: Any, args: Any, kwargs: Any, made: Any) -> None:
        if len(self.seen) < self.expected:
            self.seen.append(_tensors((args, kwargs, made)))

    def watch(self) -> None:
        """Record the next call too."""
        self.expected = 2

    def check(self) -> None:
        """Image tokens never reach it."""
        if self.net is None:
            return
        self.hook.remove()
        before, after = self.seen
        assert len(before) > 4
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a, b)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple):
        return []
    return [tensor for entry in entries for tensor in _tensors(entry)]


def test_a_refiner_continues_after_a_base_with_an_adapter() -> None:
    """The adapter fits the base only: the refiner has other sites and another text width."""
    base, refiner = build("StableDiffusionXLPipeline"), build("StableDiffusionXLImg2ImgPipeline")
    words = {"prompt": "a star", "num_inference_steps": 4, "output_type": "latent"}

    def both() -> Tensor:
        generator = torch.Generator().manual_seed(5)
        latents = base(**words, denoising_end=0.5, generator=generator).images
        return refiner(**words, image=latents, denoising_start=0.5, generator=generator).images

    plain = both()
    adapter = adapter_for(base)
    with pytest.raises(WrongBaseError, match="text width"):
        adapter.attach(refiner)
    adapter.attach(base)
    with adapter.use(prompt_of(adapter), scale=0.0):
        assert torch.equal(both(), plain)
    with adapter.use(prompt_of(adapter)):
        assert not torch.equal(both(), plain)
    adapter.detach()
    assert torch.equal(both(), plain)


def test_the_commands_of_the_guide(
    tiny_bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("cat", "red"), ("dog", "blue"), ("room", "green")):
        parts.picture(colour).save(f"{name}.png")
    for name in ("sofa", "left", "right"):
        parts.mask().save(f"{name}.png")
    text = DOCS.read_text()
    commands = text.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 6
    for command in commands:
        assert cli.main(shlex.split(command)[1:]) == 0, command
    assert len(list(Path("outputs").iterdir())) == 6
    flags = set(re.findall(r"--[a-z][a-z-]+", text))
    assert flags <= set(re.findall(r"--[a-z][a-z-]+", _help("generate")))


def _help(command: str) -> str:
    with redirect_stdout(StringIO()) as shown, pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return shown.getvalue()


def test_the_guide_shows_the_table() -> None:
    text = DOCS.read_text()
    assert text == render(text), "run: python tests/support/pipelines_table.py"


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_clear_and_leave_nothing_of_ours(name: str) -> None:
    case, pipe = PIPELINES[name], build(name)
    with pytest.raises(AttachError, match=case.refused) as caught:
        _try(pipe, case)
    assert "\n" not in str(caught.value)
    assert not pipe.unet._forward_pre_hooks
    left = {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
    assert "SiteProcessor" not in left


@pytest.mark.parametrize(
    "kind",
    [
        *("UNet2DModel", "UNet3DConditionModel", "UNetSpatioTemporalConditionModel"),
        *("Kandinsky3UNet", "I2VGenXLUNet"),
    ],
)
def test_other_unets_are_refused(kind: str) -> None:
    import diffusers

    with torch.device("meta"):
        pipe = SimpleNamespace(unet=getattr(diffusers, kind)())
    with pytest.raises(AttachError, match=f"a {kind}: no host describes this denoiser"):
        adapter_for(build("StableDiffusionPipeline")).attach(pipe)


def _try(pipe: Any, case: Case) -> None:
    adapter = adapter_for(pipe).attach(pipe)
    try:
        with adapter.use(prompt_of(adapter), guidance=case.guidance):
            run(pipe, case)
    finally:
        adapter.detach()
