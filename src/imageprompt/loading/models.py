"""What stays loaded: models and encoded references of a base, each until its files change."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from imageprompt import loading
from imageprompt.core import bundled
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
    """At most `limit` values by key. The least recently used leaves, and what changed on disk.

    Threads may share one: of two that ask for the same, one makes it and the other waits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()  # making a base clears what belongs to the one before
        self._entries: OrderedDict[Hashable, tuple[V, Stamps]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V], files: Iterable[Path | None] = ()) -> V:
        """The value of `key`, made if there is none or one of its files changed since."""
        stamps = stamps_of(files)
        with self._lock:
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
    """The models of one base, on one device and in one precision."""

    def __init__(self, load: Callable[..., LoadedPipeline] | None = None) -> None:
        """`load` takes the place of `loading.load_base`."""
        self.turn = Turn()
        self._load = load
        self._bases: Kept[LoadedPipeline] = Kept(1)
        self._adapter_files: Kept[Adapter] = Kept(8)
        self._adapters: Kept[KeptAdapter] = Kept(8)
        self._encoders: Kept[Any] = Kept(4)
        self._variants: Kept[tuple[Any, object]] = Kept(6)
        self._controlnets: Kept[tuple[Any, AssetRecord]] = Kept(2)
        self.previews: Kept[Any] = Kept(2)

    def base(
        self, base: Any, folder: Path | None, dtype: str | None, device: str | None, bars: bool
    ) -> LoadedPipeline:
        """The base, loaded unless it is and its folder is unchanged."""
        load_base = self._load or loading.load_base

        def load() -> LoadedPipeline:
            self._clear_base()  # before the new one needs its memory
            return load_base(base, folder, dtype=dtype, device=device, bars=bars)

        if folder is None:
            return load_base(base, None, dtype=dtype, device=device, bars=bars)
        return self._bases.get((folder, *_precision(dtype, device)), load, [folder])

    def clear(self) -> None:
        """Free all. What is in use is freed when its user is done."""
        self._clear_base()
        self._adapter_files.clear()
        self._encoders.clear()

    def _clear_base(self) -> None:
        """Free the base, and what belongs to it alone."""
        self._bases.clear()
        self._adapters.clear()
        self._variants.clear()
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
            return KeptAdapter(*loading.load_adapter(located, pipe), None)

        def load() -> KeptAdapter:
            loaded = self.adapter_file(located, pipe, reference.variant, reference.reading)
            record = loading.adapter_record(loaded, located)
            return KeptAdapter(loaded, record, Kept(32), alive=(reference.encoder, reference.faces))

        files = [located.file, _face_pack(reference.faces)]
        key = (*key, located.name, str(loading.device_of(pipe)), str(pipe.dtype))
        kept = self._adapters.get(key, load, files)
        if kept.watched is not None and stamps_of(kept.watched) != kept.watched:
            kept.adapter.encoding.encoder = kept.encoder = kept.watched = None
            kept.prompts = Kept(32)
        return kept

    def adapter_file(
        self,
        located: LocatedAdapter,
        pipe: Any = None,
        variant: str | None = None,
        reading: str | None = None,
    ) -> Adapter:
        """An adapter of its own, with the weights of the file, which are loaded unless they are.

        The weights are shared: nobody may write to them. `pipe` as for `loading.load_adapter_file`.
        """
        from imageprompt.adapter.adapter import Adapter

        def load() -> Adapter:
            return loading.load_adapter_file(located.path, pipe, variant, reading)

        key = (located.path, variant, reading, *loading.adapter_precision(pipe))
        file = self._adapter_files.get(key, load, [located.file])
        return Adapter(file.spec, file.module)

    def encoder(self, kept: KeptAdapter, found: Any) -> Any:
        """An encoder for `Adapter.attach`: from its folder, opened unless it is."""
        if isinstance(found, Path):
            kept.watched = stamps_of([found])
        return self.encoder_for(kept.adapter, found)

    def encoder_for(self, adapter: Adapter, found: Any) -> Any:
        """The same for any adapter. Raises EncoderError if it does not fit."""
        from imageprompt.adapter.compatibility import checked_encoder

        if not isinstance(found, Path):
            return found
        opened = self._encoders.get(found, lambda: checked_encoder(adapter.spec, found), [found])
        return checked_encoder(adapter.spec, opened)


def _face_pack(faces: object) -> Path | None:
    if not isinstance(faces, str | os.PathLike):
        return None
    from imageprompt.encoding.face_encoder import PACKS

    path = Path(faces)
    return path if path.exists() else PACKS.expanduser() / path


# ── of the process ──────────────────────────────────────────────────────────────────────────────

LIMIT = 2
"""How many bases stay loaded in a process, counted by device and precision."""

_kept: OrderedDict[tuple[str, str, str], Models] = OrderedDict()
_of_pipelines: weakref.WeakKeyDictionary[Any, Models] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def models_of(base: Any, dtype: str | None = None, device: str | None = None) -> Models:
    """What the process keeps for a base, on a device and in a precision.

    Raises OptionError for a device that is not available.
    """
    if not isinstance(base, str | os.PathLike | None):
        return models_of_pipeline(base)
    key = (_place(base), *_precision(dtype, device))
    with _lock:
        models = _kept.setdefault(key, Models())
        _kept.move_to_end(key)
        while len(_kept) > LIMIT:
            _kept.popitem(last=False)
    return models


def models_of_pipeline(pipe: Any) -> Models:
    """What is kept for a loaded pipeline, as long as it lives."""
    if not hasattr(pipe, "components"):
        return Models()  # not a pipeline; what loads it says so
    with _lock:
        return _of_pipelines.setdefault(pipe, Models())


def release(base: Any = None) -> None:
    """Free what is kept loaded: of one base (as it was given to `generate`), or all.

    A call that is running goes on, and keeps its own until it ends.
    """
    with _lock:
        if base is None:
            _kept.clear()
            _of_pipelines.clear()
        elif isinstance(base, str | os.PathLike):
            for key in [key for key in _kept if key[0] == _place(base)]:
                del _kept[key]
        else:
            _of_pipelines.pop(base, None)


def _place(base: Any) -> str:
    """One name for one base, also after a change of the working directory."""
    name = bundled.NAME if base is None else os.fspath(base)
    named = name in bundled.FOLDERS or not Path(name).exists()
    return name if named else str(Path(name).absolute())


def _precision(dtype: str | None, device: str | None) -> tuple[str, str]:
    """The dtype and the device that these are, with their defaults filled in."""
    device = loading.usable_device(device)
    return dtype or loading.default_dtype(device), device
