"""The benchmark of swaps, small: its claims that do not hang on the machine's speed."""

from __future__ import annotations

from tests.benchmarks.swaps import run


def test_a_few_swaps_under_load_fail_and_mix_nothing_and_share_their_pages() -> None:
    result = run(processes=2, swaps=5, users=200, rate=40, calm=1.0, every=0.6)
    assert (result.failed, result.mixed) == (0, 0)
    assert result.replies == int(40 * (1.0 + 5 * 0.6 + 1)) * 2
    assert result.served == 6  # every one was served to somebody
    for process in result.memory:  # half of each page, but for those that one process alone touched
        assert (
            0 < process["snapshot_pss"] < 0.75 * process["snapshot_rss"]
        )  # half of each page, but for those that one alone touched
