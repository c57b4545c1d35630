"""Write the generated parts of README.md: source map and support tables; `--check` compares."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "imageprompt"


def source_map() -> str:
    """One line a module: its path and the first line of its docstring."""
    lines = []
    for path in sorted(PACKAGE.rglob("*.py"), key=_order):
        if path.name == "__main__.py" and path.parent == PACKAGE:
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = path.relative_to(PACKAGE).as_posix().replace("__init__.py", "")
        lines.append((name or "__init__.py", docstring.split("\n")[0]))
    width = max(len(name) for name, _ in lines)
    return "```\n" + "\n".join(f"{name:{width}}  {first}" for name, first in lines) + "\n```"


def hosts_table() -> str:
    from imageprompt.hosts import HOSTS

    rows = ["| base | host | attention sites | text width | what works |", "|---|---|---|---|---|"]
    for host in sorted(HOSTS, key=lambda host: not host.attachable):
        works = "generate, train, files" if host.attachable else "files"
        rows += [
            f"| {spec.family} | {host.name} | {len(spec.sites)} | {spec.cross_attention_dim} | {works} |"
            for spec in host.families()
        ]
        rows.append(
            f"| any other | {host.name}: {host.summary} | from its config | any | {works} |"
        )
    return "\n".join(rows)


def variants_table() -> str:
    from imageprompt.variants import VARIANTS

    rows = ["| variant | what it takes from the picture | feature | null picture |"]
    rows += ["|---|---|---|---|"]
    for variant in VARIANTS:
        row = (variant.name, variant.summary, f"`{variant.feature}`", variant.null_rule)
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


PARTS = {"source map": source_map, "hosts": hosts_table, "variants": variants_table}


def render(readme: str) -> str:
    """The README with every generated part made anew between its two marks."""
    for name, make in PARTS.items():
        marks = (f"<!-- {name} -->", f"<!-- end of {name} -->")
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        block = f"{marks[0]}\n{make()}\n{marks[1]}"
        readme = pattern.sub(lambda _, block=block: block, readme)  # type: ignore[misc]
    return readme


def _order(path: Path) -> tuple[bool, str]:
    """The package's own modules first, then its folders."""
    inside = path.relative_to(PACKAGE)
    return len(inside.parts) > 1, inside.as_posix().replace("__init__.py", "")


def main() -> int:
    path = ROOT / "README.md"
    before = path.read_text()
    after = render(before)
    if "--check" in sys.argv:
        return int(before != after)
    path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
