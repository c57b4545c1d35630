"""A guard taken away: the table notices. Here one of sixteen kinds; `make attacks` tries each."""

from __future__ import annotations

import pytest

from attacks.guards import GUARDS, run


@pytest.mark.slow
def test_the_table_notices_when_a_guard_is_missing() -> None:
    found = list(run(every=16))
    assert [one["kind"] for one in found] == [guard.kind for guard in GUARDS[::16]]
    assert [one for one in found if not one["noticed"]] == []
