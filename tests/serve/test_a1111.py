"""webuiapi, unmodified, against a live server with keys on the bundled stack, in two steps."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webuiapi
from PIL import Image

from guides import DOCS, blocks
from imageprompt.serve.keys import Keys
from served import Served, pixels, served

FEW = {"width": 64, "height": 64, "steps": 2, "seed": 5}
RED, BLUE = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (64, 64), "blue")
HALF = Image.new("L", (64, 64))
HALF.paste(255, (0, 0, 32, 64))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("a1111")
    keys = Keys(folder / "keys.json")
    secrets = {name: keys.add(name) for name in ("alice", "bob")}
    with served(folder, "--keys", str(folder / "keys.json"), anew=True) as running:
        running.secrets = secrets  # type: ignore[attr-defined]
        running.client.headers["authorization"] = f"Bearer {secrets['alice']}"
        yield running


def client_of(server: Served, name: str = "alice") -> Any:
    secret = server.secrets.get(name, "wrong")  # type: ignore[attr-defined]
    return webuiapi.WebUIApi(
        baseurl=f"{server.address}/sdapi/v1", username="anybody", password=secret
    )


@pytest.fixture(scope="module")
def api(server: Served) -> Any:
    return client_of(server)


class Unit(webuiapi.ControlNetUnit):  # type: ignore[misc]
    """With keys that the class does not have; its users add them so."""

    def __init__(self, image: Any = RED, more: Any = None, **arguments: Any) -> None:
        super().__init__(**{"module": "ip-adapter_clip_sd15", "image": image, **arguments})
        self.more = more or {}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.more}


def raw(picture: Image.Image) -> str:
    return str(webuiapi.raw_b64_img(picture))


def request_of(server: Served, result: Any) -> Any:
    """The request of the job that made a result."""
    return server.job({"id": result.info["job"]})["request"]


def test_lists(api: Any, server: Served) -> None:
    assert api.has_controlnet
    assert not api.has_adetailer
    assert api.controlnet_version() == 2
    names = ["base", "dual#content", "dual#style", "plus"]
    assert [name.partition(" [")[0] for name in api.controlnet_model_list()] == names
    assert "ip-adapter-auto" in api.controlnet_module_list()
    (title,) = api.util_get_model_names()
    assert title.startswith("bundled [")
    assert api.util_get_current_model() == title
    assert api.util_get_sampler_names() == ["default"]
    assert api.util_get_scheduler_names() == ["automatic"]
    assert api.get_upscalers()[0]["name"] == "None"
    for name in (
        *("sd_vae", "latent_upscale_modes", "loras", "hypernetworks", "face_restorers"),
        *("realesrgan_models", "prompt_styles"),
    ):
        assert getattr(api, f"get_{name}")() == [], name
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_cmd_flags() == {}
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert api.refresh_checkpoints() is None
    api.util_set_model("bundled")
    assert "cannot be changed" in api.set_options({"sd_vae": "other"})["detail"]
    api.util_wait_for_ready()


def test_txt2img(api: Any, server: Served) -> None:
    result = api.txt2img(prompt="a star", negative_prompt="blur", n_iter=2, cfg_scale=3, **FEW)
    assert [picture.size for picture in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [5, 6]
    assert result.parameters["steps"] == 2
    assert "alwayson_scripts" not in result.parameters
    asked = request_of(server, result)
    assert (asked["guidance_scale"], asked["negative_prompt"]) == (3, "blur")
    assert asked["references"] == []
    seeds = {api.txt2img(prompt="", **{**FEW, "seed": -1}).info["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_txt2img_with_units(api: Any, server: Served) -> None:
    """Each unit is a reference: the picture is that of our own API."""
    model = api.controlnet_model_list()[0]
    units = [
        Unit(weight=0.6, guidance_end=0.7, model=model, more={"effective_region_mask": raw(HALF)}),
        Unit(
            BLUE,
            more={"image": [{"image": raw(BLUE)}, raw(RED)], "resize_mode": 1, "control_mode": 0},
        ),
        Unit(enabled=False, module="canny"),
    ]
    result = api.txt2img(prompt="a star", controlnet_units=units, **FEW)
    first, second = request_of(server, result)["references"]
    assert (first["scale"], first["schedule"], first["adapter"]) == (0.6, "0-0.7", "base")
    assert second["scale"] == 1.0
    assert len(second["reference"]) == 2
    assert "adapter" not in second
    own = server.submit(
        {
            "prompt": "a star",
            "seed": 5,
            "steps": 2,
            "size": [64, 64],
            "guidance_scale": 7,
            "references": [
                {
                    "reference": "part:r",
                    "scale": 0.6,
                    "schedule": "0-0.7",
                    "adapter": "base",
                    "mask": "part:half",
                },
                {"reference": ["part:b", "part:r"], "scale": 1.0},
            ],
        },
        **{name: _png(one) for name, one in (("r", RED), ("b", BLUE), ("half", HALF))},
    )
    stream = io.BytesIO()
    result.image.save(stream, format="PNG")
    assert pixels(stream.getvalue()) == pixels(server.picture(server.ended(own)))
    # the client's own list of units is not kept for the next call
    assert request_of(server, api.txt2img(prompt="", **FEW))["references"] == []


def _png(picture: Image.Image) -> bytes:
    return base64.b64decode(raw(picture))


def test_img2img(api: Any, server: Served) -> None:
    result = api.img2img(
        images=[BLUE], prompt="a star", denoising_strength=0.5, controlnet_units=[Unit()], **FEW
    )
    asked = request_of(server, result)
    assert asked["strength"] == 0.5
    assert asked["init_image"] != asked["references"][0]["reference"]
    changed = {}
    for invert in (0, 1):
        result = api.img2img(
            images=[BLUE],
            mask_image=HALF,
            inpainting_mask_invert=invert,
            denoising_strength=1.0,
            **{**FEW, "steps": 4},
        )
        picture = result.image.convert("RGB")

        def distance(x: int, picture: Image.Image = picture) -> float:
            red, green, blue = picture.getpixel((x, 32))
            return float(red + green + 255 - blue)

        changed[invert] = (distance(4), distance(60))
    assert changed[0][0] > changed[0][1] + 30, changed
    assert changed[1][1] > changed[1][0] + 30, changed


@pytest.mark.parametrize("end", ["interrupt", "skip"])
def test_progress_and_interrupt(api: Any, server: Served, end: str) -> None:
    found: list[Any] = []
    long = {**FEW, "steps": 150, "width": 128, "height": 128}
    thread = threading.Thread(target=lambda: found.append(api.txt2img(prompt="", **long)))
    thread.start()
    watcher, other = client_of(server), client_of(server, "bob")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        told = watcher.get_progress()
        if told["current_image"] is not None and told["progress"]:
            break
        time.sleep(0.05)
    assert 0 < told["progress"] < 1
    assert told["eta_relative"] > 0
    assert told["state"]["job_count"] == 1
    assert told["state"]["sampling_steps"] == 150
    assert Image.open(io.BytesIO(base64.b64decode(told["current_image"]))).format == "JPEG"
    assert other.get_progress()["state"]["job_count"] == 0
    assert other.interrupt() == {}  # somebody else's
    assert getattr(watcher, end)() == {}
    thread.join(timeout=60)
    (result,) = found
    assert result.images == []
    assert result.info["interrupted"]
    assert server.job({"id": result.info["job"]})["state"] == "cancelled"
    assert watcher.get_progress()["progress"] == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hires": ({"enable_hr": True}, "enable_hr"),
    "script": ({"script_name": "x/y/z plot"}, "script_name"),
    "styles": ({"styles": ["a"]}, "styles"),
    "faces": ({"restore_faces": True}, "restore_faces"),
    "tiling": ({"tiling": True}, "tiling"),
    "subseed": ({"subseed_strength": 0.5}, "subseed_strength"),
    "sampler": ({"sampler_name": "DPM++ 2M Karras"}, "sampler_name"),
    "scheduler": ({"scheduler": "karras"}, "scheduler"),
    "setting": (
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
        "override_settings.CLIP_stop_at_last_layers",
    ),
    "other script": ({"sag": webuiapi.Sag()}, "alwayson_scripts.Self Attention Guidance"),
    "steps": ({"steps": 10**6}, "steps"),
    "many": ({"batch_size": 100}, "batch_size"),
    "size": ({"width": 65}, "width"),
    "seed": ({"seed": "x"}, "seed"),
    "module": ({"controlnet_units": [Unit(module="canny")]}, "args.0.module"),
    "model": ({"controlnet_units": [Unit(model="ip-adapter_sd15 [6a3f6166]")]}, "args.0.model"),
    "face": ({"controlnet_units": [Unit(module="ip-adapter_face_id")]}, "args.0.model"),
    "picture reader": (
        {"controlnet_units": [Unit(module="ip-adapter_face_id", model="plus")]},
        "args.0.module",
    ),
    "control mode": ({"controlnet_units": [Unit(control_mode=2)]}, "args.0.control_mode"),
    "weight": ({"controlnet_units": [Unit(weight=9)]}, "args.0.scale"),
    "order": ({"controlnet_units": [Unit(guidance_start=1.0)]}, "args.0.guidance_end"),
    "no picture": ({"controlnet_units": [Unit(image=None)]}, "args.0.image"),
    "unit's mask": ({"controlnet_units": [Unit(mask=HALF)]}, "args.0.mask"),
    "blocks": (
        {"controlnet_units": [Unit(more={"advanced_weighting": [1.0]})]},
        "args.0.advanced_weighting",
    ),
    "URL": (
        {"controlnet_units": [Unit(more={"image": "http://127.0.0.1/x.png"})]},
        "args.0.image",
    ),
    "tensors": (
        {"controlnet_units": [Unit(more={"ipadapter_input": ["gASV"]})]},
        "args.0.ipadapter_input",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_picture_is_refused(api: Any, name: str) -> None:
    arguments, place = REFUSED[name]
    with pytest.raises(RuntimeError) as caught:
        api.txt2img(alwayson_scripts={}, **{**FEW, **arguments})
    status, text = caught.value.args
    assert status == 400
    assert place in text, text


def test_starts_that_are_refused(api: Any, server: Served) -> None:
    black = Image.new("L", (64, 64))
    for arguments, place in (
        ({"images": [BLUE, BLUE]}, "init_images"),
        ({"images": []}, "init_images"),
        ({"mask_image": black}, "mask"),
        ({"resize_mode": 1}, "resize_mode"),
        ({"inpainting_fill": 2}, "inpainting_fill"),
        ({"denoising_strength": 0}, "denoising_strength"),
    ):
        with pytest.raises(RuntimeError) as caught:
            api.img2img(**{"images": [BLUE], **FEW, **arguments})
        assert caught.value.args[0] == 400
        assert place in caught.value.args[1]
    form = server.client.post("/sdapi/v1/txt2img", data={"prompt": "a"})
    assert (form.status_code, form.json()["error"]) == (415, "unsupported_type")


def test_the_guide(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address and the key of this server."""
    (snippet,) = (text for text in blocks(DOCS / "clients.md", "python") if "webuiapi" in text)
    RED.save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    port = server.address.rpartition(":")[2]
    key = server.secrets["alice"]  # type: ignore[attr-defined]
    assert "port=8000)" in snippet
    names: dict[str, Any] = {}
    exec(snippet.replace("port=8000)", f"port={port}, username='any', password={key!r})"), names)
    (reference,) = request_of(server, names["result"])["references"]
    assert (reference["scale"], reference["schedule"]) == (0.7, "0-0.6")
    with Image.open("star.png") as picture:
        assert picture.size == names["again"].image.size == (64, 64)


def test_a_wrong_password_is_refused(server: Served) -> None:
    stranger = client_of(server, "nobody")
    assert not stranger.has_controlnet
    with pytest.raises(RuntimeError) as caught:
        stranger.txt2img(prompt="a")
    assert caught.value.args[0] == 401
    for path in ("/sdapi/v1/progress", "/controlnet/version"):
        answer = server.client.get(path, headers={"authorization": "Basic !!"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="imageprompt"'
    # only A1111's routes take a password
    header = base64.b64encode(f"x:{server.secrets['alice']}".encode()).decode()  # type: ignore[attr-defined]
    assert server.get("/jobs", headers={"authorization": f"Basic {header}"}).status_code == 401


def test_pictures_in_json_may_be_large(server: Served) -> None:
    """Larger than JSON without pictures."""
    unit = {"module": "ip-adapter-auto", "image": base64.b64encode(_noise()).decode()}
    body = {"prompt": "", "steps": 1, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    assert len(unit["image"]) > 2**20
    answer = server.client.post("/sdapi/v1/txt2img", json={**body, "width": 64, "height": 64})
    assert answer.status_code == 200, answer.text
    assert server.post("/jobs", json=body).status_code == 413


def _noise() -> bytes:
    import numpy as np

    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (600, 600, 3), dtype="uint8")).save(stream, format="PNG")
    return stream.getvalue()
