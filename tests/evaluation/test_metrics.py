"""Metrics beside the numbers of reference libraries, which ran when the tests were written.

torch-fidelity, pytorch-fid, clean-fid and torchmetrics (FID, KID, Inception score, MS-SSIM), the
port of CMMD, prdc, vendi-score, scikit-image (PSNR, SSIM, CIEDE2000).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from imageprompt.evaluation.extractors import EXTRACTORS
from imageprompt.evaluation.metrics import METRICS, _blocks
from imageprompt.evaluation.metrics._blocks import mean_kernel, mean_kernel_within
from imageprompt.evaluation.metrics.attributes import attributes
from imageprompt.evaluation.metrics.cmmd import cmmd
from imageprompt.evaluation.metrics.contract import FeatureMetric, PixelMetric, TextMetric, cosine
from imageprompt.evaluation.metrics.delta_e import ciede2000, delta_e
from imageprompt.evaluation.metrics.fid import fid
from imageprompt.evaluation.metrics.inception_score import inception_score
from imageprompt.evaluation.metrics.kid import kid
from imageprompt.evaluation.metrics.lab import lab
from imageprompt.evaluation.metrics.ms_ssim import MIN_SIDE, ms_ssim
from imageprompt.evaluation.metrics.precision_recall import precision_recall
from imageprompt.evaluation.metrics.psnr import psnr
from imageprompt.evaluation.metrics.ssim import ssim
from imageprompt.evaluation.metrics.vendi import vendi
from imageprompt.evaluation.metrics.words import words
from imageprompt.evaluation.scoring.score import _within
from imageprompt.evaluation.statistics.intervals import UNKNOWN, Interval

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(500, 16)), RNG.normal(0.3, 1.2, size=(400, 16))


def pair() -> tuple[Any, Any]:
    """A picture of noise, 192 pixels, and the same with more noise."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (192, 192, 3), dtype=np.uint8)
    return a, np.clip(np.rint(a + rng.normal(0, 20, a.shape)), 0, 255).astype(np.uint8)


A, B = pair()

# ── sets ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("measure", "rows", "expected"),
    [
        (fid, (X, Y), 2.64827392103),
        (fid, (X[:250], X[250:]), 0.56871642883),
        (kid, (X[:400], Y), 0.44342967293),
        (kid, (X[:250], X[250:]), -0.00824689802),
        (kid, (X, Y), 0.441652371907),
        (cmmd, (X, Y), 0.69282995751),
        (inception_score, (X,), 1.51361712413),
        (vendi, (X[:50],), 13.9320543919),
        (vendi, (X[:10],), 7.419166137286),  # fewer rows than columns
    ],
)
def test_metrics_of_sets(measure: Callable[..., float], rows: Any, expected: float) -> None:
    assert measure(*rows) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("k", "expected"), [(5, (0.575, 0.962, 0.361, 0.664)), (3, (0.4575, 0.924, 0.355, 0.490))]
)
def test_precision_and_recall(k: int, expected: tuple[float, ...]) -> None:
    """X is real in prdc, Y made: here the pictures come first."""
    found = precision_recall(Y, X, k, k)
    names = ("precision", "recall", "density", "coverage")
    assert found == pytest.approx(dict(zip(names, expected, strict=True)))
    assert METRICS["precision-recall"].range_of("recall") == (0, 1)
    assert METRICS["precision-recall"].range_of("density") == (0, None)
    mixed = precision_recall(Y, X)
    assert mixed == pytest.approx(
        {"precision": 0.4575, "recall": 0.924, "density": 0.361, "coverage": 0.664}
    )


@pytest.mark.parametrize(
    ("measure", "rows"),
    [(fid, (Y, X)), (kid, (Y, X)), (cmmd, (Y, X)), (precision_recall, (Y, X)), (vendi, (X,))],
)
def test_sets_are_read_in_blocks(
    measure: Callable[..., Any], rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(*rows)
    monkeypatch.setattr(_blocks, "BLOCK", 64)
    assert measure(*rows) == pytest.approx(whole, rel=1e-10)


def test_a_block_is_all_that_exists_of_a_square_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "BLOCK", 500)
    rows = np.ones((1500, 2), np.float32)
    largest = 0

    def kernel(products: Any) -> Any:
        nonlocal largest
        largest = max(largest, products.size)
        return products

    assert mean_kernel(rows, rows, kernel) == pytest.approx(2)
    assert mean_kernel_within(rows, kernel) == pytest.approx((2, 2))
    assert largest == 500**2


def test_intervals_end_where_values_do() -> None:
    assert _within(Interval(-0.2, 1.3), (0, 1)) == Interval(0, 1)
    assert _within(Interval(-0.2, 1.3), (0, None)) == Interval(0, 1.3)
    assert not _within(UNKNOWN, (0, 1)).known


def test_equal_sets() -> None:
    assert fid(X, X) == pytest.approx(0, abs=1e-9)
    assert cmmd(X, X) == pytest.approx(0, abs=1e-9)
    found = precision_recall(X, X)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert vendi(np.tile(X[:1], (20, 1))) == pytest.approx(1)
    assert vendi(np.eye(7)) == pytest.approx(7)
    assert inception_score(np.eye(8) * 1000) == pytest.approx(8)


def test_fid_with_fewer_rows_than_columns() -> None:
    """The covariances have no full rank; the trace of the root is still that of the product."""
    a, b = X[:12], Y[:7]
    difference = np.square(a.mean(0) - b.mean(0)).sum()
    eigenvalues = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real
    shared = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    expected = difference + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * shared
    assert fid(a, b) == pytest.approx(expected, rel=1e-6)


# ── pixels ──────────────────────────────────────────────────────────────────────────────────────


def test_pictures_of_the_reference_numbers() -> None:
    assert (A.sum(), B.sum()) == (14075020, 14074685)


@pytest.mark.parametrize(
    ("measure", "expected", "tolerance"),
    [
        (psnr, 22.480400449, 1e-9),
        (ssim, 0.965606855515, 1e-9),
        (ms_ssim, 0.970097944342, 1e-8),
        (delta_e, 7.586532447265, 1e-6),
    ],
)
def test_metrics_of_pixels(
    measure: Callable[..., float], expected: float, tolerance: float
) -> None:
    assert measure(B, A) == pytest.approx(expected, rel=tolerance)


def test_structure_of_odd_sizes() -> None:
    a, b = A[:179, :191], B[:179, :191]
    assert ssim(b, a) == pytest.approx(0.965706747906, rel=1e-9)
    assert ms_ssim(b, a) == pytest.approx(0.970315109328, rel=1e-8)
    smallest = A[:MIN_SIDE, :MIN_SIDE]
    assert ms_ssim(smallest, smallest) == pytest.approx(1)


SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
]
"""Of the table of Sharma, Wu and Dalal: opposite hues, greys, blues, dark colours."""


def test_colour_differences_of_the_published_table() -> None:
    a, b, expected = (np.array(column, np.float64) for column in zip(*SHARMA, strict=True))
    np.testing.assert_allclose(ciede2000(a, b), expected, atol=5e-5)
    np.testing.assert_allclose(ciede2000(b, a), expected, atol=5e-5)


def test_colour_distance_ignores_places_and_sizes() -> None:
    assert lab(A[::-1], A) == pytest.approx(0, abs=0.5)
    bright = np.full((40, 60, 3), 200, np.uint8)
    dark = np.full((64, 64, 3), 100, np.uint8)
    assert lab(bright, bright[:20]) == pytest.approx(0, abs=1e-6)
    assert 35 < lab(bright, dark) < 45


# ── rows ────────────────────────────────────────────────────────────────────────────────────────


def test_cosines_of_pairs() -> None:
    values = cosine(X[:400], Y)
    assert values.mean() == pytest.approx(-0.00970629485, rel=1e-9)
    assert (2.5 * np.maximum(values, 0)).mean() == pytest.approx(0.24081116808, rel=1e-9)
    assert np.isnan(cosine(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32))).all()


def test_attributes_and_words_that_the_judge_reads() -> None:
    pictures = np.array([[0, 1, 2, 3, 1], [0, 1, 2, 3, 1], [0, 1, 2, 3, 1], [np.nan] * 5])
    references = np.array([[0, 1, 2, 3, 1], [0, 9, 9, 3, 9], [np.nan] * 5, [0, 1, 2, 3, 1]])
    np.testing.assert_equal(attributes(pictures, references), [1, 0.4, np.nan, np.nan])
    texts = np.array([[0, 1, -1, -1, -1], [9, -1, 2, 3, 9], [-1] * 5, [0, 1, 2, 3, 1]])
    np.testing.assert_equal(words(pictures, texts), [1, 0.5, np.nan, np.nan])


# ── what metrics say of themselves ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("metric", [*METRICS], ids=lambda metric: metric.name)
def test_a_metric_states_what_it_is(metric: Any) -> None:
    assert all((metric.title, metric.summary, metric.formula, metric.source))
    assert len(metric.summary) < 90
    assert metric.extractor is None or EXTRACTORS[metric.extractor]
    if isinstance(metric, PixelMetric) and metric.extractor is None:
        side = max(metric.min_side, 11)
        a, b = A[:side, :side], B[:side, :side]
        assert metric.compare(a, a) != metric.compare(b, a)
        low, high = metric.range
        assert (low or 0) <= metric.compare(b, a) <= (high or np.inf)
    if isinstance(metric, FeatureMetric | TextMetric):
        rows = np.ones((2, 5), np.float32)
        rows[1] = np.nan
        values = metric.compare(rows, np.ones((2, 5), np.float32))
        np.testing.assert_allclose(values, [1, np.nan])
