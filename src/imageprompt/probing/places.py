"""Which sites are switched on together, and how a set of sites is written down most shortly."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from imageprompt.spec import Site

_SECTIONS = ("input", "middle", "output")


def places(sites: Sequence[Site], *, each: bool) -> list[str]:
    """Paths in sampling order: one for each transformer, or with `each` for each site alone."""
    order = sorted(range(len(sites)), key=lambda i: (_SECTIONS.index(sites[i].section), i))
    names = [sites[i].name for i in order]
    return names if each else list(dict.fromkeys(map(transformer, names)))


def transformer(site: str) -> str:
    """`up_blocks.1.attentions.0` of the name of a site in it."""
    return site.partition(".transformer_blocks.")[0]


def within(site: str, paths: Iterable[str]) -> bool:
    """Is the site one of these, or inside one of them?"""
    return any(site == path or site.startswith(f"{path}.") for path in paths)


def shortened(paths: Collection[str], sites: Sequence[Site]) -> list[str]:
    """The fewest, shortest paths that cover the same sites: a block's name where all of it is in.

    `up_blocks.1` for `up_blocks.1.attentions.0` and `.1`, if there are no more.
    """
    names = [site.name for site in sites]
    chosen = {name for name in names if within(name, paths)}
    found: list[str] = []
    for name in names:
        if name in chosen and not within(name, found):
            parts = name.split(".")
            first = 1 if parts[0] == "mid_block" else 2  # `up_blocks` alone says too little
            heads = (".".join(parts[:end]) for end in range(first, len(parts) + 1))
            found.append(next(h for h in heads if {n for n in names if within(n, [h])} <= chosen))
    return found
