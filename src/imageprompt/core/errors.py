"""The typed errors: each names the thing, the rule it broke and the remedy, on one line."""


class ImagePromptError(Exception):
    """Base of every error a user can cause.

    `what` names the thing (a file, a scale, a base), `reason` says what is wrong, `hint` what
    to do. The message is always a single line, so that a terminal or a log can show it as it is.
    """

    def __init__(self, what: str, *, reason: str = "", hint: str = "") -> None:
        self.what, self.reason, self.hint = what, reason, hint
        head = f"{what}: {reason}" if reason else what
        message = f"{head.rstrip('.')}. {hint}" if hint else head
        super().__init__(_printable(" ".join(message.split())))


def _printable(text: str) -> str:
    """Names out of files may hold what steers a terminal: shown escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class AdapterFileError(ImagePromptError):
    """A file that is no adapter, is damaged, or lacks or adds tensors."""


class WrongBaseError(ImagePromptError):
    """An adapter that was made for another base than the one it meets."""


class EncoderError(ImagePromptError):
    """No image encoder where one is needed, or one of the wrong width."""


class PictureError(ImagePromptError):
    """A reference picture that is missing, unreadable, hostile or in no accepted format."""


class PromptError(ImagePromptError):
    """An image prompt that is empty, damaged, or was made by another adapter."""


class ScaleError(ImagePromptError):
    """A scale outside its range, or given for sites that do not exist."""


class GuidanceError(ImagePromptError):
    """A batch whose guidance layout does not fit the prompts, or cannot be told."""


class AttachError(ImagePromptError):
    """A denoiser that cannot take an adapter, or an adapter used while not attached."""


class NotFoundError(ImagePromptError):
    """A path or a Hub id that is not to be had."""


class OptionError(ImagePromptError):
    """Any other argument that makes no sense."""
