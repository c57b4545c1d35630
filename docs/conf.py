"""Sphinx configuration: MyST pages, the furo theme, generated parts, docstrings by autodoc."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "dev"))

import generated_docs
from generated_docs import plain_type
from imageprompt import __version__
from imageprompt.core.schema import Option, options

project = "imageprompt"
author = "the imageprompt authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings put code between single backticks
nitpick_ignore_regex = [
    # Annotations name types of torch, numpy and Pillow, and types of ours that have no page.
    (r"py:(class|obj|data|exc)", r".*"),
]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "imageprompt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#7a3e9d", "color-brand-content": "#7a3e9d"},
    "dark_css_variables": {"color-brand-primary": "#d3a6f0", "color-brand-content": "#d3a6f0"},
}


def fill_in(_app: Any, _name: str, content: list[str]) -> None:
    """Put the generated parts between the marks of a page as it is read."""
    content[0] = generated_docs.render(content[0])


def plain_signature(
    _app: Any, _what: str, _name: str, obj: Any, _options: Any, _signature: str, returns: str
) -> tuple[str, str] | None:
    """Plain types for classes whose fields carry checks or descriptions in `Annotated`."""
    bases = inspect.getmro(obj) if isinstance(obj, type) else ()
    annotated = [vars(kind).get("__annotations__", {}) for kind in bases]
    if not any("Annotated[" in str(text) for one in annotated for text in one.values()):
        return None
    signature = inspect.signature(obj)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    for one in annotated:  # what the fields below are shown with
        one |= {name: plain_type(str(text)) for name, text in one.items()}
    return str(inspect.Signature(parameters)), returns


def _described_fields(obj: object) -> list[str]:
    """The fields of an options class as a list of parameters; empty for anything else."""
    if not (isinstance(obj, type) and is_dataclass(obj)):
        return []
    return [
        f":param {field.name}: {_escaped(field.option.help)}{_span(field.option)}"
        for field in options(obj)
    ]


def _span(option: Option) -> str:
    low, high = option.ge, option.le
    if low is None or high is None or f"{low:g}..{high:g}" in option.help:
        return ""
    return f" ({low:g} to {high:g})"


def to_rst(_app: Any, _what: str, _name: str, obj: object, _options: Any, lines: list[str]) -> None:
    """Make a docstring of this project, which is nearly Markdown, the reStructuredText it means."""
    out: list[str] = []
    for line in lines:
        previous = out[-1] if out else ""
        item = re.match(r"\s*(- |\d+\. )", line)
        if item and previous.strip() and not re.match(r"\s*(- |\d+\. |  )", previous):
            out.append("")
        indented = len(line) - len(line.lstrip())
        if indented >= 4 and not previous.strip():
            _open_literal(out)
        out.append(line if indented >= 4 else _escaped(line))
    fields = _described_fields(obj)
    lines[:] = [*out, "", *fields, ""] if fields else out


def _open_literal(lines: list[str]) -> None:
    """Let the paragraph before an indented block announce it as literal text."""
    index = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].strip()), None)
    if index is not None and re.fullmatch(r"\S.*[^:]:", lines[index]):
        lines[index] += ":"


def _escaped(line: str) -> str:
    """`line` without Markdown's bold, and with what would be markup escaped outside backticks."""
    pieces = re.split(r"(`+[^`]+`+)", line)
    for index in range(0, len(pieces), 2):
        plain = pieces[index].replace("**", "")
        pieces[index] = re.sub(r"([*|])|(?<=\w)_(?=\W|$)", r"\\\g<0>", plain)
    return "".join(pieces)


def setup(app: Any) -> None:
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-process-docstring", to_rst)
