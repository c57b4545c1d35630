"""Studies of strangers: their lines, what they state, pages made of them, ratings and data sets."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .at_commands import PATHS
from .attack import Attack, Door, command, content, outside

DEEP = "[" * 100_000
MARKUP = "<script>alert(1)</script>"
BREAKS_OUT = "</script>\"'><img src=x onerror=alert(1)>${{7*7}}{{7*7}}<!--"
SIZE = 8
Lines = list[dict[str, Any]]


def lines(adapters: tuple[str, ...] = ("base", "plus")) -> Lines:
    """Two prompts with two adapters at one scale."""
    from studies import line

    return [
        line(
            adapter,
            0.5,
            prompt=f"prompt {prompt}",
            reference=f"references/{prompt}.png",
            picture=f"pictures/{adapter}-{prompt}.png",
            dino=0.5 + prompt / 10,
            clip_t=0.25 + place / 10,
        )
        for place, adapter in enumerate(adapters)
        for prompt in range(2)
    ]


def write(folder: Path, written: Lines, *, pictures: bool = True) -> Path:
    from studies import write_study

    return write_study(folder / "study", written, pictures=SIZE if pictures else 0)


def changed(name: str, says: str, outcome: str = "refused", **values: Any) -> Attack:
    """The first line has these values."""

    def make(folder: Path) -> Path:
        place, written = write(folder, lines()), lines()
        written[0] |= values
        return _replaced(place, written)

    return Attack(name, make, says, outcome)  # type: ignore[arg-type]


def _replaced(place: Path, written: Lines) -> Path:
    text = "".join(f"{json.dumps(one)}\n" for one in written)
    (place / "results.jsonl").write_text(text)
    return place


def raw(name: str, text: Callable[[], str], says: str) -> Attack:
    """The results are this text."""

    def make(folder: Path) -> Path:
        place = write(folder, lines(), pictures=False)
        (place / "results.jsonl").write_text(text())
        return place

    return Attack(name, make, says)


def stands(path: str, make: Callable[[Path], Any], name: str, says: str, **more: Any) -> Attack:
    """Something else stands in the place of a file of the study."""

    def made(folder: Path) -> Path:
        place = write(folder, lines())
        (place / path).unlink(missing_ok=True)
        make(place / path)
        return place

    return Attack(name, made, says, **more)


def out(name: str) -> Callable[[Path], None]:
    """A link to a file outside."""

    def link(target: Path) -> None:
        row = Path(*target.parts[: target.parts.index("study")])
        target.symlink_to(outside(row) / name)

    return link


def large(target: Path) -> None:
    target.touch()
    os.truncate(target, 2**40)


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


def _lines() -> Iterator[Attack]:
    for path in ("../outside/secret.png", "/etc/passwd", "C:\\x.png", "a/../../x", "..\\x"):
        yield changed(f"the picture {path}", "leads out", picture=path)
    odd: dict[str, tuple[Any, ...]] = {
        "row": (1, [], "other"),
        "prompt": (1, [], {}),
        "reference": (1, {}),
        "adapter": (1, []),
        "picture": (1, None),
        "seed": ("1", 1.5, -1, 2**70, True),
        "scale": ("1", [], True),
        "metrics": ([1], "x", {"dino": "x"}, {"dino": [1]}, {"dino": True}),
        "hashes": ([1], {"a": 1}),
        "extractors": ("x", {"a": []}),
        "failed": (["x"], "x"),
    }
    for key, values in odd.items():
        for value in values:
            yield changed(f"{key} {value!r}", "line 1", **{key: value})
    names = {f"metric-{number}": 1.0 for number in range(1000)}
    yield changed("1,000 metrics", "more than 256", metrics=names)
    yield changed("1,000 hashes", "more than 256", hashes=dict.fromkeys(names, "x"))
    yield changed("1,000 extractors", "more than 256", extractors=dict.fromkeys(names, "x"))
    for name, text in {
        "lists 100,000 deep": DEEP,
        "400 digits": '{"seed": ' + "9" * 400 + "}",
        "a number beyond floats": '{"scale": 1e999}',
        "NaN": '{"scale": NaN}',
        "a list": "[]",
        "a key twice": '{"a": 1, "a": 1}',
        "no keys": "{}",
        "no JSON": "x",
    }.items():
        yield raw(name, lambda text=text: f"{text}\n", "line 1")  # type: ignore[misc]
    yield raw("a line of 50 MB", lambda: "a" * 50_000_000, "longer than")
    yield raw(
        "3,000 lines of 1,000 new metrics",
        lambda: "".join(
            json.dumps(lines()[0] | {"metrics": {f"{n}-{m}": 1 for m in range(1000)}}) + "\n"
            for n in range(300)
        ),
        "more than 256",
    )
    results = "results.jsonl"
    yield stands(results, out("secret.json"), "results that lead out", "leads out")
    yield stands(results, os.mkfifo, "results that are a pipe", "not a regular file")
    yield stands(
        results, lambda t: t.symlink_to("/dev/zero"), "results that are zeros", "leads out"
    )
    yield stands(results, large, "results of a terabyte", "longer than")
    yield stands(results, lambda t: t.symlink_to(t), "results that link to themselves", "read")


def _stated() -> Iterator[Attack]:
    """study.json."""

    def of(name: str, text: str, says: str = "damaged") -> Attack:
        return stands("study.json", lambda t: t.write_text(text), name, says)

    yield of("study.json with lists 100,000 deep", DEEP)
    yield of("study.json with 400 digits", '{"a": ' + "9" * 400 + "}")
    yield of("study.json is a list", "[]")
    yield of("study.json with 600,000 values", "[" + "1," * 600_000 + "1]")
    for name, make, says in (
        ("leads out", out("secret.json"), "leads out"),
        ("is a pipe", os.mkfifo, "not a regular file"),
        ("is a terabyte", large, "limit"),
        ("is zeros", lambda t: t.symlink_to("/dev/zero"), "leads out"),
    ):
        yield stands("study.json", make, f"study.json {name}", says)


def _read(place: Any, out: Path) -> object:
    from imageprompt.evaluation.study.results import read_results

    return len(read_results(place))


# ── pages ───────────────────────────────────────────────────────────────────────────────────────


class PageError(AssertionError):
    """A page has what it may not have."""


def _checked(page: Path) -> str:
    """What a page lets a browser run, or fetch, is ours."""
    text = page.read_text()
    for part in (MARKUP, "<img src=x", "{{49}}", "$49", "javascript:", "file:///"):
        if part in text:
            raise PageError(f"raw in the page: {text[max(0, text.index(part) - 80) :][:200]!r}")
    if text.count("<script") != text.count("</script>"):
        raise PageError("a script that ends early")
    words = ("not in the folder of its study", "more than")
    return "; ".join(
        [f"{text.count('data:image')} pictures", *(one for one in words if one in text)]
    )


def _report(place: Any, out: Path) -> object:
    from imageprompt.evaluation.report import write_report

    return _checked(write_report(place))


def _without_plots(place: Any, out: Path) -> object:
    """As where matplotlib is not installed: most of the time goes into plots."""
    from imageprompt.evaluation.report import sections

    sections.find_spec = lambda name: None  # type: ignore[assignment]
    return _report(place, out)


def _rate(place: Any, out: Path) -> object:
    command("rate", "{it}", "--output", "{out}")(place, out)
    return _checked(out / "rate.html")


def _pages() -> Iterator[Attack]:
    """What every page must take."""
    for text in (MARKUP, BREAKS_OUT, "$x^{", "\\frac{", "a\ud800b\x1b[2J\u202e"):
        for key in ("prompt", "adapter", "base"):
            yield _everywhere(f"{key} {text[:12]!r}", key, text)
    yield _everywhere("a metric is markup", "metrics", {"dino": 0.5, MARKUP: 1.0})
    for scale in (1e308, -1e308, 5e-324):
        yield _everywhere(f"scale {scale}", "scale", scale)
    for value in (1e308, -1e308, 10**39, None):
        yield _everywhere(f"a metric {value}", "metrics", {"dino": value, "clip-t": 0.5})


def _everywhere(name: str, key: str, value: Any) -> Attack:
    """Lines of the second adapter have this value; where they cannot be compared, that is said."""

    def make(folder: Path) -> Path:
        written = lines()
        for one in written[2:]:
            one[key] = value
        return write(folder, written, pictures=False)

    return Attack(name, make, "", "read")


def _private(folder: Path) -> Path:
    """A picture beside the study, which its line names as the reference."""
    from studies import draw

    place, written = write(folder, lines()), lines()
    draw(folder / "private.png", 99, SIZE)
    for one in written:
        one["reference"] = "../private.png"
    return _replaced(place, written)


def _private_link(folder: Path) -> Path:
    """A picture of the study that is a link to a private one."""
    from studies import draw

    place = write(folder, lines())
    draw(folder / "private.png", 99, SIZE)
    for one in (place / "pictures").iterdir():
        one.unlink()
        one.symlink_to(folder / "private.png")
    return place


def _broken(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        place = write(folder, lines())
        for one in (*(place / "pictures").iterdir(), *(place / "references").iterdir()):
            one.unlink()
            make(one)
        return place

    return made


def _pictures(says: str, outcome: Any) -> Iterator[Attack]:
    """Pictures that a page may not show; `says` of those outside."""
    yield Attack("a reference beside the study", _private, says, outcome)
    yield Attack("pictures that link to one beside the study", _private_link, says, outcome)
    for name, make in (
        ("pipes", os.mkfifo),
        ("terabytes", large),
        ("text", lambda target: target.write_text(MARKUP)),
        ("links to zeros", lambda target: target.symlink_to("/dev/zero")),
    ):
        yield Attack(f"pictures that are {name}", _broken(make), "", outcome)


def _summaries() -> Iterator[Attack]:
    """What study.json states, in shapes that no study has."""
    odd = (1, [[]], {"a": {}}, {"figures": [{"name": 1, "n": []}], "published": {"a": {"b": []}}})
    mean = {"value": 1, "interval": [0, 1], "n": 2}
    for number, value in enumerate(odd):
        for key in (
            "config",
            "environment",
            "extractors",
            "root",
            "summary",
            "protocol",
            "options",
        ):
            yield _states(f"{key}, odd {number}", {key: value})
        yield _states(f"an extractor, odd {number}", {"extractors": {"dino": value}})
        for key in ("adapter", "scale", "metrics"):
            row = {"adapter": "base", "scale": 0.5, "metrics": {"fid": mean}}
            yield _states(f"{key} of the summary, odd {number}", {"summary": [row | {key: value}]})
        for key in ("value", "interval", "n"):
            row = {"adapter": "base", "scale": 0.5, "metrics": {"fid": mean | {key: value}}}
            yield _states(f"{key} in the summary, odd {number}", {"summary": [row]})


def _states(name: str, stated: dict[str, Any]) -> Attack:
    def make(folder: Path) -> Path:
        place = write(folder, lines(), pictures=False)
        (place / "study.json").write_text(json.dumps(stated))
        return place

    return Attack(name, make, "", "read")


def _many_settings(folder: Path) -> Path:
    return write(folder, lines(tuple(map(str, range(2000)))), pictures=False)


# ── ratings ─────────────────────────────────────────────────────────────────────────────────────

KEY: dict[str, Any] = {
    "format": "imageprompt-rate-key",
    "version": 1,
    "study": "s",
    "mode": "pairs",
    "conditions": ["a", "b"],
    "items": [
        {
            "id": "q",
            "subject": "x",
            "prompt": "",
            "reference": "",
            "expected": None,
            "pictures": {"p": "a", "r": "b"},
        }
    ],
}
ANSWERS: dict[str, Any] = {
    "format": "imageprompt-ratings",
    "version": 1,
    "study": "s",
    "mode": "pairs",
    "rater": "r",
    "answers": [{"item": "q", "choice": "p", "left": "p", "seconds": 1}],
}


def _rated(key: Any, answers: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, value in (("key", key), ("answers", answers)):
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / f"{name}.json").write_text(text)
        return folder

    return make


def _ratings() -> Iterator[Attack]:
    odd = (None, 1, "x", [], {}, [1], [[]], [{}], {"a": []}, True, 10**39)
    for number, value in enumerate(odd):
        for name in ("study", "mode", "rater", "answers"):
            yield Attack(
                f"{name} of answers, odd {number}",
                _rated(KEY, ANSWERS | {name: value}),
                "",
                "read" if (name, value) == ("rater", "x") else "refused",
            )
        for name in ("mode", "conditions", "items"):
            yield Attack(f"{name} of the key, odd {number}", _rated(KEY | {name: value}, ANSWERS))
        for name in ("item", "choice", "left"):
            answer = ANSWERS["answers"][0] | {name: value}
            yield Attack(
                f"{name} of an answer, odd {number}", _rated(KEY, ANSWERS | {"answers": [answer]})
            )
        item = KEY["items"][0] | {"pictures": value}
        yield Attack(f"pictures of the key, odd {number}", _rated(KEY | {"items": [item]}, ANSWERS))
    for seconds in (1e308, -1e308, 10**39):
        answer = ANSWERS["answers"][0] | {"seconds": seconds}
        rated = _rated(KEY, ANSWERS | {"answers": [answer]})
        yield Attack(f"{seconds} seconds", rated, "", "read")
    for name, text in (("deep", DEEP), ("endless", '"' + "a" * 20_000_000), ("digits", "9" * 5000)):
        yield Attack(f"answers: {name}", _rated(KEY, text))
        yield Attack(f"a key: {name}", _rated(text, ANSWERS))
    twice = ANSWERS | {"answers": ANSWERS["answers"] * 2}
    yield Attack("an answer twice", _rated(KEY, twice), "twice")
    yield Attack(
        "a name that clears the screen",
        _rated(KEY, ANSWERS | {"rater": "\x1b[2J\u202e"}),
        "x1b",
        "read",
    )


# ── the store of features ───────────────────────────────────────────────────────────────────────


def _store(path: Any, out: Path) -> object:
    from types import SimpleNamespace

    import numpy as np

    from imageprompt.evaluation.scoring.features import FeatureStore
    from imageprompt.evaluation.scoring.pictures import Picture
    from studies import draw

    draw(out / "a.png", 0, SIZE)
    extractor: Any = SimpleNamespace(
        width=4, fingerprint="f", encode=lambda opened: np.ones((len(opened), 4), np.float32)
    )
    failed: dict[str, str] = {}
    store = FeatureStore(path)
    for _ in range(2):
        rows = store.rows([Picture.of(out / "a.png")], extractor, failed)
    store.close()
    return f"{rows.tolist()}, {failed}"


TABLE = """CREATE TABLE features (extractor TEXT, picture TEXT, row BLOB,
    PRIMARY KEY (extractor, picture)) WITHOUT ROWID"""
TRIGGER = "CREATE TRIGGER t AFTER INSERT ON features BEGIN"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def _database(*statements: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        database = sqlite3.connect(folder / "features.sqlite")
        for one in statements:
            database.execute(one)
        database.commit()
        database.close()
        return folder / "features.sqlite"

    return make


def _stores() -> Iterator[Attack]:
    not_ours = "not a cache of features"
    columns = "'f' AS extractor, 'x' AS picture, zeroblob(16) AS row"
    for name, statements in {
        "a view": (f"CREATE VIEW features AS SELECT {columns}",),
        "an endless view": (f"CREATE VIEW features AS {ENDLESS} SELECT {columns} FROM n",),
        "a trigger": (TABLE, f"{TRIGGER} DELETE FROM features; END"),
        "an endless trigger": (
            "CREATE TABLE n(i)",
            TABLE,
            f"{TRIGGER} INSERT INTO n SELECT i FROM ({ENDLESS} SELECT i FROM n); END",
        ),
        "another table": ("CREATE TABLE features (a, b)",),
        "a generated column": (
            "CREATE TABLE features (extractor TEXT, picture TEXT, "
            "row BLOB AS (zeroblob(900000000)))",
        ),
        "an index on an expression": (
            TABLE,
            "CREATE INDEX i ON features (length(zeroblob(900000000)))",
        ),
        "a check": (
            "CREATE TABLE features (extractor TEXT, picture TEXT, row BLOB "
            "CHECK (length(hex(zeroblob(400000000))) > 1), PRIMARY KEY (extractor, picture))",
        ),
    }.items():
        yield Attack(name, _database(*statements), not_ours)
    yield Attack("no database", content(b"x" * 5000, "features.sqlite"), "not a database")
    for name in ("a link to /dev/zero", "a pipe", "a socket", "a link to itself"):
        yield Attack(name, PATHS[name], "feature cache")
    yield Attack("leads out", lambda folder: _link(folder), "feature cache")


def _link(folder: Path) -> Path:
    (folder / "features.sqlite").symlink_to(outside(folder) / "secret.txt")
    return folder / "features.sqlite"


# ── controls, texts, data sets ──────────────────────────────────────────────────────────────────


def _controls(path: Any, out: Path) -> object:
    from imageprompt.generation.option_values import parse_controls

    return parse_controls(str(path))


def _scale(path: Any, out: Path) -> object:
    from imageprompt.generation.option_values import parse_scale

    return repr(parse_scale(str(path)))[:100]


def _values() -> Iterator[Attack]:
    for name, text in (
        ("deep", DEEP),
        ("10,000 digits", '{"scale": ' + "9" * 10_000 + "}"),
        ("NaN", '{"scale": NaN}'),
        ("3 MB", '{"scale": "' + "a" * 3_000_000 + '"}'),
        ("no text", "\udcff"),
    ):
        data = text.encode(errors="surrogateescape")
        yield Attack(name, content(data, "controls.json"), "")
    for name in ("a pipe", "a link to /dev/zero", "a link to itself", "a socket"):
        yield Attack(name, _as_json(PATHS[name]), "cannot be read")


def _as_json(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        inner = folder / "in"
        inner.mkdir()
        (folder / "controls.json").symlink_to(make(inner))
        return folder / "controls.json"

    return made


def _odd_controls() -> Iterator[Attack]:
    for value in (
        "[]",
        "1",
        '{"x": 1}',
        '{"scale": {"a": {}}}',
        '{"scale": 1e300}',
        '{"scale": []}',
        '{"schedule": 1}',
        '{"schedule": {}}',
        '{"preset": []}',
        '{"scaling": []}',
        '{"composition": "x"}',
        '{"lora": {}}',
        '{"negative_scale": []}',
    ):
        yield Attack(value, content(value, "controls.json"))


IMPORTS = (
    "studies",
    "jinja2",
    "PIL.Image",
    "imageprompt.evaluation.report",
    "imageprompt.evaluation.compare",
    "imageprompt.cli.compare",
    "imageprompt.cli.rate",
    "imageprompt.evaluation.rating.page",
    "imageprompt.evaluation.rating.summary",
    "matplotlib.figure",
)
VALUES = ("imageprompt.generation.option_values", "imageprompt.control")
DOORS = (
    Door("study: results", _read, (*_lines(), *_stated()), IMPORTS),
    Door("study: its page", _report, tuple(_pages()), IMPORTS),
    Door(
        "study: its page without plots",
        _without_plots,
        (
            *_pictures("not in the folder of its study", "read"),
            *_summaries(),
            Attack("2,000 adapters", _many_settings, "adapters and scales"),
        ),
        IMPORTS,
    ),
    Door("study: rate", _rate, tuple(_pictures("not in the folder", "refused")), IMPORTS),
    Door(
        "study: ratings",
        command("ratings", "{it}/answers.json", "--key", "{it}/key.json"),
        tuple(_ratings()),
        IMPORTS,
    ),
    Door("study: features", _store, tuple(_stores()), IMPORTS),
    Door("controls file", _controls, (*_values(), *_odd_controls()), VALUES),
    Door("scale file", _scale, tuple(_values()), VALUES),
)
