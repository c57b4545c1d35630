"""plan: memory and time from configs, beside what others measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imageprompt import cli
from imageprompt.core.errors import NotFoundError, OptionError, WrongBaseError
from imageprompt.deploy.plan import gpu_of, plan
from imageprompt.deploy.plan import open as open_plan
from imageprompt.deploy.plan.allocator import MIB, CachingAllocator
from imageprompt.deploy.plan.bases import BASES
from imageprompt.deploy.plan.plan import CONTEXT, CPU, GIB

# ── beside public measurements ──────────────────────────────────────────────────────────────────
# What they measured leaves the CUDA context out unless it says otherwise; GB are 10^9 bytes.


def weights(base: str, precision: str) -> float:
    return plan(base, None, dtype="bfloat16").modes[precision].weights / GIB


def peak(base: str, mode: str, **options: Any) -> float:
    return plan(base, None, **{"dtype": "bfloat16", **options}).modes[mode].peak / GIB


def reserved(base: str, precision: str) -> float:
    """torch.cuda.max_memory_reserved, which is without the CUDA context."""
    return (plan(base, None, dtype="bfloat16").modes[precision].reserved or 0.0) / GIB


def denoising(base: str, precision: str) -> float:
    """The denoiser alone on the card."""
    found = plan(base, None, dtype="bfloat16").modes[f"{precision}, model offload"]
    return found.phases["denoise"] / GIB


GB = 1e9 / GIB
PUBLIC = [
    # diffusers-quantization-benchmarks: FLUX.1 dev, 1024 px
    ("FLUX bfloat16, loaded", lambda: weights("flux-dev", "bfloat16"), 31.447),
    ("FLUX bfloat16, reserved", lambda: reserved("flux-dev", "bfloat16"), 36.166),
    ("FLUX int8 (torchao), reserved", lambda: reserved("flux-dev", "int8"), 21.482),
    ("FLUX int8 (quanto), reserved", lambda: reserved("flux-dev", "int8"), 21.814),
    ("FLUX nf4, reserved", lambda: reserved("flux-dev", "nf4"), 17.281),
    ("FLUX bfloat16, model offload", lambda: peak("flux-dev", "bfloat16, model offload"), 23.27),
    ("FLUX int8, loaded", lambda: weights("flux-dev", "int8"), 17.0),
    ("FLUX nf4, loaded", lambda: weights("flux-dev", "nf4"), 12.6),
    # diffusers' own benchmarks: the transformer of FLUX.1 dev, a step
    ("FLUX transformer", lambda: denoising("flux-dev", "bfloat16"), 22.64),
    ("FLUX transformer, nf4", lambda: denoising("flux-dev", "nf4"), 6.72),
    # SDXL, 1024 px
    ("SDXL bfloat16, peak", lambda: peak("sdxl", "bfloat16"), 8.8),
    (
        "SDXL float32, 4 pictures",
        lambda: peak("sdxl", "float32", dtype="float32", batch_size=4),
        28 * GB,
    ),
    (
        "SDXL float16, 4 pictures",
        lambda: peak("sdxl", "float16", dtype="float16", batch_size=4),
        21.7 * GB,
    ),
]


@pytest.mark.parametrize(("what", "planned", "measured"), PUBLIC, ids=[row[0] for row in PUBLIC])
def test_memory_is_within_a_tenth_of_public_measurements(
    what: str, planned: Any, measured: float
) -> None:
    assert planned() == pytest.approx(measured, rel=0.1), what


def test_freed_blocks_merge_within_a_segment_and_are_cut() -> None:
    allocator = CachingAllocator()
    one, two = allocator.take(8 * MIB), allocator.take(8 * MIB)
    assert allocator.reserved == 20 * MIB  # one segment for both
    allocator.give_back(one)
    allocator.give_back(two)
    whole = allocator.take(9 * MIB)  # the merged segment, cut again
    allocator.take(9 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.give_back(whole)
    allocator.take(100 * MIB + 1)  # larger than what is free: a segment of its own
    assert allocator.reserved == 122 * MIB
    allocator.take(100)
    allocator.take(1000)
    assert allocator.reserved == 124 * MIB  # small ones have segments of 2 MiB


# ── beside processes on a CPU ───────────────────────────────────────────────────────────────────
# benchmarks/plan.py: GiB above what Python and the libraries take, and CPU seconds of a call.
# Its speed in a matrix product is that of one thread of the machine that measured.

HERE = [
    ("SD1.5, float32, 512 px", 3.65, 20.4),
    ("SD1.5, bfloat16, 512 px, Plus", 1.89, 12.3),
    ("SDXL, bfloat16, 512 px", 4.99, 18.4),
    ("SDXL, bfloat16, 512 px, Plus and ViT-H", 7.03, 20.6),
    ("autoencoder, float32, 512 px", 1.25, 30.9),
]
SPEED = {"float32": 88e9, "bfloat16": 192e9}


@pytest.mark.parametrize(("what", "gib", "seconds"), HERE, ids=[row[0] for row in HERE])
def test_processes_measured_on_a_cpu(what: str, gib: float, seconds: float) -> None:
    from plan import PROCESSES

    planned, flops, _ = PROCESSES[what]()
    assert planned / GIB == pytest.approx(gib, rel=0.1)
    speed = SPEED["float32" if "float32" in what else "bfloat16"]
    assert flops is not None
    assert 0.5 <= flops / (speed * CPU) / seconds <= 2


def test_this_cpu() -> None:
    found = plan("sd15", "plus", dtype="bfloat16", gpu=gpu_of("cpu"), steps=20)
    mode = found.modes["bfloat16"]
    assert mode.seconds is not None
    assert 0 < mode.seconds[0] < mode.seconds[1]
    assert found.gpu is not None
    assert found.gpu.on_cpu
    in_float32 = [
        plan("sd15", None, dtype="float32", gpu=gpu).modes["float32"].phases["decode"]
        for gpu in (None, found.gpu)
    ]
    assert in_float32[0] < in_float32[1]  # convolutions copy there


@pytest.mark.parametrize(
    ("base", "gpu", "options", "seconds"),
    [
        # diffusers' documentation: TITAN RTX, 512 px, 50 steps, float16 with fused attention
        ("sd15", "TITAN RTX", {"steps": 50, "size": 512}, 2.63),
        # the same in float32
        ("sd15", "TITAN RTX", {"steps": 50, "size": 512, "dtype": "float32"}, 9.50),
        # compiled, 30 steps, a card of 80 GB
        ("sdxl", "A100 80GB", {"steps": 30, "size": 1024}, 2.6),
    ],
)
def test_time_is_within_the_told_interval(
    base: str, gpu: str, options: dict[str, Any], seconds: float
) -> None:
    found = plan(base, None, gpu=gpu_of(gpu), **options)
    low, high = found.modes[found.dtype].seconds or (0, 0)
    assert low * 0.99 <= seconds <= high
    assert high == pytest.approx(4 * low)


# ── counted ─────────────────────────────────────────────────────────────────────────────────────


def test_the_counted_figures_are_those_of_the_configs() -> None:
    from imageprompt.deploy.plan import measure, open
    from imageprompt.deploy.plan.count import cost, parameters

    base, known = BASES["sd15"], open.counted("sd15")
    denoiser = measure.build(base.denoiser)
    assert parameters(denoiser) == known.denoiser.parameters == 859_520_964
    found = cost(denoiser, lambda: measure.denoiser_call(base.denoiser, denoiser, base)(640))
    assert known.denoiser.flops.at(0.640**2) == pytest.approx(found.flops, rel=1e-6)
    assert known.denoiser.bytes.at(0.640**2) == pytest.approx(found.bytes, rel=0.01)


def test_a_pipeline_folder_is_counted_from_its_configs() -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from imageprompt.core import bundled

    found = plan("bundled", "plus")
    unet = UNet2DConditionModel.from_pretrained(
        bundled.folder() / "unet", torch_dtype=torch.float16
    )
    assert found.base.denoiser.parameters == sum(w.numel() for w in unet.parameters())
    assert found.size == (64, 64)
    from_file = open_plan._adapter(bundled.adapter("plus"), found.base)
    assert found.adapter is not None
    assert from_file.sites == found.adapter.sites


def test_a_transformer_folder_is_counted_too() -> None:
    found = plan("bundled-sd3", "base")
    assert found.base.rows == 2
    assert found.base.image_encoder.parameters < 2e6  # the one in its folder, not the usual ViT-H
    assert found.base.denoiser.parameters == pytest.approx(5.4e6, rel=0.2)


# ── options ─────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_costs_its_weights_and_saved_prompts_spare_the_encoder() -> None:
    bare, full = plan("sdxl", None), plan("sdxl", "plus")
    saved = plan("sdxl", "plus", saved_prompts=True)
    millions = 340.8 + 83.0 + 632.1
    added = full.modes["float16"].weights - bare.modes["float16"].weights
    assert added / 2e6 == pytest.approx(millions, rel=1e-3)
    assert full.saved / 2e6 == pytest.approx(83.0 + 632.1, rel=1e-3)
    spared = full.modes["float16"].weights - saved.modes["float16"].weights
    assert spared == pytest.approx(full.saved)


def test_what_fits_a_card() -> None:
    found = plan("flux-dev", None, dtype="bfloat16", gpu=gpu_of("24GB"))
    fits = {name for name, mode in found.modes.items() if mode.fits}
    assert "bfloat16" not in fits
    assert {"bfloat16, model offload", "int8", "nf4"} <= fits
    assert found.modes["int8"].seconds is None  # of a card of which only the memory is known
    assert CONTEXT > 0


def test_the_command_prints_json_at_once() -> None:
    code = (
        "import sys; from imageprompt.cli import main; code = main(); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    command = ["plan", "--base", "sdxl", "--adapter", "plus", "--size", "1024"]
    command += ["--dtype", "bfloat16", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    mode = json.loads(done.stdout)["modes"]["bfloat16"]
    assert mode["weights_gib"] == pytest.approx(8.43, abs=0.01)
    assert set(mode) >= {"weights_gib", "activations_gib", "peak_gib", "seconds"}
    assert mode["seconds"][0] < mode["seconds"][1]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"base": "sdxxl"}, NotFoundError, "Did you mean 'sdxl'"),
        ({"base": "sdxl", "dtype": "int3"}, OptionError, "not one of"),
        ({"base": "sdxl", "steps": 0}, OptionError, "not from 1"),
        ({"base": "sdxl", "batch_size": 10**6}, OptionError, "not from 1"),
        ({"base": "sdxl", "size": 10**6}, OptionError, "pixels"),
        ({"base": "sdxl", "adapter": "bundled/base"}, NotFoundError, "no such"),
    ],
)
def test_bad_options(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan(**arguments)


def test_an_adapter_of_another_base() -> None:
    from imageprompt.core import bundled

    with pytest.raises(WrongBaseError, match="for sdxl"):
        plan("sdxl", bundled.adapter("plus"))


def test_a_pipeline_that_plan_cannot_count(tmp_path: Path) -> None:
    index = {"transformer": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(OptionError, match="a WanTransformer3DModel"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet", {"layers_per_block": 10**12}, "layers"),
        ("unet", {"block_out_channels": [10**12, 1, 1]}, "not a number up to"),
        ("unet", {"block_out_channels": "wide"}, "describe no model"),
        ("unet", {"sample_size": 10**6}, "not a number up to"),
        ("vae", {"block_out_channels": []}, "describe no model"),
        ("text_encoder", {"num_hidden_layers": -5}, "layers"),
        ("", {"vae": ["diffusers", "AutoencoderTiny"]}, "not an AutoencoderKL"),
        ("", {"text_encoder": ["transformers", "AutoModel"]}, "plan cannot count it"),
        ("", {"unet": ["os", "system"]}, "plan cannot count it"),
    ],
)
def test_configs_of_strangers(
    file: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from imageprompt.core import bundled

    for path in bundled.folder().rglob("*.json"):
        target = tmp_path / path.relative_to(bundled.folder())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    path = tmp_path / file / ("config.json" if file else "model_index.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(OptionError, match=words) as error:
        plan(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--base", "sdxl", "--gpu", "RTX 3061"]) == 2
    assert "Did you mean 'RTX 3060'" in capsys.readouterr().err
    assert gpu_of("geforce rtx-4090").memory == 24
