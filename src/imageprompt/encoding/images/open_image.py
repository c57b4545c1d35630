"""Open whatever a user calls a picture as one plain RGB image; limits are checked before pixels.

Opening a file takes at most about 300 MB and 2 s of CPU time, whatever is in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imageprompt.core.errors import PictureError
from imageprompt.core.untrusted import Budget, LimitError, open_regular, png_chunks

if TYPE_CHECKING:
    from torch import Tensor

PictureSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image "
    "| NDArray[Any] | Tensor"
)
"""A path, the bytes of a picture file, such a file open for reading, a PIL image, or the pixels as
an array or tensor: [H, W], [H, W, C] or [C, H, W] with uint8 (0..255) or floats (0..1)."""

FORMATS = ("PNG", "JPEG", "WEBP")
"""Always opened. AVIF needs a Pillow with its decoder (the usual), HEIC needs pillow-heif."""
MAX_FILE_BYTES = 64 * 2**20  # photographs of 50 megapixels take 30
MAX_PIXELS = 64_000_000  # 8000 x 8000; compared with the header, before anything is decoded
MAX_PIXELS_OF = {"PNG": 44_000_000, "WEBP": 16_000_000, "AVIF": 16_000_000, "HEIF": 50_000_000}
"""A JPEG can be decoded at half its size. The others cannot: a pixel takes 5 bytes in a PNG, 16 in
WebP and AVIF, 9 in HEIC."""
MAX_IN_MEMORY = 50_000_000
KEPT_PIXELS = 26_000_000
"""A picture of more pixels is opened at half its width and height: no encoder and no canvas has as
many, and turning or converting one whole would take twice its memory."""
MIN_SIDE = 8  # px; an encoder patch of a smaller picture is one flat colour
MAX_ASPECT = 50

# EXIF tag 274: how to turn the stored pixels so that the picture stands upright.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)

_USE_ONE = "Use PNG, JPEG or WEBP."
_GET_AGAIN = "Download or export the picture again."
_SCALE_DOWN = "Scale the picture down."
_SAVE_AGAIN = "Open it in an image editor and save it again."

# Of a PNG, besides its pixels. Each compressed text or profile unpacks to at most 1 MiB in Pillow.
_PNG_EXTRA_BYTES, _PNG_CHUNKS, _PNG_COMPRESSED = 16 * 2**20, 100_000, 32
_STRIP = 2**20  # pixels that are converted at a time

_PNG_START = b"\x89PNG\r\n\x1a\n"
# Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, AssertionError
# and others on damaged data.
_DAMAGE = Exception


def open_picture(source: PictureSource) -> Image.Image:
    """Open a picture as an upright, opaque RGB image.

    Transparent pixels become white, 16-bit grey is scaled to 8 bit, CMYK and palettes are
    converted, and an animation gives its first frame (with a warning). Embedded colour profiles are
    not applied. A picture of more than KEPT_PIXELS is opened at half its width and height. The
    result carries no metadata, so opening it again changes nothing.

    Raises PictureError for a file in no supported format (`FORMATS`), a damaged one, one larger
    than MAX_FILE_BYTES or MAX_PIXELS (of PNG, WebP, AVIF and HEIC: MAX_PIXELS_OF; of an image or
    array in memory: MAX_IN_MEMORY), smaller than MIN_SIDE on a side, or narrower than 1:MAX_ASPECT.
    """
    return _opaque_rgb(open_upright(source), describe(source))


def open_with_hash(source: PictureSource) -> tuple[Image.Image, str]:
    """`open_picture` and the SHA-256 (hex) of what was read; a file is read and decoded once.

    The hash is that of the file's bytes, or of the raw pixels of a PIL image or array. Raises
    PictureError.
    """
    label = describe(source)
    source = _in_memory(source, label)
    if isinstance(source, Image.Image):
        return open_picture(source), hashlib.sha256(source.tobytes()).hexdigest()
    with _stream(source, label) as stream:
        data = _read_all(stream, label)
    stored = _decoded(io.BytesIO(data), label)
    opened = _opaque_rgb(_upright(_kept(stored, label), label), label)
    return opened, hashlib.sha256(data).hexdigest()


def open_upright(source: PictureSource) -> Image.Image:
    """Like `open_picture`, but colours and transparency stay as stored."""
    label = describe(source)
    return _upright(_kept(_open(source, label), label), label)


def open_stored(source: PictureSource) -> Image.Image:
    """As stored: not turned, not halved, and with the metadata of its file format."""
    return _open(source, describe(source), whole=True)


def _open(source: Any, label: str, *, whole: bool = False) -> Image.Image:
    source = _in_memory(source, label)
    if isinstance(source, Image.Image):
        return _loaded(source, label)
    with _stream(source, label) as stream:
        return _decoded(stream, label, whole=whole)


def picture_size(source: PictureSource) -> tuple[int, int]:
    """Width and height of what `open_picture` would return, from the header; nothing is decoded.

    Raises PictureError for what is not a picture or exceeds a limit. Damage after the header goes
    unnoticed.
    """
    label = describe(source)
    source = _in_memory(source, label)
    with ExitStack() as stack:
        if isinstance(source, Image.Image):
            image = source
        else:
            image = _identify(stack.enter_context(_stream(source, label)), label, None)
        _check_size(image, label)
        width, height = upright_size(image)
        halved = width * height > KEPT_PIXELS
        return (-(-width // 2), -(-height // 2)) if halved else (width, height)


def alpha_of(image: Image.Image) -> Image.Image:
    """How opaque each pixel is, in mode "L"."""
    return _in_strips(image, lambda part: _with_alpha(part).getchannel("A"))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened file when it is turned as its EXIF data say."""
    try:
        turned = _orientation(image) in _ON_ITS_SIDE
    except _DAMAGE:
        turned = False
    width, height = image.size
    return (height, width) if turned else (width, height)


def describe(source: object) -> str:
    """How an error message names `source`."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"picture {getattr(source, 'filename', '') or 'in memory'}"
    if isinstance(source, str | os.PathLike):
        return f"picture {os.fspath(source)!r:.300}"
    from imageprompt.encoding.images.arrays import is_array

    if is_array(source):
        return f"picture of shape {list(source.shape)}"  # type: ignore[attr-defined]
    return f"picture of type {type(source).__name__}"


def _in_memory(source: Any, label: str) -> Any:
    """Open files and other bytes as bytes, arrays and tensors as PIL images; others as they are."""
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike | bytes | Image.Image):
        return source
    from imageprompt.encoding.images.arrays import is_array, is_file, picture_of, read_file

    if is_array(source):
        return picture_of(source, label)
    if is_file(source):
        return read_file(source, label, MAX_FILE_BYTES + 1)
    return source


@contextmanager
def _stream(source: object, label: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        _check_bytes(len(source), label)
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | os.PathLike):
        raise PictureError(
            label,
            reason="not a picture",
            hint="Pass a path, the bytes of a picture file, a PIL image, or an array of pixels.",
        )
    try:
        stream = open_regular(source)  # pipes and devices may never end
    except FileNotFoundError as error:
        hint = "Give the path of a picture file."
        raise PictureError(label, reason="no such file", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        cause = getattr(error, "strerror", None) or error
        raise PictureError(
            label, reason=f"cannot be read ({cause})", hint="Check the path and its permissions."
        ) from error
    with stream:
        _check_bytes(os.fstat(stream.fileno()).st_size, label)
        yield stream


def _read_all(stream: BinaryIO, label: str) -> bytes:
    try:
        data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PictureError(
            label, reason=f"cannot be read ({error.strerror})", hint=_GET_AGAIN
        ) from error
    _check_bytes(len(data), label)
    return data


def _check_bytes(count: int, label: str) -> None:
    if count == 0:
        raise PictureError(label, reason="is empty", hint=_GET_AGAIN)
    if count > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES // 2**20
        raise PictureError(
            label, reason=f"{count / 2**20:.0f} MiB is more than {limit} MiB", hint=_SCALE_DOWN
        )


def _decoded(stream: BinaryIO, label: str, *, whole: bool = False) -> Image.Image:
    image = _identify(stream, label, 0 if whole else KEPT_PIXELS)
    _check_size(image, label)
    if image.format in ("JPEG", "MPO") and not whole and image.width * image.height > KEPT_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))
    return _loaded(image, label)


def _loaded(image: Image.Image, label: str) -> Image.Image:
    _check_size(image, label)
    with _decoding(image, label):
        image.load()
    return image


@contextmanager
def _decoding(image: Image.Image, label: str) -> Iterator[None]:
    """Whatever Pillow raises inside becomes a PictureError."""
    try:
        yield
    except MemoryError as error:
        raise PictureError(
            label,
            reason=f"its {image.width}x{image.height} pixels do not fit into memory",
            hint=_SCALE_DOWN,
        ) from error
    except _DAMAGE as error:
        why = f" ({error})" if str(error) else ""
        raise PictureError(
            label,
            reason=f"the {image.format or 'picture'} data is damaged or cut short{why}",
            hint=_GET_AGAIN,
        ) from error


def _identify(stream: BinaryIO, label: str, halved_above: int | None) -> Image.Image:
    """Read the header only; for `halved_above` see `file_limits.check`."""
    head = stream.read(512)
    stream.seek(0)
    formats: tuple[str, ...] = FORMATS
    if head[4:8] == b"ftyp":
        from imageprompt.encoding.images.other_formats import installed

        formats = (*FORMATS, *installed(head, label))
    try:
        _check_structure(stream, head, halved_above)
    except LimitError as error:
        raise PictureError(label, reason=str(error), hint=_SAVE_AGAIN) from error
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # Pillow only warns at its own pixel limit; ours is lower anyway.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=formats)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(
            label,
            reason=f"has more than {MAX_PIXELS // 10**6} million pixels",
            hint=_SCALE_DOWN,
        ) from error
    except UnidentifiedImageError as error:
        from imageprompt.encoding.images.other_formats import recognised

        reason = recognised(head) or "cannot be read (damaged, or not PNG/JPEG/WEBP)"
        raise PictureError(label, reason=reason, hint=_USE_ONE) from error
    except _DAMAGE as error:
        raise PictureError(
            label, reason=f"its header is damaged ({error})", hint=_GET_AGAIN
        ) from error
    # A JPEG with several pictures (MPO: a phone's photo with its depth map) has one that counts.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
        warnings.warn(
            f"{label} has {getattr(image, 'n_frames', 'several')} frames; only the first is used",
            stacklevel=3,
        )
    return image


def _check_structure(stream: BinaryIO, head: bytes, halved_above: int | None) -> None:
    """Raises LimitError for a file whose parts take too long or too much memory to decode."""
    if head.startswith(_PNG_START):
        _check_png(stream)
    elif head.startswith((b"\xff\xd8", b"RIFF")) or head[4:8] == b"ftyp":
        # most references are PNG files; what reads the others is loaded for them only
        from imageprompt.encoding.images import file_limits

        stream.seek(0)
        file_limits.check(stream, head, halved_above=halved_above)


def _check_png(stream: BinaryIO) -> None:
    extra = Budget(nbytes=_PNG_EXTRA_BYTES, items=_PNG_CHUNKS)
    compressed = 0
    pixels = False
    for kind, length in png_chunks(stream, extra):
        if kind == b"fcTL" and pixels:
            return  # the second frame of an animation is not read
        pixels = pixels or kind == b"IDAT"
        compressed += kind in (b"zTXt", b"iTXt", b"iCCP")
        if compressed > _PNG_COMPRESSED:
            raise LimitError(f"it has more than {_PNG_COMPRESSED} compressed texts")
        if kind not in (b"IDAT", b"fdAT"):
            extra.read(length)


def _check_size(image: Image.Image, label: str) -> None:
    width, height = image.size
    kind = image.format or ""
    most = MAX_PIXELS_OF.get(kind, MAX_PIXELS if kind else MAX_IN_MEMORY)
    reason, hint = "", ""
    if width * height > most:
        reason = f"{width}x{height} is more than {most // 10**6} million pixels"
        reason += f", the limit for {kind}" if kind in MAX_PIXELS_OF else ""
        hint = _SCALE_DOWN
    elif min(width, height) < MIN_SIDE:
        reason = f"{width}x{height} is less than {MIN_SIDE} pixels on a side"
        hint = "Use a larger picture."
    elif max(width, height) > MAX_ASPECT * min(width, height):
        reason = f"{width}x{height} is narrower than 1:{MAX_ASPECT}"
        hint = "Crop it to the part that matters."
    if reason:
        raise PictureError(label, reason=reason, hint=hint)


# ── pixels ──────────────────────────────────────────────────────────────────────────────────────


def _in_strips(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`change` applied to one strip of the picture after another, so that no step takes the memory
    of a whole picture; it may halve them."""
    width, height = image.size
    rows = max(1, _STRIP // width) * 2
    if rows >= height:
        return change(image)
    whole: Image.Image | None = None
    top = 0
    for start in range(0, height, rows):
        part = change(image.crop((0, start, width, min(start + rows, height))))
        if whole is None:
            halved = part.width < width
            whole = Image.new(part.mode, (part.width, -(-height // 2) if halved else height))
        whole.paste(part, (0, top))
        top += part.height
    assert whole is not None
    return whole


def _kept(image: Image.Image, label: str) -> Image.Image:
    """The picture, or half of it if it has more than KEPT_PIXELS; with its metadata."""
    if image.width * image.height <= KEPT_PIXELS:
        return image
    with _decoding(image, label):
        half = _in_strips(image, _half)
    half.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return half


def _half(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _grey_8_bit(image)
    if image.has_transparency_data:
        image = _with_alpha(image)
    elif image.mode in ("1", "P", "PA"):
        image = image.convert("RGB")
    return image.reduce(2)


def _upright(image: Image.Image, label: str) -> Image.Image:
    try:
        orientation = _orientation(image)
    except LimitError as error:
        raise PictureError(label, reason=str(error), hint=_SAVE_AGAIN) from error
    except _DAMAGE as error:
        warnings.warn(f"{label}: ignoring its damaged EXIF data ({error})", stacklevel=3)
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> object:
    """Its EXIF tag. Raises LimitError for a table that claims too much, and others of _DAMAGE."""
    stored = image.info.get("exif") or image.info.get("Raw profile type exif")
    if stored:
        from imageprompt.encoding.images import file_limits

        if isinstance(stored, str):  # as ImageMagick writes it: three lines, then hex digits
            stored = bytes.fromhex("".join(stored.split("\n")[3:]))
        file_limits.check_exif(stored)
    return image.getexif().get(_ORIENTATION)


def _opaque_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode in ("I", "F"):
        raise PictureError(
            label,
            reason=f"mode {image.mode!r} does not define which value is white",
            hint="Convert it to 'L' or 'RGB' first.",
        )
    with _decoding(image, label):
        plain = image.mode == "RGB" and not image.has_transparency_data
        opaque = image.convert("RGB") if plain else _in_strips(image, _opaque)
    opaque.info = {}
    return opaque


def _opaque(image: Image.Image) -> Image.Image:
    """RGB on white."""
    if image.mode.startswith("I;16"):
        image = _grey_8_bit(image)
    if image.has_transparency_data:
        image = _with_alpha(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _grey_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 'L' or 'LA'; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image)
    grey = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return grey
