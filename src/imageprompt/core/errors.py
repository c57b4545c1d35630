"""The typed errors: each names the thing, what is wrong with it and what to do, on one line."""

import errno
from collections.abc import Iterable, Mapping

MAX_PART = 1500
"""Characters of one part of a message: a path of a stranger can have a million."""


class ImagePromptError(Exception):
    """Base of every error a user can cause.

    `what` names the thing (a file, a scale, a base), `reason` says what is wrong with it, `hint`
    says what to do. The message is always a single line that a terminal or a log can show as it
    is.
    """

    def __init__(self, what: str, *, reason: str = "", hint: str = "") -> None:
        self.what, self.reason, self.hint = what, reason, hint
        what, reason, hint = (shortened(" ".join(part.split())) for part in (what, reason, hint))
        head = f"{what}: {reason}" if reason else what
        message = f"{head.rstrip('.')}. {hint}" if hint else head
        super().__init__(printable(message))


def printable(text: str) -> str:
    """`text` with control characters, line ends, bidi marks and lone surrogates escaped.

    The one door to a terminal, log, table or JSON for what a stranger may have named.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def as_text(lines: Iterable[str]) -> str:
    """A report of these lines: each stays one line, and is printable."""
    return "\n".join(map(printable, lines))


def shortened(text: str, limit: int = MAX_PART) -> str:
    """`text` without its middle if it has more than `limit` characters."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


class AdapterFileError(ImagePromptError):
    """A file that is not an adapter, is damaged, or has missing or unexpected tensors."""


class WrongBaseError(ImagePromptError):
    """An adapter on a base it was not made for."""


class EncoderError(ImagePromptError):
    """A missing image encoder, or one of the wrong width."""


class PictureError(ImagePromptError):
    """A picture that is missing, unreadable, hostile or in an unsupported format."""


class PromptError(ImagePromptError):
    """An image prompt that is empty, damaged, or was made by another adapter."""


class ScaleError(ImagePromptError):
    """A scale out of range, or for sites that do not exist."""


class GuidanceError(ImagePromptError):
    """A batch whose guidance layout is ambiguous or does not fit the prompts."""


class AttachError(ImagePromptError):
    """A denoiser that cannot take an adapter, or an adapter used while it is not attached."""


class NotFoundError(ImagePromptError):
    """A path or a Hub id that cannot be found."""


class WriteError(ImagePromptError, OSError):
    """A file that cannot be written: a full disk, a read-only or missing folder. Its `errno` says
    which; what had its name before is unchanged."""


class OptionError(ImagePromptError):
    """Any other invalid argument."""


# ── what the system says ────────────────────────────────────────────────────────────────────────

REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Free some space, or write to another disk.",
    errno.EFBIG: "Raise the limit of this process (ulimit -f), or write to another disk.",
    errno.EMFILE: "Allow more open files: ulimit -n 4096.",
    errno.EACCES: "Check its permissions.",
    errno.EPERM: "Check its permissions.",
    errno.EROFS: "Write to another folder.",
    errno.ENAMETOOLONG: "Give a shorter path.",
}
"""The error number of an OSError -> what to do."""
