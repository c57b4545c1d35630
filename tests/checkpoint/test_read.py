"""What torch, safetensors, accelerate and torch DCP write is read to the bit, without torch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import forked
from forge import header, write
from imageprompt.checkpoint.read.open import open_source
from imageprompt.checkpoint.read.pickle.torch_objects import TorchPickle
from imageprompt.checkpoint.read.stored_tensor import TensorSource
from imageprompt.checkpoint.torch_io import read_file, tensor_of
from imageprompt.core.errors import AdapterFileError
from imageprompt.core.untrusted import LimitError

State = dict[str, Tensor]


def state() -> State:
    """A tensor of every kind that a checkpoint may hold."""
    base = torch.randn(10, 10)
    return {
        "float": torch.randn(3, 4),
        "half": torch.randn(7).half(),
        "bfloat16": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "transposed": torch.randn(4, 5).t(),
        "window": base[2:5, 3:7],
        "rows": base[2:5],
        "strange shape": torch.randn(4, 1, 3).transpose(0, 1),
    }


def equal(source: TensorSource, expected: State) -> None:
    assert list(source.tensors) == list(expected)
    for name, tensor in expected.items():
        stored = source.tensors[name]
        assert stored.shape == tuple(tensor.shape)
        assert torch.equal(tensor_of(stored), tensor)
        assert tensor_of(stored).dtype == tensor.dtype
        assert b"".join(stored.chunks(7)) == stored.read()
        assert len(stored.read()) == stored.nbytes
        assert all(0 < len(chunk) <= 7 for chunk in stored.chunks(7))


# ── single files ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("zipped", "container"), [(True, "torch zip"), (False, "torch legacy")])
def test_torch_files(zipped: bool, container: str, tmp_path: Path) -> None:
    expected = state()
    torch.save(expected, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    source = open_source(tmp_path / "a.pt")
    equal(source, expected)
    assert source.container == container
    slow = [name for name, tensor in source.tensors.items() if not tensor.plain]
    assert slow == ["transposed", "window"]
    assert "2 tensors are" in source.notes[0]


def test_the_state_of_a_module(tmp_path: Path) -> None:
    """An ordered table with versions attached, in which the parameters share one tensor."""
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 3)
    )
    module[2].weight = module[0].weight
    torch.save(module.state_dict(), tmp_path / "a.pt")
    source = open_source(tmp_path / "a.pt")
    equal(source, module.state_dict())
    assert source.notes == ()
    assert source.tensors["0.weight"].storage == source.tensors["2.weight"].storage


def test_dtypes_without_a_storage_class(tmp_path: Path) -> None:
    expected = {
        "fp8": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "other fp8": torch.randn(3).to(torch.float8_e5m2),
        "uint16": torch.arange(3).to(torch.uint16),
    }
    torch.save(expected, tmp_path / "a.pt")
    source = open_source(tmp_path / "a.pt")
    assert [t.dtype for t in source.tensors.values()] == ["F8_E4M3", "F8_E5M2", "U16"]
    for name, tensor in expected.items():
        assert source.tensors[name].read() == tensor.view(torch.uint8).numpy().tobytes()


def test_compressed_torch_files_are_read_the_slow_way(tmp_path: Path) -> None:
    expected = state()
    torch.save(expected, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    source = open_source(tmp_path / "b.pt")
    equal(source, expected)
    assert not any(tensor.plain for tensor in source.tensors.values())
    assert "13 tensors are compressed" in source.notes[0]


def test_big_endian_torch_files(tmp_path: Path) -> None:
    values = torch.randn(3, 4)
    torch.save({"a": values}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as little,
        zipfile.ZipFile(tmp_path / "b.pt", "w") as big,
    ):
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                content = values.numpy().astype(">f4").tobytes()
            big.writestr(name, content)
    equal(open_source(tmp_path / "b.pt"), {"a": values})


def test_safetensors(tmp_path: Path) -> None:
    expected = {name: tensor.detach().contiguous() for name, tensor in state().items()}
    save_file(expected, tmp_path / "a.safetensors", {"variant": "plus"})
    source = open_source(tmp_path / "a.safetensors")
    equal(source, {name: expected[name] for name in source.tensors})
    assert source.tensors.keys() == expected.keys()
    assert source.metadata == {"variant": "plus"}
    assert all(tensor.plain for tensor in source.tensors.values())
    offsets = [tensor.offset for tensor in source.tensors.values()]
    assert offsets == sorted(offsets)


def test_shared_tensors_are_known_by_their_storage(tmp_path: Path) -> None:
    weight, same = torch.randn(4, 4), torch.zeros(4, 4)
    torch.save({"a": weight, "b": weight, "c": same, "row": weight[1]}, tmp_path / "a.pt")
    tensors = open_source(tmp_path / "a.pt").tensors
    assert tensors["a"].storage == tensors["b"].storage
    assert len({tensors[name].storage for name in ("a", "c", "row")}) == 3


def test_nested_tables_and_what_is_no_tensor(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "image_proj": {"proj.weight": torch.ones(2)},
        "ip_adapter": {"1.to_k_ip.weight": torch.ones(3)},
        "epoch": 3,
        "best": None,
        "args": [1, 2],
    }
    torch.save(content, tmp_path / "a.bin")
    source = open_source(tmp_path / "a.bin")
    assert list(source.tensors) == ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"]
    assert source.notes == (
        "ignoring 3 values that are not tensors: epoch (int), best (NoneType), args (list)",
    )


@pytest.mark.parametrize("wrapper", ["module", "state_dict", "model", "model_state_dict"])
def test_what_trainers_put_weights_under(wrapper: str, tmp_path: Path) -> None:
    torch.save({wrapper: {"a.weight": torch.ones(2)}, "step": 7}, tmp_path / "a.pt")
    source = open_source(tmp_path / "a.pt")
    assert list(source.tensors) == ["a.weight"]
    assert source.notes == (f"reading the tensors under ['{wrapper}']; ignoring step",)


def test_harmless_values_of_other_libraries(tmp_path: Path) -> None:
    import argparse
    from collections import OrderedDict, defaultdict

    import numpy as np

    content: dict[str, Any] = {
        "weights": OrderedDict(a=torch.ones(2)),
        "loss": np.float64(0.5),
        "history": np.zeros(3),
        "args": argparse.Namespace(lr=1e-4, out=Path("out")),
        "counts": defaultdict(list, x=[1]),
    }
    torch.save(content, tmp_path / "a.pt")
    source = open_source(tmp_path / "a.pt")
    assert list(source.tensors) == ["weights.a"]
    assert "ignoring 4 values that are not tensors" in source.notes[0]
    assert "multiarray.scalar" in source.notes[1]


class Python2Dict(dict[str, torch.Tensor]):
    """An OrderedDict as Python 2 pickled it: its items are arguments, not operations."""

    def __reduce__(self) -> Any:
        from collections import OrderedDict

        return OrderedDict, ([[name, value] for name, value in self.items()],)


def test_files_that_python_2_wrote(tmp_path: Path) -> None:
    content = Python2Dict(a=torch.arange(3.0), b=torch.ones(2))
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    found = read_file(tmp_path / "a.pth").tensors
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [0, 1, 2]


def test_one_list_of_items_does_not_fill_dicts_without_end() -> None:
    """A list of 1,000 items may make a few dicts; here it is asked for 10,000."""
    items = b"]q\x02(" + b"](U\x01aNe" * 1000 + b"e"
    each = b"h\x01h\x02\x85R"
    start = b"\x80\x02ccollections\nOrderedDict\nq\x01" + items
    assert TorchPickle().read(start + each + b".")[0] == {"a": None}
    with pytest.raises(LimitError):
        TorchPickle().read(start + each * 10_000 + b".")


def test_what_holds_no_named_tensors(tmp_path: Path) -> None:
    for content, words in (
        (torch.ones(2), "of type tensor"),
        ([torch.ones(2)], "of type list"),
        ({"a": 1}, "no tensors, only a"),
        ({}, "empty table"),
        ({"a": torch.zeros(0)}, "1 of its 1 tensors are empty: .*ZeRO-3"),
        (
            {"module": {"a": torch.zeros(0), "b": torch.ones(2)}, "param_shapes": []},
            "1 of its 2 tensors are empty: .*ZeRO-3",
        ),
        ({"state": {}, "param_groups": []}, "state of an optimiser"),
        ({"optimizer_state_dict": {}}, "optimiser's partition"),
        (torch.nn.Linear(2, 2), "of type torch.nn.modules.linear.Linear"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(AdapterFileError, match=words):
            open_source(tmp_path / "a.pt")


# ── cost ────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_file_costs_nothing_to_open(tmp_path: Path) -> None:
    """3.5 GB (sparse), 800 tensors: a few MB, a fraction of a second, neither torch nor numpy."""
    path = write(
        tmp_path / "large", header({f"block.{i}.weight": (1024, 1024) for i in range(800)}, "F32")
    )
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from imageprompt.checkpoint.read.open import open_source\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('VmHWM'))\n"
        "before, start = peak(), time.process_time()\n"
        "assert len(open_source(Path(sys.argv[1])).tensors) == 800\n"
        "print(time.process_time() - start, (peak() - before) / 1024)\n"
        "assert not {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 0.1
    assert megabytes < 10


# ── folders ─────────────────────────────────────────────────────────────────────────────────────


def saved(path: Path, value: float = 1.0, name: str = "a.weight") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.full((2, 2), value)}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def value(source: TensorSource) -> float:
    (tensor,) = source.tensors.values()
    return float(tensor_of(tensor)[0, 0])


def test_a_training_folder_of_this_project(tmp_path: Path) -> None:
    """The final adapter; before there is one, the newest whole checkpoint."""
    for step in (100, 200, 1000):
        saved(tmp_path / f"checkpoints/step-{step}/adapter.safetensors", step)
        saved(tmp_path / f"checkpoints/step-{step}/state.safetensors")
    source = open_source(tmp_path)
    assert value(source) == 1000
    assert source.path == tmp_path
    assert source.notes == ("reading step-1000, the newest of 3 checkpoints",)
    assert value(open_source(tmp_path / "checkpoints")) == 1000
    assert value(open_source(tmp_path / "checkpoints/step-200")) == 200

    (tmp_path / "checkpoints/step-1000/adapter.safetensors").write_bytes(b"cut")
    source = open_source(tmp_path)
    assert value(source) == 200
    assert "1 newer are incomplete" in source.notes[-1]

    (tmp_path / "checkpoints/step-200/adapter.safetensors").unlink()
    (tmp_path / "checkpoints/step-200/adapter.safetensors").symlink_to(tmp_path / "gone")
    assert value(open_source(tmp_path)) == 100

    saved(tmp_path / "adapter.safetensors", 7)
    assert value(open_source(tmp_path)) == 7


def test_a_folder_of_broken_checkpoints_says_what_is_wrong(tmp_path: Path) -> None:
    for step in (1, 2):
        saved(tmp_path / f"checkpoint-{step}/model.safetensors").write_bytes(b"cut")
    with pytest.raises(AdapterFileError, match="3 bytes") as refused:
        open_source(tmp_path)
    assert "checkpoint-2" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin"]
)
def test_a_checkpoint_of_accelerate(name: str, tmp_path: Path) -> None:
    saved(tmp_path / name, 3)
    for beside in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin"):
        saved(tmp_path / beside)
    source = open_source(tmp_path)
    assert value(source) == 3
    assert source.files == (tmp_path / name,)
    assert source.notes == ()


def test_several_models_in_one_checkpoint_are_noted(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", 3)
    saved(tmp_path / "model_1.safetensors", 4)
    source = open_source(tmp_path)
    assert value(source) == 3
    assert source.notes == ("reading model.safetensors, not model_1.safetensors beside it",)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(suffix: str, tmp_path: Path) -> None:
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    for i, name in enumerate(names):
        saved(tmp_path / name, i, f"{i}.weight")
    index = tmp_path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {"1.weight": names[1], "0.weight": names[0]}}))
    for path in (tmp_path, index):
        source = open_source(path)
        assert source.container == f"sharded {'safetensors' if stem == 'model' else 'torch'}"
        read = {name: float(tensor_of(t)[0, 0]) for name, t in source.tensors.items()}
        assert read == {"1.weight": 1.0, "0.weight": 0.0}
        assert source.notes == ()
    index.write_text(json.dumps({"weight_map": {"other": names[0]}}))
    with pytest.raises(AdapterFileError, match=r"1 tensors are not in the shard .*other"):
        open_source(tmp_path)


def test_deepspeed_folders(tmp_path: Path) -> None:
    """As DeepSpeed lays it out itself (`latest`), and inside a checkpoint of accelerate."""
    weights = {"module": {"unet.a": torch.full((2, 2), 5.0)}, "ds_version": "0.17", "dp_size": 1}
    own, inner = tmp_path / "own/global_step9", tmp_path / "accelerate/pytorch_model"
    for folder in (own, inner):
        folder.mkdir(parents=True)
        torch.save(weights, folder / "mp_rank_00_model_states.pt")
        torch.save(
            {"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
        )
    (tmp_path / "own/latest").write_text("global_step9\n")
    for folder in (own, tmp_path / "own", inner, tmp_path / "accelerate"):
        source = open_source(folder)
        assert value(source) == 5
        assert list(source.tensors) == ["unet.a"]
        assert source.path == folder
        assert "reading the tensors under ['module']" in source.notes[0]
    torch.save(weights, own / "mp_rank_01_model_states.pt")
    with pytest.raises(AdapterFileError, match="split over 2 model ranks"):
        open_source(own)
    saved(own / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(AdapterFileError, match=r"ZeRO-3.*zero_to_fp32"):
        open_source(tmp_path / "own")


def test_torch_dcp_folders(tmp_path: Path) -> None:
    """Of one process, with the model beside an optimiser."""
    import torch.distributed.checkpoint as dcp

    expected = {"unet.a.weight": torch.randn(6, 4), "half": torch.randn(3).bfloat16()}
    content = {"model": expected, "optimizer": {"exp_avg": torch.zeros(2), "lr": 0.1}}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(content, checkpoint_id=tmp_path / "dcp", no_dist=True)
    source = open_source(tmp_path / "dcp")
    equal(source, expected)
    assert source.container == "torch DCP"
    assert "1 tensors outside 'model.' are ignored" in source.notes
    metadata = pickle.loads((tmp_path / "dcp/.metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.offset = 0
    (tmp_path / "dcp/.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(AdapterFileError, match="the pieces of its tensors overlap"):
        open_source(tmp_path / "dcp")
    (tmp_path / "dcp/__0_0.distcp").unlink()
    with pytest.raises(AdapterFileError, match=r"1 of its files are missing \(__0_0.distcp\)"):
        open_source(tmp_path / "dcp")


SHARDED = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

def save(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    rows, columns = torch.arange(20.0).reshape(5, 4), torch.arange(18.0).reshape(3, 6)
    state = {
        "rows": distribute_tensor(rows, mesh, [Shard(0)]),
        "columns": distribute_tensor(columns, mesh, [Shard(1)]),
        "whole": torch.arange(3.0),
    }
    dcp.save(state, checkpoint_id=folder)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(save, args=(sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.slow
def test_torch_dcp_folders_of_two_processes(tmp_path: Path) -> None:
    """Tensors split over ranks, by rows and by columns, are put together again."""
    done = forked.run(SHARDED, str(tmp_path / "dcp"))
    assert done.returncode == 0, done.stderr
    source = open_source(tmp_path / "dcp")
    rows, columns = torch.arange(20.0).reshape(5, 4), torch.arange(18.0).reshape(3, 6)
    expected = {"rows": rows, "columns": columns, "whole": torch.arange(3.0)}
    equal(source, {name: expected[name] for name in source.tensors})
    assert source.tensors.keys() == expected.keys()
    assert "2 tensors are" in source.notes[0]
    (tmp_path / "dcp/__1_0.distcp").rename(tmp_path / "lost")
    with pytest.raises(AdapterFileError, match=r"missing \(__1_0.distcp\)"):
        open_source(tmp_path / "dcp")


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    saved(tmp_path / "my style.safetensors", 2)
    (tmp_path / "notes.txt").write_text("mine")
    assert value(open_source(tmp_path)) == 2
    assert read_file(tmp_path).tensors["a.weight"].shape == (2, 2)
