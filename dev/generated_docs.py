"""The parts of README.md and of docs/ that are made from the code.

`python dev/generated_docs.py` rewrites README.md and docs/training.md between their marks;
`--check` only compares. Other pages of docs/ hold the same marks and are filled in while Sphinx
reads them (docs/conf.py).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "imageprompt"

# ── support tables ──────────────────────────────────────────────────────────────────────────────


def hosts_table() -> str:
    """One row per host: what it covers, and the sites of its published bases."""
    from imageprompt.hosts import HOSTS

    rows = [
        "| host | bases | attention sites | token width | what works |",
        "|---|---|---|---|---|",
    ]
    for host in sorted(HOSTS, key=lambda host: (host.training is None, host.name)):
        uses = ("generate", host.attachable), ("train", host.training is not None), ("files", True)
        works = ", ".join(name for name, possible in uses if possible)
        published = host.published()
        sites = ", ".join(dict.fromkeys(str(len(spec.sites)) for spec in published))
        widths = ", ".join(dict.fromkeys(str(spec.cross_attention_dim) for spec in published))
        rows.append(f"| {host.name} | {host.summary} | {sites} | {widths} | {works} |")
    return "\n".join(rows)


def variants_table() -> str:
    """One row per adapter architecture."""
    from imageprompt.variants import VARIANTS

    rows = ["| variant | what it takes from the picture | feature | null picture |"]
    rows += ["|---|---|---|---|"]
    for variant in VARIANTS:
        row = (variant.name, variant.summary, f"`{variant.feature}`", variant.null_rule)
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def support_table() -> str:
    """What is supported, in a few lines."""
    from imageprompt.checkpoint.formats import FORMATS
    from imageprompt.encoding.encoders import ENCODERS
    from imageprompt.hosts import HOSTS
    from imageprompt.variants import VARIANTS

    bases = [host.summary.partition(": ")[2].removesuffix(", tiny") for host in HOSTS]
    rows = {
        "bases: generate and train": ", ".join(sorted(bases, key=lambda text: "SD1.5" not in text)),
        "adapters": ", ".join(f"`{variant.name}`" for variant in VARIANTS),
        "image encoders": ", ".join(encoder.summary.partition(" (")[0] for encoder in ENCODERS),
        "files written": ", ".join(f"`{layout.name}`" for layout in FORMATS if layout.writable),
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    )


def training_keys() -> str:
    """One row per key of a training config, nested ones by their dotted name."""
    from imageprompt.training.config.config import TrainingConfig

    return _keys_table(TrainingConfig)


def study_keys() -> str:
    """One row per key of a study."""
    from imageprompt.evaluation.study.config import StudyConfig

    return _keys_table(StudyConfig)


def protocols() -> str:
    """What each published protocol reads, and what it states beside what is done here."""
    from imageprompt.evaluation.protocols import PROTOCOLS

    parts = []
    for one in PROTOCOLS:
        rows = [f"| {c.topic} | {c.stated} | {c.here} |" for c in one.choices]
        table = "\n".join(["| | stated | here |", "|---|---|---|", *rows])
        layout = f"```text\n{one.layout}\n```"
        parts.append(f"### {one.name}\n\n{one.title}: {one.summary}.\n\n{layout}\n\n{table}")
    return "\n\n".join(parts)


def metrics_table() -> str:
    """One row per metric."""
    from imageprompt.evaluation.metrics import METRICS

    better = {True: "higher", False: "lower", None: ""}
    rows = [
        "| metric | what it tells | formula | better | reads | source |",
        "|---|---|---|---|---|---|",
    ]
    for one in METRICS:
        reads = f"`{one.extractor}`" if one.extractor else "pixels"
        cells = (one.summary, one.formula.replace("|", r"\|"), better[one.higher_is_better], reads)
        rows.append(f"| `{one.name}` | {' | '.join(cells)} | {one.source} |")
    return "\n".join(rows)


def extractors_table() -> str:
    """One row per role of a feature extractor."""
    from imageprompt.evaluation.extractors import EXTRACTORS
    from imageprompt.evaluation.metrics import METRICS

    rows = ["| role | metrics | models |", "|---|---|---|"]
    for one in EXTRACTORS:
        used = ", ".join(f"`{metric.name}`" for metric in METRICS if metric.extractor == one.name)
        rows.append(f"| `{one.name}` | {used} | {one.summary} |")
    return "\n".join(rows)


def _keys_table(kind: type) -> str:
    rows = [f"| `{name}` | {default} | {help_} |" for name, default, help_ in _keys(kind)]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows])


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    from imageprompt.core.schema import options

    for field in options(kind):
        nested = dataclasses.is_dataclass(field.default)
        blank = nested or field.default in (None, (), dataclasses.MISSING)
        default = "" if blank else f"`{_as_yaml(field.default)}`"
        default = "required" if field.default is dataclasses.MISSING else default
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        help_ = field.option.help + (f" ({', '.join(choices)})" if choices else "")
        yield f"{prefix}{field.name}", default, help_.replace("|", r"\|")
        if nested:
            yield from _keys(type(field.default), f"{field.name}.")


def _as_yaml(value: object) -> str:
    text = f"[{', '.join(map(_as_yaml, value))}]" if isinstance(value, tuple) else str(value)
    text = {"True": "true", "False": "false", "": '""'}.get(text, text)
    return re.sub(r"e-0(\d)$", r"e-\1", text)


# ── room map ────────────────────────────────────────────────────────────────────────────────────


def room_map() -> str:
    """A section per room, lowest floor first; each module with the first line of its docstring."""
    parts = []
    for room in _rooms_by_floor():
        rows = [
            f"| `{path.relative_to(PACKAGE / room).as_posix()}` | {_summary(path)} |"
            for path in sorted((PACKAGE / room).rglob("*.py"))
            if path != PACKAGE / room / "__init__.py" and _summary(path)
        ]
        parts.append(f"### `{room}`\n\n{_summary(PACKAGE / room / '__init__.py')}")
        parts.append("\n".join(["| module | what it does |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def floors() -> str:
    """The import contract as a list, top floor first."""
    rows = []
    for number, layer in enumerate(reversed(_layers()), start=1):
        rooms = ", ".join(f"`{name}`" for name in _names(layer))
        rows.append(f"| {number} | {rooms} |")
    return "\n".join(["| floor | rooms |", "|---|---|", *reversed(rows)])


def _layers() -> list[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = (
        one for one in config["tool"]["importlinter"]["contracts"] if one["name"] == "floors"
    )
    return list(contract["layers"])


def _names(layer: str) -> list[str]:
    return re.findall(r"\w+", layer)


def _rooms_by_floor() -> Iterator[str]:
    for layer in reversed(_layers()):
        yield from (name for name in _names(layer) if (PACKAGE / name).is_dir())


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("|", r"\|").replace("*", r"\*")


# ── commands ────────────────────────────────────────────────────────────────────────────────────


def command_reference() -> str:
    """The help text of `imageprompt`, of every command and of every command below one."""
    parts = []
    for words, text in help_texts():
        title = " ".join(["imageprompt", *words])
        parts.append(f"{'#' * (2 + max(0, len(words) - 1))} `{title}`\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def help_texts() -> Iterator[tuple[tuple[str, ...], str]]:
    """Each command as its words, with what `--help` prints at a width of 90 columns."""
    pending: list[tuple[str, ...]] = [()]
    while pending:
        words = pending.pop(0)
        text = _help(words)
        yield words, text
        below = re.findall(r"^    ([a-z][a-z-]*)(?:\s|$)", text, re.MULTILINE)
        pending[:0] = [(*words, name) for name in below]


def _help(words: tuple[str, ...]) -> str:
    from imageprompt import cli

    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update({"COLUMNS": "90", "NO_COLOR": "1"})
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return out.getvalue().rstrip()


# ── Python reference ────────────────────────────────────────────────────────────────────────────

PUBLIC = {
    "Generate": ("generate", "repeat", "Reference", "GenerationResult", "Recipe"),
    "Engine": ("Engine", "Request", "Progress", "release"),
    "Adapters and image prompts": ("Adapter", "ImagePrompt"),
    "Control": ("Controls", "Schedule", "sliders"),
    "Reference pictures": ("open_picture", "Framing", "tiled", "check"),
    "Faces": ("FaceEncoder", "read_embeddings"),
    "Library": ("Library",),
    "Adapter files": ("inspect", "validate", "convert", "diff", "AdapterReport"),
    "Training": ("train", "TrainingConfig", "TrainResult"),
    "Measuring a base": ("probe",),
    "Evaluation": ("evaluate", "StudyConfig", "StudyResult", "read_results", "compare", "tune"),
    "Workflows": ("workflows",),
    "The bundled stack": ("bundled",),
}


def python_reference() -> str:
    """Autodoc of everything in `imageprompt.__all__`, of what it returns, and of the errors."""
    import imageprompt as ip

    listed = [name for names in PUBLIC.values() for name in names]
    left = sorted(set(ip.__all__) - {*listed, "ImagePromptError", "__version__"})
    groups = PUBLIC | ({"More": tuple(left)} if left else {})
    parts = [
        f"## {title}\n\n" + "\n\n".join(_auto("imageprompt", name) for name in names)
        for title, names in groups.items()
    ]
    parts.append("## Objects that these return")
    parts += [_auto(module, name) for name, module in sorted(_returned().items())]
    parts.append("## Errors")
    parts += [_auto("imageprompt.core.errors", name) for name in _errors()]
    return "\n\n".join(parts)


def _auto(module: str, name: str) -> str:
    found = getattr(importlib.import_module(module), name)
    if inspect.ismodule(found):
        return f"```{{eval-rst}}\n.. automodule:: {found.__name__}\n   :members:\n```"
    if isinstance(found, type):
        directive = "autoexception" if issubclass(found, BaseException) else "autoclass"
    elif inspect.isroutine(found):
        directive = "autofunction"
    else:
        return f"```{{eval-rst}}\n.. autodata:: {module}.{name}\n```"
    members = "   :members:\n" if directive == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {directive}:: {module}.{name}\n{members}```"


def _returned() -> dict[str, str]:
    """Classes of ours that public functions and methods return, or public classes hold."""
    import imageprompt as ip

    found: dict[str, str] = {}
    objects = (getattr(ip, name) for name in ip.__all__ if name != "__version__")
    for public in (found for found in objects if not inspect.ismodule(found)):
        for module, annotation in _annotations(public):
            for name in re.findall(r"\b[A-Z]\w+", annotation):
                source = _imports(module).get(name, "")
                kind = getattr(importlib.import_module(source), name, None) if source else None
                if isinstance(kind, type) and name not in ip.__all__:
                    found[name] = source
    return found


def _annotations(public: Any) -> Iterator[tuple[str, str]]:
    """The module and the text of each annotation of what a public function or class gives."""
    members: list[Any] = [public]
    if isinstance(public, type):
        texts = (plain_type(str(text)) for text in public.__annotations__.values())
        yield from ((public.__module__, text) for text in texts)
        attributes = [value for name, value in vars(public).items() if name[0] != "_"]
        members = [getattr(value, "fget", None) or value for value in attributes]
    for member in members:
        function = inspect.unwrap(getattr(member, "__func__", member))
        if inspect.isfunction(function):
            yield function.__module__, str(function.__annotations__.get("return", ""))


def plain_type(annotation: str) -> str:
    """An annotation with every `Annotated[X, ...]` in it replaced by X."""
    if "Annotated[" not in annotation:
        return annotation
    return ast.unparse(_Unannotate().visit(ast.parse(annotation, mode="eval")))


class _Unannotate(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated":
            assert isinstance(node.slice, ast.Tuple)
            return node.slice.elts[0]
        return node


@cache
def _imports(module: str) -> dict[str, str]:
    """Names of a module that are classes of ours, with the module that each is imported from."""
    tree = ast.parse(Path(importlib.import_module(module).__file__ or "").read_text("utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found[node.name] = module
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imageprompt"):
            found |= {alias.asname or alias.name: node.module or "" for alias in node.names}
    return found


def _errors() -> list[str]:
    from imageprompt.core import errors

    found = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ImagePromptError)
    ]
    return sorted(found, key=lambda name: (name != "ImagePromptError", name))


# ── limits ──────────────────────────────────────────────────────────────────────────────────────

LIMITS: dict[str, dict[str, tuple[str, str]]] = {
    "adapter file": {
        "header, index or other JSON": ("checkpoint.read.raw:MAX_JSON", "bytes"),
        "pickle": ("checkpoint.read.pickle.machine:MAX_PICKLE", "bytes"),
        "entries and steps of all files of a path": ("checkpoint.read.raw:MAX_ITEMS", ""),
        "data unpacked, beyond 8 times the file": ("checkpoint.read.raw:UNPACKED", "bytes"),
        "values of a torch file": ("checkpoint.read.pickle.torch_tensors:MAX_VALUES", ""),
        "dimensions of a tensor": ("checkpoint.read.stored_tensor:MAX_DIMENSIONS", ""),
        "name of a tensor": ("checkpoint.read.stored_tensor:MAX_NAME", "characters"),
    },
    "config of a base": {
        "file": ("checkpoint.identify.base_config:MAX_CONFIG", "bytes"),
        "layers": ("checkpoint.identify.base_config:MAX_LAYERS", ""),
    },
    "face embeddings": {"faces of a file": ("encoding.face_embeddings:MAX_FACES", "")},
    "image prompt": {"file": ("encoding.image_prompt:MAX_BYTES", "bytes")},
    "style": {
        "file": ("library.style_file:MAX_BYTES", "bytes"),
        "description": ("library.style_file:MAX_DESCRIPTION", "bytes"),
        "thumbnail": ("library.style_file:MAX_THUMBNAIL", "bytes"),
        "name": ("library.paths:MAX_NAME", "characters"),
        "styles of a library": ("library.paths:MAX_STYLES", ""),
    },
    "recipe": {
        "text": ("loading.recipe.reading:MAX_JSON_BYTES", "bytes"),
        "tokens of a reference": ("loading.recipe.png:MAX_TOKEN_BYTES", "bytes"),
        "references": ("loading.recipe.limits:MAX_REFERENCES", ""),
        "pixels of a picture": ("loading.recipe.limits:MAX_PIXELS", ""),
        "pixels of a batch": ("loading.recipe.limits:MAX_BATCH_PIXELS", ""),
        "file that it names": ("loading.assets:MAX_ASSET_BYTES", "bytes"),
    },
    "picture": {
        "file": ("encoding.images.open_image:MAX_FILE_BYTES", "bytes"),
        "pixels of a JPEG": ("encoding.images.open_image:MAX_PIXELS", ""),
        "pixels of a PNG": ("encoding.images.open_image:MAX_PIXELS_OF.PNG", ""),
        "pixels of a WebP or AVIF": ("encoding.images.open_image:MAX_PIXELS_OF.WEBP", ""),
        "memory to decode it": ("encoding.images.file_limits:MAX_DECODED_BYTES", "bytes"),
        "scans of a JPEG": ("encoding.images.file_limits:MAX_SCANS", ""),
        "EXIF": ("encoding.images.file_limits:MAX_EXIF_BYTES", "bytes"),
    },
    "config of a training": {
        "file": ("core.yaml_file:MAX_BYTES", "bytes"),
        "values, aliases counted in full": ("core.yaml_file:MAX_NODES", ""),
        "depth": ("core.yaml_file:MAX_DEPTH", ""),
    },
    "study": {
        "line of the results": ("evaluation.study.results:MAX_LINE", "bytes"),
        "lines": ("evaluation.study.results:MAX_LINES", ""),
        "study.json": ("evaluation.study.results:MAX_STUDY", "bytes"),
        "references": ("evaluation.study.references:MAX_REFERENCES", ""),
        "files beside them": ("evaluation.study.references:MAX_ENTRIES", ""),
        "prompts": ("evaluation.study.run:MAX_PROMPTS", ""),
        "data of a protocol, as JSON": ("evaluation.protocols.contract:MAX_JSON", "bytes"),
    },
    "training data": {
        "entry of a list": ("training.data.sources._index:MAX_ENTRY", "bytes"),
        "caption": ("training.data.sources.contract:MAX_CAPTION", "characters"),
        "shards": ("training.data.sources._remote:MAX_SHARDS", ""),
        "name in a shard": ("training.data.sources._tar:MAX_NAME", "bytes"),
    },
}
"""Kind of file -> what is limited -> the constant, and its unit."""


def limits_table() -> str:
    """One row per limit of what strangers send."""
    rows = ["| file | what | at most |", "|---|---|---|"]
    for kind, found in LIMITS.items():
        for number, (what, (constant, unit)) in enumerate(found.items()):
            value = _amount(_constant(constant), unit)
            rows.append(f"| {'' if number else kind} | {what} | {value} |")
    return "\n".join(rows)


def _constant(place: str) -> int:
    module, _, names = place.partition(":")
    value: Any = importlib.import_module(f"imageprompt.{module}")
    for name in names.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return int(value)


def _amount(value: int, unit: str) -> str:
    for size, name in ((2**20, "MiB"), (2**10, "KiB")):
        if unit == "bytes" and value % size == 0:
            return f"{value // size} {name}"
    if not unit and value >= 10**6:
        return f"{value / 10**6:.3g} million"
    return f"{value:,} {unit}".rstrip()


# ── marks ───────────────────────────────────────────────────────────────────────────────────────

PARTS: dict[str, Callable[[], str]] = {
    "support": support_table,
    "hosts": hosts_table,
    "variants": variants_table,
    "training keys": training_keys,
    "study keys": study_keys,
    "protocols": protocols,
    "metrics": metrics_table,
    "extractors": extractors_table,
    "room map": room_map,
    "floors": floors,
    "commands": command_reference,
    "python": python_reference,
    "limits": limits_table,
}

COMMITTED = ("README.md", "docs/training.md")  # read without a build, so their parts are committed


def render(text: str) -> str:
    """`text` with every generated part made anew between its two marks."""
    for name, make in PARTS.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text:
            continue
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{start} without {end}")
        text = f"{before}{start}\n{make()}\n{end}{after}"
    return text


def main() -> int:
    pages = {ROOT / name: (ROOT / name).read_text("utf-8") for name in COMMITTED}
    outdated = {page: new for page, old in pages.items() if (new := render(old)) != old}
    if "--check" in sys.argv:
        for page in outdated:
            print(f"{page.relative_to(ROOT)}: run python dev/generated_docs.py", file=sys.stderr)
        return int(bool(outdated))
    for page, text in outdated.items():
        page.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
