"""From a path or a Hub id to a local file or folder; does not look at what is inside."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from imageprompt.core import bundled
from imageprompt.core.errors import NotFoundError

Location = str | os.PathLike[str]
"""A local path, "owner/repo[/sub/path]" on the Hub, or "bundled[/sub/path]" in a stack."""

PARTS = ("content", "style")
"""The adapters of a file that holds a pair; FILE#content and FILE#style name them."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<path>[^\\:]+))?")  # no drive of Windows


@dataclass(frozen=True, kw_only=True)
class HubId:
    """`owner/repo`, and a path inside it ("" is the repository itself)."""

    repo: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}" if self.path else self.repo


def hub_id(location: Location) -> HubId | None:
    """Parse "owner/repo[/sub/path]"; None if `location` can only be a local path."""
    text = os.fspath(location)
    found = _HUB_ID.fullmatch(text) if isinstance(location, str) and text.isprintable() else None
    if found is None or ".." in text.split("/"):
        return None
    return HubId(repo=found["repo"], path=(found["path"] or "").strip("/"))


def part_of(location: Location, part: str) -> str:
    """The name of one adapter of a file that holds a pair."""
    return f"{os.fspath(location)}#{part}"


def split_part(location: Location) -> tuple[str, str]:
    """A location without its part, and the part; "" where it names none."""
    name = os.fspath(location)
    before, _, part = name.rpartition("#")
    return (before, part) if before and part in PARTS else (name, "")


def locate_file(location: Location, *, cached_only: bool = False) -> Path:
    """The local path of a file given as a path or as "owner/repo/sub/file" on the Hub.

    A local file takes precedence. `cached_only`: never download, use the Hub cache alone.
    Raises NotFoundError.
    """
    local = _local(location)
    if local is not None:
        if not local.is_file():  # a folder, or a pipe or device, which may never end
            raise NotFoundError(
                f"{os.fspath(location)!r}",
                reason=_not_a_file(local),
                hint="Give the path of the file itself.",
            )
        return local
    remote = hub_id(location)
    if remote is None or not remote.path:
        raise _no_such_path(location, "owner/repo/sub/file")
    with _hub_errors(remote, location, cached_only):
        return _fetch_file(remote, cached_only=cached_only)


def locate_folder(location: Location, *, cached_only: bool = False) -> Path:
    """The local path of a folder given as a path or as "owner/repo/sub/folder" on the Hub.

    From a Hub folder only configuration and safetensors files are downloaded, no pickles.
    Raises NotFoundError.
    """
    local = _local_folder(location)
    if local is not None:
        return local
    remote = hub_id(location)
    if remote is None:
        raise _no_such_path(location, "owner/repo/sub/folder")
    from huggingface_hub import snapshot_download

    inside = f"{remote.path}/" if remote.path else ""
    with _hub_errors(remote, location, cached_only):
        root = snapshot_download(
            remote.repo,
            allow_patterns=[f"{inside}*.json", f"{inside}*.txt", f"{inside}*.safetensors"],
            local_files_only=cached_only,
        )
    folder = Path(root) / remote.path
    if not folder.is_dir():
        raise NotFoundError(
            f"{remote}",
            reason=f"{remote.repo} has no such folder with a safetensors model",
            hint="Check its name on the Hub.",
        )
    return folder


def locate_pipeline(location: Location, *, cached_only: bool = False) -> Path:
    """The local folder of a diffusers pipeline, given as a path or as "owner/repo" on the Hub.

    From a Hub repository only the parts in its `model_index.json` are downloaded. Raises
    NotFoundError.
    """
    folder = _local_folder(location)
    if folder is None:
        remote = hub_id(location)
        if remote is None or remote.path:
            raise _no_such_path(location, "owner/repo")
        from diffusers import DiffusionPipeline

        with _hub_errors(remote, location, cached_only), _silent_diffusers():
            folder = Path(DiffusionPipeline.download(remote.repo, local_files_only=cached_only))
    if not os.path.isfile(folder / "model_index.json"):  # noqa: PTH113 - never raises
        raise NotFoundError(
            f"base {os.fspath(location)!r}",
            reason="not a diffusers pipeline folder (it has no model_index.json)",
            hint="Give a folder written by save_pretrained.",
        )
    return folder


def _fetch_file(remote: HubId, *, cached_only: bool) -> Path:
    """The file in the cache, updated first if the Hub can be reached.

    One request tests the connection: the client itself would retry for half a minute.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    unreachable = None
    if not cached_only:
        try:
            get_hf_file_metadata(hf_hub_url(remote.repo, remote.path))
        except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError):
            raise
        except Exception as error:  # no network, a proxy, a time-out, status 500: many types
            unreachable = error
    try:
        offline = cached_only or unreachable is not None
        return Path(hf_hub_download(remote.repo, remote.path, local_files_only=offline))
    except errors.LocalEntryNotFoundError:
        raise unreachable or errors.LocalEntryNotFoundError("not in the cache") from None


_SHARES = ("\\\\", "//?", "//.")
"""How paths of Windows to other computers and devices begin."""

MAX_NAME = 255  # characters of a file's name
MAX_ENTRIES = 2000
"""Names of a folder that are looked at for a suggestion: it may have millions."""


def _entries(folder: Path) -> list[str]:
    """Names in a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, MAX_ENTRIES)]
    except OSError:
        return []


def _not_a_file(path: Path) -> str:
    if not path.is_dir():
        return "not a regular file"
    inside = sorted(_entries(path))[:5]
    return "is a folder, not a file" + (f" (it contains {', '.join(inside)})" if inside else "")


def _local(location: Location) -> Path | None:
    text = os.fspath(location)
    if not text or text.startswith(_SHARES):  # looking for it would log in there
        raise NotFoundError(
            f"{text!r}",
            reason="a folder on another computer" if text else "no name was given",
            hint="Give a path on this computer.",
        )
    try:
        path = Path(location).expanduser()
        if path.exists():
            return path
        if path.is_symlink():
            raise no_such_file(path)
        return _in_bundled_stack(location)
    except (OSError, ValueError, RuntimeError) as error:  # NUL, name too long, no access, ~nobody
        reason = getattr(error, "strerror", None) or str(error)
        raise NotFoundError(
            f"{text!r}",
            reason=f"not a usable path ({reason.rstrip('.')})",
            hint="Check the path.",
        ) from error


def _in_bundled_stack(location: Location) -> Path | None:
    """A bundled stack, or a path in it such as `bundled/image_encoder`."""
    name, _, inside = os.fspath(location).partition("/")
    if name not in bundled.FOLDERS or ".." in inside.split("/"):
        return None
    path = bundled.folder(name) / inside
    return path if path.exists() else None


def no_such_file(path: Path) -> NotFoundError:
    """The error for a local path that does not exist, or for a broken link."""
    if path.is_symlink():
        return NotFoundError(
            str(path),
            reason=f"a link to {path.readlink()}, which does not exist",
            hint="Download the file it points to.",
        )
    return NotFoundError(str(path), reason="no such file", hint="Check the path.")


def _local_folder(location: Location) -> Path | None:
    local = _local(location)
    if local is not None and not local.is_dir():
        raise NotFoundError(
            f"{os.fspath(location)!r}",
            reason="is a file, not a folder",
            hint="Give a model folder in the diffusers layout.",
        )
    return local


def _no_such_path(location: Location, form: str) -> NotFoundError:
    return NotFoundError(
        f"{os.fspath(location)!r}",
        reason=f"no such path, and not a Hub id of the form {form}",
        hint=_suggestion(location) or "Check the path.",
    )


def _suggestion(location: Location) -> str:
    """ "Did you mean ...?" if a file or folder nearby has a similar name, else ""."""
    path = Path(location).expanduser()
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    names = _entries(missing.parent)
    close = difflib.get_close_matches(missing.name[:MAX_NAME], names, n=3, cutoff=0.6)
    return _candidates([str(missing.with_name(name)) for name in close])


def _candidates(names: list[str]) -> str:
    return f"Did you mean {' or '.join(map(repr, names[:3]))}?" if names else ""


@contextmanager
def _silent_diffusers() -> Iterator[None]:
    """Silence its warnings about a failure that our own error explains."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


_NOT_DOWNLOADED = (
    "not in the Hub cache, and a recipe alone does not start a download",
    "Name it yourself (--base, --adapter) to download it.",
)


@contextmanager
def _hub_errors(remote: HubId, location: Location, cached_only: bool) -> Iterator[None]:
    """Turn whatever the Hub client raises into one NotFoundError with a hint."""
    try:
        yield
    except NotFoundError:
        raise
    except Exception as error:  # no network, a proxy, a time-out, a full disk: many types
        # diffusers wraps the error of the client
        cause = error.__cause__ if type(error) is OSError and error.__cause__ else error
        reason, hint = _NOT_DOWNLOADED if cached_only else _explain(cause, remote)
        raise NotFoundError(
            f"{os.fspath(location)!r}",
            reason=f"no such local path, and {reason}",
            hint=_suggestion(location) or hint,
        ) from error


def _explain(error: BaseException, remote: HubId) -> tuple[str, str]:
    """The reason and the hint for an error of the Hub client."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub} restricts access to {remote.repo}",
            "Accept its terms on the Hub, then log in with `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub} has no repository {remote.repo}, or it is private",
            "Check the name; log in with `hf auth login` if it is private.",
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return (
            f"{hub} has no file {remote.path or 'model_index.json'} in {remote.repo}",
            _remote_suggestion(remote) or "Check the file's name on the Hub.",
        )
    if isinstance(error, errors.HFValidationError):
        return "not a valid Hub id", "Check the name."
    if isinstance(error, errors.HfHubHTTPError):
        return (
            f"{hub} answered with status {error.response.status_code}",
            "Try again later, or download it by other means and give its path.",
        )
    offline = constants.is_offline_mode()
    return (
        "not in the Hub cache, and "
        + ("HF_HUB_OFFLINE is set" if offline else f"{hub} cannot be reached"),
        "Go online once, or download it by other means and give its path.",
    )


def _remote_suggestion(remote: HubId) -> str:
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(remote.repo)
    except Exception:  # a failed suggestion must not hide the real error
        return ""
    close = difflib.get_close_matches(remote.path, files, n=3, cutoff=0.6)
    return _candidates([f"{remote.repo}/{name}" for name in close])
