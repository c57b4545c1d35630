"""What is this file? Format, variant, projector and host, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from imageprompt.checkpoint.formats import FORMATS, Parts
from imageprompt.checkpoint.storage import Stored, read_file
from imageprompt.errors import AdapterFileError
from imageprompt.hosts import HOSTS
from imageprompt.spec import AdapterSpec, HostSpec, Shapes
from imageprompt.variants import VARIANTS, Variant, projector_shapes

UNKNOWN_HOST = "unet"
_TELLTALES = (
    (
        "image_proj_model.",
        "a training checkpoint of an adapter",
        "Convert it to the standard layout.",
    ),
    (
        "adapter_modules.",
        "a training checkpoint of an adapter",
        "Convert it to the standard layout.",
    ),
    ("ip_adapter_proj_model.", "an XLabs FLUX adapter", "Its host is not supported yet."),
    ("controlnet_cond_embedding.", "a ControlNet", "Load it with diffusers' ControlNetModel."),
    ("control_model.", "a ControlNet", "Load it with diffusers' ControlNetModel."),
    ("model.diffusion_model.", "a full checkpoint", "Give it as the base, in diffusers layout."),
    ("lora_unet_", "a LoRA", "Load it with pipe.load_lora_weights()."),
    ("unet.", "a LoRA or a part of a pipeline", "Load it with diffusers."),
    ("down_blocks.", "a denoiser", "Give it as a part of the base."),
    ("vision_model.", "an image encoder", "Give it as the encoder."),
)


def read_adapter(path: Path) -> tuple[AdapterSpec, Parts]:
    """Read a file and say what it is.

    Raises NotFoundError, or AdapterFileError when it is no adapter, not whole, or of a variant
    that is not known.
    """
    stored = read_file(path)
    parts = _parts(path, stored)
    spec = _projector(path, parts)
    host = _host_family({name: tuple(t.shape) for name, t in parts.sites.items()}, parts)
    _check_sites(path, parts, spec.text_width)
    return replace(spec, host=host), parts


def family_hosts(text_width: int) -> Iterable[HostSpec]:
    """The published bases whose text has this width."""
    for host in HOSTS:
        yield from host.families(text_width)


def likely_families(shapes: Shapes) -> list[str]:
    """Names of the published bases that K' and V' of these shapes belong to."""
    widths = {shape[-1] for shape in shapes.values()}
    return [
        spec.family
        for width in widths
        for spec in family_hosts(width)
        if spec.shapes() == dict(shapes)
    ]


def _parts(path: Path, stored: Stored) -> Parts:
    for layout in FORMATS:
        if layout.claims(stored.tensors):
            read = layout.read(stored.tensors)
            if read.unplaced:
                raise AdapterFileError(
                    str(path),
                    rule=f"{len(read.unplaced)} tensors have no place in the {layout.name} layout "
                    f"({_first(read.unplaced)})",
                    remedy="Check that the file is what its name says.",
                )
            return replace(read.parts, metadata=stored.metadata)
    _explain(path, list(stored.tensors))


def _explain(path: Path, names: list[str]) -> NoReturn:
    """No format took it: say what it is instead, as far as its names tell."""
    for prefix, what, remedy in _TELLTALES:
        if any(name.startswith(prefix) for name in names):
            raise AdapterFileError(str(path), rule=f"this is {what}, not an adapter", remedy=remedy)
    rule = f"none of its {len(names)} tensors belongs to an adapter ({_first(names)})"
    raise AdapterFileError(str(path), rule=rule, remedy="Give an image-prompt adapter file.")


def _projector(path: Path, parts: Parts) -> AdapterSpec:
    shapes = {name: tuple(tensor.shape) for name, tensor in parts.projector.items()}
    for variant in VARIANTS:
        try:
            projector = variant.read(shapes)
        except (ValueError, IndexError):
            projector = None  # right names, wrong number of dimensions
        if projector is None:
            continue
        _check_projector(path, variant, shapes, projector_shapes(variant, projector))
        return AdapterSpec(
            variant=variant.name,
            host=UNKNOWN_HOST,
            feature=variant.feature,
            null_rule=variant.null_rule,
            projector=projector,
        )
    raise AdapterFileError(
        str(path),
        rule=f"its projector is of no known variant ({_first(shapes)})",
        remedy=f"Known variants: {', '.join(v.name for v in VARIANTS)}.",
    )


def _check_projector(path: Path, variant: Variant, shapes: Shapes, template: Shapes) -> None:
    problems = [f"lacks {n}" for n in template if n not in shapes]
    problems += [f"does not know {n}" for n in shapes if n not in template]
    problems += [
        f"{n} is {list(shapes[n])} instead of {list(template[n])}"
        for n in template
        if n in shapes and shapes[n] != template[n]
    ]
    if problems:
        raise AdapterFileError(
            str(path),
            rule=f"a {variant.name} projector with {len(problems)} wrong tensors "
            f"({_first(problems)})",
            remedy="The file is damaged or of another variant; download it again.",
        )


def _check_sites(path: Path, parts: Parts, text_width: int) -> None:
    """Every id has exactly to_k_ip and to_v_ip of one shape [width, text width]."""
    lora = [name for name in parts.sites if "_lora." in name]
    if lora:
        raise AdapterFileError(
            str(path),
            rule=f"it carries {len(lora)} LoRA tensors, as FaceID adapters do",
            remedy="This variant is not supported yet.",
        )
    ids = {name.split(".", 1)[0] for name in parts.sites}
    wanted = {f"{i}.to_{kind}_ip.weight" for i in ids for kind in "kv"}
    odd = sorted(wanted ^ set(parts.sites))
    misshapen = [
        f"{name} {list(t.shape)}"
        for name, t in parts.sites.items()
        if t.ndim != 2 or t.shape[1] != text_width
    ]
    odd += misshapen or [i for i in ids if not i.isdecimal()]
    if odd:
        raise AdapterFileError(
            str(path),
            rule=f"{len(odd)} attention tensors missing, unknown or misshapen ({_first(odd)})",
            remedy="The file is damaged; download it again.",
        )


def _host_family(shapes: Shapes, parts: Parts) -> str:
    """The family whose K', V' these are; metadata decides between twins (SDXL and Kolors)."""
    families = likely_families(shapes)
    told = parts.metadata.get("host", "")
    if told in families or not families:
        return told or UNKNOWN_HOST
    return families[0]


def _first(items: Iterable[str], count: int = 5) -> str:
    items = list(items)
    more = ", ..." if len(items) > count else ""
    return ", ".join(items[:count]) + more
