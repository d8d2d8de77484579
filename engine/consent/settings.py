"""What conf/consent declares, typed: purposes, sources, stored profiles, and who answers for the processing.

The server and the night read the same file. What the engine does whatever a file says, such as what Global Privacy Control
stops, stands in the file for people to read, and is held against the engine here: a file cannot promise something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.consent.vocabulary import EVENTS, PROFILE, PURPOSES, SENSITIVE, TRAIN, Vocabulary
from engine.errors import ConsentError

# Of the engine's own purposes, whether a request under Global Privacy Control goes without. The night reads the ledger, and
# no request: what a model is fitted on, a signal of one request cannot change.
_GPC = {PROFILE: True, SENSITIVE: True, TRAIN: False}


@dataclass
class PurposeSettings:
    """One purpose.

    text: what a person is told that it is for. events: kinds that have a bit of their own in each source: purchase and other
    under profile, nothing elsewhere. tcf, special_features: numbers of IAB TCF that together amount to it; none: no TC string
    grants it. dpv, personal_data: its terms in the vocabularies dpv and pd of W3C DPV. gpc: whether a request under Global
    Privacy Control goes without it.
    """

    text: str = ""
    events: list[str] = field(default_factory=list)
    tcf: list[int] = field(default_factory=list)
    special_features: list[int] = field(default_factory=list)
    dpv: list[str] = field(default_factory=list)
    personal_data: list[str] = field(default_factory=list)
    gpc: bool = True


@dataclass
class MinorSettings:
    """What a request that says `minor` may use. No grant lifts it: true is refused."""

    profiled: bool = False
    sensitive_items: bool = False


@dataclass
class ControllerSettings:
    """Who answers for the processing, as receipts name them; without it there are no receipts.

    contact: an address, a mail address or a page. jurisdiction, storage: ISO 3166 codes, such as IE or US-CA. retention: how
    long the log is kept, as ISO 8601, such as P25M. notice, withdrawal: addresses of the consent notice, and of where a person
    changes their mind. language: of the purposes' texts, two letters. recipients: who else gets the data, by name.
    """

    name: str = ""
    contact: str = ""
    jurisdiction: str = ""
    notice: str = ""
    withdrawal: str = ""
    retention: str = ""
    language: str = "en"
    storage: list[str] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)


@dataclass
class ConsentSettings:
    """conf/consent. Without purposes, those of `vocabulary.PURPOSES` are meant."""

    purposes: dict[str, PurposeSettings] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    profiles: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    minors: MinorSettings = field(default_factory=MinorSettings)
    controller: ControllerSettings = field(default_factory=ControllerSettings)

    def vocabulary(self) -> Vocabulary:
        """The purposes and sources in the order of the file, which gives them their bits.

        Raises:
            ConsentError: the file declares what cannot be, or what the engine does otherwise.
        """
        made = Vocabulary(purposes=tuple(self.purposes) or PURPOSES, sources=tuple(self.sources))
        for name, purpose in self.purposes.items():
            _check(name, purpose)
        for name, lifted in (("profiled", self.minors.profiled), ("sensitive_items", self.minors.sensitive_items)):
            if lifted:
                raise ConsentError(
                    f"conf/consent: minors.{name} is true.",
                    "Set it to false: minors are neither profiled nor shown sensitive items, and no grant lifts that.",
                )
        return made


def _check(name: str, purpose: PurposeSettings) -> None:
    where = f"conf/consent: purposes.{name}"
    if not purpose.text.strip():
        raise ConsentError(f"{where}.text is empty.", "Say in one sentence what a person is told that it is for.")
    expected = list(EVENTS) if name == PROFILE else []
    if purpose.events != expected:
        raise ConsentError(
            f"{where}.events is {purpose.events}, the engine's bits are for {expected}.",
            f"Write `events: [{', '.join(expected)}]`." if expected else "Leave it out: it has one bit a source.",
        )
    if name in _GPC and purpose.gpc != _GPC[name]:
        does = "stops it for the request" if _GPC[name] else "leaves it: the night goes by the ledger alone"
        raise ConsentError(
            f"{where}.gpc is {str(purpose.gpc).lower()}, yet under Global Privacy Control the engine {does}.",
            f"Set it to {str(_GPC[name]).lower()}; who wants it otherwise records a withdrawal.",
        )
