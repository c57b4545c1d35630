"""The steps of restore-ct: read, take at low dose, train, restore, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imageprompt.core.errors import OptionError
from imageprompt.workflows.restore_ct.baselines import estimated_noise, non_local_means
from imageprompt.workflows.restore_ct.measures import WINDOWS, Array, Window, likeness
from imageprompt.workflows.restore_ct.model import Model
from imageprompt.workflows.restore_ct.notice import NOTICE
from imageprompt.workflows.restore_ct.projection import Dose, low_dose, noise_free
from imageprompt.workflows.restore_ct.registration import overlap
from imageprompt.workflows.restore_ct.scans import Scan, check_alike, open_scan
from imageprompt.workflows.restore_ct.scans.nifti import nifti_bytes
from imageprompt.workflows.restore_ct.training import (
    Pairs,
    calibrated,
    drawn,
    random_case,
    taken,
    train_adapter,
    train_restorer,
)

if TYPE_CHECKING:
    from imageprompt.workflows.job import Job
    from imageprompt.workflows.restore_ct import Inputs

SHOWN = 8
"""Slices that become pictures, spread over the volume; the NIfTI file holds all."""
CASES, CASE_PIXELS = 160, 128**2
"""Phantoms that are drawn for training, of so many pixels; fewer if they are larger."""
FEWEST_CASES = 8
LEAST_SIDE = 32
_AIR = -1000.0
_LEAST_OVERLAP = 0.5
_UNLIKE = 0.1  # share by which the pixels of scan and model may differ
_STRENGTHS = (0.4, 0.7, 1.0, 1.4, 2.0)  # of non-local means, in standard deviations of the noise


def restore(inputs: Inputs, job: Job) -> None:
    """Raises an ImagePromptError before the work."""
    scan = open_scan(inputs.scan)
    _check_scan(scan)
    reference = None if inputs.reference is None else open_scan(inputs.reference)
    data = None if inputs.data is None else open_scan(inputs.data)
    given = _tensor(scan)
    references = None
    if reference is not None:
        check_alike(scan, reference)
        references = _tensor(reference).expand(len(given), -1, -1)
        job.measured["overlap"] = _checked_overlap(reference, references, given)
    if data is not None:
        _check_data(scan, data)
    dose = Dose(inputs.views, inputs.photons)
    model = None if inputs.model is None else _loaded(inputs.model, scan, dose)
    job.notes.append(NOTICE)
    generator = torch.Generator().manual_seed(inputs.seed)
    truth, low = None, given
    if inputs.dose == "full":
        truth = noise_free(given, scan.pixel_mm)
        low = low_dose(given, scan.pixel_mm, dose, generator)
        job.notes.append("low dose simulated: parallel beam, one energy, no scatter, no bowtie")
    if model is None:
        model = _trained(inputs, scan, data, generator, job)
    alone = model.restore(low, progress=_progress(job, "restoring")).slices
    restored, trust = alone, None
    if references is not None and inputs.scale:
        done = _progress(job, "restoring with the reference")
        checked = inputs.check == "scan"
        found = model.restore(
            low, references, inputs.scale, done, trust=inputs.trust, checked=checked
        )
        restored, trust = found.slices, found.trust
        _tell_agreement(job, found.agreement or [], model.limits.agreement)
    results = {"fbp": low, "alone": alone}
    if references is not None:
        results["reference"] = restored
    _measure(job, inputs, results, restored, trust, truth)
    _hand_over(job, inputs, scan, restored, low, references, truth)
    if inputs.model is None:
        job.file("-model.safetensors", model.save)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def _check_scan(scan: Scan) -> None:
    if min(scan.hu.shape[1:]) < LEAST_SIDE:
        raise OptionError(
            f"scan {scan.name!r}",
            reason=f"its slices have less than {LEAST_SIDE} pixels a side",
            hint="Give whole slices.",
        )


def _check_data(scan: Scan, data: Scan) -> None:
    _check_pixels(f"training data {data.name!r}", data.pixel_mm, scan)
    if len(data.hu) < 2:
        raise OptionError(
            f"training data {data.name!r}",
            reason="a single slice, where its neighbours serve as references",
            hint="Give a volume.",
        )
    if data.name == scan.name and np.array_equal(data.hu, scan.hu):
        raise OptionError(
            f"training data {data.name!r}",
            reason="it is the scan itself",
            hint="Give CT of other bodies.",
        )


def _check_pixels(what: str, pixel_mm: float, scan: Scan) -> None:
    if abs(pixel_mm / scan.pixel_mm - 1) > _UNLIKE:
        raise OptionError(
            what,
            reason=f"its pixels are {pixel_mm:g} mm wide, those of the scan {scan.pixel_mm:g} mm",
            hint="Resample the scan, or train a model for it: leave out --model.",
        )


def _checked_overlap(reference: Scan, references: Tensor, given: Tensor) -> float:
    shared = overlap(references, given)
    if shared < _LEAST_OVERLAP:
        raise OptionError(
            f"reference {reference.name!r}",
            reason=f"its body covers that of the scan too little (Dice {shared:.2f})",
            hint="Give a scan of the same body at the same place.",
        )
    return shared


def _loaded(path: Any, scan: Scan, dose: Dose) -> Model:
    model = Model.load(Path(path).expanduser())
    _check_pixels(f"model {str(path)!r}", model.pixel_mm, scan)
    if (model.dose.views, model.dose.photons) != (dose.views, dose.photons):
        raise OptionError(
            f"model {str(path)!r}",
            reason=f"trained for {model.dose.views} views and {model.dose.photons:g} photons, "
            f"not for {dose.views} and {dose.photons:g}",
            hint=f"Give --views {model.dose.views} --photons {model.dose.photons:g}, or leave out "
            "--model.",
        )
    return model


# ── steps ───────────────────────────────────────────────────────────────────────────────────────


def _tensor(scan: Scan) -> Tensor:
    """The slices [n, s, s], squares with air around them, in HU."""
    depth, rows, columns = scan.hu.shape
    side = max(rows, columns)
    square = np.full((depth, side, side), _AIR, np.float32)
    square[:, :rows, :columns] = np.maximum(scan.hu, -1024)
    return torch.from_numpy(square)


def _trained(
    inputs: Inputs, scan: Scan, data: Scan | None, generator: torch.Generator, job: Job
) -> Model:
    """A model for scans of this size, pixel and dose."""
    started = time.process_time()
    torch.manual_seed(inputs.seed)
    rng = np.random.default_rng(inputs.seed)
    dose, size = Dose(inputs.views, inputs.photons), max(scan.hu.shape[1:])
    count = max(CASES * CASE_PIXELS // size**2, FEWEST_CASES)
    cases = [random_case(rng, size * scan.pixel_mm) for _ in range(min(count, CASES))]
    pairs = drawn(cases, size, scan.pixel_mm, dose, generator)
    words = f"{len(cases)} drawn phantoms"
    if data is not None:
        pairs = _with_data(pairs, _tensor(data), scan.pixel_mm, dose, generator)
        words += f" and {len(data.hu)} slices of {data.name}"
    job.notes.append(f"trained on {words}; phantoms are smoother than people")
    total = 2 * inputs.training_steps
    restorer, tower = train_restorer(
        pairs,
        inputs.training_steps,
        generator,
        lambda step, loss: job.report("training", step + 1, total),
    )
    adapter = train_adapter(
        restorer,
        tower,
        pairs,
        inputs.training_steps,
        generator,
        lambda step, loss: job.report("training", inputs.training_steps + step + 1, total),
    )
    limits = calibrated(restorer, pairs)
    job.measured["training_cpu_seconds"] = time.process_time() - started
    return Model(restorer, adapter, limits, dose, scan.pixel_mm, words)


def _with_data(
    pairs: Pairs, slices: Tensor, pixel_mm: float, dose: Dose, generator: torch.Generator
) -> Pairs:
    """Also a person's own slices, cut or filled up to the size of the phantoms; the neighbour of
    each is its reference."""
    side = pairs.target.shape[-1]
    fitted = torch.full((len(slices), side, side), _AIR)
    least = min(side, slices.shape[-1])
    ours, theirs = (side - least) // 2, (slices.shape[-1] - least) // 2
    fitted[:, ours : ours + least, ours : ours + least] = slices[
        :, theirs : theirs + least, theirs : theirs + least
    ]
    own = taken(fitted, fitted.roll(1, 0), pixel_mm, dose, generator)
    return Pairs(
        *(torch.cat((one, vars(own)[name])) for name, one in vars(pairs).items()),
    )


def _tell_agreement(job: Job, agreed: list[float], least: float) -> None:
    job.measured["agreement"] = float(np.mean(agreed))
    job.notes.append(
        "what only the reference shows can appear in the result: on drawn bodies, 9 of 40 lesions "
        "did at 10,000 photons (21 without the check and at trust 1), 2 of 40 without a reference"
    )
    other = sum(one < least for one in agreed)
    if other:
        job.notes.append(
            f"{other} of {len(agreed)} slices agree with the reference less than {least:.2f}, as "
            "if it were another body"
        )


def _progress(job: Job, what: str) -> Any:
    return lambda done, total: job.report(what, done, total)


# ── figures and pictures ────────────────────────────────────────────────────────────────────────


def _measure(
    job: Job,
    inputs: Inputs,
    results: dict[str, Tensor],
    restored: Tensor,
    trust: Tensor | None,
    truth: Tensor | None,
) -> None:
    low = results["fbp"]
    sigma = estimated_noise(low)
    job.measured |= {"noise_before": sigma, "noise_after": estimated_noise(restored)}
    if trust is not None:
        body = restored > -500
        job.measured["trust"] = float(trust[body].mean()) if body.any() else float("nan")
    if truth is None:
        job.notes.append("no truth is known: nothing says whether the restored slices are right")
        return
    window = WINDOWS[inputs.window]
    means = [non_local_means(low, strength * sigma, sigma) for strength in _STRENGTHS]
    best = max(means, key=lambda one: mean_likeness(one, truth, window)[0])
    for method, found in {"fbp": low, "nlm": best, **results}.items():
        for name, shown in WINDOWS.items():
            psnr, ssim = mean_likeness(found, truth, shown)
            job.measured[f"psnr_{name}_{method}"] = psnr
            job.measured[f"ssim_{name}_{method}"] = ssim


def mean_likeness(found: Tensor, truth: Tensor, window: Window) -> tuple[float, float]:
    """Means of PSNR and SSIM over slices [n, h, w] in HU."""
    pairs = zip(found.numpy(), truth.numpy(), strict=True)
    psnr, ssim = np.mean([likeness(a, b, window) for a, b in pairs], 0)
    return float(psnr), float(ssim)


def _hand_over(
    job: Job,
    inputs: Inputs,
    scan: Scan,
    restored: Tensor,
    low: Tensor,
    references: Tensor | None,
    truth: Tensor | None,
) -> None:
    window = WINDOWS[inputs.window]
    rows, columns = scan.hu.shape[1:]
    shown = sorted({*np.linspace(0, len(restored) - 1, SHOWN).round().astype(int).tolist()})

    def picture(slices: Tensor, index: int) -> Image.Image:
        return _picture(slices[index, :rows, :columns].numpy(), window)

    middle = shown[len(shown) // 2]
    others: Iterable[tuple[str, Tensor | None]] = (
        ("low dose", low),
        ("reference", references),
        ("full dose", truth),
    )
    for label, slices in others:
        if slices is not None:
            job.show(f"{label}, slice {middle + 1}", picture(slices, middle))
    for index in shown:
        job.add(f"slice {index + 1} restored; research only", picture(restored, index))
    volume = nifti_bytes(
        restored[:, :rows, :columns].numpy(), scan.pixel_mm, scan.slice_mm or scan.pixel_mm
    )
    job.file("-restored.nii.gz", lambda path: path.write_bytes(volume))


def _picture(hu: Array, window: Window) -> Image.Image:
    return Image.fromarray(np.rint(window.shown(hu)).astype(np.uint8))
