"""Interface of a source of training data: records by number, their files, and the options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from imageprompt.core.config_reader import STRICT_KEYS, Key, bad_key, read_config
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError, PictureError
from imageprompt.core.untrusted import is_inside, open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

T = TypeVar("T")

MAX_PATH = 4096
"""Characters of a path: PATH_MAX of Linux."""
MAX_CAPTION = 16_384
"""Characters of a caption; text encoders read a few thousand at most."""
MAX_CAPTION_BYTES = 4 * MAX_CAPTION
PAIR_COLUMNS = ("content_reference", "style_reference")
PAIR_CAPTIONS = ("content_caption", "style_caption")
"""What is on the picture alone, and how it looks alone."""
HASH = 16
"""Bytes kept of a file's SHA-256, where a sample is looked up by what it holds."""
MAX_EMBEDDING_NUMBERS = 256 * 512
_EMBEDDING_HINT = "Save it with numpy.save as 512 numbers, or as [faces, 512]."


@dataclass(frozen=True)
class Record:
    """One sample, not read yet: its name, its caption, and where its pictures are.

    `reference` is the picture to condition on where that is not `picture` itself (a face crop),
    `id_embed` a precomputed face embedding. `content_reference` and `style_reference` are what the
    two adapters of a pair condition on; `own_captions` are those of one side, by column.
    """

    key: str
    text: str
    picture: DataFile
    reference: DataFile | None = None
    id_embed: DataFile | None = None
    content_reference: DataFile | None = None
    style_reference: DataFile | None = None
    own_captions: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def caption_of(self, part: int | None) -> str:
        """The caption that one adapter of a pair learns from: its own, or that of the picture."""
        return self.text if part is None else self.own_captions.get(PAIR_CAPTIONS[part], self.text)

    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, from its header. Raises PictureError."""
        from imageprompt.encoding.images.open_image import picture_size

        return _relabelled(picture_size, self.picture.source(), self.picture)

    def size_and_bytes(self) -> tuple[tuple[int, int], bytes]:
        """`size` and the picture's bytes, read once; nothing is decoded. Raises PictureError."""
        from imageprompt.encoding.images.open_image import picture_size

        data = self.picture.read()
        return _relabelled(picture_size, data, self.picture), data

    def open_picture(self) -> Image:
        """The picture, upright and RGB. Raises PictureError."""
        return self._open(self.picture)

    def open_reference(self) -> Image:
        """The picture to condition on. Raises PictureError."""
        return self._open(self.reference or self.picture)

    def open_pair(self) -> tuple[Image, Image]:
        """The content and the style reference. Raises PictureError if it lacks one."""
        missing = [name for name in PAIR_COLUMNS if getattr(self, name) is None]
        if missing:
            raise PictureError(
                f"sample {self.key!r}",
                reason=f"has no {missing[0]}",
                hint="Give both references of every picture, or set pairs: self-made.",
            )
        content, style = (self._open(getattr(self, name)) for name in PAIR_COLUMNS)
        return content, style

    def open_with_hash(self, *, reference: bool = False) -> tuple[Image, bytes]:
        """The picture (or the one to condition on) and the SHA-256 of its bytes.

        The file is read and decoded once. Raises PictureError.
        """
        from imageprompt.encoding.images.open_image import open_with_hash

        file = self.reference if reference and self.reference is not None else self.picture
        picture, digest = _relabelled(open_with_hash, file.source(), file)
        return picture, bytes.fromhex(digest)

    def id_embeds(self) -> NDArray[np.float32]:
        """The face embedding [d], or several faces' [k, d]. Raises PictureError."""
        if self.id_embed is None:
            raise PictureError(
                f"sample {self.key!r}",
                reason="has no face embedding, which this variant reads",
                hint="Give one in id_embed_file.",
            )
        return read_embedding(self.id_embed)

    @staticmethod
    def _open(file: DataFile) -> Image:
        from imageprompt.encoding.images.open_image import open_picture

        return _relabelled(open_picture, file.source(), file)


def _relabelled(read: Callable[[Path | bytes], T], source: Path | bytes, file: DataFile) -> T:
    """`read(source)`, with the file's own name in its errors."""
    try:
        return read(source)
    except PictureError as error:
        raise PictureError(file.label, reason=error.reason, hint=error.hint) from error


class DataFile(Protocol):
    """A file of a data set, not read yet."""

    @property
    def label(self) -> str:
        """Its name in errors."""

    def stamp(self) -> str:
        """Changes when the file is replaced (name, size, time); its content is not read."""

    def source(self) -> Path | bytes:
        """What a picture is opened from. Raises PictureError."""

    def read(self, limit: int | None = None) -> bytes:
        """All its bytes, at most `limit` (default: those of a picture). Raises PictureError."""


@dataclass(frozen=True)
class LocalFile:
    """A file on the local disk; with `inside`, one that lies in that folder, links followed."""

    path: Path
    inside: Path | None = None

    @property
    def label(self) -> str:
        return f"file {str(self.path)!r}"

    def stamp(self) -> str:
        try:
            status = self.path.stat()
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return f"{self.path}:missing"
        return f"{self.path}:{status.st_size}:{status.st_mtime_ns}"

    def source(self) -> Path:
        """Raises PictureError for a path that leads out of the folder."""
        try:
            if self.inside is None or is_inside(self.path, self.inside):
                return self.path
        except (OSError, ValueError) as error:
            raise unreadable(self.label, error) from error
        raise PictureError(
            self.label,
            reason=f"leads out of the data's folder {str(self.inside)!r}",
            hint="Move it there, or write allow_outside: true under data.",
        )

    def read(self, limit: int | None = None) -> bytes:
        path = self.source()
        try:
            with open_regular(path) as stream:
                size = os.fstat(stream.fileno()).st_size
                check_size(size, self.label, limit)
                return stream.read(size)
        except FileNotFoundError:
            raise PictureError(
                self.label, reason="there is no such file", hint="Check the path."
            ) from None
        except (OSError, ValueError) as error:
            raise unreadable(self.label, error) from error


def check_size(size: int, label: str, limit: int | None = None) -> None:
    """Raises PictureError for a file of more than `limit` bytes (default: those of a picture)."""
    from imageprompt.encoding.images.open_image import MAX_FILE_BYTES

    limit = MAX_FILE_BYTES if limit is None else limit
    if size > limit:
        most = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"
        raise PictureError(label, reason=f"larger than {most}", hint="Scale or cut it down.")


def check_caption(text: str, label: str) -> str:
    """The caption to train on. Raises PictureError if it is too long to be one."""
    text = text.encode("utf-8", "replace").decode().strip()  # JSON can have half characters
    if len(text) > MAX_CAPTION:
        raise PictureError(
            label,
            reason=f"a caption of {len(text)} characters; the limit is {MAX_CAPTION}",
            hint="Shorten it.",
        )
    return text


def unreadable(label: str, error: BaseException) -> PictureError:
    """The error for a file that the system or a protocol could not read."""
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return PictureError(label, reason=f"cannot be read ({reason})", hint="Check it.")


def read_embedding(file: DataFile) -> NDArray[np.float32]:
    """One face's embedding [d], or several faces' [k, d], from .npy, safetensors or a torch file.

    Nothing is unpickled. Raises PictureError.
    """
    import numpy as np

    from imageprompt.checkpoint.read.arrays import read_arrays

    try:
        with _local_copy(file) as path:
            arrays = read_arrays(path, MAX_EMBEDDING_NUMBERS)
    except (AdapterFileError, NotFoundError) as error:
        reason = error.reason.removeprefix("not an adapter file: ")
        raise PictureError(
            file.label, reason=f"contains no face embedding ({reason})", hint=_EMBEDDING_HINT
        ) from None
    if len(arrays) != 1:
        raise PictureError(
            file.label, reason=f"contains {len(arrays)} arrays instead of one", hint=_EMBEDDING_HINT
        )
    (values,) = arrays
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim not in (1, 2) or 0 in values.shape or not np.isfinite(values).all():
        raise PictureError(
            file.label,
            reason=f"must be [d] or [faces, d] and finite; its shape is {list(values.shape)}",
            hint=_EMBEDDING_HINT,
        )
    return values


@contextmanager
def _local_copy(file: DataFile) -> Iterator[Path]:
    """The path of a local file, or of a temporary copy of a shard's member."""
    source = file.source()
    if isinstance(source, Path):
        yield source
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "face"
        path.write_bytes(source)
        yield path


class Records(Protocol):
    """All samples of a source. Only offsets and names are in memory, never what they point to."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """Sample number `index`. Raises PictureError if its entry cannot be read."""

    def fingerprint(self) -> str:
        """Short hash of the list; changes when a sample is added, removed or changes its size."""

    def problems(self) -> Mapping[str, str]:
        """What could not even be listed (a damaged shard): its name and the reason."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The `data` key of a config: a path, or a mapping of these."""

    __pydantic_config__ = STRICT_KEYS

    path: Annotated[
        str, Key("folder, JSON list, or tar shards (`{000..099}`, `*` and any fsspec URL)")
    ]
    format: Annotated[str, Key("source that reads it; default: chosen by the path")] = ""
    images: Annotated[
        str, Key("folder that a list's picture paths are relative to; default: the list's own")
    ] = ""
    caption: Annotated[
        str, Key("key of the caption in a list, metadata.jsonl, or a shard's .json members")
    ] = "text"
    max_broken: Annotated[
        float, Key("share of unreadable samples above which the run stops", ge=0, le=1)
    ] = 0.02
    allow_outside: Annotated[
        bool, Key("read files that a list or a link names outside the data's own folder")
    ] = False
    storage: Annotated[
        dict[str, Any], Key("options of fsspec's filesystem for URLs, such as `anon: true`")
    ] = field(default_factory=dict)

    @classmethod
    def of(cls, data: str | Mapping[str, Any] | DataOptions) -> DataOptions:
        """From a config's value. Raises OptionError, which names the nearest key."""
        if isinstance(data, DataOptions):
            return data
        plain = data if isinstance(data, Mapping) else {"path": data}
        options = read_config(cls, plain, "the config", "data.")
        if not options.path:
            raise OptionError(
                "config key 'data.path'", reason="empty", hint="Name a folder, a list or shards."
            )
        if max(len(options.path), len(options.images)) > MAX_PATH or "\0" in options.path:
            raise bad_key("data.path", options.path, f"longer than {MAX_PATH}, or with a NUL")
        return options


class Source(Protocol):
    """A kind of training data."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def claims(self, path: str) -> bool:
        """Whether `open` can read what is at `path`."""

    @property
    def open(self) -> Callable[[DataOptions], Records]:
        """All samples of the data. Raises OptionError, NotFoundError."""
