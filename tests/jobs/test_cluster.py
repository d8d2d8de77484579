"""Plain functions run on Ray in order, survive a lost worker, and their errors come back as they were raised."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import grpc
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from numpy.typing import NDArray

from engine.errors import BodegaError, ContractError, SettingsError
from engine.two_tower.settings import TowerSettings, TrainSettings
from jobs import cluster as room
from jobs import embed, rank, train
from jobs.cluster import Cluster, ClusterSettings, connected
from jobs.stage import Stage, stage


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(ClusterSettings(cpus=2, object_store_mb=100)) as local:
        yield local


def scaled(item: int, table: NDArray[np.float32], factor: float) -> float:
    return float(table[item] * factor)


def threads(item: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def broken_contract(item: int) -> None:
    raise ContractError(f"{item}.parquet", "ts", "timestamp", "string", "Map it in conf/data.")


def plain_fault(item: int) -> None:
    raise LookupError(f"item {item}")


def dies_once(item: int, folder: Path) -> int:
    mark = folder / str(item)
    if item == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def dies_always(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_order_of_the_items(cluster: Cluster) -> None:
    table = cluster.share(np.arange(7, dtype=np.float32))
    assert cluster.each(scaled, range(7), table, 0.5, label="rows") == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert cluster.each(scaled, [], table, 0.5, label="rows") == []
    assert cluster.each(scaled, [3], table, 2.0, label="rows", cpus=0.5) == [6.0]


def test_a_function_made_on_the_spot_runs_too(cluster: Cluster) -> None:
    offset = 10
    assert cluster.each(lambda item: item + offset, [1, 2], label="rows") == [11, 12]


def test_numeric_libraries_get_as_many_threads_as_the_task_has_cpus(cluster: Cluster) -> None:
    assert cluster.each(threads, range(3), label="rows") == ["1"] * 3
    assert cluster.each(threads, range(3), label="rows", cpus=2) == ["2"] * 3
    assert cluster.each(threads, range(3), label="rows") == ["1"] * 3


def test_an_error_of_a_task_arrives_as_it_was_raised(cluster: Cluster) -> None:
    with pytest.raises(ContractError) as raised:
        cluster.each(broken_contract, [4], label="files")
    assert type(raised.value) is ContractError
    assert raised.value.remedy == "Map it in conf/data."
    assert (raised.value.file, raised.value.column, raised.value.exit_code) == ("4.parquet", "ts", 3)
    with pytest.raises(LookupError, match="item 4"):
        cluster.each(plain_fault, [4], label="files")
    assert cluster.each(threads, [1], label="rows") == ["1"], "the cluster still works after an error"


def test_errors_in_a_row_leave_the_process_and_the_cluster_alive(cluster: Cluster) -> None:
    for item in range(30):
        with pytest.raises(LookupError):
            cluster.each(plain_fault, [item, item, item], label="faults")
    assert cluster.each(abs, [-1], label="rows") == [1]


def test_a_killed_worker_is_replaced_and_its_item_done_again(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.each(dies_once, range(5), tmp_path, label="rows") == [0, 1, 4, 9, 16]
    assert (tmp_path / "2").exists()


def makes_a_shard(name: str, work: Stage) -> None:
    if not work.shards_left([name]):
        return
    with (work.folder / "calls").open("a") as calls:
        calls.write(f"{name}\n")
    (work.folder / f"{name}.bin").write_text(name)
    if name == "before" and not (work.folder / "once").exists():
        (work.folder / "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    work.shard_done(name, [f"{name}.bin"])
    if name == "after":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_is_tried_again_does_nothing_twice_where_its_shard_is_whole(
    cluster: Cluster, tmp_path: Path
) -> None:
    names = ["after", "before", "plain"]
    with stage(tmp_path, "rank", {}, {}) as work:
        cluster.each(makes_a_shard, work.shards_left(names), work, label="shards")
        assert work.shards_left(names) == []
        calls = (work.folder / "calls").read_text().split()
    assert sorted(calls) == ["after", "before", "before", "plain"], "lost after its shard was whole: not made again"


@pytest.mark.parametrize("task", [embed._items, embed._people, embed._shop, rank._rank_bucket, train._fit_alone])
def test_every_task_of_a_night_looks_first_whether_its_shard_is_whole(task: Any, tmp_path: Path) -> None:
    with stage(tmp_path, "rank", {}, {}) as work:
        work.shard_done("full", [])
        nothing = [None] * (len(inspect.signature(task).parameters) - 2)  # anything it did would fail over these
        asked = (
            train._Asked(work, tmp_path, [], {}, TowerSettings(), TrainSettings(), 1)
            if task is train._fit_alone
            else work
        )
        marker = work.folder / "_shards" / "full.json"
        before = (marker.stat().st_ino, marker.stat().st_mtime_ns)
        assert task("full", asked, *nothing) is None
        assert (marker.stat().st_ino, marker.stat().st_mtime_ns) == before


def test_an_item_that_kills_every_worker_ends_in_an_error_that_says_where_to_look(cluster: Cluster) -> None:
    with pytest.raises(BodegaError, match="'poison' lost its worker 4 times") as raised:
        cluster.each(dies_always, [1], label="poison")
    assert "log" in raised.value.remedy


def test_asking_for_what_no_node_has_is_refused_at_once(cluster: Cluster) -> None:
    with pytest.raises(SettingsError, match="3 CPUs"):
        cluster.each(threads, [1], label="rows", cpus=3)
    with pytest.raises(SettingsError, match="1 GPUs"):
        cluster.each(threads, [1], label="rows", gpus=1)


class Watched(Sequence[int]):
    """Counts how many items were taken beyond those that are done."""

    def __init__(self, length: int) -> None:
        self.length, self.taken, self.done, self.most = length, 0, 0, 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            raise TypeError("one at a time")
        self.taken += 1
        self.most = max(self.most, self.taken - self.done)
        return place


def test_at_most_two_tasks_a_cpu_are_under_way(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    items = Watched(40)

    @contextlib.contextmanager
    def counted(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(steps: int) -> None:
            items.done += steps

        yield advance

    monkeypatch.setattr(room, "progress", counted)
    assert cluster.each(abs, items, label="rows") == list(range(40))
    assert items.most == 4


def test_a_recipe_inside_another_shares_the_connection(cluster: Cluster) -> None:
    with connected(ClusterSettings(cpus=1)) as inner:
        assert inner.cpus == 2
    assert cluster.each(abs, [-1], label="rows") == [1]


def test_a_local_ray_listens_on_loopback_alone_and_asks_for_the_token(cluster: Cluster) -> None:
    import ray

    heard = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # a worker that ended in the meantime
            heard |= {each.laddr.ip for each in child.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    assert heard and heard <= {"127.0.0.1", "::ffff:127.0.0.1"}
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        ask: Any = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", bytes, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.stat().st_mode & 0o077 == 0
        assert ask(b"", timeout=10, metadata=[("authorization", f"Bearer {token.read_text()}")])


def test_nothing_at_the_address_is_an_error_with_a_remedy() -> None:
    script = """
        from jobs.cluster import ClusterSettings, connected
        from jobs.launch import guarded
        def go():
            with connected(ClusterSettings(address="127.0.0.1:1")):
                print("joined")
        raise SystemExit(guarded(go))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Ray cannot be joined at '127.0.0.1:1'") and "remedy: " in done.stderr


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's socket paths have no room for pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="bt-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_local_ray_ends_with_its_block_and_works_from_any_directory(tmp_path: Path, short_folder: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        import psutil
        from jobs.cluster import ClusterSettings, connected
        def remember(number, frame): ...
        signal.signal(signal.SIGTERM, remember)
        def rooms(item):
            import bodega, engine.errors, jobs.stage
            return os.getcwd()
        with connected(ClusterSettings(cpus=1, object_store_mb=80)) as cluster:
            print(cluster.each(rooms, [1], label="rooms"))
            print([oct(folder.stat().st_mode & 0o777) for folder in Path(sys.argv[1]).iterdir()])
        print([child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE])
        print(signal.getsignal(signal.SIGTERM) is remember)
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(short_folder)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=environment | {"TMPDIR": str(short_folder), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told == [repr([str(tmp_path)]), "['0o700']", "[]", "True"], "the folder of Ray and token is ours alone"
    assert "rooms: 1/1" in done.stderr and done.stderr.count("\n") == 1, "quiet but for the progress"
    assert list(short_folder.iterdir()) == [], "nothing is left"
    assert not (tmp_path / ".ray").exists()
