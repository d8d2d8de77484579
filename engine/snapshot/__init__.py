"""What the night publishes and the day reads: one folder of mapped files, one pointer to it."""

from engine.snapshot.items import ItemTable
from engine.snapshot.manifest import About, FileEntry, Lineage, Manifest
from engine.snapshot.reader import Snapshot, read_manifest
from engine.snapshot.records import Cadence, Candidates, Mix, Seen, Sums, UserRecord
from engine.snapshot.registry import ANY_PARENT, Registry
from engine.snapshot.writer import SnapshotWriter

__all__ = [
    "ANY_PARENT", "About", "Cadence", "Candidates", "FileEntry", "ItemTable", "Lineage", "Manifest", "Mix", "Registry",
    "Seen", "Snapshot", "SnapshotWriter", "Sums", "UserRecord", "read_manifest",
]  # fmt: skip
