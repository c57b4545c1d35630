"""Check the built site: internal links lead somewhere, and nothing is fetched from a network.

`python dev/check_site.py docs/_build/html` prints a line per fault and exits 1 if there is one.
Links that a reader follows may lead anywhere; scripts, styles, fonts and pictures may not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Elements whose address the browser fetches by itself, and the attribute that holds it.
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
# Relations of <link> that name another page and fetch nothing.
LINK_ONLY = {"next", "prev", "canonical", "author", "index", "search", "license", "alternate"}
CSS_ADDRESS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


class Page(HTMLParser):
    """What a page links to, what it fetches, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self._in_style = tag == "style"
        self.fetched += _css_addresses(values.get("style", ""))
        for name in FETCHED.get(tag, ()):
            if name in values:
                entries = values[name].split(",") if name == "srcset" else [values[name]]
                self.fetched += [entry.split()[0] for entry in entries if entry.strip()]
        if "href" in values and tag in ("a", "area"):
            self.links.append(values["href"])
        elif "href" in values and tag == "link":
            only_link = set(values.get("rel", "").split()) <= LINK_ONLY
            (self.links if only_link else self.fetched).append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += _css_addresses(data)


def faults(site: Path) -> Iterator[str]:
    """A line per fault, in the order of the pages. Raises FileNotFoundError without any page."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise FileNotFoundError(f"{site}: no pages")
    for path in pages:
        name = path.relative_to(site.resolve()).as_posix()
        yield from (f"{name}: {fault}" for fault in _page_faults(path, pages))
    for path in sorted(site.rglob("*.css")):
        for address in _css_addresses(path.read_text("utf-8")):
            if _is_remote(address):
                yield f"{path.relative_to(site).as_posix()}: fetches {address}"


def _page_faults(path: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for address in pages[path].fetched:
        if _is_remote(address):
            yield f"fetches {address}"
        elif fault := _broken(address, path, {}):
            yield fault
    for address in pages[path].links:
        if not _is_remote(address) and (fault := _broken(address, path, pages)):
            yield fault


def _css_addresses(text: str) -> list[str]:
    return [first or second for first, second in CSS_ADDRESS.findall(text)]


def _is_remote(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in (
        "http",
        "https",
        "ftp",
        "mailto",
    )


def _broken(address: str, page: Path, pages: dict[Path, Page]) -> str:
    parts = urlsplit(address)
    if parts.scheme in ("data", "javascript"):
        return ""
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return f"{address} does not exist"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return f"{address} has no such anchor"
    return ""


def main() -> int:
    found = list(faults(Path(sys.argv[1])))
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
