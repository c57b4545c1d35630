"""Two processes that share a batch compute what one computes, and report when one of them fails."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from torch import Tensor

import forked
from imageprompt.core.errors import OptionError
from imageprompt.training.data.dataset import Batch, RandomStreams
from imageprompt.training.loop.distributed import Processes
from toy_training import Toy, import_all, metrics, trainer, weights

OPTIONS: dict[str, Any] = {"steps": 6, "checkpoint_every": 2, "log_every": 2, "ema": 0.9}
TIMEOUT = 60


class Dying(Toy):
    """Process 1 is killed in its third step (the first batch is discarded)."""

    read = 0

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        self.read += 1
        if self.read == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices, streams)


def as_arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """As arrays, for a queue between processes."""
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def train(folder: str, until: int | None, options: dict[str, Any], answers: Any) -> None:
    more = {"trackers": ("tensorboard",)}
    run = trainer(Path(folder), more=more, **OPTIONS | options)
    ending = run.run(until)
    assert run.processes.on_main(lambda: "still together") == "still together"
    answers.put((run.processes.rank, ending.step, ending.signal, as_arrays(weights(run))))


def one_dies(folder: str, until: None, options: dict[str, Any], answers: Any) -> None:
    try:
        trainer(Path(folder), samples=Dying(), **OPTIONS | options).run()
    except OptionError as error:
        answers.put(str(error))


def compare_configs(folder: str, until: None, options: dict[str, Any], answers: Any) -> None:
    try:
        Processes().assert_same("the config", os.environ["RANK"])
    except OptionError as error:
        answers.put(str(error))


class Stopped(Toy):
    """Only process 1 receives SIGTERM, in its third step."""

    read = 0

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        self.read += 1
        if self.read == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(indices, streams)


def stopped(folder: str, until: None, options: dict[str, Any], answers: Any) -> None:
    train(folder, None, options | {"samples": Stopped(), "checkpoint_every": 0}, answers)


def entry(rank: int, port: int, job: Any, arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier test was one process
    job(*arguments)


def run_two(job: Any, folder: Path, until: int | None = None, **options: Any) -> list[Any]:
    """Run a job in two processes; their answers, in the order of their ranks."""
    import_all()
    answers = forked.CONTEXT.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (str(folder), until, options, answers)
    running = [forked.start(entry, rank, port, job, arguments) for rank in range(2)]
    received, deadline = [], time.monotonic() + TIMEOUT
    while any(process.is_alive() for process in running) or not answers.empty():
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
            pytest.fail("the processes hang")
        if not answers.empty():
            received.append(answers.get())
        else:
            time.sleep(0.02)
    return sorted(received, key=lambda answer: answer[0])


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_to_the_bit(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone", batch_size=2, **OPTIONS)
    alone.run()
    (_, step, _, first), (_, _, _, second) = run_two(train, tmp_path / "both", batch_size=1)
    assert step == 6
    for name, value in as_arrays(weights(alone)).items():
        assert np.array_equal(first[name], second[name]), name
        np.testing.assert_allclose(first[name], value, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(metrics(tmp_path / "both"), metrics(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)

    run_two(train, tmp_path / "halves", until=3, batch_size=1)
    (_, _, _, resumed), _ = run_two(train, tmp_path / "halves", batch_size=1)
    assert all(np.array_equal(resumed[name], value) for name, value in first.items())
    assert metrics(tmp_path / "halves") == metrics(tmp_path / "both")

    with pytest.raises(OptionError, match="2 processes became 1"):
        trainer(tmp_path / "both", batch_size=1, **OPTIONS)


@pytest.mark.slow
def test_a_process_that_dies_is_a_one_line_error_and_nothing_is_lost(tmp_path: Path) -> None:
    (message,) = run_two(one_dies, tmp_path / "both", batch_size=1)
    assert "another process is gone" in message
    assert "--resume continues from the checkpoint of step 2" in message
    (_, _, _, resumed), _ = run_two(train, tmp_path / "both", batch_size=1)
    (_, _, _, uninterrupted), _ = run_two(train, tmp_path / "uninterrupted", batch_size=1)
    assert all(np.array_equal(resumed[name], value) for name, value in uninterrupted.items())


@pytest.mark.slow
def test_all_stop_after_the_same_step_when_one_gets_a_signal(tmp_path: Path) -> None:
    first, second = run_two(stopped, tmp_path, batch_size=1)
    assert first[1] == second[1] == 3
    assert second[2] == signal.SIGTERM
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-3"]


def test_all_processes_refuse_configs_that_differ(tmp_path: Path) -> None:
    messages = run_two(compare_configs, tmp_path)
    assert len(messages) == 2
    assert all("the config: differs between the 2 processes" in message for message in messages)


def fails_on_main(folder: str, until: None, options: dict[str, Any], answers: Any) -> None:
    """The first process raises an error of another library; both report what they got."""
    processes = Processes()

    def work() -> None:
        raise ForeignError("the disk is on fire")

    try:
        processes.on_main(work)
    except Exception as error:
        answers.put((processes.rank, type(error).__name__, str(error)))
    # both are still in step: the next exchange works
    answers.put((processes.rank, "next", processes.on_main(lambda: "works")))


class ForeignError(Exception):
    """Neither an ImagePromptError nor one that another process could build from its message."""

    def __init__(self, cause: str, *, code: int = 5) -> None:
        super().__init__(f"{cause} ({code})")
        self.callback = lambda: code  # cannot be pickled


def test_an_error_of_another_library_on_the_first_process_ends_all(tmp_path: Path) -> None:
    first, first_next, second, second_next = run_two(fails_on_main, tmp_path)
    assert first == (0, "ForeignError", "the disk is on fire (5)")
    assert second == (
        1,
        "OptionError",
        "the first process failed: ForeignError: the disk is on fire (5)",
    )
    assert first_next == (0, "next", "works")
    assert second_next == (1, "next", "works")


def breaks(run: Any) -> dict[str, float]:
    raise ForeignError("the VAE is on fire")


class Unreadable(Toy):
    """Process 1 cannot read its third batch."""

    read = 0

    def batch(self, indices: Tensor, streams: RandomStreams) -> Batch:
        self.read += 1
        if self.read == 3 and os.environ["RANK"] == "1":
            raise ForeignError("the shard is on fire")
        return super().batch(indices, streams)


def fails_in(folder: str, until: str, options: dict[str, Any], answers: Any) -> None:
    """Training in which one place fails, in one process; both report what they got."""
    more: dict[str, Any] = {}
    if until == "validation":
        more, options = {"validate": breaks}, options | {"validate_every": 1}
    elif until == "reading":
        options = options | {"samples": Unreadable()}
    run = trainer(Path(folder), more=more, **OPTIONS | options)
    if run.processes.main and until == "metrics":
        run.metrics.path.mkdir(parents=True)
    elif run.processes.main and until == "saving":
        run.root.write_text("a file where a folder should be")
    try:
        run.run()
    except Exception as error:
        answers.put((run.processes.rank, type(error).__name__, str(error)))


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("validation", "ForeignError", "the VAE is on fire (5)"),
        ("metrics", "OptionError", "metrics.jsonl"),
        ("saving", "OptionError", "checkpoint of step 2"),
    ],
)
def test_an_error_of_the_first_process_alone_ends_all(
    tmp_path: Path, place: Any, error: str, message: str
) -> None:
    first, second = run_two(fails_in, tmp_path, place, batch_size=1)
    assert first[1] == error
    assert second[1] == "OptionError"
    assert message in first[2]
    assert message in second[2]


def test_an_error_of_another_process_is_told_by_the_first(tmp_path: Path) -> None:
    first, second = run_two(fails_in, tmp_path, cast("Any", "reading"), batch_size=1)
    assert second == (1, "ForeignError", "the shard is on fire (5)")
    assert first[1] == "OptionError"
    assert "process 1 failed: ForeignError: the shard is on fire (5)" in first[2]


def gradients(folder: Path, until: None, options: dict[str, Any], answers: Any) -> None:
    run = trainer(folder, **options)
    for part in range(run.config.accumulate):
        run._accumulate(last=part == run.config.accumulate - 1)
    answers.put(
        (run.processes.rank, as_arrays({key: value.grad for key, value in run.named.items()}))
    )


@pytest.mark.slow
def test_two_processes_or_two_batches_have_the_gradient_of_one(tmp_path: Path) -> None:
    """In the first step, before any optimiser has rounded."""
    answers: SimpleQueue[Any] = SimpleQueue()
    gradients(tmp_path / "one", None, {"batch_size": 2}, answers)
    gradients(tmp_path / "accumulated", None, {"batch_size": 1, "accumulate": 2}, answers)
    (_, alone), (_, accumulated) = answers.get(), answers.get()
    (_, first), (_, second) = run_two(gradients, tmp_path / "both", batch_size=1)
    for name, value in alone.items():
        assert np.array_equal(first[name], second[name])
        for other in (first[name], accumulated[name]):
            assert np.linalg.norm(other - value) < 1e-5 * np.linalg.norm(value), name
