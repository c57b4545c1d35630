"""Build the tokenizer: a stock CLIPTokenizer for which every caption word is one token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from imageprompt.demo import scenes

LENGTH = 24
END = "</w>"


def _byte_letters() -> list[str]:
    """The 256 printable letters that byte-level BPE uses for the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return [letters[byte] for byte in range(256)]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one token."""
    split = [[*word[:-1], word[-1] + END] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for parts in split:
            for pair in pairwise(parts):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return merges
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for index, parts in enumerate(split):
            split[index] = _join(parts, best)


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def build_tokenizer(words: list[str] | None = None) -> Any:
    """The tokenizer of these words (default: those of the easy world), ready to be saved."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    merges: Any = _merges(words or scenes.all_words())
    tokens = letters + [letter + END for letter in letters] + [a + b for a, b in merges]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
