"""From a path or a Hub id to a local file or folder; knows where, not what is inside."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imageprompt.core.errors import NotFoundError

Reference = str | os.PathLike[str]

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<path>[^\0\\]+))?")


@dataclass(frozen=True, kw_only=True)
class HubId:
    """`owner/repo`, and what is meant inside it ("" is the repository itself)."""

    repo: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.path}" if self.path else self.repo


def hub_id(reference: Reference) -> HubId | None:
    """`reference` read as "owner/repo[/sub/path]"; None where it can only be a local path."""
    text = os.fspath(reference)
    found = _HUB_ID.fullmatch(text) if isinstance(reference, str) else None
    if found is None or ".." in text.split("/"):
        return None
    return HubId(repo=found["repo"], path=(found["path"] or "").strip("/"))


def locate_file(reference: Reference, *, cached_only: bool = False) -> Path:
    """The local path of a file given as a path or as "owner/repo/sub/file" on the Hub.

    What exists locally wins. `cached_only`: a Hub file must have been fetched before.
    Raises NotFoundError.
    """
    local = _local(reference)
    if local is not None:
        if not local.is_file():  # a folder, or a pipe or device, which may never end
            inside = sorted(p.name for p in local.iterdir()) if local.is_dir() else []
            raise NotFoundError(
                f"{os.fspath(reference)!r}",
                reason="it is no file"
                + (f", but a folder with {', '.join(inside[:5])}" * bool(inside)),
                hint="Give the path of the file itself.",
            )
        return local
    remote = hub_id(reference)
    if remote is None or not remote.path:
        raise _no_such_path(reference, "owner/repo/sub/file")
    with _hub_errors(remote, reference, cached_only):
        return _fetch_file(remote, cached_only=cached_only)


def locate_folder(reference: Reference, *, cached_only: bool = False) -> Path:
    """The local path of a folder given as a path or as "owner/repo/sub/folder" on the Hub.

    Of a Hub folder the configuration and safetensors files are fetched, no pickles.
    Raises NotFoundError.
    """
    local = _local_folder(reference)
    if local is not None:
        return local
    remote = hub_id(reference)
    if remote is None:
        raise _no_such_path(reference, "owner/repo/sub/folder")
    from huggingface_hub import snapshot_download

    inside = f"{remote.path}/" if remote.path else ""
    with _hub_errors(remote, reference, cached_only):
        root = snapshot_download(
            remote.repo,
            allow_patterns=[f"{inside}*.json", f"{inside}*.txt", f"{inside}*.safetensors"],
            local_files_only=cached_only,
        )
    folder = Path(root) / remote.path
    if not folder.is_dir():
        raise NotFoundError(
            f"{remote}",
            reason=f"{remote.repo} has no such folder with a safetensors model in it",
            hint="Check its name on the Hub.",
        )
    return folder


def locate_pipeline(reference: Reference, *, cached_only: bool = False) -> Path:
    """The local folder of a diffusers pipeline, given as a path or as "owner/repo" on the Hub.

    Of a Hub repository only what its `model_index.json` names is fetched. Raises NotFoundError.
    """
    folder = _local_folder(reference)
    if folder is None:
        remote = hub_id(reference)
        if remote is None or remote.path:
            raise _no_such_path(reference, "owner/repo")
        from diffusers import DiffusionPipeline

        with _hub_errors(remote, reference, cached_only), _silent_diffusers():
            folder = Path(DiffusionPipeline.download(remote.repo, local_files_only=cached_only))
    if not (folder / "model_index.json").is_file():
        raise NotFoundError(
            f"base {os.fspath(reference)!r}",
            reason="it has no model_index.json, so it is no diffusers pipeline folder",
            hint="Give the folder that save_pretrained wrote.",
        )
    return folder


def _fetch_file(remote: HubId, *, cached_only: bool) -> Path:
    """The file in the cache, brought up to date where the Hub can be reached.

    The Hub is asked once: its client would try an unreachable one for half a minute.
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


def _local(reference: Reference) -> Path | None:
    try:
        path = Path(reference).expanduser()
        if path.exists():
            return path
        if path.is_symlink():
            raise no_such_file(path)
        return None
    except (OSError, ValueError, RuntimeError) as error:  # NUL, name too long, no access, ~nobody
        raise NotFoundError(
            f"{os.fspath(reference)!r}", reason=f"no usable path ({error})", hint="Check the path."
        ) from error


def no_such_file(path: Path) -> NotFoundError:
    """For a local path that does not exist, or a link whose end does not."""
    if path.is_symlink():
        return NotFoundError(
            str(path),
            reason=f"a link to {path.readlink()}, which does not exist",
            hint="Fetch the file that it points to.",
        )
    return NotFoundError(str(path), reason="no such file", hint="Check the path.")


def _local_folder(reference: Reference) -> Path | None:
    local = _local(reference)
    if local is not None and not local.is_dir():
        raise NotFoundError(
            f"{os.fspath(reference)!r}",
            reason="it is a file where a folder is needed",
            hint="Give the folder of a model in diffusers' layout.",
        )
    return local


def _no_such_path(reference: Reference, form: str) -> NotFoundError:
    return NotFoundError(
        f"{os.fspath(reference)!r}",
        reason=f"there is no such path, and it is no Hub id of the form {form}",
        hint=_suggestion(reference) or "Check the path.",
    )


def _suggestion(reference: Reference) -> str:
    """ "did you mean ..." where something near `reference` has a similar name, else ""."""
    path = Path(reference).expanduser()
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.6)
    return _candidates([str(missing.with_name(name)) for name in close])


def _candidates(names: list[str]) -> str:
    return f"Did you mean {' or '.join(map(repr, names[:3]))}?" if names else ""


@contextmanager
def _silent_diffusers() -> Iterator[None]:
    """It says on the way what the error says in the end."""
    from diffusers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)


_NOT_FETCHED = (
    "it is not in the Hub cache, and nothing is to be fetched here",
    "Name it yourself (--base, --adapter) to have it fetched.",
)


@contextmanager
def _hub_errors(remote: HubId, reference: Reference, cached_only: bool) -> Iterator[None]:
    """Whatever the Hub's client raises becomes one NotFoundError that says what to do."""
    try:
        yield
    except NotFoundError:
        raise
    except Exception as error:  # no network, a proxy, a time-out, a full disk: many types, one end
        # diffusers wraps what the client raised
        cause = error.__cause__ if type(error) is OSError and error.__cause__ else error
        rule, remedy = _NOT_FETCHED if cached_only else _explained(cause, remote)
        raise NotFoundError(
            f"{os.fspath(reference)!r}",
            reason=f"there is no such local path, and {rule}",
            hint=_suggestion(reference) or remedy,
        ) from error


def _explained(error: BaseException, remote: HubId) -> tuple[str, str]:
    """What the Hub's client means, and what to do about it."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub} gates the repository {remote.repo}",
            "Accept its terms on the Hub, then log in with `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub} has no repository {remote.repo}, or a private one",
            "Check the name; log in with `hf auth login` if it is private.",
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return (
            f"{hub} has no file {remote.path or 'model_index.json'} in {remote.repo}",
            _remote_suggestion(remote) or "Check the file's name on the Hub.",
        )
    if isinstance(error, errors.HFValidationError):
        return "it is no valid Hub id", "Check the name."
    if isinstance(error, errors.HfHubHTTPError):
        return (
            f"{hub} answered with status {error.response.status_code}",
            "Try again later, or download it elsewhere and give its path.",
        )
    offline = constants.is_offline_mode()
    return (
        "it is not in the Hub cache, and "
        + ("HF_HUB_OFFLINE is set" if offline else f"{hub} cannot be reached"),
        "Go online once, or download it elsewhere and give its path.",
    )


def _remote_suggestion(remote: HubId) -> str:
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(remote.repo)
    except Exception:  # a suggestion is not worth a second error
        return ""
    close = difflib.get_close_matches(remote.path, files, n=3, cutoff=0.6)
    return _candidates([f"{remote.repo}/{name}" for name in close])
