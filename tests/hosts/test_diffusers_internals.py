"""The internals of diffusers, accelerate, transformers and torch that this project relies on.

None of them is a documented interface. Each test is named after one and checks that it still has
the shape we expect; its docstring says where we use it. `RELIED_ON` lists every private attribute
that the source reads from these libraries, so that a new one cannot slip in without a canary.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import imageprompt
from hosts_table import CASES
from rigs import bare_pipeline

RELIED_ON = {
    "_aten_kernels": "torch.ops.aten._scaled_dot_product_*: memory/activation_checkpointing",
    "_base": "Tensor._base: attention/step_tracker",
    "_buffers": "nn.Module: generation/exported/denoiser",
    "_context": "StateManager._context: attention/{state,witness}",
    "_diffusers_hook": "HookRegistry: attention, adapter/{attachment,lora}, loading/pipeline",
    "_C": "torch: attention/state",
    "_compiled_call_impl": "nn.Module: attention/compiled",
    "_current_graph_task_id": "torch._C: attention/state",
    "_execution_device": "DiffusionPipeline: loading/pipeline",
    "_foreach_lerp_": "torch: training/loop/training_state",
    "_forward_hooks": "nn.Module: hosts/_unet_processor",
    "_forward_hooks_always_called": "nn.Module: adapter/attachment",
    "_forward_hooks_with_kwargs": "nn.Module: adapter/attachment",
    "_forward_pre_hooks": "nn.Module: hosts/_unet_processor",
    "_forward_pre_hooks_with_kwargs": "nn.Module: adapter/attachment",
    "_get_default_store": "torch.distributed: training/loop/distributed",
    "_get_tracing_state": "torch._C: attention/compiled",
    "_guidance_scale": "DiffusionPipeline: generation/guidance_cutoff",
    "_hf_hook": "accelerate: adapter/offloading, loading/pipeline",
    "_inductor": "torch: deploy/export/backends/aoti",
    "_is_stateful": "ModelHook: attention/state",
    "_keep_in_fp32_modules": "ModelMixin: adapter/attachment",
    "_modules": "nn.Module: adapter/attachment, loading/pipeline",
    "_opoverload": "torch.library.custom_op: memory/activation_checkpointing",
    "_orig_mod": "torch.compile's wrapper: hosts",
    "_parameters": "nn.Module: adapter/lora",
    "_progress_bar_config": "DiffusionPipeline: generation/pipeline_call",
    "_use_default_values": "a config of diffusers: training/frozen_pipeline",
    "_version": "Tensor._version: core/fingerprint, hosts/_unet_processor",
}
STANDARD_LIBRARY = {
    *("_actions", "_option_string_actions", "_SubParsersAction", "_Hash", "_getframe", "_exit")
}
"""Names of argparse, hashlib, os and sys that the code and annotations use."""


def unet() -> Any:
    return CASES["sd15"].unet()


def cross_attention(model: Any) -> Any:
    return model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")


# ── the list is complete ────────────────────────────────────────────────────────────────────────


def _private_reads(path: Path) -> set[str]:
    """Private attributes that a file reads from objects that are not its own."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    defined = {n.attr for n in nodes if isinstance(n, ast.Attribute) and _on_self(n.value)}
    defined |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {
        n.target.id
        for n in nodes
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    read = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    read |= {
        call.args[1].value
        for call in nodes
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") in ("getattr", "hasattr")
        and len(call.args) > 1
        and isinstance(call.args[1], ast.Constant)
    }
    read |= {
        call.args[0].value
        for call in nodes
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", "") == "get"
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }
    private = {name for name in read if name.startswith("_") and not name.startswith("__")}
    return private - defined


def _on_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_every_private_attribute_is_listed() -> None:
    root = Path(imageprompt.__file__).parent
    found: dict[str, str] = {}
    for path in root.rglob("*.py"):
        for name in _private_reads(path):
            found[name] = str(path.relative_to(root))
    kernels = {name for name in found if name.startswith("_scaled_dot_product_")}
    config = {"_class_name"}  # a key of config.json, which is a file format
    assert kernels
    unlisted = set(found) - kernels - config - STANDARD_LIBRARY - set(RELIED_ON)
    assert not unlisted, {name: found[name] for name in unlisted}
    assert set(RELIED_ON) - {"_aten_kernels"} <= set(found), "no longer used: remove it here"


# ── attention processors ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["AttnProcessor", "AttnProcessor2_0"])
def test_processor_signature(name: str) -> None:
    """`hosts/_unet_processor.SiteProcessor` has the same parameters and reproduces the result."""
    from diffusers.models import attention_processor

    from imageprompt.hosts._unet_processor import SiteProcessor

    theirs = inspect.signature(getattr(attention_processor, name).__call__).parameters
    ours = inspect.signature(SiteProcessor.__call__).parameters
    assert list(theirs) == list(ours)
    assert [p.kind for p in theirs.values()] == [p.kind for p in ours.values()]


def test_attn_processors_order() -> None:
    """File ids are positions in `attn_processors`: down, up, mid; attn1 before attn2."""
    names = list(unet().attn_processors)
    assert names == [name for name in names if name.endswith(".processor")]
    blocks = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert blocks == ["down_blocks", "up_blocks", "mid_block"]
    assert [name.split(".")[-2] for name in names[:4]] == ["attn1", "attn2"] * 2


def test_default_processor() -> None:
    """`check_replaceable` knows it; a fresh UNet has nothing else."""
    kinds = {type(processor).__name__ for processor in unet().attn_processors.values()}
    assert kinds == {"AttnProcessor2_0"}


def test_attention_attributes() -> None:
    """What `SiteProcessor` and `hosts/unet` read of diffusers' Attention."""
    layer = cross_attention(unet())
    for name in ("to_q", "to_k", "to_v"):
        assert type(getattr(layer, name)) is nn.Linear
    assert type(layer.to_out[0]) is nn.Linear
    assert type(layer.to_out[1]) is nn.Dropout
    for name in ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross"):
        assert not getattr(layer, name), name
    assert layer.added_kv_proj_dim is None
    assert layer.fused_projections is False
    assert layer.is_cross_attention is True
    assert layer.residual_connection is False
    assert layer.rescale_output_factor == 1
    assert layer.inner_dim == layer.to_q.out_features
    assert layer.cross_attention_dim == layer.to_k.in_features
    assert layer.inner_dim % layer.heads == 0


def test_attention_methods() -> None:
    """`prepare_attention_mask` and `get_attention_scores` in `hosts/_unet_processor`."""
    layer = cross_attention(unet())
    mask = layer.prepare_attention_mask(torch.zeros(2, 1, 7), 7, 2)
    assert mask.shape == (2 * layer.heads, 1, 7)
    q, k = torch.randn(2, 3, 4), torch.randn(2, 7, 4)
    scores = layer.get_attention_scores(q, k, None)
    torch.testing.assert_close(scores, (q @ k.mT * layer.scale).softmax(-1))


# ── UNets ───────────────────────────────────────────────────────────────────────────────────────


def test_forward_arguments() -> None:
    """`attention/state` reads sample, timestep and text by position or by these names."""
    from diffusers import UNet2DConditionModel, UNetMotionModel

    for kind in (UNet2DConditionModel, UNetMotionModel):
        names = list(inspect.signature(kind.forward).parameters)
        assert names[:4] == ["self", "sample", "timestep", "encoder_hidden_states"]


def test_config_defaults() -> None:
    """`hosts/_unet_layers` fills in what a config leaves out as diffusers does."""
    from diffusers import UNet2DConditionModel

    from imageprompt.hosts import _unet_layers as layers

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name, value in layers._DEFAULTS.items():
        default = parameters[name].default
        assert (tuple(default) if isinstance(default, list | tuple) else default) == value, name
    for name, values in layers._NEUTRAL.items():
        assert parameters[name].default in values, name


def test_keep_in_fp32_modules() -> None:
    """`AttachedDenoiser.dtype` skips these weights, as `ModelMixin.dtype` does."""
    from diffusers import ModelMixin

    assert ModelMixin._keep_in_fp32_modules is None
    assert "_keep_in_fp32_modules" in inspect.getsource(
        inspect.getmodule(ModelMixin).get_parameter_dtype
    )


# ── hooks ───────────────────────────────────────────────────────────────────────────────────────


def _with_cache() -> tuple[Any, Any]:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    model = unet()
    apply_taylorseer_cache(model, TaylorSeerCacheConfig(cache_identifiers=[r".*attn2$"]))
    return model, cross_attention(model).__dict__["_diffusers_hook"]


def test_diffusers_hook() -> None:
    """`attention/state.reset_step_caches` finds hooks in `module.__dict__` and their `hooks`."""
    _, registry = _with_cache()
    assert isinstance(registry.hooks, dict)
    assert len(registry.hooks) == 1


def test_stateful_hooks() -> None:
    """`reset_step_caches` resets hooks whose `_is_stateful` is set by `reset_state(module)`."""
    from diffusers.hooks.hooks import ModelHook

    _, registry = _with_cache()
    (hook,) = registry.hooks.values()
    assert ModelHook._is_stateful is False
    assert hook._is_stateful is True
    assert list(inspect.signature(hook.reset_state).parameters) == ["module"]


def test_state_manager() -> None:
    """`reset_step_caches` saves the `_context` of every StateManager in `vars(hook)`."""
    from diffusers.hooks.hooks import CacheContext, StateManager

    model, registry = _with_cache()
    (hook,) = registry.hooks.values()
    (manager,) = [value for value in vars(hook).values() if hasattr(value, "set_context")]
    assert isinstance(manager, StateManager)
    context = CacheContext("a")
    manager.set_context(context)
    assert manager._context is context
    hook.reset_state(cross_attention(model))
    assert manager._context is None  # which is why we save it


def test_cache_contexts_reach_the_registries_below() -> None:
    """`attention/witness` is one of them, as a registry whose hook has a StateManager."""
    from diffusers.hooks import hooks

    registry = hooks.HookRegistry(unet())
    assert registry._get_child_registries() == []
    assert set(vars(registry)) >= {"hooks", "_module_ref", "_hook_order"}
    source = inspect.getsource(hooks._set_cache_context)
    for read in ("_get_child_registries", "_hook_order", ".hooks[", "_is_stateful", "vars(hook)"):
        assert read in source


def test_names_of_streaming_hooks() -> None:
    """`adapter/lora` refuses to merge into weights that these hooks load or cast."""
    model = unet()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16)
    names = {
        name
        for module in model.modules()
        for name in getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    }
    assert "layerwise_casting" in names
    model = unet()
    model.enable_group_offload("cpu", torch.device("cpu"), "leaf_level")
    names = {
        name
        for module in model.modules()
        for name in getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    }
    assert "group_offloading" in names
    from diffusers.hooks import group_offloading

    assert group_offloading._LAZY_PREFETCH_GROUP_OFFLOADING == "lazy_prefetch_group_offloading"


def test_accelerate_replaces_forward() -> None:
    """`hosts/_unet_processor`: a layer with a `forward` of its own is not a plain layer."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    layer = nn.Linear(2, 2)
    assert "forward" not in layer.__dict__
    add_hook_to_module(layer, ModelHook())
    assert "forward" in layer.__dict__
    remove_hook_from_module(layer)


def test_peft_base_layer() -> None:
    """`adapter/lora` reaches the base's layer through `base_layer`."""
    import peft

    model = unet()
    plain = cross_attention(model).to_q
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    assert cross_attention(model).to_q.base_layer is plain


# ── pipelines ───────────────────────────────────────────────────────────────────────────────────


def test_execution_device() -> None:
    """`loading/pipeline.device_of`."""
    assert bare_pipeline(unet())._execution_device == torch.device("cpu")


def test_progress_bar_config() -> None:
    """`generation/pipeline_call` restores it after a call."""
    pipe = bare_pipeline(unet())
    assert pipe._progress_bar_config == {"disable": True}


def test_use_default_values() -> None:
    """`training/frozen_pipeline` tells a stated `force_upcast` from a default one."""
    from diffusers import AutoencoderKL

    stated = AutoencoderKL.from_config({"force_upcast": False})
    assert "force_upcast" not in stated.config["_use_default_values"]
    assert "force_upcast" in AutoencoderKL.from_config({}).config["_use_default_values"]


def test_image_processor_of_transformers() -> None:
    """`encoding/encoders/clip` needs the one that works without torchvision."""
    from transformers import CLIPImageProcessorPil

    assert CLIPImageProcessorPil().size


# ── torch ───────────────────────────────────────────────────────────────────────────────────────


def test_orig_mod() -> None:
    """`hosts.denoiser_of` removes the wrapper of torch.compile."""
    model = nn.Linear(2, 2)
    assert torch.compile(model, backend="eager")._orig_mod is model


def test_tensor_version() -> None:
    """Caches compare `_version`: every write counts, a write through a view too."""
    x = torch.zeros(4)
    before = x._version
    x[1:].add_(1)
    assert x._version > before


def test_tensor_base() -> None:
    """`attention/step_tracker.is_view`: an element of a schedule knows the schedule."""
    schedule = torch.arange(4)
    assert schedule[1]._base is schedule
    assert schedule._base is None


def test_module_dictionaries() -> None:
    """`_modules`, `_parameters`, `_forward_hooks` and `_forward_pre_hooks` are plain mappings."""
    model = nn.Sequential(nn.Linear(2, 2))
    assert list(model._modules) == ["0"]
    assert list(model[0]._parameters) == ["weight", "bias"]
    handles = [model.register_forward_hook(print), model.register_forward_pre_hook(print)]
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    for handle in handles:
        handle.remove()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_attention_kernels() -> None:
    """`training/memory/activation_checkpointing` keeps the results of these operators."""
    from imageprompt.training.memory.activation_checkpointing import ATTENTION

    assert len(ATTENTION) == 5
    assert all(isinstance(op, torch._ops.OpOverload) for op in ATTENTION)


def test_foreach_lerp() -> None:
    """`training/loop/training_state` averages all weights in one call."""
    mine, theirs = [torch.zeros(2)], [torch.ones(2)]
    torch._foreach_lerp_(mine, theirs, 0.25)
    assert mine[0].tolist() == [0.25, 0.25]
