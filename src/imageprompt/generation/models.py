"""What an engine keeps: loaded models and encoded references, each until its files change."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from imageprompt import loading
from imageprompt.core.errors import OptionError
from imageprompt.loading import LoadedPipeline, LocatedAdapter
from imageprompt.loading.recipe import AssetRecord

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.encoding.image_prompt import ImagePrompt

Stamps = Mapping[Path, Hashable]
"""Files and folders -> what changes when they are written to."""


def stamps_of(paths: Iterable[Path | None]) -> Stamps:
    return {path: _stamp(path) for path in paths if path is not None}


def _stamp(path: Path) -> Hashable:
    """Size, time and inode of a file, or of every file in a folder; links are followed."""
    if not path.is_dir():
        return _stat(path)
    return tuple(
        (name, _stat(Path(folder, name)))
        for folder, _, names in sorted(os.walk(path, followlinks=True))
        for name in sorted(names)
    )


def _stat(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError:
        return None
    # the time of the last change of any kind cannot be set back, as that of the content can
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


V = TypeVar("V")


class Kept(Generic[V]):
    """At most `limit` values by key. The least recently used leaves, and what changed on disk."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[Hashable, tuple[V, Stamps]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V], files: Iterable[Path | None] = ()) -> V:
        """The value of `key`, made if there is none or one of its files changed since."""
        stamps = stamps_of(files)
        if key in self._entries and self._entries[key][1] == stamps:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        self._entries.pop(key, None)  # before the new one needs its memory
        value = make()
        self._entries[key] = value, stamps
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        return value

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


class Turn:
    """A lock that threads get in the order in which they ask.

    Raises OptionError, instead of waiting for ever, where the thread that holds it asks again.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._owner: int | None = None

    def __enter__(self) -> Turn:
        me = threading.get_ident()
        if self._owner == me:
            raise OptionError(
                "a call of the engine from its own callback",
                reason="the engine is still making the picture that it reports",
                hint="Call it after this call has returned, or use Progress.cancel() first.",
            )
        mine = threading.Event()
        with self._mutex:
            self._waiting.append(mine)
            if self._waiting[0] is mine:
                mine.set()
        try:
            mine.wait()
        except BaseException:
            self._leave(mine)
            raise
        self._owner = me
        return self

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._leave(None)

    def _leave(self, ticket: threading.Event | None) -> None:
        with self._mutex:
            if ticket is None:
                self._waiting.popleft()
            else:
                self._waiting.remove(ticket)
            if self._waiting:
                self._waiting[0].set()


_turns: weakref.WeakKeyDictionary[Any, Turn] = weakref.WeakKeyDictionary()
_turns_lock = threading.Lock()


def turn_of(base: Any) -> Turn | nullcontext[None]:
    """The turn of a loaded pipeline: that of its denoiser, which several pipelines may share.

    A base that is loaded from a folder belongs to its engine, whose own turn is enough.
    """
    model = getattr(base, "unet", None) or getattr(base, "transformer", None)
    if model is None:
        return nullcontext()
    with _turns_lock:
        return _turns.setdefault(model, Turn())


@dataclass
class KeptAdapter:
    """A loaded adapter, its record, the name of its encoder, and what it encoded."""

    adapter: Adapter
    record: AssetRecord
    prompts: Kept[ImagePrompt] | None
    """None for an adapter that the user passed: others may write to it."""
    encoder: str | None = None
    watched: Stamps | None = None
    """The folder of its encoder."""
    alive: tuple[object, ...] = ()
    """Objects that its key names by their id."""


class Models:
    """The models of one base."""

    def __init__(self) -> None:
        self.turn = Turn()
        self._bases: Kept[LoadedPipeline] = Kept(1)
        self._adapters: Kept[KeptAdapter] = Kept(8)
        self._encoders: Kept[Any] = Kept(4)
        self._variants: Kept[tuple[Any, object]] = Kept(6)
        self._controlnets: Kept[tuple[Any, AssetRecord]] = Kept(2)
        self.previews: Kept[Any] = Kept(2)

    def base(
        self, base: Any, folder: Path | None, dtype: str | None, device: str | None, bars: bool
    ) -> LoadedPipeline:
        """The base, loaded unless it is and its folder is unchanged."""

        def load() -> LoadedPipeline:
            self.clear()  # all of them belong to the base that was
            return loading.load_base(base, folder, dtype=dtype, device=device, bars=bars)

        if folder is None:
            return loading.load_base(base, None, dtype=dtype, device=device, bars=bars)
        return self._bases.get((folder, dtype, device), load, [folder])

    def clear(self) -> None:
        for kept in (self._bases, self._adapters, self._encoders, self._variants):
            kept.clear()
        self._controlnets.clear()
        self.previews.clear()

    def controlnet(
        self, controlnet: Any, folder: Path | None, pipe: Any, bars: bool
    ) -> tuple[Any, AssetRecord]:
        from imageprompt.loading.controlnet import load_controlnet

        def load() -> tuple[Any, AssetRecord]:
            return load_controlnet(controlnet, folder, pipe, bars=bars)

        if folder is None:
            return load()
        key = (folder, str(pipe.dtype), str(pipe.device))
        return self._controlnets.get(key, load, [folder])

    def variant(self, pipe: Any, kind: Hashable, controlnet: Any, make: Callable[[], Any]) -> Any:
        """Another pipeline of the same parts. A part that was exchanged makes it anew."""
        parts = tuple(map(id, pipe.components.values()))
        key = (kind, id(controlnet), parts)
        return self._variants.get(key, lambda: (make(), controlnet))[0]

    def adapter(
        self,
        key: tuple[object, ...],
        located: LocatedAdapter | Adapter,
        pipe: Any,
        reference: Any,
    ) -> KeptAdapter:
        """The adapter of a reference, loaded unless it is and its file is unchanged."""
        if not isinstance(located, LocatedAdapter):
            return KeptAdapter(*loading.load_adapter(located, pipe, reference.variant), None)

        def load() -> KeptAdapter:
            loaded, record = loading.load_adapter(located, pipe, reference.variant)
            alive = (reference.encoder, reference.faces)
            return KeptAdapter(loaded, record, Kept(32), alive=alive)

        files = [located.path, _face_pack(reference.faces)]
        key = (*key, located.name, str(pipe.device), str(pipe.dtype))
        kept = self._adapters.get(key, load, files)
        if kept.watched is not None and stamps_of(kept.watched) != kept.watched:
            kept.adapter.encoding.encoder = kept.encoder = kept.watched = None
            kept.prompts = Kept(32)
        return kept

    def encoder(self, kept: KeptAdapter, found: Any) -> Any:
        """An encoder for `Adapter.attach`: from its folder, opened unless it is."""
        if not isinstance(found, Path):
            return found
        from imageprompt.adapter.compatibility import checked_encoder

        kept.watched = stamps_of([found])
        spec = kept.adapter.spec
        opened = self._encoders.get(found, lambda: checked_encoder(spec, found), [found])
        return checked_encoder(spec, opened)


def _face_pack(faces: object) -> Path | None:
    if not isinstance(faces, str | os.PathLike):
        return None
    from imageprompt.encoding.face_encoder import PACKS

    path = Path(faces)
    return path if path.exists() else PACKS.expanduser() / path


def content_key(value: Any) -> Hashable:
    """A key that is equal for equal options. Raises TypeError for arrays, models and the like."""
    if value is None or isinstance(value, str | int | float):
        return (type(value).__name__, value)
    if isinstance(value, list | tuple):
        return tuple(map(content_key, value))
    if hasattr(value, "__dataclass_fields__"):
        named = (getattr(value, item.name) for item in fields(value))
        return (type(value).__name__, *map(content_key, named))
    raise TypeError(type(value).__name__)
