"""variants --budget: which adapter comes within a number of parameters."""

from __future__ import annotations

import json

import pytest

from imageprompt import cli
from imageprompt.core.errors import NotFoundError
from imageprompt.deploy.plan.designs import Design, designs


def by_variant(millions: float, base: str) -> dict[str, Design]:
    return {one.variant: one for one in designs(int(millions * 1e6), base)}


def test_what_fits_is_counted_as_the_published_sizes_are() -> None:
    small = by_variant(50, "sd15")
    assert small["base"].key_values == 19_169_280
    assert small["plus"].rank is None  # 49.1 M: whole
    assert small["plus"].fitted == pytest.approx(49.1e6, rel=1e-3)
    large = by_variant(50, "sdxl")
    assert large["base"].fits
    assert large["base"].share == pytest.approx(0.12, abs=0.005)
    assert not large["plus"].fits
    assert large["plus, width 640"].fits
    assert by_variant(200, "sdxl")["plus"].rank == 258  # with 83 M of projector


def test_a_rank_is_the_largest_that_fits() -> None:
    from imageprompt.hosts.unet import HOST

    (spec,) = (spec for spec in HOST.published() if spec.family == "sdxl")
    pairs = list(spec.shapes().values())

    def cost(rank: int) -> int:
        return sum(rank * (inner + width) for inner, width in pairs)

    light = [one for one in by_variant(50, "sdxl").values() if one.rank is not None and one.fits]
    assert len(light) == 3
    for design in light:
        assert design.rank is not None
        assert design.fitted == design.projector + cost(design.rank) <= 50e6
        assert design.projector + cost(design.rank + 1) > 50e6


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["variants", "--budget", "50M", "--base", "sdxl"]) == 0
    table = capsys.readouterr().out
    assert "light, 12% of K', V'" in table
    assert "suit real time" in table
    assert cli.main(["variants", "--budget", "200M", "--base", "sdxl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["variant"] for row in rows} == {"base", "full", "plus", "plus, width 640"}
    assert all(row["fitted_parameters"] <= 200e6 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "25%"], "a share"),
        (["--budget", "many"], "Write 50M"),
        (["--base", "sdxl"], "without --budget"),
        (["--budget", "50M", "--base", "sdxxl"], "not a published base"),
    ],
)
def test_bad_budgets(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["variants", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_an_unknown_base() -> None:
    with pytest.raises(NotFoundError, match="Use sd15"):
        designs(10**7, "bundled")
