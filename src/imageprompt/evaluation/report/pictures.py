"""The pictures of a page: small WebP files in it, all of one size that fits the page's budget."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from imageprompt.core.errors import PictureError
from imageprompt.core.untrusted import is_inside
from imageprompt.encoding.images.open_image import open_picture

SIDES = (320, 256, 192, 160, 128, 112, 96, 80, 64, 48)  # px
QUALITY = 74
BUDGET = 4 * 2**20
"""Characters of all pictures of a page together."""
_SAMPLE = 24
"""Pictures that a size is chosen by."""


@dataclass
class Shown:
    """A picture where the page shows it; the gallery fills in its data when it has them all."""

    path: Path
    about: str
    """What it is: for the picture when it is large, and for those who do not see it."""
    file: str | None = None
    """Its path from the page; None if it lies elsewhere."""
    data: str | None = None
    """A data URL; None if the picture cannot be opened."""


@dataclass
class Gallery:
    """All pictures of a page that will stand in `folder`."""

    folder: Path
    budget: int = BUDGET
    side: int = SIDES[0]
    broken: dict[Path, str] = field(default_factory=dict)
    """Picture that cannot be opened -> why."""
    _shown: list[Shown] = field(default_factory=list)

    def add(self, path: Path, about: str, *, own: bool = True) -> Shown:
        """`own`: does the study vouch for the file? If not, it is not opened."""
        if not own:
            self.broken[path] = "not in the folder of its study, and not the reference measured"
        shown = Shown(path, about, self._file(path))
        self._shown.append(shown)
        return shown

    def load(self) -> None:
        """Choose the size, and fill in the data of all pictures."""
        self.side = self._fitting()
        kept: dict[Path, str | None] = {}
        for one in self._shown:
            if one.path not in kept:
                kept[one.path] = self._url(one.path)
            one.data = kept[one.path]

    def _file(self, path: Path) -> str | None:
        if not is_inside(path, self.folder):
            return None
        relative = os.path.relpath(path, self.folder)
        return None if relative.startswith("..") else quote(Path(relative).as_posix())

    def _url(self, path: Path) -> str | None:
        if path in self.broken:
            return None
        try:
            return f"data:image/webp;base64,{_encoded(path, self.side)}"
        except PictureError as error:
            self.broken[path] = error.reason
            return None

    def _fitting(self) -> int:
        """The largest side at which a sample says that all fit, with a tenth to spare."""
        sample = self._shown[:: max(1, len(self._shown) // _SAMPLE)]
        for side in SIDES:
            sizes = []
            for one in sample:
                if one.path in self.broken:
                    continue
                try:
                    sizes.append(len(_encoded(one.path, side)))
                except PictureError:
                    continue
            if not sizes or 1.1 * sum(sizes) / len(sizes) * len(self._shown) <= self.budget:
                return side
        return SIDES[-1]


def _encoded(path: Path, side: int) -> str:
    """Base64 of a WebP of at most `side` px. Raises PictureError."""
    picture = open_picture(path)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="WEBP", quality=QUALITY, method=4)
    return base64.b64encode(stream.getvalue()).decode()
