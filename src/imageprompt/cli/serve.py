"""`imageprompt serve`: the API and the page, and the keys of those who may use them."""

from __future__ import annotations

import argparse
import logging
import time
from importlib.util import find_spec
from pathlib import Path

from imageprompt.cli import flags
from imageprompt.core.console import (
    PROGRAM,
    Parser,
    add_json,
    describe,
    note,
    print_json,
    print_lines,
    print_table,
    provided,
)
from imageprompt.core.errors import OptionError
from imageprompt.core.schema import options as fields_of
from imageprompt.serve.settings import Settings

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def add_serve(command: Parser) -> None:
    describe(
        command,
        _serve,
        "imageprompt serve",
        "imageprompt serve --port 8000 --data ./served --library ./styles",
        "imageprompt serve --base ./stable-diffusion-v1-5 \\",
        "    --adapter plus=h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
        "imageprompt serve --keys keys.json --add-key alice",
        "imageprompt serve --keys keys.json --host 0.0.0.0 --allow-host pictures.example.org",
        notes="Prints its address when jobs are taken. SIGTERM or Ctrl-C ends it when the jobs "
        "that run are done,\na second one at once; what waits is kept for the next start.",
    )
    for title, fields in flags.by_group(Settings):
        group = command.add_argument_group(title)
        for field in fields:
            flags.add_option(group, field)
    keys = command.add_argument_group("keys (with --keys; nothing is served)")
    one = keys.add_mutually_exclusive_group()
    one.add_argument("--add-key", metavar="NAME", help="make a key and print it, once")
    one.add_argument("--remove-key", metavar="NAME", help="delete a key")
    one.add_argument("--list-keys", action="store_true", help="list the names of the keys")
    command.add_argument(
        "--verbose", action="store_true", help="log each request: route, status, sizes, time"
    )
    add_json(command)


def _serve(options: argparse.Namespace) -> int:
    settings = Settings(**provided(options, *(field.name for field in fields_of(Settings))))
    if options.add_key is not None or options.remove_key is not None or options.list_keys:
        return _keys(options, settings)
    settings.check()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise OptionError(
            "the server",
            reason=f"the package {missing[0]} is not installed",
            hint="Install what it needs: pip install imageprompt[serve].",
        )
    from imageprompt.serve.server import serve

    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")

    def ready(address: str) -> None:
        if options.json:
            print_json({"address": address})
        else:
            print_lines(f"{address} is ready")
        _flush()

    serve(settings, ready, lambda line: note(f"{PROGRAM}: {line}"))
    return 0


def _flush() -> None:
    import sys

    sys.stdout.flush()


def _keys(options: argparse.Namespace, settings: Settings) -> int:
    from imageprompt.serve.keys import Keys

    if settings.keys is None:
        raise OptionError(
            "--add-key, --remove-key and --list-keys",
            reason="need the file of the keys",
            hint="Give --keys FILE.",
        )
    keys = Keys(Path(settings.keys_file))
    if options.add_key is not None:
        secret = keys.add(options.add_key)
        if options.json:
            print_json({"name": options.add_key, "key": secret})
        else:
            note(f"{PROGRAM}: the key of {options.add_key!r}; it is shown this once")
            print_lines(secret)
    elif options.remove_key is not None:
        keys.remove(options.remove_key)
    else:
        rows = [
            {"name": key.name, "made": time.strftime("%Y-%m-%d", time.gmtime(key.created))}
            for key in keys.all()
        ]
        if rows or options.json:
            print_table(rows, options.json)
    return 0
