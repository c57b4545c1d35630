"""What torch's pickles are made of: storages and views of them, without torch.

Only the names below are accepted. A name that is neither needed for tensors nor known to be a
harmless leaf (an option, a numpy scalar, an optimiser's class) is refused: `os.system` is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from imageprompt.checkpoint.read.pickle.machine import (
    MAX_ARGUMENTS,
    Global,
    Opaque,
    PickleDamaged,
    PickleError,
    PickleMachine,
    PickleRefused,
    pairs,
)
from imageprompt.checkpoint.read.raw import reading_budget
from imageprompt.checkpoint.read.stored_tensor import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    TORCH_DTYPES,
    is_shape,
)
from imageprompt.core.untrusted import Budget

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}  # fmt: skip
# Recorded by name, never opened. numpy, torch and the standard library contain harmful functions
# beside harmless ones, so theirs are listed name by name.
_LEAVES: Mapping[str, str] = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set "
    "slice str tuple",
    "collections": "Counter defaultdict deque",
    "datetime": "date datetime timedelta",
    "decimal": "Decimal",
    "numpy": "bool_ dtype float16 float32 float64 int32 int64 ndarray uint8",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "pathlib": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "PosixPath WindowsPath",
    "torch": "Generator Tensor device dtype layout memory_format",
    "torch._utils": "_rebuild_meta_tensor_no_storage _rebuild_nested_tensor _rebuild_qtensor "
    "_rebuild_sparse_csr_tensor _rebuild_sparse_tensor",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo _StoragePrefix",
    "torch.nn.parameter": "Buffer Parameter",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
_LEAF_FAMILIES = (
    "accelerate.",
    "deepspeed.",
    "diffusers.",
    "lightning.",
    "lightning_fabric.",
    "numpy.dtypes.",
    "omegaconf.",
    "pytorch_lightning.",
    "torch.distributed.checkpoint.metadata.",
    "torch.nn.modules.",
    "torch.optim.",
    "transformers.",
)


@dataclass(frozen=True, slots=True)
class TorchStorage:
    """A range of bytes that tensors are views of; `key` names it in the file."""

    key: str
    dtype: str
    nbytes: int

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor: `offset` and `stride` count elements of `dtype` in the storage."""

    storage: TorchStorage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def span(self) -> tuple[int, int]:
        """The bytes [begin, end) of the storage that it touches."""
        size = ITEM_SIZES[self.dtype]
        begin = self.offset * size
        if not prod(self.shape):
            return begin, begin
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return begin, begin + (last + 1) * size

    @property
    def contiguous(self) -> bool:
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != expected:
                return not prod(self.shape)
            expected *= n
        return True


@dataclass
class TorchPickle:
    """Reads torch's pickles; `unopened` counts ignored values by class, `storages` is by key."""

    unopened: dict[str, int] = field(default_factory=dict)
    storages: dict[str, TorchStorage] = field(default_factory=dict)
    budget: Budget = field(default_factory=reading_budget)

    def read(self, data: bytes, position: int = 0) -> tuple[Any, int]:
        """The value of the pickle at `position`, and where it ends. Raises PickleError."""
        machine = PickleMachine(data, self._find, self._load, self.budget, position)
        return machine.run(), machine.position

    def _find(self, module: str, name: str) -> Global:
        module = "builtins" if module == "__builtin__" else module  # Python 2's name
        full = f"{module}.{name}"
        make = self._ordered if full == "collections.OrderedDict" else _MAKERS.get(full)
        if make is not None:
            return Global(full, make)
        if (module in ("torch", "torch.storage") and name in STORAGES) or (
            module == "torch" and name in TORCH_DTYPES
        ):
            return Global(name)
        if name in _LEAVES.get(module, "").split() or full.startswith(_LEAF_FAMILIES):
            self.unopened[full] = self.unopened.get(full, 0) + 1
            return Global(full)
        raise PickleRefused(f"the pickle asks for {full[:80]}, which no weights need")

    def _ordered(self, items: Any = ()) -> dict[Any, Any]:
        """Filled by the operations that follow, or from pairs, as Python 2 pickled it."""
        self.budget.add(len(items))  # one list can be used many times
        return pairs([part for item in items for part in (item[0], item[1])])

    def _load(self, persistent_id: Any) -> TorchStorage:
        """A persistent id: ("storage", type, key, location, number of elements[, view])."""
        if not isinstance(persistent_id, tuple) or len(persistent_id) > 6:
            raise PickleError("it stores a value in an unsupported way")
        kind, of, name, _, count, *view = persistent_id
        dtype = STORAGES.get(of.name) if isinstance(of, Global) else None
        if kind != "storage" or not isinstance(name, str) or not natural(count) or any(view):
            what = kind[:20] if isinstance(kind, str) else type(kind).__name__
            raise PickleError(f"it stores a {what} in an unsupported way")
        if dtype is None:
            raise PickleError("it contains values of an unsupported type")
        storage = TorchStorage(name, dtype, count * ITEM_SIZES[dtype])
        if self.storages.setdefault(name, storage).nbytes != storage.nbytes:
            raise PickleError(f"it gives storage {name[:20]!r} two sizes")
        return storage


def _view(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None) -> TensorView:
    sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
    if not (
        isinstance(storage, TorchStorage)
        and sizes
        and is_shape(shape)
        and all(map(natural, (offset, *stride)))
    ):
        raise PickleDamaged("it contains a malformed tensor")
    view = TensorView(storage, dtype or storage.dtype, offset, shape, stride)
    if view.span[1] > storage.nbytes or view.nbytes > storage.nbytes:
        raise PickleDamaged(
            f"a tensor of shape {list(shape)} claims more than its {storage.nbytes} bytes"
        )
    return view


def natural(value: Any) -> bool:
    """Is it a whole number from 0 to 2^63? (True and 1.0 are not.)"""
    return type(value) is int and 0 <= value < 2**63


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorView:
    return _view(storage, offset, shape, stride, None)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    *rest: Any,
) -> TensorView:
    if not isinstance(dtype, Global) or dtype.name not in TORCH_DTYPES:
        raise PickleError("it contains a tensor of an unsupported dtype")
    return _view(storage, offset, shape, stride, TORCH_DTYPES[dtype.name])


def _typed(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor of a subclass or with attributes: only the tensor."""
    made = function.make if isinstance(function, Global) else None
    if made is None or made is _typed:  # no recursion
        return Opaque("torch.Tensor")
    return made(*args[:MAX_ARGUMENTS])


def _size(sizes: Any = ()) -> tuple[Any, ...]:
    if len(sizes) > MAX_DIMENSIONS:
        raise PickleError("it contains a shape with too many dimensions")
    return tuple(sizes)


_MAKERS: Mapping[str, Callable[..., Any]] = {
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": _typed,
}
