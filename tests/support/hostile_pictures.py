"""Encoded pictures: a PNG by hand, and files that must be refused with the words that say why."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def png(width: int, height: int, *, depth: int = 8, color: int = 0, data: bytes = b"") -> bytes:
    """A PNG by hand, so that its header can say anything."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


JPEG = encoded(Image.effect_noise((64, 64), 80), "JPEG")


HOSTILE = {
    "zero bytes": (b"", "is empty"),
    "HTML": (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
    "SVG with a prolog": (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "perhaps an SVG"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
    "GIF": (encoded(Image.new("P", (16, 16)), "GIF"), "a GIF"),
    "BMP": (encoded(Image.new("RGB", (16, 16)), "BMP"), "a BMP"),
    "TIFF": (encoded(Image.new("RGB", (16, 16)), "TIFF"), "a TIFF"),
    "PDF": (b"%PDF-1.7 ...", "a PDF"),
    "noise": (bytes(range(256)), "no picture"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    "truncated PNG": (encoded(Image.effect_noise((64, 64), 80))[:800], "damaged or cut short"),
    "PNG signature alone": (b"\x89PNG\r\n\x1a\n", ""),
    "PNG bomb": (png(60_000, 60_000), "million pixels"),
    "PNG above our limit, below Pillow's": (png(9_000, 8_000), "million pixels"),
    "1x1": (png(1, 1, data=b"\0\0"), "less than 8 pixels"),
    "1:100": (png(10, 1000, data=b"\0" * 11 * 1000), "narrower than 1:50"),
    "0x0": (png(0, 0), ""),
}
