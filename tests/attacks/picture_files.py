"""Handmade picture files, chunk by chunk, so that each part can say anything."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
PNG_START = b"\x89PNG\r\n\x1a\n"


def made(build: Callable[..., bytes], *arguments: Any) -> Callable[[Path], bytes]:
    """An attack's `make`: these bytes, never on disk."""
    return lambda _: build(*arguments)


def encoded(kind: str, side: int = 64, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    noise = Image.effect_noise((side, side), 80)
    noise.convert(mode).save(stream, format=kind, **options)
    return stream.getvalue()


# ── PNG ─────────────────────────────────────────────────────────────────────────────────────────


def chunk(kind: bytes, body: bytes = b"", *, length: int | None = None, crc: int = 0) -> bytes:
    """`length` and `crc` (added to the right one) may lie."""
    size = struct.pack(">I", len(body) if length is None else length)
    return size + kind + body + struct.pack(">I", zlib.crc32(kind + body) + crc & 0xFFFFFFFF)


def header(
    width: int = 16, height: int = 16, depth: int = 8, color: int = 2, lace: int = 0
) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, lace))


def rows(width: int = 16, height: int = 16, bits: int = 24, fill: bytes = b"\0") -> bytes:
    """Compressed rows of one value, made row by row."""
    packer, row = zlib.compressobj(1), b"\0" + fill * ((width * bits + 7) // 8)
    return b"".join((*(packer.compress(row) for _ in range(height)), packer.flush()))


def png(*extra: bytes, head: bytes = header(), data: bytes = rows(), after: bytes = b"") -> bytes:
    """With `extra` chunks before the pixels and `after` behind them."""
    return b"".join((PNG_START, head, *extra, chunk(b"IDAT", data), after, chunk(b"IEND")))


def flat_png(side: int, depth: int, color: int, lace: int = 0) -> bytes:
    """A square of one value."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    palette = [chunk(b"PLTE", bytes(768))] if color == 3 else []
    return png(*palette, head=header(side, side, depth, color, lace), data=rows(side, side, bits))


def interlaced(side: int) -> bytes:
    """Seven pictures, one after another (Adam7)."""
    packer, data = zlib.compressobj(1), b""
    for x, y, dx, dy in _ADAM7:
        row = bytes(1 + 3 * -(-(side - x) // dx))
        data += b"".join(packer.compress(row) for _ in range(-(-(side - y) // dy)))
    return png(head=header(side, side, lace=1), data=data + packer.flush())


def text_bomb(kind: bytes, unpacked: int, key: bytes = b"Comment") -> bytes:
    """A compressed text, or a colour profile."""
    between = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    return chunk(kind, key + between + zlib.compress(b"A" * unpacked, 9))


# ── EXIF ────────────────────────────────────────────────────────────────────────────────────────


def exif(entries: int, claimed: int, size: int, order: str = "<", kind: int = 7) -> bytes:
    """A TIFF table whose entries all claim the same `claimed` bytes; `size` bytes in all."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    table = b"".join(
        struct.pack(f"{order}HHII", tag, kind, claimed, 8) for tag in range(1, entries + 1)
    )
    content = mark + struct.pack(f"{order}IH", 8, entries) + table + bytes(4)
    return content.ljust(size, b"\0")


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────


def segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, side: int = 64, **options: Any) -> bytes:
    """A JPEG with these segments after its start."""
    plain = encoded("JPEG", side, **options)
    return plain[:2] + b"".join(segments) + plain[2:]


def jpeg_of_size(width: int, height: int, **options: Any) -> bytes:
    """Its header claims this size; the data are those of a small picture."""
    plain = bytearray(encoded("JPEG", **options))
    at = next(
        plain.find(bytes((0xFF, kind))) for kind in (0xC0, 0xC2) if bytes((0xFF, kind)) in plain
    )
    plain[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(plain)


def flat_jpeg(side: int) -> bytes:
    """A grey picture of one value: six bits a block in the usual tables (DC 0, end of block)."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), 128).save(stream, "JPEG")
    plain = bytearray(stream.getvalue())
    at = plain.find(b"\xff\xc0")
    plain[at + 5 : at + 9] = struct.pack(">HH", side, side)
    start = plain.find(b"\xff\xda")
    start += 2 + int.from_bytes(plain[start + 2 : start + 4], "big")
    four_blocks = (0b001010_001010_001010_001010).to_bytes(3, "big")
    return bytes(plain[:start]) + four_blocks * ((side // 8) ** 2 // 4 + 1) + b"\xff\xd9"


def with_scans(
    count: int, side: int = 64, between: bytes = b"", *, progressive: bool = True
) -> bytes:
    """The last scan of a picture of one value, repeated."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (9, 99, 199)).save(stream, "JPEG", progressive=progressive)
    plain = stream.getvalue()
    start, end = plain.rfind(b"\xff\xda"), plain.rfind(b"\xff\xd9")
    return plain[:end] + (between + plain[start:end]) * count + plain[end:]


# ── WebP, AVIF ──────────────────────────────────────────────────────────────────────────────────


def riff(*chunks: tuple[bytes, bytes], claimed: int | None = None) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) if claimed is None else claimed) + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes((flags, 0, 0, 0)) + size


def webp_frame(side: int = 64, **options: Any) -> tuple[bytes, bytes]:
    """The chunk of a still picture."""
    plain = encoded("WEBP", side, **options)
    return plain[12:16], plain[20:]


def webp_frames(count: int, side: int = 16) -> bytes:
    kind, data = webp_frame(side, quality=1)
    sizes = bytes(6) + 2 * (side - 1).to_bytes(3, "little") + bytes((100, 0, 0, 0))
    frame = sizes + kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    animated = vp8x(side, side, flags=2), (b"ANIM", bytes(6))
    return riff(*animated, *[(b"ANMF", frame)] * count)


def avif_of_size(width: int, height: int, side: int = 64) -> bytes:
    """The container claims this size; the data are those of a small picture."""
    plain = encoded("AVIF", side, speed=10)
    at = plain.find(b"ispe") + 8
    return plain[:at] + struct.pack(">II", width, height) + plain[at + 8 :]
