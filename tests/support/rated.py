"""A study of two adapters to rate, and the answer files of made-up raters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ADAPTERS = ("secret-plus", "secret-base")
COLOURS = ("red", "green", "blue", "orange", "purple", "teal", "gold", "navy")


def make_study(
    folder: Path, *, prompts: int = 6, seeds: int = 2, adapters: tuple[str, str] = ADAPTERS
) -> Path:
    """Plain pictures with a bar: each prompt its colour, each adapter and seed its own bar."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "references").mkdir()
    lines = []
    for prompt in range(prompts):
        reference = f"references/{prompt}.png"
        Image.new("RGB", (24, 24), COLOURS[prompt]).save(folder / reference)
        for seed in range(seeds):
            for number, adapter in enumerate(adapters):
                picture = Image.new("RGB", (24, 24), COLOURS[prompt])
                picture.paste("white", (0, 0, 4 + seed, 10 * (number + 1)))
                name = f"pictures/{prompt}-{seed}-{number}.png"
                picture.save(folder / name)
                lines.append(
                    {
                        "prompt": f"a <b>{COLOURS[prompt]}</b> thing & 'more'",
                        "reference": reference,
                        "seed": seed,
                        "scale": 0.6,
                        "adapter": adapter,
                        "base": "bundled",
                        "picture": name,
                        "metrics": {},
                    }
                )
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "results.jsonl").write_text(text, "utf-8")
    return folder


Preference = Callable[[dict[str, Any]], Any]


def answer(path: Path, key: dict[str, Any], name: str, prefer: Preference, **changed: Any) -> Path:
    """A file as the page saves it. `prefer` says for an item of the key the condition preferred or
    "equal", or on scales the scores; planted questions are answered right, and two come twice.
    """
    answers = []
    for item in key["items"]:
        one: dict[str, Any] = {"item": item["id"], "repeat": False, "seconds": 2.5}
        if key["mode"] == "pairs":
            ids = {condition: picture for picture, condition in item["pictures"].items()}
            choice = item["expected"] or prefer(item)
            one |= {"choice": ids.get(choice, choice), "left": next(iter(item["pictures"]))}
        elif item["expected"] is None:
            one["scores"] = prefer(item)
        else:
            one["scores"] = {"content": 5 if item["expected"] == "high" else 1, "overall": 3}
        answers.append(one)
    answers += [one | {"repeat": True} for one in answers[:2]]
    plain = {"format": "imageprompt-ratings", "version": 1, "study": key["study"]}
    plain |= {"mode": key["mode"], "rater": name, "complete": True, "answers": answers}
    path.write_text(json.dumps(plain | changed), "utf-8")
    return path
