"""Same settings, same bytes; memory that does not grow with the days; pages that can be checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.activity.simulator import ShopReport, ShopSettings, simulate
from engine.activity.simulator.log import FEW_VALUES, LOG
from tests.activity.simulator.frames import checksums


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        simulate(ShopSettings(seed=seed, users=150, items=80, days=9), tmp_path / name)
    one, again, other = (checksums(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert one["truth/seasons.parquet"] == other["truth/seasons.parquet"]  # the year is nobody's chance
    del one["truth/seasons.parquet"]
    assert not set(one.values()) & set(other.values())


def test_each_page_of_the_log_carries_a_checksum(report: ShopReport, tmp_path: Path) -> None:
    path = report.folder / "log" / "date=2026-02-10" / "part-00000.parquet"
    column = pq.read_metadata(path).row_group(0).column(0)
    whole = bytearray(path.read_bytes())
    whole[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    (tmp_path / "damaged.parquet").write_bytes(whole)
    pq.read_table(path, page_checksum_verification=True)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(tmp_path / "damaged.parquet", columns=["event_id"], page_checksum_verification=True)


def test_columns_of_few_values_are_encoded_by_dictionary(report: ShopReport) -> None:
    meta = pq.read_metadata(report.folder / "log" / "date=2026-02-10" / "part-00000.parquet")
    group = meta.row_group(0)
    columns = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    encoded = {name for name, column in columns.items() if "RLE_DICTIONARY" in column.encodings}
    assert encoded == set(FEW_VALUES)
    assert {name.partition(".")[0] for name in columns} == set(LOG.names)


RUN = """
import sys, time
from pathlib import Path
from engine.activity.simulator import ShopSettings, simulate
users, items, days, rate = (float(word) for word in sys.argv[2:])
settings = ShopSettings(users=int(users), items=int(items), days=int(days), sessions_per_day=rate, gift_burst_share=0.0)
began = time.perf_counter()
report = simulate(settings, Path(sys.argv[1]))
print(report.total, time.perf_counter() - began)
print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])
"""


def made(folder: Path, users: int, items: int, days: int, rate: float = 0.22) -> tuple[int, float, int]:
    """Events, seconds and the peak of memory in KiB of a run in a process of its own."""
    asked = [sys.executable, "-c", RUN, str(folder), *map(str, (users, items, days, rate))]
    events, seconds, peak = subprocess.check_output(asked, text=True).split()
    return int(events), float(seconds), int(peak)


def test_the_peak_of_memory_does_not_grow_with_the_days(tmp_path: Path) -> None:
    _, _, few = made(tmp_path / "few", 10_000, 1500, 8)
    _, _, many = made(tmp_path / "many", 10_000, 1500, 48)
    # Forty more days are 400,000 events; at 9 columns and 8 bytes each, holding them would take 28 MB at the least.
    assert many - few < 18_000


@pytest.mark.slow
def test_twenty_million_events_take_less_than_three_minutes_and_no_more_memory_for_more_days(tmp_path: Path) -> None:
    # A fifth of it: people and items as in the whole, so that a day costs the same, and fewer days.
    events, seconds, few = made(tmp_path / "few", 200_000, 20_000, 20, 0.17)
    assert events > 3_500_000
    assert events / seconds > 20_000_000 / 180
    _, _, many = made(tmp_path / "many", 200_000, 20_000, 40, 0.17)
    assert many < 1.2 * few
