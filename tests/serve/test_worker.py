"""What the worker does with jobs, in this process, on a tiny stack in a folder of its own."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

import face_finder
import imageprompt as ip
from imageprompt.core.errors import OptionError
from imageprompt.generation import run
from imageprompt.loading.recipe import read_picture
from imageprompt.serve.settings import Settings
from imageprompt.serve.worker import protocol
from imageprompt.serve.worker.pictures import PictureMaker
from imageprompt.serve.worker.protocol import Message, ProtocolError
from imageprompt.serve.worker.served_models import ServedModels, _public
from imageprompt.serve.worker.supervisor import Supervisor
from served import drawn
from tiny_stack import make_pipeline

Told = list[Message]


@pytest.fixture(scope="module")
def settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The stack as a base by its path, with one more adapter by a path elsewhere."""
    folder = tmp_path_factory.mktemp("served")
    other = folder / "secret place" / "other.safetensors"
    other.parent.mkdir()
    shutil.copy(tiny_folder / "adapters" / "base.safetensors", other)
    return Settings(
        base=str(tiny_folder), adapter=(f"mine={other}",), library=str(folder / "library")
    )


@pytest.fixture(scope="module")
def models(settings: Settings) -> ServedModels:
    return ServedModels(settings)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / _hash(drawn("red"))).write_bytes(drawn("red"))
    return folder


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def make(models: ServedModels, uploads: Path) -> Callable[..., tuple[PictureMaker, Told]]:
    def made(*requests: dict[str, Any], prepare: Any = None) -> tuple[PictureMaker, Told]:
        told: Told = []
        maker = PictureMaker(models, 8, told.append)
        jobs = [
            {"id": str(number), "request": {"steps": 2, **request}, "folder": str(uploads)}
            for number, request in enumerate(requests)
        ]
        if prepare is not None:
            prepare(maker, told)
        maker.run(jobs)
        return maker, told

    return made


def ends(told: Told) -> dict[str, Any]:
    """Job -> its state, or the type of its error; each job ends once."""
    found: dict[str, Any] = {}
    for message in told:
        if message.kind == "ended":
            assert message.data["job"] not in found
            error = message.data.get("error")
            found[message.data["job"]] = error["type"] if error else message.data["state"]
    return found


def shown(**more: Any) -> dict[str, Any]:
    return {"references": [{"reference": f"upload:{_hash(drawn('red'))}", **more}]}


def test_what_it_says_of_itself(models: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    described = models.described()
    assert json.loads(json.dumps(described)) == described
    base = described["base"]
    assert (base["width"], base["height"], base["multiple"]) == (16, 16, 2)
    assert base["name"] == "stack"  # no folder
    assert base["eta"] == 0
    monkeypatch.setattr(models.pipe, "scheduler", EulerDiscreteScheduler())
    assert models.described()["base"]["eta"] is None
    adapters = {one["name"]: one for one in described["adapters"]}
    assert set(adapters) == {"base", "plus", "mine"}
    assert adapters["plus"]["default"]
    assert adapters["mine"]["hash"] == adapters["base"]["hash"]


def test_jobs_of_a_batch_end_each_for_itself(make: Any) -> None:
    """One is wrong in a way that only the engine sees, one is cancelled before it begins."""
    gone = {"references": [{"reference": f"upload:{'0' * 64}"}]}
    wrong = {"size": [17, 16]}

    def prepare(maker: PictureMaker, told: Told) -> None:
        maker.signals.cancelled.add("4")

    maker, told = make(shown(), wrong, gone, {"prompt": "a"}, shown(), prepare=prepare)
    assert ends(told) == {
        "0": "done",
        "1": "invalid_option",
        "2": "invalid_picture",
        "3": "done",
        "4": "cancelled",
    }
    assert sorted(m.data["job"] for m in told if m.kind == "image") == ["0", "3"]
    assert not maker.signals.cancelled
    (problem,) = (m.data["error"] for m in told if m.data.get("job") == "1")
    assert problem["message"].startswith("size 17x16")


def test_pictures_carry_recipes_without_paths(
    make: Any, settings: Settings, tmp_path: Path
) -> None:
    _, told = make(shown(adapter="mine", scale=0.5))
    (image,) = (message for message in told if message.kind == "image")
    path = tmp_path / "picture.png"
    path.write_bytes(image.content)
    recipe, tokens = read_picture(path)
    assert recipe.references[0].adapter.name in ("mine", "base")  # one file under two names
    assert recipe.base.name == "stack"
    assert tokens[0] is not None
    for word in ("secret", str(Path(settings.base or "").parent)):
        assert word not in recipe.to_json()


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("h94/IP-Adapter/models/x.safetensors", "h94/IP-Adapter/models/x.safetensors"),
        ("bundled/image_encoder", "bundled/image_encoder"),
        ("/srv/models/x.safetensors", "x.safetensors"),
        ("./x/y.safetensors", "y.safetensors"),
        ("~/x.safetensors", "x.safetensors"),
        ("/usr/image_encoder", "image_encoder"),
    ],
)
def test_names_that_are_paths_lose_their_folders(name: str, public: str) -> None:
    assert _public(name) == public


def test_a_running_job_ends_at_its_next_step(make: Any) -> None:
    def prepare(maker: PictureMaker, told: Told) -> None:
        tell = maker._tell

        def cancel(message: Message) -> None:
            if message.kind == "step" and message.data["job"] == "1":
                maker.signals.cancelled.add("1")
            tell(message)

        maker._tell = cancel

    _, told = make({"steps": 6}, {"steps": 9, "size": [32, 32]}, prepare=prepare)
    assert ends(told) == {"0": "done", "1": "cancelled"}
    steps = [m.data["step"] for m in told if m.kind == "step" and m.data["job"] == "1"]
    assert steps == [1]
    assert [m.data["job"] for m in told if m.kind == "image"] == ["0"]


def test_previews_are_made_for_readers_only(make: Any) -> None:
    def watch(maker: PictureMaker, told: Told) -> None:
        maker.signals.watched.add("0")

    _, told = make({"steps": 3}, {"steps": 3, "seed": 2}, prepare=watch)
    previews = [message for message in told if message.kind == "preview"]
    assert {message.data["job"] for message in previews} == {"0"}
    assert Image.open(io.BytesIO(previews[0].content)).format == "JPEG"
    assert not any(message.kind == "preview" for message in make({"steps": 3})[1])


def test_memory_that_runs_out_halves_the_batch(
    make: Any, monkeypatch: pytest.MonkeyPatch, models: ServedModels
) -> None:
    kind = type(models.pipe)
    call, sizes = kind.__call__, list[int]()

    def limited(self: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(options["generator"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("no")
        return call(self, *arguments, **options)

    limited.__signature__ = __import__("inspect").signature(call)  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "__call__", limited)
    most = 2
    _, told = make(*({"seed": seed} for seed in range(4)))
    assert set(ends(told).values()) == {"done"}
    assert sizes == [4, 2, 2]
    most = 0
    _, told = make({"seed": 1})
    assert ends(told) == {"0": "out_of_memory"}


def test_an_unexpected_error_ends_its_job_and_tells_nothing(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(run.Steps, "options", broken)
    _, told = make({}, {})
    assert ends(told) == {"0": "internal", "1": "internal"}
    assert all("secret" not in json.dumps(message.data) for message in told)
    assert "secret" in caplog.text


def test_face_adapters_find_the_faces_themselves(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face_finder.install(monkeypatch)
    adapter = ip.Adapter.create("faceid", denoiser=make_pipeline().unet, encoder=None)
    adapter.save(tmp_path / "faceid.safetensors")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "rec.onnx").write_bytes(b"weights")
    for name, who in (("me", {"red": (10, 10, 60, 70)}), ("nobody", {})):
        face_finder.picture(**who).save(tmp_path / f"{name}.png")
    hashes = {}
    for name in ("me", "nobody"):
        content = (tmp_path / f"{name}.png").read_bytes()
        hashes[name] = _hash(content)
        (tmp_path / hashes[name]).write_bytes(content)
    told: Told = []
    jobs = [
        {
            "id": name,
            "request": {
                "steps": 1,
                "references": [{"reference": f"upload:{digest}", "adapter": "face"}],
            },
            "folder": str(tmp_path),
        }
        for name, digest in hashes.items()
    ]
    faces = f"face={tmp_path / 'faceid.safetensors'}"
    served = Settings(base=settings.base, adapter=(faces,), faces=str(tmp_path / "pack"))
    with_faces = ServedModels(served)
    assert with_faces.adapters["face"].kind == "face"
    PictureMaker(with_faces, 8, told.append).run(jobs)
    assert ends(told) == {"me": "done", "nobody": "invalid_picture"}
    with pytest.raises(OptionError, match="--faces PACK"):
        ServedModels(Settings(base=settings.base, adapter=(faces,)))


def test_two_adapters_of_one_name(settings: Settings) -> None:
    with pytest.raises(OptionError, match="the base has an adapter of that name"):
        ServedModels(Settings(base=settings.base, adapter=("plus=x.safetensors",)))


def test_who_leaves_while_the_worker_answers_is_gone(settings: Settings) -> None:
    async def check() -> None:
        supervisor = Supervisor(settings, lambda message: None, lambda: None)
        supervisor.ready = True
        asking = asyncio.create_task(supervisor.task("encode", {}, timeout=60))
        await asyncio.sleep(0)
        supervisor._answer({"id": 0, "result": {}})
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(check())


# ── messages ────────────────────────────────────────────────────────────────────────────────────


def test_messages_come_out_as_they_went_in() -> None:
    sent = [Message("a", {"x": "line\nend"}, b"\n\x00{"), Message("b")]
    stream = io.BytesIO(b"".join(message.as_bytes() for message in sent))
    assert [protocol.read(stream), protocol.read(stream)] == sent
    assert protocol.read(stream) is None
    cut = io.BytesIO(sent[0].as_bytes()[:-1])
    assert protocol.read(cut) is None
    for wrong in (b"[]\n", b"{}\n", b'{"kind": 1, "data": {}, "bytes": 0}\n', b"x\n"):
        with pytest.raises(ProtocolError):
            protocol.read(io.BytesIO(wrong))
    for count in ("-1", "1e3", str(2**40), "true"):
        line = b'{"kind": "a", "data": {}, "bytes": ' + count.encode() + b"}\n"
        with pytest.raises(ProtocolError):
            protocol.read(io.BytesIO(line))
