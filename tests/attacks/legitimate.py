"""Sound files of every format that strangers exchange, and how each is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
"""Content by name, relative to one folder."""


@dataclass(frozen=True)
class Format:
    """A format: files that are right, and what reads them from a folder.

    `read` raises what its door raises, and returns anything. `mend` makes hashes between files
    right again, so that a change reaches what lies behind them.
    """

    name: str
    make: Callable[[], Files]
    read: Callable[[Path, Path], object]
    mend: Callable[[Files], Files] = lambda files: files


def in_folder(write: Callable[[Path], object]) -> Callable[[], Files]:
    """The files that `write` leaves in an empty folder."""

    def make() -> Files:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            write(Path(place))
            return files_in(Path(place))

    return make


def files_in(folder: Path) -> Files:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# ── adapters ────────────────────────────────────────────────────────────────────────────────────


def _tensors() -> dict[str, Any]:
    import torch

    from forge import adapter_shapes

    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in adapter_shapes((8, 8), 16, 8).items()}


def _safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_tensors(), folder / "file.safetensors", {"variant": "base", "author": "somebody"})


def _torch(**how: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import torch

        tree: dict[str, Any] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in _tensors().items():
            part, _, rest = name.partition(".")
            tree[part][rest] = tensor
        torch.save(tree | {"step": 3, "notes": ["a", (1, 2.5, None)]}, folder / "file.bin", **how)

    return write


def _deflated(folder: Path) -> None:
    import zipfile

    _torch()(folder)
    plain = io.BytesIO((folder / "file.bin").read_bytes())
    packed = zipfile.ZipFile(folder / "file.bin", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(plain) as old, packed as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def _distributed(folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(_tensors(), checkpoint_id=folder, no_dist=True)


def _sharded(folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = sorted(_tensors().items())
    weight_map = {}
    for number, part in enumerate((tensors[:3], tensors[3:])):
        name = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file(dict(part), folder / name)
        weight_map |= {key: name for key, _ in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _inspects(name: str) -> Callable[[Path, Path], object]:
    """As `inspect`, `validate` and `convert` read it."""

    def read(folder: Path, out: Path) -> object:
        from imageprompt.checkpoint.convert import convert
        from imageprompt.checkpoint.inspect import inspect
        from imageprompt.core.errors import ImagePromptError

        report = inspect(folder / name, deep=True)
        with contextlib.suppress(ImagePromptError):
            convert(folder / name, out / "adapter.safetensors", force=True)
        return str(report), json.dumps(report.as_dict())

    return read


# ── faces, prompts, styles, recipes ─────────────────────────────────────────────────────────────


def _faces() -> Any:
    import numpy as np

    faces = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    return faces / np.linalg.norm(faces, axis=1, keepdims=True)


def _npy(folder: Path) -> None:
    import numpy as np

    np.save(folder / "faces.npy", _faces())


def _json_faces(folder: Path) -> None:
    (folder / "faces.json").write_text(json.dumps(_faces().tolist()))


def _embeds(name: str) -> Callable[[Path, Path], object]:
    def read(folder: Path, out: Path) -> object:
        from imageprompt.encoding.face_embeddings import read_embeddings

        return read_embeddings(folder / name).shape

    return read


def _prompt(folder: Path) -> None:
    import torch

    from imageprompt.encoding.image_prompt import ImagePrompt

    torch.manual_seed(0)
    tokens = torch.randn(1, 4, 16)
    ImagePrompt(tokens, torch.zeros_like(tokens), {"variant": "base"}).save(
        folder / "prompt.safetensors"
    )


def _read_prompt(folder: Path, out: Path) -> object:
    from imageprompt.encoding.image_prompt import ImagePrompt

    return ImagePrompt.load(folder / "prompt.safetensors")


def _style(folder: Path) -> None:
    import torch

    from imageprompt.library.style import Style
    from imageprompt.library.style_file import StoredBytes, token_hash, write_style
    from imageprompt.loading.recipe import AssetRecord

    torch.manual_seed(0)
    tensors = {name: StoredBytes.of(torch.randn(1, 4, 16)) for name in ("tokens", "null_tokens")}
    style = Style(
        name="porcelain",
        tags=("blue", "white"),
        adapter=AssetRecord(name="base", hash="1" * 16, spec={"variant": "base"}),
        encoder=AssetRecord(name="encoder", hash="2" * 16, spec={}),
        references=(AssetRecord(name="vase.png", hash="3" * 64),),
        recipe={"fusion": "weighted", "weights": [0.7, 0.3]},
        hash=token_hash(tensors),
        tensors=tensors,
    )
    write_style(folder / "porcelain.safetensors", style)


def _read_style(folder: Path, out: Path) -> object:
    from imageprompt.library.style_file import check_whole, read_style

    style = check_whole(read_style(folder / "porcelain.safetensors"))
    return style._repr_png_(), json.dumps(style.as_dict())


def _recipe(folder: Path) -> None:
    from PIL import Image

    from imageprompt.loading.recipe import (
        AssetRecord,
        Recipe,
        ReferenceMetadata,
        library_versions,
        write_picture,
    )

    reference = ReferenceMetadata(
        adapter=AssetRecord(name="base", hash="1" * 64, spec={"variant": "base"}),
        encoder=AssetRecord(name=None, hash="2" * 16),
        pictures=(AssetRecord(name="cat.png", hash="3" * 64),),
        controls={"scale": 1.0},
        encode_options={"fusion": "weighted", "weights": [1.0], "framing": "crop:top"},
    )
    recipe = Recipe(
        prompt="a cat in a hat", negative_prompt="", seed=1, index=2, num_images=4, batch_size=4,
        steps=20, guidance_scale=3.0, width=64, height=64, dtype="float32", device="cpu",
        scheduler={"_class_name": "DDIMScheduler", "beta_start": 1e-4},
        base=AssetRecord(name="bundled", hash="0" * 16), references=(reference,),
        versions=library_versions(),
    )  # fmt: skip
    tokens = in_folder(_prompt)()["prompt.safetensors"]
    write_picture(folder / "recipe.png", Image.new("RGB", (8, 8)), recipe, [tokens])


def _read_recipe(folder: Path, out: Path) -> object:
    from imageprompt.generation.replay import request_from_recipe
    from imageprompt.loading.recipe import read_picture

    recipe, tokens = read_picture(folder / "recipe.png")
    return request_from_recipe(recipe, tokens, {})


# ── pictures ────────────────────────────────────────────────────────────────────────────────────


def _picture(suffix: str, **how: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from PIL import Image

        from training_data import picture

        exif = Image.Exif()
        exif[0x0112] = 6
        picture(0, (40, 32)).save(folder / f"picture.{suffix}", exif=exif, **how)

    return write


def _opens(suffix: str) -> Callable[[Path, Path], object]:
    def read(folder: Path, out: Path) -> object:
        from imageprompt.encoding.images.open_image import open_picture, picture_size

        return picture_size(folder / f"picture.{suffix}"), open_picture(
            folder / f"picture.{suffix}"
        )

    return read


# ── training ────────────────────────────────────────────────────────────────────────────────────


def _config(folder: Path) -> None:
    import imageprompt.training

    example = Path(imageprompt.training.__path__[0], "examples", "sd15-plus.yaml")
    (folder / "config.yaml").write_bytes(example.read_bytes())


def _read_config(folder: Path, out: Path) -> object:
    from imageprompt.training.config.config import TrainingConfig

    return repr(TrainingConfig.load(folder / "config.yaml"))


def _list(lines: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from training_data import write_list

        write_list(folder, 4, lines=lines)

    return write


def _shard(folder: Path) -> None:
    from training_data import write_shards

    write_shards(folder, 4, 1)


def _captioned(folder: Path) -> None:
    from training_data import write_folder

    write_folder(folder, 3)


def _samples(name: str) -> Callable[[Path, Path], object]:
    """As a training set is listed, and each of its samples opened."""

    def read(folder: Path, out: Path) -> object:
        from imageprompt.core.errors import PictureError
        from imageprompt.training.data.sources import open_data

        records = open_data(str(folder / name))
        said = list(records.problems().items())
        for index in range(min(len(records), 8)):
            try:
                said.append(records.record(index).open_picture().size)
            except PictureError as error:
                said.append(str(error))
        return said

    return read


def _cache(folder: Path) -> None:
    import torch

    from imageprompt.training.cache.store import Store, address

    store = Store(folder)
    entries = {
        address("entry", number): {"moments": torch.randn(8, 4, 4), "text": torch.randn(3, 16)}
        for number in range(40)
    }
    chosen = {key: value for key, value in entries.items() if key[:1] == min(entries)[:1]}
    with store.writing(min(entries)[:1].decode()):
        store.write(min(entries)[:1].decode(), chosen)


def _read_cache(folder: Path, out: Path) -> object:
    from imageprompt.training.cache.store import Store

    store = Store(folder)
    store.check()
    for one in store._addresses.tolist():
        with contextlib.suppress(KeyError):
            store.read(one, "moments")
    return store.damaged


def _checkpoint(folder: Path) -> None:
    from toy_training import trainer

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer(folder, checkpoint_every=2, trackers=[]).run(2)


def _resume(folder: Path, out: Path) -> object:
    from toy_training import trainer

    return trainer(folder, trackers=[]).step


def _digests(files: Files) -> Files:
    """A manifest that agrees with its files again."""
    name = next((name for name in files if name.endswith("manifest.json")), "")
    try:
        manifest = json.loads(files[name])
        for one in manifest["files"]:
            content = files[name.replace("manifest.json", one)]
            digest = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            manifest["files"][one] = digest
        return files | {name: json.dumps(manifest).encode()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return files


FORMATS = (
    Format("adapter safetensors", in_folder(_safetensors), _inspects("file.safetensors")),
    Format("adapter torch zip", in_folder(_torch()), _inspects("file.bin")),
    Format("adapter torch zip deflated", in_folder(_deflated), _inspects("file.bin")),
    Format(
        "adapter torch legacy",
        in_folder(_torch(_use_new_zipfile_serialization=False)),
        _inspects("file.bin"),
    ),
    Format("adapter DCP", in_folder(_distributed), _inspects("")),
    Format("adapter shards", in_folder(_sharded), _inspects("model.safetensors.index.json")),
    Format("face npy", in_folder(_npy), _embeds("faces.npy")),
    Format("face JSON", in_folder(_json_faces), _embeds("faces.json")),
    Format("image prompt", in_folder(_prompt), _read_prompt),
    Format("style", in_folder(_style), _read_style),
    Format("recipe PNG", in_folder(_recipe), _read_recipe),
    Format("picture PNG", in_folder(_picture("png")), _opens("png")),
    Format("picture JPEG", in_folder(_picture("jpg")), _opens("jpg")),
    Format("picture JPEG progressive", in_folder(_picture("jpg", progressive=True)), _opens("jpg")),
    Format("picture WEBP", in_folder(_picture("webp")), _opens("webp")),
    Format("config YAML", in_folder(_config), _read_config),
    Format("list JSON", in_folder(_list(lines=False)), _samples("list.json")),
    Format("list JSON lines", in_folder(_list(lines=True)), _samples("list.jsonl")),
    Format("tar shard", in_folder(_shard), _samples("set-00.tar")),
    Format("folder", in_folder(_captioned), _samples("")),
    Format("cache shard", in_folder(_cache), _read_cache),
    Format("training checkpoint", in_folder(_checkpoint), _resume, _digests),
)
