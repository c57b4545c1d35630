"""What a server is told when it starts, and what a request may cost."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

from imageprompt.core.atomic_files import check_folder
from imageprompt.core.errors import OptionError
from imageprompt.core.schema import Option
from imageprompt.generation import option_values as values
from imageprompt.library import paths
from imageprompt.loading.recipe import limits as recipe_limits
from imageprompt.loading.recipe.recipe import check_limit

_models = partial(Option, group=values.MODELS)
_network = partial(Option, group="network and keys")
_keeping = partial(Option, group="queue and files")

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest values that a request may have."""

    num_images: int = 16
    steps: int = 150
    side: int = 2048
    pixels: int = 2048**2
    references: int = 16
    """Also the most pictures of one reference."""
    sources: int = 64
    """Pictures, masks and tokens of one request, in all."""
    workflow_pictures: int = 64
    """That a workflow makes: seeds times values to spread over."""
    prompt_characters: int = 8000
    json_bytes: int = 2**20
    picture_json_bytes: int = 48 * 2**20
    """Of JSON with pictures in base64, which OpenAI's and A1111's APIs have."""
    body_bytes: int = 96 * 2**20
    picture_bytes: int = 32 * 2**20
    picture_pixels: int = 32_000_000
    parts: int = 64
    body_seconds: float = 30.0
    """How long a body may stop on its way."""
    bodies_bytes: int = 512 * 2**20
    """Of all bodies that are being read."""
    queued_jobs: int = 500
    queued_jobs_of_one_key: int = 200
    uploaded_bytes_of_one_key: int = 8 * 2**30
    """Of the uploads that are kept."""
    queued_work: float = 500 * 50 * 1024.0**2
    """Pixels × steps of the jobs that wait."""
    running_batch_pixels: int = recipe_limits.MAX_BATCH_PIXELS
    streams: int = 500
    """Event streams that are open."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `imageprompt serve`."""

    base: values.Base = None
    adapter: Annotated[
        Sequence[str],
        _models(
            "an adapter beside the base's own, under a name for requests; may be repeated",
            "NAME=FILE_OR_HUB_ID",
            repeat=True,
        ),
    ] = ()
    faces: Annotated[
        str | None,
        _models("insightface model pack that finds the faces for FaceID adapters", "PACK"),
    ] = None
    library: values.LibraryFolder = None
    dtype: values.Dtype = None
    device: values.Device = None
    runtime: Annotated[
        str | None,
        _models("what computes an exported denoiser (default: the folder's)", "NAME"),
    ] = None
    exported: Annotated[
        str | None, _models("folder of `imageprompt export`, instead of PyTorch", "DIR")
    ] = None
    batch_size: Annotated[
        int,
        _models("pictures of several requests denoised together (default 8)", "N", ge=1, le=64),
    ] = 8

    host: Annotated[
        str, _network("address to listen on (default 127.0.0.1); another one needs --keys", "HOST")
    ] = "127.0.0.1"
    port: Annotated[
        int, _network("port (default 8000; 0 for any that is free)", "N", ge=0, le=65535)
    ] = 8000
    allow_host: Annotated[
        Sequence[str],
        _network(
            "a name under which clients reach the server, beside addresses and localhost; may be "
            "repeated",
            "NAME",
            repeat=True,
        ),
    ] = ()
    keys: Annotated[
        str | None, _network("file of the keys that clients need (default: none)", "FILE")
    ] = None
    requests_per_minute: Annotated[
        int | None,
        _network("requests that one key may make (default: no limit)", "N", ge=1, le=1_000_000),
    ] = None

    data: Annotated[
        str | None,
        _keeping("folder of jobs and pictures (default: in your data folder)", "DIR"),
    ] = None
    queue: Annotated[int, _keeping("jobs that may wait (default 500)", "N", ge=1, le=100_000)] = 500
    keep_uploads: Annotated[
        float,
        _keeping(
            "hours that an upload is kept which no job needs (default 24)", "H", ge=0, le=87_600
        ),
    ] = 24.0
    keep_jobs: Annotated[
        float | None,
        _keeping(
            "hours that a job which has ended is kept, with its pictures (default: for ever)",
            "H",
            ge=1,
            le=876_000,
        ),
    ] = None
    drain: Annotated[
        float,
        _keeping(
            "seconds that running jobs get to end after SIGTERM (default 60)", "S", ge=0, le=3600
        ),
    ] = 60.0
    limits: Limits = field(default_factory=Limits)

    def check(self) -> Settings:
        """The settings themselves. Raises OptionError for what can be seen before loading."""
        for name, low, high in (
            ("port", 0, 65535),
            ("batch_size", 1, 64),
            ("queue", 1, 100_000),
            ("requests_per_minute", 1, 1_000_000),
            ("keep_uploads", 0, 87_600),
            ("keep_jobs", 1, 876_000),
            ("drain", 0, 3600),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionError(
                    f"--{name.replace('_', '-')} {value}",
                    reason=f"not between {low} and {high}",
                )
        if self.dtype is not None:
            check_limit("dtype", recipe_limits.DTYPE, self.dtype)
        if self.device is not None:
            check_limit("device", recipe_limits.DEVICE, self.device)
        _ = self.adapters
        if self.keys is None and not is_loopback(self.host):
            raise OptionError(
                f"--host {self.host} without --keys",
                reason="everybody who reaches this address could use the server",
                hint="Make a key first: imageprompt serve --keys FILE --add-key NAME.",
            )
        check_folder(self.data_folder)
        return self

    @cached_property
    def adapters(self) -> Mapping[str, str]:
        """Name -> file or Hub id, of those beside the base's own. Raises OptionError."""
        import re

        found: dict[str, str] = {}
        for given in self.adapter:
            name, equals, source = given.partition("=")
            if not equals or not source or not re.fullmatch(NAME, name):
                raise OptionError(
                    f"--adapter {given!r:.100}",
                    reason="not NAME=FILE_OR_HUB_ID",
                    hint="Write --adapter mine=./mine.safetensors.",
                )
            if name in found:
                raise OptionError(f"--adapter {name}", reason="given twice")
            found[name] = source
        return found

    @property
    def data_folder(self) -> Path:
        """The folder of jobs and pictures; by default beside the style library."""
        if self.data is not None:
            return paths.expanded(self.data)
        return paths.default_folder().parent / "served"

    @property
    def keys_file(self) -> Path:
        assert self.keys is not None
        return paths.expanded(self.keys)

    @property
    def library_folder(self) -> Path:
        return paths.default_folder() if self.library is None else paths.expanded(self.library)


def is_loopback(host: str) -> bool:
    """Can only this machine reach the address?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Is it an IP address, and not a name that somebody's DNS server can point anywhere?"""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
