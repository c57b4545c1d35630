"""Keys of clients: shown once, kept as hashes in a file that only its owner can read."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from imageprompt.core.atomic_files import locked, write_atomically
from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.schema import validate
from imageprompt.core.untrusted import Budget, parse_json, read_regular
from imageprompt.library.paths import checked_name

PREFIX = "ip-"
LOCAL = "local"
"""The owner of all jobs of a server without keys."""
_MAX_BYTES = 2**22


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is kept of a key: `id` is the owner of its jobs, `hash` the SHA-256 of the secret."""

    id: str
    name: str
    hash: str
    created: float


class Keys:
    """The keys in a file; what other processes change is seen at the next look-up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def all(self) -> Sequence[Key]:
        """The keys, in the order of their making. Raises NotFoundError, OptionError."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            raise NotFoundError(
                f"keys {str(self._path)!r}",
                reason="no such file",
                hint=f"Make a key: imageprompt serve --keys {self._path} --add-key NAME.",
            ) from None
        except OSError as error:
            raise OptionError(f"keys {str(self._path)!r}", reason=str(error.strerror)) from error
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            self._keys, self._seen = self._read(), seen
        return self._keys

    def owner(self, secret: str) -> str | None:
        """The id of a key, or None. Takes as long for every wrong one."""
        digest = _hash(secret)
        found = None
        for key in self.all():
            if hmac.compare_digest(key.hash, digest):
                found = key.id
        return found

    def add(self, name: str) -> str:
        """Make a key; returns the secret, which is kept nowhere. Raises OptionError."""
        name = checked_name(name)
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._changed() as keys:
            if any(key.name == name for key in keys):
                raise OptionError(
                    f"key {name!r}", reason="exists already", hint="Choose another name."
                )
            identity = secrets.token_hex(8)
            keys.append(Key(id=identity, name=name, hash=_hash(secret), created=time.time()))
        return secret

    def remove(self, name: str) -> None:
        """Raises NotFoundError."""
        with self._changed() as keys:
            kept = [key for key in keys if key.name != name]
            if len(kept) == len(keys):
                known = ", ".join(key.name for key in keys) or "none"
                raise NotFoundError(
                    f"key {name!r}", reason="no such key", hint=f"There are: {known}."
                )
            keys[:] = kept

    @contextmanager
    def _changed(self) -> Iterator[list[Key]]:
        """Inside the block the list of keys, which nobody else changes; it is written at the end,
        unless there was an error."""
        path = self._path
        lock = path.with_name(f".{path.name}.lock")
        with locked(lock, f"keys {str(path)!r}", timeout=10):
            keys = list(self._read()) if path.exists() else []
            yield keys
            text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1)
            with write_atomically(path) as temporary:
                temporary.write_text(f"{text}\n", encoding="utf-8")
            path.chmod(0o600)  # the hashes are nobody else's matter

    def _read(self) -> tuple[Key, ...]:
        try:
            data = parse_json(read_regular(self._path, _MAX_BYTES), Budget(), unique=True)
        except (OSError, ValueError) as error:
            reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise OptionError(f"keys {str(self._path)!r}", reason=reason) from error
        if not isinstance(data, dict) or not isinstance(data.get("keys"), list):
            raise OptionError(f"keys {str(self._path)!r}", reason="not a file of keys")
        what = f"keys {str(self._path)!r}"
        return tuple(validate(Key, each, what=what) for each in data["keys"])


def _hash(secret: str) -> str:
    """A plain hash is enough: a key has 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
