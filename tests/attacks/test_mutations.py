"""The first mutants of every format; `python -m tests.attacks --seconds 600` goes on from there."""

from __future__ import annotations

import pytest

from attacks import mutate
from attacks.legitimate import FORMATS

EACH = 4


@pytest.mark.slow
def test_mutants_of_every_format_are_read_or_refused() -> None:
    faults, counts = [], dict.fromkeys((one.name for one in FORMATS), 0)
    for tried in mutate.run(each=EACH, seed=0):
        counts[tried.format] += tried.count
        faults += [f"{tried.format} 0 {one['index']}: {one['problem']}" for one in tried.faults]
    assert not faults, "\n" + "\n".join(faults)
    assert set(counts.values()) == {EACH}


def test_a_mutant_is_the_same_every_time() -> None:
    sound = {one.name: {"file": one.name.encode() * 50} for one in FORMATS}
    for one in FORMATS:
        first = [mutate.mutant(one, sound, 3, index) for index in range(20)]
        assert first == [mutate.mutant(one, sound, 3, index) for index in range(20)]
        assert first != [mutate.mutant(one, sound, 4, index) for index in range(20)]
