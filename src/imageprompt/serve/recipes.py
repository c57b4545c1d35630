"""From the recipe in a PNG to the request that makes the picture again, as far as a client can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.core.hub import split_part
from imageprompt.generation.reference import Reference
from imageprompt.loading.recipe import AssetRecord, Recipe, ReferenceMetadata, read_picture
from imageprompt.serve.errors import ApiError, bad_request, problem_of
from imageprompt.serve.request_body import ENCODING, REFERENCE

_FIELD_OF = {"text": "fusion_text"}
"""Key of a recipe's encode options -> field of Reference, where they differ."""
_START = ("init_image", "inpaint_mask")


@dataclass
class RestoredRequest:
    """The request, and what it lacks: places of pictures with their hashes."""

    request: dict[str, Any]
    index: int
    width: int
    height: int
    missing: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Restorer:
    """Knows what is served, and which uploads are there."""

    def __init__(self, described: Mapping[str, Any], styles: Callable[[], Sequence[str]]) -> None:
        self._base = described.get("base", {})
        self._adapters: Sequence[Mapping[str, Any]] = described.get("adapters", ())
        self._styles = styles

    def restore(
        self, path: Path, digest: str | None, has: Callable[[str], bool]
    ) -> RestoredRequest:
        """Raises ApiError for a PNG without a recipe."""
        try:
            recipe, tokens = read_picture(path)
        except OptionError as error:
            problem = problem_of(error)
            raise bad_request(
                "this picture carries no recipe that can be read",
                type="no_recipe",
                hint=problem.hint,
            ) from error
        found = RestoredRequest(self._plain(recipe), recipe.index, recipe.width, recipe.height)
        found.warnings += self._warnings(recipe)
        for name in _START:
            record = getattr(recipe, name)
            if record is not None:
                found.request[name] = _upload(record, name, has, found)
        references = []
        for number, metadata in enumerate(recipe.references):
            reference = self._reference(metadata, number, has, found)
            if digest is not None and number < len(tokens) and tokens[number] is not None:
                found.tokens[str(number)] = f"tokens:{digest}/{number}"
                if not reference.keys() & {"reference", "style"}:
                    reference = _of_tokens(reference, found.tokens[str(number)])
            references.append(reference)
        found.request["references"] = references
        return found

    def _plain(self, recipe: Recipe) -> dict[str, Any]:
        """The fields besides references and pictures; those that are at their default left out."""
        request: dict[str, Any] = {
            "prompt": recipe.prompt,
            "negative_prompt": recipe.negative_prompt,
            "seed": recipe.seed + recipe.index,
            "num_images": 1,
            "steps": recipe.steps,
            "size": [recipe.width, recipe.height],
        }
        for name in ("guidance_scale", "guidance_until", "true_cfg_scale", "eta", "strength"):
            value = getattr(recipe, name)
            if value is not None and not (name == "strength" and recipe.init_image is None):
                request[name] = value
        if recipe.eta is None and self._base.get("eta"):
            request["eta"] = 0  # it was made without, and the base has its own
        if recipe.guidance != "auto":
            guidance = recipe.guidance
            request["guidance"] = guidance if isinstance(guidance, str) else list(guidance)
        return request

    def _warnings(self, recipe: Recipe) -> Iterator[str]:
        if recipe.base.hash != self._base.get("hash"):
            yield "made with another base"
        if recipe.controlnet is not None:
            yield "made with a ControlNet, which the API does not have"

    def _reference(
        self,
        metadata: ReferenceMetadata,
        number: int,
        has: Callable[[str], bool],
        found: RestoredRequest,
    ) -> dict[str, Any]:
        place = f"references.{number}"
        options = {**metadata.controls, **metadata.encode_options}
        reference: dict[str, Any] = {
            _FIELD_OF.get(name, name): list(value) if isinstance(value, tuple) else value
            for name, value in options.items()
            if _FIELD_OF.get(name, name) in REFERENCE
        }
        reference = {name: v for name, v in reference.items() if v != _DEFAULTS.get(name)}
        self._name_adapter(metadata, place, reference, found)
        if metadata.style is not None and metadata.style.name in self._styles():
            reference["style"] = metadata.style.name
        else:
            for name, records in (
                ("reference", metadata.pictures),
                ("negative_reference", metadata.negative_reference),
                ("reference_mask", metadata.reference_mask),
            ):
                if records:
                    reference[name] = [
                        _upload(record, f"{place}.{name}.{index}", has, found)
                        for index, record in enumerate(records)
                    ]
            if metadata.style is not None:
                found.warnings.append(f"{place}: its style is not in this library")
        if metadata.mask is not None:
            reference["mask"] = _upload(metadata.mask, f"{place}.mask", has, found)
        return reference

    def _name_adapter(
        self,
        metadata: ReferenceMetadata,
        place: str,
        reference: dict[str, Any],
        found: RestoredRequest,
    ) -> None:
        part = split_part(metadata.adapter.name or "")[1]
        for served in self._adapters:
            same = served["hash"] == metadata.adapter.hash
            if same and split_part(served["name"])[1] == part:
                reference["adapter"] = served["name"]
                return
        found.warnings.append(f"{place}: made with an adapter that is not served")


_DEFAULTS: Mapping[str, Any] = {
    **{name: getattr(Reference(), name) for name in REFERENCE},
    "scale": None,  # always said
}


def _of_tokens(reference: Mapping[str, Any], tokens: str) -> dict[str, Any]:
    """A reference that has no picture, by its tokens; how they were encoded is in them."""
    kept = {name: value for name, value in reference.items() if name not in ENCODING}
    return {**kept, "image_prompt": tokens}


def _upload(
    record: AssetRecord, place: str, has: Callable[[str], bool], found: RestoredRequest
) -> str:
    if not has(record.hash):
        name = None if record.name is None else Path(record.name).name
        found.missing.append({"param": place, "hash": record.hash, "name": name})
    return f"upload:{record.hash}"


def restored_or_none(restorer: Restorer, path: Path) -> RestoredRequest | None:
    """The same for a result, none of whose pictures may be there any more."""
    try:
        return restorer.restore(path, None, lambda digest: True)
    except ApiError:
        return None
