"""openvino: OpenVINO on the CPU; reads its own IR and ONNX."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imageprompt.core.errors import OptionError
from imageprompt.generation.runtimes.contract import Graph, library

if TYPE_CHECKING:
    from torch import Tensor

    from imageprompt.generation.exported.manifest import Part

T = TypeVar("T")
SMALL = 256 * 2**20
"""Bytes of a model that is kept for several sizes of calls: its weights are copied every time."""
MOST_SIZES = 8
MOST_CHANGES = 3
"""Changes of size after which a larger model is compiled once for all sizes."""
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVINO:
    name = "openvino"
    summary = "OpenVINO on the CPU, in float32 or bfloat16"
    precisions = ("float32", "bfloat16")

    def open(self, folder: Path, part: Part, precision: str, threads: int) -> Graph:
        openvino = library("openvino", self.name)
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
        }
        path = folder / next(iter(part.files))
        core = openvino.Core()
        with _explained(path):
            model = core.read_model(str(path))

        def compiled(shapes: Mapping[str, list[int]] | None) -> Any:
            with _explained(path):
                sized = model
                if shapes is not None:
                    sized = model.clone()
                    sized.reshape(dict(shapes))
                return in_own_thread(
                    lambda: core.compile_model(sized, "CPU", options).create_infer_request()
                )

        small = sum((folder / name).stat().st_size for name in part.files) <= SMALL
        return _Graph((_BySizes if small else _OneSize)(compiled))


def in_own_thread(work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread that ends with it.

    OpenVINO 2026.4 gives the thread that compiles a model another stack for its signals, and
    unmaps that with the model, in whatever thread it is dropped. Then the next signal to the first
    thread, be it Ctrl-C, ends the process with a segmentation fault.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OptionError(
            str(path),
            reason=f"OpenVINO cannot open it ({str(error).strip().splitlines()[-1]})",
            hint="Export it again.",
        ) from error


Compile = Callable[[Mapping[str, list[int]] | None], Any]


class _BySizes:
    """A small model compiled for the sizes of a call: they run in two thirds of the time, and
    compiling takes that of about fifty calls."""

    def __init__(self, compiled: Compile) -> None:
        self._compiled = compiled
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def __call__(self, shapes: Mapping[str, list[int]]) -> Any:
        key = tuple((name, *shape) for name, shape in shapes.items())
        if key not in self._kept:
            self._kept[key] = self._compiled(shapes)
            while len(self._kept) > MOST_SIZES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class _OneSize:
    """A large model compiled for the size of the last call, so that its weights are there once.

    Sizes that keep changing would have it compiled again and again: then once for all sizes.
    """

    def __init__(self, compiled: Compile) -> None:
        self._compiled = compiled
        self._request: Any = None
        self._size: Mapping[str, list[int]] | None = {}
        self._changes = -1

    def __call__(self, shapes: Mapping[str, list[int]]) -> Any:
        if self._request is None or (self._size is not None and shapes != self._size):
            self._changes += 1
            self._size = None if self._changes >= MOST_CHANGES else dict(shapes)
            self._request = None  # freed before the next one takes its memory
            self._request = self._compiled(self._size)
        return self._request


class _Graph:
    def __init__(self, request_for: Callable[[Mapping[str, list[int]]], Any]) -> None:
        self._request_for = request_for

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        import torch

        arrays = {name: one.contiguous().numpy() for name, one in tensors.items()}
        request = self._request_for({name: list(one.shape) for name, one in arrays.items()})
        made = request.infer(arrays, share_inputs=True)
        return [torch.from_numpy(one.copy()) for one in made.values()]


RUNTIME = OpenVINO()
