"""flux: FluxTransformer2DModel, double and single blocks: FLUX.1 dev, schnell, Kontext, Fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageprompt.core.errors import AttachError
from imageprompt.core.spec import Entry, HostSpec, Site, SiteKind
from imageprompt.hosts.contract import ConfiguredHost

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageprompt.attention.state import AttentionState, Call

PUBLISHED = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
}


def _sites(config: Mapping[str, Any]) -> Iterator[Site]:
    """Every block, double blocks first; image tokens are as wide as the states of T5."""
    double, heads = config["num_layers"], config["num_attention_heads"]
    for i in range(double + config["num_single_layers"]):
        kind: SiteKind = "joint double" if i < double else "joint single"
        block = (
            f"transformer_blocks.{i}" if i < double else f"single_transformer_blocks.{i - double}"
        )
        yield Site(
            name=f"{block}.attn",
            file_id=str(i),
            inner_dim=heads * config["attention_head_dim"],
            heads=heads,
            cross_attention_dim=config["joint_attention_dim"],
            role="other",
            kind=kind,
        )


@dataclass(frozen=True)
class FluxHost(ConfiguredHost):
    """One call a side of guidance; the picture is a sequence of packed 2x2 latents."""

    attachable: bool = True

    def describe(self, denoiser: nn.Module) -> HostSpec:
        config: Any = denoiser.config
        spec = self.from_config({**config, "_class_name": self.denoiser_class})
        assert spec is not None
        return spec

    def text_weights(self, denoiser: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        raise AttachError(
            "a new adapter for FLUX",
            reason="training on FLUX is not supported yet",
            hint="Load a published adapter.",
        )

    def linears(self, denoiser: nn.Module, name: str) -> Mapping[str, nn.Module]:
        raise AttachError(
            f"LoRA at {name}", reason="no adapter for FLUX has LoRA", hint="Use another adapter."
        )

    def install(self, denoiser: nn.Module, spec: HostSpec, state: AttentionState) -> list[Any]:
        from imageprompt.hosts._joint_sites import JointSite, Place, post_hook, pre_hook

        reader = _CallReader()
        handles: list[Any] = []
        for number, site in enumerate(spec.sites):
            layer: Any = denoiser.get_submodule(site.name)
            block = denoiser.get_submodule(site.name.removesuffix(".attn"))
            double = site.kind == "joint double"
            entries: tuple[Entry, ...] = ("attention", "block" if double else "all rows")
            first = len(state.readers)
            places = [Place(state, first + i, number, entry) for i, entry in enumerate(entries)]
            state.readers += places
            joint = JointSite(places, reader.length)
            handles.append(post_hook(layer.norm_q, joint.hear))
            if double:
                handles.append(pre_hook(layer.to_out[0], joint.before_projection))
                handles.append(post_hook(block, joint.after_block))
            else:
                handles.append(post_hook(layer, joint.after_attention))
            state.parts.append(block)
        state.parts.append(denoiser)
        state.levels = (0,) * len(state.readers)
        state.read = reader
        return handles

    def intact(self, installed: list[Any]) -> bool:
        return True  # hooks stay whatever processor is set

    def remove(self, installed: list[Any]) -> None:
        for handle in installed:
            handle.remove()


class _CallReader:
    """Reads the calls of one transformer; remembers the grid of the last position ids."""

    def __init__(self) -> None:
        self._ids: Any = None
        self._version = -1
        self._grid = ((0, 0), 0)
        self._length = 0

    def length(self) -> int:
        return self._length

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        from imageprompt.attention.state import Call, argument

        sample = argument(args, kwargs, 0, "hidden_states")
        self._length = int(sample.shape[1])
        size, references = self._grid_of(argument(args, kwargs, 4, "img_ids"))
        return Call(
            sample,
            argument(args, kwargs, 3, "timestep"),
            argument(args, kwargs, 1, "encoder_hidden_states"),
            size,
            references,
            separate=True,
        )

    def _grid_of(self, ids: Tensor | None) -> tuple[tuple[int, int], int]:
        """Height and width of the picture's rows, and the number of reference rows after them.

        Position ids are (0, row, column) for the picture, (1, row, column) for a reference.
        """
        if ids is None:
            return (0, 0), 0
        version = -1 if ids.is_inference() else ids._version
        if self._ids is not ids or version != self._version:
            self._ids, self._version, self._grid = ids, version, _read_grid(ids)
        return self._grid


def _read_grid(ids: Tensor) -> tuple[tuple[int, int], int]:
    rows = (ids[0] if ids.ndim == 3 else ids).long().cpu()
    first = rows[:, 0] == 0
    picture = rows[first]
    if not len(picture) or not bool(first[: len(picture)].all()):
        return (0, 0), 0
    height, width = (int(picture[:, axis].max()) + 1 for axis in (1, 2))
    grid = (height, width) if height * width == len(picture) else (0, 0)
    return grid, len(rows) - len(picture)


HOST = FluxHost(
    name="flux",
    summary="FluxTransformer2DModel: FLUX.1 dev, schnell, Kontext and Fill",
    denoiser_class="FluxTransformer2DModel",
    published=PUBLISHED,
    sites=_sites,
)
