"""Library: named styles in a folder; add, open, search, mix, export."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import NotFoundError, OptionError, PromptError
from imageprompt.core.untrusted import is_inside
from imageprompt.library import paths, style_file
from imageprompt.library.search import (
    SearchResults,
    by_embedding,
    by_name,
    embed_picture,
    embed_text,
    is_text,
)
from imageprompt.library.style import Style

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.features import Group
    from imageprompt.encoding.image_prompt import ImagePrompt
    from imageprompt.encoding.images.open_image import PictureSource


class Library:
    """The styles in `folder`, one file each; None is `default_folder()`.

    The folder is created when the first style is added, and can be copied. Reading needs no lock,
    because files are written atomically. Names are case-sensitive.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = paths.default_folder() if folder is None else paths.expanded(folder)

    def __repr__(self) -> str:
        try:
            count = len(self.names())
        except OptionError:
            return f"Library({str(self.folder)!r}, not readable)"
        return f"Library({str(self.folder)!r}, {count} {'style' if count == 1 else 'styles'})"

    def _repr_png_(self) -> bytes | None:
        """The contact sheet of the styles, for notebooks."""
        from imageprompt.library.thumbnail import contact_sheet, image_bytes

        styles = self.styles()
        return image_bytes(contact_sheet(styles), format="PNG") if styles else None

    # ── reading ─────────────────────────────────────────────────────────────────────────────────

    def names(self) -> list[str]:
        """The names of all styles, in alphabetical order. Raises OptionError for a folder that
        cannot be read."""
        return paths.names_in(self.folder)

    def show(self, name: str) -> Style:
        """A style by its name; its tensors are read later. Raises NotFoundError, PromptError."""
        name = paths.checked_name(name)
        path = self._path(name)
        if not os.path.lexists(path):
            raise paths.no_such_style(name, self.names(), self.folder)
        if not is_inside(path, self.folder):
            raise PromptError(
                str(path),
                reason="is a link that leads out of the library",
                hint="Add the file itself: imageprompt library import FILE.",
            )
        return style_file.read_style(path, name)

    def styles(self, tag: str | None = None) -> list[Style]:
        """All styles, or those with a tag. Warns about files that are not styles and skips them."""
        found, skipped = [], 0
        for name in self.names():
            try:
                found.append(self.show(name))
            except (PromptError, NotFoundError, OptionError) as error:
                skipped += 1
                if skipped <= _TOLD:
                    warnings.warn(f"skipped: {error}", stacklevel=2)
        if skipped > _TOLD:
            warnings.warn(f"skipped: {skipped - _TOLD} more files", stacklevel=2)
        return [style for style in found if tag is None or _has(style, tag)]

    def search(
        self,
        what: PictureSource,
        *,
        encoder: Any = None,
        text_encoder: Any = None,
        limit: int | None = None,
    ) -> SearchResults:
        """Styles that resemble a picture or match a text, best first.

        A picture (path, bytes of a file, PIL image) is compared with the references by the cosine
        similarity of pooled embeddings; `encoder` is required, and styles of other encoders are
        skipped. A text is searched in names and tags. With a `text_encoder` that shares a space
        with `encoder`, the references are compared with it too, and listed after those matches.

        Raises PictureError, EncoderError, OptionError.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise OptionError(f"limit {limit!r}", reason="not a whole number above 0")
        styles = self.styles()
        if not is_text(what):
            query, made_by = embed_picture(what, encoder)
            hits, skipped = by_embedding(styles, query, made_by, "picture")
            used = f"pictures, by encoder {made_by}"
            return SearchResults(tuple(hits[:limit]), used, tuple(skipped))
        hits, used, skipped = by_name(styles, what), "names and tags", []
        if text_encoder is not None:
            query, made_by = embed_text(what, text_encoder, encoder)
            near, skipped = by_embedding(styles, query, made_by, "words")
            named = {hit.style.name for hit in hits}
            hits += [hit for hit in near if hit.style.name not in named]
            used = f"names, tags, and words against pictures, by encoder {made_by}"
        return SearchResults(tuple(hits[:limit]), used, tuple(skipped))

    # ── using ───────────────────────────────────────────────────────────────────────────────────

    def open(self, name: str, adapter: Adapter) -> ImagePrompt:
        """The style as an image prompt, without encoding anything.

        If the adapter is attached, the image prompt has K', V' too. They are computed at the first
        use and then read from `.prepared` beside the styles.

        Raises NotFoundError, PromptError (also for a style of another adapter), EncoderError (for
        one of another encoder).
        """
        from imageprompt.library import load_style

        style = self.show(name)
        load_style.check_adapter(style, adapter)
        prompt = load_style.image_prompt(style)
        if adapter.attached and adapter.precomputes:
            load_style.precompute_kv(self.folder, style, prompt, adapter)
        return prompt

    # ── adding ─────────────────────────────────────────────────────────────────────────────────

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
        **encode_options: Any,
    ) -> Style:
        """Encode references and save them as a style.

        `pictures`, `features` and `encode_options` are those of `Adapter.encode`, for one prompt;
        the adapter needs an encoder but no base. `replace` overwrites a style of the same name.
        `made_with` records the names of "adapter", "encoder" and "base" that the user gave.

        Raises OptionError for an invalid or existing name, and what encoding raises.
        """
        from imageprompt.library import create_style

        name, tags = paths.checked_name(name), paths.checked_tags(tags)
        self._check_free(name, replace)
        style = create_style.from_references(
            name, tags, adapter, pictures, features, made_with or {}, encode_options
        )
        return self._save(style, replace)

    def mix(
        self,
        weights: Mapping[str, float],
        name: str,
        adapter: Adapter | None = None,
        *,
        tags: Iterable[str] = (),
        replace: bool = False,
    ) -> Style:
        """Save the weighted mean of styles as a new style.

        With the adapter that made them, and if their features are stored and have the same shape,
        the mean of the features is projected. Otherwise it is the mean of their tokens. The new
        style's recipe says which ("of"), and has the shares, which sum to 1.

        Raises NotFoundError, OptionError, PromptError.
        """
        from imageprompt.library import create_style, load_style, mix_styles

        name, tags = paths.checked_name(name), paths.checked_tags(tags)
        self._check_free(name, replace)
        shares = mix_styles.shares_of(weights)
        styles = [self.show(part) for part in shares]
        mix_styles.check_same_models(styles)
        if adapter is not None:
            load_style.check_adapter(styles[0], adapter)
        for style in styles:
            style_file.check_whole(style)
        mixed = mix_styles.mix(styles, list(shares.values()), adapter)
        return self._save(create_style.from_mix(name, tags, styles, shares, mixed), replace)

    def import_(
        self, path: str | os.PathLike[str], name: str | None = None, *, replace: bool = False
    ) -> Style:
        """Add an exported style file, under its own name or another one.

        The whole file is read and checked first. Raises NotFoundError, PromptError, OptionError.
        """
        from imageprompt.library import thumbnail

        style = style_file.check_whole(style_file.read_style(paths.expanded(path), _checked(name)))
        self._check_free(style.name, replace)
        thumbnail.read(style)
        return self._save(style_file.in_memory(style), replace)

    def export(self, name: str, path: str | os.PathLike[str], *, replace: bool = False) -> Path:
        """Copy a style to a file, which `import_` reads.

        Raises NotFoundError, PromptError, OptionError.
        """
        style, target = style_file.check_whole(self.show(name)), paths.expanded(path)
        if target.suffix != paths.SUFFIX or not _is_dir(target.parent) or _is_dir(target):
            raise OptionError(
                f"file {os.fspath(path)!r}",
                reason="not a .safetensors file in an existing folder",
                hint=f"Write {paths.checked_name(name)}.safetensors, for example.",
            )
        try:
            style_file.write_style(target, style, new=not replace)
        except FileExistsError as error:
            what = f"file {os.fspath(path)!r}"
            raise OptionError(what, reason="exists already", hint=_REPLACE) from error
        return target

    def record(self, name: str, **entries: Any) -> Style:
        """Add entries to a style's recipe; its tokens and precomputed K', V' stay as they are.

        Raises NotFoundError, PromptError, OptionError for what a recipe cannot keep.
        """
        path = self._path(paths.checked_name(name))
        with paths.write_lock(self.folder):
            style = style_file.check_whole(self.show(name))
            recipe = {**style.recipe, **entries}
            changed = style_file.in_memory(dataclasses.replace(style, recipe=recipe))
            return style_file.write_style(path, changed)

    def remove(self, name: str) -> None:
        """Delete a style and its precomputed K', V'. Raises NotFoundError, PromptError."""
        path = self._path(paths.checked_name(name))
        with paths.write_lock(self.folder):
            if not os.path.lexists(path):
                raise paths.no_such_style(name, self.names(), self.folder)
            self._delete_precomputed(path)
            path.unlink()

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{paths.SUFFIX}"

    def _check_free(self, name: str, replace: bool) -> None:
        taken = paths.same_name(name, self.names())
        if taken is not None and (taken != name or not replace):
            raise OptionError(
                f"style name {name!r}",
                reason=f"{taken!r} exists already"
                + ("" if taken == name else ", and some systems confuse the two"),
                hint=_REPLACE if taken == name else "Choose another name.",
            )

    def _save(self, style: Style, replace: bool) -> Style:
        """Write the style under the lock: of two processes that add one name, the second fails."""
        path = self._path(style.name)
        with paths.write_lock(self.folder):
            self._check_free(style.name, replace)
            self._delete_precomputed(path)
            return style_file.write_style(path, style)

    def _delete_precomputed(self, path: Path) -> None:
        """Delete the K', V' of a style file that is about to be deleted or replaced.

        Raises PromptError for a file that is not a style: it may be somebody's adapter.
        """
        if path.exists() and is_inside(path, self.folder):
            style = style_file.read_style(path, path.stem)
            for file in paths.precomputed_files(self.folder, style.hash):
                file.unlink(missing_ok=True)


_TOLD = 20
"""Files that are skipped with a warning each; of more, only the number is told."""
_REPLACE = "Choose another name, or replace it with --force (replace=True in Python)."


def _checked(name: str | None) -> str | None:
    return None if name is None else paths.checked_name(name)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # its name is too long
        return False


def _has(style: Style, tag: str) -> bool:
    return paths.folded(tag) in map(paths.folded, style.tags)
