"""Receipts of people in a real ledger: granted, withdrawn, erased and back; and the command that prints them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.consent import Change, Ledger, Vocabulary
from engine.consent.mapping import terms_of
from engine.consent.receipt import receipt_of
from engine.consent.settings import ConsentSettings, ControllerSettings, PurposeSettings
from engine.errors import ConsentError
from engine.identity import UserKeys

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "receipt.golden.json"
NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)
KEY = bytes(range(16))
SETTINGS = ConsentSettings(
    purposes={
        "profile": PurposeSettings("To choose.", ["purchase", "other"], [5, 6], [], ["Personalisation"], ["Purchase"]),
        "train": PurposeSettings("To learn.", [], [10], [], ["ServiceProvision"], ["Purchase"], gpc=False),
        "sensitive": PurposeSettings("To show more.", [], [], [], ["Personalisation"], ["Purchase"]),
    },
    sources=["web", "app"],
)
SHOP = SETTINGS.vocabulary()
TERMS = terms_of(SETTINGS.purposes, SHOP)
CORNER = ControllerSettings(
    name="Corner Ltd",
    contact="privacy@corner.example",
    jurisdiction="IE",
    notice="https://corner.example/notice",
    withdrawal="https://corner.example/consent",
    retention="P25M",
    storage=["IE", "DE"],
    recipients=["Post Ltd"],
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger.open(f"sqlite:///{tmp_path}/consent.db", SHOP)) as opened:
        yield opened


Say = Callable[..., Any]


@pytest.fixture
def say(ledger: Ledger) -> Say:
    """say("+profile/", "-train/web", actor="guardian")"""

    def record(*said: str, actor: str = "person", preference: int | None = None, notice: str = "notice-1") -> Any:
        changes = [Change(*text[1:].split("/"), text[0] == "+") for text in said]  # type: ignore[call-arg]
        return ledger.record(KEY, changes, preference, notice, actor, "", None)

    return record


def receipt(ledger: Ledger, vocabulary: Vocabulary = SHOP) -> dict[str, Any]:
    history = ledger.changes(KEY, 0, 1000)
    made = receipt_of(KEY, ledger.standing(KEY), history, vocabulary, TERMS, CORNER, NOW)
    assert json.loads(json.dumps(made)) == made
    return made


def states(made: dict[str, Any]) -> dict[str, str]:
    """Purpose/source -> state, without the prefix of DPV."""
    return {
        f"{purpose['dpv:hasPurpose']['skos:prefLabel']}/{source['dpv:hasDataSource']['skos:prefLabel']}": source[
            "dpv:hasConsentStatus"
        ]["@type"].removeprefix("dpv:Consent")
        for purpose in made["dpv:hasRecordOfActivity"]["dpv:hasProcess"]["dpv:hasProcess"]
        for source in purpose["dpv:hasProcess"]
    }


def events(made: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made["dpv:hasRecordOfActivity"]["dpv:hasConsentStatus"]
    return found


def test_who_decided_nothing_gets_a_receipt_that_says_so(ledger: Ledger) -> None:
    made = receipt(ledger)
    assert set(states(made).values()) == {"Unknown"} and len(states(made)) == 6
    assert events(made) == [] and "dct:created" not in made["dpv:hasRecordOfActivity"]


def test_a_receipt_tells_what_is_granted_for_what_and_since_when(ledger: Ledger, say: Say) -> None:
    first = say("+profile/", "+train/web", preference=3)
    made = receipt(ledger)
    assert states(made) == {
        "profile/web": "Given",
        "profile/app": "Given",
        "train/web": "Given",
        "train/app": "Unknown",
        "sensitive/web": "Unknown",
        "sensitive/app": "Unknown",
    }
    assert {each["dct:identifier"] for each in events(made)} == {first.receipt_id}
    assert {each["dpv:isIndicatedBy"]["@id"] for each in events(made)} == {"dpv:DataSubject"}
    record = made["dpv:hasRecordOfActivity"]
    assert record["bodega:personalization"] == "purchases"
    assert record["dpv:hasDataSubject"]["dpv:hasIdentifier"] == KEY.hex()
    purpose = record["dpv:hasProcess"]["dpv:hasProcess"][0]
    assert purpose["dpv:hasPurpose"]["skos:definition"] == "To choose."
    assert purpose["dpv:hasPurpose"]["skos:broader"] == [{"@id": "dpv:Personalisation"}]
    since = purpose["dpv:hasProcess"][0]["dpv:hasConsentStatus"]
    assert since["dct:identifier"] == first.receipt_id and since["dpv:hasDuration"]["rdf:value"].startswith(
        "withdrawal"
    )
    assert since["dpv:isIndicatedAtTime"] == events(made)[0]["bodega:recordedAt"] == record["dct:created"]


def test_withdrawn_refused_and_revoked_are_three_things(ledger: Ledger, say: Say) -> None:
    say("+profile/", "+train/")
    say("-profile/web", "-sensitive/", actor="guardian", notice="notice-2")
    say("-train/", actor="operator")
    made = receipt(ledger)
    assert states(made) == {
        "profile/web": "Withdrawn",
        "profile/app": "Given",
        "train/web": "Revoked",
        "train/app": "Revoked",
        "sensitive/web": "Refused",
        "sensitive/app": "Refused",
    }
    assert [each["@type"].removeprefix("dpv:Consent") for each in events(made)] == [
        "Given",
        "Given",
        "Withdrawn",
        "Refused",
        "Revoked",
    ]
    by = [each["dpv:isIndicatedBy"]["@id"] for each in events(made)]
    assert by == ["dpv:DataSubject"] * 2 + ["dpv:GuardianOfDataSubject"] * 2 + ["bodega:controller"]
    notices = made["dpv:hasRecordOfActivity"]["dpv:hasNotice"]
    assert [each["dpv:hasIdentifier"] for each in notices] == ["notice-1", "notice-2"]


def test_a_grant_for_all_says_nothing_of_a_source_that_came_later(ledger: Ledger, say: Say, tmp_path: Path) -> None:
    say("+profile/")
    grown = Vocabulary(purposes=SHOP.purposes, sources=(*SHOP.sources, "kiosk"))
    with closing(Ledger.open(f"sqlite:///{tmp_path}/consent.db", grown)) as later:
        made = receipt(later, grown)
        assert states(made)["profile/app"] == "Given" and states(made)["profile/kiosk"] == "Unknown"
    smaller = Vocabulary(purposes=SHOP.purposes, sources=("app",))
    with closing(Ledger.open(f"sqlite:///{tmp_path}/consent.db", smaller)) as later:
        assert set(states(receipt(later, smaller))) == {"profile/app", "train/app", "sensitive/app"}


def test_after_an_erasure_nothing_of_before_is_told(ledger: Ledger, say: Say) -> None:
    before = say("+profile/", "+train/", notice="notice-1")
    ledger.erase(KEY, "person", "")
    made = receipt(ledger)
    assert set(states(made).values()) == {"Unknown"}
    (erased,) = events(made)
    assert erased["@type"] == "dpv:ConsentStatusInvalidForProcessing" and "Erased" in erased["dct:description"]
    assert erased["bodega:sequence"] == 2
    assert before.receipt_id not in json.dumps(made) and "notice-1" not in json.dumps(made)
    say("+profile/web", notice="notice-9")
    back = receipt(ledger)
    assert states(back)["profile/web"] == "Given" and states(back)["profile/app"] == "Unknown"
    assert [each["bodega:sequence"] for each in events(back)] == [2, 3]
    assert back["dpv:hasRecordOfActivity"]["@id"] == made["dpv:hasRecordOfActivity"]["@id"]
    assert back["@id"] != made["@id"]


def test_what_was_imported_says_so_and_keeps_its_own_time(ledger: Ledger, grants: Callable[..., pa.Table]) -> None:
    ledger.import_grants(grants((KEY, "+profile/web", 1_700_000_000.0), (KEY, "+train/web", None)))
    made = receipt(ledger)
    assert states(made)["profile/web"] == states(made)["train/web"] == "Given"
    by_purpose = {each["bodega:purpose"]: each for each in events(made)}
    assert by_purpose["profile"]["dpv:isIndicatedAtTime"] == "2023-11-14T22:13:20.000000Z"
    assert all(each["bodega:imported"] and "dct:identifier" not in each for each in events(made))


def test_who_acted_is_never_repeated_as_the_caller_wrote_it(ledger: Ledger, say: Say) -> None:
    say("+profile/", actor="ana@example.org")
    made = receipt(ledger)
    assert "ana@" not in json.dumps(made)
    assert events(made)[0]["dpv:isIndicatedBy"] == {"@id": "dpv:Entity"}


def test_a_history_of_another_moment_is_refused(ledger: Ledger, say: Say) -> None:
    say("+profile/")
    old = ledger.changes(KEY, 0, 100)
    say("-profile/")
    with pytest.raises(ConsentError, match="not of one moment"):
        receipt_of(KEY, ledger.standing(KEY), old, SHOP, TERMS, CORNER, NOW)
    standing = replace(ledger.standing(KEY), grants=(Change("train", "web", True),))
    with pytest.raises(ConsentError, match="holds train for web"):
        receipt_of(KEY, standing, ledger.changes(KEY, 0, 100), SHOP, TERMS, CORNER, NOW)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "", "storage": []}, "controller lacks name, storage"),
        ({"jurisdiction": "Ireland"}, r"controller.jurisdiction is 'Ireland'.*IE or US-CA"),
        ({"storage": ["IE", "de"]}, "controller.storage is 'de'"),
        ({"retention": "2 years"}, "controller.retention is '2 years'.*P25M"),
        ({"retention": "P"}, "controller.retention"),
        ({"language": "EN"}, "controller.language"),
    ],
)
def test_a_receipt_that_names_nobody_is_not_made(wrong: dict[str, Any], said: str, ledger: Ledger) -> None:
    with pytest.raises(ConsentError, match=said):
        receipt_of(KEY, ledger.standing(KEY), [], SHOP, TERMS, replace(CORNER, **wrong), NOW)


def steady(made: Any, names: dict[str, str]) -> Any:
    """The same with what the ledger draws or reads from the clock under names of its own, in the order in which it appears."""
    if isinstance(made, dict):
        return {key: steady(value, names) for key, value in made.items()}
    if isinstance(made, list):
        return [steady(each, names) for each in made]
    return names.get(made, made) if isinstance(made, str) else made


def test_the_receipt_is_what_it_was(ledger: Ledger, say: Say) -> None:
    """Written anew with BODEGA_WRITE_GOLDEN=1, where the format is meant to change."""
    receipts = [
        say("+profile/", "+train/web", preference=3),
        say("-profile/web", actor="guardian", notice="notice-2"),
        say("-sensitive/", actor="operator"),
    ]
    made = receipt(ledger)
    names = {made["dpv:hasIdentifier"]: "RECEIPT", made["@id"]: "urn:uuid:RECEIPT"}
    names |= {each.receipt_id: f"CALL-{place}" for place, each in enumerate(receipts)}
    for each in ledger.changes(KEY, 0, 100):
        names[each.recorded_at.isoformat(timespec="microseconds").replace("+00:00", "Z")] = f"TIME-{each.sequence}"
    found = steady(made, names)
    if os.environ.get("BODEGA_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(GOLDEN.read_text())
    used = {
        part
        for part in json.dumps(found).split('"')
        if part.partition(":")[0] in ("dpv", "dct", "pd", "loc", "skos", "rdf", "bodega")
    }
    assert {each.partition(":")[0] for each in used} <= set(made["@context"]), "each prefix is declared"


def test_the_same_state_gives_the_same_receipt(ledger: Ledger, say: Say) -> None:
    say("+profile/")
    assert receipt(ledger) == receipt(ledger)


ASKED = [
    *("consent.controller.name=Corner", "consent.controller.contact=privacy@corner.example"),
    *("consent.controller.jurisdiction=IE", "consent.controller.notice=https://corner.example/notice"),
    *("consent.controller.withdrawal=https://corner.example/consent", "consent.controller.retention=P25M"),
    "consent.controller.storage=[IE]",
]


def bodega(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "consent", "receipt", *arguments],
        input=said,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_the_command_prints_one_person_s_receipt_and_no_id(tmp_path: Path) -> None:
    out = tmp_path / "out of town, [1]=2"
    keys = UserKeys.load(out / "keys", create=True)
    shop = Vocabulary(sources=("web", "app", "store", "partner"))
    with closing(Ledger.open(f"sqlite:///{out}/consent.db", shop)) as ledger:
        ledger.bind(keys.stable.key_id)
        ledger.record(
            keys.stable.derive("ana@example.org"), [Change("profile", "web", True)], None, "n", "person", "", None
        )
    by_option = bodega("--user", "ana@example.org", "--out", str(out), *ASKED)
    assert by_option.returncode == 0, by_option.stderr
    made = json.loads(by_option.stdout)
    assert states(made)["profile/web"] == "Given" and states(made)["profile/app"] == "Unknown"
    by_line = bodega("--out", str(out), *ASKED, said="ana@example.org\n")
    assert json.loads(by_line.stdout)["dpv:hasRecordOfActivity"] == made["dpv:hasRecordOfActivity"]
    assert "ana@" not in by_option.stdout + by_option.stderr + by_line.stdout + by_line.stderr
    stranger = bodega("--user", "ben", "--out", str(out), *ASKED)
    assert set(states(json.loads(stranger.stdout)).values()) == {"Unknown"}
    bare = bodega("--user", "ana@example.org", "--out", str(out))
    assert bare.returncode == 4 and "controller lacks name, contact" in bare.stderr and "ana@" not in bare.stderr
    (out / "keys" / "stable.key").write_text("ab" * 32)
    other = bodega("--user", "ana@example.org", "--out", str(out), *ASKED)
    assert other.returncode == 4 and "names people by the stable key" in other.stderr and other.stdout == ""


def test_the_command_makes_no_ledger_where_there_is_none(tmp_path: Path) -> None:
    done = bodega("--user", "ana", "--out", str(tmp_path), *ASKED)
    assert done.returncode == 2 and "There is no ledger" in done.stderr and "--out" in done.stderr
    assert not list(tmp_path.iterdir())
    wrong = bodega("--user", "ana", "--out", str(tmp_path), "consent=tema")
    assert wrong.returncode == 2 and "consent/tema" in wrong.stderr
