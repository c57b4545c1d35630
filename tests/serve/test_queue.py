"""The queue: fair between owners, bounded, in batches; and the events of a job."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from imageprompt.serve.events import EventLog, number_after
from imageprompt.serve.queue import QUANTUM, Entry, FairQueue, Full, batch_key
from imageprompt.serve.settings import Limits


def entry(name: str, owner: str = "a", cost: float = QUANTUM, **more: Any) -> Entry:
    values = {"pictures": 1, "pixels": 512 * 512, "batch_key": None, **more}
    return Entry(id=name, owner=owner, cost=cost, **values)


def queue(most: int = 1000, **limits: Any) -> FairQueue:
    return FairQueue(Limits(**limits), most)


def drained(jobs: FairQueue, most: int = 1) -> list[list[str]]:
    found = []
    while batch := jobs.take(most):
        found.append([one.id for one in batch])
    return found


def test_one_owner_with_many_jobs_delays_another_by_one() -> None:
    jobs = queue()
    for number in range(100):
        jobs.push(entry(f"a{number}"))
    jobs.push(entry("b0", "b"))
    assert jobs.positions()["b0"] == 1
    assert [batch[0] for batch in drained(jobs)][:3] == ["a0", "b0", "a1"]


def test_owners_get_equal_work_not_equal_counts() -> None:
    jobs = queue()
    for number in range(100):
        jobs.push(entry(f"a{number}", "a", 4 * QUANTUM))
        jobs.push(entry(f"b{number}", "b", QUANTUM))
    first = [batch[0] for batch in drained(jobs)][:50]
    large = sum(name.startswith("a") for name in first)
    assert 9 <= large <= 12  # a fifth of the jobs are half of the work


def test_the_order_that_is_told_is_the_order_that_comes() -> None:
    numbers = random.Random(0)
    jobs = queue()
    for number in range(60):
        jobs.push(entry(f"j{number}", numbers.choice("abc"), numbers.uniform(0.1, 5) * QUANTUM))
    told = [one.id for one in jobs.order()]
    assert [batch[0] for batch in drained(jobs)] == told
    assert len(told) == 60


def test_a_batch_takes_those_that_agree_of_all_owners() -> None:
    jobs = queue()
    for number, (owner, key) in enumerate([("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1)]):
        jobs.push(entry(f"j{number}", owner, batch_key=key))
    assert drained(jobs, most=8) == [["j0", "j2", "j4"], ["j1", "j3"]]
    for number in range(5):
        jobs.push(entry(f"k{number}", batch_key=1, pictures=2))
    assert [len(batch) for batch in drained(jobs, most=4)] == [2, 2, 1]
    for number in range(2):
        jobs.push(entry(f"l{number}", batch_key=None))
    assert [len(batch) for batch in drained(jobs, most=4)] == [1, 1]


def test_large_pictures_share_no_batch() -> None:
    jobs = queue(running_batch_pixels=3 * 512 * 512)
    for number in range(4):
        jobs.push(entry(f"j{number}", batch_key=1))
    assert [len(batch) for batch in drained(jobs, most=8)] == [3, 1]


def test_a_job_that_had_begun_goes_first_and_removed_ones_are_gone() -> None:
    jobs = queue()
    for number in range(3):
        jobs.push(entry(f"j{number}"))
    jobs.push_again(entry("again", "b"))
    assert jobs.remove("j1")
    assert not jobs.remove("j1")
    assert drained(jobs) == [["again"], ["j0"], ["j2"]]
    assert (len(jobs), jobs.cost) == (0, 0.0)


def test_bounds() -> None:
    jobs = queue(most=3, queued_jobs_of_one_key=2, queued_work=10 * QUANTUM)
    jobs.check("a", 100 * QUANTUM)  # an empty queue takes a job of any size
    jobs.push(entry("j0"))
    with pytest.raises(Full) as full:
        jobs.check("a", 10 * QUANTUM)
    assert not full.value.quota
    jobs.push(entry("j1"))
    with pytest.raises(Full) as full:
        jobs.check("a", 1)
    assert full.value.quota
    jobs.check("b", 1)
    jobs.reserved = 1
    with pytest.raises(Full) as full:
        jobs.check("b", 1)
    assert not full.value.quota
    jobs.learn(QUANTUM, 2.0)
    assert jobs.seconds() == pytest.approx(4.0)


def test_what_may_share_a_batch() -> None:
    def reference(**more: Any) -> dict[str, Any]:
        return {"references": [{"reference": "upload:1", **more}]}

    base = batch_key({"prompt": "a", "seed": 1, **reference()})
    assert batch_key({"prompt": "b", "seed": 2, **reference()}) == base
    assert batch_key(reference(reference="upload:2")) == base
    for other in (
        {"steps": 4, **reference()},
        {"size": [64, 64], **reference()},
        {"negative_prompt": "x", **reference()},
        reference(scale=0.3),
        reference(mask="upload:3"),
        reference(adapter="base"),
        {},
    ):
        assert batch_key(other) != base, other
    assert batch_key({"init_image": "upload:1"}) is None


# ── events ──────────────────────────────────────────────────────────────────────────────────────


def test_a_log_stays_small_and_keeps_what_counts() -> None:
    async def check() -> None:
        log = EventLog()
        log.add("queued", position=3)
        log.add("started", attempt=1)
        for step in range(1000):
            log.add("progress", index=0, step=step)
            log.add("preview", index=0, jpeg="x" * 10_000)
        log.add("image", index=0)
        kinds = [event.kind for event in log.after(0)]
        assert kinds == ["started", "progress", "preview", "image"]
        log.add("done", images=1)
        assert [event.kind for event in log.after(0)] == ["started", "progress", "image", "done"]
        assert log.ended
        last = list(log.after(0))[-1]
        assert not list(log.after(last.number))
        assert number_after(f"e-{last.number}", "e") == last.number
        assert number_after(f"f-{last.number}", "e") == 0
        for wrong in ("", "e-", "e-x", "e--1", f"e-{'9' * 50}"):
            assert number_after(wrong, "e") == 0

    asyncio.run(check())


def test_a_reader_who_leaves_while_something_happens_is_gone() -> None:
    async def check() -> None:
        log = EventLog()
        assert not await log.wait(0.001)
        reader = asyncio.create_task(log.wait(60))
        await asyncio.sleep(0)
        log.add("progress", index=0, step=1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(check())


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    async def check() -> None:
        log = EventLog()
        log.add("failed", error={"message": "a\n\ndata: b\r\u2028"})
        (event,) = log.after(0)
        assert event.as_sse("e").decode().splitlines()[3:] == [""]

    asyncio.run(check())
