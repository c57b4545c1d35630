"""convert: every layout there and back to the bit, diffusers as the judge, what is refused."""

from __future__ import annotations

import copy
import json
import os
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import imageprompt as ip
from imageprompt import cli
from imageprompt.checkpoint.formats import FORMATS
from imageprompt.checkpoint.identify.base_config import open_base
from imageprompt.core.spec import ProjectorOptions
from imageprompt.variants import VARIANTS, projector_shapes, site_shapes
from peer import random_tensor
from trainers import KINDS, SITES, WITH_LORA, standard, wrapper

LAYOUTS = [(one.name, suffix) for one in FORMATS if one.writable for suffix in one.suffixes]
HEAVY = ("torch", "numpy", "diffusers", "transformers", "safetensors", "PIL")


def convert(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


def source(folder: Path, kind: str = "base", host: str = "sd15", **changes: Any) -> Path:
    """A whole standard file with random weights; `changes` of tensors by name, None removes."""
    tensors: dict[str, Any] = {**standard(wrapper(host, kind)), **changes}
    path = folder / f"{kind}.safetensors"
    save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, path)
    return path


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


# ── there and back ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.sample(5)
@pytest.mark.parametrize(("layout", "suffix"), LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_are_equal_to_the_bit(
    kind: str, layout: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {n: t.half() for n, t in standard(wrapper("sd15", kind)).items() if "ip_adapter" in n}
    first = source(tmp_path, kind, **half)  # mixed dtypes, as some published files have
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    code = convert(first, there, "--to", layout)
    if layout in ("xlabs", "style-model"):  # no place for a K' without bias, or for any
        assert code == 2
        assert "layout" in capsys.readouterr().err
        assert not there.exists()
        return
    assert code == 0
    assert convert(there, back) == 0
    assert equal(load_file(first), load_file(back))
    assert ip.diff(first, there).same


@pytest.mark.sample(2)
@pytest.mark.parametrize("tokens", [4, 16])
def test_flux_adapters_through_every_layout(tokens: int, tmp_path: Path) -> None:
    path, base = flux_source(tmp_path, tokens)
    chain = [("standard", ".safetensors"), ("standard", ".bin"), ("xlabs", ".safetensors")]
    previous = path
    for number, (layout, suffix) in enumerate(chain):
        there = tmp_path / f"{number}{suffix}"
        ip.convert(previous, there, to=layout, base=base)
        assert ip.diff(path, there, base=base).same
        previous = there
    assert equal(load_file(path), load_file(previous))


def flux_source(folder: Path, tokens: int) -> tuple[Path, Path]:
    """A tiny adapter in XLabs' layout, and the folder of a base that it fits."""
    base = folder / "flux"
    (base / "transformer").mkdir(parents=True)
    config = {"_class_name": "FluxTransformer2DModel", **FLUX}
    (base / "transformer" / "config.json").write_text(json.dumps(config))
    width, text = 16, FLUX["joint_attention_dim"]
    state = {
        "ip_adapter_proj_model.proj.weight": torch.randn(tokens * text, 768),
        "ip_adapter_proj_model.proj.bias": torch.randn(tokens * text),
        "ip_adapter_proj_model.norm.weight": torch.randn(text),
        "ip_adapter_proj_model.norm.bias": torch.randn(text),
    }
    for block in range(FLUX["num_layers"]):
        for kind in "kv":
            name = f"double_blocks.{block}.processor.ip_adapter_double_stream_{kind}_proj"
            state |= {
                f"{name}.weight": torch.randn(width, text),
                f"{name}.bias": torch.randn(width),
            }
    save_file(state, folder / "xlabs.safetensors")
    return folder / "xlabs.safetensors", base


FLUX: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 3,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 8,
    "axes_dims_rope": [2, 2, 4],
}


# ── diffusers loads it ───────────────────────────────────────────────────────────────────────────


@cache
def shared_pipeline() -> Any:
    """Parts round a denoiser that each caller sets."""
    from tiny_stack import make_pipeline

    return make_pipeline()


def diffusers_output(host: str, kind: str, *load: Any, **options: Any) -> Tensor:
    """A guided call of diffusers' denoiser after `pipe.load_ip_adapter(*load, **options)`."""
    case, pipe = SITES[host], shared_pipeline()
    pipe.unet = unet = case.unet()
    pipe.load_ip_adapter(*load, subfolder="", image_encoder_folder=None, **options)
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    gen = torch.Generator().manual_seed(3)
    embeds = torch.randn(2, 1, *FEATURES[kind], generator=gen)
    if kind == "faceid-plus":
        projection.clip_embeds = torch.randn(2, 1, 257, 1280, generator=gen)
        projection.shortcut = True
    inputs = case.inputs(2)
    added = {**inputs.get("added_cond_kwargs", {}), "image_embeds": [embeds]}
    return case.read(unet, {**inputs, "added_cond_kwargs": added})


FEATURES = {
    "base": (20,),
    "plus": (9, 20),
    "full": (257, 20),
    "faceid": (512,),
    "faceid-plus": (512,),
    "portrait": (512,),
    "portrait-unnorm": (3, 512),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_own_loader_gives_equal_outputs(kind: str, tmp_path: Path) -> None:
    """The weights as they were in training, handed to diffusers in memory, are the reference."""
    made = wrapper("sd15", kind)
    torch.save(made.state_dict(), tmp_path / "checkpoint.bin")
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in standard(made).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor.clone()
    reference = diffusers_output("sd15", kind, parts, weight_name="")
    without = copy.deepcopy(parts)
    for name, tensor in without["ip_adapter"].items():
        if "_lora." in name or kind not in WITH_LORA:  # LoRA alone makes a difference, too
            without["ip_adapter"][name] = torch.zeros_like(tensor)
    assert (diffusers_output("sd15", kind, without, weight_name="") - reference).abs().max() > 1e-3
    # both forms hold the same bits: test_round_trips_are_equal_to_the_bit
    for name in ("adapter.safetensors", "adapter.bin")[: 2 if kind == "faceid" else 1]:
        assert convert(tmp_path / "checkpoint.bin", tmp_path / name) == 0
        loaded = diffusers_output("sd15", kind, str(tmp_path), weight_name=name)
        assert (loaded - reference).abs().max() <= 1e-5


def test_diffusers_own_loader_of_flux_adapters(tmp_path: Path) -> None:
    """XLabs' file, its standard form, and its pickle: the same outputs of the same transformer."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.ip_adapter import FluxIPAdapterMixin

    path, base = flux_source(tmp_path, 4)
    ip.convert(path, tmp_path / "standard.safetensors", base=base)
    ip.convert(path, tmp_path / "standard.bin", base=base)
    gen = torch.Generator().manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(1, 4, 4, generator=gen),
        "encoder_hidden_states": torch.randn(1, 3, FLUX["joint_attention_dim"], generator=gen),
        "pooled_projections": torch.randn(1, 8, generator=gen),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
        "guidance": torch.ones(1),
        "joint_attention_kwargs": {
            "ip_adapter_image_embeds": [torch.randn(1, 1, 768, generator=gen)]
        },
    }

    def output(name: str | None) -> Tensor:
        torch.manual_seed(0)
        pipe: Any = FluxIPAdapterMixin()
        pipe.transformer = FluxTransformer2DModel(**FLUX, guidance_embeds=True).eval()
        pipe.image_encoder = pipe.feature_extractor = object()
        given = dict(inputs)
        if name is None:
            del given["joint_attention_kwargs"]
        else:
            pipe.load_ip_adapter(str(tmp_path), weight_name=name)
        with torch.no_grad():
            return pipe.transformer(**given).sample

    reference = output("xlabs.safetensors")
    assert (reference - output(None)).abs().max() > 1e-3
    for name in ("standard.safetensors", "standard.bin"):
        assert (output(name) - reference).abs().max() <= 1e-5


SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "caption_projection_dim": 16,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}


def test_diffusers_own_loader_of_sd3_adapters(tmp_path: Path) -> None:
    """The published pickle, our safetensors and our pickle: the same outputs."""
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.ip_adapter import SD3IPAdapterMixin

    base = tmp_path / "base" / "transformer"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel", **SD3}))
    variant, spec = VARIANTS["instantx-sd3"], open_base(tmp_path / "base").spec
    options = ProjectorOptions(tokens=8, inner_dim=64)
    projector = variant.propose(20, spec.cross_attention_dim, options)
    gen = torch.Generator().manual_seed(5)
    shapes = {
        "image_proj": projector_shapes(variant, projector),
        "ip_adapter": site_shapes(variant, spec, projector),
    }
    state = {
        part: {name: random_tensor(gen, *shape) for name, shape in inside.items()}
        for part, inside in shapes.items()
    }
    torch.save(state, tmp_path / "published.bin")
    for name in ("ours.safetensors", "ours.bin"):
        ip.convert(tmp_path / "published.bin", tmp_path / name, base=tmp_path / "base")
    embeds = torch.randn(1, 9, 20, generator=gen)
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8, generator=gen),
        "encoder_hidden_states": torch.randn(1, 3, 24, generator=gen),
        "pooled_projections": torch.randn(1, 8, generator=gen),
        "timestep": torch.tensor([500.0]),
    }

    def output(name: str | None) -> Tensor:
        torch.manual_seed(0)
        pipe: Any = SD3IPAdapterMixin()
        pipe.transformer = SD3Transformer2DModel(**SD3).eval()
        pipe.image_encoder = pipe.feature_extractor = object()
        more = {}
        if name is not None:
            pipe.load_ip_adapter(str(tmp_path), weight_name=name, subfolder="")
            more = {"joint_attention_kwargs": {"ip_adapter_image_embeds": embeds}}
        with torch.no_grad():
            return pipe.transformer(**inputs, **more).sample

    reference = output("published.bin")
    assert (reference - output(None)).abs().max() > 1e-4
    for name in ("ours.safetensors", "ours.bin"):
        assert (output(name) - reference).abs().max() <= 1e-5


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_our_own_adapter_agrees_with_diffusers(kind: str, tmp_path: Path) -> None:
    case, features = SITES["sd15"], torch.randn(1, *FEATURES[kind])
    torch.save(wrapper("sd15", kind).state_dict(), tmp_path / "checkpoint.bin")
    ip.convert(tmp_path / "checkpoint.bin", tmp_path / "adapter.safetensors")
    unet = case.unet()
    adapter = ip.Adapter.load(tmp_path / "adapter.safetensors").attach(unet)
    prompt = adapter.encode(features=features, null_features=features)
    with adapter.use(prompt, 1.0):
        ours = case.read(unet, case.inputs(1))
    adapter.detach()
    from tiny_stack import make_pipeline

    pipe = make_pipeline()
    pipe.unet = unet
    options = {"weight_name": "adapter.safetensors", "image_encoder_folder": None}
    pipe.load_ip_adapter(str(tmp_path), subfolder="", **options)
    theirs = case.read(
        unet, {**case.inputs(1), "added_cond_kwargs": {"image_embeds": [features[None]]}}
    )
    assert (ours - theirs).abs().max() <= 1e-5


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    made = wrapper("sd15", "base")
    torch.save(made.state_dict(), tmp_path / "checkpoint.bin")
    target = tmp_path / "adapter.safetensors"
    ip.convert(tmp_path / "checkpoint.bin", target)
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    source_hash = ip.inspect(tmp_path / "checkpoint.bin").hashes["sha256-ends"]
    expected = {
        "generator": "imageprompt",
        "version": ip.__version__,
        "format": "pt",
        "variant": "base",
        "host": "unet",
        "feature": "image_embeds",
        "feature_width": "20",
        "tokens": "4",
        "null_rule": "zero features",
        "source_format": "training",
        "source_hash": f"sha256-ends:{source_hash}",
    }
    assert metadata == expected
    assert ip.inspect(target).hashes["sha256-ends"] == source_hash


def test_what_the_tensors_leave_open_stays_open_or_is_settled_by_the_user(tmp_path: Path) -> None:
    path, target = source(tmp_path, "faceid-plus"), tmp_path / "adapter.safetensors"
    both = ("faceid-plus", "faceid-plus-v2")
    assert ip.convert(path, target).variants == both
    assert ip.inspect(target).variants == both
    ip.convert(path, target, variant="faceid-plus-v2", force=True)
    report = ip.inspect(target)
    assert report.variants == ("faceid-plus-v2",)
    assert report.metadata["shortcut"] == "true"
    ip.convert(target, tmp_path / "again.safetensors")
    assert ip.inspect(tmp_path / "again.safetensors").variants == ("faceid-plus-v2",)
    with pytest.raises(ip.ImagePromptError, match="faceid-plus or faceid-plus-v2"):
        ip.convert(path, target, variant="base", force=True)


def test_lists_of_aliases_are_not_handed_on(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    save_model(wrapper("sd15", "base"), str(tmp_path / "saved.safetensors"))
    assert len(ip.inspect(tmp_path / "saved.safetensors").metadata) > 30
    ip.convert(tmp_path / "saved.safetensors", tmp_path / "adapter.safetensors")
    assert len(ip.inspect(tmp_path / "adapter.safetensors").metadata) < 15


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_ordinary_file_mode_and_no_leftovers(suffix: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        target = tmp_path / f"adapter{suffix}"
        ip.convert(source(tmp_path), target)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"base.safetensors", target.name}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_change_of_dtype_rounds_as_torch_does(dtype: str, tmp_path: Path) -> None:
    path, target = source(tmp_path, "plus"), tmp_path / "adapter.safetensors"
    assert ip.convert(path, target, dtype=dtype).dtypes == (dtype,)
    expected = {name: t.to(getattr(torch, dtype)) for name, t in load_file(path).items()}
    assert equal(load_file(target), expected)


def test_nothing_heavy_is_loaded_unless_a_dtype_changes(tmp_path: Path) -> None:
    torch.save(wrapper("sd15", "base").state_dict(), tmp_path / "checkpoint.bin")
    path, target = str(tmp_path / "checkpoint.bin"), str(tmp_path / "adapter.safetensors")
    commands = [["inspect", path, "--deep"], ["convert", path, target]]
    commands += [["validate", target, "--base", "sd15", "--json"], ["diff", path, target]]
    code = (
        "import sys\n"
        "from imageprompt.cli import main\n"
        f"codes = [main(command) for command in {commands}]\n"
        f"sys.exit(repr([n for n in {HEAVY} if n in sys.modules] or '') + repr(codes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "''[0, 0, 1, 0]"


def loaded_modules(code: str, *arguments: str | Path) -> list[str]:
    """Our own modules that a process has loaded at its end."""
    ending = "\nprint(*(n for n in sys.modules if n.split('.')[0] == 'imageprompt'))"
    command = [sys.executable, "-c", f"import sys{code}{ending}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_conversion_loads_few_modules_of_ours(suffix: str, tmp_path: Path) -> None:
    path, target = source(tmp_path), tmp_path / "adapter.safetensors"
    if suffix == ".bin":
        ip.convert(path, path.with_suffix(suffix))
    code = "; import imageprompt; imageprompt.convert(sys.argv[1], sys.argv[2])"
    loaded = loaded_modules(code, path.with_suffix(suffix), target)
    assert target.exists()
    assert len(loaded) <= 60
    assert len([name for name in loaded if ".checkpoint" in name]) <= 29


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def bad_weights(value: float) -> dict[str, Tensor]:
    tensor = standard(wrapper("sd15", "base"))["ip_adapter.5.to_v_ip.weight"].clone()
    tensor[1, 2] = value
    return {"ip_adapter.5.to_v_ip.weight": tensor}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ip_adapter.5.to_v_ip.weight": None}, "1 of 36"),
        ({"image_proj.norm.bias": None}, "image_proj.norm.bias"),
        ({"ip_adapter.5.to_x_ip.weight": torch.ones(3)}, "ip_adapter.5.to_x_ip.weight"),
        ({"ip_adapter.5.to_v_ip.weight": torch.ones(3, 4)}, "[3, 4]"),
        ({"something.else": torch.ones(3)}, "something.else"),
        (
            bad_weights(float("nan")),
            "contains 1 NaN or infinite value (ip_adapter.5.to_v_ip.weight)",
        ),
        (
            bad_weights(float("-inf")),
            "contains 1 NaN or infinite value (ip_adapter.5.to_v_ip.weight)",
        ),
    ],
)
def test_adapters_that_are_not_whole(
    changes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = source(tmp_path, **changes)
    assert convert(path, tmp_path / "adapter.safetensors") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_nan_can_be_forced_and_is_said(tmp_path: Path) -> None:
    path = source(tmp_path, **bad_weights(float("nan")))
    done = ip.convert(path, tmp_path / "adapter.safetensors", force=True)
    assert [problem.code for problem in done.forced] == ["not-finite"]
    assert "forced" in str(done)
    assert ip.diff(path, tmp_path / "adapter.safetensors").same


def test_every_flag_reaches_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = standard(wrapper("sd15", "faceid-plus"))["ip_adapter.5.to_v_ip.weight"].clone()
    nan[0, 0] = float("nan")
    path = source(tmp_path, "faceid-plus", **{"ip_adapter.5.to_v_ip.weight": nan})
    SITES["sd15"].unet().save_config(tmp_path / "base")
    flags = ["--variant", "faceid-plus-v2", "--dtype", "float16", "--to", "training", "--force"]
    flags += ["--base", str(tmp_path / "base"), "--json"]
    assert convert(path, tmp_path / "model.safetensors", *flags) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["layout"], data["dtypes"]) == ("training", ["float16"])
    assert data["variants"] == ["faceid-plus-v2"]
    assert [problem["code"] for problem in data["forced"]] == ["not-finite"]


def test_a_bar_for_people_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tqdm

    seen: list[tuple[float, float]] = []
    close = tqdm.tqdm.close
    monkeypatch.setattr(
        tqdm.tqdm, "close", lambda bar: (seen.append((bar.n, bar.total)), close(bar))
    )
    done = ip.convert(source(tmp_path), tmp_path / "adapter.safetensors", progress=True)
    assert (done.bytes, done.bytes) in seen
    assert capsys.readouterr() == ("", "")  # it was too quick to be shown


def test_values_beyond_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = source(tmp_path, **bad_weights(1e6))
    assert convert(path, tmp_path / "half.safetensors", "--dtype", "float16") == 2
    assert "ip_adapter.5.to_v_ip.weight" in capsys.readouterr().err
    assert not (tmp_path / "half.safetensors").exists()
    assert convert(path, tmp_path / "brain.safetensors", "--dtype", "bfloat16") == 0


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("adapter.txt", (), ".safetensors or .bin"),
        ("adapter", (), ".safetensors or .bin"),
        ("adapter.safetensors", ("--to", "bin"), "ends in .bin"),
        ("adapter.bin", ("--to", "xlabs"), "ends in .safetensors"),
        ("adapter.safetensors", ("--to", "standrad"), "standard"),
        ("adapter.safetensors", ("--dtype", "float61"), "Did you mean float16"),
        ("adapter.safetensors", ("--base", "sd51"), "sd15"),
        ("none/adapter.safetensors", (), "no such folder"),
        ("folder.safetensors", (), "this is a folder"),
        ("base.safetensors", (), "this is the file to be converted"),
        ("link.safetensors", (), "this is the file to be converted"),
    ],
)
def test_targets_and_options_that_make_no_sense(
    target: str,
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = source(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to(path)
    before = path.read_bytes(), sorted(tmp_path.rglob("*"))
    assert convert(path, tmp_path / target, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert (path.read_bytes(), sorted(tmp_path.rglob("*"))) == before


def test_nothing_is_overwritten_unless_it_is_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal comes before any work: neither source nor base nor Hub is looked at."""
    from imageprompt.checkpoint import convert as job

    target = tmp_path / "adapter.safetensors"
    target.write_text("precious")
    with monkeypatch.context() as patched:
        patched.setattr(job, "locate_source", lambda *_: pytest.fail("the source was located"))
        with pytest.raises(
            ip.ImagePromptError, match=r"exists already.*--overwrite \(overwrite=True"
        ):
            ip.convert("owner/repo/file.safetensors", target, base=tmp_path / "none")
        assert convert(tmp_path / "none", target) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "precious"
    path = source(tmp_path)
    assert convert(path, target, "--overwrite") == 0
    assert equal(load_file(path), load_file(target))
    assert ip.convert(path, target, overwrite=True).forced == ()
    assert ip.convert(path, target, force=True).forced == ()
    (tmp_path / "diverged").mkdir()
    bad = source(tmp_path / "diverged", **bad_weights(float("nan")))
    assert convert(bad, target, "--overwrite") == 2
    assert "NaN" in capsys.readouterr().err
    assert equal(load_file(path), load_file(target))
    assert convert(path, path, "--overwrite") == 2
    assert "the file to be converted" in capsys.readouterr().err
    assert equal(load_file(path), load_file(target))


def test_a_write_that_goes_wrong_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that returns other bytes than it was given: found before the file gets its name."""
    from imageprompt.checkpoint import convert as job

    path, target = source(tmp_path), tmp_path / "adapter.safetensors"
    target.write_text("precious")
    write = job.write_safetensors

    def flipped(where: Path, *arguments: Any) -> None:
        write(where, *arguments)
        data = bytearray(where.read_bytes())
        data[-5] ^= 1
        where.write_bytes(data)

    monkeypatch.setattr(job, "write_safetensors", flipped)
    assert convert(path, target, "--force") == 2
    assert "differs from its source" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.safetensors", "base.safetensors"]


def test_a_file_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_api

    from hub import serving

    (tmp_path / "someone" / "adapters").mkdir(parents=True)
    path = source(tmp_path / "someone" / "adapters")
    with serving(tmp_path) as hub:
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        ip.convert("someone/adapters/base.safetensors", tmp_path / "adapter.safetensors")
    assert equal(load_file(path), load_file(tmp_path / "adapter.safetensors"))
