"""Pictures: a site's visitors upload them, recipes and lists name them."""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile_pictures import HEIC

from .attack import Attack, Door, content
from .picture_files import (
    PNG_START,
    avif_of_size,
    chunk,
    encoded,
    exif,
    flat_jpeg,
    flat_png,
    header,
    interlaced,
    jpeg,
    jpeg_of_size,
    made,
    png,
    riff,
    rows,
    segment,
    text_bomb,
    vp8x,
    webp_frame,
    webp_frames,
    with_scans,
)

_IMPORTS = (
    *("imageprompt.encoding.masks", "imageprompt.encoding.images.file_limits"),
    *("imageprompt.encoding.images.arrays", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"),
    *("PIL.WebPImagePlugin", "PIL.AvifImagePlugin", "PIL.MpoImagePlugin"),
)


def _open(source: Any, out: Path) -> object:
    from imageprompt.encoding.images.open_image import open_picture

    return open_picture(source).size


def _open_hashed(source: Any, out: Path) -> object:
    from imageprompt.encoding.images.open_image import open_with_hash

    return open_with_hash(source)[0].size


def _size(source: Any, out: Path) -> object:
    from imageprompt.encoding.images.open_image import picture_size

    return picture_size(source)


def _stored(source: Any, out: Path) -> object:
    from imageprompt.encoding.images.open_image import open_stored

    return open_stored(source).size


def _mask(source: Any, out: Path) -> object:
    from imageprompt.encoding.masks import open_masks

    return [weights.shape for weights in open_masks(source, 1)]


def _data(name: str, build: Callable[..., bytes], *arguments: Any, says: str = "") -> Attack:
    return Attack(name, made(build, *arguments), says)


def _read(name: str, build: Callable[..., bytes], *arguments: Any, says: str = "") -> Attack:
    return Attack(name, made(build, *arguments), says, "read")


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────


def _notes(count: int, size: int, marker: int = 0xE1, start: bytes = b"") -> bytes:
    return jpeg(*[segment(marker, start + bytes(size))] * count)


def _short(length: int, start: bytes, marker: int) -> bytes:
    """A segment that begins with more than the length it states."""
    return jpeg(struct.pack(">BBH", 0xFF, marker, length) + start)


def _exif_jpeg(*arguments: Any, start: bytes = b"Exif\0\0", marker: int = 0xE1) -> bytes:
    return jpeg(segment(marker, start + exif(*arguments)))


def _large_exif(entries: int, claimed: int) -> bytes:
    """As `exif`, with numbers of 64 bits."""
    table = b"".join(struct.pack("<HHQQ", tag, 7, claimed, 16) for tag in range(entries))
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, entries) + table


def _looping_exif() -> bytes:
    """The sub-table is the table itself, and so is the next one."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    table = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)
    return jpeg(segment(0xE1, b"Exif\0\0" + table))


def _split_exif() -> bytes:
    """Pillow joins the parts."""
    whole = exif(40_000, 2**20, 2**20)
    return jpeg(
        *(segment(0xE1, b"Exif\0\0" + whole[at : at + 60_000]) for at in range(0, 2**20, 60_000))
    )


def _patched(data: bytes, before: bytes, after: bytes) -> bytes:
    assert before in data
    return data.replace(before, after, 1)


def _factors(factor: int) -> bytes:
    """Sampling factors of the first component."""
    data = bytearray(encoded("JPEG"))
    data[data.find(b"\xff\xc0") + 11] = factor
    return bytes(data)


def _large_progressive(side: int) -> bytes:
    return jpeg_of_size(side, side, progressive=True, subsampling=0)


_HIDING = {
    "fill bytes": b"\xff" * 40,
    "garbage": b"abc\0",
    "restart markers": b"\xff\xd0\xff\xd7",
    "notes that hold an end marker": segment(0xFE, b"\xff\xd9"),
    "empty tables": segment(0xDB),
}
_JPEG = [
    *(
        _read(f"{kind} in a segment of {length} bytes", _short, length, start, marker)
        for length in range(2, 9)
        for kind, start, marker in (("EXIF", b"Exif\0\0", 0xE1), ("MPF", b"MPF\0", 0xE2))
    ),
    *(
        _data(f"{count} scans of {side} px", with_scans, count, side, says="scans of")
        for count, side in ((101, 64), (2000, 512), (20_000, 64), (20_000, 1024))
    ),
    *(
        _data(f"400 scans, between them {name}", with_scans, 400, 64, between, says="scans of")
        for name, between in _HIDING.items()
    ),
    _data(
        "20,000 scans of a picture that is not progressive",
        lambda: with_scans(20_000, progressive=False),
        says="scans of",
    ),
    _data(
        "50 scans of 36 million pixels",
        lambda: _patched(with_scans(50, 64), b"\0\x40\0\x40", struct.pack(">HH", 6000, 6000)),
        says="scans of",
    ),
    *(
        _data(
            f"{count} notes of {size} bytes, marker {marker:X}",
            _notes,
            count,
            size,
            marker,
            says=says,
        )
        for count, size, marker, says in (
            (100_000, 0, 0xFE, "segments"),
            (500_000, 2, 0xEF, "segments"),
            (400, 65_000, 0xE1, "MiB of profiles"),
            (1000, 65_000, 0xFE, "MiB of profiles"),
        )
    ),
    _data("1000 colour profiles", _notes, 1000, 65_000, 0xE2, b"ICC_PROFILE\0\1\xff"),
    *(
        _data(
            f"{count} EXIF segments, joined one by one",
            _notes,
            count,
            65_000,
            0xE1,
            b"Exif\0\0",
            says="EXIF data",
        )
        for count in (20, 200, 1000)
    ),
    _data("100,000 quantisation tables", lambda: jpeg(*[segment(0xDB)] * 100_000), says="segments"),
    *(
        _data(
            f"EXIF entries that claim the same bytes, {order}, type {kind}",
            lambda o, k: _exif_jpeg(2600, 3900, 65_000, o, k),
            order,
            kind,
            says="EXIF table",
        )
        for order in "<>"
        for kind in (1, 2, 3, 5, 12)
    ),
    _data(
        "the same in a table of several pictures",
        lambda: _exif_jpeg(2600, 30_000, 65_000, start=b"MPF\0", marker=0xE2),
        says="EXIF table",
    ),
    _data("a table in 18 parts", _split_exif, says="EXIF table"),
    _data(
        "EXIF for files above 4 GB",
        lambda: jpeg(segment(0xE1, b"Exif\0\0" + _large_exif(2000, 30_000))),
        says="EXIF table",
    ),
    _read("EXIF tables in a circle", _looping_exif),
    _read(
        "EXIF that claims 65,535 entries",
        lambda: jpeg(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
    ),
    _read("EXIF of noise", lambda: jpeg(segment(0xE1, b"Exif\0\0" + bytes(range(256)) * 200))),
    _read(
        "EXIF with an orientation of 99",
        lambda: jpeg(
            segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0")
        ),
    ),
    _read(
        "a table of 2^32 pictures",
        lambda: jpeg(
            segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\xff\xff\xff\xff\0\0\0\0")
        ),
    ),
    _read(
        "Photoshop resources without length",
        lambda: jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 16_000)),
    ),
    *(
        _data(f"a header that says {width}x{height}", jpeg_of_size, width, height, says=says)
        for width, height, says in (
            (65_535, 65_535, "million pixels"),
            (8001, 8000, "million pixels"),
            (65_500, 970, "narrower"),
            (0, 64, ""),
        )
    ),
    _data("65 million pixels in several scans", _large_progressive, 7900, says="would take"),
    _read("64 million pixels", flat_jpeg, 8000, says="(4000, 4000)"),
    _data(
        "arithmetic coding",
        lambda: _patched(encoded("JPEG"), b"\xff\xc0", b"\xff\xc9"),
        says="arithmetic",
    ),
    _data(
        "arithmetic coding, progressive",
        lambda: _patched(encoded("JPEG", progressive=True), b"\xff\xc2", b"\xff\xca"),
        says="arithmetic",
    ),
    _data("lossless", lambda: _patched(encoded("JPEG"), b"\xff\xc0", b"\xff\xc3")),
    _data(
        "12 bits",
        lambda: _patched(encoded("JPEG"), b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        says="cannot be read",
    ),
    _data("two frames", lambda: jpeg(segment(0xC0, b"\x08\x10\0\x10\0\1\1\x11\0"))),
    *(_data(f"sampling factors {factor:X}", _factors, factor) for factor in (0x00, 0xFF, 0x51)),
    *(
        _data(
            f"cut at {share} of 8",
            lambda s: encoded("JPEG")[: len(encoded("JPEG")) * s // 8],
            share,
        )
        for share in range(1, 8)
    ),
    _data(
        "progressive, cut in half",
        lambda: encoded("JPEG", 256, progressive=True)[:9000],
        says="cut short",
    ),
]


# ── PNG ─────────────────────────────────────────────────────────────────────────────────────────


def _frames(count: int) -> bytes:
    """An animation whose every frame is one pixel."""
    control = struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 1, 10, 0, 0)
    frames = chunk(b"fcTL", control) + chunk(b"fdAT", b"\0\0\0\1x")
    return png(
        chunk(b"acTL", struct.pack(">II", count, 0)), chunk(b"fcTL", control), after=frames * count
    )


def _profile_exif() -> bytes:
    """As ImageMagick writes it: hex digits in a compressed text."""
    import zlib

    table = exif(20_000, 240_000, 250_000)
    text = f"\nexif\n{len(table):8}\n{table.hex()}".encode()
    body = b"Raw profile type exif\0\0" + zlib.compress(text)
    return png(chunk(b"zTXt", body))


_HUGE = 2**31 - 1
_PNG = [
    *(
        _data(
            f"{side}x{side}, depth {depth}, colour {color}",
            flat_png,
            side,
            depth,
            color,
            says="44 million pixels",
        )
        for side, depth, color in ((6700, 8, 0), (7000, 1, 0), (9000, 8, 3))
    ),
    *(
        _read(
            f"44 million pixels, depth {depth}, colour {color}",
            flat_png,
            6600,
            depth,
            color,
            says="(3300, 3300)",
        )
        for depth, color in ((1, 0), (1, 3), (8, 2))
    ),
    _read("26 million pixels with alpha", flat_png, 5000, 8, 6),
    _read("20 million pixels of 16-bit grey", flat_png, 4400, 16, 0),
    _read("interlaced, 9 million pixels", interlaced, 3000),
    _data(
        "a header of 2^31 pixels a side",
        lambda: png(head=header(_HUGE, _HUGE)),
        says="million pixels",
    ),
    _data("a header of 2^31 by 8", lambda: png(head=header(_HUGE, 8)), says="million pixels"),
    _data("no pixels", lambda: png(head=header(0, 16))),
    _data("a short header", lambda: png(head=chunk(b"IHDR", bytes(5)))),
    _data("no header", lambda: png(head=b"")),
    _data(
        "a header with a wrong checksum", lambda: png(head=chunk(b"IHDR", header()[8:21], crc=1))
    ),
    _data("depth 3", lambda: png(head=header(depth=3))),
    _data("colour 5", lambda: png(head=header(color=5))),
    *(
        _data(
            f"{count} chunks called {kind.decode()}",
            lambda k, c: png(chunk(k) * c),
            kind,
            count,
            says="items",
        )
        for kind, count in ((b"prVt", 150_000), (b"tEXt", 150_000), (b"IDAT", 120_000))
    ),
    _data(
        "150,000 chunks behind the pixels",
        lambda: png(after=chunk(b"prVt") * 150_000),
        says="items",
    ),
    *(
        _data(
            f"20 MB in a chunk called {kind.decode()}",
            lambda k: png(chunk(k, bytes(20 * 10**6))),
            kind,
            says="bytes",
        )
        for kind in (b"prVt", b"iCCP", b"eXIf", b"tEXt")
    ),
    _data(
        "20 MB behind the pixels",
        lambda: png(after=chunk(b"prVt", bytes(20 * 10**6))),
        says="bytes",
    ),
    *(
        _data(
            f"60 bombs of 1 MB as {kind.decode()}",
            lambda k: png(text_bomb(k, 10**6) * 60),
            kind,
            says="compressed",
        )
        for kind in (b"zTXt", b"iTXt", b"iCCP")
    ),
    _data(
        "60 bombs of 1 MB behind the pixels",
        lambda: png(after=text_bomb(b"zTXt", 10**6) * 60),
        says="compressed",
    ),
    *(
        _data(f"a bomb of 30 MB as {kind.decode()}", lambda k: png(text_bomb(k, 3 * 10**7)), kind)
        for kind in (b"zTXt", b"iTXt", b"iCCP")
    ),
    _data(
        "EXIF entries that claim the same bytes",
        lambda: png(chunk(b"eXIf", exif(60_000, 700_000, 730_000))),
        says="EXIF table",
    ),
    _data("the same as a text", _profile_exif, says="EXIF table"),
    _read("20,000 frames, one read", _frames, 20_000, says="frames"),
    _read(
        "an animation of no frames",
        lambda: png(chunk(b"acTL", bytes(8)), after=chunk(b"fcTL", bytes(26))),
    ),
    _data("a chunk that claims 4 GB", lambda: png(chunk(b"prVt", b"x", length=2**32 - 1))),
    _data(
        "a chunk that claims more than the file", lambda: png(chunk(b"tEXt", b"a\0b", length=10**6))
    ),
    _data(
        "pixels that claim more than the file",
        lambda: png(data=b"")[:-30] + chunk(b"IDAT", b"xx", length=10**8),
    ),
    _data("a palette without colours", lambda: png(head=header(color=3), data=rows(16, 16, 8))),
    _read(
        "pixels outside the palette",
        lambda: png(chunk(b"PLTE", bytes(3)), head=header(color=3), data=rows(16, 16, 8, b"\xff")),
    ),
    _data(
        "a palette of 300 colours",
        lambda: png(chunk(b"PLTE", bytes(900)), head=header(color=3), data=rows(16, 16, 8)),
    ),
    _data(
        "1000 transparent entries",
        lambda: png(
            chunk(b"PLTE", bytes(30)),
            chunk(b"tRNS", bytes(1000)),
            head=header(color=3),
            data=rows(16, 16, 8),
        ),
    ),
    _data("no pixels at all", lambda: png(data=b"")),
    _data("pixels that are no deflate", lambda: png(data=b"not deflate at all")),
    _read("1000 times more pixels than the header says", lambda: png(data=rows(160, 1600))),
    *(
        _data(
            f"cut at {share} of 8", lambda s: encoded("PNG")[: len(encoded("PNG")) * s // 8], share
        )
        for share in range(1, 8)
    ),
]


# ── WebP, AVIF, HEIC ────────────────────────────────────────────────────────────────────────────


def _webp_still(kind: bytes, width: int, height: int) -> bytes:
    """A still picture whose own header claims this size."""
    name, data = webp_frame(lossless=kind == b"VP8L")
    assert name == kind
    if kind == b"VP8 ":
        size = struct.pack("<HH", width, height)
        return riff((kind, data[:6] + size + data[10:]))
    bits = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return riff((kind, data[:1] + bits + data[5:]))


def _webp_exif() -> bytes:
    return riff(vp8x(64, 64, flags=8), webp_frame(), (b"EXIF", exif(60_000, 700_000, 730_000)))


def _avif_of_frame(side: int, claimed: int) -> bytes:
    """A grey picture of `side` pixels in a container that says `claimed`."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 77).save(stream, "AVIF", speed=10, quality=10)
    data = stream.getvalue()
    sizes = struct.pack(">II", side, side), struct.pack(">II", claimed, claimed)
    return _patched(data, b"ispe\0\0\0\0" + sizes[0], b"ispe\0\0\0\0" + sizes[1])


def _avif_with(box: bytes) -> bytes:
    """With another box at its end, as its size and content."""
    return encoded("AVIF", speed=10) + struct.pack(">I", 4 + len(box)) + box


def _avif_exif() -> bytes:
    harmless = exif(0, 0, 730_000)
    return _patched(
        encoded("AVIF", speed=10, exif=harmless), harmless, exif(60_000, 700_000, 730_000)
    )


_OTHERS = [
    *(
        _data(
            f"WebP, a canvas of {width}x{height}",
            lambda w, h: riff(vp8x(w, h), webp_frame()),
            width,
            height,
        )
        for width, height in ((16_384, 16_384), (2**24, 255), (5000, 5000), (64, 65), (8, 8))
    ),
    *(
        _data(f"WebP, a {kind.decode()} of {side}x{side}", _webp_still, kind, side, side)
        for kind, side in ((b"VP8 ", 16_383), (b"VP8 ", 4500), (b"VP8L", 16_383), (b"VP8L", 65))
    ),
    _read("WebP, a VP8 of one more pixel", _webp_still, b"VP8 ", 65, 65),
    _read("WebP, 50,000 frames", webp_frames, 50_000, says="50000 frames"),
    _data("WebP, no frames", lambda: riff(vp8x(16, 16, flags=2), (b"ANIM", bytes(6)))),
    _data("WebP, a length that lies", lambda: riff(webp_frame(), claimed=2**32 - 2)),
    _data("WebP, EXIF entries that claim the same bytes", _webp_exif, says="EXIF table"),
    _data(
        "WebP, 40 MB of metadata",
        lambda: riff(vp8x(64, 64, flags=4), webp_frame(), (b"XMP ", bytes(4 * 10**7))),
        says="memory",
    ),
    *(
        _data(
            f"WebP, cut at {share} of 4",
            lambda s: encoded("WEBP")[: len(encoded("WEBP")) * s // 4],
            share,
        )
        for share in range(1, 4)
    ),
    *(
        _data(f"AVIF of {width}x{height}", avif_of_size, width, height, says=says)
        for width, height, says in (
            (60_000, 60_000, ""),
            (5000, 5000, "16 million pixels"),
            (0, 0, ""),
        )
    ),
    _read("AVIF of 64x64 that says 4000x4000", avif_of_size, 4000, 4000),
    _data("AVIF, EXIF entries that claim the same bytes", _avif_exif, says="EXIF table"),
    _data(
        "AVIF, a frame of 17 million pixels that says 64x64",
        _avif_of_frame,
        4130,
        64,
        says="million pixels",
    ),
    _data(
        "AVIF, boxes 1000 deep",
        lambda: _avif_with((b"meta" + bytes(4) + struct.pack(">I", 10**6)) * 1000),
        says="deep",
    ),
    _data(
        "AVIF, 200,000 boxes",
        lambda: _avif_with(b"moov" + b"\0\0\0\x08free" * 200_000),
        says="items",
    ),
    _data(
        "AVIF, 10^6 EXIF tables", lambda: _avif_with(b"free" + b"II*\0" * 10**6), says="EXIF table"
    ),
    _read(
        "AVIF, an index that claims 65,535 items",
        lambda: _avif_with(b"iloc" + b"\0\0\0\0\x44\x40\xff\xff" + bytes(10**5)),
    ),
    _data(
        "AVIF, 40 MB of padding",
        lambda: encoded("AVIF", speed=10) + bytes(4 * 10**7),
        says="memory",
    ),
    *(
        _data(
            f"AVIF, cut at {share} of 4",
            lambda s: encoded("AVIF", speed=10)[: len(encoded("AVIF", speed=10)) * s // 4],
            share,
        )
        for share in range(1, 4)
    ),
    _data("HEIC, cut", lambda: HEIC[:-20]),
    _data("a list of 10^8 brands", lambda: struct.pack(">I", 4 * 10**8) + b"ftyp" + b"mif1" * 1000),
]


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


def _socket(folder: Path) -> Path:
    os.chdir(folder)  # a socket's whole path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("a.png")
    return folder / "a.png"


def _link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.png").symlink_to(target)
        return folder / "a.png"

    return make


def _sparse(folder: Path) -> Path:
    with (folder / "a.png").open("wb") as stream:
        stream.write(png())
        stream.truncate(2**40)
    return folder / "a.png"


def _path(text: str) -> Callable[[Path], str]:
    return lambda _: text


_FILES = [
    Attack("a pipe", _pipe, "pipe or device"),
    Attack("a link to a pipe", lambda f: _link(str(_pipe(f).rename(f / "p")))(f), "pipe or device"),
    Attack("a socket", _socket, "pipe or device"),
    *(
        Attack(f"{device}", _path(device), "pipe or device")
        for device in ("/dev/zero", "/dev/full", "/dev/random")
    ),
    Attack("a link to /dev/zero", _link("/dev/zero"), "pipe or device"),
    Attack("a link to itself", _link("a.png"), "cannot be read"),
    Attack("a link to nothing", _link("gone"), "no such file"),
    Attack("a link to a folder", _link("."), "folder"),
    Attack("a file of a terabyte", _sparse, "64 MiB"),
    Attack("the memory of this process", _path("/proc/self/mem")),
    Attack("a NUL in the name", _path("a\0.png"), "cannot be read"),
    Attack("a name of 5000 characters", _path("a" * 5000), "cannot be read"),
    Attack("escapes in the name", _path("\x1b]0;x\x07\u202e\n.png"), "no such file"),
    Attack("an empty file", content(b"", "a.png"), "is empty"),
]


# ── objects ─────────────────────────────────────────────────────────────────────────────────────


class _Endless(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return (PNG_START + bytes(size or 0))[:size]


class _Generous(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return bytes(4 * 10**8)


class _Text(io.BytesIO):
    def read(self, size: int | None = -1) -> Any:
        return "text"


class _Slow(io.RawIOBase):
    """Gives a byte at a time, as it may."""

    def __init__(self) -> None:
        self.inner = io.BytesIO(png())

    def read(self, size: int = -1) -> bytes:
        return self.inner.read(1)

    def tell(self) -> int:
        return self.inner.tell()

    def seek(self, position: int, whence: int = 0) -> int:
        return self.inner.seek(position, whence)


class _Stuck(io.BytesIO):
    def seek(self, position: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation("not seekable")


def _array(value: Any) -> Callable[[Path], Any]:
    return lambda _: value


def _repeated(*shape: int, dtype: str = "u1") -> Callable[[Path], Any]:
    """Strides of 0: any shape, in one byte."""
    return lambda _: np.broadcast_to(np.zeros((), dtype), shape)


_OBJECTS = [
    Attack("a file that never ends", lambda _: _Endless(), "64 MiB"),
    Attack("a file that gives more than it is asked for", lambda _: _Generous(), "more bytes"),
    Attack("a file of text", lambda _: _Text(), "text"),
    Attack("a file that gives one byte at a time", lambda _: _Slow(), "(16, 16)", "read"),
    Attack("a file without positions", lambda _: _Stuck(png()), "cannot be read"),
    Attack("an array of a billion rows", _repeated(10**9, 10**3, 3), "million pixels"),
    Attack(
        "an array of floats, 60 million", _repeated(8000, 7500, 3, dtype="f4"), "million pixels"
    ),
    Attack("an array of 49 million, repeated", _repeated(7000, 7000), "(3500, 3500)", "read"),
    Attack("an array of 2^62 columns", _repeated(1, 2**62), "million pixels"),
    Attack("NaN", _array(np.full((16, 16, 3), np.nan, "f4")), "values go from"),
    Attack("infinity", _array(np.full((16, 16, 3), np.inf, "f2")), "values go from"),
    Attack("objects", _array(np.full((16, 16), None)), "do not say"),
    Attack("records", _array(np.zeros((16, 16), "i4,i4")), "do not say"),
    Attack("texts", _array(np.full((16, 16), "x")), "do not say"),
    Attack("64 dimensions", _array(np.zeros((1,) * 64, "u1")), "shape"),
    Attack("no pixels", _array(np.zeros((0, 16, 3), "u1"))),
    Attack("a list of lists", _array([[0, 0], [0, 0]]), "not a picture"),
]
_MASKS = [
    _data("a bomb", flat_png, 9000, 1, 0, says="million pixels"),
    _read("44 million pixels", flat_png, 6600, 1, 0, says="(3300, 3300)"),
    _read("26 million pixels with alpha", flat_png, 5000, 8, 4),
    Attack("an array of a billion rows", _repeated(10**9, 10**3), "million"),
    Attack("floats, 10^10", _repeated(10**5, 10**5, dtype="f8"), "million"),
    Attack("NaN", _array(np.full((16, 16), np.nan)), "outside"),
    Attack("infinity", _array(np.full((16, 16), -np.inf)), "outside"),
    Attack("nothing", _array(np.zeros((0, 0))), "shape"),
    Attack("an empty list", _array([]), "empty"),
    Attack("rows of unequal length", _array([[1, 2], [3]]), "neither a picture"),
    Attack("lists 400 deep", _array(eval("[" * 80 + "]" * 80)), ""),
    Attack("texts", _array([["a", "b"]]), ""),
    Attack("numbers of 400 digits", _array([[10**400, 1]]), "neither a picture"),
    Attack("a dictionary", _array({}), "neither a picture"),
    Attack("a pipe", _pipe, "pipe or device"),
    Attack("a file of a terabyte", _sparse, "64 MiB"),
]
_BOTH_WAYS = [*_JPEG[:3], *_PNG[:3], *_OTHERS[:3]]
_HEADERS = [  # what Pillow reads of a JPEG before its pixels
    one
    for one in _JPEG
    if any(word in one.name for word in ("notes of", "EXIF", "header that says", "arithmetic"))
]

DOORS = (
    Door("JPEG", _open, _JPEG, _IMPORTS),
    Door("PNG", _open, _PNG, _IMPORTS),
    Door("WebP, AVIF, HEIC", _open, _OTHERS, _IMPORTS),
    Door("picture file", _open, _FILES, _IMPORTS),
    Door("picture object", _open, _OBJECTS, _IMPORTS),
    Door("mask", _mask, _MASKS, _IMPORTS),
    Door("picture with its hash", _open_hashed, [*_BOTH_WAYS, *_FILES[:3]], _IMPORTS),
    Door("picture size", _size, [*_BOTH_WAYS[3:], *_HEADERS, *_FILES[:3]], _IMPORTS),
    Door("picture as stored", _stored, [*_BOTH_WAYS, *_FILES[:3]], _IMPORTS),
)
