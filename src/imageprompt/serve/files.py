"""The files of a data folder: uploads by their hash and results by their job, of each owner."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imageprompt.core.atomic_files import remove, write_atomically
from imageprompt.core.errors import OptionError, PictureError
from imageprompt.core.untrusted import read_regular
from imageprompt.serve.errors import (
    MAX_RETRY_AFTER,
    ApiError,
    Problem,
    bad_request,
    problem_of,
)
from imageprompt.serve.settings import Limits
from imageprompt.serve.sources import HASH, JOB

MIN_FREE_BYTES = 64 * 2**20
"""Free space below which nothing is taken any more."""
_OWNER = "[a-z0-9]{1,32}"
_REPORT = "report.json"
MAX_REPORT = 2**22
"""Bytes of the report of a workflow."""


@dataclass(frozen=True)
class Upload:
    """A picture that is kept."""

    hash: str
    width: int
    height: int
    bytes: int


@dataclass(frozen=True)
class Result:
    """A picture that was made."""

    index: int
    path: Path


class Files:
    """Uploads and results below one folder. Every path is made of checked parts, here only."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self._limits = folder, limits
        self._uploaded: dict[str, int] = {}

    # ── uploads ─────────────────────────────────────────────────────────────────────────────────

    def uploads(self, owner: str) -> Path:
        return self.folder / "uploads" / _checked(owner, _OWNER)

    def upload(self, owner: str, digest: str) -> Path:
        return self.uploads(owner) / _checked(digest, HASH)

    def has(self, owner: str, digest: str) -> bool:
        """Is it there? It is then kept for as long as if it had just been sent."""
        path = self.upload(owner, digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def keep(self, owner: str, data: bytes, param: str | None = None) -> Upload:
        """Keep a picture. It is read whole first. Raises ApiError, WriteError."""
        digest, width, height = self._opened(data, param)
        path = self.upload(owner, digest)
        if not self.has(owner, digest):
            self._count(owner, len(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as temporary:
                temporary.write_bytes(data)
        return Upload(digest, width, height, len(data))

    def remove_upload(self, owner: str, digest: str) -> None:
        path = self.upload(owner, digest)
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._uploaded[owner] = self._bytes_of(owner) - size

    def _count(self, owner: str, size: int) -> None:
        """Before an upload is kept. Raises ApiError if the owner has too many."""
        total = self._bytes_of(owner) + size
        if total > self._limits.uploaded_bytes_of_one_key:
            problem = Problem(
                "quota", "you have too many uploads", None, "Delete some of your jobs."
            )
            raise ApiError(429, problem, retry_after=MAX_RETRY_AFTER)
        self._uploaded[owner] = total

    def _bytes_of(self, owner: str) -> int:
        """Counted once; what other threads keep meanwhile may be counted twice until a restart."""
        if owner not in self._uploaded:
            try:
                with os.scandir(self.uploads(owner)) as entries:
                    self._uploaded[owner] = sum(entry.stat().st_size for entry in entries)
            except FileNotFoundError:
                self._uploaded[owner] = 0
        return self._uploaded[owner]

    def _opened(self, data: bytes, param: str | None) -> tuple[str, int, int]:
        from imageprompt.encoding.images.open_image import open_with_hash, picture_size

        if len(data) > self._limits.picture_bytes:
            raise too_large(f"a picture of {len(data)} bytes", self._limits.picture_bytes, param)
        if media_type(data) is None:
            raise bad_request(
                f"{param or 'picture'}: not a PNG, JPEG or WebP file",
                type="invalid_picture",
                param=param,
                hint="The content counts, not the name or the type.",
            )
        try:
            width, height = picture_size(data)
            if width * height > self._limits.picture_pixels:
                raise too_large(
                    f"a picture of {width}x{height} pixels", self._limits.picture_pixels, param
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about frames and EXIF
                picture, digest = open_with_hash(data)
        except PictureError as error:
            raise ApiError(400, problem_of(error, param)) from error
        return digest, *picture.size

    def read_upload(self, owner: str, digest: str) -> bytes | None:
        try:
            return read_regular(self.upload(owner, digest), self._limits.picture_bytes)
        except FileNotFoundError:
            return None

    def old_uploads(self, seconds: float) -> Iterator[tuple[str, str]]:
        """Owner and hash of the uploads that nobody has asked for in so many seconds."""
        before = time.time() - seconds
        for owner in _folders(self.folder / "uploads", _OWNER):
            with contextlib.suppress(FileNotFoundError), os.scandir(owner) as entries:
                for entry in entries:
                    if re.fullmatch(HASH, entry.name) and entry.stat().st_mtime < before:
                        yield owner.name, entry.name

    # ── results ─────────────────────────────────────────────────────────────────────────────────

    def results(self, owner: str, job: str) -> Path:
        return self.folder / "results" / _checked(owner, _OWNER) / _checked(job, JOB)

    def result(self, owner: str, job: str, index: int) -> Path:
        return self.results(owner, job) / f"{index:d}.png"

    def keep_result(self, owner: str, job: str, index: int, png: bytes) -> None:
        """Write a picture of a job; what has its name is replaced. Raises WriteError."""
        path = self.result(owner, job, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            temporary.write_bytes(png)

    def read_result(self, owner: str, job: str, index: int) -> bytes | None:
        try:
            return read_regular(self.result(owner, job, index), 2**30)
        except FileNotFoundError:
            return None

    def keep_report(self, owner: str, job: str, report: bytes) -> None:
        """Write what a workflow measured, as JSON. Raises WriteError."""
        path = self.results(owner, job) / _REPORT
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            temporary.write_bytes(report)

    def read_report(self, owner: str, job: str) -> bytes | None:
        try:
            return read_regular(self.results(owner, job) / _REPORT, MAX_REPORT)
        except FileNotFoundError:
            return None

    def remove_results(self, owner: str, job: str) -> None:
        """Delete the pictures of a job, all or none."""
        with contextlib.suppress(FileNotFoundError):
            remove(self.results(owner, job))

    def all_jobs(self) -> Iterator[tuple[str, str]]:
        """Owner and id of every job that has pictures."""
        for owner in _folders(self.folder / "results", _OWNER):
            for job in _folders(owner, JOB):
                yield owner.name, job.name

    def results_of(self, owner: str, job: str) -> list[Result]:
        """The pictures of a job in their order."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.results(owner, job).glob("*.png"):
                if re.fullmatch(r"\d{1,4}", path.stem, re.ASCII):
                    found.append(Result(int(path.stem), path))
        return sorted(found, key=lambda one: one.index)

    def full(self) -> bool:
        """Is there too little space left?"""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize < MIN_FREE_BYTES


def media_type(data: bytes) -> str | None:
    """The type of a picture by its first bytes; None for what is not kept."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def too_large(what: str, limit: int, param: str | None = None) -> ApiError:
    """A 413."""
    return ApiError(413, Problem("too_large", f"{what}: the limit is {limit}", param))


def _checked(part: str, pattern: str) -> str:
    """A part of a path. Raises OptionError for anything that could lead elsewhere."""
    if not re.fullmatch(pattern, part, re.ASCII):
        raise OptionError(f"part of a path {part!r:.80}", reason="not a name of this folder")
    return part


def _folders(folder: Path, pattern: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry)
                for entry in entries
                if re.fullmatch(pattern, entry.name, re.ASCII)
                and entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
