"""One run a folder: a lock that the system lets go of when its process ends, however it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imageprompt.errors import OptionError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs. Raises OptionError if another run holds it.

    Systems without flock (Windows) have no lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / NAME).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            raise OptionError(
                f"output folder {str(folder)!r}",
                rule=f"another run is training there ({stream.read().strip() or 'unknown'})",
                remedy="Wait for it, stop it, or choose another output.",
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield
