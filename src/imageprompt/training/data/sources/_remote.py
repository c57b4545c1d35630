"""Where shards may lie: protocols and options of fsspec that only read, nothing that runs.

fsspec can chain protocols, import classes, call programs and keep caches on the disk by what a URL
and its options say. A config may come from a stranger, so only what is listed here is passed on.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from imageprompt.core.errors import OptionError
from imageprompt.core.untrusted import open_regular
from imageprompt.core.yaml_file import brief
from imageprompt.training.data.sources.contract import MAX_PATH

MAX_SHARDS = 100_000
"""Shards of a data set: a petabyte in shards of the usual size."""
_MAX_NAMES = 2**25  # characters of all names together
_MAX_STARS = 4  # matching names against more takes time that grows with its power
_MAX_DIGITS = 9

_Options = Mapping[str, Any]
"""Name -> the type of the value, or the options inside it."""

_S3: _Options = {
    "anon": bool,
    "key": str,
    "secret": str,
    "token": str,
    "endpoint_url": str,
    "use_ssl": bool,
    "requester_pays": bool,
    "client_kwargs": {"region_name": str, "endpoint_url": str},
    "config_kwargs": {"connect_timeout": int, "read_timeout": int, "signature_version": str},
}
_GCS: _Options = {
    "token": ("anon", "cloud", "google_default"),
    "project": str,
    "endpoint_url": str,
    "requester_pays": bool,
    "timeout": int,
}
_AZURE: _Options = {
    "anon": bool,
    "account_name": str,
    "account_key": str,
    "sas_token": str,
    "connection_string": str,
    "tenant_id": str,
    "client_id": str,
    "client_secret": str,
}
_HTTP: _Options = {"client_kwargs": {"headers": dict}}
PROTOCOLS: Mapping[str, _Options] = {
    "http": _HTTP,
    "https": _HTTP,
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "hf": {"token": str, "endpoint": str},
    "memory": {},
}
"""Protocol -> the options of its filesystem that a config may set."""
_LOCAL = ("file", "local")


class LocalShards:
    """The part of fsspec's interface that shards need, for regular files of this machine."""

    def __init__(self, inside: Path | None = None) -> None:
        """`inside`: the folder that links must not lead out of."""
        self._inside = inside

    def glob(self, pattern: str) -> Iterator[str]:
        return glob.iglob(pattern)  # noqa: PTH207 - an absolute pattern

    def isfile(self, path: str) -> bool:
        return Path(path).is_file()

    def info(self, path: str) -> dict[str, Any]:
        status = Path(path).stat()
        return {"size": status.st_size, "mtime": status.st_mtime}

    def open(self, path: str, mode: str = "rb") -> BinaryIO:
        return open_regular(path, inside=self._inside)

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        with self.open(path) as stream:
            stream.seek(start)
            return stream.read(end - start)


def filesystem(
    url: str, storage: Mapping[str, Any], *, allow_outside: bool = False
) -> tuple[Any, str]:
    """The filesystem of a path or URL, and its path there.

    Raises OptionError for a protocol or an option that is not in PROTOCOLS.
    """
    protocol, remote, plain = url.partition("://")
    if not remote or protocol in _LOCAL:
        if storage:
            raise _refused_option(url, next(iter(storage)), "storage is only for URLs")
        path = os.path.abspath(os.path.expanduser(plain or url))  # noqa: PTH100, PTH111 - never raises
        inside = None
        if "*" in path and not allow_outside:
            inside = Path(path.partition("*")[0] + "x").parent
        return LocalShards(inside), path
    if protocol not in PROTOCOLS or "::" in url:
        reason = "chains protocols" if "::" in url else f"has the protocol {brief(protocol)}"
        raise OptionError(
            f"data {brief(url)}",
            reason=f"cannot be reached: it {reason}, which a config may not name",
            hint=f"Use a path, or one of {', '.join(PROTOCOLS)}.",
        )
    _check_options(url, storage, PROTOCOLS[protocol])
    import fsspec

    return fsspec.core.url_to_fs(url, **storage)  # type: ignore[no-any-return]


def paths_at(system: Any, path: str, url: str) -> list[str]:
    """The files that a path stands for, sorted if it has a `*`. Raises OptionError."""
    if "*" not in path:
        return [path]
    if path.count("*") > _MAX_STARS or "**" in path:
        raise OptionError(
            f"data {brief(url)}",
            reason=f"more than {_MAX_STARS} of *, or **",
            hint="Name the folder, and use * for a part of a name.",
        )
    found = list(islice(system.glob(path), MAX_SHARDS + 1))
    _check_count(len(found), url)
    return sorted(found)


def expand_braces(text: str) -> list[str]:
    """All names that `a{00..02}b` or `{x,y}` stands for; zeros are kept. Raises OptionError."""
    parts = re.split(r"(\{[^}]*\}?)", text[: MAX_PATH + 1])
    if len(text) > MAX_PATH:
        _refuse_braces(text, f"longer than {MAX_PATH} characters")
    choices = [_choices(one, text) if one.startswith("{") else [one] for one in parts]
    count = 1
    for one in choices:
        count *= len(one)
        _check_count(count, text)
    if count * len(text) > _MAX_NAMES:
        _refuse_braces(text, f"stands for names of more than {_MAX_NAMES} characters")
    return ["".join(one) for one in product(*choices)]


def _choices(braces: str, text: str) -> list[str]:
    inner = braces[1:-1]
    first, dots, last = inner.partition("..")
    numeric = inner.isascii() and first.isdecimal() and last.isdecimal()
    if numeric and max(len(first), len(last)) <= _MAX_DIGITS:
        numbers = range(int(first), int(last) + 1)
        _check_count(len(numbers), text)
        choices = [str(number).zfill(len(first)) for number in numbers]
    else:
        choices = [] if dots else inner.split(",")
    if not braces.endswith("}") or not choices:
        _refuse_braces(text, "braces must be {000..099} or {a,b}")
    return choices


def _refuse_braces(text: str, reason: str) -> NoReturn:
    raise OptionError(f"data {brief(text)}", reason=reason, hint="Correct it.")


def _check_count(count: int, url: str) -> None:
    if count > MAX_SHARDS:
        raise OptionError(
            f"data {brief(url)}",
            reason=f"stands for more than {MAX_SHARDS} shards",
            hint="Name fewer shards.",
        )


def _check_options(url: str, storage: Mapping[str, Any], allowed: _Options, name: str = "") -> None:
    for key, value in storage.items():
        path, kind = f"{name}{key}", allowed.get(key)
        if kind is None:
            raise _refused_option(url, path, f"a config may set {', '.join(allowed) or 'nothing'}")
        if isinstance(kind, Mapping):
            if not isinstance(value, Mapping):
                raise _refused_option(url, path, "must be a mapping")
            _check_options(url, value, kind, f"{path}.")
        elif isinstance(kind, tuple):
            if value not in kind:
                raise _refused_option(url, path, f"must be one of {', '.join(kind)}")
        elif kind is dict:
            if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
                raise _refused_option(url, path, "must be a mapping of texts")
        elif type(value) is not kind:
            raise _refused_option(url, path, f"must be {_KINDS[kind]}")


_KINDS = {bool: "true or false", str: "text", int: "a whole number"}


def _refused_option(url: str, name: str, reason: str) -> OptionError:
    return OptionError(
        f"config key {brief(f'data.storage.{name}')} for {brief(url)}",
        reason=reason,
        hint="Remove it, or set it in the environment or fsspec's own config.",
    )
