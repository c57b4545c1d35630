"""Picture formats that are opened only where their decoder is installed, or not at all."""

from __future__ import annotations

from imageprompt.core.errors import PictureError

# What a file in no supported format most likely is, by its first bytes.
_LOOKALIKES = (
    (b"<svg", "SVG drawings are not supported"),
    (b"<?xml", "is an XML document, perhaps an SVG drawing"),
    (b"<!doctype html", "is an HTML page, perhaps a failed download"),
    (b"<html", "is an HTML page, perhaps a failed download"),
    (b"version https://git-lfs", "is a git-LFS pointer, not the file itself"),
    (b"gif8", "GIF is not supported"),
    (b"bm", "BMP is not supported"),
    (b"ii*\0", "TIFF is not supported"),
    (b"mm\0*", "TIFF is not supported"),
    (b"%pdf", "PDF is not supported"),
)

# Brands in the `ftyp` box of a file (ISO/IEC 23008-12, annex B; AV1 Image File Format).
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def recognised(head: bytes) -> str:
    """What a file that is not opened is, by its first bytes; "" if that cannot be told."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((reason for start, reason in _LOOKALIKES if text.startswith(start)), "")


def installed(head: bytes, label: str) -> tuple[str, ...]:
    """Pillow's name of an optional format that these first bytes announce; usually none.

    Raises PictureError, naming the format, where its decoder is missing.
    """
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        from PIL import features

        if not features.check("avif"):
            raise PictureError(
                label,
                reason="AVIF is not supported by this build of Pillow",
                hint="Use PNG, JPEG or WEBP, or a Pillow wheel from PyPI.",
            )
        return ("AVIF",)
    if brands & _HEIC_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise PictureError(
                label,
                reason="HEIC needs pillow-heif, which is not installed",
                hint="pip install pillow-heif, or use PNG, JPEG or WEBP.",
            ) from None
        register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
        return ("HEIF",)
    return ()
