"""Engine: one base with its adapters, encoders and image prompts kept loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imageprompt import loading
from imageprompt.core import bundled
from imageprompt.core.errors import OptionError
from imageprompt.generation.reference import Reference
from imageprompt.generation.request import Request, check_names
from imageprompt.loading.models import Models, models_of, models_of_pipeline

if TYPE_CHECKING:
    from imageprompt.adapter.adapter import Adapter
    from imageprompt.generation.result import GenerationResult
    from imageprompt.generation.run import Progress
    from imageprompt.loading import LoadedPipeline, LocatedAdapter

_OWN = ("base", "dtype", "device")


class Engine:
    """One base, loaded once, with the adapters, encoders and image prompts that it was asked for.

    `base`, `dtype` and `device` are those of `generate`; `adapter` and `encoder` are for references
    that name none (a style has its own). The base is loaded here, the rest when it is first asked
    for. What is kept is bounded, the least recently used leaves, and files that changed on disk are
    loaded again. Between calls nothing is attached to the base.

    `exported` is a folder of `imageprompt export`, whose denoiser a `runtime` (openvino,
    onnxruntime, aoti, pt2; default: the folder's) computes instead of PyTorch; the base's own
    weights of it are not loaded. `dtype` is then what the runtime computes in.

    Calls from several threads queue up, in order; also those of two engines on one loaded pipeline.
    A call from a callback of the engine's own is an OptionError.

    Raises NotFoundError, WrongBaseError, OptionError.
    """

    def __init__(
        self,
        base: Any = None,
        adapter: Any = None,
        encoder: Any = None,
        dtype: str | None = None,
        device: str | None = None,
        *,
        runtime: str | None = None,
        exported: str | os.PathLike[str] | None = None,
    ) -> None:
        load = None
        if runtime is not None or exported is not None:
            from imageprompt.generation.exported.open import Exported

            opened = Exported.of(runtime, exported)
            base, load = opened.base if base is None else base, opened.load
        self._given = {"base": base, "dtype": dtype, "device": device}
        self._defaults = {"adapter": adapter, "encoder": encoder}
        named = _is_name(base) or load is not None
        self._models = Models(load) if named else models_of_pipeline(base)
        Request(references=(Reference(scale=0),), **self._given).check()
        _ = self.loaded

    @property
    def loaded(self) -> LoadedPipeline:
        """The base: its pipeline, its name, and the record that recipes keep of it."""
        base, dtype, device = (self._given[name] for name in _OWN)
        folder = loading.base_folder(base)
        return self._models.base(base, folder, dtype, device, bars=False)

    def adapter_file(self, located: LocatedAdapter) -> Adapter:
        """The adapter in a file; its weights are those that calls of the engine use.

        Nobody may write to them. Raises AdapterFileError.
        """
        return self._models.adapter_file(located, self.loaded.pipe)

    def __repr__(self) -> str:
        base = self._given["base"]
        shown = bundled.NAME if base is None else base
        name = shown if isinstance(shown, str | os.PathLike) else type(shown).__name__
        return f"Engine({os.fspath(name)!r})"

    def generate(
        self,
        prompt: str = "",
        reference: Any = None,
        *,
        on_step: Callable[[Progress], object] | None = None,
        on_image: Callable[[GenerationResult], object] | None = None,
        **arguments: Any,
    ) -> GenerationResult:
        """Generate pictures: all arguments of `imageprompt.generate` but base, dtype and device.

        `on_step` gets a `Progress` after every denoising step, `on_image` a GenerationResult of
        each picture as soon as it is finished. `progress.cancel()` ends the call after that step:
        it returns the pictures that are finished, with `cancelled=True`.

        Raises an ImagePromptError; OptionError for `on_step` on a pipeline without step callbacks.
        """
        arguments |= {"prompt": prompt, "reference": reference}
        return self.run(self.request(arguments | {"on_step": on_step, "on_image": on_image}))

    def generate_many(
        self,
        requests: Sequence[Request | Mapping[str, Any]],
        *,
        batch_size: int = 8,
        on_step: Callable[[Progress], object] | None = None,
        on_image: Callable[[GenerationResult], object] | None = None,
        progress: bool = True,
    ) -> list[GenerationResult]:
        """Generate the pictures of many requests; results come in the order of the requests.

        A request is a mapping of `generate`'s arguments, or a `Request`. Those that agree in size,
        steps, guidance, adapters and controls are denoised together, `batch_size` pictures at a
        time, each with its own reference, text, seed and mask; the others in groups. If memory runs
        out, the batch is halved. A picture is that of the request alone: to the bit on a CPU in
        float32, up to rounding elsewhere.

        `on_step` gets a `Progress` per request and step (`progress.index` tells which), `on_image`
        each picture when it is finished (`result.request` tells of which request). `cancel()` ends
        that request only.

        Raises an ImagePromptError that names the request, before anything is made.
        """
        from imageprompt.generation.many import Named, run_many

        checked = []
        for index, one in enumerate(requests):
            with Named(index):
                checked.append(self.request(one))
        with self._models.turn:
            return run_many(
                [replace(one, progress=False) for one in checked],
                self._models,
                batch_size=batch_size,
                on_step=on_step,
                on_image=on_image,
                progress=progress,
            )

    def repeat(self, picture: str | os.PathLike[str], **changes: Any) -> GenerationResult:
        """Make a picture again from the recipe in its PNG file; see `imageprompt.repeat`.

        Raises WrongBaseError if the recipe's base is another than the engine's.
        """
        from imageprompt.generation.replay import request_from_recipe
        from imageprompt.loading.recipe import read_picture

        self._refuse_own(changes)
        recipe, tokens = read_picture(picture)
        base = {} if self._given["base"] is None else {"base": self._given["base"]}
        request = request_from_recipe(recipe, tokens, changes | base)
        changed = request.changed - {"base"}
        return self.run(replace(request, **self._given, changed=changed))

    def request(self, arguments: Request | Mapping[str, Any]) -> Request:
        """A checked request with the engine's base, adapter and encoder. Raises OptionError ..."""
        if isinstance(arguments, Request):
            given = {name: getattr(arguments, name) for name in _OWN}
            self._refuse_own({name: value for name, value in given.items() if value is not None})
            request = replace(arguments, **self._given)
        else:
            self._refuse_own(arguments)
            check_names(arguments)
            request = Request.from_arguments({**arguments, **self._given})
        references = tuple(map(self._with_defaults, request.references))
        request = replace(request, references=references)
        request.check()
        return request

    def _with_defaults(self, reference: Any) -> Any:
        if reference.empty or reference.style is not None:
            return reference
        missing = {
            name: value
            for name, value in self._defaults.items()
            if value is not None
            and getattr(reference, name) is None
            and not (name == "encoder" and reference.encoded)
        }
        return replace(reference, **missing) if missing else reference

    def _refuse_own(self, arguments: Mapping[str, Any]) -> None:
        for name in _OWN:
            if name in arguments:
                raise OptionError(
                    f"{name}={arguments[name]!r} in a call of an engine",
                    reason=f"the engine has its own {name}, and the call asks for another",
                    hint=f"Leave it out for the engine's, or use imageprompt.Engine({name}=...).",
                )

    def run(self, request: Request) -> GenerationResult:
        """The pictures of a request of `request()`."""
        from imageprompt.generation.run import run

        with self._models.turn:
            return run(request, self._models)

    def release(self) -> None:
        """Free all that is kept. The next call loads it again."""
        with self._models.turn:
            self._models.clear()


def run_requests(
    requests: Sequence[Request],
    *,
    batch_size: int,
    on_image: Callable[[GenerationResult], object] | None = None,
) -> list[GenerationResult]:
    """Checked requests of one base, dtype and device, in batches, as `Engine.generate_many` does.

    The models are those of `run_request`. Shows no bar.
    """
    from imageprompt.generation.many import run_many

    first = requests[0]
    models = models_of(first.base, first.dtype, first.device)
    quiet = [replace(one, progress=False) for one in requests]
    with models.turn:
        return run_many(
            quiet, models, batch_size=batch_size, on_step=None, on_image=on_image, progress=False
        )


def _is_name(base: object) -> bool:
    """Is it loaded from a folder, and so by each engine for itself?"""
    return isinstance(base, str | os.PathLike | None)


def run_request(request: Request) -> GenerationResult:
    """A checked request, with the models of its base, dtype and device kept for the next call."""
    from imageprompt.generation.run import run

    models = models_of(request.base, request.dtype, request.device)
    with models.turn:
        return run(request, models)
