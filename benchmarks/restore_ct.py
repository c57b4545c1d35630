"""Does a reference help `restore-ct`, and what does a wrong one do? On bodies never trained on.

    python benchmarks/restore_ct.py [--views 60] [--photons 10000] [--cases 320] [--test 40]
                                    [--steps 600] [--reference-steps 900] [--folder DIR]
                                    [--volume FILE] [--slices FILE ...] [--json FILE] [--quick]

Trains a restorer on drawn phantoms, then its reference on the frozen restorer, and for comparison a
restorer whose second channel is the reference, from the same pairs; in one thread. Then it restores
held-out phantoms, each with the right reference (another day, moved), the reference of another
body, one with a lesion that the scan lacks, and one without the lesion that the scan has.

A lesion counts as false if the restored slice has at least half of its contrast where the scan has
none, and as missed if it has less than half where the scan has it. PSNR and SSIM are those of the
abdominal window, both pictures clipped; a difference has a 95 % interval over bodies. `trust` has
the gain with the right reference, and the lesions of the other one, by the command's --trust. Rows
that are not checked have trust 1.

--volume: any NIfTI volume with several slices, of any modality: its values are brought to those of
soft tissue, and the slice 2 mm above is the reference. --slices: DICOM slices, pooled to 128 pixels
as if the phantoms' field of view were theirs, each its own reference, shifted. Neither was trained
on. --folder keeps what was trained, and takes it up again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imageprompt.evaluation.statistics.intervals import wilson
from imageprompt.evaluation.statistics.paired import compare_differences
from imageprompt.workflows.restore_ct.baselines import estimated_noise, non_local_means
from imageprompt.workflows.restore_ct.measures import WINDOWS, contrast, likeness
from imageprompt.workflows.restore_ct.model import Model
from imageprompt.workflows.restore_ct.network import UNIT, Adapter, Restorer
from imageprompt.workflows.restore_ct.notice import NOTICE
from imageprompt.workflows.restore_ct.phantoms import (
    Body,
    draw,
    later_scan,
    random_body,
    region,
)
from imageprompt.workflows.restore_ct.projection import FULL, Dose, low_dose, noise_free
from imageprompt.workflows.restore_ct.registration import registered
from imageprompt.workflows.restore_ct.scans import open_scan
from imageprompt.workflows.restore_ct.training import (
    Pairs,
    calibrated,
    drawn,
    random_case,
    train_adapter,
    train_channel,
    train_restorer,
)

SIZE, PIXEL_MM = 128, 3.0
WINDOW = WINDOWS["abdomen"]
STRENGTHS = (0.4, 0.7, 1.0, 1.4, 2.0)
TRUSTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Held:
    """Bodies [n, s, s] in HU: truth and low dose with and without a lesion, references likewise."""

    truth: Tensor
    low: Tensor
    truth_without: Tensor
    low_without: Tensor
    reference: Tensor
    reference_without: Tensor
    bodies: list[Body]


def held_out(count: int, dose: Dose, generator: torch.Generator) -> Held:
    rng = np.random.default_rng(10_000)
    bodies = [random_body(rng, SIZE * PIXEL_MM) for _ in range(count)]
    later = [later_scan(rng, one) for one in bodies]
    shifts = [tuple(rng.uniform(-15, 15, 2).tolist()) for _ in bodies]

    def drawn_of(some: Sequence[Body], lesion: bool, moved: bool) -> Tensor:
        shown = [one if lesion else replace(one, lesions=()) for one in some]
        pictures = [
            draw(one, SIZE, PIXEL_MM, shift=shift if moved else (0.0, 0.0))
            for one, shift in zip(shown, shifts, strict=True)
        ]
        return torch.from_numpy(np.stack(pictures)).float()

    parts: list[Tensor] = []
    for lesion in (True, False):
        scan = drawn_of(bodies, lesion, False)
        parts += [noise_free(scan, PIXEL_MM), low_dose(scan, PIXEL_MM, dose, generator)]
    for lesion in (True, False):
        parts.append(low_dose(drawn_of(later, lesion, True), PIXEL_MM, FULL, generator))
    return Held(*parts, bodies)


# ── training ────────────────────────────────────────────────────────────────────────────────────


def trained(arguments: argparse.Namespace, dose: Dose) -> tuple[Model, Restorer, dict[str, float]]:
    """The model, the restorer with a second channel, and CPU seconds."""
    rng = np.random.default_rng(0)
    seconds: dict[str, float] = {}
    start = time.process_time()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = round(time.process_time() - start, 1), time.process_time()
        print(f"{name}: {seconds[name]} CPU seconds", flush=True)

    def draw_pairs(generator: torch.Generator) -> Pairs:
        cases = [random_case(rng, SIZE * PIXEL_MM) for _ in range(arguments.cases)]
        return drawn(cases, SIZE, PIXEL_MM, dose, generator)

    pairs: Pairs = _kept(arguments, "pairs", 0, draw_pairs)
    lap("phantoms")
    restorer, tower = _kept(
        arguments,
        "restorer",
        0,
        lambda generator: train_restorer(pairs, arguments.steps, generator, _told("restorer")),
    )
    lap("restorer")
    adapter: Adapter = _kept(
        arguments,
        "adapter",
        1,
        lambda generator: train_adapter(
            restorer, tower, pairs, arguments.reference_steps, generator, _told("reference")
        ),
    )
    lap("reference")
    channel: Restorer = _kept(
        arguments,
        "channel",
        2,
        lambda generator: train_channel(
            restorer, tower, pairs, arguments.steps, generator, _told("channel")
        ),
    )
    lap("channel")
    limits = calibrated(restorer, pairs)
    print(f"limits: {limits}", flush=True)
    model = Model(restorer, adapter, limits, dose, PIXEL_MM, "drawn phantoms")
    return model, channel, seconds


def _kept(
    arguments: argparse.Namespace, name: str, seed: int, make: Callable[[torch.Generator], Any]
) -> Any:
    """What `make` returns, with seeds of its own; with --folder from there, if it is there."""
    path = arguments.folder and arguments.folder / f"{name}.pt"
    if path and path.exists():
        return torch.load(path, weights_only=False)  # written by this file
    torch.manual_seed(seed)
    made = make(torch.Generator().manual_seed(seed))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, path)
    return made


def _told(name: str) -> Callable[[int, float], None]:
    losses: list[float] = []

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % 100 == 0:
            print(f"{name} {step + 1}: loss {np.mean(losses[-100:]):.4f}", flush=True)

    return tell


@torch.no_grad()
def with_channel(channel: Restorer, low: Tensor, reference: Tensor, alone: Tensor) -> Tensor:
    moved = registered(reference / UNIT, alone / UNIT)
    stacked = torch.stack((low / UNIT, moved), 1)
    return torch.cat([channel(part)[:, 0] for part in torch.split(stacked, 4)]) * UNIT


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def figures(found: Tensor, truth: Tensor) -> Array:
    """PSNR, SSIM and RMSE in HU of each slice, [n, 3]."""
    rows = []
    for a, b in zip(found.numpy(), truth.numpy(), strict=True):
        clipped = WINDOW.shown(a) - WINDOW.shown(b)
        rmse = float(np.sqrt(np.square(clipped).mean())) * WINDOW.width / 255
        rows.append((*likeness(a, b, WINDOW), rmse))
    return np.array(rows)


def best_means(low: Tensor, truth: Tensor) -> Tensor:
    """Non-local means at the strength that is best for these very slices: a generous baseline."""
    sigma = estimated_noise(low)
    found = [non_local_means(low, strength * sigma, sigma) for strength in STRENGTHS]
    return max(found, key=lambda one: figures(one, truth)[:, 0].mean())


def table(
    model: Model, channel: Restorer | None, low: Tensor, truth: Tensor, right: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The rows of one set of slices, and the slices of each row; wrong is that of another body."""
    wrong = right.roll(1, 0)
    alone = model.restore(low).slices
    rows = {
        "FBP": low,
        "non-local means": best_means(low, truth),
        "alone": alone,
        "right reference": model.restore(low, right).slices,
        "wrong reference": model.restore(low, wrong).slices,
        "right, not checked": model.restore(low, right, trust=1.0, checked=False).slices,
        "wrong, not checked": model.restore(low, wrong, trust=1.0, checked=False).slices,
    }
    if channel is not None:
        rows["channel, right"] = with_channel(channel, low, right, alone)
        rows["channel, wrong"] = with_channel(channel, low, wrong, alone)
    values = {name: figures(found, truth) for name, found in rows.items()}
    shown: dict[str, Any] = {
        name: dict(zip(("psnr", "ssim", "rmse_hu"), own.mean(0).round(4).tolist(), strict=True))
        for name, own in values.items()
    }
    for name in ("right reference", "wrong reference", *list(rows)[5:]):
        shown[name]["psnr_less_alone"] = difference(values[name], values["alone"])
    shown["alone"]["psnr_less_fbp"] = difference(values["alone"], values["FBP"])
    shown["alone"]["psnr_less_means"] = difference(values["alone"], values["non-local means"])
    shown["right reference"]["psnr_less_wrong"] = difference(
        values["right reference"], values["wrong reference"]
    )
    return shown, rows


def difference(a: Array, b: Array) -> list[float]:
    """Mean difference of PSNR, and its 95 % interval."""
    result = compare_differences(a[:, 0] - b[:, 0])
    return [round(v, 3) for v in (result.difference, result.interval.low, result.interval.high)]


def lesions(model: Model, channel: Restorer, held: Held) -> dict[str, Any]:
    """How often a lesion is false or missed; the other reference has it where the scan does not, or
    the reverse."""
    alone = {"with": model.restore(held.low).slices}
    alone["without"] = model.restore(held.low_without).slices
    sets = {}
    for kind, low, base, same, other in (
        ("false", held.low_without, alone["without"], held.reference_without, held.reference),
        ("missed", held.low, alone["with"], held.reference, held.reference_without),
    ):
        sets |= {
            f"{kind}, alone": base,
            f"{kind}, right reference": model.restore(low, same).slices,
            f"{kind}, other reference": model.restore(low, other).slices,
            f"{kind}, right, not checked": model.restore(
                low, same, trust=1.0, checked=False
            ).slices,
            f"{kind}, other, not checked": model.restore(
                low, other, trust=1.0, checked=False
            ).slices,
            f"{kind}, channel, other": with_channel(channel, low, other, base),
        }
    return {name: judged(held, found, "missed" in name) for name, found in sets.items()}


def curve(model: Model, held: Held) -> dict[str, list[dict[str, Any]]]:
    """Gain with the right reference, and lesions of the other reference, by `--trust`, with the
    check and without: what the reference changes is taken over in part."""
    with_it, without = (model.restore(low).slices for low in (held.low, held.low_without))
    before = figures(with_it, held.truth)
    shown = {}
    for checked in (True, False):
        sets = {
            name: (base, model.restore(low, reference, trust=1.0, checked=checked).slices)
            for name, base, low, reference in (
                ("right", with_it, held.low, held.reference),
                ("false", without, held.low_without, held.reference),
                ("missed", with_it, held.low, held.reference_without),
            )
        }
        rows = []
        for trust in TRUSTS:
            found = {name: torch.lerp(*both, trust) for name, both in sets.items()}
            gain = difference(figures(found["right"], held.truth), before)
            row: dict[str, Any] = {"trust": trust, "psnr_less_alone": gain}
            for name in ("false", "missed"):
                row[name] = judged(held, found[name], name == "missed")
            rows.append(row)
        shown["checked" if checked else "not checked"] = rows
    return shown


def judged(held: Held, found: Tensor, present: bool) -> dict[str, Any]:
    """How many lesions are missed (`present`) or false, and the 95 % interval of the share."""
    shares = np.array([_share(held, found, i, present) for i in range(len(found))])
    hits = int((shares < 0.5).sum() if present else (shares >= 0.5).sum())
    interval = wilson(hits, len(shares))
    return {
        "count": hits,
        "of": len(shares),
        "interval": [round(interval.low, 3), round(interval.high, 3)],
        "median_share_of_contrast": round(float(np.median(shares)), 3),
    }


def _share(held: Held, found: Tensor, index: int, present: bool) -> float:
    """The contrast of the lesion in a restored slice, as a share of its true contrast; where the
    scan has none, beyond what the scan shows there without it."""
    (lesion,) = held.bodies[index].lesions
    inside = region(lesion, SIZE, PIXEL_MM, grow=0.8)
    around = region(lesion, SIZE, PIXEL_MM, grow=2.0) & ~region(lesion, SIZE, PIXEL_MM, grow=1.3)
    with_it, without, own = (
        contrast(one[index].numpy(), inside, around)
        for one in (held.truth, held.truth_without, found)
    )
    return (own - without) / (with_it - without)


# ── other slices ────────────────────────────────────────────────────────────────────────────────


def of_volume(path: Path, dose: Dose, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Low dose, truth and references of slices of any volume; the neighbour 2 mm above."""
    import gzip

    content = gzip.decompress(path.read_bytes())
    columns, rows, depth = map(int, np.frombuffer(content, "<i2", 3, 42))
    voxels = np.frombuffer(content, "u1", columns * rows * depth, 352).reshape(depth, rows, columns)
    chosen = np.arange(depth // 4, depth * 3 // 4, 4)
    both = []
    for indices in (chosen, chosen + 2):
        grey = torch.from_numpy(voxels[indices].astype(np.float32))
        tissue = torch.where(grey > 0, grey / float(np.percentile(voxels, 99)) * 250 - 100, -1000.0)
        both.append(_fitted(tissue))
    return _taken(*both, dose, generator)


def of_slices(paths: list[Path], dose: Dose, generator: torch.Generator) -> tuple[Tensor, ...]:
    slices = [_fitted(torch.from_numpy(open_scan(path).hu[:1].clip(-1024))) for path in paths]
    stacked = torch.cat(slices)
    return _taken(stacked, stacked.roll((2, -3), (1, 2)), dose, generator)


def _fitted(slices: Tensor) -> Tensor:
    """Squares, pooled to the size of the phantoms."""
    side = max(-(-max(slices.shape[1:]) // SIZE) * SIZE, SIZE)
    down, right = ((side - length) for length in slices.shape[1:])
    edges = (right // 2, right - right // 2, down // 2, down - down // 2)
    square = F.pad(slices, edges, value=-1000.0)
    return F.avg_pool2d(square[:, None], side // SIZE)[:, 0]


def _taken(
    slices: Tensor, references: Tensor, dose: Dose, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        low_dose(slices, PIXEL_MM, dose, generator),
        noise_free(slices, PIXEL_MM),
        low_dose(references, PIXEL_MM, FULL, generator),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--photons", type=float, default=1e4)
    parser.add_argument("--cases", type=int, default=320)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--reference-steps", type=int, default=900)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--volume", type=Path)
    parser.add_argument("--slices", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cases, arguments.test = 8, 3
        arguments.steps, arguments.reference_steps = 5, 5
    torch.set_num_threads(1)
    dose = Dose(arguments.views, arguments.photons)
    model, channel, seconds = trained(arguments, dose)
    if arguments.folder:
        model.save(arguments.folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    held = held_out(arguments.test, dose, generator)
    phantoms, _ = table(model, channel, held.low, held.truth, held.reference)
    report: dict[str, Any] = {
        "notice": NOTICE,
        "dose": vars(dose),
        "cpu_seconds": seconds,
        "phantoms": phantoms,
        "lesions": lesions(model, channel, held),
        "trust": curve(model, held),
    }
    if arguments.volume:
        low, truth, right = of_volume(arguments.volume, dose, generator)
        report["volume"], _ = table(model, channel, low, truth, right)
    if arguments.slices:
        low, truth, right = of_slices(arguments.slices, dose, generator)
        report["slices"], _ = table(model, channel, low, truth, right)
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
