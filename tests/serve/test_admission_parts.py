"""A style by name beside a content picture: one that stands for content itself is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imageprompt as ip
from imageprompt.library import Library
from imageprompt.serve.admission import Admission
from imageprompt.serve.errors import ApiError


def test_a_style_that_stands_for_content(tiny_folder: Path, tmp_path: Path) -> None:
    library, nothing = Library(tmp_path), Any
    adapter = ip.Adapter.load(tiny_folder / "adapters" / "plus.safetensors")
    features = torch.zeros(1, 5, adapter.spec.feature_dim)
    for name, made_by in (("pose", "dual#content"), ("ink", "dual#style"), ("all", "plus")):
        how = {"features": features, "null_features": features}
        library.add(name, adapter, made_with={"adapter": made_by}, **how)
    admission = Admission(nothing, library, nothing, nothing)  # type: ignore[arg-type]
    picture = "upload:0"
    for style in ("ink", "all", "unknown", "upload:1"):
        admission.check_parts([{"content": picture, "style": style}])
    admission.check_parts([{"style": "pose"}])
    with pytest.raises(ApiError) as refused:
        admission.check_parts([{"style": "ink"}, {"content": picture, "style": "pose"}])
    problem = refused.value.problem
    assert (refused.value.status, problem.param) == (400, "references.1.style")
    assert "made by the content adapter of a pair" in problem.message
