"""Every pipeline of diffusers that holds a UNet: how to build and call a tiny one, and its batch.

`PIPELINES` is the table that tests/adapter/test_pipelines.py runs and docs/pipelines.md shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pipelines_parts as parts
from pipelines_parts import LATENT, SIDE, mask, picture

PartFactories = dict[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline: `rows` of its batch (n negative, p positive), or why it is `refused`.

    `unseen` says why no tiny one runs here. `guidance` must be stated where it is not "auto".
    """

    unet: str = "sd"
    factories: PartFactories = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    rows: str = "np"
    guidance: Any = "auto"
    before: Callable[[Any], None] | None = None
    """What to do with the pipeline before an adapter is attached."""
    steps: str = "known"
    """"unknown": a schedule needs `timesteps=`; "one": two steps become one here."""
    refused: str = ""
    unseen: str = ""
    note: str = ""


def branches(rows: str) -> tuple[str, ...]:
    return tuple({"n": "negative", "p": "positive"}[row] for row in rows)


def _text(width: int, tokens: int = 5, seed: int = 3) -> torch.Tensor:
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))


def _embeds(width: int, pooled: int = 0) -> dict[str, Any]:
    """Encoded texts, instead of words."""
    made = {"prompt_embeds": _text(width), "negative_prompt_embeds": _text(width, seed=4)}
    if pooled:
        made |= {
            "pooled_prompt_embeds": _text(pooled)[:, 0],
            "negative_pooled_prompt_embeds": _text(pooled, seed=4)[:, 0],
        }
    return made | {"prompt": None, "negative_prompt": None}


def _scheduler(name: str, **config: Any) -> PartFactories:
    return {"scheduler": partial(parts.scheduler, name, **config)}


IMAGE = {"image": picture(), "strength": 1.0}
INPAINT = {**IMAGE, "mask_image": mask()}
CONTROL = {"control_image": picture("blue")}
VIDEO = {"video": [picture(), picture("green")], "strength": 1.0}
FRAMES = {"num_frames": 2}
CONDITIONS = {"conditioning_frames": [picture(), picture("green")]}
ZERO = {"video_length": 2, "t0": 0, "t1": 1}
PAG: dict[str, Any] = {"rows": "npp"}
XL_CONTROL: PartFactories = {"controlnet": partial(parts.controlnet, "xl")}
UNION: PartFactories = {"controlnet": partial(parts.controlnet, "union")}
BLIP = "its text encoder takes parts of BLIP-2"
MARIGOLD: dict[str, Any] = {
    "unet": "sd 8 channels",
    "rows": "p",
    "call": {"image": picture(), "output_type": "np", "processing_resolution": 0},
}
DEPTH: PartFactories = {"prediction_type": lambda: "depth"}
ALBEDO: PartFactories = {
    "prediction_type": lambda: "intrinsics",
    "target_properties": lambda: {
        "target_names": ["albedo"],
        "albedo": {"prediction_space": "srgb"},
    },
}
ADDED_KV = {"unet": "pixels", "refused": "without cross-attention"}
SOUND: dict[str, Any] = {
    "unet": "sound",
    "factories": {"vocoder": parts.vocoder},
    "before": lambda pipe: setattr(pipe, "_encode_prompt", lambda *_, **__: torch.zeros(2, 24)),
    "refused": "without text",
}
CONTROLNET_XS: dict[str, Any] = {
    "unet": "sd, two layers",
    "factories": {"controlnet": partial(parts.controlnet_xs, "sd, two layers")},
    "refused": "UNetControlNetXSModel",
}
REPLACED = "replaced after an adapter was attached"


def _invert(pipe: Any) -> None:
    pipe.invert(
        picture(size=32),
        num_inversion_steps=2,
        skip=0.0,
        generator=torch.Generator().manual_seed(0),
    )


def _encode_kolors(pipe: Any) -> None:
    """Texts as from its language model; this pipeline takes no encoded ones."""
    embeds = _embeds(32, pooled=32)
    found = [
        embeds[f"{name}prompt_embeds"] for name in ("", "negative_", "pooled_", "negative_pooled_")
    ]
    pipe.encode_prompt = lambda *_, **__: found


GROUPS: dict[str, dict[str, Case]] = {
    "words": {
        "StableDiffusionPipeline": Case(),
        "StableDiffusionXLPipeline": Case(unet="xl"),
        "KolorsPipeline": Case(unet="kolors", call=_embeds(32, pooled=32)),
        "LatentConsistencyModelPipeline": Case(
            unet="lcm",
            factories=_scheduler("LCMScheduler"),
            rows="p",
            call={"original_inference_steps": 4},
        ),
        "LDMTextToImagePipeline": Case(factories={"bert": parts.long_text_encoder}),
    },
    "pictures and words": {
        "StableDiffusionImg2ImgPipeline": Case(call=IMAGE),
        "StableDiffusionXLImg2ImgPipeline": Case(
            unet="xl refiner",
            factories={"text_encoder": lambda: None, "requires_aesthetics_score": lambda: True},
            call=IMAGE,
            note="the refiner has other sites and another text width: give it its own adapter",
        ),
        "KolorsImg2ImgPipeline": Case(unet="kolors", call=IMAGE, before=_encode_kolors),
        "LatentConsistencyModelImg2ImgPipeline": Case(
            unet="lcm",
            factories=_scheduler("LCMScheduler"),
            rows="p",
            call={**IMAGE, "original_inference_steps": 4},
        ),
        "StableDiffusionInpaintPipeline": Case(unet="sd 9 channels", call=INPAINT),
        "StableDiffusionXLInpaintPipeline": Case(unet="xl", call=INPAINT),
        "StableDiffusionDepth2ImgPipeline": Case(
            unet="sd 5 channels", call={**IMAGE, "depth_map": _text(SIDE, SIDE)}
        ),
        "StableDiffusionUpscalePipeline": Case(
            unet="sd 7 channels", call={"image": picture(size=LATENT)}
        ),
        "StableDiffusionLatentUpscalePipeline": Case(
            unet="latent upscaler",
            factories=_scheduler("EulerDiscreteScheduler"),
            call={"image": picture()},
        ),
        "StableDiffusionInstructPix2PixPipeline": Case(
            unet="sd 8 channels",
            call={"image": picture()},
            rows="pnn",
            guidance="positive-negative-negative",
        ),
        "StableDiffusionXLInstructPix2PixPipeline": Case(
            unet="xl 8 channels",
            call={"image": picture()},
            rows="pnn",
            guidance="positive-negative-negative",
        ),
        "LEditsPPPipelineStableDiffusion": Case(
            factories=_scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
            call={
                "editing_prompt": ["a star", "red"],
                "edit_warmup_steps": 0,
                "use_cross_attn_mask": False,
                "use_intersect_mask": False,
            },
            rows="npp",
            guidance="negative-positive-positive",
            before=_invert,
            note="call invert() before attach(); an edit counts as positive; "
            "use_cross_attn_mask=True replaces the processors and is refused",
        ),
        "LEditsPPPipelineStableDiffusionXL": Case(
            unet="xl",
            call={"editing_prompt": ["a star", "red"], "edit_warmup_steps": 0},
            rows="npp",
            guidance="negative-positive-positive",
            before=_invert,
            note="as above",
        ),
    },
    "ControlNets and T2I-Adapters": {
        "StableDiffusionControlNetPipeline": Case(call={"image": picture()}),
        "StableDiffusionControlNetImg2ImgPipeline": Case(call={**IMAGE, **CONTROL}),
        "StableDiffusionControlNetInpaintPipeline": Case(call={**INPAINT, **CONTROL}),
        "StableDiffusionXLControlNetPipeline": Case(
            unet="xl", factories=XL_CONTROL, call={"image": picture()}
        ),
        "StableDiffusionXLControlNetImg2ImgPipeline": Case(
            unet="xl", factories=XL_CONTROL, call={**IMAGE, **CONTROL}
        ),
        "StableDiffusionXLControlNetInpaintPipeline": Case(
            unet="xl", factories=XL_CONTROL, call={**INPAINT, **CONTROL}
        ),
        "StableDiffusionXLControlNetUnionPipeline": Case(
            unet="xl", factories=UNION, call={**CONTROL, "control_mode": 0}
        ),
        "StableDiffusionXLControlNetUnionImg2ImgPipeline": Case(
            unet="xl", factories=UNION, call={**IMAGE, **CONTROL, "control_mode": 0}
        ),
        "StableDiffusionXLControlNetUnionInpaintPipeline": Case(
            unet="xl", factories=UNION, call={**INPAINT, **CONTROL, "control_mode": 0}
        ),
        "StableDiffusionAdapterPipeline": Case(call={"image": picture()}),
        "StableDiffusionXLAdapterPipeline": Case(unet="xl", call={"image": picture()}),
    },
    "perturbed attention": {
        "StableDiffusionPAGPipeline": Case(**PAG),
        "StableDiffusionPAGImg2ImgPipeline": Case(call=IMAGE, **PAG),
        "StableDiffusionPAGInpaintPipeline": Case(call=INPAINT, **PAG),
        "StableDiffusionControlNetPAGPipeline": Case(call={"image": picture()}, **PAG),
        "StableDiffusionControlNetPAGInpaintPipeline": Case(call={**INPAINT, **CONTROL}, **PAG),
        "StableDiffusionXLPAGPipeline": Case(unet="xl", **PAG),
        "StableDiffusionXLPAGImg2ImgPipeline": Case(unet="xl", call=IMAGE, **PAG),
        "StableDiffusionXLPAGInpaintPipeline": Case(unet="xl", call=INPAINT, **PAG),
        "StableDiffusionXLControlNetPAGPipeline": Case(
            unet="xl", factories=XL_CONTROL, call={"image": picture()}, **PAG
        ),
        "StableDiffusionXLControlNetPAGImg2ImgPipeline": Case(
            unet="xl", factories=XL_CONTROL, call={**IMAGE, **CONTROL}, **PAG
        ),
        "KolorsPAGPipeline": Case(unet="kolors", call=_embeds(32, pooled=32), **PAG),
        "AnimateDiffPAGPipeline": Case(call=FRAMES, **PAG),
    },
    "video": {
        "AnimateDiffPipeline": Case(call=FRAMES),
        "AnimateDiffSDXLPipeline": Case(unet="xl", call=FRAMES),
        "AnimateDiffControlNetPipeline": Case(call={**FRAMES, **CONDITIONS}),
        "AnimateDiffSparseControlNetPipeline": Case(
            factories={"controlnet": parts.sparse_controlnet},
            call={**FRAMES, **CONDITIONS, "controlnet_frame_indices": [0, 1]},
        ),
        "AnimateDiffVideoToVideoPipeline": Case(call=VIDEO),
        "AnimateDiffVideoToVideoControlNetPipeline": Case(call={**VIDEO, **CONDITIONS}),
        "PIAPipeline": Case(
            factories={"motion_adapter": partial(parts.motion_adapter, 9)},
            call={**FRAMES, "image": picture()},
        ),
        "TextToVideoZeroPipeline": Case(call=ZERO, refused=REPLACED),
        "TextToVideoZeroSDXLPipeline": Case(unet="xl", call=ZERO, refused=REPLACED),
    },
    "older ones": {
        "StableDiffusionSAGPipeline": Case(
            note="its second call, with the negative text alone, is recognised"
        ),
        "StableDiffusionPanoramaPipeline": Case(call={"height": SIDE, "width": 2 * SIDE}),
        "StableDiffusionPipelineSafe": Case(
            rows="npn", guidance=branches("npn"), note="the unsafe concept counts as negative"
        ),
        "SemanticStableDiffusionPipeline": Case(
            call={"editing_prompt": ["star"]},
            rows="npp",
            guidance="negative-positive-positive",
            note="one more branch per edit",
        ),
        "StableDiffusionLDM3DPipeline": Case(
            factories={"vae": parts.deep_vae}, call={"output_type": "np"}
        ),
        "StableDiffusionModelEditingPipeline": Case(),
        "StableDiffusionParadigmsPipeline": Case(
            steps="unknown",
            factories=_scheduler("DDIMParallelScheduler", clip_sample=False, steps_offset=1),
            call={"parallel": 2},
            rows="npnp",
        ),
        "StableDiffusionGLIGENPipeline": Case(
            unet="gligen",
            call={"gligen_phrases": ["star"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]},
        ),
        "StableDiffusionGLIGENTextImagePipeline": Case(
            unet="gligen with pictures",
            factories={
                "image_encoder": partial(parts.vision, "wide"),
                "image_project": parts.image_project,
                "processor": parts.clip_processor,
            },
            call={
                "gligen_phrases": ["star"],
                "gligen_images": [picture()],
                "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]],
            },
        ),
        "StableDiffusionDiffEditPipeline": Case(
            steps="one",
            call={
                "image_latents": _text(4 * LATENT * LATENT, 1).reshape(1, 4, LATENT, LATENT),
                "mask_image": torch.ones(1, LATENT, LATENT),
            },
        ),
        "CycleDiffusionPipeline": Case(
            factories=_scheduler("DDIMScheduler", set_alpha_to_one=False),
            call={
                "image": picture(),
                "source_prompt": "red",
                "eta": 0.1,
                "strength": 0.5,
                "num_inference_steps": 4,
            },
            rows="nnpp",
        ),
        "StableDiffusionInpaintPipelineLegacy": Case(call=INPAINT),
        "AltDiffusionPipeline": Case(),
        "AltDiffusionImg2ImgPipeline": Case(call=IMAGE),
        "StableDiffusionAttendAndExcitePipeline": Case(
            call={"token_indices": [2], "max_iter_to_alter": 1, "attn_res": (4, 4)},
            refused=REPLACED,
        ),
        "StableDiffusionPix2PixZeroPipeline": Case(
            call={"source_embeds": _text(32, 16), "target_embeds": _text(32, 16, seed=4)},
            refused=REPLACED,
        ),
    },
    "pictures in place of words": {
        "StableDiffusionImageVariationPipeline": Case(
            unet="pictures as text",
            call={"image": picture()},
        ),
        "PaintByExamplePipeline": Case(
            unet="sd 9 channels",
            factories={"image_encoder": partial(parts.vision, "example")},
            call={"image": picture(), "mask_image": mask(), "example_image": picture("green")},
        ),
        "StableUnCLIPPipeline": Case(
            unet="unclip",
            factories={
                "prior": parts.prior,
                "prior_tokenizer": parts.make_tokenizer,
                "prior_text_encoder": partial(parts.text_encoder_2, 32),
                "prior_scheduler": partial(
                    parts.scheduler, "UnCLIPScheduler", prediction_type="sample"
                ),
                "image_normalizer": parts.normalizer,
            },
            call={"prior_num_inference_steps": 2},
        ),
        "StableUnCLIPImg2ImgPipeline": Case(
            unet="unclip",
            factories={"image_normalizer": parts.normalizer},
            call={"image_embeds": _text(32)[:, 0]},
        ),
        "BlipDiffusionPipeline": Case(unseen=BLIP),
        "BlipDiffusionControlNetPipeline": Case(unseen=BLIP),
    },
    "pictures in, maps out": {
        "MarigoldDepthPipeline": Case(factories=DEPTH, **MARIGOLD),
        "MarigoldNormalsPipeline": Case(**MARIGOLD),
        "MarigoldIntrinsicsPipeline": Case(factories=ALBEDO, **MARIGOLD),
    },
    "another kind of attention, or none": {
        **{
            f"IF{name}Pipeline": Case(**ADDED_KV)
            for name in (
                "",
                "Img2Img",
                "Inpainting",
                "SuperResolution",
                "Img2ImgSuperResolution",
                "InpaintingSuperResolution",
            )
        },
        "AudioLDMPipeline": Case(**SOUND),
        "MusicLDMPipeline": Case(**SOUND),
        "AudioDiffusionPipeline": Case(
            unseen="calls its UNet without text, which is refused with an image prompt"
        ),
        "StableDiffusionControlNetXSPipeline": Case(**CONTROLNET_XS),
        "StableDiffusionXLControlNetXSPipeline": Case(**CONTROLNET_XS),
        **{
            f"Kandinsky{name}Pipeline": Case(**ADDED_KV)
            for name in (
                "",
                "Img2Img",
                "Inpaint",
                "Combined",
                "Img2ImgCombined",
                "InpaintCombined",
                "V22",
                "V22Img2Img",
                "V22Inpaint",
                "V22Controlnet",
                "V22ControlnetImg2Img",
                "V22Combined",
                "V22Img2ImgCombined",
                "V22InpaintCombined",
            )
        },
    },
}
PIPELINES = {name: case for group in GROUPS.values() for name, case in group.items()}


# ── docs/pipelines.md ────────────────────────────────────────────────────────────────────────────

DOCS = Path(__file__).resolve().parents[2] / "docs" / "pipelines.md"
MARKS = ("<!-- pipelines -->", "<!-- end of pipelines -->")
REASONS = {
    "without cross-attention": "no: it has no separate cross-attention",
    "without text": "no: it calls its denoiser without text, an error at the first step",
    REPLACED: "no: it replaces the attention processors, an error at the first step",
    "UNetControlNetXSModel": "no: ControlNet-XS turns the UNet into another model",
}


def table() -> str:
    """The part of docs/pipelines.md between its marks."""
    lines = []
    for title, group in GROUPS.items():
        lines += [f"### {title[0].upper()}{title[1:]}", "", "| pipeline | works | batch | note |"]
        lines += ["|---|---|---|---|"]
        lines += [_line(name, case) for name, case in group.items()] + [""]
    return "\n".join(lines)


def _line(name: str, case: Case) -> str:
    if case.unseen:
        return f"| `{name}` | not tried | | {case.unseen} |"
    if case.refused:
        return f"| `{name}` | {REASONS[case.refused]} | | {case.note} |"
    stated = case.guidance
    if not isinstance(stated, str):
        stated = f"[{', '.join(repr(branch) for branch in stated)}]"
    notes = [] if stated == "auto" else [f"`guidance={stated!r}`".replace('"', "")]
    notes += ["a schedule needs `timesteps=`"] if case.steps == "unknown" else []
    notes += [case.note] if case.note else []
    return f"| `{name}` | yes | {' '.join(case.rows)} | {'; '.join(notes)} |"


def render(text: str) -> str:
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    DOCS.write_text(render(DOCS.read_text()))
