"""The wrapper that the reference scripts train, re-written small, and what trainers save of it.

The wrapper holds `unet`, `image_proj_model` and `adapter_modules`; the latter are the processors of
the former, so every trained tensor of a site is there under two names. Nothing here imports
imageprompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hosts_table import ADAPTERS, CASES, HostCase
from peer import random_tensor, resampler_state

LORA_RANK = 4

# The published site lists (16 of 32 and 70 of 140 processors), at widths that fit a test.
SITES = {
    "sd15": CASES["sd15"],
    "sdxl": HostCase(
        name="sdxl70",
        config={
            **CASES["sdxl"].config,
            "block_out_channels": (8, 16, 16),
            "norm_num_groups": 4,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (1, 2, 2),
            "cross_attention_dim": 16,
        },
        cross_attention_dim=16,
        pooled=24,
        sites=70,
    ),
}
KINDS = ("base", "plus", "full", "faceid", "faceid-plus", "portrait", "portrait-unnorm")
WITH_LORA = ("faceid", "faceid-plus")


class Lora(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down = nn.Linear(columns, LORA_RANK, bias=False)
        self.up = nn.Linear(LORA_RANK, rows, bias=False)


class Processor(nn.Module):
    """What stands in an attention layer: K', V' where text is read, LoRA where asked for."""

    def __init__(self, attention: Any, *, cross: bool, lora: bool) -> None:
        super().__init__()
        width, text = attention.inner_dim, attention.cross_attention_dim
        if lora:
            read = text if cross else width
            self.to_q_lora, self.to_out_lora = Lora(width, width), Lora(width, width)
            self.to_k_lora, self.to_v_lora = Lora(width, read), Lora(width, read)
        if cross:
            self.to_k_ip = nn.Linear(text, width, bias=False)
            self.to_v_ip = nn.Linear(text, width, bias=False)


class Projector(nn.Module):
    """Weights under the names of a file's `image_proj` part; it is never run."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(tensor))


class Wrapper(nn.Module):
    """The reference's `IPAdapter` training module."""

    def __init__(self, unet: nn.Module, projector: nn.Module, *, lora: bool) -> None:
        super().__init__()
        processors = {}
        for name in unet.attn_processors:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            processors[name] = Processor(attention, cross=".attn2." in name, lora=lora)
        unet.set_attn_processor(processors)
        self.unet = unet.requires_grad_(False)
        self.image_proj_model = projector
        self.adapter_modules = nn.ModuleList(unet.attn_processors.values())


def wrapper(host: str, kind: str) -> Wrapper:
    """Random weights; the same for the same arguments."""
    gen = torch.Generator().manual_seed(11)
    case = SITES[host]
    made = Wrapper(
        case.unet(), Projector(projector_state(kind, case.cross_dim, gen)), lora=kind in WITH_LORA
    )
    for parameter in made.adapter_modules.parameters():
        parameter.data.copy_(random_tensor(gen, *parameter.shape))
    return made


def projector_state(kind: str, width: int, gen: torch.Generator) -> dict[str, Tensor]:
    """Weights of a projector that makes tokens `width` wide, by the names of published files."""
    if kind in ADAPTERS:
        return ADAPTERS[kind].image_proj(width, gen)
    if kind == "portrait-unnorm":
        sizes = {"feature": 512, "width": 64, "heads": 1, "depth": 4, "tokens": 16}
        return resampler_state(gen, **sizes, out=width)
    tokens = 16 if kind == "portrait" else 4
    state = {
        "proj.0.weight": random_tensor(gen, 1024, 512),
        "proj.0.bias": random_tensor(gen, 1024),
        "proj.2.weight": random_tensor(gen, tokens * width, 1024),
        "proj.2.bias": random_tensor(gen, tokens * width),
        "norm.weight": 1 + random_tensor(gen, width),
        "norm.bias": random_tensor(gen, width),
    }
    if kind == "faceid-plus":
        sizes = {"feature": 1280, "width": width, "heads": 1, "depth": 4, "tokens": 4}
        inner = resampler_state(gen, **sizes, out=width)
        state |= {f"perceiver_resampler.{n}": t for n, t in inner.items() if n != "latents"}
    return state


def standard(made: Wrapper) -> dict[str, Tensor]:
    """The same weights under the standard file's flat names: what a conversion must give."""
    parts = {"image_proj": made.image_proj_model, "ip_adapter": made.adapter_modules}
    return {
        f"{part}.{name}": tensor.detach()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


# ── savers: each writes what one way of training leaves, and returns what to convert ─────────────


def accelerate_now(made: Wrapper, folder: Path) -> Path:
    """accelerate's default: model.safetensors, every shared tensor once."""
    return _save_state(made, folder) / "model.safetensors"


def accelerate_before(made: Wrapper, folder: Path) -> Path:
    """accelerate with safe_serialization=False, as all versions before 0.22: pytorch_model.bin."""
    return _save_state(made, folder, safe_serialization=False) / "pytorch_model.bin"


def accelerate_folder(made: Wrapper, folder: Path) -> Path:
    """The checkpoint's folder itself, with optimiser and random states beside the model."""
    return _save_state(made, folder)


def training_folder(made: Wrapper, folder: Path) -> Path:
    """A training's output folder with two checkpoints; the later one counts."""
    other = wrapper("sd15", "base")
    _save_state(other, folder / "checkpoint-9")
    _save_state(made, folder / "checkpoint-10")
    return folder


def sharded(made: Wrapper, folder: Path) -> Path:
    """accelerate's save_model over several files with an index."""
    from accelerate import Accelerator

    Accelerator(cpu=True).save_model(made, folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def save_model(made: Wrapper, folder: Path) -> Path:
    """safetensors' own save_model: it keeps one name of each, and lists the others as metadata."""
    import safetensors.torch

    path = folder / "saved.safetensors"
    safetensors.torch.save_model(made, str(path))
    return path


def raw_ddp(made: Wrapper, folder: Path) -> Path:
    """The state dict of a DistributedDataParallel, saved as it is."""
    path = folder / "ddp.pt"
    torch.save({f"module.{name}": t for name, t in made.state_dict().items()}, path)
    return path


def compiled(made: Wrapper, folder: Path) -> Path:
    """The state dict of torch.compile's wrapper."""
    path = folder / "compiled.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own parts
        state = torch.compile(made).state_dict()
    assert all(name.startswith("_orig_mod.") for name in state)
    torch.save(state, path)
    return path


def legacy_pickle(made: Wrapper, folder: Path) -> Path:
    """torch.save before 1.6: no zip."""
    path = folder / "legacy.bin"
    torch.save(made.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def deepspeed(made: Wrapper, folder: Path) -> Path:
    """DeepSpeed's layout: weights under "module" of a rank's file, other state around it."""
    inner = folder / "pytorch_model"
    inner.mkdir()
    content = {
        "module": made.state_dict(),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{"unet.conv_in.weight": torch.Size([1])}],
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [1e-4]},
        "global_steps": 3,
        "ds_version": "0.16.0",
        "dp_world_size": 1,
    }
    torch.save(content, inner / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("pytorch_model")
    return folder


def zero_to_fp32(made: Wrapper, folder: Path) -> Path:
    """What DeepSpeed's zero_to_fp32.py makes: a flat float32 pickle, aliases kept."""
    path = folder / "pytorch_model.bin"
    torch.save({name: t.float() for name, t in made.state_dict(keep_vars=False).items()}, path)
    return path


def dcp(made: Wrapper, folder: Path) -> Path:
    """torch.distributed.checkpoint: a folder of .distcp files."""
    import torch.distributed.checkpoint as checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that this is a single process
        checkpoint.save({"model": made.state_dict()}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


SAVERS: dict[str, Callable[[Wrapper, Path], Path]] = {
    saver.__name__: saver
    for saver in (
        accelerate_now,
        accelerate_before,
        accelerate_folder,
        training_folder,
        sharded,
        save_model,
        raw_ddp,
        compiled,
        legacy_pickle,
        deepspeed,
        zero_to_fp32,
        dcp,
    )
}


def _save_state(made: Wrapper, folder: Path, **options: Any) -> Path:
    """One step of a real training, saved by accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    trained = [p for p in made.parameters() if p.requires_grad]
    model, optimizer = accelerator.prepare(made, torch.optim.AdamW(trained, lr=1e-3))
    for parameter in trained[:2]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    accelerator.save_state(str(folder), **options)
    assert accelerator.unwrap_model(model) is made
    return folder
