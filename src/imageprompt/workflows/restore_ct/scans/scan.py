"""A CT scan: a DICOM file, a folder of them, or a NIfTI volume; and whether two belong together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imageprompt.core.errors import NotFoundError, OptionError, PictureError
from imageprompt.core.hub import no_such_file
from imageprompt.core.untrusted import read_regular
from imageprompt.workflows.restore_ct.scans import dicom, nifti

MAX_FILES = 2000
MAX_PIXELS = 2**27
"""Of a volume: 512 slices of 512 x 512."""
PIXEL_MM = (0.02, 20.0)
"""How wide pixels may be."""
_UNLIKE = 0.02
"""How far spacings may differ, as a share."""


@dataclass(frozen=True)
class Scan:
    """Slices [n, h, w] in HU, and how large their pixels are; `slice_mm` is None for one slice
    that does not say how thick it is."""

    name: str
    hu: NDArray[np.float32]
    pixel_mm: float
    slice_mm: float | None


def open_scan(path: str | os.PathLike[str]) -> Scan:
    """A scan from a path. Raises NotFoundError, and PictureError that says what is wrong."""
    place = Path(path).expanduser()
    try:
        if not place.exists():
            raise no_such_file(place)
        return _with_size(_series(place) if place.is_dir() else _file(place))
    except OSError as error:
        if isinstance(error, NotFoundError):
            raise
        raise PictureError(
            f"scan {str(place)!r}",
            reason=error.strerror or str(error),
            hint="Give a DICOM or NIfTI file, or a folder of DICOM files.",
        ) from None


def _with_size(scan: Scan) -> Scan:
    if not PIXEL_MM[0] <= scan.pixel_mm <= PIXEL_MM[1]:
        raise PictureError(
            f"scan {scan.name!r}",
            reason=f"pixels of {scan.pixel_mm:g} mm, not {PIXEL_MM[0]:g} to {PIXEL_MM[1]:g}",
            hint="Give a CT of a body.",
        )
    return scan


def check_alike(scan: Scan, reference: Scan) -> None:
    """Can slices of one be laid on those of the other? Raises OptionError."""
    what = f"reference {reference.name!r}"
    spacings = [(scan.pixel_mm, reference.pixel_mm, "pixels")]
    if len(reference.hu) > 1 and scan.slice_mm and reference.slice_mm:
        spacings.append((scan.slice_mm, reference.slice_mm, "slices"))
    for own, other, name in spacings:
        if abs(other / own - 1) > _UNLIKE:
            raise OptionError(
                what,
                reason=f"its {name} lie {other:g} mm apart, those of the scan {own:g} mm",
                hint="Resample the reference to the scan.",
            )
    if reference.hu.shape[1:] != scan.hu.shape[1:]:
        sizes = [" x ".join(map(str, one.hu.shape[:0:-1])) for one in (reference, scan)]
        raise OptionError(
            what,
            reason=f"its slices have {sizes[0]} pixels, those of the scan {sizes[1]}",
            hint="Resample the reference to the scan.",
        )
    if len(reference.hu) not in (1, len(scan.hu)):
        raise OptionError(
            what,
            reason=f"it has {len(reference.hu)} slices, the scan has {len(scan.hu)}",
            hint="Give one slice, or the same slices of both.",
        )


def _file(path: Path) -> Scan:
    content = read_regular(path, nifti.MAX_BYTES)
    if nifti.is_nifti(content):
        volume = nifti.read_nifti(path.name, content)
        _check_size(path, volume.hu.size)
        return Scan(path.name, volume.hu, volume.pixel_mm, volume.slice_mm)
    if dicom.is_dicom(content):
        one = dicom.read_dicom(path.name, content)
        return Scan(path.name, one.hu[None], one.pixel_mm, one.thickness_mm)
    raise PictureError(
        f"scan {path.name!r}",
        reason="neither DICOM nor NIfTI",
        hint="Give a DICOM or NIfTI file, or a folder of DICOM files.",
    )


def _series(folder: Path) -> Scan:
    """A folder of DICOM files: one series, sorted from below."""
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.name[:1] != ".")
    if not 1 <= len(files) <= MAX_FILES:
        raise PictureError(
            f"scan {str(folder)!r}",
            reason=f"a folder with {len(files)} files, not 1 to {MAX_FILES}",
            hint="Give a folder with the DICOM files of one series.",
        )
    slices, pixels = list[dicom.DicomSlice](), 0
    for file in files:
        content = read_regular(file, dicom.MAX_BYTES, inside=folder)
        if not dicom.is_dicom(content):
            raise PictureError(
                f"scan {file.name!r}", reason="not a DICOM file", hint="Take it out of the folder."
            )
        slices.append(dicom.read_dicom(file.name, content))
        pixels += slices[-1].hu.size
        _check_size(folder, pixels)
    slices.sort(key=lambda one: one.position_mm)
    return _stacked(folder, slices)


def _stacked(folder: Path, slices: list[dicom.DicomSlice]) -> Scan:
    first = slices[0]
    for one in slices:
        if (one.series, one.hu.shape) != (first.series, first.hu.shape) or not np.allclose(
            (*one.orientation, one.pixel_mm), (*first.orientation, first.pixel_mm), atol=1e-3
        ):
            raise PictureError(
                f"scan {str(folder)!r}",
                reason="slices of several series, sizes or spacings",
                hint="Give a folder with the DICOM files of one series.",
            )
    gaps = np.diff([one.position_mm for one in slices])
    slice_mm = first.thickness_mm
    if len(gaps):
        slice_mm = float(np.median(gaps))
        if slice_mm <= 0 or np.abs(gaps / slice_mm - 1).max() > 0.1:
            raise PictureError(
                f"scan {str(folder)!r}",
                reason="slices at unlike distances, or twice at one place",
                hint="Give all slices of one series, each once.",
            )
    return Scan(folder.name, np.stack([one.hu for one in slices]), first.pixel_mm, slice_mm)


def _check_size(path: Path, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise PictureError(
            f"scan {str(path)!r}",
            reason=f"more than {MAX_PIXELS} voxels",
            hint="Give fewer slices.",
        )
