"""coco-ip-adapter: the table of the IP-Adapter paper, whose code was never published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imageprompt.core.errors import OptionError
from imageprompt.evaluation.protocols.contract import (
    Choice,
    Figure,
    Measured,
    Protocol,
    ProtocolData,
    by_reference,
    need_folder,
    of_metrics,
    read_json_file,
)
from imageprompt.evaluation.scoring import Picture
from imageprompt.evaluation.study.plan import Case
from imageprompt.evaluation.study.references import StudyReference, name_of

PICTURES, CAPTIONS = "val2017", "annotations/captions_val2017.json"
_LAYOUT = f"{PICTURES}/000000000139.jpg ...\n{CAPTIONS}"
_EXPECTED = 5000


def read(folder: Path, root: Path, limit: int | None) -> ProtocolData:
    """The pictures in the order of their ids, each with its caption of the lowest id."""
    need_folder(folder / PICTURES, "coco-ip-adapter", f"{PICTURES}/ and {CAPTIONS}")
    path = folder / CAPTIONS
    plain = read_json_file(path)
    try:
        names = {int(one["id"]): str(one["file_name"]) for one in plain["images"]}
        captions: dict[int, tuple[int, str]] = {}
        for one in plain["annotations"]:
            found = (int(one["id"]), " ".join(str(one["caption"]).split()))
            image = int(one["image_id"])
            captions[image] = min(captions.get(image, found), found)
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(
            f"data {str(path)!r}",
            reason=f"not the captions of COCO ({type(error).__name__}: {error})",
            hint="Use captions_val2017.json of annotations_trainval2017.zip.",
        ) from error
    ids = sorted(names.keys() & captions.keys())
    if not ids:
        raise OptionError(f"data {str(path)!r}", reason="no picture with a caption")
    references, cases = [], []
    for number, image in enumerate(ids[:limit]):
        name = Path(names[image]).name  # a name of a stranger stays in the folder
        file = folder / PICTURES / name
        references.append(StudyReference(Picture(file, name_of(file, root)), ""))
        cases.append(Case(number, "", text=captions[image][1]))
    return ProtocolData(references, cases, len(cases), len(ids), "pictures", _EXPECTED)


def figures(measured: Measured) -> Iterator[Figure]:
    """CLIP-I, and the text in both scalings in use: which one the paper has is not stated."""
    yield from of_metrics(measured, {"CLIP-I": "clip-i"})
    for setting in measured.settings:
        cosines = setting.lines.metrics.get("clip-t")
        if cosines is not None and np.isfinite(cosines).any():
            labels = by_reference(setting)
            yield Figure.of("CLIP-T (cosine)", setting.name, cosines, labels)
            score = 2.5 * np.maximum(cosines, 0)
            yield Figure.of("CLIP-T (2.5 max(cos, 0))", setting.name, score, labels)


PROTOCOL = Protocol(
    name="coco-ip-adapter",
    title="IP-Adapter on COCO val2017",
    summary="likeness to the picture and to its caption, with the picture as the only prompt",
    source="IP-Adapter, arXiv 2308.06721, table 1",
    layout=_LAYOUT,
    choices=(
        Choice("data", "COCO2017 validation, 5,000 pictures with captions", "the same"),
        Choice("text beside the picture", "not stated", "none"),
        Choice("adapter scale", "not stated for the table", "1"),
        Choice("pictures of each", "4", "4: seeds 0 to 3"),
        Choice("caption", "not stated which of five", "the one with the lowest id"),
        Choice("size", "not stated", "512 x 512"),
        Choice("sampler", "DDIM, 50 steps, guidance 7.5", "50 steps, 7.5, the base's scheduler"),
        Choice("CLIP", "ViT-L/14", "--extractor clip=openai/clip-vit-large-patch14"),
        Choice("CLIP-T", "CLIPScore; the scaling is not stated", "cosine, and 2.5 max(cos, 0)"),
        Choice("intervals", "none", "95 %, over pictures"),
    ),
    defaults={
        "scales": [1.0],
        "seeds": 4,
        "seed": 0,
        "steps": 50,
        "guidance_scale": 7.5,
        "size": 512,
    },
    read=read,
    figures=figures,
    published={
        "IP-Adapter (22M)": {"CLIP-T": 0.588, "CLIP-I": 0.828},
        "SD unCLIP": {"CLIP-T": 0.584, "CLIP-I": 0.810},
        "SD Image Variations": {"CLIP-T": 0.548, "CLIP-I": 0.760},
        "T2I-Adapter (style)": {"CLIP-T": 0.485, "CLIP-I": 0.648},
        "Uni-ControlNet": {"CLIP-T": 0.506, "CLIP-I": 0.736},
        "ControlNet Shuffle": {"CLIP-T": 0.421, "CLIP-I": 0.616},
    },
)
