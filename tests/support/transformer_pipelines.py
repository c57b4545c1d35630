"""Every pipeline of diffusers that holds a transformer of a host: a tiny one, and its calls.

`PIPELINES` is the table that tests/hosts/test_transformer_pipelines.py runs and docs/pipelines.md
shows. Texts are given as embeddings, so no text encoder is built.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from transformers_table import CASES, TEXT

DOCS = Path(__file__).parents[2] / "docs" / "pipelines.md"
MARKS = "<!-- transformer pipelines -->", "<!-- end of transformer pipelines -->"
SIDE, TOKENS = 16, 5
BOTH = ("", "negative_")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline. `calls` are those of its first step: the rows of each, n negative, p positive.

    `refused` says why an image prompt is an error at the first step, `unseen` why no tiny one
    runs here.
    """

    host: str = ""
    calls: str = "p"
    config: dict[str, Any] = field(default_factory=dict)
    """What of the transformer's config differs from that of the host's case."""
    parts: dict[str, Callable[[], Any]] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    schedule: str = "0.5-1"
    """One whose effect is neither none nor the whole; "": none is tried."""
    refused: str = ""
    unseen: str = ""
    note: str = ""


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def vae(channels: int, halvings: int = 1) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = halvings + 1
    return AutoencoderKL(
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=2,
        latent_channels=channels,
        shift_factor=0.0,
    ).eval()


@cache
def video_vae(kind: str, channels: int) -> Any:
    """Each of its two steps halves the sides."""
    import diffusers

    torch.manual_seed(0)
    return getattr(diffusers, kind)(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    ).eval()


@cache
def deep_vae() -> Any:
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=1.0,
    ).eval()


@cache
def flux2_vae() -> Any:
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=1,
    ).eval()


@cache
def _transformer(host: str, changes: tuple[tuple[str, Any], ...]) -> Any:
    case = CASES[host]
    return type(case)(**{**vars(case), "config": {**case.config, **dict(changes)}}).build()


def transformer(case: Case) -> Any:
    """A copy, which its pipeline may change."""
    return copy.deepcopy(_transformer(case.host, tuple(case.config.items())))


def controlnet(kind: str, host: str, **options: Any) -> Callable[[], Any]:
    """One that is made from the host's transformer, with weights where zeros would hide it."""

    def build() -> Any:
        import diffusers

        torch.manual_seed(2)
        made = getattr(diffusers, kind).from_transformer(transformer(Case(host=host)), **options)
        for weight in made.parameters():
            if not weight.detach().any():
                torch.nn.init.normal_(weight, std=0.1)
        return made.eval()

    return build


def sana_controlnet() -> Any:
    from diffusers import SanaControlNetModel

    torch.manual_seed(2)
    known = inspect.signature(SanaControlNetModel.__init__).parameters
    shape = {name: value for name, value in CASES["sana"].config.items() if name in known}
    return SanaControlNetModel(**{**shape, "num_layers": 1}).eval()


def scheduler(name: str = "FlowMatchEulerDiscreteScheduler", **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        return getattr(diffusers, name)(**options)

    return build


def picture(colour: str = "red") -> Image.Image:
    half = Image.new("RGB", (SIDE, SIDE), colour)
    half.paste("white", (0, 0, SIDE // 2, SIDE // 2))
    return half


def mask() -> Image.Image:
    half = Image.new("L", (SIDE, SIDE), 0)
    half.paste(255, (0, 0, SIDE, SIDE // 2))
    return half


def _small(sizes: int, area: float, ratio: float) -> tuple[int, ...]:
    return (2 * SIDE,) * sizes


def make(kind: type, case: Case) -> Any:
    """A pipeline: the case's parts, then defaults, then None."""
    known = {"transformer": lambda: transformer(case), "scheduler": scheduler(), **case.parts}
    known["requires_safety_checker"] = lambda: False
    made: dict[str, Any] = {}
    for name, wanted in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        if name in known:
            made[name] = known[name]()
        elif wanted.default is inspect.Parameter.empty:
            made[name] = None
    pipe = kind(**made)
    module: Any = sys.modules[kind.__module__]
    if hasattr(module, "calculate_dimensions"):  # pictures to edit get a size of a million pixels
        sizes = 3 if kind.__name__.endswith(("EditPipeline", "EditInpaintPipeline")) else 2
        module.calculate_dimensions = partial(_small, sizes)
    pipe.default_sample_size = SIDE // 2  # HiDream makes no picture of another size
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(kind: type, case: Case, count: int = 1) -> dict[str, Any]:
    """The embeddings of `count` texts, and of as many negative ones, by the call's own names."""
    given: dict[str, Any] = {}
    known = inspect.signature(kind.__call__).parameters
    for number, side in enumerate(BOTH):
        seed = 3 + 10 * number
        for name, shape in _SHAPES.items():
            if f"{side}{name}" not in known:
                continue
            if "mask" in name:
                kind_of_mask = torch.float32 if case.host == "chroma" else torch.long
                given[f"{side}{name}"] = torch.ones(count, *shape, dtype=kind_of_mask)
            elif name == "prompt_embeds_llama3":
                given[f"{side}{name}"] = noise(2, count, *shape, seed=seed)
            else:
                given[f"{side}{name}"] = noise(count, *shape, seed=seed)
    if case.host == "z-image":
        given = {name: list(value) for name, value in given.items()}
    if case.host == "hunyuan-dit":
        for side in BOTH:
            given[f"{side}prompt_embeds_2"] = noise(count, 6, TEXT, seed=5)
            given[f"{side}prompt_attention_mask_2"] = torch.ones(count, 6, dtype=torch.long)
    return given


_SHAPES: dict[str, tuple[int, ...]] = {
    "prompt_embeds": (TOKENS, TEXT),
    "pooled_prompt_embeds": (32,),
    "prompt_embeds_mask": (TOKENS,),
    "prompt_attention_mask": (TOKENS,),
    "prompt_embeds_t5": (TOKENS, TEXT),
    "prompt_embeds_llama3": (TOKENS, TEXT),
}

# ── the table ───────────────────────────────────────────────────────────────────────────────────

_IMAGE: dict[str, Any] = {"image": picture(), "strength": 0.9, "num_inference_steps": 3}
_INPAINT: dict[str, Any] = {**_IMAGE, "mask_image": mask()}
_CONTROL: dict[str, Any] = {"control_image": picture("blue")}
_FLUX_VAE: dict[str, Any] = {"vae": lambda: vae(1)}
_TRUE = {"true_cfg_scale": 2.0}


def _flux(calls: str = "p", *, guided: bool = False, **given: Any) -> Case:
    call = {**(_TRUE if guided else {}), **given.pop("call", {})}
    parts = {**_FLUX_VAE, **given.pop("parts", {})}
    return Case(host="flux", calls="p n" if guided else calls, parts=parts, call=call, **given)


def _sd3(calls: str = "np", **given: Any) -> Case:
    return Case(
        host="sd3", calls=calls, parts={"vae": lambda: vae(4), **given.pop("parts", {})}, **given
    )


def _chroma(**given: Any) -> Case:
    return Case(host="chroma", calls="p n", parts=_FLUX_VAE, **given)


def _qwen(**given: Any) -> Case:
    parts = {"vae": lambda: video_vae("AutoencoderKLQwenImage", 1), **given.pop("parts", {})}
    call = {"true_cfg_scale": 2.0, **given.pop("call", {})}
    return Case(host="qwen-image", calls="p n", parts=parts, call=call, **given)


def _z_image(**given: Any) -> Case:
    return Case(host="z-image", calls="pn", parts={"vae": lambda: vae(4)}, **given)


def _sana(calls: str = "np", **given: Any) -> Case:
    return Case(
        host="sana", calls=calls, parts={"vae": deep_vae, **given.pop("parts", {})}, **given
    )


def _flux2(calls: str = "p", **given: Any) -> Case:
    return Case(host="flux2", calls=calls, parts={"vae": flux2_vae}, **given)


def _wan(**given: Any) -> Case:
    parts = {"vae": lambda: video_vae("AutoencoderKLWan", 4), **given.pop("parts", {})}
    return Case(
        host="wan",
        calls="p n",
        parts=parts,
        call={"num_frames": 1, **given.pop("call", {})},
        **given,
    )


_NO_BINS = {"use_resolution_binning": False}
_SANA = {**_NO_BINS, "height": 32, "width": 32}
_FLUX_NET = {
    "controlnet": controlnet(
        "FluxControlNetModel",
        "flux",
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
    )
}
_SD3_NET = {
    "controlnet": controlnet(
        "SD3ControlNetModel", "sd3", num_layers=1, num_extra_conditioning_channels=0
    )
}

PIPELINES: dict[str, Case] = {
    "FluxPipeline": _flux(guided=True, note="without `true_cfg_scale` the positive side alone"),
    "FluxImg2ImgPipeline": _flux(guided=True, call=_IMAGE),
    "FluxInpaintPipeline": _flux(guided=True, call=_INPAINT),
    "FluxKontextPipeline": _flux(
        guided=True,
        call={"image": picture(), "max_area": 256, "_auto_resize": False},
        note="the picture to edit gets no image term",
    ),
    "FluxKontextInpaintPipeline": _flux(
        guided=True, call={**_INPAINT, "max_area": 256, "_auto_resize": False}, note="as above"
    ),
    "FluxFillPipeline": _flux(config={"in_channels": 24, "out_channels": 4}, call=_INPAINT),
    "FluxControlPipeline": _flux(config={"in_channels": 8, "out_channels": 4}, call=_CONTROL),
    "FluxControlImg2ImgPipeline": _flux(
        config={"in_channels": 8, "out_channels": 4}, call={**_IMAGE, **_CONTROL}
    ),
    "FluxControlInpaintPipeline": Case(unseen="its masks need a VAE of 16 channels"),
    "FluxControlNetPipeline": _flux(guided=True, parts=_FLUX_NET, call=_CONTROL),
    "FluxControlNetImg2ImgPipeline": _flux(parts=_FLUX_NET, call={**_IMAGE, **_CONTROL}),
    "FluxControlNetInpaintPipeline": _flux(parts=_FLUX_NET, call={**_INPAINT, **_CONTROL}),
    "ChromaPipeline": _chroma(),
    "ChromaImg2ImgPipeline": _chroma(call=_IMAGE),
    "ChromaInpaintPipeline": Case(
        unseen="diffusers reads `guidance_embeds`, which Chroma has not: it does not run"
    ),
    "Flux2Pipeline": _flux2(),
    "Flux2KleinPipeline": _flux2("p n", config={"guidance_embeds": False}),
    "Flux2KleinInpaintPipeline": _flux2("p n", config={"guidance_embeds": False}, call=_INPAINT),
    "Flux2KleinKVPipeline": _flux2(config={"guidance_embeds": False}),
    "BriaPipeline": Case(host="bria", calls="np", parts=_FLUX_VAE),
    "StableDiffusion3Pipeline": _sd3(
        call={
            "skip_guidance_layers": [1],
            "skip_layer_guidance_scale": 2.0,
            "skip_layer_guidance_start": -1.0,
            "skip_layer_guidance_stop": 1.0,
        },
        calls="np p",
        note="the second call is that of skip-layer guidance",
    ),
    "StableDiffusion3Img2ImgPipeline": _sd3(call=_IMAGE),
    "StableDiffusion3InpaintPipeline": _sd3(
        config={"in_channels": 16, "out_channels": 16},
        parts={"vae": lambda: vae(16)},
        call=_INPAINT,
    ),
    "StableDiffusion3ControlNetPipeline": _sd3(parts=_SD3_NET, call=_CONTROL),
    "StableDiffusion3ControlNetInpaintingPipeline": _sd3(
        parts={
            "controlnet": controlnet(
                "SD3ControlNetModel", "sd3", num_layers=1, num_extra_conditioning_channels=1
            )
        },
        call={"control_image": picture("blue"), "control_mask": mask()},
    ),
    "StableDiffusion3PAGPipeline": _sd3(
        config={"qk_norm": None},
        call={"pag_scale": 2.0},
        refused="its perturbed layers cut the batch",
    ),
    "StableDiffusion3PAGImg2ImgPipeline": _sd3(
        config={"qk_norm": None},
        call={**_IMAGE, "pag_scale": 2.0},
        refused="its perturbed layers cut the batch",
    ),
    "QwenImagePipeline": _qwen(),
    "QwenImageImg2ImgPipeline": _qwen(call=_IMAGE),
    "QwenImageInpaintPipeline": _qwen(call=_INPAINT),
    "QwenImageEditPipeline": _qwen(
        call={"image": picture()}, note="the picture to edit gets no image term"
    ),
    "QwenImageEditInpaintPipeline": _qwen(call=_INPAINT, note="as above"),
    "QwenImageEditPlusPipeline": _qwen(
        call={"image": [picture(), picture("blue")]}, note="as above"
    ),
    "QwenImageLayeredPipeline": Case(
        unseen="it cannot do without its text encoder of 7 billion parameters"
    ),
    "QwenImageControlNetPipeline": _qwen(
        parts={
            "controlnet": controlnet(
                "QwenImageControlNetModel",
                "qwen-image",
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
            )
        },
        call=_CONTROL,
    ),
    "QwenImageControlNetInpaintPipeline": _qwen(
        parts={
            "controlnet": controlnet(
                "QwenImageControlNetModel",
                "qwen-image",
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                extra_condition_channels=4,
            )
        },
        call={"control_image": picture("blue"), "control_mask": mask()},
    ),
    "ZImagePipeline": _z_image(),
    "ZImageImg2ImgPipeline": _z_image(call=_IMAGE),
    "ZImageInpaintPipeline": _z_image(call=_INPAINT),
    "PixArtAlphaPipeline": Case(
        host="pixart",
        calls="np",
        parts={"vae": lambda: vae(4), "scheduler": scheduler("DPMSolverMultistepScheduler")},
        call=_NO_BINS,
    ),
    "PixArtSigmaPipeline": Case(
        host="pixart",
        calls="np",
        parts={"vae": lambda: vae(4), "scheduler": scheduler("DPMSolverMultistepScheduler")},
        call=_NO_BINS,
    ),
    "PixArtSigmaPAGPipeline": Case(
        host="pixart",
        calls="npp",
        parts={"vae": lambda: vae(4), "scheduler": scheduler("DPMSolverMultistepScheduler")},
        call={**_NO_BINS, "pag_scale": 2.0},
    ),
    "SanaPipeline": _sana(call=_SANA),
    "SanaPAGPipeline": _sana("npp", call={**_SANA, "pag_scale": 2.0}),
    "SanaSprintPipeline": _sana(
        "p",
        config={"guidance_embeds": True},
        parts={"scheduler": scheduler("SCMScheduler")},
        call=_SANA,
    ),
    "SanaSprintImg2ImgPipeline": _sana(
        "p",
        config={"guidance_embeds": True},
        parts={"scheduler": scheduler("SCMScheduler")},
        call={**_SANA, **_IMAGE, "strength": 1.0, "num_inference_steps": 2},
    ),
    "SanaControlNetPipeline": _sana(
        parts={"controlnet": sana_controlnet}, call={**_SANA, **_CONTROL}
    ),
    "HunyuanDiTPipeline": Case(
        host="hunyuan-dit",
        calls="np",
        parts={"vae": lambda: vae(4), "scheduler": scheduler("DDPMScheduler")},
        call=_NO_BINS,
    ),
    "HunyuanDiTPAGPipeline": Case(
        host="hunyuan-dit",
        calls="npp",
        parts={"vae": lambda: vae(4), "scheduler": scheduler("DDPMScheduler")},
        call={**_NO_BINS, "pag_scale": 2.0},
    ),
    "HunyuanDiTControlNetPipeline": Case(
        unseen="diffusers makes its ControlNet in the published width alone"
    ),
    "AuraFlowPipeline": Case(host="auraflow", calls="np", parts={"vae": lambda: vae(4)}),
    "CogView4Pipeline": Case(host="cogview4", calls="p n", parts={"vae": lambda: vae(4)}),
    "CogView4ControlPipeline": Case(
        host="cogview4",
        calls="p n",
        config={"in_channels": 8},
        parts={"vae": lambda: vae(4)},
        call=_CONTROL,
    ),
    "HiDreamImagePipeline": Case(host="hidream", calls="np", parts={"vae": lambda: vae(4)}),
    "Lumina2Pipeline": Case(host="lumina2", calls="p n", parts={"vae": lambda: vae(4)}),
    "WanPipeline": _wan(),
    "WanVideoToVideoPipeline": Case(
        host="wan",
        calls="p n",
        parts={"vae": lambda: video_vae("AutoencoderKLWan", 4)},
        call={"video": [picture()], "num_inference_steps": 3},
    ),
    "WanImageToVideoPipeline": Case(unseen="its masks need a VAE of the published factors"),
    "LucyEditPipeline": Case(unseen="its masks need a VAE of the published factors"),
    "ZImageControlNetPipeline": Case(
        unseen="its ControlNet shares layers with the published transformer"
    ),
    "ZImageControlNetInpaintPipeline": Case(unseen="as above"),
    "ZImageOmniPipeline": Case(
        unseen="references as tokens of its own are refused: its rows are not picture and text"
    ),
    "VisualClozePipeline": Case(unseen="its grid of pictures is one picture for FLUX Fill"),
    "VisualClozeGenerationPipeline": Case(unseen="as above"),
}


# ── docs/pipelines.md ────────────────────────────────────────────────────────────────────────────


def render(text: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{_table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def _table() -> str:
    lines = ["| pipeline | works | calls of a step | note |", "|---|---|---|---|"]
    return "\n".join(lines + [_line(name, case) for name, case in PIPELINES.items()])


def _line(name: str, case: Case) -> str:
    if case.unseen:
        return f"| `{name}` | not tried | | {case.unseen} |"
    if case.refused:
        return f"| `{name}` | no: {case.refused}, an error at the first step | | {case.note} |"
    calls = ", ".join(" ".join(rows) for rows in case.calls.split())
    return f"| `{name}` | yes | {calls} | {case.note} |"


if __name__ == "__main__":
    DOCS.write_text(render(DOCS.read_text()))
