"""What a person is handed about their consent: a receipt around the record, as JSON-LD.

The structure is that of ISO/IEC TS 27560:2023 in the words of W3C DPV 2, as its community group's guide has it: Pandit, Krog and
Lindquist, "Consent Records and Receipts as per ISO/IEC TS 27560:2023 using DPV", https://w3id.org/dpv/guides/consent-27560.
What DPV has no word for stands under `bodega:`. The person is named by the stable key alone.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.consent.changes import LINKED, Change, RecordedChange, Standing, moment
from engine.consent.mapping import Terms
from engine.consent.settings import ControllerSettings
from engine.consent.vocabulary import Level, Vocabulary
from engine.errors import ConsentError

SCHEMA = "https://w3id.org/dpv/schema/dpv-27560"
CONTEXT = {
    "bodega": "urn:bodega:consent:",
    "dct": "http://purl.org/dc/terms/",
    "dpv": "https://w3id.org/dpv#",
    "loc": "https://w3id.org/dpv/loc#",
    "pd": "https://w3id.org/dpv/pd#",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "skos": "http://www.w3.org/2004/02/skos/core#",
}
_RECORDS = uuid.uuid5(uuid.NAMESPACE_URL, "urn:bodega:consent:record")  # RFC 9562, version 5
_CONTROLLER = "bodega:controller"
# Callers may name an actor as they like; a receipt repeats none but these.
_BY = {"person": "dpv:DataSubject", "guardian": "dpv:GuardianOfDataSubject", "operator": _CONTROLLER}
_PLACE = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,3})?")
_DURATION = re.compile(r"P(?=\d|T\d)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?")
_LANGUAGE = re.compile(r"[a-z]{2}")
_ASKED = ("name", "contact", "jurisdiction", "notice", "withdrawal", "retention", "storage")


def receipt_of(
    key: bytes,
    standing: Standing,
    history: Sequence[RecordedChange],
    vocabulary: Vocabulary,
    terms: Mapping[str, Terms],
    controller: ControllerSettings,
    created: datetime,
) -> dict[str, Any]:
    """The receipt of one person.

    Args:
        key: the stable user key; its hex is the pseudonym.
        standing: what the person allows now.
        history: all that is recorded of them, oldest first, of the same moment as the standing.
        terms: of each purpose, from `mapping.terms_of`.
        created: when the receipt is made, with a time zone.

    Returns:
        What JSON can hold. The same arguments give the same receipt and the same id.

    Raises:
        ConsentError: the controller is not declared, or the history is not of the standing.
    """
    check_controller(controller)
    if (history[-1].sequence if history else standing.erasure) != standing.sequence:
        raise ConsentError(
            "The history of a person and what they allow are not of one moment.", "Read both again, and make it anew."
        )
    record = _record(key, standing, history, vocabulary, terms, controller)
    made = {
        "@type": "dpv:ConsentReceipt",
        "dct:conformsTo": f"{SCHEMA}#receipt",
        "dct:created": _iso(created),
        "dct:publisher": {"@id": _CONTROLLER},
        "dct:audience": {"@id": "dpv:DataSubject"},
        "dct:language": controller.language,
        "dpv:hasEntity": _party(controller),
        "dpv:hasRecordOfActivity": record,
    }
    said = json.dumps(made, sort_keys=True, ensure_ascii=False)
    name = str(uuid.uuid5(uuid.UUID(record["dpv:hasIdentifier"]), said))
    return {"@context": dict(CONTEXT), "@id": f"urn:uuid:{name}", "dpv:hasIdentifier": name} | made


def check_controller(controller: ControllerSettings) -> None:
    """Refuse to make receipts that do not name who answers for them.

    Raises:
        ConsentError: names what conf/consent lacks, or holds in a form that it does not have.
    """
    if lacking := [name for name in _ASKED if not getattr(controller, name)]:
        raise ConsentError(
            f"conf/consent: controller lacks {', '.join(lacking)}.",
            "Fill it in, or add consent.controller.NAME=VALUE: a receipt names who answers for it.",
        )
    codes = [("jurisdiction", controller.jurisdiction), *(("storage", each) for each in controller.storage)]
    for name, given, form, such in (
        *((name, code, _PLACE, "IE or US-CA") for name, code in codes),
        ("retention", controller.retention, _DURATION, "P25M"),
        ("language", controller.language, _LANGUAGE, "en"),
    ):
        if not form.fullmatch(given):
            raise ConsentError(f"conf/consent: controller.{name} is '{given}'.", f"Write it as in {such}.")


def _record(
    key: bytes,
    standing: Standing,
    history: Sequence[RecordedChange],
    vocabulary: Vocabulary,
    terms: Mapping[str, Terms],
    controller: ControllerSettings,
) -> dict[str, Any]:
    name = str(uuid.uuid5(_RECORDS, key.hex()))
    events = [*_erased(standing), *_events(history)]
    times = [each["bodega:recordedAt"] for each in events] + [_iso(each.recorded_at) for each in history]
    record: dict[str, Any] = {
        "@id": f"urn:uuid:{name}",
        "@type": "dpv:ConsentRecord",
        "dpv:hasIdentifier": name,
        "dct:conformsTo": f"{SCHEMA}#record",
        "dpv:hasDataSubject": {"@type": "dpv:DataSubject", "dpv:hasIdentifier": key.hex()},
        "dpv:hasDataController": {"@id": _CONTROLLER},
        "dpv:hasJurisdiction": {"@id": f"loc:{controller.jurisdiction}"},
        "dpv:hasNotice": [_notice(each, controller) for each in sorted({e.notice_version for e in history}) or [""]],
        "dpv:hasConsentControl": {
            "@type": ["dpv:ProvideConsent", "dpv:WithdrawConsent"],
            "dpv:isExercisedAt": controller.withdrawal,
        },
        "dpv:hasProcess": {
            "@type": "dpv:Process",
            "dpv:hasLegalBasis": {"@id": "dpv:Consent"},
            "dpv:hasRecipient": [
                {"@id": _CONTROLLER},
                *({"@type": "dpv:Recipient", "dpv:hasName": each} for each in controller.recipients),
            ],
            "dpv:hasStorageCondition": [
                {
                    "@type": "dpv:StorageLocation",
                    "dpv:hasLocation": [{"@id": f"loc:{each}"} for each in controller.storage],
                },
                {
                    "@type": "dpv:StorageDuration",
                    "dpv:hasDuration": {"@type": "dpv:TemporalDuration", "rdf:value": controller.retention},
                },
            ],
            "dpv:hasProcess": [_process(each, terms[each], standing, history, vocabulary) for each in terms],
        },
        "dpv:hasConsentStatus": events,
        "bodega:vocabulary": vocabulary.version,
        "bodega:sequence": standing.sequence,
        "bodega:personalization": _level(standing.preference),
        "bodega:hasPreference": [_preference(each) for each in history if each.change is None],
    }
    if times:
        record |= {"dct:created": min(times), "dct:modified": max(times)}
    return record


def _process(
    purpose: str, terms: Terms, standing: Standing, history: Sequence[RecordedChange], vocabulary: Vocabulary
) -> dict[str, Any]:
    """One purpose; what is the same for all stands around it, what differs by source inside."""
    held = {(grant.purpose, grant.source) for grant in standing.grants}
    return {
        "@type": "dpv:Process",
        "dpv:hasPurpose": {
            "@type": "dpv:Purpose",
            "skos:broader": [{"@id": f"dpv:{each}"} for each in terms.dpv],
            "skos:prefLabel": purpose,
            "skos:definition": terms.text,
        },
        "dpv:hasPersonalData": [{"@id": f"pd:{each}"} for each in terms.personal_data],
        "dpv:hasProcess": [
            {
                "@type": "dpv:Process",
                "dpv:hasDataSource": {"@type": "dpv:DataSource", "skos:prefLabel": source},
                "dpv:hasConsentStatus": _status(purpose, source, (purpose, source) in held, history),
            }
            for source in vocabulary.sources
        ],
    }


def _status(purpose: str, source: str, granted: bool, history: Sequence[RecordedChange]) -> dict[str, Any]:
    """What holds now, and the decision that it goes back to.

    A grant for all sources is for those of its moment, which the history does not repeat: the standing decides.
    """
    before = list(history)
    while before:
        last = before[-1]
        change = last.change
        if change and change.purpose == purpose and change.source in ("", source) and change.granted == granted:
            decided = {"dpv:isIndicatedAtTime": _iso(last.occurred_at or last.recorded_at)} | _receipt_id(last)
            return {"@type": _state(change, last, before[:-1])} | decided | (_until_withdrawn() if granted else {})
        before.pop()
    if granted:
        raise ConsentError(
            f"A person holds {purpose} for {source}, and their history does not say since when.",
            "Restore the ledger from backup: its parts disagree.",
        )
    return {"@type": "dpv:ConsentUnknown"}


def _state(change: Change, event: RecordedChange, before: Sequence[RecordedChange]) -> str:
    if change.granted:
        return "dpv:ConsentGiven"
    for earlier in before:
        was = earlier.change
        if (
            was
            and was.granted
            and was.purpose == change.purpose
            and (was.source in ("", change.source) or not change.source)
        ):
            # DPV keeps withdrawal for the person; what somebody else ends is revoked.
            return "dpv:ConsentRevoked" if event.actor == "operator" else "dpv:ConsentWithdrawn"
    return "dpv:ConsentRefused"


def _events(history: Sequence[RecordedChange]) -> Iterator[dict[str, Any]]:
    for place, event in enumerate(history):
        if event.change is None:
            continue
        change = event.change
        about = {"bodega:purpose": change.purpose, "bodega:source": change.source or "every source of that moment"}
        if change.purpose == LINKED:  # under a random name, which says nothing of the other ids
            put = (
                "Put together with other ids of the person."
                if change.granted
                else "Taken from the ids it was linked with."
            )
            about = {"dct:description": put, "bodega:linkedAs": change.source}
        yield (
            {"@type": _state(change, event, history[:place])}
            | about
            | _said(event)
            | (_until_withdrawn() if change.granted else {})
        )


def _erased(standing: Standing) -> Iterator[dict[str, Any]]:
    if standing.erasure:
        yield {
            "@type": "dpv:ConsentStatusInvalidForProcessing",
            "dct:description": "Erased: nothing that was recorded before is held or relied on.",
            "dpv:isIndicatedAtTime": _iso(moment(standing.erased_at)),
            "bodega:recordedAt": _iso(moment(standing.erased_at)),
            "bodega:sequence": standing.erasure,
        }


def _said(event: RecordedChange) -> dict[str, Any]:
    told: dict[str, Any] = {
        "dpv:isIndicatedAtTime": _iso(event.occurred_at or event.recorded_at),
        "dpv:isIndicatedBy": {"@id": _BY.get(event.actor, "dpv:Entity")},
        "bodega:recordedAt": _iso(event.recorded_at),
        "bodega:sequence": event.sequence,
        "bodega:imported": event.imported,
        "bodega:noticeVersion": event.notice_version,
    }
    return told | _receipt_id(event)


def _preference(event: RecordedChange) -> dict[str, Any]:
    return {"bodega:personalization": _level(event.preference or 0)} | _said(event)


def _receipt_id(event: RecordedChange) -> dict[str, str]:
    return {"dct:identifier": event.receipt_id} if event.receipt_id else {}  # an import hands out none


def _until_withdrawn() -> dict[str, Any]:
    return {"dpv:hasDuration": {"@type": "dpv:UntilEventDuration", "rdf:value": "withdrawal or erasure"}}


def _notice(version: str, controller: ControllerSettings) -> dict[str, str]:
    notice = {"@type": "dpv:ConsentNotice", "dct:language": controller.language, "dpv:hasLocation": controller.notice}
    return notice | ({"dpv:hasIdentifier": version} if version else {})


def _party(controller: ControllerSettings) -> dict[str, Any]:
    return {
        "@id": _CONTROLLER,
        "@type": ["dpv:Organisation", "dpv:DataController"],
        "dpv:hasName": controller.name,
        "dpv:hasContact": controller.contact,
        "dpv:hasJurisdiction": {"@id": f"loc:{controller.jurisdiction}"},
    }


def _level(level: int) -> str:
    return Level(level).name.lower()


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
