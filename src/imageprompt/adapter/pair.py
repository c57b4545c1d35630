"""AdapterPair: a content adapter and a style adapter, trained together and kept in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from imageprompt.adapter.adapter import Adapter
from imageprompt.core.hub import PARTS, part_of


class AdapterPair:
    """Two adapters of one base: `content` takes what is drawn and where, `style` how it looks.

    Each is an ordinary adapter with a projector and K', V' of its own. Use both at once, nested:

        with pair.content.use(shape, scale=1), pair.style.use(look, scale=1): ...
    """

    def __init__(self, content: Adapter, style: Adapter) -> None:
        self.content, self.style = content, style
        self.module = nn.ModuleDict({"content": content.module, "style": style.module})
        """All weights; its state-dict keys are those of the file."""

    def __repr__(self) -> str:
        return f"AdapterPair({self.content!r}, {self.style!r})"

    @property
    def adapters(self) -> tuple[Adapter, Adapter]:
        """The content adapter, then the style adapter."""
        return self.content, self.style

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> AdapterPair:
        """Load a file that holds a pair. Raises what `Adapter.load` does."""
        return cls(*(Adapter.load(part_of(source, part)) for part in PARTS))

    def attach(self, pipe: object, encoder: object = None) -> AdapterPair:
        """Attach both; see `Adapter.attach`. Where the second cannot be, neither is."""
        self.content.attach(pipe, encoder)
        try:
            self.style.attach(pipe, encoder)
        except BaseException:
            self.content.detach()
            raise
        return self

    def detach(self) -> None:
        """Undo `attach`."""
        self.style.detach()
        self.content.detach()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights of both, for an optimiser."""
        return self.module.parameters()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write both to one file, atomically. Raises NotFoundError for a missing folder."""
        from imageprompt.checkpoint.torch_io import write_file
        from imageprompt.checkpoint.write import adapter_metadata, pair_metadata

        described = []
        for adapter in self.adapters:
            encoder = None if adapter.encoder is None else adapter.encoder.fingerprint
            described.append(adapter_metadata(adapter.spec, encoder))
        write_file(Path(path), self.module.state_dict(), pair_metadata(*described))
