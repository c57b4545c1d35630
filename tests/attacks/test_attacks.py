"""The table holds; and what holds it notices everything that a door may not do.

Here some rows of every door are run, spread over all of them; `make attacks` runs the whole table.
"""

from __future__ import annotations

from collections import Counter

import pytest

from attacks import misdeeds
from attacks.harness import Result, run, spread, table

MIN_ROWS = 500
OF_EACH_DOOR = 1
MISDEEDS = 2
"""Of each outcome, where a sample is tried."""


@pytest.fixture(scope="module")
def results() -> dict[str, list[Result]]:
    """What came of every row, by door."""
    doors: dict[str, list[Result]] = {}
    for result in run(most=OF_EACH_DOOR):
        doors.setdefault(result.door, []).append(result)
    return doors


def test_there_are_many_attacks_and_each_has_a_name_of_its_own() -> None:
    doors = table()
    names = Counter((door.name, attack.name) for door in doors for attack in door.attacks)
    assert [name for name, count in names.items() if count > 1] == []
    assert [door.name for door in doors if not door.attacks] == []
    assert len(names) >= MIN_ROWS


@pytest.mark.slow
def test_every_row_holds(results: dict[str, list[Result]]) -> None:
    failed = [row.line for rows in results.values() for row in rows if row.problems]
    assert not failed, "\n" + "\n".join(failed)
    assert {name: len(rows) for name, rows in results.items()} == {
        door.name: len(spread(door.attacks, OF_EACH_DOOR)) for door in table()
    }


@pytest.mark.slow
def test_every_misdeed_is_noticed(whole: bool) -> None:
    most = sum(map(len, misdeeds.ALL.values())) if whole else MISDEEDS
    tried = run(modules="misdeeds", together=1, wall=3, most=most)
    found = {(row.door, row.attack): row for row in tried}
    for outcome, deeds in misdeeds.ALL.items():
        chosen = [name for name in deeds if (outcome, name) in found]
        assert len(chosen) == min(most, len(deeds))
        for name in chosen:
            says, rows = deeds[name][1], [found[outcome, name]]
            for _ in range(3):
                if "of CPU" in says or "of CPU" not in str(rows[0].problems):
                    break  # a slow machine meets that limit first
                rows = list(run(outcome, name, modules="misdeeds", together=1, wall=3))
            assert any(says in problem for row in rows for problem in row.problems), (name, rows)
