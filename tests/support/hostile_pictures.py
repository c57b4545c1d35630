"""Encoded pictures: a handmade PNG, a HEIC, and files to refuse, each with words of the reason."""

from __future__ import annotations

import base64
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
    """A handmade PNG, so that its header can say anything."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


JPEG = encoded(Image.effect_noise((64, 64), 80), "JPEG")

# 32x24, left half red, written by libheif.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAALoAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34"
    "+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm"
    "4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAA"
    "AChjbGFwAAAAIAAAAAEAAAAYAAAAAf///+AAAAAC////2AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAA"
    "AAAAAQABBYECAwWEAAAAwm1kYXQAAAC2KAGvEyHOxy34EPdn/+u8Ff+Vaz/zN6kIX/FHZ97cRf+egrU43oD4K35O"
    "CV6LjI6mh8LZa/H9ENtcjRlxO0aXOL0hBBpSbdPswmf7uW8Qib3MI9MOjmWJF/ojdsjQDFfcxVpw83noryuedFk7"
    "Pain9mElKGhCc012QOBrMKUx3AvfNVVBgJPuQnESkRiQg1OBwIxH2FAMySdsto8JghODsvy2JXOfm9/1mT1dFcK5"
    "OEbk4vsY3zw="
)

HOSTILE = {
    "zero bytes": (b"", "is empty"),
    "HTML": (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawings are not supported"),
    "SVG with a prolog": (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "perhaps an SVG drawing"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
    "GIF": (encoded(Image.new("P", (16, 16)), "GIF"), "GIF is not supported"),
    "BMP": (encoded(Image.new("RGB", (16, 16)), "BMP"), "BMP is not supported"),
    "TIFF": (encoded(Image.new("RGB", (16, 16)), "TIFF"), "TIFF is not supported"),
    "PDF": (b"%PDF-1.7 ...", "PDF is not supported"),
    "noise": (bytes(range(256)), "cannot be read (damaged, or not PNG/JPEG/WEBP)"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    "truncated PNG": (encoded(Image.effect_noise((64, 64), 80))[:800], "damaged or cut short"),
    "PNG signature alone": (b"\x89PNG\r\n\x1a\n", "cannot be read"),
    "PNG bomb": (png(60_000, 60_000), "million pixels"),
    "PNG above our limit, below Pillow's": (png(9_000, 8_000), "million pixels"),
    "1x1": (png(1, 1, data=b"\0\0"), "less than 8 pixels"),
    "1:100": (png(10, 1000, data=b"\0" * 11 * 1000), "narrower than 1:50"),
    "0x0": (png(0, 0), ""),
}
