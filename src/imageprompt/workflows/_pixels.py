"""Masks, composites, colours and seams: what workflows do to pixels themselves.

Pictures are RGB images; masks are weights [h, w] in 0..1, 1 inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import OptionError, PictureError
from imageprompt.encoding.masks import Weights, open_mask
from imageprompt.evaluation.probing.measures import (
    TO_XYZ,
    colours_apart,
    layout,
    matrix_root,
    picture_statistics,
    to_lab,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float64]
Inside = NDArray[np.bool_]

WHOLE = 0.995
"""Share of the frame from which a mask covers everything."""
TOLERANCE = 10.0
"""ΔE (CIE76) from the background's colour up to which a pixel belongs to it."""
_PLAIN = 0.85
"""Share of the border that must have the background's colour."""
_NEAR_SEAM = 4  # px
_MIXED = 2
"""px inside an edge that may be mixed with the background."""
_PALETTE = 64
"""Colours of an object that others are compared with."""
_VISIBLE = 5.0  # ΔE


# ── sizes ───────────────────────────────────────────────────────────────────────────────────────


def own_size(picture: Image, size: tuple[int, int] | None, pipe: Any) -> tuple[int, int]:
    """`size`, or one in the shape of the picture and about as large as the base's own pictures.

    Raises OptionError for sides that are no multiples of the VAE's scale factor.
    """
    from imageprompt.generation.pipeline_call import StartImages, check_size
    from imageprompt.generation.start_images import own_size as size_of

    found = size or size_of(StartImages(init=picture), pipe)
    assert found is not None  # there is an init image
    check_size(found, pipe)
    return found


def cell_of(pipe: Any) -> int:
    """Pixels of one latent, per side."""
    from imageprompt.loading import vae_scale_factor

    return vae_scale_factor(pipe)


def resized(picture: Image, size: tuple[int, int]) -> Image:
    """The picture in this size; the same object if it has it."""
    from PIL.Image import Resampling

    return picture if picture.size == size else picture.resize(size, Resampling.LANCZOS)


def resized_mask(mask: Weights, size: tuple[int, int]) -> Weights:
    """Each pixel is the mean of what it covers."""
    from PIL import Image

    if mask.shape == (size[1], size[0]):
        return mask
    scaled = Image.fromarray(mask, "F").resize(size, Image.Resampling.BOX)
    return np.clip(np.asarray(scaled, np.float32), 0, 1)


def same_size(source: Any, picture: Image, what: str) -> Image:
    """The picture of `source`. Raises OptionError unless it has the size of `picture`."""
    from imageprompt.encoding.images.open_image import open_picture

    found = open_picture(source)
    if found.size != picture.size:
        raise OptionError(
            f"{what} of {found.width}x{found.height} px",
            reason=f"the picture has {picture.width}x{picture.height}",
            hint="Give one of the same size.",
        )
    return found


def pixels(picture: Image) -> NDArray[np.uint8]:
    """[h, w, 3]"""
    return np.asarray(picture.convert("RGB"))


def picture_of(values: Any) -> Image:
    """Numbers 0..255 [h, w, 3], rounded, as a picture."""
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


# ── masks ───────────────────────────────────────────────────────────────────────────────────────


def mask_of(source: Any, picture: Image, what: str) -> Weights:
    """The mask of a picture, in its size. Raises OptionError for an empty one, and for one that
    covers everything."""
    mask = resized_mask(open_mask(source), picture.size)
    check_mask(mask, what)
    return mask


def check_mask(mask: Weights, what: str) -> None:
    """Raises OptionError for an empty mask, and for one that covers everything."""
    share = float((mask >= 0.5).mean())
    if not share:
        raise OptionError(what, reason="nothing in it is white", hint="White is inside.")
    if share >= WHOLE:
        raise OptionError(
            what, reason="it covers everything", hint="Black is outside: leave some of it."
        )


def box_of(mask: Weights) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is inside."""
    rows, columns = (np.flatnonzero((mask >= 0.5).any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def border_colour(picture: Image) -> tuple[int, int, int]:
    """The median colour of the border."""
    rgb = pixels(picture)
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    red, green, blue = (int(value) for value in np.median(border, 0))
    return red, green, blue


def object_on_plain_background(
    picture: Image, *, tolerance: float = TOLERANCE, cut_holes: bool = False
) -> Weights:
    """1 where the picture is not the plain background that its border shows.

    The background is a plane through the colours of the border, so that it may get lighter to one
    side. What is joined to the border by its colour is background; with `cut_holes` also what the
    object encloses. Raises PictureError if the border is not plain, or nothing stands before it.
    """
    rgb = pixels(picture)
    plane, share = _border_plane(rgb, tolerance)
    if share < _PLAIN:
        raise PictureError(
            "the product's picture",
            reason=f"its background is not plain: only {share:.0%} of its border has one colour",
            hint="Give --mask PIC: a picture, white where the product is.",
        )
    ground = _distance(rgb, plane) <= tolerance
    outside = ground if cut_holes else _joined_to_border(ground)
    mask = _trimmed(rgb, plane, (~outside).astype(np.float32))
    if not mask.any():
        raise PictureError(
            "the product's picture",
            reason="nothing in it stands out from its background",
            hint="Give --mask PIC: a picture, white where the product is.",
        )
    return mask


def _trimmed(rgb: NDArray[np.uint8], plane: Array, mask: Weights) -> Weights:
    """The mask without edge pixels that are more of the background than of the object."""
    inner = grown(mask, -_MIXED)
    if not inner.any():
        return mask
    own = pixels(filled(picture_of(rgb), 1 - inner))
    edge = (mask >= 0.5) & (inner < 0.5)
    nearer = _distance(rgb, plane) < _distance(rgb, own.astype(np.float64))
    return np.where(edge & nearer, 0, mask).astype(np.float32)


def _border_plane(rgb: NDArray[np.uint8], tolerance: float) -> tuple[Array, float]:
    """Colour a + bx + cy of the background [h, w, 3], and the share of the border that has it."""
    height, width = rgb.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    border = np.zeros((height, width), bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    at = np.stack([np.ones(border.sum()), x[border] / width, y[border] / height], 1)
    colours = rgb[border].astype(np.float64)
    start = np.median(colours, 0)
    near = np.abs(colours - start).max(1) <= np.median(np.abs(colours - start).max(1)) + tolerance
    weights = np.zeros((3, 3))
    for _ in range(5):
        weights = np.linalg.lstsq(at[near], colours[near], rcond=None)[0]
        off = _distance(rgb[border][None], (at @ weights)[None])[0]
        near = off <= tolerance
        if near.sum() < 3:
            break
    terms = np.stack([np.ones((height, width)), x / width, y / height], -1)
    plane: Array = terms @ weights
    return plane, float(near.mean())


def _distance(rgb: NDArray[np.uint8], other: Array) -> Array:
    """ΔE (CIE76) of two arrays of colours 0..255."""
    apart = to_lab(rgb) - to_lab(np.clip(np.rint(other), 0, 255).astype(np.uint8))
    distance: Array = np.sqrt(np.square(apart).sum(-1))
    return distance


def _joined_to_border(free: Inside) -> Inside:
    """The free pixels that a path of free pixels joins to the border, by edges."""
    filled = np.zeros_like(free)
    filled[[0, -1]], filled[:, [0, -1]] = free[[0, -1]], free[:, [0, -1]]
    before = -1
    while (count := int(filled.sum())) != before:
        before = count
        filled = _fill_runs(filled, free)
        filled = _fill_runs(filled.T, free.T).T
    return filled


def _fill_runs(filled: Inside, free: Inside) -> Inside:
    """Each run of free pixels in a row is filled if any of it is."""
    edges = np.diff(free, axis=1, prepend=False)
    runs = np.cumsum(edges, axis=1) + np.arange(len(free))[:, None] * (free.shape[1] + 1)
    hit = np.zeros(runs.max() + 1, bool)
    hit[runs[filled & free]] = True
    found: Inside = hit[runs] & free
    return found


def grown(mask: Weights, by: int) -> Weights:
    """The mask made larger by so many pixels on all sides; smaller, if negative."""
    from PIL import Image, ImageFilter

    if by == 0:
        return mask
    filter_ = ImageFilter.MaxFilter if by > 0 else ImageFilter.MinFilter
    padded = np.pad(mask, abs(by), mode="edge")
    image = Image.fromarray((padded * 255).round().astype(np.uint8))
    for _ in range(abs(by)):
        image = image.filter(filter_(3))
    inner = np.asarray(image, np.float32)[abs(by) : -abs(by), abs(by) : -abs(by)] / 255
    return inner.astype(np.float32)


# ── composites ──────────────────────────────────────────────────────────────────────────────────


def pasted(top: Image, below: Image, mask: Weights, *, feather: int = 1) -> Image:
    """`top` inside the mask, unchanged to the bit, over `below`.

    Over `feather` pixels outside the mask, the colours of the nearest pixels inside fade out, so
    that no edge is a staircase and nothing of what surrounded `top` comes along.
    """
    inside = mask >= 0.5
    colours, weights = pixels(top).astype(np.float64), inside.astype(np.float64)
    known = inside.copy()
    for step in range(1, feather + 1):
        colours, wider = _spread(colours, known)
        weights[wider & ~known] = 1 - step / (feather + 1)
        known = wider
    result = pixels(below) + (colours - pixels(below)) * weights[..., None]
    result[inside] = pixels(top)[inside]
    return picture_of(result)


def without_ghost(below: Image, top: Image, mask: Weights, reach: int) -> Image:
    """`below` without what it repeats of `top` around the mask, up to `reach` pixels away.

    A generated object is a little larger than its outline, because latents are coarse. There,
    pixels that are nearer to a colour of `top` inside the mask than to the colours further out are
    replaced by the latter.
    """
    inside, ring = mask >= 0.5, (grown(mask, reach) >= 0.5) & (mask < 0.5)
    known = ~(inside | ring)
    if not known.any() or not ring.any():
        return below
    rgb, spread = pixels(below), pixels(filled(below, (~known).astype(np.float32)))
    lab, ground = to_lab(rgb)[ring], to_lab(spread)[ring]
    own = to_lab(pixels(top))[inside]
    palette = own[np.linspace(0, len(own) - 1, min(len(own), _PALETTE)).astype(int)]
    to_ground = np.square(lab - ground).sum(-1)
    to_object = np.square(lab[:, None] - palette).sum(-1).min(1)
    ghost = np.zeros(mask.shape, bool)
    ghost[ring] = (to_object < to_ground) & (to_ground > _VISIBLE**2)
    result = np.where(
        (grown(ghost.astype(np.float32), 1) >= 0.5)[..., None] & ring[..., None], spread, rgb
    )
    return picture_of(result)


def filled(picture: Image, hole: Weights) -> Image:
    """The picture with smooth colours from around the hole in it."""
    return picture_of(_pulled(pixels(picture).astype(np.float64), (hole < 0.5).astype(np.float64)))


def _pulled(colours: Array, known: Array) -> Array:
    """Colours [h, w, 3] where `known` [h, w] is 0: those of the picture at half the size."""
    height, width = known.shape
    if known.all() or max(height, width) == 1:
        return colours
    odd = ((0, height % 2), (0, width % 2))
    even = np.pad(known, odd)
    summed = _by_four(np.pad(colours * known[..., None], (*odd, (0, 0))))
    weights = _by_four(even)
    half = summed / np.maximum(weights, 1e-9)[..., None]
    coarse = _pulled(half, (weights > 0).astype(np.float64))
    large = _doubled(coarse)[:height, :width]
    found: Array = np.where(known[..., None] > 0, colours, large)
    return found


def _doubled(values: Array) -> Array:
    """Twice the size [2 h, 2 w, 3], linear between the values."""
    for axis in (0, 1):
        length = values.shape[axis]
        at = (np.arange(2 * length) + 0.5) / 2 - 0.5
        low = np.clip(np.floor(at).astype(int), 0, length - 1)
        high = np.minimum(low + 1, length - 1)
        share = np.clip(at - low, 0, 1).reshape([-1 if one == axis else 1 for one in range(3)])
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def _by_four(values: Array) -> Array:
    """Sums of squares of 2 x 2."""
    return values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]


def _spread(colours: Array, known: Inside) -> tuple[Array, Inside]:
    """Colours one pixel further out: the mean of the known neighbours."""
    height, width = known.shape
    padded = np.pad(colours * known[..., None], ((1, 1), (1, 1), (0, 0)))
    counts = np.pad(known.astype(np.float64), 1)
    total, number = np.zeros_like(colours), np.zeros((height, width))
    for y in range(3):
        for x in range(3):
            total += padded[y : y + height, x : x + width]
            number += counts[y : y + height, x : x + width]
    new = ~known & (number > 0)
    spread = colours.copy()
    spread[new] = total[new] / number[new][:, None]
    return spread, known | new


def largest_difference(a: Image, b: Image, where: Weights) -> int:
    """The largest difference of two pictures, 0..255, in the pixels that `where` has."""
    inside = where >= 0.5
    apart = np.abs(pixels(a).astype(int) - pixels(b).astype(int))
    return int(apart[inside].max(initial=0))


def seam(picture: Image, mask: Weights) -> float:
    """How much more neighbours differ across the mask's edge than beside it, as a ratio of mean ΔE.

    1 is no seam. Beside it is up to 4 pixels on both sides. NaN for a mask without an edge.
    """
    inside = mask >= 0.5
    near = (grown(mask, _NEAR_SEAM) >= 0.5) & (grown(mask, -_NEAR_SEAM) < 0.5)
    lab = to_lab(pixels(picture))
    across, beside = [], []
    for axis in (0, 1):
        apart = np.sqrt(np.square(np.diff(lab, axis=axis)).sum(-1))
        edge = np.diff(inside.astype(np.int8), axis=axis) != 0
        band = near[1:, :] & near[:-1, :] if axis == 0 else near[:, 1:] & near[:, :-1]
        across.append(apart[edge])
        beside.append(apart[band & ~edge])
    jump, usual = np.concatenate(across), np.concatenate(beside)
    if not len(jump) or not len(usual):
        return float("nan")
    return float(jump.mean() / max(usual.mean(), 0.5))


# ── colours ─────────────────────────────────────────────────────────────────────────────────────

_BISECTIONS = 12
_BENT = 6 / 29


def from_lab(lab: Array) -> Array:
    """CIELAB (D65) [..., 3] to sRGB 0..255, not rounded and not clipped: `to_lab` the other way."""
    y = (lab[..., 0] + 16) / 116
    bent = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(bent > _BENT, bent**3, 3 * _BENT**2 * (bent - 4 / 29)) * TO_XYZ.sum(1)
    linear = xyz @ np.linalg.inv(TO_XYZ).T
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    rgb: Array = 255 * np.where(linear > 0.0031308, curved, 12.92 * linear)
    return rgb


def with_lightness(lightness: Array, chroma: Array) -> Image:
    """A picture with this L [h, w] and, where sRGB has it, this a and b [h, w, 2].

    Elsewhere a and b shrink towards 0, by bisection for each pixel, until sRGB has the colour: the
    lightness stays.
    """
    low, high = np.zeros(lightness.shape), np.ones(lightness.shape)
    share = np.where(_in_gamut(_scaled_lab(lightness, chroma, high)), high, low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = _in_gamut(_scaled_lab(lightness, chroma, middle))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    share = np.maximum(share, low)
    return picture_of(from_lab(_scaled_lab(lightness, chroma, share)))


def _scaled_lab(lightness: Array, chroma: Array, share: Array) -> Array:
    return np.concatenate([lightness[..., None], chroma * share[..., None]], -1)


def _in_gamut(lab: Array) -> Inside:
    """Does sRGB have these colours, up to a quarter of a level?"""
    rgb = from_lab(lab)
    found: Inside = np.all((rgb >= -0.25) & (rgb <= 255.25), axis=-1)
    return found


def matched_colours(picture: Image, style: Image) -> Image:
    """The picture with the mean and covariance of the style's CIELAB colours.

    The linear map that moves the colours least (Monge and Kantorovich): a baseline without a model.
    """
    lab, other = (to_lab(pixels(one)).reshape(-1, 3) for one in (picture, style))
    tiny = 1e-4 * np.eye(3)
    a, b = np.cov(lab.T) + tiny, np.cov(other.T) + tiny
    root = matrix_root(a)
    inverse = np.linalg.inv(root)
    map_ = inverse @ matrix_root(root @ b @ root) @ inverse
    moved = (lab - lab.mean(0)) @ map_.T + other.mean(0)
    return picture_of(from_lab(moved.reshape(picture.height, picture.width, 3)))


def colour_distance(a: Image, b: Image, where: Inside | None = None) -> float:
    """Fréchet distance of the Lab colours of `a` (in the pixels of `where`) and of `b`."""
    lab, other = to_lab(pixels(a)), to_lab(pixels(b))
    own = lab.reshape(-1, 3) if where is None else lab[where]
    return colours_apart(own, other.reshape(-1, 3))


def layout_distance(a: Image, b: Image) -> float:
    """1 - correlation of the edges, whatever their colour, of two pictures of one shape."""
    return layout(picture_statistics(a, b.size), picture_statistics(b))


def lightness(picture: Image) -> Array:
    """L [h, w], 0..100."""
    values: Array = to_lab(pixels(picture))[..., 0]
    return values


def mean_chroma(picture: Image) -> Array:
    """The mean a and b, [2]."""
    values: Array = to_lab(pixels(picture))[..., 1:].reshape(-1, 2).mean(0)
    return values


def chroma_distance(a: Image, b: Image) -> float:
    """Fréchet distance of a and b of two pictures as normal distributions."""
    found = []
    for one in (a, b):
        lab = to_lab(pixels(one)).reshape(-1, 3)
        lab[:, 0] = 0
        found.append(lab)
    return colours_apart(*found)


def colourfulness(picture: Image) -> float:
    """Hasler and Süsstrunk 2003: 0 grey, 15 slightly, 45 quite, 109 extremely colourful."""
    red, green, blue = np.moveaxis(pixels(picture).astype(np.float64), -1, 0)
    one, two = red - green, (red + green) / 2 - blue
    spread = np.hypot(one.std(), two.std())
    return float(spread + 0.3 * np.hypot(one.mean(), two.mean()))


def fitted_chroma(made: Image, guide: Image, radius: int) -> Array:
    """a and b of a generated picture [h, w, 2] in the size of the guide, with the guide's edges.

    Latents are coarse: their colours bleed over edges. A guided filter (He, Sun and Tang) writes
    a and b as a linear function of the guide's lightness in each window of `radius` latents.
    """
    chroma = to_lab(pixels(resized(made, guide.size)))[..., 1:]
    light = lightness(guide)
    width = max(1, round(radius * max(guide.size) / max(made.size) / 2))
    mean = _box_mean(light[..., None], width)
    variance = _box_mean(light[..., None] ** 2, width) - mean**2
    means = _box_mean(chroma, width)
    shared = _box_mean(light[..., None] * chroma, width) - mean * means
    slope = shared / (variance + _EDGE**2)
    offset = means - slope * mean
    fitted: Array = _box_mean(slope, width) * light[..., None] + _box_mean(offset, width)
    return fitted


_EDGE = 4.0
"""Differences of L below this are not edges."""


def _box_mean(values: Array, radius: int) -> Array:
    """Mean over squares of 2 radius + 1 pixels, cut at the border: [h, w, c]."""
    for axis in (0, 1):
        length = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        high = np.minimum(np.arange(length) + radius + 1, length)
        low = np.maximum(np.arange(length) - radius, 0)
        counts = (high - low).reshape([-1 if one == axis else 1 for one in range(values.ndim)])
        values = (sums.take(high, axis) - sums.take(low, axis)) / counts
    return values
