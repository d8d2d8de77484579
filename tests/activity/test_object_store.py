"""A log on an object store is listed, told apart and read as on a disk, by ranges, and no key is ever printed."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs
from werkzeug.serving import WSGIRequestHandler

from engine.activity.catalogue import read_catalogue
from engine.activity.files import Digests, digest, live_files, locate, log_files, without_secrets
from engine.activity.mapping import DataSettings
from engine.activity.parquet import MAYBE_TEXT, NUMBER, TEXT, batches
from engine.errors import DataError, FileRefused

SECRET = "wJalr/XUtn+FEMI"
WANTED = {"item_id": ("item_id", TEXT), "value": ("value", NUMBER)}
UNWANTED = 1 << 20  # bytes of the column beside them


@dataclass
class Store:
    """A server of one bucket, `shop`, and what was asked of it: (method, path, bytes of the range)."""

    port: int
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def uri(self, path: str = "", key: str = "") -> str:
        return f"s3://{key}shop{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def reads(self, path: str) -> list[int]:
        return [size for method, asked, size in self.asked if method == "GET" and asked == f"/shop/{path}"]


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield Store(int(port))
    server.stop()


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": SECRET, "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    asked: list[tuple[str, str, int]] = []

    def noted(self: Any, *_: object) -> None:
        start, _, end = self.headers.get("Range", "bytes=0--1")[6:].partition("-")
        asked.append((self.command, self.path.partition("?")[0], int(end) - int(start) + 1))

    monkeypatch.setattr(WSGIRequestHandler, "log_request", noted)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    endpoint = f"127.0.0.1:{server.port}"
    writer = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True)
    writer.create_dir("shop")
    writer.delete_dir_contents("shop", accept_root_dir=True)
    chance = random.Random(1)
    for day in (1, 2, 3):
        table = pa.table(
            {
                "item_id": [f"item-{row % 100}" for row in range(10_000)],
                "diary": [chance.randbytes(UNWANTED // 10_000).hex() for _ in range(10_000)],
                "value": [float(row % 7) for row in range(10_000)],
            }
        )
        pq.write_table(table, f"shop/log/date=2026-01-0{day}/a.parquet", filesystem=writer)
    pq.write_table(pa.table({"item_id": ["b", "a"], "title": ["B", "A"]}), "shop/catalogue.parquet", filesystem=writer)
    asked.clear()
    yield Store(server.port, asked)


def data(path: str) -> DataSettings:
    return DataSettings(path=path)


def test_a_log_is_found_wherever_its_endpoint_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"log/date=2026-01-0{day}/a.parquet" for day in (1, 2, 3)]
    for path in (store.uri(), store.uri(key="key:secret@")):
        found = log_files(data(path))
        assert [file.name for file in found] == names
        assert [file.path for file in found] == [f"shop/{name}" for name in names]
        assert all(file.bytes > UNWANTED and file.modified > 0 for file in found)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert [file.name for file in log_files(data("s3://shop"))] == names


def test_live_events_in_a_store_are_found_and_none_yet_is_no_fault(store: Store) -> None:
    found = live_files(DataSettings(path="elsewhere", live=store.uri("/log", key="key:secret@")))
    assert [file.name for file in found] == [f"live:/date=2026-01-0{day}/a.parquet" for day in (1, 2, 3)]
    assert [file.path for file in found] == [f"shop/log/date=2026-01-0{day}/a.parquet" for day in (1, 2, 3)]
    assert live_files(DataSettings(path="elsewhere", live=store.uri("/events"))) == []


def test_only_what_is_wanted_is_fetched(store: Store) -> None:
    filesystem, root = locate(store.uri())
    path = "log/date=2026-01-01/a.parquet"
    found = list(batches(filesystem, f"{root}/{path}", WANTED, ("item_id",)))
    assert sum(batch.num_rows for batch in found) == 10_000
    assert found[0].schema.types == [pa.dictionary(pa.int32(), pa.string()), pa.float64()]
    sizes = store.reads(path)
    assert len(sizes) <= 3  # the footer, and a range on each side of the column beside
    assert sum(sizes) < UNWANTED // 4


def test_an_unchanged_object_is_not_read_for_its_digest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.activity.files._RACY_NS", -2_000_000_000)  # objects that were written just now
    filesystem, _ = locate(store.uri())
    files = log_files(data(store.uri()))
    memory = Digests(tmp_path / "digests.json")
    first = memory.of(filesystem, files)
    assert first == {file.name: digest(filesystem, file.path) for file in files}
    store.asked.clear()
    assert memory.of(filesystem, log_files(data(store.uri()))) == first
    assert not [path for method, path, _ in store.asked if method == "GET" and path.startswith("/shop/log")]


def test_a_catalogue_is_read_from_there(store: Store) -> None:
    table, dropped = read_catalogue(data(store.uri()))
    assert table["item_id"].to_pylist() == ["a", "b"] and not len(dropped)


def test_faults_are_the_same_as_on_a_disk(store: Store) -> None:
    filesystem, root = locate(store.uri())
    with filesystem.open_output_stream(f"{root}/log/cut.parquet") as stream:
        stream.write(b"PAR1 and no more")
    with filesystem.open_output_stream(f"{root}/log/empty.parquet"):
        pass
    for name, why in (("cut", "bad_footer"), ("empty", "zero_bytes"), ("gone", "vanished")):
        with pytest.raises(FileRefused) as caught:
            list(batches(filesystem, f"{root}/log/{name}.parquet", WANTED, ("item_id",)))
        assert caught.value.why == why


def test_an_object_that_is_replaced_or_deleted_while_it_is_read_is_refused(store: Store) -> None:
    filesystem, root = locate(store.uri())
    path = f"{root}/log/days.parquet"
    table = pa.table({"item_id": ["a"] * 300_000, "value": [0.5] * 300_000})
    for change in (
        lambda: pq.write_table(table.slice(1), path, filesystem=filesystem),
        lambda: filesystem.delete_file(path),
    ):
        pq.write_table(table, path, filesystem=filesystem, row_group_size=1 << 18)
        found = batches(filesystem, path, {"item_id": ("item_id", MAYBE_TEXT)}, ("item_id",))
        next(found)
        change()
        with pytest.raises(FileRefused):
            list(found)


def test_a_store_that_does_not_answer_is_an_error_within_seconds() -> None:
    path = f"s3://key:{SECRET.replace('/', '%2F')}@shop?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        log_files(data(path))
    assert time.monotonic() - began < 30
    assert "cannot be listed" in str(caught.value) and "its store answers" in caught.value.remedy
    assert "wJalr" not in str(caught.value) and "key:" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be listed") as caught:
        live_files(DataSettings(path="elsewhere", live=path))
    assert "data.live" in caught.value.remedy
    assert "wJalr" not in str(caught.value) and "key:" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        f"s3://key:{SECRET}@shop/log",
        f"s3://key:{SECRET}@shop/log?unknown=1",
        f"s3://key:{SECRET}@shop/log?scheme=ftp&region=us-east-1&endpoint_override=127.0.0.1:9",
        f"nothing://key:{SECRET}@shop",
    ],
)
def test_no_error_repeats_a_key(path: str) -> None:
    with pytest.raises(DataError) as caught:
        log_files(data(path))
    assert "wJalr" not in repr(caught.getrepr(chain=True)) and "FEMI" not in str(caught.value)


def test_a_uri_without_a_key_is_shown_as_it_is() -> None:
    assert without_secrets("s3://shop/log?region=eu and /a/b@c") == "s3://shop/log?region=eu and /a/b@c"
    assert without_secrets("no s3://key:se/cr@et@shop/log, s3://k:s@b") == "no s3://***@shop/log, s3://***@b"
