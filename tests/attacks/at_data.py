"""Training data: paths that run or reach something, lists, folders, captions, and tar shards."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .attack import Attack, Door, outside

Make = Callable[[Path], Any]


@cache
def png(side: int = 16) -> bytes:
    """A picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress((b"\0" + b"\x80" * 3 * side) * side)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def npy(numbers: int = 4) -> bytes:
    """A face embedding."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({numbers},), }}".encode()
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\1\0\0\0" * numbers


def read_all(data: Any, out: Path) -> str:
    """Open a source and read everything; what cannot be read is a line of the result."""
    from imageprompt.core.errors import PictureError
    from imageprompt.training.data.scan import Quarantine
    from imageprompt.training.data.sources import DataOptions, open_data

    options = DataOptions.of(data)
    records = open_data(options)
    quarantine = Quarantine(len(records) + 1, 1, records.problems())
    lines = []
    for index in range(len(records)):
        try:
            record = records.record(index)
            size, _ = record.size_and_bytes()
            record.open_with_hash()
            if record.reference:
                record.open_reference()
            faces = record.id_embeds().shape if record.id_embed else None
            lines.append(f"good: {record.key!a} {size} {faces} {record.text[:50]!a}")
        except PictureError as error:
            quarantine.add(index, str(error))
    return "\n".join([*quarantine.lines(), *lines])


# ── paths and URLs ──────────────────────────────────────────────────────────────────────────────

CHAINS = (
    "simplecache::file:///etc/passwd.tar",
    "filecache::memory://x.tar",
    "blockcache::memory://x.tar",
    "cached::memory://x.tar",
    "zip://x.tar::file:///x.zip",
    "tar://x.tar::file:///x.tar",
    "reference://x.tar::file:///x.json",
    "simplecache::zip://*::https://example.invalid/x.zip::x.tar",
    "memory://x::simplecache::file://y.tar",
    "https://example.invalid/x::filecache::y.tar",
    "s3://bucket/x::python://y.tar",
)
PROTOCOLS = (
    *("reference", "zip", "tar", "libarchive", "dask", "arrow_hdfs", "hdfs", "webhdfs", "smb"),
    *("ftp", "sftp", "ssh", "jupyter", "jlab", "github", "gist", "git", "gdrive", "dropbox"),
    *("async_wrapper", "asynclocal", "asyncwrapper", "generic", "dir", "data", "dbfs", "lakefs"),
    *("wandb", "webdav", "root", "oci", "ocilake", "oss", "box", "dvc", "pyscript", "tosfs"),
    *("simplecache", "filecache", "blockcache", "cached", "adl", "python", "exec", "FILE", "S3"),
    *("javascript", "gopher", "jar", "a.b.c", "__main__", "os", "\x1b[2J"),
)
OPTIONS: tuple[Mapping[str, Any], ...] = (
    {"fs": "file"},
    {"fo": "/etc/passwd"},
    {"target_protocol": "file"},
    {"target_options": {"anon": True}},
    {"cache_storage": "/"},
    {"cache_type": "background"},
    {"cls": "os.system"},
    {"impl": "os.system"},
    {"session": "x"},
    {"credential_process": "touch ran"},
    {"profile": "default"},
    {"cache_regions": True},
    {"default_fill_cache": True},
    {"skip_instance_cache": True},
    {"asynchronous": True},
    {"loop": "x"},
    {"batch_size": 1},
    {"auto_mkdir": True},
    {"protocol": "file"},
    {"simple_templates": False},
    {"client_kwargs": {"verify": "/etc/passwd"}},
    {"client_kwargs": {"api_version": "x"}},
    {"client_kwargs": "x"},
    {"client_kwargs": [1]},
    {"config_kwargs": {"proxies": {"http": "http://example.invalid"}}},
    {"config_kwargs": {"user_agent": "x"}},
    {"key": {"a": 1}},
    {"key": ["touch", "ran"]},
    {"anon": "yes"},
    {"anon": 1},
    {"endpoint_url": None},
    {"__class__": "x"},
    {"": 1},
    {"\x1b[2J": 1},
)


def given(data: Any) -> Make:
    return lambda folder: data


def _urls() -> Iterator[Attack]:
    for url in CHAINS:
        yield Attack(
            f"the chain {url}", given({"path": url, "format": "webdataset"}), "may not name"
        )
    for name in PROTOCOLS:
        yield Attack(f"the protocol {name!a}", given(f"{name}://x/y.tar"), "may not name")
    for options in OPTIONS:
        data = {"path": "s3://bucket/x.tar", "storage": options}
        yield Attack(f"s3 with {options!a}", given(data), "data.storage")
    for url in ("memory://x.tar", "https://example.invalid/x.tar", "gs://b/x.tar", "az://b/x.tar"):
        for options in ({"fs": 1}, {"target_protocol": "file"}, {"client_kwargs": {"cls": "x"}}):
            data = {"path": url, "storage": options}
            yield Attack(f"{url} with {options}", given(data), "data.storage")
    for token in ("/etc/passwd", "browser", {"type": "external_account"}):
        data = {"path": "gs://b/x.tar", "storage": {"token": token}}
        yield Attack(f"a token of Google's {token}", given(data), "data.storage.token")
    local = {"path": "x.tar", "storage": {"auto_mkdir": True}}
    yield Attack("storage for a path", given(local), "only for URLs")


def _braces() -> Iterator[Attack]:
    for braces in (
        "{0..99999999999}",
        "{0..999999999}",
        "{000000000..999999999}",
        "{0..100000}",
        "{0..999}{0..999}{0..999}",
        "{0..9}" * 12,
        "{a,b}" * 40,
        "{a,b}" * 600,
        "{" + "," * 200_000 + "}",
        "{a}" * 1_300,
        "{" * 1_000,
        "{" * 100_000,
        "{0..9",
        "{1..x}",
        "{..}",
        "{9..1}",
        "{-1..3}",
        "{\u0661..\u0663}",
        "{0.." + "9" * 3_000 + "}",
        "{0.." + "9" * 100_000 + "}",
        "*" * 5,
        "*a" * 40,
        "**/",
    ):
        name = f"{braces[:24]} of {len(braces)} characters"
        yield Attack(f"local {name}", lambda folder, b=braces: str(folder / f"a{b}.tar"), "")
        yield Attack(f"memory {name}", given(f"memory://a{braces}.tar"), "")
    yield Attack("a path of 200,000 letters", given("a" * 200_000 + ".tar"), "")
    yield Attack("a path with a NUL", given("a\0b.tar"), "NUL")
    yield Attack("a list of no user", given("~nosuchuser/x.json"), "")
    yield Attack("a folder of no user", given({"path": "~nosuchuser/x", "format": "folder"}), "")
    yield Attack("shards of no user", given("~nosuchuser/x.tar"), "no such file")
    yield Attack("an unknown format", given({"path": "x", "format": "\x1b[2J"}), "")
    for key in ("images", "caption", "format", "path"):
        yield Attack(f"{key} of a megabyte", given({"path": "x.tar", key: "a" * 2**20}), "")


# ── lists ───────────────────────────────────────────────────────────────────────────────────────


def listed(*entries: Any, name: str = "list.json", **options: Any) -> Make:
    """A list, and a good picture 0.png beside it."""

    def make(folder: Path) -> Any:
        (folder / "0.png").write_bytes(png())
        (folder / "0.npy").write_bytes(npy())
        texts = [one if isinstance(one, str) else json.dumps(one) for one in entries]
        (folder / name).write_text("\n".join(texts), "utf-8", "surrogatepass")
        return {"path": str(folder / name), **options}

    return make


def beside(make: Make, add: Callable[[Path], object]) -> Make:
    """An attack with more in its folder."""

    def both(folder: Path) -> Any:
        data = make(folder)
        add(folder)
        return data

    return both


def entry(**keys: Any) -> dict[str, Any]:
    return {"image_file": "0.png", "text": "a"} | keys


def _syntax() -> Iterator[Attack]:
    cut, none = "ends inside", "contains no samples"
    for size in (2**20, 2**21, 16 * 2**20):
        for letter in ("a", "\\\\", "{", "[", "\\n"):
            text = '{"image_file": "' + letter * (size // len(letter))
            yield Attack(f"an open string of {size} bytes of {letter}", listed(text), cut)
    for depth in (1_000, 100_000, 1_000_000):
        yield Attack(f"{depth} open brackets", listed("[" * depth), cut)
        yield Attack(f"{depth} open braces", listed('{"a":' * depth), cut)
        yield Attack(f"{depth} closing brackets", listed("]" * depth), cut)
    yield Attack("nothing", listed(), none)
    yield Attack("a number", listed("1"), none)
    yield Attack("a list of numbers", listed([1, 2, 3]), none)
    yield Attack("zeros", listed("\0" * 1_000_000), none)
    yield Attack("quotes", listed('"' * 1_000_000), none)
    for depth in (100, 3_000, 100_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            deep = opening * depth + "1" + closing * depth
            text = f'{{"image_file": "0.png", "text": {deep}}}'
            make = listed(text, entry(), name="list.jsonl")
            yield Attack(f"a text of {depth} {opening}", make, "not valid JSON", "quarantined")
    for number in (
        "9" * 400,
        "1" + "0" * 5_000,
        "9" * 100_000,
        "1e999",
        "-1e999",
        "1." + "1" * 500,
    ):
        for key in ("text", "image_file", "other"):
            text = f'{{"image_file": "0.png", "text": "a", "{key}": {number}}}'
            make = listed(text, entry(), name="list.jsonl")
            name = f"{key} of a number of {len(number)} characters {number[:6]}"
            yield Attack(name, make, "not valid JSON", "quarantined")
    for word in ("NaN", "Infinity", "-Infinity", "nul", "'a'", "\\x"):
        text = f'{{"image_file": "0.png", "text": "a", "other": {word}}}'
        yield Attack(f"the word {word}", listed(text, entry()), "not valid JSON", "quarantined")
    wide = '{"image_file": "0.png", "text": "a", "more": [' + "1," * 400_000 + "1]}"
    yield Attack("an entry of 800 kB", listed(wide, entry()), "good", "read")
    more = '{"image_file": "0.png", "text": "a", "more": [' + "1," * 2_000_000 + "1]}"
    yield Attack("an entry of 4 MB", listed(more, entry()), "larger than", "quarantined")
    utf_16 = json.dumps([entry()]).encode("utf-16-le").decode("latin1")
    yield Attack("UTF-16", listed(utf_16), "not valid JSON", "quarantined")
    half = listed('{"image_file": "0.png", "text": "\ud800"}', entry())
    yield Attack("half a character in UTF-8", half, "good: '0.png' (16, 16) None '?'", "read")


def _entries() -> Iterator[Attack]:
    bad: tuple[Any, ...] = (None, True, 1, 1.5, [], ["0.png"], {}, {"a": "0.png"}, "")
    for value in bad:
        make = listed(entry(image_file=value), entry())
        yield Attack(f"image_file {value!r}", make, "image_file", "quarantined")
        make = listed(entry(text=value), entry())
        if value != "":
            yield Attack(f"text {value!r}", make, "no caption", "quarantined")
    for key in ("reference_file", "id_embed_file"):
        for value in (True, 1, ["0.png"], {"a": 1}, "a" * 5_000):
            make = listed(entry(**{key: value}), entry())
            yield Attack(f"{key} {str(value)[:20]}", make, key, "quarantined")
    long = listed(entry(text="a" * 20_000), entry())
    yield Attack("a caption of 20,000 letters", long, "the limit is", "quarantined")
    yield Attack("a path of 900,000 letters", listed(entry(image_file="a" * 900_000), entry()),
                 "at most", "quarantined")  # fmt: skip
    for name in ("a\0b.png", "\ud800.png", "a" * 300, "a/" * 2_000):
        for options in ({}, {"allow_outside": True}):
            make = listed(entry(image_file=name), entry(), **options)
            yield Attack(f"the name {name[:12]!r} {options}", make, "file", "quarantined")
    half = listed(entry(text="a \ud800 b"))
    yield Attack("half a character in a caption", half, "good: '0.png'", "read")
    escape = listed(entry(text="\x1b[2J\u202e\x9b"), entry(image_file="\x1b[2J\u202e.png"))
    yield Attack("escapes in names and captions", escape, "\\x1b[2j", "quarantined")
    key = listed(entry(), caption="\x1b[2J")
    yield Attack("an escape as the key of captions", key, "no caption", "quarantined")


# ── paths outside, links, pipes, devices ────────────────────────────────────────────────────────


def secret(folder: Path) -> Path:
    return outside(folder) / "secret.png"


def link(name: str, target: str | Callable[[Path], Path]) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target if isinstance(target, str) else target(folder))

    return add


def pipe(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return add


def huge(name: str, size: int = 2**30) -> Callable[[Path], None]:
    """A sparse file."""

    def add(folder: Path) -> None:
        (folder / name).write_bytes(b"")
        os.truncate(folder / name, size)

    return add


def folder_of(*names: str) -> Make:
    """A folder with a good sample, and one that lacks what an attack adds."""

    def make(folder: Path) -> str:
        for name in ("0.png", "0.txt", *names):
            data = png() if name.endswith(".png") else npy() if name.endswith(".npy") else b"red"
            (folder / name).write_bytes(data)
        return str(folder)

    return make


def _outside() -> Iterator[Attack]:
    paths: Mapping[str, Callable[[Path], str]] = {
        "../": lambda folder: "../outside/secret.png",
        "./../": lambda folder: "./x/../../outside/secret.png",
        "absolute": lambda folder: str(secret(folder)),
        "//": lambda folder: "/" + str(secret(folder)),
        "/proc": lambda folder: "/proc/self/root" + str(secret(folder)),
    }
    for kind, path in paths.items():
        for key in ("image_file", "reference_file", "id_embed_file"):

            def make(folder: Path, key: str = key, path: Callable[[Path], str] = path) -> Any:
                (folder / "x").mkdir()
                return listed(entry(**{key: path(folder)}), entry())(folder)

            yield Attack(f"{key} {kind}", make, "leads out", "quarantined")

        def metadata(folder: Path, path: Callable[[Path], str] = path) -> str:
            (folder / "x").mkdir()
            lines = ({"file_name": path(folder), "text": "a"}, {"file_name": "0.png", "text": "a"})
            listed(*lines, name="metadata.jsonl")(folder)
            return str(folder)

        yield Attack(f"metadata.jsonl {kind}", metadata, "leads out", "quarantined")
    for key in ("image_file", "reference_file", "id_embed_file"):
        for kind, add in (
            ("link", link("1.png", secret)),
            ("chain of links", beside(link("2.png", secret), link("1.png", "2.png"))),
            ("link to a folder", link("x", lambda folder: outside(folder))),
        ):
            name = "x/secret.png" if kind == "link to a folder" else "1.png"
            make = beside(listed(entry(**{key: name}), entry()), add)
            yield Attack(f"{key} by a {kind}", make, "leads out", "quarantined")
    for name in ("1.png", "1.txt", "1.npy", "1.reference.png"):
        make = beside(folder_of("1.png", "1.txt", name), link(name, secret))
        yield Attack(f"{name} of a folder is a link", make, "leads out", "quarantined")

    def glob(folder: Path) -> str:
        tar = Path(shard(*GOOD)(folder))
        tar.rename(folder / "a.tar")
        link("b.tar", lambda folder: outside(folder) / "secret.json")(folder)
        return str(folder / "*.tar")

    yield Attack("a shard of a * is a link", glob, "leads out", "quarantined")
    lines = link("metadata.jsonl", lambda folder: outside(folder) / "secret.json")
    yield Attack("metadata.jsonl is a link", beside(folder_of(), lines), "leads out")


def _odd_files() -> Iterator[Attack]:
    adders: Mapping[str, Callable[[str], Callable[[Path], None]]] = {
        "pipe": pipe,
        "link to /dev/zero": lambda name: link(name, "/dev/zero"),
        "link to a pipe": lambda name: beside(pipe("fifo"), link(name, "fifo")),
        "link to itself": lambda name: link(name, name),
        "GiB of zeros": huge,
    }
    for kind, add in adders.items():
        for key, name in (("image_file", "1.png"), ("id_embed_file", "1.npy")):
            for options in ({}, {"allow_outside": True}):
                make = beside(listed(entry(**{key: name}), entry(), **options), add(name))
                yield Attack(f"{key} is a {kind} {options}", make, name, "quarantined")
        for name in ("list.json", "list.jsonl"):
            make = beside(listed(entry(), name=name), add(name))
            if kind != "GiB of zeros":
                yield Attack(f"{name} is a {kind}", make, "cannot be read")
        if kind != "GiB of zeros":
            make = beside(folder_of(), add("metadata.jsonl"))
            yield Attack(f"metadata.jsonl is a {kind}", make, "metadata.jsonl")
            shards = beside(shard(*GOOD), add("x.tar"))
            yield Attack(f"a shard is a {kind}", shards, "no such file")
            said = {"pipe": "no .txt", "link to itself": "no .txt"}.get(kind, "")
            make = beside(folder_of("1.png", "1.txt"), add("1.txt"))
            yield Attack(f"1.txt is a {kind}", make, said or "no .txt", "quarantined")
            make = beside(folder_of("1.png", "1.txt"), add("1.png"))
            yield Attack(f"1.png is a {kind}", make, "named like pictures", "quarantined")
        else:
            make = beside(folder_of("1.png", "1.txt"), add("1.txt"))
            yield Attack(f"1.txt is a {kind}", make, "larger than 64 KiB", "quarantined")
            make = beside(shard(*GOOD), add("x.tar"))
            yield Attack(f"a shard is a {kind}", make, "no samples")


def _folders() -> Iterator[Attack]:
    def nested(folder: Path) -> str:
        path = folder
        for _ in range(400):
            path = path / "a"
        path.mkdir(parents=True)
        return str(folder)

    def names(folder: Path) -> str:
        folder_of()(folder)
        for name in ("\x1b[2J.png", "\u202e.png", "a\nb.png"):
            (folder / name).write_bytes(b"not a picture")
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))).write_bytes(b"no picture")
        return str(folder)

    def texts(data: bytes) -> Make:
        return beside(folder_of("1.png"), lambda folder: (folder / "1.txt").write_bytes(data))

    yield Attack("400 folders in one another", nested, "nested more than")
    yield Attack("names with escapes and bytes", names, "\\udcff", "quarantined")
    yield Attack("invalid UTF-8 in a caption", texts(b"\xff\xfe\x80red"), "red", "read")
    yield Attack("escapes in a caption", texts(b"\x1b[2J\x9b\0\x07"), "\\x1b", "read")
    yield Attack("a caption of 60,000 letters", texts(b"a" * 60_000), "the limit", "quarantined")
    yield Attack("a caption of 5 MB", texts(b"a" * 5_000_000), "larger than", "quarantined")
    loop = beside(folder_of(), link("x", "."))
    yield Attack("a link to the folder itself", loop, "good", "read")


# ── shards ──────────────────────────────────────────────────────────────────────────────────────


def header(
    name: bytes = b"1.png",
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    link_name: bytes = b"",
    magic: bytes = b"ustar\x0000",
    wrong: int = 0,
) -> bytes:
    """A block with a right checksum (plus `wrong`)."""
    number = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    block[0 : len(name[:100])] = name[:100]
    block[100:124] = b"0000644\0" * 3
    block[124:136] = number.ljust(12, b"\0")[:12]
    block[136:148] = b"%011o\0" % 0
    block[156:157] = kind
    block[157 : 157 + len(link_name)] = link_name
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) + wrong)
    return bytes(block)


def file(name: bytes, data: bytes, **keys: Any) -> bytes:
    return header(name, len(data), **keys) + padded(data)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(kind: bytes = b"x", **records: Any) -> bytes:
    """An extended header of these records."""
    body = b""
    for key, value in records.items():
        value = value if isinstance(value, bytes) else str(value).encode()
        rest = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(rest) + len(str(len(rest)))
        length = len(rest) + len(str(length))
        body += str(length).encode() + rest
    return file(b"pax", body, kind=kind)


def shard(*parts: bytes, end: bytes = bytes(1024)) -> Make:
    def make(folder: Path) -> str:
        (folder / "x.tar").write_bytes(b"".join(parts) + end)
        return str(folder / "x.tar")

    return make


def sparse_shard(first: bytes, *after: bytes, hole: int) -> Make:
    """A header whose data is a hole in the file."""

    def make(folder: Path) -> str:
        with (folder / "x.tar").open("wb") as stream:
            stream.write(b"".join(GOOD) + first)
            stream.seek(hole, os.SEEK_CUR)
            stream.write(b"".join(after) + bytes(1024))
        return str(folder / "x.tar")

    return make


def after_good(name: str, *parts: bytes, says: str = "damaged", **more: Any) -> Attack:
    """Good samples, then an attack: what is before it is used, and that is said."""
    return Attack(name, shard(*GOOD, *parts, **more), says, "quarantined")


GOOD = (file(b"0.png", png()), file(b"0.txt", b"red"))


def _numbers() -> Iterator[Attack]:
    fields = {
        "-512": b"-0000001000",
        "-1": b"-1",
        "+1": b"+1",
        "1_0": b"1_0",
        "0x10": b"0x10",
        "9": b"00000000999",
        "letters": b"abcdefghijk",
        "two numbers": b"1 2",
        "high bytes": b"\xb9\xb2\xb3",
        "base 256 negative": b"\xff" * 12,
        "base 256 of -512": b"\xff" * 10 + b"\xfe\0",
        "base 256 of 2^88": b"\x80" + b"\xff" * 11,
        "base 256 of 2^63": b"\x80\0\0\0\x80" + b"\0" * 7,
        "base 256 with other bits": b"\xc0" + b"\0" * 11,
        "8 GiB": b"77777777777",
        "a byte too many": b"%011o" % (513 * 3),
    }
    for name, field in fields.items():
        for kind in (b"0", b"\0", b"7", b"S", b"L", b"K", b"x", b"g", b"9"):
            block = header(b"1.png", field, kind)
            yield after_good(f"size {name} of type {kind!r}", block, png()[:512])
    for size in ("-512", "-1", "+5", "1e3", "0x10", "1.5", "", " 5", "nan", "9" * 25, "\u0661"):
        parts = pax(size=size), file(b"1.png", png())
        yield after_good(f"a pax size {size[:10]!r}", *parts)
    for digits in (5_000, 30_000):
        yield after_good(f"a pax size of {digits} digits", pax(size="9" * digits), *GOOD)
    yield after_good("a pax size of 200,000 digits", pax(size="9" * 200_000), *GOOD)
    yield after_good("a pax size beyond the file", pax(size=10**9), file(b"1.png", png()))
    records = (b"99999999999999999999 a=b\n", b"9" * 30_000, b"0 a=b\n", b"-5 a=b\n", b"5 a=b")
    records += (b"6 ab=c", b"a=b\n", b"6 =bc\n", b"\n" * 500, b"7\xb2 a=b\n")
    for body in records:
        yield after_good(
            f"the pax record {body[:12]!r} of {len(body)}", file(b"pax", body, kind=b"x"), *GOOD
        )
    yield after_good("a checksum one too high", header(wrong=1), png())
    yield after_good("a checksum of none", header()[:148] + b"\xff" * 8 + header()[156:])


def _members() -> Iterator[Attack]:
    for kind in (b"L", b"K", b"x", b"g", b"X"):
        for size in (2**31, 2**20 * 100, 200_000):
            make = sparse_shard(header(b"long", size, kind), *GOOD, hole=size + -size % 512)
            name = f"a header of type {kind!r} with {size} bytes of a hole"
            yield Attack(name, make, "the limit is", "quarantined")
    for kind in (b"1", b"2", b"3", b"4", b"6"):
        block = header(b"1.png", 0, kind, link_name=b"../outside/secret.png")
        make = shard(*GOOD, block, file(b"1.txt", b"a"))
        yield Attack(f"a picture of type {kind!r}", make, "links, devices", "quarantined")
        block = header(b"0.json", 0, kind, link_name=b"/etc/passwd")
        yield Attack(f"a text of type {kind!r}", shard(*GOOD, block), "links", "quarantined")
    for name in (b"../0.png", b"/etc/0.png", b"a/../../0.png", b"\x1b[2J/0.png", b"\xff\xfe/0.png",
                 b"./././0.png", b"~/0.png", b"C:\\0.png", b"|touch ran|/0.png"):  # fmt: skip
        make = shard(file(name, png()), file(name[:-3] + b"txt", b"red"))
        yield Attack(f"the name {name!r}", make, "good: ", "read")
    for kind in (b"x", b"L"):
        long = b"a" * 5_000 + b".png"
        first = pax(path=long) if kind == b"x" else file(b"long", long + b"\0", kind=b"L")
        yield after_good(f"a name of 5,000 letters by {kind!r}", first, file(b"1.png", png()))
    yield after_good("one path for all members", pax(b"g", path="0.png"), *GOOD)
    yield after_good("one size for all members", pax(b"g", size=1), *GOOD)
    yield after_good("all members sparse", pax(b"g", GNU__sparse__major=1), *GOOD)
    for records in ({"GNU__sparse__map": "0,1"}, {"GNU__sparse__major": 1, "GNU__sparse__minor": 0},
                    {"GNU__sparse__realsize": 2**60}):  # fmt: skip
        make = shard(*GOOD, pax(**records), file(b"1.png", png()))
        yield Attack(f"a picture with {records}", make, "sparse files", "quarantined")
    gnu = bytearray(header(b"1.png", 512, b"S", magic=b"ustar  \0"))
    make = shard(*GOOD, bytes(gnu), png().ljust(512, b"\0"))
    yield Attack("a sparse picture of GNU", make, "sparse files", "quarantined")
    same = [file(b"0.png", png())] * 200
    yield Attack("200 members of one name", shard(*same, GOOD[1]), "good: '0'", "read")
    many = [header(b"%d.xyz" % n) for n in range(9_000)]
    yield Attack("9,000 empty members", shard(*GOOD, *many), "good: '0'", "read")
    longs = [pax(comment="a" * 30_000)] * 140
    yield Attack("140 long headers in a row", shard(*longs, *GOOD), "good: '0'", "read")
    yield Attack("headers of nothing to the end", shard(*GOOD, *longs), "good: '0'", "read")
    empty = shard(header(b"0.png"), GOOD[1])
    yield Attack("an empty picture", empty, "0 (picture)", "quarantined")
    no = shard(*GOOD, file(b"1.png", b"no picture"), file(b"1.txt", b"a"))
    yield Attack("text as a picture", no, "1 (picture)", "quarantined")
    long = shard(*GOOD, file(b"1.png", png()), file(b"1.txt", b"a" * 70_000))
    yield Attack("a caption of 70,000 letters", long, "larger than 64 KiB", "quarantined")
    for text in (b"[" * 5_000 + b"]" * 5_000, b'{"text": ' + b"9" * 5_000 + b"}", b'{"text": [1]}',
                 b"\xff\xfe", b"[1]", b'{"text": NaN}', b""):  # fmt: skip
        make = shard(*GOOD, file(b"1.png", png()), file(b"1.json", text))
        yield Attack(f"a .json member {text[:14]!r}", make, "no caption", "quarantined")
    half = b'{"text": "\\ud800 red"}'
    make = shard(file(b"1.png", png()), file(b"1.json", half))
    yield Attack("half a character in a .json member", make, "? red", "read")
    for data in (b"\x93NUMPY", b"\x80\x04cos\nsystem\n.", b"", npy(4)[:-1], b"{}" * 100):
        make = shard(*GOOD, file(b"1.png", png()), file(b"1.txt", b"a"), file(b"1.npy", data))
        yield Attack(f"a .npy member {data[:12]!r}", make, "no face embedding", "quarantined")


def _cut() -> Iterator[Attack]:
    whole = b"".join((*GOOD, file(b"1.png", png()), file(b"1.txt", b"a")))
    for cut in (1, 100, 511, 513, 700, 1023):
        yield Attack(f"cut at {cut}", shard(whole[:cut], end=b""), "no samples")
    for cut in (1_100, 1_536, 1_537, 2_048, 2_049, 2_600, 3_000, 3_584, len(whole)):
        make = shard(whole[:cut], end=b"")
        outcome = "quarantined" if cut >= 2_048 else "refused"  # the first sample is whole then
        yield Attack(f"cut at {cut}", make, "damaged or truncated", outcome)
    for magic in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        yield Attack(f"compressed {magic!r}", shard(magic + bytes(2_000)), "compressed with")
    yield Attack("a name like bzip2's", shard(file(b"BZ.png", png()), file(b"BZ.txt", b"a")),
                 "good: 'BZ'", "read")  # fmt: skip
    for data in (b"", b"\0" * 100, b"\0" * 10_240, b"<html>" * 200, b"\xff" * 4_096, png()):
        yield Attack(f"no tar: {data[:8]!r} of {len(data)}", shard(data, end=b""), "no samples")


def _written_by_tarfile() -> Iterator[Attack]:
    """What Python's tarfile writes is read as before, whatever its format."""
    for name, form in (("ustar", 0), ("gnu", 1), ("pax", 2)):
        for stem in ("a", "b" * 90, "c" * 180, "\xfc" * 60, "d/" * 60 + "e" * 90):

            def make(folder: Path, form: int = form, stem: str = stem) -> str:
                with tarfile.open(folder / "x.tar", "w", format=form) as tar:
                    for ending, data in (("png", png()), ("txt", b"red")):
                        member = tarfile.TarInfo(f"{stem}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                return str(folder / "x.tar")

            if name != "ustar" or stem[0] not in "c\xfc":  # too long there
                yield Attack(f"{name} with a name of {len(stem)}", make, "'red'", "read")


IMPORTS = (
    "tests.attacks.loaded_config",
    "imageprompt.training.data.scan",
    "imageprompt.training.data.sources._remote",
    "imageprompt.training.data.sources._tar",
    "imageprompt.training.data.sources.webdataset",
    "imageprompt.checkpoint.read.arrays",
    "fsspec.implementations.memory",
)
DOORS = (
    Door("data: URLs and storage", read_all, tuple(_urls()), IMPORTS),
    Door("data: braces and paths", read_all, tuple(_braces()), IMPORTS),
    Door("data: JSON of lists", read_all, tuple(_syntax()), IMPORTS),
    Door("data: entries of lists", read_all, tuple(_entries()), IMPORTS),
    Door("data: paths outside", read_all, tuple(_outside()), IMPORTS),
    Door("data: pipes and devices", read_all, tuple(_odd_files()), IMPORTS),
    Door("data: folders", read_all, tuple(_folders()), IMPORTS),
    Door("data: numbers in shards", read_all, tuple(_numbers()), IMPORTS),
    Door("data: members of shards", read_all, tuple(_members()), IMPORTS),
    Door("data: cut shards", read_all, tuple(_cut()), IMPORTS),
    Door("data: shards of tarfile", read_all, tuple(_written_by_tarfile()), IMPORTS),
)
