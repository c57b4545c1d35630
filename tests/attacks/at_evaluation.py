"""Before a study: its YAML, its prompts, data sets of protocols, weights of extractors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import at_configs
from .at_commands import PATHS
from .attack import Attack, Door, content, outside
from .tensor_files import write

DEEP = "[" * 100_000

# ── YAML ────────────────────────────────────────────────────────────────────────────────────────


def _study(path: Path, out: Path) -> object:
    from imageprompt.evaluation.study.config import StudyConfig, folder_names

    found = StudyConfig.load(path)
    return f"{found.output!r} {len(folder_names([one.title for one in found.entries]))} adapters"


def _yaml(text: str, name: str, says: str, **more: Any) -> Attack:
    return Attack(name, content(f"output: out\n{text}", "study.yaml"), says, **more)


def _studies() -> Iterator[Attack]:
    """What every config must refuse, and what is a study's own."""
    ours = at_configs.DOORS
    for door in ours[:5]:
        shared = [one for one in door.attacks if one.outcome == "refused"]
        yield from (Attack(f"{door.name}: {one.name}", one.make) for one in shared[::6])
    same = "[" + "a," * 6000 + "a]"
    yield _yaml(f"adapters: {same}\n", "6,001 adapters of one name", "two adapters")
    names = "[" + ",".join(f"a{n}" for n in range(6000)) + "]"
    yield _yaml(f"adapters: {names}\n", "6,000 adapters", "6000 adapters", outcome="read")
    yield _yaml("adapters: [{adapter: {a: 1}}]\n", "a mapping as adapter", "adapters[0]")
    yield _yaml("adapters: [{adapter: x, evil: 1}]\n", "another key of an adapter", "evil")
    yield _yaml("adapters: [[x]]\n", "a list as adapter", "adapters")
    yield _yaml(
        "adapters: [{adapter: ../../x}]\n", "an adapter elsewhere", "1 adapters", outcome="read"
    )
    yield _yaml("scales: []\n", "no scales", "must not be empty")
    yield _yaml("scales: [.nan]\n", "a scale that is no number", "scale")
    yield _yaml("scales: [1e300]\n", "a huge scale", "scale")
    yield _yaml(
        f"scales: [{','.join(f'0.{n:05}' for n in range(1, 9000))}]\n",
        "8,999 scales",
        "2 adapters",
        outcome="read",
    )
    yield _yaml("protocol: ../x\ndata: .\n", "a protocol elsewhere", "protocol")
    yield _yaml("protocol: [x]\n", "a list as protocol", "protocol")
    yield _yaml("protocol: dreambench\n", "a protocol without data", "without data")
    yield _yaml("output: ~nosuchuser/x\n", "two outputs", "twice")
    yield _yaml("extractors: {clip: [x]}\n", "a list as extractor", "extractors")
    yield _yaml("metrics: [{a: 1}]\n", "a mapping as metric", "metrics")
    yield _yaml("size: [1, 2, 3]\n", "three sides", "size")
    yield _yaml("seeds: 1000000000\n", "a billion seeds", "seeds")
    yield _yaml("seed: 99999999999999999999\n", "a seed of 20 digits", "seed")


# ── texts ───────────────────────────────────────────────────────────────────────────────────────


def _prompts(path: Any, out: Path) -> object:
    from imageprompt.evaluation.scoring.texts import read_texts

    return f"{len(read_texts(path))} texts"


def _texts() -> Iterator[Attack]:
    yield Attack("nothing", content(b"", "p.txt"), "no text")
    yield Attack("no text", content(b"\xff\xfe\x00", "p.txt"), "cannot be read")
    yield Attack("64 million lines", content(b"\n" * (60 << 20), "p.txt"), "more than")
    yield Attack(
        "ends of many kinds",
        lambda folder: content("\u2028" * (9 << 20), "p.txt")(folder),
        "more than",
    )
    yield Attack("60 MB in a line", content(b"a" * (60 << 20), "p.txt"), "1 texts", "read")
    yield Attack("a gigabyte of nothing", PATHS["a gigabyte of nothing"], "")
    yield Attack("escapes", content("\x1b[2J\u202e\n", "p.txt"), "1 texts", "read")
    for name in (
        "a pipe",
        "a socket",
        "/dev/zero",
        "a link to itself",
        "missing",
        "a link to /dev/zero",
    ):
        yield Attack(name, PATHS[name])


# ── protocols ───────────────────────────────────────────────────────────────────────────────────


def _reads(name: str) -> Callable[[Any, Path], object]:
    def read(folder: Any, out: Path) -> object:
        from imageprompt.evaluation.protocols import PROTOCOLS

        found = PROTOCOLS[name].read(Path(folder), out, None)
        names = [one.picture.name for one in found.references]
        prompts = [one.prompt for one in found.cases[:2]]
        return f"{found.told} {len(found.cases)} cases {names[:3]!r} {prompts!r}"

    return read


def _folder(*files: tuple[str, bytes | str | Callable[[Path], Any]]) -> Callable[[Path], Path]:
    """A data set with these files; a function makes what is none."""

    def make(folder: Path) -> Path:
        place = folder / "data"
        place.mkdir()
        for name, data in files:
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(data):
                data(path)
            else:
                path.write_bytes(data.encode() if isinstance(data, str) else data)
        return place

    return make


def _out(path: Path) -> None:
    row = Path(*path.parts[: path.parts.index("data")])
    path.symlink_to(outside(row) / "secret.json")


def _terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


ODD: tuple[tuple[str, Any], ...] = (
    ("is a pipe", os.mkfifo), ("is a terabyte", _terabyte),
    ("is zeros", lambda path: path.symlink_to("/dev/zero")),
    ("links to itself", lambda path: path.symlink_to(path)),
    ("is a folder", lambda path: path.mkdir()),
    ("is no text", b"\xff\xfe\x00"), ("is empty", b""),
)  # fmt: skip


def _coco() -> Iterator[Attack]:
    captions = "annotations/captions_val2017.json"
    picture = ("val2017/a.png", b"x")
    for name, make in ODD:
        yield Attack(f"captions: {name}", _folder(picture, (captions, make)))
    yield Attack("no folder", lambda folder: folder / "x", "not a folder")
    image = {"id": 1, "file_name": "a.png"}
    note = {"id": 1, "image_id": 1, "caption": "a"}
    odd = (None, 1, "x", [], {}, [[]], [{}], 1e308, 10**40, True, "\x1b[2J")
    for number, value in enumerate(odd):
        for key in ("images", "annotations"):
            data = {"images": [image], "annotations": [note]} | {key: value}
            yield Attack(f"{key}, odd {number}", _folder(picture, (captions, json.dumps(data))))
    for name, of, key, value in (
        ("a name that leads out", "images", "file_name", "../../outside/secret.png"),
        ("an absolute name", "images", "file_name", "/etc/passwd"),
        ("a name of escapes", "images", "file_name", "\x1b[2J.png"),
        ("a caption of escapes", "annotations", "caption", "\x1b[2J\u202e"),
        ("a caption of lists", "annotations", "caption", [[["x"]]]),
        ("an id in words", "annotations", "id", "1"),
    ):
        data = {"images": [image], "annotations": [note]}
        data[of] = [data[of][0] | {key: value}]
        yield Attack(name, _folder(picture, (captions, json.dumps(data))), "", "read")
    for name, text in (
        ("deep", DEEP), ("digits", '{"images": ' + "9" * 5000), ("endless", '"' + "a" * (40 << 20)),
        ("five million lists", '{"images": [' + "[]," * 5_000_000 + "[]]}"),
        ("a million objects", '{"images": [' + "{}," * 1_000_000 + "{}]}"),
        ("a key twice", '{"images": [], "images": []}'),
    ):  # fmt: skip
        yield Attack(
            f"captions: {name}",
            lambda folder, text=text: _folder(picture, (captions, text))(folder),
        )  # type: ignore[misc]


TEMPLATES = (
    "Object Prompts\nprompt_list = [\n'a {0} {1} in the jungle'.format(token, class_token),\n]\n"
    "Live Subject Prompts\nprompt_list = [\n'a {0} {1} in a hat'.format(token, class_token),\n]\n"
)


def _dreambench() -> Iterator[Attack]:
    classes = "prompts_and_classes.txt"
    picture = ("backpack/00.jpg", b"x")
    for name, make in ODD:
        yield Attack(f"classes: {name}", _folder(picture, (classes, make)))
    sound = f"backpack,backpack\n{TEMPLATES}"
    yield Attack("sound", _folder(picture, (classes, sound)), "1 cases", "read")
    evil = sound.replace("a {0} {1} in the jungle", "{0.__class__.__mro__} {1}{2!r:>1000000000}")
    yield Attack("code in a prompt", _folder(picture, (classes, evil)), "__mro__", "read")
    yield Attack("no subjects", _folder(picture, (classes, TEMPLATES)), "without subjects")
    yield Attack(
        "no prompts", _folder(picture, (classes, "backpack,backpack\n")), "without subjects"
    )
    yield Attack("no pictures", _folder(("backpack/x.txt", b""), (classes, sound)), "no pictures")
    yield Attack(
        "a subject that leads up",
        _folder(picture, (classes, sound.replace("backpack,", "..,"))),
        "without subjects",
    )
    for name, text in (
        ("a million subjects", "".join(f"a{n},b\n" for n in range(1_000_000))),
        ("words without an end", "a" * (30 << 20)),
        ("many almost subjects", "a-" * (10 << 20)),
        ("quotes", "Object Prompts\n" + "'\\" * (10 << 20)),
        ("many quotes", "Object Prompts\n" + "'\n" * (5 << 20)),
    ):
        yield Attack(name, lambda folder, text=text: _folder(picture, (classes, text))(folder))  # type: ignore[misc]
    yield Attack("100,001 folders", _crowd, "more than")


def _crowd(folder: Path) -> Path:
    place = _folder(
        ("backpack/00.jpg", b"x"), ("prompts_and_classes.txt", f"backpack,backpack\n{TEMPLATES}")
    )(folder)
    for number in range(100_001):
        (place / "backpack" / f"{number}.jpg").symlink_to("00.jpg")
    return place


def _others() -> dict[str, list[Attack]]:
    """Of protocols that read a text for each picture, style or person."""
    found: dict[str, list[Attack]] = {"dreambench++": [], "style-grid": [], "faces": []}
    for name, make in ODD:
        found["dreambench++"].append(
            Attack(f"a text {name}", _folder(("images/a/b.png", b"x"), ("captions/a/b.txt", make)))
        )
        found["style-grid"].append(Attack(f"a text {name}", _folder(
            ("style/a.png", b"x"), ("style/b.png", b"x"), ("content/a.txt", make)),
            "", "read" if name == "is empty" else "refused"))  # fmt: skip
        people = (("people/a/1.png", b"x"), ("people/b/1.png", b"x"))
        found["faces"].append(Attack(f"the texts: {name}", _folder(*people, ("prompts.txt", make))))
    words = ("content/a.txt", "a " * (30 << 20))
    styles = (("style/a.png", b"x"), ("style/b.png", b"x"))
    found["style-grid"].append(
        Attack("a text of 60 MB", lambda folder: _folder(*styles, words)(folder))
    )
    lines = ("captions/a/b.txt", "a\n" * (30 << 20))
    found["dreambench++"].append(
        Attack(
            "30 million prompts", lambda folder: _folder(("images/a/b.png", b"x"), lines)(folder)
        )
    )
    return found


# ── weights ─────────────────────────────────────────────────────────────────────────────────────


def _weights(path: Any, out: Path) -> object:
    """As every role reads a file: none of them is the network that it needs."""
    from imageprompt.core.errors import EncoderError, ImagePromptError
    from imageprompt.evaluation.extractors import EXTRACTORS

    said = []
    for role in ("csd", "copy", "inception"):
        try:
            EXTRACTORS[role].open(f"unverified:{path}")
            said.append(f"{role} opened")
        except ImagePromptError as error:
            said.append(str(error))
    if not any("opened" in one for one in said):
        raise EncoderError(said[0])
    return "; ".join(said)


def _csd(**changes: Any) -> dict[str, Any]:
    """Tensors of a CSD with one layer; `changes` by name, None takes one away."""
    width = 64
    layer = "backbone.transformer.resblocks.0"
    found: dict[str, Any] = {
        "backbone.class_embedding": (width,), "backbone.positional_embedding": (5, width),
        "backbone.conv1.weight": (width, 3, 14, 14), "last_layer_style": (width, 16),
        f"{layer}.attn.in_proj_weight": (3 * width, width),
        f"{layer}.attn.in_proj_bias": (3 * width,),
        f"{layer}.attn.out_proj.weight": (width, width), f"{layer}.attn.out_proj.bias": (width,),
        f"{layer}.mlp.c_fc.weight": (width, width), f"{layer}.mlp.c_fc.bias": (width,),
        f"{layer}.mlp.c_proj.weight": (width, width), f"{layer}.mlp.c_proj.bias": (width,),
    }  # fmt: skip
    for norm in ("backbone.ln_pre", "backbone.ln_post", f"{layer}.ln_1", f"{layer}.ln_2"):
        found |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    found |= changes
    return {name: ("F32", shape) for name, shape in found.items() if shape is not None}


def _file(
    name: str, tensors: Callable[[], dict[str, Any]], says: str = "", outcome: str = "refused"
) -> Attack:
    return Attack(name, lambda folder: write(folder / "w.safetensors", tensors()), says, outcome)  # type: ignore[arg-type]


def _weight_files() -> Iterator[Attack]:
    yield _file("sound", _csd, "csd opened", "read")
    for name, shape in (
        ("backbone.positional_embedding", (0, 64)), ("backbone.positional_embedding", (5, 0)),
        ("backbone.positional_embedding", (10**5, 64)), ("backbone.conv1.weight", (64, 3, 0, 0)),
        ("backbone.conv1.weight", (64, 3)), ("last_layer_style", (64,)), ("last_layer_style", None),
        ("backbone.transformer.resblocks.0.mlp.c_fc.bias", ()),
        ("backbone.transformer.resblocks.0.attn.in_proj_weight", (2, 64)),
        ("backbone.transformer.resblocks.0.attn.in_proj_weight", None),
        ("backbone.class_embedding", (10**6,)),
    ):  # fmt: skip
        yield _file(f"{name} {shape}", lambda name=name, shape=shape: _csd(**{name: shape}))  # type: ignore[misc]
    yield _file(
        "4,000 layers",
        lambda: _csd(**{f"backbone.transformer.resblocks.{n}.x": (1,) for n in range(4000)}),
    )
    yield _file(
        "40,000 layers",
        lambda: _csd(**{f"backbone.transformer.resblocks.{n}.x": (1,) for n in range(40_000)}),
    )
    yield _file("150 blocks", lambda: _resnet(150), "more than 2,000")
    yield _file(
        "a kernel of 10^4", lambda: _resnet(1) | {"conv1.weight": ("F32", (1, 3, 2000, 2000))}
    )
    yield _file("no tensors", dict)
    yield _file("names of escapes", lambda: {"\x1b[2J": ("F32", (1,))})
    yield Attack("a pickle", content(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.", "w.bin"))
    yield Attack("nothing", content(b"", "w.safetensors"))
    for name in (
        "a pipe",
        "a socket",
        "/dev/zero",
        "a link to itself",
        "missing",
        "a link to /dev/zero",
    ):
        yield Attack(name, PATHS[name])


def _resnet(blocks: int) -> dict[str, Any]:
    found: dict[str, Any] = {"conv1.weight": (1, 3, 7, 7), "fc.weight": (4, 1), "fc.bias": (4,)}
    norms = ["bn1"]
    for block in range(blocks):
        for conv in (1, 2, 3):
            found[f"layer1.{block}.conv{conv}.weight"] = (1, 1, 1, 1)
            norms.append(f"layer1.{block}.bn{conv}")
    for norm in norms:
        found |= {
            f"{norm}.{part}": (1,) for part in ("weight", "bias", "running_mean", "running_var")
        }
    return {name: ("F32", shape) for name, shape in found.items()}


STUDY = (
    "imageprompt.evaluation.study.config",
    "tests.attacks.loaded_config",
    "imageprompt.generation",
)
PROTOCOL = ("imageprompt.evaluation.protocols", "imageprompt.evaluation.study.plan")
DOORS = (
    Door("study: its YAML", _study, tuple(_studies()), STUDY),
    Door("study: prompts", _prompts, tuple(_texts()), ("imageprompt.evaluation.scoring.texts",)),
    Door("protocol: coco-ip-adapter", _reads("coco-ip-adapter"), tuple(_coco()), PROTOCOL),
    Door("protocol: dreambench", _reads("dreambench"), tuple(_dreambench()), PROTOCOL),
    *(Door(f"protocol: {name}", _reads(name), tuple(rows), PROTOCOL)
      for name, rows in _others().items()),
    Door("extractor weights", _weights, tuple(_weight_files()),
         ("imageprompt.evaluation.extractors", "imageprompt.evaluation.extractors._csd",
          "imageprompt.evaluation.extractors._sscd", "imageprompt.evaluation.extractors._inception",
          "imageprompt.checkpoint.torch_io", "transformers.models.clip.modeling_clip")),
)  # fmt: skip
