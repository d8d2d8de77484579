"""What a TC string of IAB TCF says of one source, as changes to record: conf/consent has the mapping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.consent import Change
from engine.consent.mapping import tcf_changes, terms_of
from engine.consent.tcf import decode
from jobs.receipt import composed


def changes_of(text: str, source: str, vendor: int, overrides: Sequence[str]) -> list[Change]:
    """A grant for each purpose that the string covers in full, and a withdrawal of every other one.

    Args:
        text: the TC string.
        source: where it was asked for.
        vendor: the shop's number on the Global Vendor List.
        overrides: settings of conf/nightly.yaml, such as `consent=team`.

    Raises:
        SettingsError: a setting is wrong. ConsentError: the string cannot be read or is of before v2.2, or a name is unknown.
    """
    settings = composed(Path(), overrides)
    vocabulary = settings.consent.vocabulary()
    return tcf_changes(
        decode(text).consent(vendor), source, terms_of(settings.consent.purposes, vocabulary), vocabulary
    )
