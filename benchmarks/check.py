"""How accurate `imageprompt check` is: pictures of known JPEG quality and blur, measured.

    python benchmarks/check.py [--pictures 12] [--photos DIR]

The pictures are drawn ("dead leaves": overlapping discs of all sizes, with the edges and the
statistics of photographs). With --photos the pictures of a folder are measured as well, scaled down
so that their own compression and blur disappear.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from imageprompt.evaluation.image_quality.picture import PictureQuality, check

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90)
RECOMPRESSED = ((50, 95), (30, 90), (70, 95), (60, 85), (75, 90))
BLURS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ENLARGED = (2, 3, 4)


def leaves(seed: int, width: int = 480, height: int = 360) -> Image.Image:
    """A picture with sharp edges at every scale, drawn three times as large and scaled down."""
    random = np.random.default_rng(seed)
    large = Image.new("RGB", (3 * width, 3 * height), (128, 128, 128))
    draw = ImageDraw.Draw(large)
    count = 2500
    radii = 3 * 4 / (1 - random.random(count) * 0.999) ** 0.5  # radii r are as frequent as r^-3
    for radius in sorted(radii.clip(max=450), reverse=True):
        x, y = random.random(2) * large.size
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=tuple(random.integers(10, 246, 3)))
    picture = np.asarray(large.resize((width, height), Image.Resampling.LANCZOS), float)
    grain = random.normal(0, 1.5, (height, width, 1))
    return Image.fromarray((picture + grain).clip(0, 255).round().astype(np.uint8))


def as_jpeg(picture: Image.Image, *qualities: int) -> bytes:
    """The bytes of a JPEG file, compressed once or several times."""
    data = b""
    for quality in qualities:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        data = stream.getvalue()
        picture = Image.open(io.BytesIO(data))
    return data


def decoded(data: bytes) -> Image.Image:
    """The pixels alone, as a PNG would store them."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def blurred(picture: Image.Image, pixels: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(pixels))


def enlarged(picture: Image.Image, factor: int) -> Image.Image:
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC)


def quality(made: PictureQuality) -> float | None:
    return made.jpeg


def earlier(made: PictureQuality) -> float | None:
    return made.earlier


def edge(made: PictureQuality) -> float | None:
    return made.edge


Row = tuple[str, float, list[float | None]]
"""What was done to the pictures, the true value, and the value measured in each."""


def rows(pictures: Sequence[Image.Image]) -> Iterator[Row]:
    yield "never a JPEG: traces", 0, [earlier(check(p)) for p in pictures]
    for q in QUALITIES:
        yield f"file of quality {q}", q, [quality(check(as_jpeg(p, q))) for p in pictures]
        measured = [earlier(check(decoded(as_jpeg(p, q)))) for p in pictures]
        yield f"  its pixels as PNG: {q}", q, measured
        yield "  the same file: earlier", 0, [earlier(check(as_jpeg(p, q))) for p in pictures]
    for a, b in RECOMPRESSED:
        measured = [earlier(check(as_jpeg(p, a, b))) for p in pictures]
        yield f"quality {a}, then {b}: earlier {a}", a, measured
    yield "sharp: edges, pixels", 0.5, [edge(check(p)) for p in pictures]
    for s in BLURS:
        yield f"blur of {s} pixels", s, [edge(check(blurred(p, s))) for p in pictures]
    for f in ENLARGED:
        measured = [(check(enlarged(p, f)).sharp_as or 0) / min(p.size) for p in pictures]
        yield f"enlarged {f} times: sharp as / true", 1, measured


def photos(folder: Path) -> list[Image.Image]:
    """Scaled to 43 %: JPEG blocks disappear, and edges become as sharp as pixels."""
    scaled = []
    for path in sorted(folder.iterdir()):
        picture = Image.open(path).convert("RGB")
        size = (int(picture.width * 0.43), int(picture.height * 0.43))
        scaled.append(picture.resize(size, Image.Resampling.LANCZOS))
    return scaled


def report(name: str, pictures: Sequence[Image.Image]) -> None:
    n = len(pictures)
    print(f"{name}: {n} pictures")
    for what, truth, measured in rows(pictures):
        known = np.array([value for value in measured if value is not None])
        if not known.size:
            print(f"  {what:<36} none of {n}")
            continue
        worst = np.abs(known - truth).max()
        print(
            f"  {what:<36} in {len(known):>2} of {n}, median {np.median(known):5.2f}, "
            f"largest error {worst:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=12, metavar="N")
    parser.add_argument("--photos", type=Path, metavar="DIR")
    options = parser.parse_args()
    report("drawn", [leaves(seed) for seed in range(options.pictures)])
    if options.photos:
        report("photographs", photos(options.photos))


if __name__ == "__main__":
    main()
