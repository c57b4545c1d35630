"""Flags derive from annotated options; one name for the bundled stack; shell completion."""

from __future__ import annotations

import json
import re
import subprocess
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from imageprompt import cli
from imageprompt.cli import flags
from imageprompt.core import bundled
from imageprompt.core.schema import Option, options
from imageprompt.generation.reference import REFERENCE_FIELDS, Reference
from imageprompt.generation.request import REQUEST_FIELDS, Request


@dataclass(frozen=True, kw_only=True)
class Sample:
    scale: Annotated[float | None, Option("how strongly, 100 %", metavar="S")] = 0.8
    seed: Annotated[int, Option("the seed")] = 1
    mode: Annotated[Literal["live", "merged"], Option("of LoRA", flag="--lora-mode")] = "live"
    size: Annotated[tuple[int, int] | None, Option("in pixels", parse=lambda t: (int(t), 1))] = None
    mask: Annotated[Any, Option("a picture", repeat=True, group="masks")] = None
    internal: str = ""


def parse(*arguments: str, once: bool = False) -> Namespace:
    parser = ArgumentParser()
    flags.add_options(parser, Sample, once=once)
    return parser.parse_args(arguments)


def test_types_names_and_repeats_are_those_of_the_fields() -> None:
    assert vars(parse()) == {}  # defaults stay with the fields
    line = "--scale 1 --seed 3 --lora-mode merged --size 7 --mask a --mask b"
    assert vars(parse(*line.split())) == {
        "scale": 1.0,
        "seed": 3,
        "mode": "merged",
        "size": (7, 1),
        "mask": ["a", "b"],
    }


@pytest.mark.parametrize("line", ["--seed 1.5", "--lora-mode dead", "--internal x"])
def test_wrong_values(line: str) -> None:
    with pytest.raises(SystemExit):
        parse(*line.split())


def test_the_last_value_counts_or_it_is_an_error() -> None:
    line = ["--seed", "1", "--seed", "2"]
    assert parse(*line).seed == 2
    with pytest.raises(SystemExit):
        parse(*line, once=True)


def test_the_help_shows_text_and_default() -> None:
    parser = ArgumentParser()
    flags.add_options(parser, Sample, ("scale", "mask"))
    text = parser.format_help()
    assert re.search(r"--scale S +how strongly, 100 % \(default 0\.8\)", text)
    assert "--seed" not in text
    assert [title for title, _ in flags.by_group(Sample)] == ["options", "masks"]


# ── generate ────────────────────────────────────────────────────────────────────────────────────


def test_every_option_of_generate_has_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    python_only = {"progress"}
    for kind, names in ((Reference, REFERENCE_FIELDS), (Request, REQUEST_FIELDS)):
        fields = {field.name: field for field in options(kind)}
        assert set(fields) == set(names) - python_only
        for field in fields.values():
            assert f"{field.flag} {field.option.metavar} {field.option.help}" in text


@pytest.mark.parametrize("kind", [Reference, Request])
def test_defaults_in_help_texts_are_the_real_ones(kind: type) -> None:
    for field in options(kind):
        named = re.search(r"\(default ([^)]*)\)", field.option.help)
        if named and field.default is not None:
            assert float(named[1]) == field.default, field.name
        shown = re.search(r"([\w-]+|'[^']*') \(default\)", field.option.help)
        if shown:
            assert shown[1].strip("'") == field.default, field.name


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("32x16", (32, 16))])
def test_one_number_is_a_square(
    text: str, size: tuple[int, int], tiny_bundled: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ["generate", "--scale", "0", "--steps", "1", "--size", text, "--json"]
    assert cli.main([*command, "--output", str(tmp_path)]) == 0
    recipe = json.loads(capsys.readouterr().out)["pictures"][0]["recipe"]
    assert (recipe["width"], recipe["height"]) == size


# ── the bundled stack by name ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "command",
    [
        "inspect {adapter} --base bundled",
        "validate {adapter} --base bundled",
        "validate {adapter} --base bundled --encoder {encoder}",
        "diff {adapter} {adapter} --base bundled",
        "convert {adapter} {out}/a.safetensors --base bundled",
        "presets style --base bundled",
        "check {picture} {picture} --encoder bundled",
        "library add one {picture} --library {out}/l --base bundled --encoder {encoder}",
        "generate --reference {picture} --steps 1 --output {out} --encoder {encoder}",
        "generate --reference {picture} --steps 1 --output {out} --base bundled --encoder {inside}",
    ],
)
def test_the_stack_has_one_name(command: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "picture.png")
    places = {
        "adapter": bundled.adapter(),
        "picture": tmp_path / "picture.png",
        "out": tmp_path,
        "encoder": "bundled",
        "inside": "bundled/image_encoder",
    }
    assert cli.main(command.format(**places).split()) == 0


# ── completion ──────────────────────────────────────────────────────────────────────────────────


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gene"], ["generate"]),
        (["build"], ["build-cache"]),
        (["generate", "--negative-r"], ["--negative-reference"]),
        (["library", "exp"], ["export"]),
        (["library", "list", "--sh"], ["--sheet"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "completion.bash"
    path.write_text(script("bash", capsys))
    line = " ".join(["imageprompt", *words])
    code = (
        f"source {path}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        '_shtab_imageprompt; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_bash_completes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "completion.bash"
    path.write_text(script("bash", capsys))
    (tmp_path / "reference.png").touch()
    code = (
        f"cd {tmp_path}; source {path}; COMP_WORDS=(imageprompt generate --reference ref); "
        'COMP_CWORD=3; _shtab_imageprompt; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reference.png"]


@pytest.mark.parametrize(
    ("shell", "start"), [("zsh", "#compdef imageprompt"), ("tcsh", "# AUTOMATICALLY GENERATED")]
)
def test_other_shells(shell: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert text.startswith(start)
    for word in (*cli.COMMANDS, "negative-reference"):
        assert word in text
