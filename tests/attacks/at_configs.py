"""Configs: YAML that is endless, tagged or recursive, odd files, and --set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .attack import Attack, Door, command, content

NEEDED = "data: pictures\noutput: out\n"

# ── YAML ────────────────────────────────────────────────────────────────────────────────────────


def laughs(levels: int, width: int, kind: str) -> str:
    """Aliases of aliases: width**levels values in a few hundred bytes."""
    lines = ["l0: &l0 " + ("{a: 1}" if kind == "mapping" else "[lol]")]
    for level in range(1, levels):
        aliases = ", ".join([f"*l{level - 1}"] * width)
        if kind == "merge":
            lines.append(
                f"l{level}: &l{level} {{<<: [{aliases.replace('*l0', '*m')}], k{level}: 1}}"
            )
        else:
            lines.append(f"l{level}: &l{level} [{aliases}]")
    if kind == "merge":
        lines[0] = "m: &m {a: 1}\nl0: &l0 {a: 1}"
    return "\n".join(lines) + "\n"


def config(text: str, name: str, says: str, **more: Any) -> Attack:
    return Attack(name, content(NEEDED + text, "config.yaml"), says, **more)


def _bombs() -> Iterator[Attack]:
    large = "too large for a config"
    for levels, width in ((4, 30), (10, 9), (32, 2), (60, 2)):
        for kind in ("list", "mapping", "merge"):
            text = laughs(levels, width, kind)
            yield config(text, f"aliases {width}^{levels} {kind}", large)
    yield config("x: &x [1]\ny: [" + "*x, " * 20_000 + "]\n", "20,000 aliases of one value", large)
    yield config("".join(f"k{n}: 1\n" for n in range(30_000)), "30,000 keys", "limit")
    yield config("".join(f"k{n}: 1\n" for n in range(700_000)), "700,000 keys", "limit")
    yield config("data2: [" + "1," * 20_000 + "]\n", "a list of 20,000", large)
    for depth in (17, 100, 5_000, 50_000):
        yield config("x: " + "[" * depth + "]" * depth, f"lists nested {depth} deep", large)
        yield config("x: " + "{a: " * depth + "}" * depth, f"mappings nested {depth} deep", large)
        yield config("x:\n  " + "- " * depth + "1\n", f"dashes nested {depth} deep", large)
        yield config("x: " + "[" * depth, f"{depth} open brackets", "")
        yield config("? " * depth + "a\n", f"{depth} question marks", "")
    yield config("x: " + "a" * 2_000_000, "a text of 2 MB", "bytes")
    yield config("#" * 3_000_000, "a comment of 3 MB", "bytes")
    yield config("steps: " + "a " * 100_000, "words where a number belongs", "whole number")
    yield config('output: "' + "\\x41" * 60_000 + "\n", "a string without its end", "not valid")
    yield config("%TAG ! tag:a,2000:\n" * 10_000, "10,000 directives", "not valid")


def _numbers() -> Iterator[Attack]:
    for key in ("steps", "seed", "learning_rate", "tokens", "unknown"):
        for digits in (400, 5_000, 100_000):
            yield config(f"{key}: {'9' * digits}\n", f"{key} of {digits} digits", "a number of")
    yield config("steps: 0x" + "f" * 90_000, "hexadecimal of 90,000 digits", "a number of")
    yield config("steps: 0b" + "1" * 90_000, "binary of 90,000 digits", "a number of")
    yield config("steps: 1" + ":59" * 50_000, "base 60 of 50,000 places", "a number of")
    yield config("steps: 0b_\n", "a binary number without digits", "not valid YAML")
    yield config("learning_rate: 1." + "0" * 90_000 + "\n", "90,000 decimals", "a number of")
    for number in (".inf", "-.inf", ".nan", "1e999", "'1e999'", "1.0e+999"):
        yield config(f"learning_rate: {number}\n", f"learning rate {number}", "must be a number")
        yield config(f"validation: {{scale: {number}}}\n", f"scale {number}", "must be a number")
        yield config(f"steps: {number}\n", f"steps {number}", "must be a number")
    for number in ("9223372036854775808", "1e30", "-99999999999999999999"):
        yield config(f"warmup: {number}\n", f"warmup {number}", "must be")
    for key in ("tokens", "depth", "heads", "width"):
        yield config(f"{key}: 1000000000\n", f"{key} of a billion", "must be at most")


def _shapes() -> Iterator[Attack]:
    yield config("? [a, b]\n: 1\n", "a list as key", "is not text")
    yield config("? {a: 1}\n: 1\n", "a mapping as key", "is not text")
    yield config("? &k [*k]\n: 1\n", "a recursive key", "contains itself")
    for key in ("1", "1.5", "null", "yes", "~", "0x10"):
        yield config(f"{key}: 1\n", f"the key {key}", "is not text")
        yield config(f"drop: {{{key}: 1}}\n", f"the inner key {key}", "is not text")
    yield config("x: &x [*x]\n", "a list that contains itself", "contains itself")
    yield config("x: &x {a: *x}\n", "a mapping that contains itself", "contains itself")
    yield config("x: &x {<<: *x}\n", "a merge of itself", "contains itself")
    yield config("x: *nowhere\n", "an alias of nothing", "not valid YAML")
    yield config("x: &a 1\ny: &a 2\n", "one anchor twice", "not valid YAML")
    yield config("<<: 1\n", "a merge with a number", "not valid YAML")
    yield config("<<: [[a]]\n", "a merge with a list", "not valid YAML")
    yield config("steps: 1\nsteps: 2\n", "a key twice", "appears twice")
    yield config("drop: {image: 0, image: 1}\n", "an inner key twice", "appears twice")
    deep = "buckets: [[{a: [{b: 1, b: 2}]}]]\n"
    yield config(deep, "a key twice deep inside", "appears twice")
    for date in ("2020-13-45", "2020-01-01 99:99:99", "0000-00-00", "9999-99-99T99:99:99+99:99"):
        yield config(f"steps: {date}\n", f"the date {date}", "whole number")
    yield config("---\na: 1\n---\nb: 2\n", "two documents", "not valid YAML")
    yield config("k" * 200_000 + ": 1\n", "a key of 200,000 characters", "")
    yield config("? " + "k" * 200_000 + "\n: 1\n", "a complex key of 200,000 characters", "unknown")
    yield config("variant: [" + "x, " * 5_000 + "]\n", "5,000 values for text", "must be text")
    escapes = '"\\e[2J\\u202e\\x9b\\n"'
    yield config(f"{escapes}: 1\n", "terminal escapes in a key", "unknown key")
    yield config(f"steps: {escapes}\n", "terminal escapes in a value", "whole number")
    yield config(f"output: {escapes}\nsteps: 0\n", "terminal escapes and a key twice", "twice")
    yield config("schedule: \u202ecosine\n", "a bidi mark in a value", "one of")


TAGS = (
    "!!python/object/apply:os.system ['touch ran']",
    "!!python/object/new:os.system ['touch ran']",
    "!!python/object:os.system {}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!python/object/apply:subprocess.check_output [[touch, ran]]",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2020-99-99",
    "!!int ''",
    "!!float ''",
    "!!bool maybe",
    "!!null [1]",
    "!!str [1]",
    "!!map [1]",
    "!!merge x",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch ran']",
    "!local x",
    "!" + "a" * 100_000 + " x",
)


def _tags() -> Iterator[Attack]:
    for tag in TAGS:
        yield config(f"x: {tag}\n", f"the tag {tag[:60]}", "not valid YAML")
        yield config(f"? {tag}\n: 1\n", f"the tag {tag[:60]} as key", "not valid YAML")


def _bytes() -> Iterator[Attack]:
    plain = NEEDED + "steps: 3\n"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        yield Attack(encoding, content(plain.encode(encoding)), "config")
    yield Attack("a UTF-8 mark", content(plain.encode("utf-8-sig")), "steps=3", "read")
    yield Attack("invalid UTF-8", content(plain.encode() + b"x: \xff\xfe\n"), "UTF-8")
    yield Attack("a NUL", content(plain.encode() + b"x: \0\n"), "not valid YAML")
    yield Attack("a C1 control", content((plain + "x: \x86\n").encode()), "not valid YAML")
    yield config('base: "\\ud800\\udc00"\n', "halves of characters", "half a character")
    yield Attack("a pickle", content(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."), "UTF-8")
    yield Attack("random bytes", content(bytes(range(256)) * 100), "UTF-8")
    yield Attack("nothing", content(b""), "no keys")


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "config.yaml")
    return folder / "config.yaml"


def link_to(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "config.yaml").symlink_to(target)
        return folder / "config.yaml"

    return make


def sparse(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.touch()
    os.truncate(path, 2**31)
    return path


def _files() -> Iterator[Attack]:
    yield Attack("a pipe", fifo, "not a regular file")
    for target in ("/dev/zero", "/dev/stdin", "/dev/full", "/dev/tty", "/dev/random"):
        yield Attack(f"a link to {target}", link_to(target), "config")
    yield Attack("a link to itself", link_to("config.yaml"), "cannot be read")
    yield Attack("a link to nothing", link_to("nowhere"), "no such file")
    yield Attack("a folder", lambda folder: folder, "a folder")
    yield Attack("2 GiB of zeros", sparse, "limit")
    yield Attack(
        "a user that is none", lambda _: Path("~nosuchuser/config.yaml"), "cannot be found"
    )
    yield Attack("a name of 5,000 letters", lambda folder: folder / ("a" * 5_000), "")
    yield Attack("a NUL in the name", lambda folder: folder / "a\0b", "cannot be read")
    yield Attack("an escape in the name", lambda folder: folder / "\x1b[2J.yaml", "no such file")


def _load(path: Path, out: Path) -> object:
    from imageprompt.training.config.config import TrainingConfig

    return TrainingConfig.load(path)


def _override(text: str, out: Path) -> object:
    from imageprompt.training.config.config import TrainingConfig

    return TrainingConfig.load({"data": "pictures", "output": str(out)}, [text])


def override(text: str, name: str, says: str) -> Attack:
    return Attack(name, lambda folder: text, says)


def _overrides() -> Iterator[Attack]:
    yield override("steps=!!python/object/apply:os.system ['touch ran']", "a tag", "not valid YAML")
    yield override("steps=" + "9" * 50_000, "50,000 digits", "a number of")
    yield override("steps=" + "[" * 5_000, "5,000 brackets", "too large")
    yield override("x=&x [*x]", "a recursive alias", "contains itself")
    yield override("x=? [a]\n: 1", "a list as key", "is not text")
    yield override("a." * 500_000 + "b=1", "a million dots", "unknown key")
    yield override("a" * 500_000, "half a million letters", "key=value")
    yield override("b" * 500_000 + "=1", "half a million letters as key", "unknown key")
    yield override("steps=" + "a" * 1_000_000, "a megabyte", "too large")
    yield override("\x1b[2J=1", "an escape as key", "unknown key")
    yield override("steps=\x1b[2J", "an escape as value", "not valid YAML")
    yield override("drop.image.x.y=1", "a key inside a number", "must be a number")
    yield override("output=~nosuchuser/x", "an output of no user", "output")


def _of_a_command() -> Iterator[Attack]:
    """A few of each kind, through the command that a person runs."""
    yield from _files()
    yield from list(_bombs())[::9]
    yield from list(_tags())[::6]
    yield from list(_shapes())[::8]


IMPORTS = ("tests.attacks.loaded_config",)
DOORS = (
    Door("config: sizes", _load, tuple(_bombs()), IMPORTS),
    Door("config: numbers", _load, tuple(_numbers()), IMPORTS),
    Door("config: shapes", _load, tuple(_shapes()), IMPORTS),
    Door("config: tags", _load, tuple(_tags()), IMPORTS),
    Door("config: bytes", _load, tuple(_bytes()), IMPORTS),
    Door("config: files", _load, tuple(_files()), IMPORTS),
    Door(
        "train --dry-run with a config",
        command("train", "{it}", "--dry-run"),
        tuple(_of_a_command()),
        (*IMPORTS, "imageprompt.cli", "imageprompt.training.estimate"),
    ),
    Door("--set", _override, tuple(_overrides()), IMPORTS),
)
