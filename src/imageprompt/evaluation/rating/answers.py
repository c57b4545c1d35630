"""What raters send back, checked against the key: files from strangers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imageprompt.core.errors import NotFoundError, OptionError
from imageprompt.core.untrusted import Budget, parse_json, read_regular
from imageprompt.evaluation.rating.questions import AXES, KEY_FORMAT, VERSION

FORMAT = "imageprompt-ratings"
MAX_BYTES = 16 * 2**20
MAX_KEY = 64 * 2**20
EQUAL = "equal"
_AXES = {axis.name for axis in AXES}
_MAX_NAME = 200
_AGAIN = "Let the rater save the answers again, with the page."


@dataclass(frozen=True)
class Item:
    """A question of the key. `pictures`: picture id -> condition; `expected` if it is planted."""

    id: str
    subject: str
    prompt: str
    reference: str
    pictures: Mapping[str, str]
    expected: str | None


@dataclass(frozen=True)
class Key:
    """What the ids of a page stand for."""

    study: str
    mode: str
    conditions: tuple[str, ...]
    items: Mapping[str, Item]

    @property
    def asked(self) -> list[Item]:
        """Without the planted ones."""
        return [one for one in self.items.values() if one.expected is None]


@dataclass(frozen=True)
class Answer:
    """`choice` is a picture's id or EQUAL (in pairs); `scores` are 1..5 by axis (on scales)."""

    item: str
    choice: str = ""
    scores: Mapping[str, int] = field(default_factory=dict)
    left: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Rater:
    """The answers of one person, and those to the questions that were shown twice."""

    name: str
    path: Path
    answers: Mapping[str, Answer]
    repeated: Mapping[str, Answer]


def read_key(path: Path) -> Key:
    """Raises NotFoundError, and OptionError for anything else than a key."""
    plain = _object(path, MAX_KEY, "key")
    if plain.get("format") != KEY_FORMAT or plain.get("version") != VERSION:
        raise OptionError(
            f"key {str(path)!r}",
            reason="not a key of `imageprompt rate`",
            hint="Give the rate-key.json that was written beside the page.",
        )
    try:
        items = [
            Item(
                **{name: _text(one, name) for name in ("id", "subject", "prompt", "reference")},
                pictures={str(k): str(v) for k, v in dict(one["pictures"]).items()},
                expected=None if one["expected"] is None else str(one["expected"]),
            )
            for one in plain["items"]
        ]
        mode, conditions = str(plain["mode"]), tuple(map(str, plain["conditions"]))
        study = str(plain["study"])
        if mode not in ("pairs", "scales") or len({one.id for one in items}) < len(items):
            raise ValueError("an unknown mode, or a question twice")
        for one in items:
            _check_item(one, mode, conditions)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"key {str(path)!r}", reason=f"damaged ({error})", hint="Run `imageprompt rate` again."
        ) from error
    return Key(study, mode, conditions, {one.id: one for one in items})


def _check_item(item: Item, mode: str, conditions: tuple[str, ...]) -> None:
    """Raises ValueError."""
    shown = [*item.pictures.values()]
    known = set(conditions) if item.expected is None else {"reference", "unrelated"}
    right = item.pictures if mode == "pairs" else ("high", "low")
    if (
        len(set(shown)) != len(shown)
        or len(shown) != (2 if mode == "pairs" else 1)
        or not set(shown) <= known
        or item.expected not in (None, *right)
    ):
        raise ValueError(f"{item.id} has other pictures than a question has")


def read_raters(paths: Sequence[Path], key: Key) -> list[Rater]:
    """The answers of each file. Raises NotFoundError; OptionError for one that does not belong."""
    raters: dict[str, Rater] = {}
    for path in paths:
        rater = _rater(path, key)
        if rater.name in raters:
            raise OptionError(
                f"two files of rater {rater.name!r}",
                reason=f"{str(raters[rater.name].path)!r} and {str(path)!r}",
                hint="Give the later one only.",
            )
        raters[rater.name] = rater
    return list(raters.values())


def _rater(path: Path, key: Key) -> Rater:
    plain = _object(path, MAX_BYTES, "ratings")
    what = f"ratings {str(path)!r}"
    if plain.get("format") != FORMAT or plain.get("version") != VERSION:
        raise OptionError(what, reason="not the answers of a rater", hint=_AGAIN)
    if plain.get("study") != key.study or plain.get("mode") != key.mode:
        raise OptionError(
            what,
            reason=f"of another study: {plain.get('study')}, the key is of {key.study}",
            hint="Give the key of the page that was rated.",
        )
    answers: dict[str, Answer] = {}
    repeated: dict[str, Answer] = {}
    try:
        name = _text(plain, "rater").strip()
        if not 0 < len(name) <= _MAX_NAME:
            raise ValueError("the rater has no name, or a very long one")
        for one in plain["answers"]:
            answer = _answer(one, key)
            kept = repeated if one.get("repeat") is True else answers
            if answer.item in kept:
                raise ValueError(f"{answer.item} is answered twice")
            kept[answer.item] = answer
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise OptionError(what, reason=f"damaged: {reason}", hint=_AGAIN) from error
    if not answers:
        raise OptionError(what, reason="has no answers", hint=_AGAIN)
    return Rater(name, path, answers, repeated)


def _answer(plain: Any, key: Key) -> Answer:
    """Raises ValueError, KeyError, TypeError, AttributeError."""
    item = key.items.get(_text(plain, "item"))
    if item is None:
        raise ValueError(f"the page has no question {plain['item']!r}")
    seconds = plain.get("seconds", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"{item.id} has no time")
    if key.mode == "pairs":
        choice, left = _text(plain, "choice"), _text(plain, "left")
        if choice not in (*item.pictures, EQUAL) or left not in item.pictures:
            raise ValueError(f"{item.id} has no picture {choice!r}")
        return Answer(item.id, choice=choice, left=left, seconds=float(seconds))
    scores = plain["scores"]
    for axis, score in scores.items():
        if axis not in _AXES or isinstance(score, bool) or score not in (1, 2, 3, 4, 5):
            raise ValueError(f"{item.id} has {axis} {score!r}, not 1 to 5")
    if not scores:
        raise ValueError(f"{item.id} has no scores")
    return Answer(item.id, scores={str(k): int(v) for k, v in scores.items()}, seconds=seconds)


def _text(plain: Any, name: str) -> str:
    value = plain[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return value


def _object(path: Path, limit: int, what: str) -> dict[str, Any]:
    """The JSON object in a file. Raises NotFoundError, OptionError."""
    try:
        plain = parse_json(read_regular(path, limit), Budget(nbytes=limit, items=4_000_000))
    except FileNotFoundError:
        raise NotFoundError(
            f"{what} {str(path)!r}", reason="not found", hint="Check the path."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"{what} {str(path)!r}", reason=f"cannot be read: {reason}") from error
    if not isinstance(plain, dict):
        raise OptionError(f"{what} {str(path)!r}", reason="not a JSON object")
    return plain
