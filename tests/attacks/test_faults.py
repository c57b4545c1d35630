"""Full disks, kills at every moment, links, two processes at once: nothing half, lost or mixed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import forked
import imageprompt as ip
from attacks import faults
from attacks.faults import WRITES, Child, Moments, Scene, child, content, spread, together
from imageprompt import cli
from imageprompt.core.errors import ImagePromptError, OptionError

MOMENTS = 3
"""Of one kind of file at most, where a sample is tried; else ALL_MOMENTS."""
ALL_MOMENTS = 50


@pytest.fixture(params=WRITES, ids=str, scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.of(request.param, tmp_path_factory.mktemp("writes"))


# ── kills ───────────────────────────────────────────────────────────────────────────────────────


def test_sigkill_at_every_moment_that_differs(scene: Scene, whole: bool) -> None:
    for moment in spread(scene.moments, ALL_MOMENTS if whole else MOMENTS):
        here = scene.copy()
        when = f"before call {moment}, {scene.calls[moment]}"
        assert faults.killed(scene.write, here, moment) == -signal.SIGKILL, when
        assert scene.problems(here) == [], when
        assert scene.problems_after_next(here) == [], when


@pytest.mark.sample(2)
def test_sigkill_at_random_times(scene: Scene, whole: bool) -> None:
    began = time.monotonic()
    scene.write.save(scene.copy(), 1)
    seconds, rng = time.monotonic() - began, random.Random(scene.write.name)
    for _ in range(3 if whole else 1):
        here = scene.copy()
        process = Child(partial(scene.write.save, here, 1))
        time.sleep(rng.uniform(0, 2 * seconds))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait()[0] in (0, -signal.SIGKILL)
        assert scene.problems(here) == []
        assert scene.problems_after_next(here) == []


def sizes(scene: Scene, whole: bool) -> set[int]:
    """Of which the largest file of a write is when a fault hits it."""
    if not scene.size:
        return set()
    return {1, scene.size // 2, scene.size - 1} if whole else {scene.size // 2}


@pytest.mark.sample(2)
def test_a_kill_in_the_middle_of_a_write(scene: Scene, whole: bool) -> None:
    for size in sizes(scene, whole):
        here = scene.copy()
        assert faults.killed_in_write(scene.write, here, size) == -signal.SIGXFSZ, size
        assert scene.problems(here) == [], size
        assert scene.problems_after_next(here) == [], size


def test_what_is_written_is_on_the_disk_before_it_has_its_name(scene: Scene) -> None:
    calls = scene.calls
    if "rmdir" in calls:  # the renamed folder before it is an old checkpoint
        calls = calls[: len(calls) - 1 - calls[::-1].index("rename")]
    named = [i for i, call in enumerate(calls) if call in ("replace", "link", "rename")]
    if named:
        assert "fsync" in calls[: named[0]]
        assert "fsync" in calls[named[-1] :]  # of the folder
    else:
        assert scene.write.appends or "unlink" in calls


# ── full disks ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.sample(2)
def test_a_limit_on_file_sizes_is_one_line_and_leaves_what_was(scene: Scene, whole: bool) -> None:
    for size in sizes(scene, whole):
        here = scene.copy()
        code, message = faults.failed(scene.write, here, partial(faults.limit_size, size))  # type: ignore[misc]
        assert code == 0
        assert "File too large" in message, size
        assert message.isprintable()
        assert any(hint in message for hint in ("ulimit -f", "disk space", "some space")), message
        assert faults.view(here) == scene.before, size
        assert faults.leftovers(here) == [], size


@pytest.mark.sample(2)
def test_a_full_disk_is_one_line_and_leaves_what_was(scene: Scene) -> None:
    if not scene.size or scene.write.appends:
        return  # it needs no room, or no more than its last block has
    here = scene.copy()

    def run() -> str:
        try:
            faults.mount_small_disk(here, 2**20)
        except faults.NotPermittedError:
            return ""
        (here / "filler.lock").write_bytes(bytes(shutil.disk_usage(here).free))
        failed = faults.failed(scene.write, here, lambda: None)
        return json.dumps([*failed, faults.view(here) == scene.before, faults.leftovers(here)])

    code, answer = child(run)
    assert code == 0
    if not answer:
        pytest.skip("only root may mount")
    code, message, same, left = json.loads(answer)
    assert (code, same, left) == (0, True, [])
    assert "space" in message.split("No space left on device")[1]
    assert message.isprintable()


# ── SIGTERM ─────────────────────────────────────────────────────────────────────────────────────


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "convert": lambda here: [
        *("convert", f"{here}/adapter.safetensors", f"{here}/out.safetensors"),
        *("--report", f"{here}/report.json"),
    ],
    "import": lambda here: ["library", "import", f"{here}/style-1.safetensors"],
    "export": lambda here: ["library", "export", "other", f"{here}/out.safetensors"],
    "remove": lambda here: ["library", "remove", "other"],
}


def command(here: Path, name: str) -> int:
    os.environ["IMAGEPROMPT_LIBRARY"] = str(here / "library")
    return cli.main(COMMANDS[name](here))


@pytest.fixture(scope="module")
def for_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("commands") / "start"
    folder.mkdir()
    faults.prepare_styles(folder)
    faults.save_adapter(".safetensors")(folder, 1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("IMAGEPROMPT_LIBRARY", "")
        yield folder


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_is_one_line_and_143(name: str, for_commands: Path, whole: bool) -> None:
    scene = Scene.of(
        faults.Write(name, lambda here, version: command(here, name) if version else None),
        for_commands.parent / name,
        start=for_commands,
    )
    publish = max(i for i, call in enumerate(scene.calls) if call in ("link", "replace", "unlink"))
    for moment in spread(range(publish + 1), 8 if whole else 4):
        here = scene.copy()
        run = partial(faults.run_killed, scene.write, here, moment, signal.SIGTERM)
        assert faults.said(run) == (143, "imageprompt: terminated\n"), scene.calls[moment]
        assert scene.problems(here) == []


def test_sigterm_keeps_the_pictures_that_are_done(tiny_bundled: Path, tmp_path: Path) -> None:
    from imageprompt.generation import result

    write = result.write_picture

    def run() -> int:
        def second(path: Path, *arguments: Any, **options: Any) -> None:
            with Moments(5 if path.name == "0002.png" else -1, terminate):
                write(path, *arguments, **options)

        def terminate() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(result, "write_picture", second)
            flags = ["--num-images", "3", "--batch-size", "1", "--steps", "1", "--scale", "0"]
            return cli.main(["generate", *flags, "--output", str(tmp_path)])

    code, said = faults.said(run)
    assert code == 143
    assert said.endswith("imageprompt: terminated\n")
    (picture,) = tmp_path.iterdir()
    assert picture.name == "0001.png"
    assert Image.open(picture).tobytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_config_for_a_full_disk_is_one_line() -> None:
    def run() -> int:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        return cli.main(["train", "--example", "tiny-base"])

    code, said = faults.said(run)
    assert code == 2
    assert said.count("\n") == 1
    assert "No space left on device. Free some space" in said


# ── links ───────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_written_through_a_link(scene: Scene, tmp_path: Path) -> None:
    private, here = tmp_path / "private", scene.copy()
    private.write_text("of somebody else")
    for path in {path for path, hash_ in scene.after.items() if scene.before.get(path) != hash_}:
        link = here / path
        if "checkpoints" in path:
            link = link.parent
        if link.is_symlink():
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path if "checkpoints" in path else private)
    refusal = ""
    try:
        scene.write.save(here, 1)
    except ImagePromptError as error:
        refusal = str(error)
    linked = [path for path in scene.after if (here / path).is_symlink()]
    if scene.write.name == "pictures with recipes":
        assert {"0004.png", "0005.png"} <= {path.name for path in here.iterdir()}
    elif linked:
        assert "a link" in refusal or "leads out" in refusal
    assert private.read_text() == "of somebody else"
    assert list(tmp_path.iterdir()) == [private]


# ── two processes ───────────────────────────────────────────────────────────────────────────────

ROUNDS = 12


def contest(tmp_path: Path, work: Callable[[str, int], Any], rounds: int = ROUNDS) -> list[Any]:
    """Two processes, "a" and "b", each call `work(who, round)` in all rounds at the same time."""
    barrier = forked.CONTEXT.Barrier(2)

    def run(who: str) -> str:
        answers = []
        try:
            for number in range(rounds):
                barrier.wait(300)
                answers.append(work(who, number))
        except BaseException:
            barrier.abort()
            raise
        return json.dumps(answers)

    return [json.loads(answer) for answer in together(lambda: run("a"), lambda: run("b"))]


def wins(call: Callable[[], object], *losing: type[Exception]) -> bool:
    try:
        call()
    except losing:
        return False
    return True


def test_two_processes_in_one_library(tmp_path: Path) -> None:
    faults.prepare_styles(tmp_path)
    library, file = ip.Library(tmp_path / "library"), tmp_path / "style-1.safetensors"

    def work(who: str, number: int) -> tuple[bool, bool]:
        own = f"{who}{number}"
        library.import_(file, own)
        added = wins(lambda: library.import_(file, f"same{number}"), OptionError)
        library.mix({"other": 1, own: 2}, f"mix-{own}")
        target = tmp_path / f"out{number}.safetensors"
        exported = wins(lambda: library.export(own, target), OptionError)
        library.remove(own)
        return added, exported

    ours, theirs = contest(tmp_path, work)
    for mine, other in zip(ours, theirs, strict=True):
        assert [a + b for a, b in zip(mine, other, strict=True)] == [1, 1]  # one of the two each
    mixes = [f"mix-{who}{number}" for who in "ab" for number in range(ROUNDS)]
    assert library.names() == sorted(["other", *mixes, *(f"same{i}" for i in range(ROUNDS))])
    assert len({library.show(name).hash for name in mixes}) == 1
    assert len({content(tmp_path / f"out{number}.safetensors") for number in range(ROUNDS)}) == 1
    assert faults.leftovers(tmp_path) == []


def test_a_reader_sees_the_old_style_or_the_new_one(tmp_path: Path) -> None:
    faults.prepare_styles(tmp_path)
    library = ip.Library(tmp_path / "library")
    hashes = {ip.Library(tmp_path / "styles").show(f"v{version}").hash for version in (0, 1)}

    def work(who: str, number: int) -> str:
        if who == "a":
            library.import_(tmp_path / f"style-{number % 2}.safetensors", "style", replace=True)
            return ""
        try:
            library.mix({"style": 1, "other": 1}, "mixed", replace=True)
            return library.show("style").hash
        except ImagePromptError as error:  # it changed while it was read
            return str(error)

    library.import_(tmp_path / "style-0.safetensors", "style")
    _, seen = contest(tmp_path, work, 30)
    assert {*seen} & hashes
    assert [one for one in {*seen} - hashes if "Try again" not in one] == []


def test_two_processes_convert_to_one_target(tmp_path: Path) -> None:
    from imageprompt.checkpoint.convert import convert

    faults.prepare_conversion(tmp_path)
    sources = {who: tmp_path / f"source-{version}.safetensors" for version, who in enumerate("ab")}

    def work(who: str, number: int) -> bool:
        target = tmp_path / f"out{number}.safetensors"
        return wins(lambda: convert(sources[who], target), OptionError)

    ours, theirs = contest(tmp_path, work)
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine != other
        written = content(tmp_path / f"out{number}.safetensors")
        assert written == content(sources["a" if mine else "b"])


def test_two_processes_generate_into_one_folder(tmp_path: Path) -> None:
    from imageprompt.generation import GenerationResult
    from imageprompt.loading.recipe import read_picture

    def made(who: str, number: int) -> Image.Image:
        return faults.noise(1000 * (who == "b") + number)

    def work(who: str, number: int) -> list[str]:
        return [
            str(path)
            for path in GenerationResult([made(who, number)], [faults.recipe()]).save(tmp_path)
        ]

    answers = contest(tmp_path, work, 25)
    paths = {
        Path(path): (who, i)
        for who, one in zip("ab", answers, strict=True)
        for i, (path,) in enumerate(one)
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{n:04d}.png" for n in range(1, 51)
    ]
    assert len(paths) == 50
    for path, (who, number) in paths.items():
        assert content(path) == made(who, number).tobytes()
        assert read_picture(path)[0] == faults.recipe()


def test_two_processes_train_into_one_folder(tmp_path: Path) -> None:
    from imageprompt.training.config.config import TrainingConfig
    from imageprompt.training.loop import checkpoints
    from imageprompt.training.loop.distributed import Processes
    from imageprompt.training.train import _locked_output
    from toy_training import metrics, trainer

    def work(who: str, number: int) -> str:
        folder = tmp_path / str(number)
        config = TrainingConfig(data="toy", output=str(folder))
        try:
            with _locked_output(config, Processes(None), False):
                trainer(folder, steps=2, batch_size=2, log_every=1).run()
                return "trained"
        except OptionError as error:
            return str(error)

    trainer(tmp_path / "first", steps=1, batch_size=2).run()  # imports
    ours, theirs = contest(tmp_path, work, 4)
    for number, answers in enumerate(zip(ours, theirs, strict=True)):
        assert sorted(answer == "trained" for answer in answers) == [False, True]
        refused = next(answer for answer in answers if answer != "trained")
        assert "another run is training there" in refused or "already contains a run" in refused
        found, damaged = checkpoints.newest(tmp_path / str(number) / "checkpoints")
        assert found is not None
        assert (found.step, damaged) == (2, [])
        assert [line["step"] for line in metrics(tmp_path / str(number))] == [1, 2]


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    """Each entry is computed once; a whole build is in tests/training/test_prepare.py."""
    import numpy as np
    import torch

    from imageprompt.core.atomic_files import BusyError
    from imageprompt.training.cache.store import Store, address

    store = Store(tmp_path)

    def work(who: str, number: int) -> list[int]:
        entries = {address(number, i): {"x": torch.full((9,), float(i))} for i in range(4)}
        for wait in (False, True):
            try:
                with store.writing(str(number), wait=wait):
                    missing = ~store.has(np.array([*entries]))
                    some = [one for one, lacks in zip(entries, missing, strict=True) if lacks]
                    if some:
                        store.write(str(number), {one: entries[one] for one in some})
                    return [len(some)]
            except BusyError:
                assert not wait
        raise AssertionError("unreachable")

    ours, theirs = contest(tmp_path, work)
    assert [a + b for (a,), (b,) in zip(ours, theirs, strict=True)] == [4] * ROUNDS
    whole = Store(tmp_path)
    whole.check()
    assert whole.damaged == {}
    assert all(whole.has(np.array([address(n, i)])).all() for n in range(ROUNDS) for i in range(4))
