"""restore-ct: low-dose CT restored, with or without an earlier scan as reference; research only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imageprompt.core.schema import Option
from imageprompt.generation.option_values import FILE
from imageprompt.workflows.contract import Workflow
from imageprompt.workflows.inputs import control

if TYPE_CHECKING:
    from imageprompt.workflows.job import Job

SCANS = "scans"
"""The group of inputs that are CT."""


def _scan(help_text: str) -> Option:
    return Option(help_text, metavar="FILE_OR_FOLDER", json=FILE, group=SCANS)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A scan, what is known of it, and how it is restored."""

    scan: Annotated[
        Any, _scan("CT in HU: a DICOM file, a folder with those of one series, or NIfTI")
    ]
    reference: Annotated[
        Any,
        _scan("an earlier scan of the same body: one slice, or as many as the scan has"),
    ] = None
    dose: Annotated[
        Literal["low", "full"],
        control("of the scan; full: take it at low dose first, and measure against it"),
    ] = "low"
    views: Annotated[int, control("views of the low dose", metavar="N", ge=8, le=720)] = 60
    photons: Annotated[
        float, control("photons on a detector without a body", metavar="N", ge=100, le=1e7)
    ] = 1e4
    scale: Annotated[
        float, control("how far the reference counts, 0..2; 0: not", metavar="S", ge=0, le=2)
    ] = 1.0
    check: Annotated[
        Literal["scan", "none"],
        control("what the reference adds is checked against the scan (default), or not"),
    ] = "scan"
    trust: Annotated[
        float,
        control(
            "how much of what the reference changes is taken over, 0..1; less: fewer false "
            "structures, less gain",
            metavar="SHARE",
            ge=0,
            le=1,
        ),
    ] = 0.8
    window: Annotated[Literal["abdomen", "chest", "head"], control("HU window of the pictures")] = (
        "abdomen"
    )
    model: Annotated[
        Any,
        Option(
            "...-model.safetensors of an earlier run (default: train one on phantoms)",
            metavar="FILE",
            json=FILE,
            group="training",
        ),
    ] = None
    data: Annotated[
        Any,
        Option(
            "full-dose CT of other bodies to train on beside phantoms: a volume with pixels as "
            "wide as the scan's",
            metavar="FILE_OR_FOLDER",
            json=FILE,
            group="training",
        ),
    ] = None
    training_steps: Annotated[
        int,
        Option(
            "steps for the restorer, and as many for its reference", "N", ge=2, group="training"
        ),
    ] = 1500
    seed: Annotated[int, control("of training and simulation", metavar="N", ge=0)] = 1


def steps(inputs: Inputs, job: Job) -> None:
    from imageprompt.workflows.restore_ct.run import restore

    restore(inputs, job)


_ROWS = "fbp: the low dose itself; nlm: non-local means; alone: without the reference; reference"

WORKFLOW = Workflow(
    name="restore-ct",
    summary="low-dose CT restored, with or without an earlier scan as reference; research only",
    inputs=Inputs,
    steps=steps,
    measures={
        "psnr_*": f"dB by window and method, both clipped to it ({_ROWS}); with --dose full",
        "ssim_*": "SSIM, likewise",
        "noise_before": "estimated standard deviation of the scan's noise, in HU",
        "noise_after": "likewise, of the restored slices",
        "trust": "how far the reference counts, mean inside the body, 0..1",
        "agreement": "mean correlation of reference and restored slice in windows, -1..1",
        "overlap": "Dice of the bodies of scan and reference, 0..1",
        "training_cpu_seconds": "CPU time of the training",
    },
)
