"""restore-ct: projections, networks and training on small phantoms; scans of strangers."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from guides import DOCS, commands
from imageprompt import cli
from imageprompt.core.errors import AdapterFileError, NotFoundError, OptionError, PictureError
from imageprompt.loading.recipe import WORKFLOW_KEY
from imageprompt.workflows import WORKFLOWS
from imageprompt.workflows.restore_ct.baselines import estimated_noise, non_local_means
from imageprompt.workflows.restore_ct.measures import WINDOWS, likeness
from imageprompt.workflows.restore_ct.model import Model, tiled
from imageprompt.workflows.restore_ct.network import UNIT, Adapter, Restorer, agreement
from imageprompt.workflows.restore_ct.notice import NOTICE
from imageprompt.workflows.restore_ct.phantoms import draw, later_scan, random_body, region
from imageprompt.workflows.restore_ct.projection import (
    Dose,
    attenuation,
    back_project,
    low_dose,
    measured,
    noise_free,
    project,
    to_hu,
)
from imageprompt.workflows.restore_ct.registration import overlap, registered, shifts
from imageprompt.workflows.restore_ct.scans import check_alike, open_scan
from imageprompt.workflows.restore_ct.scans import dicom as dicom_module
from imageprompt.workflows.restore_ct.scans import nifti as nifti_module
from imageprompt.workflows.restore_ct.scans.nifti import nifti_bytes
from imageprompt.workflows.restore_ct.training import (
    Limits,
    calibrated,
    drawn,
    random_case,
    train_adapter,
    train_channel,
    train_restorer,
)

SIZE, PIXEL_MM = 48, 8.0
RUN = "imageprompt.workflows.restore_ct.run"


@pytest.fixture(scope="module")
def slices() -> NDArray[np.float32]:
    """Two slices of one drawn body, [2, 48, 48] in HU."""
    rng = np.random.default_rng(3)
    body = random_body(rng, SIZE * PIXEL_MM)
    return np.stack([draw(one, SIZE, PIXEL_MM) for one in (body, later_scan(rng, body))]).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def model() -> Model:
    """With random weights, in every layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        restorer, adapter = Restorer(), Adapter()
        for one in (*restorer.parameters(), *adapter.parameters()):
            torch.nn.init.normal_(one, 0, 0.12)
    for network in (restorer, adapter):
        network.eval().requires_grad_(False)
    return Model(restorer, adapter, Limits(-2.0, 1e9), Dose(60, 1e4), PIXEL_MM, "nothing")


# ── physics ─────────────────────────────────────────────────────────────────────────────────────


def test_projection_and_back_projection_are_those_of_scikit_image() -> None:
    """radon(circle=False) and iradon(output_size=, circle=False) of scikit-image 0.26, 12 views."""
    rng = np.random.default_rng(0)
    golden = {
        32: (-1.95378884, 9134.056270638614, 0.33513746907463243, 879.4160214842689),
        33: (1.20292466, 9682.494723637152, -0.3799822816931213, 1077.8152077388806),
    }
    for size, (one, squares, pixel, energy) in golden.items():
        picture = torch.from_numpy(rng.normal(size=(1, size, size)))
        sinogram = project(picture, 12)
        assert sinogram.shape == (1, 12, 46 if size == 32 else 47)
        assert float(sinogram[0, 2, 5]) == pytest.approx(one, abs=1e-8)
        assert float(sinogram.square().sum()) == pytest.approx(squares, rel=1e-10)
        found = back_project(sinogram, size)
        assert float(found[0, 3, 4]) == pytest.approx(pixel, rel=1e-10)
        assert float(found.square().sum()) == pytest.approx(energy, rel=1e-10)


def test_noise_has_the_variance_of_photons_and_electronics() -> None:
    """Of -log(counts): (photons that arrive + electronic²) / arriving²."""
    generator = torch.Generator().manual_seed(0)
    for photons, path in ((1e4, 0.0), (1e5, 4.0)):
        found = measured(torch.full((1, 200, 200), path), Dose(200, photons, 20.0), generator)
        arriving = photons * np.exp(-path)
        assert float(found.mean()) == pytest.approx(path, abs=0.01)
        assert float(found.var()) == pytest.approx((arriving + 400) / arriving**2, rel=0.05)


def test_hu_survive_projection_and_a_lower_dose_is_noisier(slices: NDArray[np.float32]) -> None:
    whole = torch.from_numpy(slices)
    assert to_hu(attenuation(whole)).sub(whole.clamp(min=-1000)).abs().max() < 1e-2
    truth = noise_free(whole, PIXEL_MM)
    assert float((truth - whole).abs().median()) < 15
    generator = torch.Generator().manual_seed(0)
    errors = [
        float((low_dose(whole, PIXEL_MM, Dose(60, photons), generator) - truth).square().mean())
        for photons in (1e3, 1e4, 1e5)
    ]
    assert errors[0] > 3 * errors[1] > 3 * errors[2]


def test_non_local_means_are_those_of_scikit_image() -> None:
    """denoise_nl_means(fast_mode=False) of 0.26, which takes a quick, inexact exponential."""
    rng = np.random.default_rng(1)
    picture = np.zeros((32, 32))
    picture[8:20, 10:24] = 1
    noisy = torch.from_numpy(picture + rng.normal(0, 0.2, picture.shape))[None]
    found = non_local_means(noisy, 0.16, 0.2)
    assert float(found.sum()) == pytest.approx(156.643, rel=5e-3)
    assert float(found.square().sum()) == pytest.approx(171.4428, rel=1e-2)
    assert float(found[0, 12, 12]) == pytest.approx(1.03281, abs=5e-3)
    assert estimated_noise(noisy) == pytest.approx(0.2, rel=0.05)


# ── network ─────────────────────────────────────────────────────────────────────────────────────


def test_scale_0_is_the_plain_restorer_to_the_bit(
    model: Model, slices: NDArray[np.float32]
) -> None:
    low = torch.from_numpy(slices)
    alone = model.restore(low).slices
    assert torch.equal(model.restore(low, low.flip(0), 0.0).slices, alone)
    changes = [
        float((model.restore(low, low.flip(0), scale).slices - alone).abs().mean())
        for scale in (0.5, 1.0, 2.0)
    ]
    assert 0 < changes[0] < changes[1] < changes[2]
    trust = model.restore(low, low.flip(0)).trust
    assert trust is not None
    assert trust.shape == low.shape
    assert 0 <= float(trust.min()) <= float(trust.max()) <= 1


def test_a_reference_of_another_body_and_what_the_scan_contradicts_are_left_out(
    model: Model, slices: NDArray[np.float32]
) -> None:
    low = torch.from_numpy(slices)
    alone = model.restore(low).slices
    strict = replace(model, limits=Limits(0.999, 1e9))
    found = strict.restore(low, low.flip(2))
    assert torch.equal(found.slices, alone)
    assert float(found.trust.max()) == 0  # type: ignore[union-attr]
    assert not torch.equal(strict.restore(low, low.flip(2), checked=False).slices, alone)

    free = model.restore(low, low.flip(0), trust=1.0, checked=False).slices
    near = replace(model, limits=Limits(-2.0, 1.0))
    careful = near.restore(low, low.flip(0), trust=1.0).slices
    assert float((careful - alone).abs().mean()) < float((free - alone).abs().mean())
    hidden = model.restore(low, low.flip(0), trust=1.0).slices  # noise hides everything
    assert torch.equal(hidden, free)


def test_trust_takes_over_a_part_of_what_the_reference_changes(
    model: Model, slices: NDArray[np.float32]
) -> None:
    low = torch.from_numpy(slices)
    alone = model.restore(low).slices
    for checked in (True, False):
        whole = model.restore(low, low.flip(0), trust=1.0, checked=checked)
        assert torch.equal(
            model.restore(low, low.flip(0), trust=0.0, checked=checked).slices, alone
        )
        part = model.restore(low, low.flip(0), trust=0.25, checked=checked)
        assert torch.allclose(part.slices - alone, (whole.slices - alone) / 4, atol=1e-2)
        assert torch.allclose(part.trust, whole.trust / 4)  # type: ignore[arg-type, operator]


def test_an_untrained_adapter_changes_nothing(slices: NDArray[np.float32]) -> None:
    restorer, adapter = Restorer().eval(), Adapter().eval()
    x = torch.from_numpy(slices)[:, None] / UNIT
    with torch.no_grad():
        assert torch.equal(restorer(x, adapter(x.flip(0), x, x)), restorer(x))


def test_tiles_are_as_good_as_the_whole(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, 150, 101, generator=generator) * 300
    reference = low.roll(3, 1)
    whole = model.restore(low, reference).slices
    monkeypatch.setattr(import_module("imageprompt.workflows.restore_ct.model"), "TILE", 64)
    seen = []
    tiled(lambda x: (seen.append(tuple(x.shape[-2:])), x)[1], low[None])
    assert len(seen) == 6
    parts = model.restore(low, reference).slices
    assert parts.shape == low.shape
    assert float((parts - whole).abs().max()) < 0.01  # HU


def test_references_are_moved_onto_the_slice(slices: NDArray[np.float32]) -> None:
    scan = torch.from_numpy(slices) / UNIT
    moved = scan.roll((4, -3), (1, 2))
    assert shifts(moved, scan) == [(-4, 3)] * 2
    assert torch.equal(registered(moved, scan)[:, 8:-8, 8:-8], scan[:, 8:-8, 8:-8])
    assert overlap(moved * UNIT, scan * UNIT) > 0.95
    assert overlap(torch.full_like(moved, -1000.0), scan * UNIT) == 0


def test_agreement_tells_a_body_from_another() -> None:
    rng = np.random.default_rng(5)
    bodies = [random_body(rng, SIZE * PIXEL_MM) for _ in range(2)]
    one, other = (
        torch.from_numpy(draw(body, SIZE, PIXEL_MM)).float()[None, None] / UNIT for body in bodies
    )
    same, wrong = agreement(one, one, one), agreement(other, one, one)
    assert same.shape == (1, 9, SIZE, SIZE)
    inside = one[0, 0] > -0.5
    assert float(same[0, 0::3, inside].mean()) > float(wrong[0, 0::3, inside].mean()) + 0.3
    assert float(same[0, 1::3].abs().max()) == 0


# ── training ────────────────────────────────────────────────────────────────────────────────────


def test_training_beats_back_projection_and_leaves_the_restorer_alone() -> None:
    """In 60 steps; the benchmark has more. Four for the reference change the adapter only."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    dose = Dose(30, 1e4)
    cases = [random_case(rng, SIZE * PIXEL_MM) for _ in range(8)]
    assert len({len(one.scan.lesions) for one in cases}) > 1
    pairs = drawn(cases, SIZE, PIXEL_MM, dose, generator)
    assert float(pairs.weight.max()) > 1 == float(pairs.weight.min())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses: list[float] = []
        restorer, tower = train_restorer(pairs, 60, generator, lambda _, loss: losses.append(loss))
        before = {name: value.clone() for name, value in restorer.state_dict().items()}
        adapter = train_adapter(restorer, tower, pairs, 4, generator)
        channel = train_channel(restorer, tower, pairs, 2, generator)
    assert len(losses) == 60
    assert all(torch.equal(value, before[name]) for name, value in restorer.state_dict().items())
    assert float(adapter.fine.to_v.weight.abs().max()) > 0
    assert channel.encoder.blocks[0][0].in_channels == 2

    held = drawn([random_case(rng, SIZE * PIXEL_MM) for _ in range(3)], SIZE, 8.0, dose, generator)
    trained = Model(restorer, adapter, calibrated(restorer, pairs), dose, PIXEL_MM, "phantoms")
    found = trained.restore(held.low * UNIT).slices
    gains = [
        np.subtract(
            likeness(one.numpy(), truth.numpy(), WINDOWS["abdomen"]),
            likeness(low.numpy(), truth.numpy(), WINDOWS["abdomen"]),
        )
        for one, low, truth in zip(found, held.low * UNIT, held.target * UNIT, strict=True)
    ]
    assert np.mean(gains, 0)[0] > 0.4
    assert np.mean(gains, 0)[1] > 0


def test_a_model_survives_its_file(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    low = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(0)) * 300
    assert torch.equal(again.restore(low, low).slices, model.restore(low, low).slices)
    assert again.limits == model.limits
    assert (again.dose, again.pixel_mm, again.trained_on) == (model.dose, PIXEL_MM, "nothing")
    (tmp_path / "other.safetensors").write_bytes(
        (tmp_path / "m.safetensors").read_bytes().replace(b"restorer.out", b"restorer.oux")
    )
    with pytest.raises(AdapterFileError, match="not a model of restore-ct"):
        Model.load(tmp_path / "other.safetensors")


# ── scans of strangers ──────────────────────────────────────────────────────────────────────────

PLAIN = "1.2.840.10008.1.2.1"


def element(group: int, number: int, kind: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    head = struct.pack("<HH", group, number) + kind.encode()
    if kind in ("OW", "SQ", "UN"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def dicom_bytes(
    hu: NDArray[np.float32],
    *,
    z: float = 0.0,
    syntax: str = PLAIN,
    changed: Mapping[tuple[int, int], bytes | None] | None = None,
) -> bytes:
    """A CT slice as a scanner writes it; `changed` replaces elements, or leaves them out."""
    rows, columns = hu.shape
    stored = (np.rint(hu) + 1024).astype("<i2")
    values: dict[tuple[int, int], tuple[str, bytes | None]] = {
        (0x0008, 0x0060): ("CS", b"CT"),
        (0x0010, 0x0010): ("PN", b"Secret^Name"),
        (0x0018, 0x0050): ("DS", b"5.0"),
        (0x0020, 0x000E): ("UI", b"1.2.3"),
        (0x0020, 0x0032): ("DS", f"0\\0\\{z}".encode()),
        (0x0020, 0x0037): ("DS", b"1\\0\\0\\0\\1\\0"),
        (0x0028, 0x0002): ("US", struct.pack("<H", 1)),
        (0x0028, 0x0004): ("CS", b"MONOCHROME2"),
        (0x0028, 0x0010): ("US", struct.pack("<H", rows)),
        (0x0028, 0x0011): ("US", struct.pack("<H", columns)),
        (0x0028, 0x0030): ("DS", f"{PIXEL_MM}\\{PIXEL_MM}".encode()),
        (0x0028, 0x0100): ("US", struct.pack("<H", 16)),
        (0x0028, 0x0101): ("US", struct.pack("<H", 16)),
        (0x0028, 0x0102): ("US", struct.pack("<H", 15)),
        (0x0028, 0x0103): ("US", struct.pack("<H", 1)),
        (0x0028, 0x1052): ("DS", b"-1024"),
        (0x0028, 0x1053): ("DS", b"1"),
        (0x0028, 0x2110): ("CS", b"00"),
    }
    for tag, value in (changed or {}).items():
        values[tag] = (values[tag][0], value)
    body = b"".join(
        element(*tag, kind, value) for tag, (kind, value) in values.items() if value is not None
    )
    nested = (
        struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        + element(0x0008, 0x0060, "CS", b"MR")  # of an item: not that of the slice
        + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    start = element(0x0002, 0x0010, "UI", syntax.encode())
    pixels = element(0x7FE0, 0x0010, "OW", stored.tobytes())
    split = body.index(struct.pack("<HH", 0x0010, 0x0010))
    return b"\0" * 128 + b"DICM" + start + body[:split] + nested + body[split:] + pixels


def test_dicom_and_nifti_give_the_same_hu(slices: NDArray[np.float32], tmp_path: Path) -> None:
    hu = np.rint(slices)
    series = tmp_path / "series"
    series.mkdir()
    for number, z in ((0, 5.0), (1, 0.0)):  # the names are not in the order of the places
        (series / f"{number}.dcm").write_bytes(dicom_bytes(hu[1 - number], z=5.0 - z))
    (tmp_path / "v.nii.gz").write_bytes(nifti_bytes(hu[::-1], PIXEL_MM, 5.0))
    of_dicom, of_nifti = open_scan(series), open_scan(tmp_path / "v.nii.gz")
    assert np.array_equal(of_dicom.hu, hu[::-1])
    assert np.array_equal(of_nifti.hu, of_dicom.hu)
    assert (of_dicom.pixel_mm, of_dicom.slice_mm) == (of_nifti.pixel_mm, of_nifti.slice_mm)
    check_alike(of_dicom, of_nifti)
    assert NOTICE[:79].encode() in gzip.decompress((tmp_path / "v.nii.gz").read_bytes())


def test_bits_beyond_the_stored_ones_do_not_count(
    slices: NDArray[np.float32], tmp_path: Path
) -> None:
    twelve = {(0x0028, 0x0101): struct.pack("<H", 12), (0x0028, 0x0102): struct.pack("<H", 11)}
    hu = np.clip(np.rint(slices[0]), -1024, 1000)
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(hu, changed=twelve))
    assert np.array_equal(open_scan(tmp_path / "a.dcm").hu[0], hu)


BAD_DICOM: dict[str, tuple[dict[str, Any], str]] = {
    "no rescale": ({"changed": {(0x0028, 0x1053): None}}, "without rescale"),
    "another modality": ({"changed": {(0x0008, 0x0060): b"MR"}}, "modality MR"),
    "lossy JPEG": ({"syntax": "1.2.840.10008.1.2.4.50"}, "lossy compression"),
    "once lossy": ({"changed": {(0x0028, 0x2110): b"01"}}, "lossy compression in its past"),
    "JPEG 2000": ({"syntax": "1.2.840.10008.1.2.4.90"}, "not plainly"),
    "no spacing": ({"changed": {(0x0028, 0x0030): None}}, "pixel spacing"),
    "huge pixels": ({"changed": {(0x0028, 0x0030): b"900\\900"}}, "pixels of 900 mm"),
    "endless rescale": ({"changed": {(0x0028, 0x1053): b"1e300"}}, "out of every HU"),
    "colours": ({"changed": {(0x0028, 0x0004): b"RGB"}}, "colours"),
    "too many pixels": ({"changed": {(0x0028, 0x0010): b"\xff\xff"}}, "the limit"),
    "too few pixels": ({"changed": {(0x0028, 0x0010): b"\x00\x08"}}, "fewer pixels"),
}


@pytest.mark.parametrize("name", BAD_DICOM)
def test_bad_dicom_is_one_line(name: str, slices: NDArray[np.float32], tmp_path: Path) -> None:
    how, reason = BAD_DICOM[name]
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(slices[0], **how))
    with pytest.raises(PictureError, match=reason) as found:
        open_scan(tmp_path / "a.dcm")
    assert "\n" not in str(found.value)
    assert "Secret" not in str(found.value)


def test_damaged_dicom_is_refused_whatever_is_wrong(
    slices: NDArray[np.float32], tmp_path: Path
) -> None:
    """Cut off anywhere in its header, one byte changed anywhere in it, nested without end."""
    content = dicom_bytes(slices[0])
    path = tmp_path / "a.dcm"
    header = len(content) - slices[0].size * 2
    damaged = [content[:end] for end in range(0, header, 7)]
    rng = np.random.default_rng(0)
    for at in range(132, header, 3):
        damaged.append(content[:at] + bytes([rng.integers(256)]) + content[at + 1 :])
    nest = struct.pack("<HH2sHI", 9, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    nest += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    begin = content.index(struct.pack("<HH", 8, 0x60))
    damaged += [content[:begin] + nest * 5000, content[:begin] + nest * 3]
    refused = 0
    for one in damaged:
        path.write_bytes(one)
        try:
            open_scan(path)
        except PictureError:
            refused += 1
    assert refused > len(damaged) / 2


def test_bad_nifti_is_one_line(
    slices: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gzip.decompress(nifti_bytes(slices, PIXEL_MM, 5.0))

    def changed(at: int, kind: str, *values: float) -> bytes:
        return plain[:at] + struct.pack(kind, *values) + plain[at + struct.calcsize(kind) :]

    warm = plain[:352] + (np.abs(slices).astype("<i2") + 1).tobytes()
    bad = {
        "its lowest value is": warm,
        "fewer voxels": plain[:-10],
        "the limit is": changed(42, "<h", 9999),
        "of a kind": changed(70, "<h", 32),
        "not one volume": changed(40, "<5h", 4, SIZE, SIZE, 1, 2),
        "not axial": changed(280, "<4f", 4, 4, 4, 0),
        "without a voxel size": changed(280, "<f", 0),
        "not square": changed(280, "<f", -4),
        "not finite": changed(112, "<f", 3e38),
        "damaged gzip": b"\x1f\x8b" + plain,
        "neither DICOM nor NIfTI": b"\x89PNG" + plain[:200],
    }
    for reason, content in bad.items():
        (tmp_path / "a.nii").write_bytes(content)
        with pytest.raises(PictureError, match=reason) as found:
            open_scan(tmp_path / "a.nii")
        assert "\n" not in str(found.value)
    monkeypatch.setattr(nifti_module, "MAX_BYTES", 2000)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(PictureError, match="unpacked"):
        open_scan(tmp_path / "a.nii.gz")
    with pytest.raises(NotFoundError):
        open_scan(tmp_path / "none.nii")


def test_unlike_scans_are_refused(slices: NDArray[np.float32], tmp_path: Path) -> None:
    volumes = {
        "scan": nifti_bytes(slices, PIXEL_MM, 5.0),
        "wide": nifti_bytes(slices, PIXEL_MM * 1.1, 5.0),
        "thick": nifti_bytes(slices, PIXEL_MM, 2.0),
        "small": nifti_bytes(slices[:, 4:], PIXEL_MM, 5.0),
        "long": nifti_bytes(slices[[0, 1, 0]], PIXEL_MM, 5.0),
    }
    for name, content in volumes.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
    scan = open_scan(tmp_path / "scan.nii.gz")
    reasons = {"wide": "pixels lie", "thick": "slices lie", "small": "48 x 44", "long": "3 slices"}
    for name, reason in reasons.items():
        with pytest.raises(OptionError, match=reason):
            check_alike(scan, open_scan(tmp_path / f"{name}.nii.gz"))
    series = tmp_path / "series"
    series.mkdir()
    for number, z in enumerate((0, 5, 15)):
        (series / f"{number}.dcm").write_bytes(dicom_bytes(slices[0], z=z))
    with pytest.raises(PictureError, match="unlike distances"):
        open_scan(series)
    (series / "2.dcm").write_bytes(dicom_bytes(slices[0], z=10, changed={(0x0020, 0x000E): b"9.9"}))
    with pytest.raises(PictureError, match="several series"):
        open_scan(series)


# ── the workflow ────────────────────────────────────────────────────────────────────────────────


def test_a_run_writes_slices_a_volume_and_a_model(
    slices: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = import_module(RUN)
    monkeypatch.setattr(run, "CASES", 2)
    monkeypatch.setattr(run, "FEWEST_CASES", 2)
    Path("full-dose").mkdir()
    Path("full-dose/1.dcm").write_bytes(dicom_bytes(slices[0]))
    Path("today.dcm").write_bytes(dicom_bytes(slices[0]))
    Path("earlier.nii.gz").write_bytes(nifti_bytes(slices[1:], PIXEL_MM, 5.0))
    Path("others.nii.gz").write_bytes(nifti_bytes(slices[::-1, ::-1], PIXEL_MM, 5.0))
    first, second = commands(DOCS / "workflows" / "restore-ct.md")
    training = ["--training-steps", "2", "--data", "others.nii.gz"]
    assert cli.main([*first, *training, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert NOTICE in told["notes"]
    assert any("2 drawn phantoms and 2 slices" in note for note in told["notes"])
    measured_figures = told["measured"]
    for window in WINDOWS:
        for method in ("fbp", "nlm", "alone", "reference"):
            assert measured_figures[f"psnr_{window}_{method}"] > 0
            assert -1 <= measured_figures[f"ssim_{window}_{method}"] <= 1
    assert measured_figures["overlap"] > 0.9
    with Image.open(told["pictures"][0]["path"]) as picture:
        assert NOTICE in json.loads(picture.info[WORKFLOW_KEY])["notes"]
    volume, saved = sorted(told["files"], reverse=True)
    assert open_scan(volume).hu.shape == (1, SIZE, SIZE)

    assert saved == second[second.index("--model") + 1]
    assert cli.main([*second, "--scale", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "noise_after" in told["measured"]
    assert "psnr_abdomen_fbp" not in told["measured"]
    assert any("no truth" in note for note in told["notes"])
    for more, reason in (
        (["--views", "50"], "trained for 60 views"),
        (["--data", "earlier.nii.gz"], "a single slice"),
    ):
        assert cli.main([*second[:-1], "bad", *more]) in (1, 2)
        message = capsys.readouterr().err.strip()
        assert reason in message
        assert "\n" not in message
        assert not Path("bad").exists()


def test_listing_it_loads_no_torch() -> None:
    told = WORKFLOWS["restore-ct"].as_dict()
    assert {"scan", "reference", "dose", "scale"} <= {one["name"] for one in told["inputs"]}
    assert "research only" in told["summary"]
    code = "import imageprompt.workflows.restore_ct, sys; assert 'torch' not in sys.modules"
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True)
    assert dicom_module.MAX_SIDE == nifti_module.MAX_SIDE


def test_a_lesion_is_drawn_where_its_region_is() -> None:
    rng = np.random.default_rng(2)
    body = random_body(rng, 128 * 3.0)
    bare = draw(type(body)(body.ellipses, (), body.texture), 128, 3.0)
    inside = region(body.lesions[0], 128, 3.0, grow=0.7)
    change = np.abs(draw(body, 128, 3.0) - bare)
    assert change[inside].mean() > 10 * change[~region(body.lesions[0], 128, 3.0, grow=1.6)].mean()
