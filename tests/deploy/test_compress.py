"""compress: low rank beside the base's own K and V, the light file, and what it stands for."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import imageprompt as ip
from guides import DOCS, commands
from imageprompt import cli, loading
from imageprompt.checkpoint.convert import convert
from imageprompt.checkpoint.inspect import inspect
from imageprompt.core import bundled
from imageprompt.core.errors import AdapterFileError, OptionError
from imageprompt.deploy.compress import measure, run, search
from imageprompt.deploy.compress.low_rank import Matrix, Ranks, last_true, second_moment
from imageprompt.deploy.compress.result import Budget, parse_budget
from tiny_stack import make_pipeline, make_xl_pipeline

# ── low rank ────────────────────────────────────────────────────────────────────────────────────


def matrix(inner: int, width: int, *, own: bool, tokens: int = 64) -> Matrix:
    weight = torch.randn(inner, width)
    base = torch.randn(inner, width) if own else None
    moment = second_moment(torch.randn(tokens, width) * torch.linspace(0.2, 3, width))
    return Matrix.of("ip_adapter.1.to_k_ip.weight", "mid", "k", weight, base, moment)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("inner", "width"), [(12, 20), (20, 12)])
def test_full_rank_gives_the_weight_back(inner: int, width: int, own: bool) -> None:
    one = matrix(inner, width, own=own)
    up, down = one.pair(min(inner, width))
    found = up @ down + (one.own if one.own is not None else 0)
    assert (found - one.weight).abs().max() < 1e-6 * one.weight.abs().max()
    assert torch.equal(one.at(min(inner, width)), one.weight)  # kept whole: a pair would be larger
    assert one.cost(min(inner, width)) == inner * width


def test_what_is_left_out_is_the_energy_of_its_directions() -> None:
    """Nothing of that rank has less: the singular values of D M^1/2 are the known optimum."""
    one = matrix(16, 24, own=True)
    tokens = torch.randn(64, 24)
    moment = second_moment(tokens)
    one = Matrix.of(one.name, "mid", "k", one.weight, one.own, moment)
    values, vectors = torch.linalg.eigh(moment)
    root = vectors @ values.sqrt().diag() @ vectors.T
    singular = torch.linalg.svdvals(one.difference.double() @ root)
    assert torch.allclose(one.energies, singular.square(), rtol=1e-4)
    for rank in (0, 3, 9):
        up, down = one.pair(rank)
        missing = ((one.difference - up @ down).double() @ root).square().sum()
        assert float(missing) == pytest.approx(float(singular[rank:].square().sum()), rel=1e-4)


def test_a_matrix_is_not_the_modules_weight() -> None:
    """Its search writes into that, and takes it back from here."""
    weight = torch.randn(6, 8)
    for own in (None, torch.randn(6, 8)):
        one = Matrix.of("a", "mid", "v", weight.clone(), own, torch.eye(8).double())
        live = weight.clone()
        other = Matrix.of("a", "mid", "v", live, own, torch.eye(8).double())
        live.zero_()
        assert torch.equal(other.weight, one.weight)


def test_a_weight_of_another_shape_than_the_bases_stands_for_itself() -> None:
    one = Matrix.of("a", "mid", "v", torch.randn(6, 8), torch.randn(6, 4), torch.eye(8).double())
    assert one.own is None
    assert torch.equal(one.difference, one.weight)


def test_ranks_follow_what_a_direction_is_worth() -> None:
    strong, weak = matrix(12, 20, own=True), matrix(12, 20, own=True)
    weak = Matrix(**{**vars(weak), "name": "weak", "block": "other"})
    ranks = Ranks([strong, weak], {("mid", "k"): 1.0, ("other", "k"): 1e-6})
    costs = [ranks.cost(ranks.at(step)) for step in range(len(ranks.steps) + 1)]
    assert costs == sorted(costs)
    assert costs[0] == 0
    assert costs[-1] == strong.size + weak.size
    half = ranks.at(12)
    assert half[strong.name] > 2 * half["weak"]
    assert ranks.at(len(ranks.steps), {"mid"})[strong.name] == 0


class Tails:
    """A measure for which block "a" is worth what it is as a whole, and next to nothing of that is
    in the directions of most energy; block "b" is worth what its energies say."""

    def __init__(self, matrices: dict[str, Matrix], weights: dict[str, torch.Tensor]) -> None:
        self._matrices, self._weights = matrices, weights

    def error(self) -> float:
        found = 0.0
        for name, one in self._matrices.items():
            added = one.directions.T @ (self._weights[name] - one.weight)
            lost = added.square().sum(1)
            found += float(lost[4:].sum() * 30 + lost[:4].sum() / 30 if name == "a" else lost.sum())
        return found**0.5


def test_ranks_are_shared_out_by_the_errors_that_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrices = {}
    for name in "ab":
        directions = torch.linalg.qr(torch.randn(12, 12))[0]
        weight = directions * torch.logspace(0, -2, 12) @ torch.linalg.qr(torch.randn(20, 12))[0].T
        own = torch.randn(12, 20)
        moment = torch.eye(20).double()
        matrices[name] = Matrix.of(name, name, "k", own + weight, own, moment)
    weights = {name: one.weight.clone() for name, one in matrices.items()}
    errors = []
    for count in (0, 2):
        monkeypatch.setattr(search, "REFINEMENTS", count)
        measured: Any = Tails(matrices, weights)
        choice = search.Search([*matrices.values()], weights, measured, int8=False).within_budget(
            9 * 32
        )
        assert choice is not None
        assert choice.parameters <= 9 * 32
        errors.append(choice.error)
    assert errors[1] < 0.8 * errors[0]
    assert choice.ranks["a"] > choice.ranks["b"]
    assert all(torch.equal(weights[name], one.weight) for name, one in matrices.items())


def test_the_last_number_for_which_something_holds() -> None:
    assert [last_true(5, lambda n, most=most: n <= most) for most in (-1, 0, 3, 9)] == [
        None,
        0,
        3,
        5,
    ]


def test_budgets() -> None:
    assert parse_budget("50M") == Budget(parameters=50_000_000)
    assert parse_budget("1.5k") == Budget(parameters=1500)
    assert parse_budget("12000") == Budget(parameters=12_000)
    assert parse_budget("25%") == Budget(share=0.25)
    for wrong in ("", "0", "-1", "50G", "101%", "0%", "1e9"):
        with pytest.raises(OptionError, match="Write 50M"):
            parse_budget(wrong)


# ── adapters ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose K' and V' differ from the base's, most in a few directions."""
    torch.manual_seed(3)
    tensors = load_file(tiny_folder / "adapters" / "plus.safetensors")
    for name, weight in tensors.items():
        if "_ip." in name:
            tensors[name] = weight + 0.5 * torch.linalg.matrix_exp(
                -torch.arange(len(weight)).float().diag()
            ) @ torch.randn_like(weight)
    path = tmp_path_factory.mktemp("trained") / "plus.safetensors"
    metadata = inspect(tiny_folder / "adapters" / "plus.safetensors").metadata
    save_file(tensors, path, dict(metadata))
    return path


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    for number, colour in enumerate(("red", "blue", "green", "white")):
        Image.new("RGB", (16, 16), colour).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Any:
    return loading.load_base(
        str(tiny_folder), tiny_folder, dtype=None, device="cpu", bars=False
    ).pipe


@pytest.fixture(scope="module")
def compressed(
    trained: Path, tiny_folder: Path, references: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return run.compress(
        trained,
        str(tiny_folder),
        budget=Budget(share=0.3),
        references=references,
        output=tmp_path_factory.mktemp("light"),
    )


def test_the_error_falls_as_the_budget_rises(
    compressed: Any, trained: Path, tiny_folder: Path, references: Path
) -> None:
    more = run.compress(trained, str(tiny_folder), budget=Budget(share=0.8), references=references)
    assert more.error < compressed.error < 1
    assert compressed.share <= 0.3
    assert 0.3 < more.share <= 0.8
    for one in (compressed, more):
        assert one.parameters_before - one.parameters == one.key_values_before - one.key_values
        assert sum(block.parameters for block in one.blocks) == one.key_values
        assert (one.fitted, one.measured) == (2, 2)


def test_the_file_holds_what_is_told(compressed: Any, trained: Path) -> None:
    stored = load_file(compressed.files["light"])
    numbers = sum(one.numel() for name, one in stored.items() if not name.endswith("_scale"))
    assert numbers == compressed.parameters
    assert numbers < sum(one.numel() for one in load_file(trained).values())
    pairs = [name for name in stored if name.endswith("_ip.down.weight")]
    assert pairs
    assert all(
        stored[name].dtype == torch.int8 and f"{name}_scale" in stored
        for name in pairs
        if stored[name].numel()
    )


def test_the_expanded_file_is_the_light_one_on_its_base(
    compressed: Any, tiny_folder: Path, pipe: Any, tmp_path: Path
) -> None:
    light = compressed.files["light"]
    loaded = ip.Adapter.load(light, base=pipe).module.state_dict()
    convert(light, tmp_path / "full.safetensors", base=str(tiny_folder))
    full, half = load_file(tmp_path / "full.safetensors"), load_file(compressed.files["expanded"])
    assert full.keys() == loaded.keys() == half.keys()
    assert all(torch.equal(loaded[name].float(), full[name].float()) for name in full)
    assert all(torch.equal(loaded[name].half(), half[name]) for name in half)
    stored = load_file(light)
    stem = next(name for name in stored if name.endswith("_ip.down.weight") and stored[name].any())
    stem = stem.removesuffix(".down.weight")
    parts = (stored[f"{stem}.{end}.weight"] * stored[f"{stem}.{end}.weight_scale"][:, None]
             for end in ("up", "down"))  # fmt: skip
    up, down = parts
    file_id, kind = stem.split(".")[1], stem[-4]
    site = next(s for s in run.AttachedDenoiser.of(pipe).spec.sites if s.file_id == file_id)
    own = pipe.unet.get_submodule(site.name).get_submodule(f"to_{kind}").weight
    assert torch.allclose(loaded[f"{stem}.weight"], own + up @ down, atol=1e-5)
    report = inspect(tmp_path / "full.safetensors")
    assert report.ok
    assert "light" not in report.metadata


def test_what_is_measured_is_what_the_file_does(
    compressed: Any, pipe: Any, trained: Path, references: Path
) -> None:
    _, measured = run.open_pictures(references)
    whole = ip.Adapter.load(trained).attach(pipe, pipe.image_encoder)
    try:
        measure = run.Measure(pipe, pipe.unet, whole, measured, seed=1)
        light = ip.Adapter.load(compressed.files["light"], base=pipe).module.state_dict()
        with torch.no_grad():
            for name, weight in whole.module.named_parameters():
                if "_ip." in name:
                    weight.copy_(light[name])
        assert measure.error() == pytest.approx(compressed.error, rel=1e-3)
    finally:
        whole.detach()


def test_bases_with_sizes_and_two_text_encoders_are_measured() -> None:
    pipe = make_xl_pipeline()
    encoder = pipe.image_encoder
    adapter = ip.Adapter.create("base", denoiser=pipe, encoder=encoder).attach(pipe, encoder)
    measure = run.Measure(pipe, pipe.unet, adapter, [Image.new("RGB", (16, 16), "red")])
    assert measure.predict().shape == (3, 4, 8, 8)
    assert measure.error() == 0 < measure.effect
    with torch.no_grad():
        adapter.module.sites[0].to_v_ip.weight.zero_()
    assert 0 < measure.error() < 1


def test_a_light_file_says_what_it_is_and_asks_for_its_base(
    compressed: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    light = Path(compressed.files["light"])
    report = inspect(light)
    assert report.ok
    assert report.parameters == compressed.parameters
    assert any(f"beside K and V of {tiny_folder.name}, and" in note for note in report.notes)
    assert str(tiny_folder.parent) not in report.metadata["light"]
    first = next(advice.line for advice in report.remedies if advice.where == "first")
    assert first.endswith("adapter.safetensors --base DIR --dtype float16")
    assert inspect(light, deep=True, base=str(tiny_folder)).host == report.host
    for read in (
        lambda: ip.Adapter.load(light),
        lambda: convert(light, tmp_path / "full.safetensors"),
        lambda: inspect(light, deep=True),
    ):
        with pytest.raises(AdapterFileError, match=r"a light adapter: .* Name the base: Adapter"):
            read()
    assert not list(tmp_path.iterdir())


def test_on_another_base_it_is_another_adapter(compressed: Any, tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = make_pipeline()
    with pytest.warns(UserWarning, match="for another base than this one"):
        ip.Adapter.load(compressed.files["light"], base=other)


def test_a_base_in_half_precision_is_the_same_base(compressed: Any, tiny_folder: Path) -> None:
    half = loading.load_base(
        str(tiny_folder), tiny_folder, dtype="bfloat16", device="cpu", bars=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ip.Adapter.load(compressed.files["light"], base=half.pipe)


def test_generate_takes_a_light_file(
    compressed: Any, tiny_folder: Path, references: Path, tmp_path: Path
) -> None:
    command = ["generate", "--base", str(tiny_folder), "--reference", str(references / "0.png")]
    command += ["--steps", "1", "--size", "16x16"]
    for name in ("light", "expanded"):
        file = compressed.files[name]
        assert cli.main([*command, "--adapter", file, "--output", str(tmp_path / name)]) == 0
    light, expanded = (next((tmp_path / name).rglob("*.png")) for name in ("light", "expanded"))
    pictures = [torch.tensor(list(Image.open(path).tobytes())) for path in (light, expanded)]
    assert (pictures[0] - pictures[1]).abs().max() <= 2


# ── goals and bad input ─────────────────────────────────────────────────────────────────────────


def test_the_command_meets_an_error(
    trained: Path, tiny_folder: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", str(trained), "--base", str(tiny_folder), "--references"]
    assert cli.main([*command, str(references), "--error", "0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["error"] <= 0.3
    assert found["parameters"] < found["parameters_before"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "100"), "the projector, which stays as it is. The nearest is "),
        (("--error", "0.00001"), "no ranks reach it in int8; the nearest is 0.0"),
        (("--error", "2"), "not between 0 and 1"),
        (("--budget", "much"), "Write 50M, 500k"),
        (("--budget", "50%", "--pictures", "-1"), "not from 0 to"),
    ],
)
def test_goals_that_cannot_be_met(
    options: tuple[str, ...],
    message: str,
    trained: Path,
    tiny_folder: Path,
    references: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["compress", str(trained), "--base", str(tiny_folder), "--references"]
    assert cli.main([*command, str(references), *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_adapters_that_it_cannot_compress(
    tiny_folder: Path, references: Path, pipe: Any, tmp_path: Path
) -> None:
    options = {"budget": Budget(share=0.5), "references": references}
    with pytest.raises(AdapterFileError, match="nothing was trained"):
        run.compress("plus", str(tiny_folder), **options)
    ip.Adapter.create("faceid", denoiser=pipe, encoder=None).save(tmp_path / "face.safetensors")
    with pytest.raises(OptionError, match=r"it reads faces, or has LoRA.*--dtype int8"):
        run.compress(tmp_path / "face.safetensors", str(tiny_folder), **options)
    with pytest.raises(OptionError, match="0 pictures in a folder"):
        run.compress("plus", str(tiny_folder), budget=Budget(share=0.5), references=tmp_path)


# ── damaged and hostile files ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: torch.zeros(9, 7)}),
        lambda tensors, name: tensors.update(
            {name: torch.zeros(0, 2**20), name.replace("down", "up"): torch.zeros(2**20, 0)}
        ),
    ],
    ids=["half a pair", "another rank", "a weight of 4 TB"],
)
def test_damaged_pairs_are_no_adapter(damage: Any, compressed: Any, tmp_path: Path) -> None:
    light = compressed.files["light"]
    tensors, metadata = load_file(light), dict(inspect(light).metadata)
    name = next(name for name in tensors if name.endswith("_ip.down.weight"))
    damage(tensors, name)
    for key in (f"{name}_scale", f"{name.replace('down', 'up')}_scale"):
        tensors.pop(key, None)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    assert not inspect(tmp_path / "damaged.safetensors").ok


@pytest.mark.parametrize("text", ["{", "[]", "x" * 70_000])
def test_metadata_that_is_no_json(text: str, compressed: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(compressed.files["light"]), path, {"light": text})
    assert not inspect(path).ok


def test_metadata_of_other_kinds_says_nothing(compressed: Any, pipe: Any, tmp_path: Path) -> None:
    light = compressed.files["light"]
    metadata = dict(inspect(light).metadata)
    text = '{"alone": 3, "fingerprints": [], "base": {"a": 1}}'
    save_file(load_file(light), tmp_path / "a.safetensors", metadata | {"light": text})
    found, whole = (
        ip.Adapter.load(path, base=pipe).module.state_dict()
        for path in (tmp_path / "a.safetensors", light)
    )
    assert not inspect(tmp_path / "a.safetensors").problems
    if not any(block.dropped for block in compressed.blocks):
        assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_dropped_blocks_have_no_effect(
    compressed: Any, trained: Path, pipe: Any, tmp_path: Path
) -> None:
    from imageprompt.deploy.compress.search import Choice
    from imageprompt.deploy.compress.write import write_light

    adapter = ip.Adapter.load(trained)
    text = run.text_weights(run.AttachedDenoiser.of(pipe))
    matrices = {
        name: Matrix.of(name, name.split(".")[1], "k", weight, text[name], torch.eye(32).double())
        for name, weight in adapter.module.named_parameters()
        if "_ip." in name
    }
    gone = next(iter(matrices)).split(".")[1]
    choice = Choice(dict.fromkeys(matrices, 1), frozenset({gone}), 0, 0.0)
    path = tmp_path / "dropped.safetensors"
    write_light(path, adapter, matrices, choice, base="", dtype=None)
    loaded = ip.Adapter.load(path, base=pipe).module.state_dict()
    shutil.rmtree(tmp_path)
    assert all(loaded[name].any() == (name.split(".")[1] != gone) for name in matrices)


# ── the guide ───────────────────────────────────────────────────────────────────────────────────


def test_the_commands_of_the_guide(
    trained: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tiny stack with trained adapters in place of the bundled one."""
    stack = shutil.copytree(tiny_folder, tmp_path / "stack")
    for name in ("plus", "base"):
        shutil.copy(trained, stack / "adapters" / f"{name}.safetensors")
    monkeypatch.setattr(bundled, "folder", lambda _=bundled.NAME: stack)
    monkeypatch.setattr(run, "FITTED", 2)
    monkeypatch.setattr(run, "MEASURED", 2)
    monkeypatch.setattr(measure, "TIMES", (0.5,))
    monkeypatch.setattr(bundled, "STEPS", 1)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), "red").save("a.png")
    steps = commands(DOCS / "compress.md")
    assert [command[0] for command in steps] == ["compress"] * 2 + [
        "generate",
        "inspect",
        "convert",
    ]
    for command in steps:
        more = ["--pictures", "2"] if command[0] == "compress" else []
        assert cli.main([*command, *more]) == 0, command
    assert Path("full.safetensors").exists()
