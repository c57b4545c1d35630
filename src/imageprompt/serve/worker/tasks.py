"""What the worker does beside pictures: new styles, searches by picture, checks of references."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imageprompt.core.errors import OptionError
from imageprompt.generation.reference import Reference
from imageprompt.library.encoder_setup import EncodingAdapter, load_projector, load_with_encoder
from imageprompt.serve.worker.served_models import ServedModels, read_upload


class Tasks:
    """Each task takes JSON and answers with JSON. Raises an ImagePromptError."""

    def __init__(self, models: ServedModels, base: str | None, faces: str | None) -> None:
        self._models, self._base, self._faces = models, base, faces
        self._known: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
            "add_style": self._add_style,
            "mix_styles": self._mix_styles,
            "search_styles": self._search_styles,
            "check": self._check,
        }

    def run(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self._known[name](arguments)

    def _add_style(self, arguments: Mapping[str, Any]) -> Any:
        described = Reference(adapter=arguments["adapter"], **arguments["options"])
        reference = self._models.reference(described, Path(arguments["folder"]))
        reference.check()
        models = self._encoder(arguments["adapter"], faces=reference.faces)
        style = self._models.library.add(
            arguments["name"],
            models.adapter,
            reference.pictures,
            tags=arguments["tags"],
            replace=arguments["replace"],
            made_with=models.made_with,
            **reference.encode_arguments,
            face=reference.face,
        )
        return {"name": style.name}

    def _mix_styles(self, arguments: Mapping[str, Any]) -> Any:
        library = self._models.library
        weights = arguments["weights"]
        made_by = library.show(next(iter(weights))).adapter.hash
        source = next(
            (one.source for one in self._models.adapters.values() if one.projector == made_by),
            None,
        )
        adapter = None if source is None else load_projector(adapter=source, base=self._base)
        style = library.mix(
            weights,
            arguments["name"],
            adapter,
            tags=arguments["tags"],
            replace=arguments["replace"],
        )
        return {"name": style.name}

    def _search_styles(self, arguments: Mapping[str, Any]) -> Any:
        encoder = self._encoder(None).adapter.encoder
        picture = read_upload(arguments["upload"], Path(arguments["folder"]))
        found = self._models.library.search(picture, encoder=encoder, limit=arguments["limit"])
        return found.as_dict()

    def _check(self, arguments: Mapping[str, Any]) -> Any:
        from imageprompt.evaluation.image_quality.report import check_pictures

        folder = Path(arguments["folder"])
        pictures = [folder / digest for digest in arguments["uploads"]]
        encoder = self._encoder(None).adapter.encoder if len(pictures) > 1 else None
        report = check_pictures(pictures, encoder, self._models.base_name).as_dict()
        return json.loads(json.dumps(report).replace(json.dumps(f"{folder}/")[1:-1], ""))

    def _encoder(self, name: str | None, **more: Any) -> EncodingAdapter:
        served = self._models.adapter_for(Reference(adapter=name))
        if name is None and served.kind == "face":
            raise OptionError(
                "a comparison of pictures", reason="no adapter that is served reads pictures"
            )
        return load_with_encoder(adapter=served.source, base=self._base, **more)
