"""Features of pictures, extracted once: kept by (content of the picture, extractor)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imageprompt.core.errors import ImagePromptError, OptionError
from imageprompt.core.untrusted import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

    from imageprompt.evaluation.extractors.contract import Extractor
    from imageprompt.evaluation.metrics.contract import Rows
    from imageprompt.evaluation.scoring.pictures import Picture

BATCH = 32
"""Pictures that are open at a time."""

_TABLE = """CREATE TABLE IF NOT EXISTS features
    (extractor TEXT, picture TEXT, row BLOB, PRIMARY KEY (extractor, picture)) WITHOUT ROWID"""


MAX_ROW = 2**20
"""Bytes of a value; features have a few thousand."""


def _check_file(path: Path) -> None:
    """Raises OSError unless the file is a plain one in its folder, or there is none."""
    if os.path.lexists(path):
        open_regular(path, inside=path.parent).close()


class FeatureStore:
    """Rows of features in an SQLite file, or in memory; another process can read it meanwhile."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Opens the file, or makes it. Raises OptionError if it is something else."""
        self._name = ":memory:" if path is None else str(Path(path))
        try:
            if path is not None:
                _check_file(Path(path))
            self._database = sqlite3.connect(self._name, timeout=60, isolation_level=None)
            self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW)
            self._database.execute("PRAGMA trusted_schema=OFF")
            self._check_schema()
            if path is not None:
                self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_TABLE)
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise OptionError(
                f"feature cache {self._name}",
                reason=reason,
                hint="Name a new file, or delete this one: everything in it can be made again.",
            ) from error

    def _check_schema(self) -> None:
        """Raises ValueError for a file with a view, a trigger or a table that is not ours."""
        schema = self._database.execute("SELECT type, name, sql FROM sqlite_master LIMIT 3")
        ours = " ".join(_TABLE.replace("IF NOT EXISTS ", "").split())
        for kind, name, sql in schema:
            if (kind, name, " ".join(str(sql).split())) != ("table", "features", ours):
                raise ValueError("not a cache of features: it has other tables or views")

    def close(self) -> None:
        self._database.close()

    def rows(
        self,
        pictures: Sequence[Picture],
        extractor: Extractor,
        failed: dict[str, str],
        *,
        on_pictures: Callable[[int, int], object] = lambda done, total: None,
    ) -> Rows:
        """Features [n, width]; NaN for a picture that cannot be opened: `failed` says why."""
        rows = np.full((len(pictures), extractor.width), np.nan, np.float32)
        for start in range(0, len(pictures), BATCH):
            part = pictures[start : start + BATCH]
            for index, row in self._part(part, extractor, failed):
                rows[start + index] = row
            on_pictures(start + len(part), len(pictures))
        return rows

    def _part(
        self, pictures: Sequence[Picture], extractor: Extractor, failed: dict[str, str]
    ) -> Iterator[tuple[int, Rows]]:
        waiting: dict[str, list[int]] = {}
        for index, picture in enumerate(pictures):
            try:
                waiting.setdefault(picture.hash, []).append(index)
            except ImagePromptError as error:
                failed[picture.name] = error.reason
        known = self._read(extractor, [*waiting])
        opened: dict[str, Image] = {}
        for key, indices in waiting.items():
            if key not in known:
                picture = pictures[indices[0]]
                try:
                    opened[key] = picture.open()
                except ImagePromptError as error:
                    failed[picture.name] = error.reason
        if opened:
            made = extractor.encode([*opened.values()])
            fresh = dict(zip(opened, np.asarray(made, np.float32), strict=True))
            self._write(extractor, fresh)
            known |= fresh
        for key, indices in waiting.items():
            for index in indices:
                if key in known:
                    yield index, known[key]

    def _read(self, extractor: Extractor, keys: Sequence[str]) -> dict[str, Rows]:
        marks = ",".join("?" * len(keys))
        found = self._database.execute(
            f"SELECT picture, row FROM features WHERE extractor = ? AND picture IN ({marks})",
            [extractor.fingerprint, *keys],
        )
        size = 4 * extractor.width
        return {key: np.frombuffer(row, "<f4") for key, row in found if len(row) == size}

    def _write(self, extractor: Extractor, rows: dict[str, Rows]) -> None:
        with suppress(sqlite3.OperationalError):  # a full or locked disk: the rows are made again
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT OR REPLACE INTO features VALUES (?, ?, ?)",
                [
                    (extractor.fingerprint, key, row.astype("<f4").tobytes())
                    for key, row in rows.items()
                ],
            )
            self._database.execute("COMMIT")
