"""What a run continues from: checkpoints, metrics, locks, cached sets, shards and surveys."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .attack import Attack, Door, outside

Make = Callable[[Path], Any]
Change = Callable[[Path], object]

# ── safetensors written by hand ─────────────────────────────────────────────────────────────────

ITEM = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "U8": 1}
Stored = tuple[str, tuple[int, ...], bytes]
"""Type, shape and bytes of a tensor."""


def zeros(dtype: str, *shape: int) -> Stored:
    count = 1
    for side in shape:
        count *= side
    return dtype, shape, bytes(count * ITEM[dtype])


def floats(*numbers: float, shape: tuple[int, ...] | None = None) -> Stored:
    return (
        "F32",
        (len(numbers),) if shape is None else shape,
        struct.pack(f"<{len(numbers)}f", *numbers),
    )


def safetensors(tensors: Mapping[str, Stored], metadata: Mapping[str, Any] | None = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        span = [position, position + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        position += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


BAD_FILES: Mapping[str, bytes] = {
    "nothing": b"",
    "a header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "a header of 90 MB that is not there": struct.pack("<Q", 90 * 2**20) + b"{}",
    "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.",
    "an offset beyond the end": struct.pack("<Q", 60)
    + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60),
}

# ── checkpoints ─────────────────────────────────────────────────────────────────────────────────

STEP = 3
WEIGHT, BIAS = (4, 3), (4,)


class Parameters:
    """The adapter, optimiser and average of a run that is as small as one can be."""

    def __init__(self) -> None:
        import torch

        module = torch.nn.Linear(3, 4)
        self.named = dict(module.named_parameters())
        self.optimiser = torch.optim.AdamW(self.named.values(), fused=True)

    def state(self) -> Any:
        from imageprompt.training.loop.checkpoints import TrainingState
        from imageprompt.training.loop.training_state import Ema

        return TrainingState(None, self.named, self.optimiser, Ema(self.named, 0.9))

    def step(self) -> None:
        """One step of the optimiser, whose native code trusts its state."""
        for parameter in self.named.values():
            parameter.grad = parameter.detach().clone()
        self.optimiser.step()


def weights() -> dict[str, Stored]:
    return {"weight": zeros("F32", *WEIGHT), "bias": zeros("F32", *BIAS)}


def optimiser() -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name, shape in (("weight", WEIGHT), ("bias", BIAS)):
        found[f"optimiser.{name}.step"] = floats(STEP, shape=())
        found[f"optimiser.{name}.exp_avg"] = zeros("F32", *shape)
        found[f"optimiser.{name}.exp_avg_sq"] = zeros("F32", *shape)
        found[f"ema.{name}"] = zeros("F32", *shape)
    return found


def manifest() -> dict[str, Any]:
    return {
        "format": 1,
        "step": STEP,
        "facts": {
            "config": {"steps": 8},
            "data": "abc",
            "processes": 1,
            "position": 15,
            "ema_updates": 3,
            "window": [[0.0] * 4, [0.0] * 4],
            "best": None,
            "loss_scale": {},
        },
    }


def checkpoint(
    own: Mapping[str, Stored] | bytes | None = None,
    state: Mapping[str, Stored] | bytes | None = None,
    change: Callable[[dict[str, Any]], object] = lambda plain: None,
    after: Change = lambda folder: None,
    step: int = STEP,
) -> Make:
    """A whole checkpoint, whose hashes are right, then `after` on its folder."""

    def make(folder: Path) -> Path:
        place = folder / "checkpoints" / f"step-{step}"
        place.mkdir(parents=True)
        files = {}
        for name, found, usual in (("adapter", own, weights), ("state", state, optimiser)):
            given = usual() if found is None else found
            data = given if isinstance(given, bytes) else safetensors(given)
            (place / f"{name}.safetensors").write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            files[f"{name}.safetensors"] = {"sha256": digest, "bytes": len(data)}
        plain = manifest() | {"files": files}
        change(plain)
        (place / "manifest.json").write_text(json.dumps(plain))
        after(place)
        return folder / "checkpoints"

    return make


def resume(root: Path, out: Path) -> str:
    """Read the newest checkpoint, restore it, take a step; a line for what could not be read."""
    from imageprompt.core.errors import OptionError
    from imageprompt.training.loop import checkpoints

    found, damaged = checkpoints.newest(root)
    if found is None:
        raise OptionError("no checkpoint", reason=" ".join(damaged))
    run = Parameters()
    run.state().restore(found.folder, found.step, found.metadata["ema_updates"])
    run.step()
    return "\n".join([*damaged, f"continued from step {found.step}"])


def save(root: Path, out: Path) -> str:
    """Write the checkpoint of step 5 beside what is there, keeping two."""
    from imageprompt.training.loop import checkpoints

    run = Parameters()
    state = run.state()
    adapter = type(
        "Adapter", (), {"save": lambda self, path: path.write_bytes(safetensors(weights()))}
    )
    checkpoints.write(
        root, 5, type(state)(adapter(), run.named, run.optimiser, None), manifest()["facts"], 2
    )
    return " ".join(sorted(one.name for one in root.iterdir()))


def replaced(name: str, by: Stored | None) -> dict[str, Stored]:
    """The optimiser's state with one tensor replaced, or left out."""
    found = optimiser()
    if by is None:
        del found[name]
    else:
        found[name] = by
    return found


def _states() -> Iterator[Attack]:
    good = "continued from step 3"
    yield Attack("a whole checkpoint", checkpoint(), good, "read")
    for name, tensor in optimiser().items():
        _, shape, data = tensor
        yield Attack(f"{name} missing", checkpoint(state=replaced(name, None)), "")
        for other in ("F64", "F16", "I64", "U8"):
            make = checkpoint(state=replaced(name, zeros(other, *shape)))
            yield Attack(f"{name} as {other}", make, "does not fit")
        for sides in {(1,), (0,), (10_000,), (2, 2), (*shape, 1), (1, *shape)}:
            make = checkpoint(state=replaced(name, zeros("F32", *sides)))
            yield Attack(f"{name} of shape {sides}", make, "does not fit")
        count = len(data) // 4
        numbers = [float("nan"), float("inf"), float("-inf")]
        numbers += [-1.0] if name.endswith(("_sq", ".step")) else []
        numbers += [1e30, STEP + 1.0] if name.endswith(".step") else []
        for number in numbers:
            make = checkpoint(state=replaced(name, floats(*[number] * count, shape=shape)))
            yield Attack(f"{name} full of {number}", make, "no run writes")
    for name in (
        "optimiser.other.exp_avg",
        "ema.other",
        "other",
        "\x1b[2J",
        "optimiser.weight.max",
    ):
        make = checkpoint(state=optimiser() | {name: zeros("F32", 1)})
        yield Attack(f"one more, {name!r}", make, "state.safetensors")
    no_averages = {name: one for name, one in optimiser().items() if not name.startswith("ema.")}
    yield Attack("no averages", checkpoint(state=no_averages), "no running average")
    for name in weights():
        for other in (None, zeros("F16", 4), zeros("F32", 3, 4), zeros("F32", 1_000)):
            own = {key: one for key, one in weights().items() if key != name}
            own |= {} if other is None else {name: other}
            shown = "missing" if other is None else f"{other[:2]}"
            yield Attack(f"the weight {name} {shown}", checkpoint(own), "not those of the adapter")
    nan = weights() | {"bias": floats(*[float("nan")] * 4)}
    yield Attack("weights that are no numbers", checkpoint(nan), "no run writes")
    for name, data in BAD_FILES.items():
        yield Attack(f"weights: {name}", checkpoint(data), "checkpoint")
        yield Attack(f"state: {name}", checkpoint(state=data), "checkpoint")


ODD: tuple[Any, ...] = (None, True, -1, 1.5, 10**30, "x", [], {}, [[]], "\x1b[2J")


def _facts() -> Iterator[Attack]:
    fine: Mapping[str, tuple[Any, ...]] = {
        "config": ({},),
        "data": ("x", "\x1b[2J"),
        "processes": (),
        "position": (),
        "ema_updates": (),
        "window": (),
        "best": (None, -1, 1.5, 10**30),
        "loss_scale": ({},),
    }
    for key, values in fine.items():
        for value in ODD:
            if any(value is one or (value == one and type(value) is type(one)) for one in values):
                continue

            def change(plain: dict[str, Any], key: str = key, value: Any = value) -> None:
                plain["facts"][key] = value

            yield Attack(f"{key} {value!r}", checkpoint(change=change), key)

        def drop(plain: dict[str, Any], key: str = key) -> None:
            del plain["facts"][key]

        yield Attack(f"no {key}", checkpoint(change=drop), key)


def _manifests() -> Iterator[Attack]:
    for key in ("format", "step", "facts", "files"):
        for value in ODD:

            def change(plain: dict[str, Any], key: str = key, value: Any = value) -> None:
                plain[key] = value

            yield Attack(f"the manifest's {key} {value!r}", checkpoint(change=change), "step-3")
    for name in (
        "../state.safetensors",
        "/etc/passwd",
        "other",
        "a\0b",
        "../../../outside/secret.txt",
    ):

        def more(plain: dict[str, Any], name: str = name) -> None:
            plain["files"][name] = {"sha256": "", "bytes": 0}

        def instead(plain: dict[str, Any], name: str = name) -> None:
            plain["files"][name] = plain["files"].pop("state.safetensors")

        yield Attack(f"the file {name!r} too", checkpoint(change=more), "no others")
        yield Attack(f"the file {name!r} instead", checkpoint(change=instead), "no others")


def _texts() -> Iterator[Attack]:
    for scale in ({"scale": 1.0}, {"scale": "x"}, {"other": 1}):
        yield Attack(
            f"the loss scale {scale}",
            checkpoint(change=lambda plain, s=scale: plain["facts"].update(loss_scale=s)),
            "loss_scale",
        )
    for window in ([[0.0] * 4], [[0.0] * 5] * 2, [["x"] * 4] * 2, [[0.0] * 4] * 200_000, [0, 1]):
        yield Attack(
            f"a window {str(window)[:30]} of {len(window)}",
            checkpoint(change=lambda plain, w=window: plain["facts"].update(window=w)),
            "step-3",
        )
    texts: Mapping[str, str] = {
        "nothing": "",
        "a list": "[]",
        "5,000 brackets": "[" * 5_000 + "]" * 5_000,
        "a million brackets": "[" * 1_000_000,
        "5,000 objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
        "a number of 5,000 digits": '{"format": 1, "step": ' + "9" * 5_000 + "}",
        "NaN": '{"format": NaN}',
        "4 MB": "[" + "1," * 2_000_000 + "1]",
        "a byte that is no UTF-8": '{"format": "\udcff"}',
        "zeros": "\0" * 1_000,
    }
    for name, text in texts.items():

        def write(place: Path, text: str = text) -> None:
            (place / "manifest.json").write_text(text, errors="surrogateescape")

        yield Attack(f"the manifest is {name}", checkpoint(after=write), "step-3")


# ── what stands in a file's place ───────────────────────────────────────────────────────────────


def take(path: Path) -> None:
    """Remove what is there."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(target: str | Path) -> Change:
    def stand(path: Path) -> None:
        take(path)
        path.symlink_to(target)

    return stand


def link_outside(name: str = "secret.txt") -> Change:
    return lambda path: link(Path(os.path.relpath(_outside_of(path) / name, path.parent)))(path)


def _outside_of(path: Path) -> Path:
    """The folder that nothing may touch, from any place in an attack's folder."""
    folder = next(one for one in path.parents if (one.parent / "outside").is_dir())
    return outside(folder)


def pipe(path: Path) -> None:
    take(path)
    os.mkfifo(path)


def huge(path: Path) -> None:
    take(path)
    path.touch()
    os.truncate(path, 2**30)


def folder(path: Path) -> None:
    take(path)
    path.mkdir()


STANDING: Mapping[str, Change] = {
    "a pipe": pipe,
    "a link to /dev/zero": link("/dev/zero"),
    "a link to nothing": link("nowhere"),
    "a link out": link_outside(),
    "a link to a folder out": link_outside("empty"),
    "a folder": folder,
    "a GiB of zeros": huge,
}


def _in_place() -> Iterator[Attack]:
    for kind, stand in STANDING.items():
        for name in ("manifest.json", "adapter.safetensors", "state.safetensors"):

            def after(place: Path, name: str = name, stand: Change = stand) -> None:
                stand(place / name)

            yield Attack(f"{name} is {kind}", checkpoint(after=after), "step-3")
        for name in ("step-99", "step-4", "step-1"):

            def beside(place: Path, name: str = name, stand: Change = stand) -> None:
                stand(place.parent / name)

            outcome = "read" if name == "step-1" else "quarantined"
            says = "continued from step 3" if name == "step-1" else name
            yield Attack(f"{name} is {kind}", checkpoint(after=beside), says, outcome)  # type: ignore[arg-type]
    for name in ("step-" + "9" * 200, "step-\u0663", "step-03", "step--3", "step-3x", "step-"):

        def odd(place: Path, name: str = name) -> None:
            (place.parent / name).mkdir()

        yield Attack(f"the folder {name[:20]!r}", checkpoint(after=odd), "from step 3", "read")
    away = checkpoint(after=lambda place: link_outside("empty")(place.parent))
    yield Attack("the folder of checkpoints is a link out", away, "leads out")

    def moved(place: Path) -> None:
        place.rename(place.parent / "elsewhere")
        place.symlink_to("elsewhere")

    whole = checkpoint(after=moved)
    yield Attack("a checkpoint is a link to a whole one", whole, "it is a link")
    loop = checkpoint(after=lambda place: link(".")(place))
    yield Attack("a checkpoint is a link to its folder", loop, "step-3")


def _saves() -> Iterator[Attack]:
    for kind, stand in STANDING.items():
        for name in ("step-99", "step-5", "step-1", ".step-5.0a1b2c3d.tmp", ".step-1.ffffffff.tmp"):

            def beside(place: Path, name: str = name, stand: Change = stand) -> None:
                stand(place.parent / name)

            yield Attack(f"{name} is {kind}", checkpoint(after=beside), "step-3 step-5", "read")
    away = checkpoint(after=lambda place: link_outside("empty")(place.parent))
    yield Attack("the folder of checkpoints is a link out", away, "leads out")


# ── metrics and locks ───────────────────────────────────────────────────────────────────────────


def metrics_file(text: str | Change) -> Make:
    def make(folder: Path) -> Path:
        path = folder / "metrics.jsonl"
        if isinstance(text, str):
            path.write_text(text, errors="surrogateescape")
        else:
            text(path)
        return path

    return make


def continue_metrics(path: Path, out: Path) -> str:
    """Start a run at step 5 and write a line; returns the file."""
    from imageprompt.training.loop.logging import Metrics

    metrics = Metrics(path, None)
    metrics.start(5, {})
    metrics.write(6, {"loss": 1.0})
    return path.read_text()[-1_000:]


def _metrics() -> Iterator[Attack]:
    lines: Mapping[str, str] = {
        "5,000 brackets": "[" * 5_000 + "]" * 5_000,
        "5,000 objects": '{"step":' * 5_000 + "1" + "}" * 5_000,
        "a step of 5,000 digits": '{"step": ' + "9" * 5_000 + "}",
        "a step that is true": '{"step": true}',
        "a step that is text": '{"step": "1"}',
        "texts": '{"step": 1, "loss": "\\u001b[2J"}',
        "escapes as a name": '{"step": 1, "\\u001b[2J\\u202e": 1}',
        "NaN": '{"step": 1, "loss": NaN}',
        "a line of 2 MB": '{"step": 1, "loss": ' + "1" * 2_000_000 + "}",
        "3 MB without an end": "a" * 3_000_000,
        "bytes": "\udcff\udcfe",
        "50,000 lines": '{"step": 1}\n' * 50_000,
        "50,000 lines of later steps": '{"step": 7}\n' * 50_000,
        "zeros": "\0" * 100_000,
    }
    for name, text in lines.items():
        yield Attack(
            name, metrics_file(text + '\n{"step": 2, "loss": 0.5}\n'), '"loss": 0.5', "read"
        )
    for kind, stand in STANDING.items():
        if kind == "a GiB of zeros":
            continue
        yield Attack(f"metrics.jsonl is {kind}", metrics_file(stand), "metrics")


def lock(name: str, stand: Change) -> Make:
    def make(folder: Path) -> Path:
        (folder / "locks").mkdir()
        stand(folder / name)
        return folder

    return make


def lock_run(folder: Path, out: Path) -> str:
    from imageprompt.training.loop.distributed import run_lock

    with run_lock(folder):
        return "locked"


def lock_store(folder: Path, out: Path) -> str:
    from imageprompt.training.cache.store import Store

    with Store(folder).writing("0"):
        return "locked"


def _locks(name: str) -> Iterator[Attack]:
    for kind, stand in STANDING.items():
        if kind != "a GiB of zeros":  # an ordinary file may be a lock, whatever is in it
            yield Attack(f"{name} is {kind}", lock(name, stand), "lock")


# ── caches ──────────────────────────────────────────────────────────────────────────────────────

ADDRESS = "0123456789abcdef" * 2
SHARD = "0-" + "a" * 24 + ".safetensors"


def crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


def shard(
    tensors: Mapping[str, Stored] | None = None,
    sums: Any = None,
    name: str = SHARD,
    data: bytes | None = None,
    stand: Change | None = None,
) -> Make:
    """A store with one shard, whose checksums are right unless they are given."""

    def make(folder: Path) -> Path:
        found = {f"{ADDRESS}.states": floats(1, 2)} if tensors is None else tensors
        right = {key: crc(content) for key, (_, _, content) in found.items()}
        text = sums if isinstance(sums, str) else json.dumps(right if sums is None else sums)
        (folder / name).write_bytes(safetensors(found, {"sums": text}) if data is None else data)
        if stand is not None:
            stand(folder / name)
        return folder

    return make


def read_store(folder: Path, out: Path) -> str:
    """Open a store, say what is damaged, and read an entry."""
    import torch

    from imageprompt.core.errors import printable
    from imageprompt.training.cache.build import _drop_damaged
    from imageprompt.training.cache.store import CacheError, Store

    store = Store(folder)
    lines = [printable(f"{name}: {why}") for name, why in store.damaged.items()]
    try:
        kind = (torch.float32, (2,))
        lines.append(f"read {store.read(ADDRESS.encode(), 'states', kind).tolist()}")
    except CacheError as error:
        lines.append(f"damaged: {error}")
    return "\n".join([*lines, *(f"removed {line}" for line in _drop_damaged(store, True))])


def _shards() -> Iterator[Attack]:
    yield Attack("a whole shard", shard(), "read [1.0, 2.0]", "read")
    name = f"{ADDRESS}.states"
    for other in (zeros("F32", 3), zeros("F32", 1, 2), zeros("F64", 2), zeros("I64", 2),
                  zeros("F32", 0), floats(1, shape=()), zeros("U8", 100_000)):  # fmt: skip
        yield Attack(f"states {other[:2]}", shard({name: other}), "damaged", "quarantined")
    yield Attack("a wrong checksum", shard(sums={name: 1}), "checksum", "quarantined")
    for key in ("x", "a" * 32, ADDRESS, ADDRESS + ".", ADDRESS + ".A", "../" + name, "\x1b[2J",
                name + "\n", "\u0660" * 32 + ".states"):  # fmt: skip
        make = shard({key: floats(1, 2)})
        yield Attack(f"a tensor named {key[:40]!r}", make, "removed", "quarantined")
    odd: tuple[Any, ...] = ([], {}, 1, "x", {name: "1"}, {name: [1]}, {name: 1, "more": 1})
    for sums in (*odd, {"\x1b[2J": 1}):
        yield Attack(f"the sums {sums!r}", shard(sums=sums), "removed", "quarantined")
    for text in (
        "[" * 5_000,
        '{"a":' * 100_000,
        "9" * 5_000,
        "NaN",
        f'{{"{name}": {"9" * 99}}}',
    ):
        yield Attack(f"sums {text[:12]} of {len(text)}", shard(sums=text), "removed", "quarantined")
    for kind, data in BAD_FILES.items():
        yield Attack(f"a shard: {kind}", shard(data=data), "removed", "quarantined")
    for kind, stand in STANDING.items():
        if kind not in ("a folder",):
            yield Attack(f"a shard is {kind}", shard(stand=stand), "removed", "quarantined")
    for other_name in ("0-x.safetensors", "[*]-" + "a" * 24 + ".safetensors", "\x1b[2J.safetensors",
                       "0-" + "A" * 24 + ".safetensors", "..safetensors"):  # fmt: skip
        make = shard(name=other_name)
        yield Attack(f"a shard named {other_name!r}", make, "not in the cache", "quarantined")
    places = shard(stand=lambda path: link_outside("empty")(path.parent / "locks"))
    yield Attack("locks is a link out", beside_damage(places), "leads out")


def beside_damage(make: Make) -> Make:
    """With a damaged shard too, for which a lock is taken."""

    def both(folder: Path) -> Any:
        made = make(folder)
        (folder / f"1-{'b' * 24}.safetensors").write_bytes(b"")
        return made

    return both


class Extractors:
    """What the checks of a set need to know of the frozen models."""

    model_ids: Mapping[str, str] = {"moments": "a" * 16, "text": "b" * 16, "features": "c" * 16}
    reads_pictures, reads_faces = True, False
    conditions = ("text_embeds",)

    def __init__(self) -> None:
        from imageprompt.core.spec import Feature
        from imageprompt.training.data.latents import LatentScaling

        self.vae = SimpleNamespace(scaling=LatentScaling())
        self.feature = Feature.parse("image_embeds")

    def identity(self) -> str:
        return "models"


class Records:
    """Two samples that are never read."""

    def __len__(self) -> int:
        return 2

    def fingerprint(self) -> str:
        return "records"


def ints(kind: str, *numbers: int, shape: tuple[int, ...] | None = None) -> Stored:
    letter = {"I32": "i", "I64": "q", "U8": "B"}[kind]
    data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
    return kind, (len(numbers),) if shape is None else shape, data


def cached_set() -> dict[str, Stored]:
    """The tensors of a set of two samples of 16 x 16 pixels."""
    return {
        "moments": zeros("U8", 2, 1, 16),
        "text": zeros("U8", 2, 16),
        "features": zeros("U8", 2, 16),
        "time_ids": ints("I32", *[16, 16, 0, 0, 16, 16] * 2, shape=(2, 1, 6)),
        "group": ints("I32", 0, 0),
        "tokens": ints("I32", 1, 1),
        "origin": ints("I64", 0, 1),
        "null.states": zeros("F32", 1, 3, 4),
        "null.encoded": zeros("F32", 1, 4),
    }


def set_file(
    change: Callable[[dict[str, Stored]], object] = lambda tensors: None,
    more: Mapping[str, Any] | str | None = None,
    data: bytes | None = None,
    stand: Change | None = None,
) -> Make:
    def make(folder: Path) -> Path:
        tensors = cached_set()
        change(tensors)
        plain: dict[str, Any] = {"recipes": dict(Extractors.model_ids), "latents": {}}
        plain |= {"feature": "image_embeds", "broken": ["a line"], "fingerprint": "x"}
        text = more if isinstance(more, str) else json.dumps(plain | dict(more or {}))
        path = folder / "set.safetensors"
        path.write_bytes(safetensors(tensors, {"set": text}) if data is None else data)
        if stand is not None:
            stand(path)
        return path

    return make


def load_set(path: Path, out: Path) -> str:
    """Load a set, list its samples; what is not a set is built again, and that is told."""
    from imageprompt.training.cache.cached_dataset import CachedDataset, CacheIndex
    from imageprompt.training.data.views import PictureOptions

    models: Any = Extractors()
    records: Any = Records()
    options = PictureOptions(resolution=16)
    index = CacheIndex.load(path, records, models, options, False)
    if index is None:
        return "built again"
    samples = CachedDataset(path.parent, index, models)
    samples.indices(0, 2, 0)
    return "\n".join([f"loaded {len(samples)} {samples.complete()}", *samples.quarantined()])


def _sets() -> Iterator[Attack]:
    again = "built again"
    yield Attack("a whole set", set_file(), "loaded 2", "read")
    for name, (dtype, shape, data) in cached_set().items():
        null = name.startswith("null.")
        others = [None, zeros("F16" if dtype != "F16" else "F32", *shape)] if not null else [None]
        others += [zeros(dtype, 0), zeros(dtype, 1000), zeros(dtype, 3, *shape[1:]), zeros(dtype)]
        others += [zeros(dtype, *shape, 1)] if not null else [zeros(dtype, *[1] * 9)]
        others += [floats(*[float("nan")] * (len(data) // 4), shape=shape)] if null else []
        for other in others:

            def change(
                tensors: dict[str, Stored], name: str = name, other: Stored | None = other
            ) -> None:
                tensors.pop(name)
                if other is not None:
                    tensors[name] = other

            shown = "missing" if other is None else f"{other[:2]} {other[2][:4]!r}"
            yield Attack(f"{name} {shown}", set_file(change), again, "quarantined")


def _set_values() -> Iterator[Attack]:
    again = "built again"
    values: Mapping[str, tuple[Stored, ...]] = {
        "group": (
            *(ints("I32", n, 0) for n in (1, 2**31 - 1, -2, -(2**31))),
            ints("I32", -1, -1),
        ),
        "origin": tuple(ints("I64", n, 0) for n in (2, -1, 2**62, -(2**63))),
        "time_ids": (
            ints("I32", *[16, 16, 0, 0, 2**31 - 1, 16] * 2, shape=(2, 1, 6)),
            ints("I32", *[16, 16, 0, 0, 0, 0] * 2, shape=(2, 1, 6)),
        ),
        "\x1b[2J": (zeros("F32", 1),),
        "null.other": (zeros("F32", 1),),
        "face": (zeros("F32", 2, 512),),
    }
    for name, tensors in values.items():
        for number, tensor in enumerate(tensors):
            make = set_file(lambda found, n=name, t=tensor: found.update({n: t}))
            yield Attack(f"{name!a} with the value {number}", make, again, "quarantined")
    for recipes in ({"moments": "../../outside"}, {}, None, [], {**Extractors.model_ids, "x": "y"},
                    {**Extractors.model_ids, "moments": "/etc"}):  # fmt: skip
        make = set_file(more={"recipes": recipes})
        yield Attack(f"the models {str(recipes)[:50]}", make, again, "quarantined")
    for text in ("", "[]", "[" * 5_000, '{"recipes":' * 5_000, "1" * 5_000, "NaN", "null"):
        make = set_file(more=text)
        yield Attack(f"the set is {text[:12]} of {len(text)}", make, again, "quarantined")
    for broken in ("x", 1, None, {"a": 1}):
        make = set_file(more={"broken": broken})
        outcome = again if broken in (1, None) else "loaded"
        yield Attack(
            f"broken {broken!r}", make, outcome, "quarantined" if broken in (1, None) else "read"
        )
    escapes = set_file(more={"broken": ["\x1b[2J\u202e\nfaked", "a" * 500_000, [1]]})
    yield Attack("lines with escapes", escapes, "\\x1b[2j\\u202e\\nfaked", "read")
    for kind, data in BAD_FILES.items():
        yield Attack(f"a set: {kind}", set_file(data=data), again, "quarantined")
    for kind, stand in STANDING.items():
        yield Attack(f"a set is {kind}", set_file(stand=stand), again, "quarantined")


# ── surveys ─────────────────────────────────────────────────────────────────────────────────────


@cache
def stamps() -> tuple[bytes, bytes]:
    return b"s" * 16, b"t" * 16


def survey() -> dict[str, Stored]:
    hashes = ("picture", "reference", "caption")
    return {
        "stamp": ("U8", (2, 16), b"".join(stamps())),
        **{name: zeros("U8", 2, 16) for name in hashes},
        "size": ints("I32", 16, 16, 0, 0, shape=(2, 2)),
        "good": ints("U8", 1, 0),
        "decoded": ints("U8", 1, 1),
    }


def survey_file(
    change: Callable[[dict[str, Stored]], object] = lambda tensors: None,
    broken: Any = None,
    data: bytes | None = None,
    stand: Change | None = None,
) -> Make:
    def make(folder: Path) -> Path:
        tensors = survey()
        change(tensors)
        text = broken if isinstance(broken, str) else json.dumps(broken or {"1": "why"})
        path = folder / "000000000.safetensors"
        path.write_bytes(safetensors(tensors, {"broken": text}) if data is None else data)
        if stand is not None:
            stand(path)
        return path

    return make


def read_survey(path: Path, out: Path) -> str:
    """Read what an earlier scan stored of two samples; a bad file is scanned again."""
    from imageprompt.training.data.scan import Quarantine, _read

    found = _read(path, list(stamps()), False)
    if found is None:
        return "scanned again"
    quarantine = Quarantine(10, 1, {})
    for index, reason in found.broken.items():
        quarantine.add(index, reason)
    return "\n".join(["known", *quarantine.lines()])


def _surveys() -> Iterator[Attack]:
    again = "scanned again"
    yield Attack("a whole survey", survey_file(), "known", "read")
    for name, (dtype, shape, _) in survey().items():
        others = [None, zeros("F32", *shape), zeros(dtype, 0), zeros(dtype, 3, *shape[1:])]
        for other in (*others, zeros(dtype, 2, 2, 2)):
            if name == "decoded" and other is None:
                continue  # of earlier versions

            def change(
                tensors: dict[str, Stored], name: str = name, other: Stored | None = other
            ) -> None:
                tensors.pop(name)
                if other is not None:
                    tensors[name] = other

            shown = "missing" if other is None else f"{other[:2]}"
            yield Attack(f"{name} {shown}", survey_file(change), again, "quarantined")
    for sides in ((0, 16), (-1, 16), (16, 0), (2**31 - 1, 16), (16, 2**17), (-(2**31), 1)):
        size = ints("I32", *sides, 0, 0, shape=(2, 2))
        make = survey_file(lambda found, s=size: found.update(size=s))
        yield Attack(f"a good picture of {sides}", make, again, "quarantined")
    odd: tuple[Any, ...] = ({"0": "x"}, {"5": "x"}, {"-1": "x"}, {"x": "y"}, {"1": "x", "0": "y"})
    odd += ([1], 1, "x", "[" * 5_000, '{"1":' * 5_000, "{}", '{"1": NaN}')
    for broken in (*odd, '{"' + "9" * 5_000 + '": "x"}'):
        name = f"broken {str(broken)[:20]} of {len(str(broken))}"
        yield Attack(name, survey_file(broken=broken), again, "quarantined")
    escapes = survey_file(broken={"1": "\x1b[2J\u202e\n" + "a" * 500_000})
    yield Attack("a reason with escapes", escapes, "\\x1b[2j\\u202e\\n", "read")
    other = survey_file(lambda found: found.update({"\x1b[2J": zeros("F32", 1)}))
    yield Attack("one more column", other, again, "quarantined")
    for kind, data in BAD_FILES.items():
        yield Attack(f"a survey: {kind}", survey_file(data=data), again, "quarantined")
    for kind, stand in STANDING.items():
        yield Attack(f"a survey is {kind}", survey_file(stand=stand), again, "quarantined")


IMPORTS = (
    "imageprompt.training.loop.trainer",
    "imageprompt.training.loop.checkpoints",
    "imageprompt.training.cache.build",
    "imageprompt.checkpoint.read.file",
    "safetensors.numpy",
    "filelock",
)
DOORS = (
    Door("resume: optimiser and weights", resume, tuple(_states()), IMPORTS),
    Door("resume: manifests", resume, (*_facts(), *_manifests(), *_texts()), IMPORTS),
    Door("resume: what stands there", resume, tuple(_in_place()), IMPORTS),
    Door("resume: saving beside it", save, tuple(_saves()), IMPORTS),
    Door("resume: metrics", continue_metrics, tuple(_metrics()), IMPORTS),
    Door("resume: the run's lock", lock_run, tuple(_locks(".lock")), IMPORTS),
    Door("cache: a partition's lock", lock_store, tuple(_locks("locks/0.lock")), IMPORTS),
    Door("cache: shards", read_store, tuple(_shards()), IMPORTS),
    Door("cache: sets", load_set, (*_sets(), *_set_values()), IMPORTS),
    Door("cache: surveys", read_survey, tuple(_surveys()), IMPORTS),
)
