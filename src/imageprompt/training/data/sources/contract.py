"""What a source of training data states: records by number, in bounded memory; its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.training.config.yaml_reader import read_into

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from imageprompt.training.data.sources.blobs import Blob

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One sample, not read yet: its name, its caption, and where its pictures lie.

    `reference` is the picture to condition on where that is not `picture` itself (a face's crop),
    `id_embed` a face embedding that was computed before.
    """

    key: str
    text: str
    picture: Blob
    reference: Blob | None = None
    id_embed: Blob | None = None

    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, from its header. Raises PictureError."""
        from imageprompt.encoding.images.open_image import picture_size

        return self._named(picture_size, self.picture)

    def open_picture(self) -> Image:
        """The picture, upright and RGB. Raises PictureError."""
        return self._opened(self.picture)

    def open_reference(self) -> Image:
        """The picture to condition on. Raises PictureError."""
        return self._opened(self.reference or self.picture)

    def id_embeds(self) -> NDArray[np.float32]:
        """The face embedding [512], or several faces' [k, 512]. Raises PictureError."""
        from imageprompt.training.data.sources.faces import read_embedding

        if self.id_embed is None:
            raise PictureError(
                f"sample {self.key!r}",
                reason="it has no face embedding, which this variant reads",
                hint="Give one in id_embed_file.",
            )
        return read_embedding(self.id_embed)

    def _opened(self, blob: Blob) -> Image:
        from imageprompt.encoding.images.open_image import open_picture

        return self._named(open_picture, blob)

    @staticmethod
    def _named(read: Callable[[Path | bytes], T], blob: Blob) -> T:
        """What `read` makes of a blob, whose name is in the errors."""
        try:
            return read(blob.source())
        except PictureError as error:
            raise PictureError(blob.label, reason=error.reason, hint=error.hint) from error


class Records(Protocol):
    """All samples of a source. Only offsets and names are kept, never what they point to."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """Sample number `index`. Raises PictureError if its entry cannot be read."""

    def fingerprint(self) -> str:
        """Short hash of the list: the same while no sample comes, goes or changes its size."""

    def troubles(self) -> Mapping[str, str]:
        """What could not even be listed (a damaged shard): its name and why."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The `data` key of a configuration: a path, or a mapping of these."""

    path: str
    """A folder, a JSON list, or tar shards (`{000..099}` and `*` allowed, any fsspec URL)."""
    format: str = ""
    """Which source reads it; "" tells it by the path."""
    images: str = ""
    """Folder that picture paths of a list are relative to; "" is the list's own."""
    caption: str = "text"
    """Key of the caption in a list, in `metadata.jsonl`, or in the .json members of a shard."""
    max_broken: float = 0.02
    """Share of the samples that may be unreadable before the run is stopped, 0..1."""
    storage: dict[str, Any] = field(default_factory=dict)
    """Options of fsspec's filesystem for URLs, such as `anon: true`."""

    @classmethod
    def of(cls, data: str | Mapping[str, Any] | DataOptions) -> DataOptions:
        """From a configuration's value. Raises OptionError, naming the nearest key."""
        if isinstance(data, DataOptions):
            return data
        given = data if isinstance(data, Mapping) else {"path": data}
        options = read_into(cls, given, "the config", "data.")
        if not options.path or not 0 <= options.max_broken <= 1:
            raise OptionError(
                "config key 'data'",
                reason="path names a folder, a list or shards, and max_broken is from 0 to 1",
                hint="Change it.",
            )
        return options


class Source(Protocol):
    """A kind of training data."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def claims(self, path: str) -> bool:
        """Can `open` read what lies there?"""

    @property
    def open(self) -> Callable[[DataOptions], Records]:
        """All samples of it. Raises OptionError, NotFoundError."""
