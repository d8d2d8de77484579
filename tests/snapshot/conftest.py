"""Fixtures that several files of this room share."""

from tests.snapshot.places import bucket, folder, object_server, place

__all__ = ["bucket", "folder", "object_server", "place"]
