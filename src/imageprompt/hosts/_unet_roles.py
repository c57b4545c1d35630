"""Which sites of a UNet carry style and which layout: as its config states it, else by their place.

Pure Python. A config states it under the private key `_imageprompt_roles`, as `imageprompt probe`
measures it: `{"style": ["up_blocks.1"], "layout": ["down_blocks.0"]}`, paths of sites or prefixes
of them; every other site is "other". diffusers keeps keys that begin with `_` when it loads and
saves a model, and does nothing with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imageprompt.errors import AttachError
from imageprompt.spec import Role

KEY = "_imageprompt_roles"
_STATED: tuple[Role, ...] = ("style", "layout")


def roles(names: Sequence[str], config: Mapping[str, Any]) -> Callable[[str], Role]:
    """Tells the role of each of these sites. Raises AttachError for a statement without sense."""
    stated = config.get(KEY)
    return _by_place(names) if stated is None else _as_stated(names, stated)


def _by_place(names: Sequence[str]) -> Callable[[str], Role]:
    """Style is the first up block, layout the last down block with text (InstantStyle).

    In SDXL's deep transformers only the second attention of each counts; elsewhere whole blocks do,
    and the middle block belongs to the layout.
    """
    down = max((n.split(".")[1] for n in names if n.startswith("down_blocks.")), default="")
    up = min((n.split(".")[1] for n in names if n.startswith("up_blocks.")), default="")
    deep = any(f"down_blocks.{down}.attentions.1.transformer_blocks.2." in name for name in names)
    part = ".attentions.1" if deep else ""
    style = f"up_blocks.{up}{part}."
    layout = (f"down_blocks.{down}{part}.",) + (() if deep else ("mid_block.",))

    def role(name: str) -> Role:
        if name.startswith(style):
            return "style"
        return "layout" if name.startswith(layout) else "other"

    return role


def _as_stated(names: Sequence[str], stated: Any) -> Callable[[str], Role]:
    if not isinstance(stated, Mapping) or not set(stated) <= set(_STATED):
        raise _nonsense("it maps style and layout to lists of sites")
    found: dict[str, Role] = {}
    for role in _STATED:
        paths = stated.get(role, [])
        if not isinstance(paths, list | tuple) or not all(isinstance(p, str) for p in paths):
            raise _nonsense(f"{role} is a list of sites")
        for path in paths:
            covered = [name for name in names if name == path or name.startswith(f"{path}.")]
            if not covered:
                raise _nonsense(f"no site is called or begins with {path!r}")
            taken = next((name for name in covered if found.get(name, role) != role), None)
            if taken:
                raise _nonsense(f"{taken} is given two roles")
            found.update(dict.fromkeys(covered, role))
    return lambda name: found.get(name, "other")


def _nonsense(reason: str) -> AttachError:
    return AttachError(
        f"{KEY} in the base's config",
        rule=reason,
        remedy='Write {"style": ["up_blocks.1"], "layout": ["down_blocks.0"]}, or leave it out.',
    )
