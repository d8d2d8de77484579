"""One tree of errors. Each names the thing and the remedy; serving maps it to a gRPC status, jobs to an exit code.

BodegaError                     exit   reason
├── SettingsError                 2    INVALID_SETTINGS
├── DataError                     3    BAD_DATA
│   ├── FileRefused               3    FILE_REFUSED
│   │   └── ContractError         3    CONTRACT_BROKEN
│   └── QuarantineError           3    TOO_MANY_BAD_ROWS
├── ConsentError                  4    BAD_CONSENT
│   └── LedgerUnavailable         4    LEDGER_UNAVAILABLE
│       ├── LedgerReplaced        4    LEDGER_UNAVAILABLE
│       └── ConsentStale          4    LEDGER_UNAVAILABLE
├── TrainingError                 5    TRAINING_DIVERGED
├── GateBlocked                   6    GATE_BLOCKED
├── SnapshotError                 7    BAD_SNAPSHOT
│   ├── NoSnapshot                7    NO_SNAPSHOT
│   ├── SnapshotTooNew            7    SNAPSHOT_TOO_NEW
│   ├── SnapshotCorrupt           7    SNAPSHOT_CORRUPT
│   └── PublishConflict           7    PUBLISH_CONFLICT
├── JournalUnavailable            9    JOURNAL_UNAVAILABLE
├── RunLocked                     8    RUN_LOCKED
├── KernelError                   1    BAD_ARRAY
├── PolicyError                   2    BAD_POLICY
└── RequestError                  1    INVALID_ARGUMENT
    ├── UnknownThing              1    NOT_FOUND
    ├── NotAllowed                1    NOT_ALLOWED
    └── NotBuilt                  1    NOT_BUILT
"""

from __future__ import annotations


class BodegaError(Exception):
    """Something a person can act on.

    Args:
        message: what is wrong, naming the thing.
        remedy: what to do about it, one sentence.
    """

    reason = "INTERNAL"
    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} Remedy: {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries errors between processes: keep every attribute, whatever a subclass takes.
        return (_rebuild, (type(self), dict(self.__dict__)))


def _rebuild(kind: type[BodegaError], state: dict[str, object]) -> BodegaError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (state.get("message"),)
    return error


class SettingsError(BodegaError):
    """A setting is unknown, mistyped or contradicts another."""

    reason = "INVALID_SETTINGS"
    exit_code = 2


class DataError(BodegaError):
    """The input cannot be used."""

    reason = "BAD_DATA"
    exit_code = 3


class FileRefused(DataError):
    """A file cannot be read; the log goes on without it, up to a share.

    Args:
        why: zero_bytes, bad_footer, bad_page, too_large or vanished; of a ContractError missing_column, repeated_column or
            wrong_type.
    """

    reason = "FILE_REFUSED"

    def __init__(self, file: str, why: str, detail: str) -> None:
        if why == "vanished":
            super().__init__(f"{file} is missing.", "Check data.path and the names in conf/data.")
        else:
            text = " ".join(detail.split()).rstrip(".")
            super().__init__(f"{file} is not a readable Parquet file: {text}.", "Write it again, or take it away.")
        self.file = file
        self.why = why


class ContractError(FileRefused):
    """A file does not keep the contract of the activity log, the catalogue or the grants."""

    reason = "CONTRACT_BROKEN"

    def __init__(self, file: str, column: str, expected: str, found: str, remedy: str, why: str = "wrong_type") -> None:
        DataError.__init__(self, f"{file}: column '{column}': expected {expected}, found {found}.", remedy)
        self.file = file
        self.why = why
        self.column = column
        self.expected = expected
        self.found = found


class QuarantineError(DataError):
    """More rows were bad than the run allows."""

    reason = "TOO_MANY_BAD_ROWS"


class ConsentError(BodegaError):
    """A consent change or vocabulary is invalid."""

    reason = "BAD_CONSENT"
    exit_code = 4


class LedgerUnavailable(ConsentError):
    """The consent ledger cannot be read or written."""

    reason = "LEDGER_UNAVAILABLE"


class LedgerReplaced(LedgerUnavailable):
    """The consent ledger is not the one that was known: it is gone, went back, or tells of another past."""


class ConsentStale(LedgerUnavailable):
    """What is known of consent is older than it may be, or than the caller's token."""


class TrainingError(BodegaError):
    """The model diverged or has nothing to learn from; nothing is published."""

    reason = "TRAINING_DIVERGED"
    exit_code = 5


class GateBlocked(BodegaError):
    """A gate refuses to publish; yesterday's snapshot stays."""

    reason = "GATE_BLOCKED"
    exit_code = 6


class SnapshotError(BodegaError):
    """A snapshot cannot be written, opened or published."""

    reason = "BAD_SNAPSHOT"
    exit_code = 7


class NoSnapshot(SnapshotError):
    """Nothing has been published yet, or not under this name."""

    reason = "NO_SNAPSHOT"


class SnapshotTooNew(SnapshotError):
    """The snapshot's format is newer than this reader."""

    reason = "SNAPSHOT_TOO_NEW"


class SnapshotCorrupt(SnapshotError):
    """A checksum, size or footer does not match the manifest."""

    reason = "SNAPSHOT_CORRUPT"


class PublishConflict(SnapshotError):
    """Another publisher moved the pointer first."""

    reason = "PUBLISH_CONFLICT"


class JournalUnavailable(BodegaError):
    """Events cannot be made durable, or brought into the log, now."""

    reason = "JOURNAL_UNAVAILABLE"
    exit_code = 9


class RunLocked(BodegaError):
    """Another process works on the same run."""

    reason = "RUN_LOCKED"
    exit_code = 8


class KernelError(BodegaError):
    """An array at a kernel's door has the wrong shape, dtype or values."""

    reason = "BAD_ARRAY"


class PolicyError(BodegaError):
    """A policy is unknown or one of its rules has bad parameters."""

    exit_code = 2
    reason = "BAD_POLICY"


class RequestError(BodegaError):
    """A request breaks the limits or the contract."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, remedy: str = "", field: str = "") -> None:
        super().__init__(message, remedy)
        self.field = field


class UnknownThing(RequestError):
    """The named item, surface or token does not exist."""

    reason = "NOT_FOUND"


class NotAllowed(RequestError):
    """The server has it, and does not do it for this caller."""

    reason = "NOT_ALLOWED"


class NotBuilt(RequestError):
    """The contract declares it; this version does not have it yet."""

    reason = "NOT_BUILT"
