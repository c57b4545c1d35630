"""A torchvision that is installed but does not work, which transformers imports where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imageprompt.cli import doctor

CURE = "imageprompt does not need it: pip uninstall torchvision"


def install(folder: Path, code: str, needs: str) -> None:
    """A package of that name, with the metadata of an installed one."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    info = folder / "torchvision-0.1.0.dist-info"
    info.mkdir()
    text = f"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.0\nRequires-Dist: {needs}\n"
    (info / "METADATA").write_text(text)


def test_doctor_names_it_and_the_cure(tmp_path: Path) -> None:
    install(tmp_path, 'raise RuntimeError("operator torchvision::nms does not exist")', "torch")
    done = subprocess.run(
        [sys.executable, "-m", "imageprompt", "doctor", "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    assert "operator torchvision::nms does not exist" in report["torchvision"]["error"]
    assert CURE in report["torchvision"]["error"]
    assert not report["ok"]
    assert done.returncode == 1
    assert done.stderr == ""  # no lines of transformers


@pytest.mark.parametrize("fits", [False, True])
def test_one_that_was_built_for_another_torch(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    assert doctor._torchvision() == {}
    version = torch.__version__.partition("+")[0] if fits else "1.2.3"
    install(tmp_path, "", f"torch=={version}")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor._torchvision()
    sys.modules.pop("torchvision")
    if fits:
        assert found == {}
    else:
        assert "built for torch 1.2.3, here is" in found["torchvision"]["error"]
        assert CURE in found["torchvision"]["error"]
