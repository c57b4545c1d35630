"""The site: its checker finds faults, its generated parts are complete, `make check` builds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import check_site
import generated_docs
import imageprompt as ip
from guides import DOCS, ROOT, pages
from imageprompt.core import errors as core_errors

GOOD = """<html><head><link rel="stylesheet" href="s.css"><script src="s.js"></script></head>
<body><h1 id="top">x</h1><a href="#top">a</a><a href="other.html#there">b</a>
<a href="https://example.org">c</a><img src="p.png"></body></html>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "other.html").write_text('<p id="there">x</p>')
    (tmp_path / "s.css").write_text("a { background: url(p.png) }")
    for name in ("s.js", "p.png"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_a_good_site_has_no_faults(site: Path) -> None:
    assert list(check_site.faults(site)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('src="s.js"', 'src="https://cdn.example/s.js"', "fetches https://cdn.example/s.js"),
        ('href="s.css"', 'href="//cdn.example/s.css"', "fetches //cdn.example/s.css"),
        ('src="p.png"', 'src="http://example.org/p.png"', "fetches http://example.org/p.png"),
        ("<h1", "<style>@import 'https://f.example/f.css'</style><h1", "https://f.example/f.css"),
        ("<h1", '<h1 style="background: url(https://a.example/b)"', "fetches https://a.example/b"),
        ('src="p.png"', 'srcset="p.png 1x, https://e.example/q 2x"', "fetches https://e.example/q"),
        ('src="p.png"', 'src="q.png"', "q.png does not exist"),
        ("other.html#there", "none.html", "none.html does not exist"),
        ("other.html#there", "other.html#here", "other.html#here has no such anchor"),
        ('href="#top"', 'href="#bottom"', "#bottom has no such anchor"),
    ],
)
def test_faults_are_found(site: Path, old: str, new: str, fault: str) -> None:
    page = site / "index.html"
    assert old in GOOD
    page.write_text(GOOD.replace(old, new, 1))
    (found,) = check_site.faults(site)
    assert found.startswith("index.html: ")
    assert fault in found


def test_fonts_from_a_network_are_found(site: Path) -> None:
    (site / "s.css").write_text("@font-face { src: url('https://fonts.example/a.woff2') }")
    assert list(check_site.faults(site)) == ["s.css: fetches https://fonts.example/a.woff2"]


def test_nothing_built_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pages"):
        list(check_site.faults(tmp_path))


def test_make_check_builds_the_site_with_warnings_as_errors() -> None:
    makefile = (ROOT / "Makefile").read_text()
    check, docs = (makefile.split(f"\n{name}: ")[1].split("\n\n")[0] for name in ("check", "docs"))
    assert "docs" in check.splitlines()[-1]
    assert {"--fail-on-warning", "--nitpicky", "--fresh-env"} <= set(docs.split())
    assert "dev/check_site.py" in docs
    assert "make check" in (ROOT / ".ci/run").read_text()


def test_every_page_is_on_the_site() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(r"^(?:.*<)?([a-z/-]+)>?$", index, re.MULTILINE)
    built = {
        page.relative_to(DOCS).with_suffix("").as_posix()
        for page in pages()
        if DOCS in page.parents
    }
    assert built - {"index"} == set(listed) & built
    assert {"changelog", "contributing"} <= built


def test_every_command_is_in_the_command_reference() -> None:
    found = {" ".join(words) for words, _ in generated_docs.help_texts()}
    assert {"", "generate", "train", "library add", "convert", "demo"} <= found
    text = generated_docs.command_reference()
    assert all(f"`imageprompt {name}`" in text for name in found if name)
    assert "--reference" in text


def test_every_public_name_is_in_the_python_reference() -> None:
    text = generated_docs.python_reference()
    for name in ip.__all__:
        assert name == "__version__" or re.search(
            rf":: imageprompt(\.[a-z_.]+)?\.{name}\n", text
        ), name
    assert "## More" not in text, "give every public name a place in generated_docs.PUBLIC"
    raised = {error.__name__ for error in ip.ImagePromptError.__subclasses__()}
    public = raised & set(vars(core_errors))
    assert len(public) > 8
    assert all(f":: imageprompt.core.errors.{name}\n" in text for name in public)


def test_every_room_and_module_is_on_the_map() -> None:
    text = generated_docs.room_map()
    rooms = [
        path.name for path in generated_docs.PACKAGE.iterdir() if (path / "__init__.py").is_file()
    ]
    assert sorted(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == sorted(rooms)
    rows = re.findall(r"^\| `([^`]+\.py)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 100
    assert all(summary.strip() for _, summary in rows)


def test_a_mark_without_its_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="without"):
        generated_docs.render("<!-- hosts -->\n")
