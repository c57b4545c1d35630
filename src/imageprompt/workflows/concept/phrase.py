"""Strength by words: "strongly watercolour, a hint of ukiyo-e" to a table of styles and strengths.

A rule table, no model. A phrase is a list of parts; a part is words of strength and the name, or a
tag, of a style in the library. The words of each language are a JSON file in `words`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from imageprompt.core.errors import OptionError
from imageprompt.library.paths import folded

PLAIN, STRONGEST = 0.7, 1.2
"""Strength of a style that is named without a word, and of the strongest words."""
MORE, LESS = 1.25, 0.8
"""What comparatives multiply the last strength of the style by."""
MAX_TEXT, MAX_PARTS = 500, 16
LADDER = ("without", "a hint of", "slightly", "", "clearly", "strongly", "extremely")
"""English words from none to the most."""

_FILES = Path(__file__).parent / "words"
_SEPARATORS = re.compile(r"[,;\n、。]+")
_NUMBER = r"(\d{1,4}(?:[.,]\d{1,4})?)"


@dataclass(frozen=True)
class Wish:
    """How strongly one style is wanted."""

    style: str
    said: str
    """The words of strength, comparatives at the end."""
    strength: float
    """0 (dropped) to 1.2."""
    alone: bool = False
    """Was it "only" this style?"""


@dataclass(frozen=True)
class Words:
    """The words of all languages, folded."""

    strength: Mapping[str, float] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    more: frozenset[str] = frozenset()
    less: frozenset[str] = frozenset()
    joining: tuple[str, ...] = ()
    percent: frozenset[str] = frozenset()
    filler: tuple[str, ...] = ()

    @property
    def known(self) -> list[str]:
        """All words that say how strongly, for suggestions."""
        return [one for one in (*self.strength, *self.without, *self.more, *self.less) if one]


@cache
def words() -> Words:
    """The words of `words/*.json`."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(_FILES.glob("*.json"))]

    def of(key: str) -> list[str]:
        return sorted((folded(one) for file in files for one in file[key]), key=len, reverse=True)

    return Words(
        strength={
            folded(word): float(strength)
            for file in files
            for strength, those in file["strength"].items()
            for word in those
        },
        alone=frozenset(of("alone")),
        without=frozenset(of("without")),
        more=frozenset(of("more")),
        less=frozenset(of("less")),
        joining=tuple(of("and")),
        percent=frozenset(of("percent")),
        filler=tuple(of("filler")),
    )


def parse(text: str, names: Mapping[str, Sequence[str]]) -> tuple[Wish, ...]:
    """The styles that a phrase asks for, in its order; those with strength 0 are dropped.

    `names` are the styles of the library with their tags. Raises OptionError for an unknown word or
    name, with the nearest one, for a tag of several styles, and for words that contradict.
    """
    if not text.strip() or len(text) > MAX_TEXT or not _printable(text):
        raise OptionError(
            f"style words {text!r:.40}",
            reason=f"not a printable text of 1 to {MAX_TEXT} characters",
            hint='Write "strongly NAME, a hint of NAME".',
        )
    if not names:
        raise OptionError(
            "style words",
            reason="the library has no styles",
            hint="Add one: imageprompt library add NAME PICTURE.",
        )
    reader = _Reader(names)
    for part in _SEPARATORS.split(folded(text)):
        if part.strip():
            reader.read(part.strip())
    return reader.finished()


class _Reader:
    """Reads part after part; comparatives need what came before."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self._names = names
        self._wishes: dict[str, Wish] = {}
        self._last: str | None = None
        called: dict[str, set[str]] = {}
        for name, tags in names.items():
            for one in tags:
                called.setdefault(folded(one), set()).add(name)
        called |= {folded(name): {name} for name in names}  # a name goes before a tag
        self._called = dict(sorted(called.items(), key=lambda pair: -len(pair[0])))

    def read(self, part: str) -> None:
        """Read a part, folded. Raises OptionError."""
        found = self._style_in(part)
        if found is None:
            if self._last is not None and part in words().more | words().less:
                self._add(self._last, part)
                return
            if self._read_joined(part):
                return
            raise self._unknown_name(part)
        called, before, after = found
        try:
            said = _one_side(part, before, after)
            self._add(self._one_style(called), said)
        except _UnknownWordError as error:
            if not self._read_joined(part):
                raise _unknown_word(error.said, part) from None

    def _read_joined(self, part: str) -> bool:
        """Read "A and B" as two parts; False if no word joins two."""
        for joint in words().joining:
            pattern = rf"\s{re.escape(joint)}\s" if joint.isascii() else re.escape(joint)
            for match in re.finditer(pattern, part):
                sides = part[: match.start()].strip(), part[match.end() :].strip()
                if all(sides) and self._style_in(sides[0]) is not None:
                    for side in sides:
                        self.read(side)
                    return True
        return False

    def _style_in(self, plain: str) -> tuple[str, str, str] | None:
        """The longest name or tag in a text; what stands before and after it."""
        for called in self._called:
            for match in re.finditer(re.escape(called), plain):
                before, after = plain[: match.start()], plain[match.end() :]
                if _apart(before[-1:], called[0]) and _apart(called[-1], after[:1]):
                    return called, before.strip(), after.strip()
        return None

    def _one_style(self, called: str) -> str:
        styles = sorted(self._called[called])
        if len(styles) > 1:
            raise OptionError(
                f"style {called!r}",
                reason=f"is a tag of {len(styles)} styles: {', '.join(styles[:5])}",
                hint="Name one of them.",
            )
        return styles[0]

    def _add(self, style: str, said: str) -> None:
        before, known = self._wishes.get(style), words()
        self._last = style
        if said in known.more | known.less:
            factor = MORE if said in known.more else LESS
            last = before or Wish(style, "", PLAIN)
            if last.strength == 0:
                raise _contradiction(style, last.said, said)
            strength = min(round(last.strength * factor, 4), STRONGEST)
            text = f"{last.said}, {said}" if last.said else said
            self._wishes[style] = replace(last, said=text, strength=strength)
            return
        strength = _strength(said)
        if before is not None and before.strength != strength:
            raise _contradiction(style, before.said, said)
        self._wishes[style] = Wish(style, said, strength, alone=said in known.alone)
        if len(self._wishes) > MAX_PARTS:
            raise OptionError("style words", reason=f"more than {MAX_PARTS} styles")

    def finished(self) -> tuple[Wish, ...]:
        wishes = tuple(self._wishes.values())
        wanted = [one for one in wishes if one.strength > 0]
        if not wanted:
            raise OptionError(
                "style words",
                reason="ask for no style at all",
                hint='Name at least one without "without" or 0 %.',
            )
        for one in wanted:
            if one.alone and len(wanted) > 1:
                other = next(each for each in wanted if each is not one)
                raise OptionError(
                    f"{one.said!r} {one.style} beside {other.style}",
                    reason="the words contradict",
                    hint=f"Leave {other.style} out, or say how strong each is.",
                )
        return wishes

    def _unknown_name(self, plain: str) -> OptionError:
        """The error for a part without a style: the words of strength are taken away first."""
        rest = plain
        for word in sorted(words().known, key=len, reverse=True):
            if rest.startswith(f"{word} ") or (not word.isascii() and rest.startswith(word)):
                rest = rest[len(word) :].strip()
                break
        rest = re.sub(rf"^{_NUMBER}\s*%\s*", "", rest) or plain
        near = difflib.get_close_matches(rest, self._called, n=1, cutoff=0.5)
        known = ", ".join(sorted(self._names)[:8])
        more = f" and {len(self._names) - 8} more" if len(self._names) > 8 else ""
        hint = f"Did you mean {near[0]!r}?" if near else f"The library has {known}{more}."
        return OptionError(f"style {rest!r:.60}", reason="not in the library", hint=hint)


class _UnknownWordError(Exception):
    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def _one_side(part: str, before: str, after: str) -> str:
    """The words of strength around a name: they stand on one side of it."""
    sides = [side for side in (_without_filler(before), _without_filler(after)) if side]
    if len(sides) > 1:
        raise _UnknownWordError(f"{before} ... {after}")
    said = sides[0] if sides else ""
    if not _is_known(said):
        raise _UnknownWordError(said)
    return said


def _without_filler(text: str) -> str:
    """The text as it is if it is known, else without words that say nothing at its ends."""
    while not _is_known(text):
        for word in words().filler:
            apart = " " if word.isascii() else ""
            if text == word or text.endswith(apart + word):
                text = text[: -len(word)].strip()
                break
            if text.startswith(word + apart):
                text = text[len(word) :].strip()
                break
        else:
            return text
    return text


def _is_known(said: str) -> bool:
    known = words()
    given = said in known.strength or said in known.without or said in known.more | known.less
    return given or _percent(said) is not None


def _strength(said: str) -> float:
    known = words()
    if said in known.without:
        return 0.0
    percent = _percent(said)
    if percent is None:
        return known.strength[said]
    if percent > 100 * STRONGEST:
        raise OptionError(
            f"strength {said!r}",
            reason=f"more than {100 * STRONGEST:g} %",
            hint="Write 0 to 120 %.",
        )
    return percent / 100


def _percent(said: str) -> float | None:
    """The number of "30 %", "30 percent" or "百分之30"."""
    units = "|".join(re.escape(one) for one in ("%", *sorted(words().percent)))
    match = re.fullmatch(rf"{_NUMBER}\s*(?:{units})|(?:{units})\s*{_NUMBER}", said)
    found = match and (match[1] or match[2])
    return None if not found else float(found.replace(",", "."))


def _apart(left: str, right: str) -> bool:
    """Does a word end between these characters? Chinese has no spaces."""
    return not (left.isalnum() and right.isalnum() and left.isascii() and right.isascii()) or not (
        left and right
    )


def _printable(text: str) -> bool:
    return text.replace("\n", " ").isprintable()


def _contradiction(style: str, first: str, second: str) -> OptionError:
    names = [repr(one) if one else "no word" for one in (first, second)]
    return OptionError(
        f"{style} with {names[0]} and {names[1]}",
        reason="the words contradict",
        hint="Say once how strong it is.",
    )


def _unknown_word(said: str, part: str) -> OptionError:
    near = difflib.get_close_matches(said, words().known, n=1, cutoff=0.5)
    usual = "a hint of, slightly, clearly, strongly, extremely, without, 30 %"
    hint = f"Did you mean {near[0]!r}?" if near else f"Words: {usual}."
    return OptionError(f"word {said!r:.60} in {part!r:.80}", reason="not known here", hint=hint)
