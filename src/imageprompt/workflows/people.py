"""people: several faces or identities in one picture, each in its own region."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.schema import Option
from imageprompt.generation.option_values import FILE, FILES
from imageprompt.generation.option_values import MODELS as MODELS_GROUP
from imageprompt.generation.reference import as_list
from imageprompt.workflows import _judged, _pixels
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import PICTURES, GenerationInputs, control, pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from imageprompt.generation.reference import Reference
    from imageprompt.generation.result import GenerationResult
    from imageprompt.workflows.job import Job

POSITION = "position"
MOST = 8
"""People in one picture."""
_SIDE = 64
"""Pixels of the bundled stacks' own pictures; sides of regions on other bases are multiples."""
_OVERLAP = 0.5
"""Share of the smaller of two regions that the other may cover."""
_AROUND = 0.5
"""Of a face's box: what is kept around it for the second recogniser."""


def _order(text: str) -> str | list[int]:
    if text == POSITION:
        return text
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise OptionError(
            f"order {text!r:.40}", reason=f"neither {POSITION} nor numbers such as 1,0"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Inputs(GenerationInputs):
    """Who is to be seen, and where."""

    person: Annotated[Any, pictures("a picture of a person; give one for each")] = None
    embedding: Annotated[
        Any,
        Option(
            "file of face embeddings instead of pictures; each face in it is a person",
            metavar="FILE",
            json=FILES,
            repeat=True,
            group=PICTURES,
        ),
    ] = None
    region: Annotated[
        Any,
        pictures(
            "where a person is: white inside; give one for each (default: equal columns from left "
            "to right)"
        ),
    ] = None
    prompt: Annotated[str, control("text beside them (default: none)", metavar="TEXT")] = ""
    order: Annotated[
        Any,
        control(
            "who goes where: position (people as given, the faces of one picture and the regions "
            "from left to right), or a person's index from 0 for each region: 1,0 (default "
            "position)",
            metavar="HOW",
            parse=_order,
            json=FILE,
        ),
    ] = POSITION
    face: Annotated[
        str,
        control(
            "which faces of a picture are people: largest or all (default largest)", metavar="WHICH"
        ),
    ] = "largest"
    scale: Annotated[
        float, control("strength of each person, 0..2 (default 1)", metavar="S", ge=0, le=2)
    ] = 1.0
    refine: Annotated[
        float,
        control(
            "how much of each region is sampled again, alone and with its own person; 0: not at "
            "all (default 0.8)",
            metavar="R",
            ge=0,
            le=1,
        ),
    ] = 0.8
    faces: Annotated[
        Any,
        Option(
            "insightface model pack that finds the faces, for adapters that read faces",
            metavar="PACK",
            json=FILE,
            group=MODELS_GROUP,
        ),
    ] = None
    recogniser: Annotated[
        Any,
        Option(
            "another model pack, which checks who is seen in each region",
            metavar="PACK",
            json=FILE,
            group=MODELS_GROUP,
        ),
    ] = None


@dataclass(frozen=True)
class Person:
    """One identity: a picture, a face of a picture, or an embedding [1, 512]."""

    label: str
    picture: Image | None = None
    face: int | None = None
    """Index of the face, the largest first."""
    box: tuple[float, float, float, float] | None = None
    embedding: Any = None

    def reference(self, inputs: Inputs, mask: Any = None) -> dict[str, Any]:
        """The arguments of `generate` for it."""
        found: dict[str, Any] = {"scale": inputs.scale}
        if mask is not None:
            found["mask"] = mask
        if self.embedding is not None:
            return found | {"face_embeddings": self.embedding}
        if self.face is not None:
            found |= {"faces": inputs.faces, "face": self.face}
        return found | {"reference": self.picture}

    def shown(self) -> Image | None:
        """The picture, or the face with what is around it."""
        if self.picture is None or self.box is None:
            return self.picture
        left, top, right, bottom = self.box
        across, down = _AROUND * (right - left), _AROUND * (bottom - top)
        edges = (left - across, top - down, right + across, bottom + down)
        width, height = self.picture.size
        limits = (width, height, width, height)
        whole = tuple(
            int(min(max(edge, 0), limit)) for edge, limit in zip(edges, limits, strict=True)
        )
        return self.picture.crop(whole)  # type: ignore[arg-type]


def steps(inputs: Inputs, job: Job) -> None:
    people = _people(inputs)
    size = inputs.size or ((_SIDE * len(people), _SIDE) if job.on_bundled_base else None)
    masks = _masks(inputs, len(people), size)
    placed = _placed(inputs, people, masks)
    _check_adapter(inputs, job, people)
    recogniser = _recogniser(inputs)
    job.expect(inputs.num_images * (1 + (len(placed) if inputs.refine else 0)))
    for person in people:
        if (picture := person.shown()) is not None:
            job.show(person.label, picture)
    made = _together(inputs, job, placed, masks, size)
    for index, image in enumerate(made):
        refined = _refined(inputs, job, placed, masks, image, inputs.seed + index)
        figures = _judge(job, placed, masks, refined)
        if recogniser is not None:
            figures |= _recognised(recogniser, placed, masks, refined)
        job.add(f"seed {inputs.seed + index}", refined, made, index, **figures)
    job.summarise()
    if not job.measured and recogniser is None:
        job.notes.append("nothing was measured: give --recogniser, a second face recogniser")
    elif not job.measured:
        job.notes.append(
            "nothing was measured: a second recogniser needs pictures of the people, and these "
            "were given as embeddings"
        )
    if inputs.refine:
        job.notes.append(
            "each region was sampled again; `generate --recipe` makes the picture before that"
        )


# ── who and where ───────────────────────────────────────────────────────────────────────────────


def _people(inputs: Inputs) -> list[Person]:
    """The identities, as given. Raises PictureError, OptionError, NotFoundError."""
    from imageprompt.encoding.images.open_image import describe, open_picture

    if inputs.face not in ("largest", "all"):
        raise OptionError(f"face {inputs.face!r:.40}", reason="neither largest nor all")
    found: list[Person] = []
    for source in as_list(inputs.person):
        picture, label = open_picture(source), describe(source)
        if inputs.faces is None:
            if inputs.face == "all":
                raise OptionError(
                    "face all without faces",
                    reason="a model pack finds the faces",
                    hint="Give --faces PACK, or one picture for each person.",
                )
            found.append(Person(label, picture))
        else:
            found += _faces_of(inputs, picture, label)
    if as_list(inputs.embedding):
        from imageprompt.encoding.face_embeddings import load_embeddings

        for source in as_list(inputs.embedding):
            rows = load_embeddings(source)
            name = os.fspath(source) if isinstance(source, str | os.PathLike) else "embedding"
            found += [Person(f"{name} {i}", embedding=rows[i : i + 1]) for i in range(len(rows))]
    if not 2 <= len(found) <= MOST:
        raise PictureError(
            f"{len(found)} people",
            reason=f"this workflow takes 2 to {MOST}",
            hint="Give --person PIC or --embedding FILE for each; for one, use `generate`.",
        )
    return found


def _faces_of(inputs: Inputs, picture: Image, label: str) -> list[Person]:
    """The chosen faces of a picture, from left to right unless they are chosen by index."""
    from imageprompt.encoding.face_encoder import FaceEncoder

    encoder = inputs.faces if hasattr(inputs.faces, "find") else FaceEncoder.load(inputs.faces)
    faces = encoder.choose(picture, inputs.face)
    if inputs.order == POSITION:
        faces = sorted(faces, key=lambda one: one.box[0] + one.box[2])
    return [Person(f"{label}, face {one.index}", picture, one.index, one.box) for one in faces]


def _masks(inputs: Inputs, count: int, size: tuple[int, int] | None) -> list[NDArray[np.float32]]:
    """0..1 [h, w] each. Raises PictureError, OptionError."""
    from imageprompt.encoding.masks import open_mask

    given = as_list(inputs.region)
    if not given:
        regions = count if inputs.order == POSITION else len(as_list(inputs.order))
        width, height = size or (512, 512)
        if width < 8 * regions:
            raise OptionError(
                f"{regions} regions in {width} pixels", reason="each needs 8 pixels at least"
            )
        edges = [round(width * i / regions) for i in range(regions + 1)]
        found = np.zeros((regions, height, width), np.float32)
        for mask, left, right in zip(found, edges, edges[1:], strict=False):
            mask[:, left:right] = 1
        return list(found)
    masks = [np.asarray(open_mask(one), np.float32) for one in given]
    shapes = {one.shape for one in masks}
    if len(shapes) > 1:
        raise PictureError(
            "regions of different sizes",
            reason="they cover one picture",
            hint="Give them one size.",
        )
    for index, one in enumerate(masks):
        _pixels.check_mask(one, f"region {index}")
        for other in masks[:index]:
            shared = np.minimum(one, other).sum() / min(one.sum(), other.sum())
            if shared > _OVERLAP:
                raise PictureError(
                    f"region {index}",
                    reason=f"shares {shared:.0%} of its area with another",
                    hint="Draw regions apart.",
                )
    return masks


def _placed(
    inputs: Inputs, people: Sequence[Person], masks: Sequence[NDArray[np.float32]]
) -> list[tuple[int, Person]]:
    """Index of a person and the person, for each region. Raises OptionError."""
    order = inputs.order
    if order == POSITION:
        if len(masks) != len(people):
            raise OptionError(
                f"{len(masks)} regions for {len(people)} people",
                reason="the numbers differ",
                hint="Give one region for each, or say who goes where: --order 1,0.",
            )
        across = [float((one.sum(0) * np.arange(one.shape[1])).sum() / one.sum()) for one in masks]
        from_left = np.argsort(across, kind="stable").tolist()
        return [(from_left.index(i), people[from_left.index(i)]) for i in range(len(masks))]
    indices = as_list(order)
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in indices)
    if not whole or len(indices) != len(masks):
        raise OptionError(
            f"order {order!r:.60}",
            reason=f"not {POSITION}, nor {len(masks)} whole numbers, one for each region",
        )
    for one in indices:
        if not 0 <= one < len(people):
            raise OptionError(
                f"order {order!r:.60}", reason=f"there is no person {one}: 0 to {len(people) - 1}"
            )
    return [(one, people[one]) for one in indices]


def _check_adapter(inputs: Inputs, job: Job, people: Sequence[Person]) -> None:
    """Raises OptionError where the adapter cannot read what was given."""
    from imageprompt import loading

    adapter: Any = inputs.adapter
    if isinstance(adapter, str | os.PathLike | None):
        located = loading.find_adapter(adapter, job.engine.loaded.folder, cached_only=False)
        adapter = job.engine.adapter_file(located)
    feature = adapter.spec.feature
    if not feature.reads_faces and any(one.embedding is not None for one in people):
        raise OptionError(
            f"face embeddings with a {adapter.spec.variant} adapter",
            reason="it reads pictures",
            hint="Give --person PIC, or a FaceID adapter.",
        )
    if not feature.reads_faces and inputs.faces is not None:
        raise OptionError(
            f"faces with a {adapter.spec.variant} adapter",
            reason="it reads whole pictures",
            hint="Leave --faces out, or give a FaceID adapter.",
        )


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def _together(
    inputs: Inputs,
    job: Job,
    placed: Sequence[tuple[int, Person]],
    masks: Sequence[NDArray[np.float32]],
    size: tuple[int, int] | None,
) -> GenerationResult:
    """All people at once, each acting in its region."""
    from imageprompt.generation.reference import Reference

    first, *rest = [
        person.reference(inputs, mask) for (_, person), mask in zip(placed, masks, strict=True)
    ]
    also: list[Reference] = [Reference(**one, **_models(inputs)) for one in rest]
    result: GenerationResult = job.generate(
        inputs.prompt, **first, also=also, num_images=inputs.num_images, size=size
    )
    return result


def _models(inputs: Inputs) -> dict[str, Any]:
    given = {"adapter": inputs.adapter, "encoder": inputs.encoder}
    return {name: value for name, value in given.items() if value is not None}


def _refined(
    inputs: Inputs,
    job: Job,
    placed: Sequence[tuple[int, Person]],
    masks: Sequence[NDArray[np.float32]],
    image: Image,
    seed: int,
) -> Image:
    """Each region sampled again from itself, with its own person alone, and pasted in."""
    if not inputs.refine:
        return image
    from PIL import Image as Pillow
    from PIL import ImageFilter

    for (_, person), mask in zip(placed, masks, strict=True):
        box = _box(mask, image.size)
        crop = image.crop(box)
        size = _own_size(job, crop.size, image.size)
        made = job.generate(
            inputs.prompt,
            **person.reference(inputs),
            init_image=_pixels.resized(crop, size),
            strength=inputs.refine,
            size=size,
            seed=seed,
        ).images[0]
        weights = _pixels.picture_of(255 * _pixels.resized_mask(mask, image.size))
        soft = weights.filter(ImageFilter.GaussianBlur(min(image.size) / 64)).crop(box)
        image = image.copy()
        pasted = _pixels.resized(made, crop.size)
        image.paste(Pillow.composite(pasted, crop, soft), box[:2])
    return image


def _own_size(job: Job, crop: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    """The shape of a region, as large as the base's own pictures."""
    side = _SIDE if job.on_bundled_base else (whole[0] * whole[1]) ** 0.5
    factor = side / (crop[0] * crop[1]) ** 0.5
    step = 8 if job.on_bundled_base else _SIDE
    width, height = (max(step, round(length * factor / step) * step) for length in crop)
    return width, height


def _box(mask: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a mask in a picture of this size."""
    return _pixels.box_of(_pixels.resized_mask(mask, size))


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def _judge(
    job: Job,
    placed: Sequence[tuple[int, Person]],
    masks: Sequence[NDArray[np.float32]],
    image: Image,
) -> dict[str, float]:
    """Shares of attributes that regions show of their own person, and of the other people."""
    known = [person.picture for _, person in placed if person.picture is not None]
    if not job.on_bundled_base or len(known) < len(placed):
        return {}
    crops = [image.crop(_box(mask, image.size)) for mask in masks]
    seen, wanted = _judged.words(job, crops), _judged.words(job, known)
    own, other = [], []
    for index, words in enumerate(seen):
        own.append(np.mean([words[name] == wanted[index][name] for name in words]))
        for those in (*wanted[:index], *wanted[index + 1 :]):
            apart = [name for name in words if those[name] != wanted[index][name]]
            other += [float(words[name] == those[name]) for name in apart]
    return {
        "own_region": float(np.mean(own)),
        "other_region": float(np.mean(other)) if other else float("nan"),
    }


def _recogniser(inputs: Inputs) -> Any:
    """The second recogniser, or None. Raises EncoderError, NotFoundError."""
    if inputs.recogniser is None:
        return None
    from imageprompt.evaluation.extractors.face import EXTRACTOR, Faces

    if hasattr(inputs.recogniser, "find"):
        return Faces("own recogniser", inputs.recogniser)
    same = isinstance(inputs.faces, str | os.PathLike) and os.fspath(inputs.faces) == os.fspath(
        inputs.recogniser
    )
    if same:
        raise OptionError(
            "the recogniser",
            reason="it is the pack that the adapter reads, which flatters",
            hint="Give another one, such as antelopev2 beside buffalo_l.",
        )
    return EXTRACTOR.open(os.fspath(inputs.recogniser))


def _recognised(
    recogniser: Any,
    placed: Sequence[tuple[int, Person]],
    masks: Sequence[NDArray[np.float32]],
    image: Image,
) -> dict[str, float]:
    """Cosines of the faces in regions with their own person and the others; NaN without a face."""
    from imageprompt.evaluation.metrics.contract import unit

    known = {index: person.shown() for index, person in placed}
    shown = {index: picture for index, picture in known.items() if picture is not None}
    if not shown:
        return {}
    crops = [image.crop(_box(mask, image.size)) for mask in masks]
    rows = unit(recogniser.encode([*crops, *shown.values()]))
    cosines = rows[: len(crops)] @ rows[len(crops) :].T  # [regions, people]
    own, other, assigned = [], [], []
    for row, (index, _) in zip(cosines, placed, strict=True):
        if index in shown:
            column = list(shown).index(index)
            rest = np.delete(row, column)
            own.append(row[column])
            other.append(rest.mean() if len(rest) else np.nan)
            assigned.append(float(np.isfinite(row[column]) and (row[column] >= rest).all()))
    return {
        "own_similarity": float(np.mean(own)),
        "other_similarity": float(np.mean(other)),
        "assigned": float(np.mean(assigned)),
    }


WORKFLOW = Workflow(
    name="people",
    summary="several people in one picture, each in its own region",
    inputs=Inputs,
    steps=steps,
    measures={
        "own_region": "share of five attributes of its own reference that a region shows; the "
        "judge of the bundled stacks only, whose references are objects",
        "other_region": "share of the other references' attributes, where they differ",
        "own_similarity": "cosine of a region's face and its own person, by --recogniser",
        "other_similarity": "the same with the other people",
        "assigned": "share of regions whose face is nearest to its own person",
    },
    references=("person",),
)
