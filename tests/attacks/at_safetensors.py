"""safetensors files: headers, shapes, names and metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forge import adapter_shapes, header, write

from .adapter_doors import (
    MIB,
    REPORTS,
    Make,
    inspects,
)
from .at_torch_files import ODD_TEXTS
from .attack import Attack, Door
from .forged import (
    now,
)


def headed(text: Any, size: int = 0) -> Make:
    def make(folder: Path) -> Path:
        data = now(text)
        data = data.encode() if isinstance(data, str) else data
        return write(folder / "file.safetensors", data, size)

    return make


def entry(shape: str = "[1]", offsets: str = "[0,2]", dtype: str = '"F16"') -> str:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


def metadata(value: Any) -> Make:
    """A sound adapter with this metadata (a table, or the JSON text itself)."""

    def make(folder: Path) -> Path:
        table = json.dumps(header(adapter_shapes()))
        text = now(value)
        text = text if isinstance(text, str) else json.dumps(text)
        size = max(e["data_offsets"][1] for e in json.loads(table).values())
        data = f'{{"__metadata__":{text},{table[1:]}'.encode("utf-8", "surrogatepass")
        return write(folder / "file.safetensors", data, size)

    return make


def names(make: Callable[[int], str], count: int, shape: tuple[int, ...] = (1,)) -> Make:
    return lambda folder: write(
        folder / "file.safetensors", header({make(i): shape for i in range(count)})
    )


def dtypes(dtype: str, item: int) -> Make:
    """A sound adapter in another dtype."""

    def make(folder: Path) -> Path:
        entries, position = {}, 0
        for name, shape in adapter_shapes().items():
            size = item
            for n in shape:
                size *= n
            entries[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [position, position + size],
            }
            position += size
        return write(folder / "file.safetensors", entries)

    return make


SAFETENSORS: list[Attack] = [
    Attack(
        "a header of 33 MB",
        lambda folder: write(folder / "file.safetensors", b"{" + b" " * (33 * MIB), 0),
        "the limit is",
    ),
    Attack(
        "a header of 31 MB of spaces",
        lambda folder: write(folder / "file.safetensors", b"{}" + b" " * (31 * MIB), 0),
        "",
    ),
    Attack(
        "600,000 tables",
        headed(lambda: "{" + ",".join(f'"{i}":{{}}' for i in range(300_000)) + "}"),
        "too large",
    ),
    Attack(
        "400,000 tables",
        headed(lambda: "{" + ",".join(f'"{i}":{{}}' for i in range(190_000)) + "}"),
        "does not say",
    ),
    Attack("lists 65 deep", headed('{"a":' + "[" * 65 + "]" * 65 + "}"), "deep"),
    Attack(
        "lists 100,000 deep", headed(lambda: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "deep"
    ),
    Attack("tables 100,000 deep", headed(lambda: '{"a":' * 100_000 + "1" + "}" * 100_000), "deep"),
    Attack("a size of 41 digits", headed(entry(f"[{'9' * 41}]")), "41 digits"),
    Attack("a size of a million digits", headed(lambda: entry(f"[{'9' * 1_000_000}]")), "digits"),
    Attack("a size of 1e400", headed(entry("[1e400]")), "too large"),
    Attack(
        "a size of a million decimals", headed(lambda: entry(f"[0.{'1' * 1_000_000}]")), "digits"
    ),
    *(
        Attack(f"a size of {size}", headed(entry(f"[{size}]"), 2), says)
        for size, says in [
            ("NaN", "not a number"),
            ("Infinity", "not a number"),
            ("-Infinity", "not a number"),
            ("true", "does not say"),
            ("1.0", "does not say"),
            ('"1"', "does not say"),
            ("null", "does not say"),
            ("-1", "does not say"),
            ("9223372036854775808", "does not say"),
            ("-0", "takes 0 bytes"),
            ("[1]", "does not say"),
            ("576460752303423488,576460752303423488,0", "does not say"),
            ("4611686018427387904,4", "does not say"),
        ]
    ),
    *(
        Attack(f"offsets {offsets}", headed(entry(offsets=offsets), 2), says)
        for offsets, says in [
            ("[2,0]", "takes"),
            ("[0,9223372036854775807]", "takes"),
            ("[-2,0]", "does not say"),
            ("[0]", "does not say"),
            ("[0,1,2]", "does not say"),
            ("{}", "does not say"),
            ("[4,6]", "hole"),
            ("[0.0,2]", "does not say"),
            ("null", "does not say"),
        ]
    ),
    *(
        Attack(f"a dtype of {dtype[:20]}", headed(entry(dtype=dtype), 2), says)
        for dtype, says in [
            ("1", "does not say"),
            ("[]", "does not say"),
            ('"\\u001b[2J"', "which no adapter uses"),
            (f'"{"F" * 100_000}"', "which no adapter uses"),
            ('"f16"', "which no adapter uses"),
            ('"I4"', "which no adapter uses"),
        ]
    ),
    Attack("33 dimensions", headed(entry(f"[{','.join('1' * 33)}]"), 2), "does not say"),
    Attack("a UTF-16 header", headed(entry().encode("utf-16-le"), 2), "not valid JSON"),
    Attack("a header that is not UTF-8", headed(b'{"\xff\xfe":{}}'), "not valid JSON"),
    Attack("a header with half a character", headed(b'{"\xed\xa0\x80":{}}'), "not valid JSON"),
    Attack("a header with a raw newline in a name", headed(b'{"a\nb":{}}'), "not valid JSON"),
    Attack(
        "one name twice, far inside",
        headed('{"a":{"dtype":"F16","dtype":"F16"}}'),
        "same name appears twice",
    ),
    Attack("text after the table", headed(entry() + "{}", 2), "not valid JSON"),
    Attack("an empty table", headed("{}"), "no tensors"),
    *(
        Attack(
            f"a name with {kind}",
            headed(json.dumps(header({f"image_proj.{text}": (1,)})), 2),
            "a tensor is called",
        )
        for kind, text in ODD_TEXTS.items()
    ),
    # metadata
    *(
        Attack(
            f"metadata with {kind}",
            metadata({"title": text, text: "title"}),
            "half a character" if kind == "surrogate" else "title",
            "refused" if kind == "surrogate" else "read",
        )
        for kind, text in ODD_TEXTS.items()
    ),
    *(
        Attack(f"metadata that is {text}", metadata(text), "not a table of strings")
        for text in ("null", "[]", '"a"', "7", '{"a":null}', '{"a":{"b":"c"}}', '{"a":["b"]}')
    ),
    Attack("metadata of 4 MB", metadata(lambda: {"title": "x" * 4_000_000}), "title", "read"),
    Attack(
        "metadata of 50,000 entries",
        metadata(lambda: {f"k{i}": "v" for i in range(50_000)}),
        "k999",
        "read",
    ),
    Attack(
        "a variant that steers the terminal",
        metadata({"variant": "\x1b[2J", "host": "\x1b[2J", "encoder": "\x1b[2J"}),
        "variant",
        "read",
    ),
    Attack(
        "a variant of 1 MB",
        metadata(lambda: {"variant": "base" * 250_000, "host": "sd15" * 250_000}),
        "variant",
        "read",
    ),
    # many names
    Attack(
        "50,000 tensors with names of 400 characters",
        names(lambda i: f"{i}" + "._lora.up" * 44, 20_000),
        "none of its",
    ),
    Attack("48,000 tensors", names(lambda i: f"{i}", 48_000, (0,)), "none of its 48000"),
    Attack(
        "4,000 sites", names(lambda i: f"ip_adapter.{i}.to_k_ip.weight", 4000, (1, 1)), "", "read"
    ),
    Attack(
        "20,000 sites",
        names(lambda i: f"ip_adapter.{i}.to_k_ip.weight", 20_000, (1, 1)),
        "the limit is 5000",
    ),
    Attack(
        "20,000 sites by layer",
        names(
            lambda i: (
                f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight"
            ),
            20_000,
            (1, 1),
        ),
        "unknown-layers",
        "read",
    ),
    Attack(
        "20,000 tensors of a projector",
        names(lambda i: f"image_proj.layers.{i}.0.to_q.weight", 20_000, (1, 1)),
        "the limit is 5000",
    ),
    Attack(
        "20,000 wrapped names",
        names(lambda i: "module." * 50 + f"image_proj.{i}", 20_000),
        "the limit is 5000",
    ),
    Attack(
        "20,000 XLabs blocks",
        names(
            lambda i: f"double_blocks.{i}.processor.ip_adapter_double_stream_k_proj.weight",
            20_000,
            (1, 1),
        ),
        "the limit is 5000",
    ),
    Attack(
        "10,000 LoRA layers",
        names(lambda i: f"ip_adapter.{i}.to_q_lora.up.weight", 10_000, (1, 1)),
        "the limit is 5000",
    ),
    Attack(
        "a layer counted 10^18",
        names(lambda i: f"ip_adapter.{10**18 + i}.to_k_ip.weight", 10, (1, 1)),
        "",
        "read",
    ),
    Attack(
        "a layer of 300 digits",
        names(lambda i: f"ip_adapter.{'9' * 300}{i}.to_k_ip.weight", 10, (1, 1)),
        "",
        "read",
    ),
    Attack(
        "layers in Arabic digits",
        names(lambda i: f"ip_adapter.{'١٢٣٤٥٦٧٨٩'[i]}.to_k_ip.weight", 9, (1, 1)),
        "",
        "read",
    ),
    Attack(
        "a resampler 10^15 deep",
        names(lambda i: f"image_proj.layers.{10**15 * i}.0.to_q.weight", 4, (1, 1)),
        "",
        "read",
    ),
    *(
        Attack(f"weights of {dtype}", dtypes(dtype, item), "", "read")
        for dtype, item in [
            ("C64", 8),
            ("BOOL", 1),
            ("U64", 8),
            ("I64", 8),
            ("U16", 2),
            ("F8_E8M0", 1),
            ("F8_E4M3", 1),
            ("F64", 8),
        ]
    ),
]


DOORS: tuple[Door, ...] = (Door("inspect --deep: safetensors", inspects, SAFETENSORS, REPORTS),)
