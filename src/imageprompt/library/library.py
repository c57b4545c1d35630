"""Library: named styles in a folder; add, open, search, mix, hand on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import NotFoundError, OptionError, PromptError
from imageprompt.library import paths, style_file
from imageprompt.library.search import Results, by_embedding, by_name, is_text
from imageprompt.library.style import Style

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.features import Group
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.encoding.images.open_image import PictureSource


class Library:
    """The styles in `folder`, one file each; None is `default_folder()`.

    The folder can be copied, and need not exist before something is added. Reading takes no lock:
    files appear whole. Names are looked up as they are written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = paths.default_folder() if folder is None else Path(folder).expanduser()

    def __repr__(self) -> str:
        return f"Library({str(self.folder)!r}, {len(self.names())} style(s))"

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    def names(self) -> list[str]:
        """In alphabetical order; of every file that is named like a style's."""
        stems = [path.stem for path in self.folder.glob(f"*{style_file.SUFFIX}")]
        return sorted((stem for stem in stems if not stem.startswith(".")), key=paths.folded)

    def show(self, name: str) -> Style:
        """What is known of a style; no tensor is read. Raises NotFoundError, PromptError."""
        path = self._path(paths.checked_name(name))
        if not path.is_file():
            raise paths.no_such_style(name, self.names(), self.folder)
        return style_file.read_style(path, path.stem)

    def styles(self, tag: str | None = None) -> list[Style]:
        """All of them, or those with this tag. Files that are no styles are left out, and told."""
        found = []
        for name in self.names():
            try:
                found.append(self.show(name))
            except (PromptError, NotFoundError, OptionError) as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        return [style for style in found if tag is None or _has(style, tag)]

    def search(
        self,
        what: PictureSource,
        *,
        encoder: Any = None,
        text_encoder: Any = None,
        limit: int | None = None,
    ) -> Results:
        """Styles like a picture, or of which a text tells; the best first.

        A picture (a path, the bytes of a file, a PIL picture) is held against the references by the
        cosine of pooled embeddings, made by `encoder` (needed); styles of other encoders are
        skipped. A text is looked for in names and tags; with `text_encoder`, one that shares a
        space with `encoder`, also by the cosine of its embedding, after those. Raises PictureError,
        EncoderError, OptionError.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise OptionError(f"limit {limit!r}", reason="a whole number above 0")
        styles = self.styles()
        if not is_text(what):
            from imageprompt.library.embeddings import of_picture

            wanted, made_by = of_picture(what, encoder)
            found, skipped = by_embedding(styles, wanted, made_by, "picture")
            return Results(tuple(found[:limit]), f"pictures, by encoder {made_by}", tuple(skipped))
        found, used, skipped = by_name(styles, what), "names and tags", []
        if text_encoder is not None:
            from imageprompt.library.embeddings import of_words

            wanted, made_by = of_words(what, text_encoder, encoder)
            near, skipped = by_embedding(styles, wanted, made_by, "words")
            named = {one.style.name for one in found}
            found += [one for one in near if one.style.name not in named]
            used = f"names, tags, and words against pictures, by encoder {made_by}"
        return Results(tuple(found[:limit]), used, tuple(skipped))

    # ── using ───────────────────────────────────────────────────────────────────────────────────

    def open(self, name: str, adapter: Adapter) -> ImagePrompt:
        """The style as an image prompt: a look-up, nothing is encoded.

        Where the adapter is attached, K', V' come with it: made at the first use, kept in
        `.prepared` beside the styles, read from there afterwards. Raises NotFoundError, PromptError
        (also for a style of another adapter), EncoderError (of another encoder).
        """
        from imageprompt.library import load_style

        style = self.show(name)
        load_style.check_suits(style, adapter)
        prompt = load_style.image_prompt(style)
        if adapter.attached:
            load_style.precompute_kv(self.folder, style, prompt, adapter)
        return prompt

    # ── filling ─────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        name: str,
        adapter: Adapter,
        pictures: PictureSource | Sequence[PictureSource] | None = None,
        *,
        features: Group | None = None,
        tags: Iterable[str] = (),
        replace: bool = False,
        made_with: Mapping[str, str | None] | None = None,
        **encoding: Any,
    ) -> Style:
        """Encode references and keep them under a name.

        `pictures`, `features` and `encoding` are those of `Adapter.encode`, for one prompt; the
        adapter needs an encoder, not a base. `replace` allows a name that is taken. `made_with`
        says how the user named "adapter", "encoder" and "base". Raises OptionError for a name that
        is not to be had, and what encoding raises.
        """
        from imageprompt.library import create_style

        name, tags = paths.checked_name(name), paths.checked_tags(tags)
        self._check_free(name, replace)
        style = create_style.encoded(
            name, tags, adapter, pictures, features, made_with or {}, encoding
        )
        return self._keep(style, replace)

    def mix(
        self,
        weights: Mapping[str, float],
        name: str,
        adapter: Adapter | None = None,
        *,
        tags: Iterable[str] = (),
        replace: bool = False,
    ) -> Style:
        """Keep the weighted mean of styles as a new one.

        With the adapter that they were made with, and where their features were kept and agree in
        shape, the mean is taken of these and projected; else of their tokens. The new style's
        recipe tells which ("of"), and the shares, which sum to 1. Raises NotFoundError,
        OptionError, PromptError.
        """
        from imageprompt.library import create_style, load_style, mix_styles

        name, tags = paths.checked_name(name), paths.checked_tags(tags)
        self._check_free(name, replace)
        shares = mix_styles.shares_of(weights)
        styles = [self.show(part) for part in shares]
        mix_styles.check_relatives(styles)
        if adapter is not None:
            load_style.check_suits(styles[0], adapter)
        for style in styles:
            style_file.check_whole(style)
        mixed = mix_styles.mix(styles, list(shares.values()), adapter)
        return self._keep(create_style.mixed(name, tags, styles, shares, mixed), replace)

    def import_(
        self, path: str | os.PathLike[str], name: str | None = None, *, replace: bool = False
    ) -> Style:
        """Take in a style's file, under the name that it was exported with or another one.

        All of it is read and checked first. Raises NotFoundError, PromptError, OptionError.
        """
        from imageprompt.library import thumbnail

        style = style_file.check_whole(
            style_file.read_style(Path(path).expanduser(), _checked(name))
        )
        self._check_free(style.name, replace)
        thumbnail.read(style)
        return self._keep(style_file.in_memory(style), replace)

    def export(self, name: str, path: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Write a style's file somewhere else; `import_` takes it in again.

        Raises NotFoundError, PromptError, OptionError.
        """
        style, target = style_file.check_whole(self.show(name)), Path(path).expanduser()
        if target.suffix != style_file.SUFFIX or not target.parent.is_dir() or target.is_dir():
            raise OptionError(
                f"file {os.fspath(path)!r}",
                reason="a style's file ends in .safetensors, in a folder that is there",
                hint=f"Name it {paths.checked_name(name)}.safetensors, say.",
            )
        if target.exists() and not replace:
            raise OptionError(
                f"file {os.fspath(path)!r}", reason="it is there already", hint=_REPLACE
            )
        style_file.write_style(target, style)
        return target

    def remove(self, name: str) -> None:
        """Delete a style and what was kept for it. Raises NotFoundError, PromptError."""
        path = self._path(paths.checked_name(name))
        with paths.writing(self.folder):
            if not path.is_file():
                raise paths.no_such_style(name, self.names(), self.folder)
            self._forget(path)
            path.unlink()

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{style_file.SUFFIX}"

    def _check_free(self, name: str, replace: bool) -> None:
        taken = paths.namesake(name, self.names())
        if taken is not None and (taken != name or not replace):
            raise OptionError(
                f"style name {name!r}",
                reason=f"{taken!r} is there already"
                + ("" if taken == name else ", which some systems cannot tell from it"),
                hint=_REPLACE if taken == name else "Choose another name.",
            )

    def _keep(self, style: Style, replace: bool) -> Style:
        """Write it, under the lock: of two that add the same name, the second is told."""
        path = self._path(style.name)
        with paths.writing(self.folder):
            self._check_free(style.name, replace)
            self._forget(path)
            return style_file.write_style(path, style)

    def _forget(self, path: Path) -> None:
        """Before a file is deleted or replaced: the K', V' that are kept for its style go.

        Raises PromptError for a file that is no style: it may be somebody's adapter.
        """
        if path.exists():
            gone = style_file.read_style(path, path.stem)
            for kept in paths.prepared_of(self.folder, gone.hash):
                kept.unlink(missing_ok=True)


_REPLACE = "Choose another name, or replace it: --force, replace=True in Python."


def _checked(name: str | None) -> str | None:
    return None if name is None else paths.checked_name(name)


def _has(style: Style, tag: str) -> bool:
    return paths.folded(tag) in map(paths.folded, style.tags)
