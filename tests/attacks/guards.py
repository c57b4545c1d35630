"""Every kind of guard, taken away on purpose: rows of the table must notice each.

The guard is removed in the child process, after the attack is made and before it is met.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import load, own_stdout, serve
from .harness import run_alone, table

WALL = 3.0
"""Seconds after which a row hangs here: many do."""

Removal = Callable[[], None]


@dataclass(frozen=True)
class Guard:
    """A kind of guard: how it is removed, and which rows must then fail.

    `rows` are words in the names of a door and of an attack; one of the attacks has to fail.
    """

    kind: str
    remove: Removal
    door: str
    attack: str = ""


# ── how guards are removed ──────────────────────────────────────────────────────────────────────


def replaced(place: str, name: str, value: Any) -> Removal:
    """`name` of the module or class is another object, wherever it was imported to."""

    def remove() -> None:
        owner = _find(place)
        before = getattr(owner, name)
        for module in [one for key, one in sys.modules.items() if key.startswith("imageprompt")]:
            for key, found in list(vars(module).items()):
                if found is before and key == name:
                    setattr(module, key, value)
        setattr(owner, name, value)

    return remove


def _find(place: str) -> Any:
    """A module of imageprompt, or a class in one."""
    module, _, inner = place.partition(":")
    found: Any = importlib.import_module(f"imageprompt.{module}")
    return getattr(found, inner) if inner else found


def all_of(*removals: Removal) -> Removal:
    def remove() -> None:
        for one in removals:
            one()

    return remove


def nothing(*_: Any, **__: Any) -> None:
    """In place of a check that returns nothing."""


def no_fault(*_: Any, **__: Any) -> str:
    """In place of a check that returns what is wrong."""
    return ""


def always(*_: Any, **__: Any) -> bool:
    return True


def opened(path: Any, *, inside: Any = None) -> Any:
    return open(path, "rb")  # noqa: PTH123


def read_whole(path: Any, limit: int, *, inside: Any = None) -> bytes:
    return Path(path).read_bytes()


def loads(text: Any, *_: Any, **__: Any) -> Any:
    return json.loads(text)


def unsafe_yaml(text: str, what: str) -> Any:
    import yaml

    return yaml.load(text, yaml.UnsafeLoader)


def unpickled(self: Any, data: bytes, position: int = 0) -> Any:
    return pickle.loads(data[position:]), len(data)


def itself(value: Any, *_: Any, **__: Any) -> Any:
    return value


def raised(error: BaseException) -> str:
    raise error


class Everything(int):
    """Equals whatever it is compared with."""

    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = int.__hash__


def tar_number(field: bytes, position: int) -> int:
    """As Python reads it."""
    return int(field.strip(b"\0 ") or b"0", 8)


HUGE = 10**18

_READ = "checkpoint.read"
_DATA = "training.data.sources"
_PICTURES = "encoding.images"

GUARDS = (
    # 1. one budget for every reader
    Guard(
        "a budget of items",
        replaced("core.untrusted:Budget", "_spend", nothing),
        "config: sizes",
        "a list of 20,000",
    ),
    Guard(
        "a budget of unpacked bytes",
        replaced("core.untrusted:Budget", "unpack", nothing),
        "recipe, its PNG",
        "bombs of 1 MB",
    ),
    Guard(
        "a budget of bytes",
        replaced("core.untrusted:Budget", "read", nothing),
        "PNG",
        "20 MB in a chunk",
    ),
    Guard(
        "a limit of depth",
        replaced("core.untrusted:Budget", "check_depth", nothing),
        "recipe, its JSON",
        "deep",
    ),
    Guard(
        "a budget of the costs of views",
        replaced(f"{_READ}.pickle.torch_tensors:StorageBytes", "_check_cost", nothing),
        "read_file: torch",
    ),
    Guard("strict JSON", replaced("core.untrusted", "parse_json", loads), "face embeddings: JSON"),
    Guard(
        "the length of lines",
        replaced(f"{_DATA}._index", "MAX_ENTRY", HUGE),
        "data: ",
        "an entry of",
    ),
    Guard(
        "the length of captions",
        replaced(f"{_DATA}.contract", "MAX_CAPTION", HUGE),
        "data: ",
        "caption",
    ),
    Guard(
        "numbers of tar",
        replaced(f"{_DATA}._tar", "_number", tar_number),
        "data: numbers",
        "size letters",
    ),
    Guard(
        "the length of tar's extended headers",
        all_of(
            replaced(f"{_DATA}._tar", "MAX_NAME", HUGE),
            replaced(f"{_DATA}._tar", "MAX_RECORDS", HUGE),
        ),
        "data: members",
        "a header of type",
    ),
    Guard(
        "the number of shards",
        replaced(f"{_DATA}._remote", "_check_count", nothing),
        "data: braces",
    ),
    Guard(
        "tensors of a prompt",
        replaced("checkpoint.tensor_bytes", "beyond_limits", no_fault),
        "image prompt file",
    ),
    Guard(
        "prompts as safetensors alone",
        replaced(
            f"{_READ}.file",
            "open_safetensors",
            lambda path: importlib.import_module(f"imageprompt.{_READ}.open").open_source(path),
        ),
        "recipe, its tokens",
        "torch zip",
    ),
    Guard(
        "the scans of a JPEG",
        replaced(f"{_PICTURES}.file_limits", "check", nothing),
        "JPEG",
        "scans",
    ),
    Guard(
        "the chunks of a PNG",
        replaced(f"{_PICTURES}.open_image", "_check_png", nothing),
        "PNG",
        "chunk",
    ),
    Guard(
        "the pixels of a picture",
        replaced(f"{_PICTURES}.open_image", "_check_size", nothing),
        "PNG",
        "9000x9000",
    ),
    Guard(
        "the bytes of a picture",
        replaced(f"{_PICTURES}.open_image", "_check_bytes", nothing),
        "mask",
        "terabyte",
    ),
    Guard(
        "the batch of a recipe",
        replaced("loading.recipe.recipe", "check_batch", nothing),
        "recipe, sizes",
    ),
    Guard(
        "the layers of a base",
        replaced("checkpoint.identify.base_config", "MAX_LAYERS", HUGE),
        "validate --base",
        "layers",
    ),
    Guard(
        "the layout of safetensors",
        replaced(f"{_READ}.safetensors", "_check_layout", nothing),
        "inspect --deep: safetensors",
    ),
    Guard(
        "the tables of EXIF",
        replaced(f"{_PICTURES}.file_limits", "check_exif", nothing),
        "JPEG",
    ),
    Guard(
        "numbers in a recipe",
        replaced("loading.recipe.limits:Limit", "checked", lambda _, value: value),
        "recipe, its JSON",
    ),
    Guard(
        "keys of YAML",
        replaced("core.yaml_file", "_check_keys", nothing),
        "config: shapes",
        "key",
    ),
    Guard(
        "the numbers of face embeddings",
        replaced(f"{_READ}.arrays", "_check_count", nothing),
        "face embeddings: numpy",
    ),
    Guard(
        "folders that are searched",
        replaced(f"{_READ}.folders", "_is_folder", lambda path: path.is_dir()),
        "inspect --deep: folders",
        "link",
    ),
    Guard(
        "the rows of int8 matrices",
        replaced(f"{_READ}.int8", "MAX_ROWS", HUGE),
        "int8 adapters",
        "60 million rows",
    ),
    Guard(
        "the numbers of light weights",
        replaced(f"{_READ}.light", "MAX_WEIGHT", HUGE),
        "light adapters",
        "10^10",
    ),
    Guard(
        "the tensors of an adapter",
        replaced("checkpoint.identify.identify", "MAX_TENSORS", HUGE),
        "Redux files",
        "20,000 layers",
    ),
    Guard(
        "the layers of a planned base",
        replaced("deploy.plan.open", "_checked", itself),
        "plan: configs of a base",
        "layers_per_block 129",
    ),
    Guard(
        "the tensors of extractors",
        replaced("evaluation.extractors._weights", "MAX_TENSORS", HUGE),
        "extractor weights",
        "4,000 layers",
    ),
    Guard(
        "the kernels of extractors",
        replaced("evaluation.extractors._convolutions", "MAX_KERNEL", HUGE),
        "extractor weights",
        "kernel",
    ),
    Guard(
        "the lines of prompts",
        replaced("evaluation.scoring.texts", "MAX_LINES", HUGE),
        "study: prompts",
        "64 million",
    ),
    Guard(
        "the JSON of a data set",
        all_of(
            replaced("evaluation.protocols.contract", "MAX_JSON", 2**27),
            replaced("evaluation.protocols.contract", "MAX_VALUES", HUGE),
        ),
        "protocol: coco",
        "five million",
    ),
    Guard(
        "the size of a protocol's prompts",
        replaced("evaluation.protocols.dreambench", "MAX_FILE", 2**27),
        "protocol: dreambench",
        "quotes",
    ),
    Guard(
        "the bytes of a body",
        all_of(
            replaced("serve.guard:Guard", "longest", lambda *_: HUGE),
            replaced("serve.guard:Guard", "reserve", nothing),
        ),
        "server: bodies of jobs",
        "300 MB without",
    ),
    Guard(
        "the hosts of a server",
        replaced("serve.guard:Guard", "_knows", always),
        "server: headers",
        "the host 'evil",
    ),
    Guard(
        "the origins of requests",
        replaced("serve.guard", "_same", always),
        "server: headers",
        "the origin 'http://evil",
    ),
    Guard(
        "the JSON of requests",
        replaced("serve.bodies", "parse_json", loads),
        "server: bodies of jobs",
        "lists 100,000 deep",
    ),
    # 2. regular files, opened without following links out
    Guard(
        "regular files alone: adapters",
        replaced("core.untrusted", "open_regular", opened),
        "prompt files",
        "pipe",
    ),
    Guard(
        "regular files alone: pictures",
        replaced("core.untrusted", "open_regular", opened),
        "picture file",
        "pipe",
    ),
    Guard(
        "regular files alone: data",
        replaced("core.untrusted", "open_regular", opened),
        "data: pipes",
        "is a pipe",
    ),
    Guard(
        "regular files alone: data sets of protocols",
        replaced("core.untrusted", "read_regular", read_whole),
        "protocol: faces",
        "pipe",
    ),
    Guard(
        "regular files alone: configs",
        replaced("core.untrusted", "read_regular", read_whole),
        "config: files",
    ),
    Guard(
        "no way out of a folder: adapters",
        replaced("core.untrusted", "is_inside", always),
        "inspect --deep: folders",
        "lead out",
    ),
    Guard(
        "no way out of a folder: data",
        replaced("core.untrusted", "is_inside", always),
        "data: paths outside",
    ),
    Guard(
        "no way out of a folder: styles",
        replaced("core.untrusted", "is_inside", always),
        "library folder",
        "link",
    ),
    Guard(
        "names of shards",
        replaced(f"{_READ}.raw", "is_file_name", always),
        "inspect --deep: shards",
        "called",
    ),
    Guard(
        "locks that are plain files",
        replaced("core.atomic_files", "_is_plain", always),
        "library folder, written to",
        "lock",
    ),
    Guard("names of styles", replaced("library.paths", "_fault", no_fault), "style file", "name"),
    # 3. configs run nothing
    Guard(
        "no objects in YAML",
        replaced("core.yaml_file", "parse_yaml", unsafe_yaml),
        "config: tags",
        "os.system",
    ),
    Guard(
        "no objects in the YAML of a study",
        replaced("core.yaml_file", "parse_yaml", unsafe_yaml),
        "study: its YAML",
        "tags: ",
    ),
    Guard(
        "the protocols of data",
        replaced(f"{_DATA}._remote", "PROTOCOLS", type("Any", (dict,), {
            "__contains__": always, "__missing__": lambda *_: {},
        })()),
        "data: URLs",
        "the protocol",
    ),
    Guard(
        "the options of storage",
        replaced(f"{_DATA}._remote", "_check_options", nothing),
        "data: URLs",
        " with ",
    ),
    Guard(
        "no pickle runs: adapters",
        replaced(f"{_READ}.pickle.torch_objects:TorchPickle", "read", unpickled),
        "validate",
        "hostile pickle",
    ),
    # 4. what is resumed is checked
    Guard(
        "the manifest of a checkpoint",
        replaced(
            "training.loop.checkpoints", "_checked_metadata", lambda manifest, _: manifest["facts"]
        ),
        "resume: manifests",
    ),
    Guard(
        "the shapes in a checkpoint",
        replaced("training.loop.training_state:TrainingState", "_check_tensors", nothing),
        "resume: optimiser",
        "of shape",
    ),
    Guard(
        "the numbers in a checkpoint",
        replaced("training.loop.training_state", "_check_numbers", nothing),
        "resume: optimiser",
        "full of nan",
    ),
    Guard(
        "the hashes of a checkpoint",
        replaced("training.loop.checkpoints", "_is_unchanged", always),
        "resume: what stands there",
        "link out",
    ),
    Guard(
        "checksums of the cache",
        replaced("training.cache.store", "_checksum", lambda _: Everything()),
        "cache: shards",
        "a wrong checksum",
    ),
    Guard(
        "the hashes of a recipe's files",
        replaced("loading.assets", "resolve_file", lambda record, *_: record.name),
        "recipe, files",
        "a private file",
    ),
    Guard(
        "a style that is rewritten",
        replaced(f"{_READ}.stored_tensor:FileStamp", "__eq__", always),
        "style, rewritten",
    ),
    # 5. nothing of a stranger reaches the terminal raw
    Guard(
        "escapes on the terminal",
        replaced("core.errors", "printable", itself),
        "terminal: ",
        "clears",
    ),
    Guard(
        "escapes in JSON",
        replaced("core.console", "json_text", lambda data: json.dumps(data, ensure_ascii=False)),
        "terminal: a table as JSON",
    ),
    # 6. no traceback
    Guard(
        "one line for every exception",
        replaced("cli.failures", "explain", raised),
        "command: exceptions",
    ),
)  # fmt: skip


# ── the server and its client ───────────────────────────────────────────────────────────────────


def main() -> None:
    """Remove guards, `--every` one of so many; print a line of JSON for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    results = own_stdout()
    doors = table()
    for guard in GUARDS[:: options.every]:
        tried, noticed = 0, ""
        for door in doors:
            if guard.door not in door.name or noticed:
                continue
            load(list(door.imports))
            for attack in [one for one in door.attacks if guard.attack in one.name]:
                tried += 1
                result = run_alone(door, attack, WALL, guard.remove)
                if result.problems and "could not be made" not in result.problems[0]:
                    noticed = result.line
                    break
        answer = {"kind": guard.kind, "tried": tried, "noticed": noticed}
        print(json.dumps(answer), file=results, flush=True)


def run(every: int = 1) -> Iterator[dict[str, Any]]:
    """For each guard, or one of so many: the rows tried until one noticed, and what that said."""
    for line in serve("attacks.guards", "--every", str(every)):
        yield json.loads(line)
