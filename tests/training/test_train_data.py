"""Training data: sources by number, framing, order, and live samples equal to cached ones."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from imageprompt.core.errors import NotFoundError, OptionError, PictureError
from imageprompt.training.cache.open import open_dataset
from imageprompt.training.data import sources
from imageprompt.training.data.dataset import BucketSampler, Dataset, RandomStreams, indices_at
from imageprompt.training.data.feature_extractors import FeatureExtractors
from imageprompt.training.data.latents import LatentScaling
from imageprompt.training.data.sources import SOURCES, DataOptions, open_data
from imageprompt.training.data.sources._index import CHUNK
from imageprompt.training.data.sources._remote import expand_braces
from imageprompt.training.data.sources._tar import members
from imageprompt.training.data.sources.contract import read_embedding
from imageprompt.training.data.sources.webdataset import ShardMember
from imageprompt.training.data.views import PictureOptions, aspect_sizes
from imageprompt.variants import VARIANTS
from training_data import (
    CAPTIONS,
    Parts,
    add_member,
    picture,
    picture_bytes,
    write_folder,
    write_list,
    write_shards,
)

# ── sources ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["json", "lines", "folder", "metadata", "webdataset"])
def any_source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same ten pictures in every kind of source."""
    if request.param in ("json", "lines"):
        return str(write_list(tmp_path, 10, lines=request.param == "lines"))
    if request.param == "webdataset":
        return write_shards(tmp_path, 10, 3)
    if request.param == "metadata":
        path = write_list(tmp_path, 10, lines=True)
        text = path.read_text().replace("image_file", "file_name")
        (tmp_path / "metadata.jsonl").write_text(text)
        return str(tmp_path)
    return str(write_folder(tmp_path, 10))


def test_every_source_gives_the_same_samples(any_source: str) -> None:
    records = open_data(any_source)
    assert len(records) == 10
    for index in (9, 0, 4):
        record = records.record(index)
        assert record.text == CAPTIONS[index % len(CAPTIONS)]
        assert record.key.startswith(f"{index:03d}")
        assert record.size() == (20, 16)
        assert np.array_equal(np.asarray(record.open_picture()), np.asarray(picture(index)))
    assert records.fingerprint() == open_data(any_source).fingerprint()
    assert not records.problems()


def test_every_source_says_what_it_is() -> None:
    assert {source.name for source in SOURCES} == {"json", "folder", "webdataset"}
    assert all(source.summary for source in SOURCES)


NEW_SOURCE = '''
"""table: lines of path and caption with a tab between them."""
from pathlib import Path
from imageprompt.training.data.sources.contract import LocalFile, Record


class Table:
    def __init__(self, options):
        self.folder = Path(options.path).parent
        self.rows = [line.split("\\t") for line in Path(options.path).read_text().splitlines()]

    def __len__(self):
        return len(self.rows)

    def record(self, index):
        name, text = self.rows[index]
        return Record(name, text, LocalFile(self.folder / name))

    def fingerprint(self):
        return str(hash(str(self.rows)))

    def problems(self):
        return {}


class _Source:
    name, summary, open = "table", "a .tsv file", Table

    def claims(self, path):
        return path.endswith(".tsv")


SOURCE = _Source()
'''


def test_a_source_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "table.py").write_text(NEW_SOURCE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "plug")])
    monkeypatch.setattr(SOURCES, "_members", SOURCES._members)  # put back afterwards
    SOURCES.reload()
    write_folder(tmp_path, 3)
    (tmp_path / "list.tsv").write_text("001.png\tone\n002.png\ttwo\n")
    records = open_data(str(tmp_path / "list.tsv"))
    assert [records.record(index).text for index in range(2)] == ["one", "two"]
    assert records.record(1).size() == (20, 16)


def test_the_fingerprint_of_a_list_changes_with_it(tmp_path: Path) -> None:
    path = write_list(tmp_path, 3)
    before = open_data(str(path)).fingerprint()
    path.write_text(path.read_text().replace("star", "ring"))
    assert open_data(str(path)).fingerprint() != before
    folder = open_data(str(tmp_path)).fingerprint()
    (tmp_path / "new.png").write_bytes(picture_bytes(9))
    (tmp_path / "new.txt").write_text("new")
    assert open_data(str(tmp_path)).fingerprint() != folder


@pytest.mark.parametrize("lines", [False, True])
def test_a_list_is_found_across_chunks_with_brackets_and_quotes_in_it(
    lines: bool, tmp_path: Path
) -> None:
    odd = ['a {"b"} \\ ]', "ü" * 1000, 'end"', "{[", ""]
    entries = [
        {"image_file": f"{i}.png", "text": odd[i % 5], "more": {"deep": [1, {"x": "}"}]}}
        for i in range(4000)
    ]
    path = tmp_path / "list.json"
    separator = "\n" if lines else ",\n"
    text = separator.join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(text if lines else f"[{text}]", "utf-8")
    assert path.stat().st_size > 1.2 * CHUNK
    records = open_data(str(path))
    assert len(records) == len(entries)
    for index in (0, 1, 1500, 2003, 3999):
        assert records.record(index).text == entries[index]["text"]


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_list_that_breaks_off_is_refused(keep: float, tmp_path: Path) -> None:
    path = write_list(tmp_path, 10)
    text = path.read_text()
    path.write_text(text[: int(len(text) * keep)])
    with pytest.raises(OptionError, match="ends inside an object"):
        open_data(str(path))


def test_entries_say_what_they_lack(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"image_file": "a.png"}\n{"text": "x"}\n{nonsense}\n')
    records = open_data(str(path))
    for index, rule in enumerate(("no caption 'text'", "no image_file", "not valid JSON")):
        with pytest.raises(PictureError, match=rule):
            records.record(index)


def test_missing_captions_are_counted_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 6)
    (folder / "002.txt").unlink()
    (folder / "005.txt").unlink()
    with pytest.warns(UserWarning, match="2 of 6 pictures .* captions are empty"):
        records = open_data(str(folder))
    assert [records.record(i).text for i in (2, 3)] == ["", CAPTIONS[3]]


def test_a_reference_and_a_face_may_lie_beside_a_picture(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 2)
    (folder / "001.reference.png").write_bytes(picture_bytes(7))
    np.save(folder / "001.npy", np.arange(512.0))
    records = open_data(str(folder))
    assert len(records) == 2
    assert np.array_equal(np.asarray(records.record(1).open_reference()), np.asarray(picture(7)))
    assert records.record(1).id_embeds().shape == (512,)
    assert np.array_equal(np.asarray(records.record(0).open_reference()), np.asarray(picture(0)))
    with pytest.raises(PictureError, match="no face embedding"):
        records.record(0).id_embeds()


@pytest.mark.parametrize("kind", ["npy", "torch array", "torch tensor", "safetensors"])
def test_face_embeddings_are_read_from_what_people_save_them_in(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = np.linspace(-1, 1, 512, dtype=np.float32)[None]
    path = tmp_path / "face.bin"
    if kind == "npy":
        with path.open("wb") as stream:
            np.save(stream, values)
    elif kind == "safetensors":
        save_file({"face": torch.from_numpy(values)}, path)
    else:
        torch.save(values if kind == "torch array" else torch.from_numpy(values), path)
    entry = {"image_file": "a.png", "text": "", "id_embed_file": "face.bin"}
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    found = open_data(str(tmp_path / "list.json")).record(0).id_embeds()
    assert np.array_equal(found, values[0])


def test_a_face_embedding_in_a_shard(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for values, wrong in ((np.arange(512.0), ""), (np.arange(512), "not floating-point numbers")):
        stream = io.BytesIO()
        np.save(stream, values)
        data = stream.getvalue()
        memory.pipe_file("/faces.tar", b"before" + data + b"after")
        member = ShardMember(memory, "/faces.tar", "face.npy", 6, len(data), "")
        if not wrong:
            assert np.array_equal(read_embedding(member), values)
            continue
        with pytest.raises(PictureError, match=rf"member 'face.npy' of .*{wrong}"):
            read_embedding(member)


def test_a_face_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Evil()}, tmp_path / "face.bin")
    entry = {"image_file": "a.png", "text": "", "id_embed_file": "face.bin"}
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    with pytest.raises(PictureError, match="no face embedding"):
        open_data(str(tmp_path / "list.json")).record(0).id_embeds()
    assert not (tmp_path / "ran").exists()


def test_shards_are_read_from_any_filesystem(tmp_path: Path) -> None:
    write_shards(tmp_path, 6, 2)
    memory = fsspec.filesystem("memory")
    for number in range(2):
        name = f"set-{number:02d}.tar"
        memory.pipe_file(f"/there/{name}", (tmp_path / name).read_bytes())
    for pattern in ("memory://there/set-{00..01}.tar", "memory://there/set-*.tar"):
        records = open_data(pattern)
        assert len(records) == 6
        assert records.record(5).text == CAPTIONS[0]
        assert np.array_equal(np.asarray(records.record(5).open_picture()), np.asarray(picture(5)))


def test_captions_of_shards_may_be_in_json(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("x/1.jpg", picture_bytes(1)),
            ("x/1.json", b'{"caption": "one"}'),
            ("x/2.png", picture_bytes(2)),
            ("x/2.json", b"[1]"),
            ("x/3.txt", b"no picture"),
            ("x/4.png", picture_bytes(4)),
        ):
            add_member(tar, name, content)
    with (
        pytest.warns(UserWarning, match="1 samples .* no picture"),
        pytest.warns(UserWarning, match="1 samples .* captions are empty"),
    ):
        records = open_data({"path": str(tmp_path / "a.tar"), "caption": "caption"})
    assert len(records) == 3
    assert records.record(0).text == "one"
    with pytest.raises(PictureError, match="no caption 'caption'"):
        records.record(1)
    assert records.record(2).text == ""


@pytest.mark.parametrize("kind", ["list", "link", "caption", "metadata", "shard"])
def test_files_outside_the_folder_are_read_only_if_the_config_says_so(
    kind: str, tmp_path: Path
) -> None:
    own, away = tmp_path / "own", write_folder(tmp_path / "away", 2)
    folder = write_folder(own, 1)
    data: dict[str, Any] = {"path": str(folder), "max_broken": 1.0}
    if kind == "list":
        entries = [{"image_file": str(away / "001.png"), "text": CAPTIONS[1]}]
        (own / "list.json").write_text(json.dumps(entries))
        data["path"] = str(own / "list.json")
    elif kind == "metadata":
        line = {"file_name": "../away/001.png", "text": CAPTIONS[1]}
        (own / "metadata.jsonl").write_text(json.dumps(line))
    elif kind == "shard":
        write_shards(tmp_path / "away", 2, 1)
        (own / "set.tar").symlink_to(away / "set-00.tar")
        data["path"] = str(own / "*.tar")
    else:
        (own / "001.png").write_bytes(picture_bytes(1))
        (own / "001.txt").write_text(CAPTIONS[1])
        name = "001.png" if kind == "link" else "001.txt"
        (own / name).unlink()
        (own / name).symlink_to(away / name)
    if kind == "shard":
        refused = pytest.raises(OptionError, match="leads out of")
        with refused, pytest.warns(UserWarning, match="leads out of"):
            open_data(data)
    else:
        records = open_data(data)
        with pytest.raises(PictureError, match=r"leads out of .* allow_outside: true"):
            records.record(len(records) - 1).open_picture()
    records = open_data(data | {"allow_outside": True})
    found = records.record(len(records) - 1)
    assert found.text == CAPTIONS[1]
    assert np.array_equal(np.asarray(found.open_picture()), np.asarray(picture(1)))


def test_only_listed_options_reach_a_filesystem() -> None:
    data = {"path": "s3://bucket/x.tar", "storage": {"client_kwargs": {"verify": False}}}
    with pytest.raises(OptionError, match=r"data\.storage\.client_kwargs\.verify.*region_name"):
        open_data(data)
    with pytest.raises(OptionError, match="chains protocols"):
        open_data("simplecache::memory://x.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_where_tarfile_finds_them(form: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    names = ["a.png", "folder/" * 12 + "b.png", "n" * 150 + ".png", "ü" * 70 + ".png", "x/"]
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 0 if name.endswith("/") else 700 * number
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            if form == tarfile.USTAR_FORMAT and len(name.encode()) > 100 and "/" not in name:
                continue
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    with path.open("rb") as stream:
        found = list(members(stream, path.stat().st_size))
    with tarfile.open(path) as tar:
        expected = [
            (one.name, one.offset_data, one.size, one.isfile()) for one in tar if not one.isdir()
        ]
    assert [(one.name, one.offset, one.size, one.usable) for one in found] == expected


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "data"])
def test_a_damaged_shard_is_told_and_the_rest_is_used(damage: str, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 9, 3)
    path = tmp_path / "set-01.tar"
    content = bytearray(path.read_bytes())
    if damage == "cut":  # within the second of its three samples
        content = content[: len(picture_bytes(3)) + 2 * 512 + 2000]
    elif damage == "header":
        with tarfile.open(path) as tar:
            at = tar.getmembers()[2].offset
        content[at : at + 512] = b"\xff" * 512
    elif damage == "empty":
        content = bytearray()
    path.write_bytes(content)
    if damage == "data":  # a picture inside, not the shard
        content[600:700] = bytes(100)
        path.write_bytes(content)
        records = open_data(pattern)
        with pytest.raises(PictureError, match="003"):
            records.record(3).open_picture()
        return
    with pytest.warns(UserWarning, match=r"set-01\.tar: .*the samples before that are used"):
        records = open_data(pattern)
    good = 7 if damage == "header" else len(records)
    assert len(records) == good
    assert 6 <= good <= 8
    assert records.record(good - 1).text == CAPTIONS[8 % 5]
    (name, why), *others = records.problems().items()
    assert name.endswith("set-01.tar")
    assert "damaged" in why or "cannot be read" in why
    assert not others


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("no data")
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        add_member(tar, "1.png", picture_bytes(1))
    for data, rule in (
        (str(tmp_path / "note.md"), "not a folder, and not named like"),
        (str(tmp_path / "empty"), "contains no samples"),
        (str(tmp_path / "zipped.tar"), "compressed with gzip"),
        ({"path": str(tmp_path), "imagse": "x"}, "Did you mean 'data.images'"),
        ({"path": str(tmp_path), "format": "floder"}, "Did you mean 'folder'"),
        ({"path": str(tmp_path), "max_broken": 2}, "must be between 0 and 1"),
        ("nowhere://x/{0..1}.tar", "reached"),
    ):
        with pytest.raises(OptionError, match=rule) as caught:
            open_data(data)
        assert "\n" not in str(caught.value)
    for missing in ("list.json", "set-{00..03}.tar"):
        with pytest.raises(NotFoundError, match="no such file"):
            open_data(str(tmp_path / missing))


def test_braces() -> None:
    assert expand_braces("a-{08..10}-{x,y}") == [
        f"a-{n}-{letter}" for n in ("08", "09", "10") for letter in "xy"
    ]
    for odd in ("a-{1..x}", "a-{1..2"):
        with pytest.raises(OptionError, match="braces"):
            expand_braces(odd)


# ── framing ─────────────────────────────────────────────────────────────────────────────────────


def test_a_centre_crop_shows_the_middle_and_says_so_to_sdxl() -> None:
    framing = PictureOptions(resolution=64).view_at((300, 150), 0.9, 0.9, 0.0)
    assert framing.scaled == (128, 64)
    assert (framing.left, framing.top) == (32, 0)
    assert framing.time_ids() == [150, 300, 0, 32, 64, 64]
    ramp = np.tile(np.arange(300, dtype=np.float32) / 300 * 255, (150, 1)).astype(np.uint8)
    shown = np.asarray(framing.apply(Image.fromarray(ramp).convert("RGB")))
    assert shown.shape == (64, 64, 3)
    assert shown[:, 0].mean() == pytest.approx(255 / 4, abs=3)
    assert shown[:, -1].mean() == pytest.approx(255 * 3 / 4, abs=3)


def test_random_crops_cover_the_picture_and_flips_mirror_it() -> None:
    options = PictureOptions(resolution=64, crop="random", flip=0.5, views=0)
    draws = torch.rand(300, 3).tolist()
    framings = [options.view_at((300, 150), *draw) for draw in draws]
    lefts = {framing.left for framing in framings}
    assert min(lefts) == 0
    assert max(lefts) == 64
    assert all(framing.time_ids()[3] == framing.left for framing in framings)
    assert 100 < sum(framing.flip for framing in framings) < 200
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    mirrored = PictureOptions(resolution=64, flip=1.0).view_at((64, 64), 0, 0, 0.3).apply(image)
    assert np.array_equal(np.asarray(mirrored), np.asarray(image)[:, ::-1])


def test_views_are_fixed_by_the_picture_and_differ() -> None:
    options = PictureOptions(resolution=64, crop="random", views=8)
    first = [options.view((300, 150), b"digest-a" * 2, number) for number in range(8)]
    assert first == [options.view((300, 150), b"digest-a" * 2, number) for number in range(8)]
    assert len({framing.left for framing in first}) > 4
    assert first != [options.view((300, 150), b"digest-b" * 2, number) for number in range(8)]


@pytest.mark.parametrize("side", [64, 512, 1024])
def test_aspect_buckets_have_the_area_of_the_resolution(side: int) -> None:
    sizes = aspect_sizes(side, side)
    assert (side, side) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % 8 == height % 8 == 0
        assert 0.7 * side**2 <= width * height <= side**2
        assert max(width / height, height / width) <= 4


def test_a_picture_goes_to_the_bucket_of_its_aspect() -> None:
    options = PictureOptions(resolution=512, buckets=True)
    for original in ((1000, 1000), (1920, 1080), (600, 900), (100, 390)):
        width, height = options.sizes[options.bucket(original)]
        assert width / height == pytest.approx(original[0] / original[1], rel=0.12)
    sizes = ((256, 256), (512, 512), (1024, 1024))
    chosen = PictureOptions(buckets=sizes)
    assert [chosen.bucket((side, side)) for side in (100, 300, 700, 4000)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "wrong", [{"resolution": 63}, {"buckets": ((64, 20),)}, {"flip": 2.0}, {"views": -1}]
)
def test_impossible_framings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        PictureOptions(**wrong)


# ── order ───────────────────────────────────────────────────────────────────────────────────────


def test_batches_stay_in_a_bucket_and_leave_nothing_out() -> None:
    buckets = [np.arange(0, 13), np.arange(13, 16), np.arange(16, 57)]
    order = BucketSampler(buckets)
    steps = [order.indices(step, 4, seed=3) for step in range(570)]
    of = torch.cat([torch.full((len(bucket),), n) for n, bucket in enumerate(buckets)])
    assert all(len(set(of[step].tolist())) == 1 for step in steps)
    counts = torch.bincount(torch.cat(steps), minlength=57)
    assert int(counts.min()) >= 39  # 40 epochs, the ends of which may lie a batch away
    assert int(counts.max()) <= 41
    assert torch.equal(order.indices(399, 4, seed=3), steps[399])  # found without those before it
    assert any(not torch.equal(order.indices(n, 4, seed=4), steps[n]) for n in range(5))


def test_a_bucket_smaller_than_a_batch_is_seen_too() -> None:
    order = BucketSampler([np.arange(3), np.arange(3, 5)])
    seen = torch.cat([order.indices(step, 8, seed=0) for step in range(50)])
    assert set(seen.tolist()) == set(range(5))


def test_the_order_is_spread_over_processes_by_slices() -> None:
    whole = indices_at(5, 6, 20, seed=1)
    assert torch.equal(torch.cat([whole[:3], whole[3:]]), indices_at(5, 6, 20, seed=1))
    assert len(set(torch.cat([indices_at(s, 5, 20, seed=1) for s in range(4)]).tolist())) == 20


# ── samples ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def parts() -> dict[bool, Parts]:
    return {xl: Parts(xl=xl) for xl in (False, True)}


def batches(samples: Dataset, steps: int = 4, size: int = 3) -> list[Any]:
    found = []
    for step in range(steps):
        streams = RandomStreams.at(7, step * size, size, step)
        found.append(samples.batch(samples.indices(step, size, 7), streams))
    return found


def assert_same(one: Any, other: Any) -> None:
    close = {"atol": 1e-5, "rtol": 1e-4}
    for name in ("latents", "text"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **close)
    features = [x if isinstance(x, tuple) else (x,) for x in (one.features, other.features)]
    for mine, theirs in zip(*features, strict=True):
        torch.testing.assert_close(mine, theirs, **close)
    assert one.added.keys() == other.added.keys()
    for name, value in one.added.items():
        torch.testing.assert_close(value, other.added[name], **close)


@pytest.mark.sample(5)
@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("xl", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize(
    "options",
    [{}, {"crop": "random", "flip": True, "views": 3}, {"buckets": True, "crop": "random"}],
    ids=["centre", "views", "buckets"],
)
def test_cached_samples_are_the_live_ones(
    xl: bool, variant: str, options: Any, parts: dict[bool, Parts], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "data", 12, sizes=True, broken=[4])
    data = {"path": str(folder), "max_broken": 0.3}
    encoders = FeatureExtractors(parts[xl], VARIANTS[variant])
    framing = PictureOptions(resolution=16, **options)
    live = open_dataset(data, None, encoders, framing)
    cached = open_dataset(data, str(tmp_path / "cache"), encoders, framing)
    assert len(live) == len(cached) == 12
    assert live.fingerprint() == cached.fingerprint()
    for step in range(4):
        assert torch.equal(live.indices(step, 3, 7), cached.indices(step, 3, 7))
    for one, other in zip(batches(live), batches(cached), strict=True):
        assert_same(one, other)
        assert one.latents.dtype == torch.float32
        assert ("time_ids" in one.added) == xl
    assert live.quarantined() == cached.quarantined() != []
    torch.testing.assert_close(live.null_text(), cached.null_text())
    torch.testing.assert_close(live.null_features(), cached.null_features())
    assert (
        live.null_added().keys() == cached.null_added().keys() == ({"text_embeds"} if xl else set())
    )
    some = torch.tensor([0, 1, 4])
    (mine, states, counts), (theirs, others, known) = (
        live.caption_batch(some),
        cached.caption_batch(some),
    )
    torch.testing.assert_close((mine, states), (theirs, others), atol=1e-5, rtol=1e-4)
    assert counts == known


def test_a_slice_of_a_batch_draws_what_the_whole_does(
    parts: dict[bool, Parts], tmp_path: Path
) -> None:
    framing = PictureOptions(resolution=16, crop="random", flip=True, views=0)
    encoders = FeatureExtractors(parts[True], VARIANTS["base"])
    samples = open_dataset(str(write_folder(tmp_path, 8)), None, encoders, framing)
    indices = samples.indices(2, 4, 1)
    whole = samples.batch(indices, RandomStreams.at(1, 8, 4, 2))
    halves = [samples.batch(indices[i : i + 2], RandomStreams.at(1, 8 + i, 2, 2)) for i in (0, 2)]
    for name in ("latents", "text", "features"):
        joined = torch.cat([getattr(half, name) for half in halves])
        torch.testing.assert_close(getattr(whole, name), joined, atol=1e-5, rtol=1e-4)
    ids = torch.cat([half.added["time_ids"] for half in halves])
    assert torch.equal(whole.added["time_ids"], ids)
    assert len(set(whole.added["time_ids"][:, 3].tolist())) > 1  # the crops differ


def test_faces_come_with_their_samples(parts: dict[bool, Parts], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", 5)
    for index in range(5):
        np.save(folder / f"{index:03d}.npy", np.random.default_rng(index).normal(size=8))
    for variant, count in (("faceid", 1), ("faceid-plus-v2", 2)):
        encoders = FeatureExtractors(parts[False], VARIANTS[variant])
        framing = PictureOptions(resolution=16)
        live = open_dataset(str(folder), None, encoders, framing)
        cached = open_dataset(str(folder), str(tmp_path / "cache"), encoders, framing)
        for one, other in zip(batches(live), batches(cached), strict=True):
            assert_same(one, other)
            faces = one.features if count == 1 else one.features[0]
            assert faces.norm(dim=-1) == pytest.approx(1, abs=1e-5)
        null = live.null_features()
        assert (len(null) == 2 and null[0].shape == (1, 8)) if count == 2 else null.shape == (1, 8)


def test_one_face_less_is_one_broken_sample(parts: dict[bool, Parts], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", 4)
    for index in range(3):
        np.save(folder / f"{index:03d}.npy", np.ones(8))
    encoders = FeatureExtractors(parts[False], VARIANTS["faceid"])
    cached = open_dataset(
        {"path": str(folder), "max_broken": 0.5},
        str(tmp_path / "cache"),
        encoders,
        PictureOptions(resolution=16),
    )
    (line,) = cached.quarantined()
    assert "003.png" in line
    assert "no face embedding" in line


def test_moments_are_sampled_anew_every_time() -> None:
    moments = torch.zeros(1, 2, 64, 64)
    moments[:, 1] = 2 * np.log(3)  # deviation 3
    moments[:, 0] = 5
    streams = RandomStreams([1])
    draws = [LatentScaling(0.5, 1.0).sample(moments, streams.randn(1, 64, 64)) for _ in range(2)]
    assert not torch.equal(*draws)
    assert float(draws[0].mean()) == pytest.approx((5 - 1) * 0.5, abs=0.1)
    assert float(draws[0].std()) == pytest.approx(1.5, abs=0.1)


# ── quarantine ──────────────────────────────────────────────────────────────────────────────────


def write_hostile(folder: Path) -> None:
    """Twenty good pictures, and one of each way to be none."""
    write_folder(folder, 20)
    whole = picture_bytes(3, (40, 40))
    stream = io.BytesIO()
    picture(1).save(stream, "JPEG")
    tiny = io.BytesIO()
    Image.new("RGB", (4, 4)).save(tiny, "PNG")
    for name, content in (
        ("cut.png", whole[: len(whole) // 2]),
        ("cut.jpg", stream.getvalue()[:300]),
        ("empty.png", b""),
        ("page.png", b"<!DOCTYPE html><html></html>"),
        ("small.png", tiny.getvalue()),
        ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\n"),
    ):
        (folder / name).write_bytes(content)
        (folder / f"{name.partition('.')[0]}.txt").write_text("broken")


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("buckets", [False, True], ids=["one size", "buckets"])
def test_broken_pictures_are_left_out_and_listed(
    cached: bool, buckets: bool, parts: dict[bool, Parts], tmp_path: Path
) -> None:
    write_hostile(tmp_path / "data")
    cache = str(tmp_path / "cache") if cached else None
    encoders = FeatureExtractors(parts[False], VARIANTS["base"])
    framing = PictureOptions(resolution=16, buckets=buckets)
    data = {"path": str(tmp_path / "data"), "max_broken": 0.3}
    samples = open_dataset(data, cache, encoders, framing)
    for step in range(8):
        batch = samples.batch(samples.indices(step, 4, 0), RandomStreams.at(0, 4 * step, 4, step))
        assert torch.isfinite(batch.latents).all()
    lines = samples.quarantined()
    assert len(lines) == 6
    for name in ("cut.png", "cut.jpg", "empty.png", "page.png", "small.png", "pointer.jpg"):
        assert sum(name in line for line in lines) == 1
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_too_many_broken_pictures_stop_the_run(
    cached: bool, parts: dict[bool, Parts], tmp_path: Path
) -> None:
    write_hostile(tmp_path / "data")
    cache = str(tmp_path / "cache") if cached else None
    encoders = FeatureExtractors(parts[False], VARIANTS["base"])
    data = {"path": str(tmp_path / "data"), "max_broken": 0.1}

    def train() -> None:
        samples = open_dataset(data, cache, encoders, PictureOptions(resolution=16))
        batches(samples, 10, 4)

    with pytest.raises(PictureError, match=r"of 26 samples.*max_broken is 0\.1"):
        train()


def test_turned_and_transparent_pictures_are_trained_upright_and_opaque(
    parts: dict[bool, Parts], tmp_path: Path
) -> None:
    turned = Image.new("RGB", (32, 16), "red")
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "0.jpg", exif=exif)
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "1.png")
    Image.new("CMYK", (16, 16)).save(tmp_path / "2.jpg")
    Image.fromarray(np.full((16, 16), 30000, np.uint16)).save(tmp_path / "3.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = open_data(str(tmp_path))
    assert records.record(0).size() == records.record(0).open_picture().size == (16, 32)
    assert records.record(1).open_picture().getpixel((3, 3)) == (255, 255, 255)
    assert records.record(2).open_picture().mode == "RGB"
    assert records.record(3).open_picture().getpixel((3, 3)) == (117, 117, 117)


def test_options_may_be_given_as_a_path_or_as_keys(tmp_path: Path) -> None:
    assert DataOptions.of("x").path == DataOptions.of({"path": "x"}).path == "x"
    with pytest.raises(OptionError, match=r"data\.path"):
        DataOptions.of({"format": "folder"})
