"""hub: local paths, and the Hub through a local stand-in that speaks its HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import imageprompt as ip
from hub import Hub, serving
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.hub import HubId, hub_id, locate_file, locate_folder, locate_pipeline
from imageprompt.generation import generate, repeat

ADAPTER = "someone/IP-Adapter/models/plus.safetensors"


@pytest.fixture(scope="session")
def repositories(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without encoder, and adapters with theirs as published repositories have it."""
    root = tmp_path_factory.mktemp("hub")
    base, adapters = root / "someone" / "tiny", root / "someone" / "IP-Adapter"
    shutil.copytree(tiny_folder, base, ignore=shutil.ignore_patterns("adapters", "image_encoder"))
    index = base / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps(parts | {"image_encoder": [None, None]}))
    (base / "huge.ckpt").write_bytes(b"not wanted")
    shutil.copytree(tiny_folder / "adapters", adapters / "models")
    shutil.copytree(tiny_folder / "image_encoder", adapters / "models" / "image_encoder")
    shutil.copytree(tiny_folder / "adapters", adapters / "sdxl_models")
    return root


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in as the Hub of this process, with an empty cache."""
    from huggingface_hub import constants, hf_api

    with serving(repositories) as hub:
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        yield hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# ── local ───────────────────────────────────────────────────────────────────────────────────────


def test_local_paths_take_precedence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = Path(ADAPTER)
    local.parent.mkdir(parents=True)
    local.touch()
    assert locate_file(ADAPTER) == local
    assert locate_folder("someone/IP-Adapter") == Path("someone/IP-Adapter")
    assert hub.asked == []


def test_the_bundled_stack_by_name(tiny_bundled: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_pipeline("bundled") == tiny_bundled
    assert locate_folder("bundled/image_encoder") == tiny_bundled / "image_encoder"
    adapter = "adapters/plus.safetensors"
    assert locate_file(f"bundled/{adapter}") == tiny_bundled / adapter
    with pytest.raises(NotFoundError):
        locate_folder("bundled/../adapters")
    (tmp_path / "bundled").mkdir()  # a local folder takes precedence
    assert locate_folder("bundled") == Path("bundled")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubId(repo="a/b")),
        ("a/b/c.bin", HubId(repo="a/b", path="c.bin")),
        ("a/b/c/d.bin", HubId(repo="a/b", path="c/d.bin")),
        ("a", None),
        ("/a/b/c", None),
        ("./a/b", None),
        ("~/a/b", None),
        ("a/../b/c", None),
        ("a/b/../../c", None),
        ("https://host/a/b", None),
        ("a\\b\\c", None),
        (Path("a/b/c"), None),
    ],
)
def test_what_can_be_a_hub_id(text: str | Path, expected: HubId | None) -> None:
    assert hub_id(text) == expected


def test_similar_local_names_are_offered(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "plus.safetensors").touch()
    for wrong in ("adapters/plu.safetensors", "adapter/plus.safetensors"):
        with pytest.raises(NotFoundError, match=r"Did you mean .*adapters"):
            locate_file(str(tmp_path / wrong))


@pytest.mark.parametrize("reference", ["x\0y", "y" * 5000, "~nobody-of-that-name/x"])
def test_unusable_paths_are_not_found(reference: str) -> None:
    for locate in (locate_file, locate_folder, locate_pipeline):
        with pytest.raises(NotFoundError):
            locate(reference)


def test_a_folder_is_not_a_file_and_vice_versa(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    with pytest.raises(NotFoundError, match=r"is a folder, not a file \(it contains a\.bin\)"):
        locate_file(tmp_path)
    for locate in (locate_folder, locate_pipeline):
        with pytest.raises(NotFoundError, match="is a file, not a folder"):
            locate(tmp_path / "a.bin")
    with pytest.raises(NotFoundError, match=r"model_index\.json"):
        locate_pipeline(tmp_path)


# ── the Hub ─────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_fetched_once(hub: Hub, repositories: Path) -> None:
    path = locate_file(ADAPTER)
    assert path.read_bytes() == (repositories / ADAPTER).read_bytes()
    fetched = f"GET {ADAPTER.replace('/models', '/resolve/main/models')}"
    assert hub.asked.count(fetched) == 1
    locate_file(ADAPTER)
    assert hub.asked.count(fetched) == 1
    hub.asked.clear()
    assert locate_file(ADAPTER, cached_only=True) == path
    assert hub.asked == []


def test_of_a_folder_only_what_is_in_it_is_fetched(hub: Hub) -> None:
    folder = locate_folder("someone/IP-Adapter/models/image_encoder")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert not any("plus.safetensors" in asked for asked in hub.asked)


def test_of_a_pipeline_only_its_parts_are_fetched(hub: Hub) -> None:
    folder = locate_pipeline("someone/tiny")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not any("huge.ckpt" in asked for asked in hub.asked if asked.startswith("GET"))


def test_generating_with_everything_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The encoder is found where published repositories keep it, and nothing else is fetched."""
    reference = Image.new("RGB", (16, 16), "red")
    quick = {"steps": 1, "progress": False}
    made = generate(reference=reference, base="someone/tiny", adapter=ADAPTER, **quick)
    assert made.recipe.base.name == "someone/tiny"
    assert made.recipe.encoder is not None
    assert made.recipe.encoder.name == "someone/IP-Adapter/models/image_encoder"
    xl = "someone/IP-Adapter/sdxl_models/plus.safetensors"  # its folder has no encoder of its own
    other = generate(reference=reference, base="someone/tiny", adapter=xl, **quick)
    assert other.images[0].tobytes() == made.images[0].tobytes()
    assert not any("base.safetensors" in asked for asked in hub.asked)

    # a repetition asks for nothing that the user has not named
    path = made.save(tmp_path / "out")[0]
    hub.asked.clear()
    assert repeat(path, progress=False).images[0].tobytes() == made.images[0].tobytes()
    assert not any("someone" in asked for asked in hub.asked)


def test_a_recipe_alone_never_downloads(hub: Hub, tiny_bundled: Path, tmp_path: Path) -> None:
    made = generate(reference=Image.new("RGB", (16, 16)), steps=1, progress=False)
    from imageprompt.loading.recipe import write_picture
    from imageprompt.loading.recipe.reading import read_recipe

    for old, new in (('"bundled"', '"someone/tiny"'), ('"plus"', f'"{ADAPTER}"')):
        text = made.recipe.to_json().replace(f'"name": {old}', f'"name": {new}')
        stranger = tmp_path / "stranger.png"
        write_picture(stranger, made.images[0], read_recipe(text, "x"), [None])
        with pytest.raises(NotFoundError, match="a recipe alone does not start a download"):
            repeat(stranger, reference=Image.new("RGB", (16, 16)), progress=False)
    assert not any("someone" in asked for asked in hub.asked)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("someone/IP-Adapter/models/pluss.safetensors", "Did you mean .*models/plus.safetensors"),
        ("someone/nothing/x.bin", "has no repository someone/nothing, or it is private"),
        ("someone/gated-one/x.bin", "accept its terms"),
        ("someone/broken-one/x.bin", "status 500"),
        ("someone/IP-Adapter", "not a Hub id of the form owner/repo/sub/file"),
        ("some--one/x..y/z.bin", "."),
    ],
)
def test_files_that_cannot_be_found(hub: Hub, reference: str, words: str) -> None:
    with pytest.raises(NotFoundError, match=f"(?i){words}") as caught:
        locate_file(reference)
    assert "\n" not in str(caught.value)
    assert reference in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("someone/nothing", "has no repository"),
        ("someone/gated-one", "restricts access to someone/gated-one"),
        ("someone/broken-one", "status 500"),
        ("someone/IP-Adapter", r"no file model_index\.json"),
        ("someone/tiny/unet", "not a Hub id of the form owner/repo"),
    ],
)
def test_pipelines_that_cannot_be_found(
    hub: Hub, reference: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotFoundError, match=words) as caught:
        locate_pipeline(reference)
    assert caplog.records == []  # the error alone speaks
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_found(hub: Hub) -> None:
    for reference in ("someone/nothing/sub", "someone/IP-Adapter/no/such", "one"):
        with pytest.raises(NotFoundError) as caught:
            locate_folder(reference)
        assert "\n" not in str(caught.value)


def test_offline_the_error_says_what_to_do(offline: None) -> None:
    for locate in (locate_file, locate_folder):
        with pytest.raises(NotFoundError, match=r"HF_HUB_OFFLINE is set\. Go online"):
            locate(ADAPTER)
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        locate_pipeline("someone/tiny")


def test_a_hub_that_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:1"
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(NotFoundError, match=r"127\.0\.0\.1:1 cannot be reached"):
        locate_file(ADAPTER)


def test_the_adapter_class_takes_hub_ids(hub: Hub) -> None:
    assert ip.Adapter.load(ADAPTER).spec.variant == "plus"


def test_the_command_honours_hf_endpoint(repositories: Path, tmp_path: Path) -> None:
    with serving(repositories) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "imageprompt", "inspect", "--json", ADAPTER]
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"] == ["plus"]
    assert f"GET {ADAPTER.replace('/models', '/resolve/main/models')}" in hub.asked


def test_recipe_errors_are_option_errors(tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        repeat(tmp_path / "nothing.png")
