"""Two processes that share a batch do what one does with all of it, and notice when one dies."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from multiprocessing import Queue
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from imageprompt.core.errors import OptionError
from imageprompt.training.data.dataset import Batch
from imageprompt.training.data.random_streams import RandomStreams
from imageprompt.training.loop.distributed import Processes
from toy_training import Toy, figures, server, trainer, weights

OPTIONS: dict[str, Any] = {"steps": 6, "save_every": 2, "log_every": 2, "ema": 0.9}
PATIENCE = 60


class Dying(Toy):
    """Process 1 is killed in its third step (the first batch is thrown away)."""

    read = 0

    def batch(self, indices: Tensor, chance: RandomStreams) -> Batch:
        self.read += 1
        if self.read == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(indices, chance)


def plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """For a queue between processes."""
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def train(folder: str, until: int | None, options: dict[str, Any], said: Any) -> None:
    more = {"trackers": ("tensorboard",)}
    run = trainer(Path(folder), more=more, **OPTIONS | options)
    ending = run.run(until)
    assert run.processes.on_main(lambda: "still together") == "still together"
    said.put((run.processes.rank, ending.step, ending.signal, plain(weights(run))))


def one_dies(folder: str, until: None, options: dict[str, Any], said: Any) -> None:
    try:
        trainer(Path(folder), samples=Dying(), **OPTIONS | options).run()
    except OptionError as error:
        said.put(str(error))


def differ(folder: str, until: None, options: dict[str, Any], said: Any) -> None:
    try:
        Processes().assert_same("the config", os.environ["RANK"])
    except OptionError as error:
        said.put(str(error))


class Told(Toy):
    """Process 1 alone gets SIGTERM, in its third step."""

    read = 0

    def batch(self, indices: Tensor, chance: RandomStreams) -> Batch:
        self.read += 1
        if self.read == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(indices, chance)


def told_to_stop(folder: str, until: None, options: dict[str, Any], said: Any) -> None:
    train(folder, None, options | {"samples": Told(), "save_every": 0}, said)


def entry(rank: int, port: int, job: Any, arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job(*arguments)


def together(job: Any, folder: Path, until: int | None = None, **options: Any) -> list[Any]:
    """Run a job in two processes; what they said, in order of their ranks."""
    context = server()
    said: Queue[Any] = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (str(folder), until, options, said)
    running: list[BaseProcess] = [
        context.Process(target=entry, args=(rank, port, job, arguments)) for rank in range(2)
    ]
    for process in running:
        process.start()
    answers, deadline = [], time.monotonic() + PATIENCE
    while any(process.is_alive() for process in running) or not said.empty():
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
            pytest.fail("the processes hang")
        if not said.empty():
            answers.append(said.get())
        else:
            time.sleep(0.02)
    return sorted(answers, key=lambda answer: answer[0])


@pytest.mark.slow
def test_two_times_one_is_one_times_two_and_resumes_to_the_bit(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone", batch=2, **OPTIONS)
    alone.run()
    (_, step, _, first), (_, _, _, second) = together(train, tmp_path / "both", batch=1)
    assert step == 6
    for name, value in plain(weights(alone)).items():
        assert np.array_equal(first[name], second[name]), name
        np.testing.assert_allclose(first[name], value, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(figures(tmp_path / "both"), figures(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)

    together(train, tmp_path / "halves", until=3, batch=1)
    (_, _, _, resumed), _ = together(train, tmp_path / "halves", batch=1)
    assert all(np.array_equal(resumed[name], value) for name, value in first.items())
    assert figures(tmp_path / "halves") == figures(tmp_path / "both")

    with pytest.raises(OptionError, match="2 processes became 1"):
        trainer(tmp_path / "both", batch=1, **OPTIONS)


@pytest.mark.slow
def test_a_process_that_dies_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    (message,) = together(one_dies, tmp_path / "both", batch=1)
    assert "another process is gone" in message
    assert "--resume goes on from the checkpoint of step 2" in message
    (_, _, _, resumed), _ = together(train, tmp_path / "both", batch=1)
    (_, _, _, through), _ = together(train, tmp_path / "through", batch=1)
    assert all(np.array_equal(resumed[name], value) for name, value in through.items())


@pytest.mark.slow
def test_all_stop_after_the_same_step_when_one_is_told_to(tmp_path: Path) -> None:
    first, second = together(told_to_stop, tmp_path, batch=1)
    assert first[1] == second[1] == 3
    assert second[2] == signal.SIGTERM
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-3"]


def test_configs_that_differ_are_noticed_by_all(tmp_path: Path) -> None:
    messages = together(differ, tmp_path)
    assert len(messages) == 2
    assert all("the config: it differs between the 2 processes" in one for one in messages)


def gradients(folder: Path, until: None, options: dict[str, Any], said: Any) -> None:
    run = trainer(folder, **options)
    for part in range(run.config.accumulate):
        run._accumulate(last=part == run.config.accumulate - 1)
    said.put((run.processes.rank, plain({key: value.grad for key, value in run.named.items()})))


@pytest.mark.slow
def test_two_processes_or_two_batches_have_the_gradient_of_one(tmp_path: Path) -> None:
    """On the first step, before any optimiser has rounded."""
    said: SimpleQueue[Any] = SimpleQueue()
    gradients(tmp_path / "one", None, {"batch": 2}, said)
    gradients(tmp_path / "accumulated", None, {"batch": 1, "accumulate": 2}, said)
    (_, one), (_, accumulated) = said.get(), said.get()
    (_, first), (_, second) = together(gradients, tmp_path / "both", batch=1)
    for name, value in one.items():
        assert np.array_equal(first[name], second[name])
        for other in (first[name], accumulated[name]):
            assert np.linalg.norm(other - value) < 1e-5 * np.linalg.norm(value), name
