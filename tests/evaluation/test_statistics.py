"""Statistics: equal to reference libraries, and they hold what they promise (simulated studies).

The numbers of reference libraries were computed with scipy 1.17.1, krippendorff 0.9.0 and choix
0.4.1.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluation_statistics as simulated
from imageprompt.core.errors import OptionError
from imageprompt.evaluation.statistics import intervals, paired
from imageprompt.evaluation.statistics.agreement import krippendorff
from imageprompt.evaluation.statistics.intervals import (
    Clusters,
    Interval,
    draws,
    jackknife,
    mean_interval,
    share_interval,
    t_quantile,
    t_tail,
    wilson,
)
from imageprompt.evaluation.statistics.paired import (
    choices_needed,
    compare_differences,
    holm,
    prompts_needed,
    sign_flip_p,
    sign_test_p,
    spread,
)
from imageprompt.evaluation.statistics.preferences import (
    PRIOR,
    bradley_terry,
    bradley_terry_over_prompts,
)

NAN = math.nan
NUMBERS = np.random.default_rng(0)
BEFORE = NUMBERS.normal(0.8, 0.05, 40)
DIFFERENCES = NUMBERS.normal(0.02, 0.03, 40)  # of pairs x, x - difference
PROMPTS = np.repeat(np.arange(10), 4)


def both(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


# ── intervals ───────────────────────────────────────────────────────────────────────────────────


def test_wilson() -> None:
    assert both(wilson(32, 50)) == pytest.approx([0.501410168761127, 0.758612503481533], rel=1e-9)
    assert both(wilson(0, 20)) == pytest.approx([0, 0.161125158052819], rel=1e-9)
    assert wilson(20, 20).high == 1


@pytest.mark.parametrize(
    ("t", "freedom", "expected"),
    [
        (2.0, 1, 0.2951672353008665),
        (2.0, 2, 0.18350341907227397),
        (-2.5, 7, 0.04099221858575289),
        (1.0, 12, 0.33704905795358453),
        (3.0, 101, 0.003400481600681083),
    ],
)
def test_t_distribution(t: float, freedom: int, expected: float) -> None:
    assert t_tail(t, freedom) == pytest.approx(expected, rel=1e-9)
    assert t_quantile(1 - expected / 2, freedom) == pytest.approx(abs(t), rel=1e-9)


def test_the_pairs_of_the_reference() -> None:
    """Mean, t test, and BCa to the digit: it draws the resamples that scipy draws."""
    differences = BEFORE - (BEFORE - DIFFERENCES)
    clusters = Clusters.of(differences)
    assert clusters.mean == pytest.approx(0.0290338541, rel=1e-6)
    p = t_tail(clusters.mean / clusters.standard_error, 39)
    assert p == pytest.approx(1.968681819898e-6, rel=1e-6)
    found = both(mean_interval(differences, method="bca", resamples=9999))
    assert found == pytest.approx([0.018648666929656, 0.038797073755973], rel=1e-9)
    half = t_quantile(0.975, 39) * clusters.standard_error
    expected = [clusters.mean - half, clusters.mean + half]
    assert both(mean_interval(differences, method="t")) == pytest.approx(expected)


def test_differences_that_are_mostly_zero_have_a_bounded_interval() -> None:
    """One resample in ten has none of the three others: its studentised mean has no bounds."""
    values = np.zeros(24)
    values[[3, 9, 15]] = 0.2, -0.2, 0.2
    assert mean_interval(values) == mean_interval(values, method="t")
    values[[4, 5, 6, 7, 8]] = 0.3, 0.1, 0.2, 0.2, 0.1
    assert mean_interval(values) != mean_interval(values, method="t")


def test_resamples_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_interval(DIFFERENCES, PROMPTS)
    (indices,) = draws(7, 50)
    monkeypatch.setattr(intervals, "_BLOCK", 100)
    blocks = list(draws(7, 50))
    assert len(blocks) == 4
    assert np.array_equal(np.concatenate(blocks), indices)
    assert both(mean_interval(DIFFERENCES, PROMPTS)) == pytest.approx(both(whole), rel=1e-12)


@pytest.mark.parametrize("method", simulated.METHODS)
def test_clusters_of_equal_size_are_their_means(method: Any) -> None:
    """Whatever the labels are, and however the values are ordered within their clusters."""
    means = DIFFERENCES.reshape(10, 4).mean(1)
    expected = both(mean_interval(means, method=method))
    assert both(mean_interval(DIFFERENCES, PROMPTS, method=method)) == pytest.approx(expected)
    labels = [f"prompt {number}" for number in PROMPTS]
    turned = DIFFERENCES.reshape(10, 4)[:, ::-1].ravel()
    assert both(mean_interval(turned, labels, method=method)) == pytest.approx(expected)


def test_larger_clusters_count_more() -> None:
    values, labels = [0.0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]
    clusters = Clusters.of(values, labels)
    assert clusters.mean == pytest.approx(7 / 6)
    residuals = np.array([0 - 7 / 6, 3 - 3.5, 4 - 7 / 3])
    error = math.sqrt(1.5 * (residuals**2).sum()) / 6
    assert clusters.standard_error == pytest.approx(error)


def test_one_cluster_has_no_interval_and_equal_values_a_narrow_one() -> None:
    one = mean_interval([1, 2, 3], ["a"] * 3)
    assert not one.known
    assert one.as_list() is None
    assert mean_interval([0.5] * 9) == Interval(0.5, 0.5)
    assert not share_interval([1, 0], ["a", "a"]).known


def test_shares_in_clusters() -> None:
    """One picture a prompt: Wilson's at Student's quantile; equal seeds add nothing."""
    scores = np.array([1.0] * 16 + [0.0] * 4)
    alone = share_interval(scores)
    expected = wilson(0.8 * 19, 19, z=t_quantile(0.975, 19))
    assert both(alone) == pytest.approx(both(expected), rel=1e-6)
    again = share_interval(np.repeat(scores, 4), np.repeat(np.arange(20), 4))
    assert both(again) == pytest.approx(both(alone))
    all_won = share_interval(np.ones(20))
    assert all_won.high == 1
    assert 0.8 < all_won.low < 0.85


@pytest.mark.parametrize("values", [[1.0, NAN], [1.0, math.inf], []])
def test_values_that_are_not_finite_are_named(values: list[float]) -> None:
    for call in (mean_interval, share_interval, compare_differences, sign_flip_p):
        with pytest.raises(OptionError, match=r"1 of 2 values: not finite|no values"):
            call(values)


def test_labels_that_do_not_fit_are_named() -> None:
    with pytest.raises(OptionError, match="3 values: there are 2 cluster labels"):
        mean_interval([1, 2, 3], [0, 1])


def test_a_hundred_thousand_rows_take_little_memory() -> None:
    import tracemalloc

    values = np.random.default_rng(0).normal(size=100_000)
    labels = np.repeat(np.arange(25_000), 4)
    tracemalloc.start()
    interval = mean_interval(values, labels, resamples=50)
    p = sign_flip_p(values, labels, flips=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20
    assert interval.high - interval.low == pytest.approx(4 * 1.96 / 2 / 100_000**0.5, rel=0.5)
    assert 0.05 < p < 1


# ── statistics of sets ──────────────────────────────────────────────────────────────────────────


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    found = jackknife(lambda rows: {"mean": DIFFERENCES[rows].mean()}, range(40), groups=40)["mean"]
    clusters = Clusters.of(DIFFERENCES)
    assert found.standard_error == pytest.approx(clusters.standard_error)
    assert found.value == pytest.approx(clusters.mean)
    assert both(found.interval) == pytest.approx(both(mean_interval(DIFFERENCES, method="t")))


def test_jackknife_keeps_clusters_together_and_takes_bias_away() -> None:
    """Of the variance with n below: the bias is exactly of first order."""
    seen = []

    def variance(rows: np.ndarray[Any, Any]) -> dict[str, float]:
        seen.append(set(PROMPTS[rows]))
        assert len(rows) == 4 * len(seen[-1])
        return {"variance": DIFFERENCES[rows].var(), "rows": len(rows)}

    found = jackknife(variance, PROMPTS, groups=5, about="corrected")
    assert [len(prompts) for prompts in seen] == [10, *[8] * 5]
    one = found["variance"]
    assert one.groups == 5
    assert one.corrected > one.value == DIFFERENCES.var()
    half = t_quantile(0.975, 4) * one.standard_error
    assert both(one.interval) == pytest.approx([one.corrected - half, one.corrected + half])
    alone = jackknife(lambda rows: {"": DIFFERENCES[rows].var()}, range(40), groups=40)[""]
    assert alone.corrected == pytest.approx(DIFFERENCES.var(ddof=1))
    with pytest.raises(OptionError, match="1 prompts"):
        jackknife(variance, [0] * 40)


# ── pairs ───────────────────────────────────────────────────────────────────────────────────────


def test_paired_values() -> None:
    a = {(prompt, seed): float(prompt) for prompt in range(10) for seed in range(4)}
    b = {key: value + DIFFERENCES[number] for number, (key, value) in enumerate(a.items())}
    found = paired.paired(a, dict(reversed(b.items())), lambda key: key[0])
    assert found.difference == pytest.approx(DIFFERENCES.mean())
    assert (found.pairs, found.clusters) == (40, 10)
    assert both(found.interval) == pytest.approx(both(mean_interval(DIFFERENCES, PROMPTS)))
    assert found.win_rate == (DIFFERENCES > 0).mean()
    assert found.win_rate in found.win_interval
    other = paired.paired(b, a, lambda key: key[0])
    assert other.difference == pytest.approx(-found.difference)
    assert other.p == found.p


def test_unequal_sets_are_refused_with_what_is_missing() -> None:
    a = {(f"p{number}", 0): 1.0 for number in range(9)}
    with pytest.raises(OptionError, match=r"B lacks 1 of 9: \('p3', 0\)") as raised:
        paired.paired(a, {key: 1.0 for key in a if key != ("p3", 0)})
    assert "Generate what is missing" in str(raised.value)
    with pytest.raises(OptionError, match=r"A lacks 7 of 9: .*and 2 more"):
        paired.paired(dict(list(a.items())[:2]), a)


def test_sign_flips() -> None:
    assert sign_flip_p([1.0] * 5) == 2 / 32  # all patterns: five prompts cannot reach .05
    assert sign_flip_p([1.0, -1, 1, -1]) == 1
    assert sign_flip_p(DIFFERENCES[:10]) == 0.005859375
    assert sign_flip_p([3.0, 2, -1]) == 4 / 8  # |sum| >= 4: +++ and ++-, and their mirrors
    assert sign_flip_p(np.ones(20), np.repeat(np.arange(5), 4)) == 2 / 32  # seeds flip together
    many = np.random.default_rng(0).normal(0.1, 1, 400)
    clusters = Clusters.of(many)
    expected = t_tail(clusters.mean / clusters.standard_error, 399)
    assert sign_flip_p(many) == pytest.approx(expected, abs=0.01)
    more = np.concatenate([many, many[::-1] + 0.02, many - 0.02])  # in groups of clusters
    clusters = Clusters.of(more)
    expected = t_tail(clusters.mean / clusters.standard_error, 1199)
    assert sign_flip_p(more) == pytest.approx(expected, abs=0.01)


def test_sign_test_and_holm() -> None:
    assert sign_test_p(32, 18) == pytest.approx(0.06490864707227217, rel=1e-9)
    assert sign_test_p(0, 0) == sign_test_p(3, 3) == 1
    found = holm({"clip-i": 0.04, "dino": 0.01, "lab": 0.03, "psnr": 0.005})
    assert found == pytest.approx({"clip-i": 0.06, "dino": 0.03, "lab": 0.06, "psnr": 0.02})
    assert list(found) == ["clip-i", "dino", "lab", "psnr"]
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1, "b": 1}


def test_ties_are_half_a_win() -> None:
    assert compare_differences([0.0, 0, 1, -1, 1, 1, 1, 1]).win_rate == 0.75


def test_planning() -> None:
    """Published numbers of choices; prompts as Student's t asks for (G*Power: 199 and 34)."""
    assert [choices_needed(p) for p in (0.55, 0.6, 0.65, 0.7)] == [783, 194, 85, 47]
    assert choices_needed(0.3) == 47
    assert [prompts_needed(d, 1) for d in (0.2, 0.5, -0.5)] == [199, 34, 34]
    clusters = Clusters.of(np.random.default_rng(0).normal(0, 1, 34))
    smallest = paired.smallest_detectable(clusters)
    assert prompts_needed(smallest, clusters.standard_error * 34**0.5) == 34
    for call in (lambda: choices_needed(0.5), lambda: prompts_needed(0, 1)):
        with pytest.raises(OptionError):
            call()


def test_spread_of_prompts_and_seeds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.2, (3000, 1)) + rng.normal(0, 0.5, (3000, 3))
    found = spread(values.ravel(), np.repeat(np.arange(3000), 3))
    assert found.between == pytest.approx(0.04, rel=0.1)
    assert found.within == pytest.approx(0.25, rel=0.05)
    assert found.of_prompt_means(3) == pytest.approx(values.mean(1).std(), rel=0.01)
    with pytest.raises(OptionError, match="cannot be told apart"):
        spread([1, 2, 3], [0, 1, 2])


# ── simulated studies ───────────────────────────────────────────────────────────────────────────
# At full size: benchmarks/evaluation_statistics.py.


def test_intervals_cover_the_truth() -> None:
    assert 0.93 <= simulated.coverage(20, "normal", "studentised", 200)["share"] <= 0.97
    assert 0.93 <= simulated.coverage(20, "skewed", "studentised", 200)["share"] <= 0.97
    assert 0.93 <= simulated.share_coverage(20, 0.8, 200)["share"] <= 0.97
    assert simulated.seeds_alone(20, 100)["share"] < 0.85
    assert 0.93 <= simulated.set_coverage("corrected", 100)["share"] <= 1


def test_identical_adapters_are_not_called_different() -> None:
    """The share is 5 % at most; that of 200 studies has an error."""
    for prompts, effect in ((12, "normal"), (20, "skewed")):
        found = simulated.called_different(prompts, effect, 200)
        assert found["share"] <= 0.05 + 2 * found["error"]


def test_a_known_difference_is_found_at_the_predicted_number_of_prompts() -> None:
    found = simulated.power(0.03, 100)
    assert found["prompts"] == 39
    assert 0.7 <= found["share"] <= 0.9
    assert 0.75 <= simulated.power_of_choices(0.7, 500)["share"] <= 0.85


def test_the_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--studies", "2", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", ["evaluation_statistics", *options])
    simulated.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == len(capsys.readouterr().out.splitlines()) - 2 == 54
    assert all(0 <= row["share"] <= 1 for row in rows)


# ── raters ──────────────────────────────────────────────────────────────────────────────────────

TEXTBOOK = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(
    ("level", "expected"),
    [("nominal", 0.743421052632), ("ordinal", 0.815387503755), ("interval", 0.849107142857)],
)
def test_krippendorff(level: Any, expected: float) -> None:
    found = krippendorff(TEXTBOOK, level)
    assert found.alpha == pytest.approx(expected, rel=1e-9)
    assert found.items == 11
    assert found.interval.low < expected < found.interval.high <= 1
    assert krippendorff(np.transpose(TEXTBOOK).T[::-1], level).alpha == pytest.approx(expected)


def test_krippendorff_without_anything_to_say() -> None:
    assert math.isnan(krippendorff([[1, NAN], [NAN, 2]]).alpha)  # nothing rated twice
    assert math.isnan(krippendorff([[3, 3], [3, 3]]).alpha)  # nothing varies
    assert math.isnan(krippendorff([[NAN]]).alpha)
    with pytest.raises(OptionError, match="101 different ratings"):
        krippendorff([np.arange(101)] * 2)


def test_krippendorff_of_chance_and_of_clusters() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(1, 6, (3, 400))
    assert krippendorff(table, "interval").alpha == pytest.approx(0, abs=0.08)
    labels = np.repeat(np.arange(40), 10)
    clustered = krippendorff(np.repeat(table[:, :40], 10, axis=1), "interval", labels)
    alone = krippendorff(table[:, :40], "interval")
    widths = [one.interval.high - one.interval.low for one in (clustered, alone)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


WINS = [[0, 7, 9], [3, 0, 6], [1, 4, 0]]


def test_bradley_terry() -> None:
    found = bradley_terry(WINS)
    assert found.values == pytest.approx([0.94360585, -0.16016070, -0.78344515], abs=1e-8)
    assert found.elo() == pytest.approx([163.9, -27.8, -136.1], abs=0.05)
    assert found.preference(0, 1) == pytest.approx(0.75096518, rel=1e-7)
    assert found.prior == 0
    with pytest.raises(OptionError, match=r"shape \[2, 3\]"):
        bradley_terry([[0, 1, 2], [1, 0, 2]])


def test_bradley_terry_without_a_path_of_wins() -> None:
    """The prior is added, and said; for two it is the log odds with half a win more for each."""
    found = bradley_terry([[0, 20], [0, 0]])
    assert found.prior == PRIOR
    assert found.values[0] - found.values[1] == pytest.approx(math.log(20.5 / 0.5))
    apart = bradley_terry([[0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3], [0, 0, 2, 0]])
    assert apart.prior == PRIOR
    assert apart.values[0] == pytest.approx(apart.values[2])
    chain = bradley_terry([[0, 5, 0], [0, 0, 5], [5, 0, 0]])  # a cycle is a path
    assert chain.prior == 0
    assert chain.values == pytest.approx([0, 0, 0], abs=1e-9)


def test_bradley_terry_over_prompts() -> None:
    """Votes of one prompt are alike: more of the same narrow nothing."""
    rng = np.random.default_rng(0)
    wins = np.zeros((30, 2, 2))
    wins[:, 0, 1] = rng.random(30) < 0.7
    wins[:, 1, 0] = 1 - wins[:, 0, 1]
    found = bradley_terry_over_prompts(wins)
    share = wins[:, 0, 1].mean()
    assert found.values[0] - found.values[1] == pytest.approx(math.log(share / (1 - share)))
    assert found.values[0] in found.intervals[0]
    again = bradley_terry_over_prompts(5 * wins)
    assert both(again.intervals[0]) == pytest.approx(both(found.intervals[0]), rel=1e-6)
    assert found.resamples_with_prior == 0
    few = bradley_terry_over_prompts(wins[:3])
    assert 0 < few.resamples_with_prior <= 1
    assert not bradley_terry_over_prompts(wins[:1]).intervals[0].known
