"""The pointer: which snapshot is served, which were before it, and, of an object store, where each one lies."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import SnapshotCorrupt

POINTER = "current.json"
ID = re.compile(r"\d{8}-[0-9a-f]{12}")
_PLACE = re.compile(r"\d{8}-[0-9a-f]{12}/[0-9a-f]{16}")
_MOVES = 32  # as many as can pile up between a write whose answer was lost and the look at what came of it


@dataclass(frozen=True, slots=True)
class Pointer:
    """What `current.json` says.

    Args:
        current: the id that is served.
        previous: ids served before it, newest first.
        places: of an object store, id -> prefix of its upload; an upload that stands here no more is never used again.
        moves: of an object store, marks of the last moves, newest first: who lost the answer to a move finds its own here.
    """

    current: str
    previous: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    moves: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: bytes, where: str) -> Pointer:
        """Read it back.

        Raises:
            SnapshotCorrupt: it is not a pointer.
        """
        try:
            record = json.loads(text)
            names = (record["current"], *record["previous"])
            places, moves = record.get("places", {}), record.get("moves", [])
            strange = [name for name in (*names, *places) if not (isinstance(name, str) and ID.fullmatch(name))]
            strange += [place for name, place in places.items() if not _PLACE.fullmatch(place) or name not in place]
            if strange or not all(isinstance(mark, str) for mark in moves):
                raise ValueError(f"not snapshot ids: {strange}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SnapshotCorrupt(
                f"{where} is not a pointer: {error!r}.",
                "Point again with `bodega snapshot promote ID`; `bodega snapshot list` names them.",
            ) from error
        return cls(names[0], tuple(names[1:]), dict(places), tuple(moves))

    def to_json(self) -> str:
        """The text of `current.json`."""
        record: dict[str, Any] = {"current": self.current, "previous": list(self.previous)}
        if self.places:
            record["places"] = dict(self.places)
        if self.moves:
            record["moves"] = list(self.moves)
        return json.dumps(record, indent=2) + "\n"

    def serve(self, name: str, here: Collection[str]) -> Pointer:
        """With another snapshot in front; those no longer `here` are forgotten."""
        if name == self.current:
            return self
        earlier = tuple(old for old in (self.current, *self.previous) if old != name and old in here)
        return replace(self, current=name, previous=earlier)

    def back(self, here: Collection[str]) -> Pointer | None:
        """At what was served before, and without what is served now; None where nothing is left."""
        earlier = [name for name in self.previous if name in here]
        return replace(self, current=earlier[0], previous=tuple(earlier[1:])) if earlier else None

    def placed(self, name: str, place: str) -> Pointer:
        """With the place of a new upload."""
        return replace(self, places={**self.places, name: place})

    def without(self, names: Collection[str]) -> Pointer:
        """Without snapshots that are about to be removed."""
        return replace(
            self,
            previous=tuple(name for name in self.previous if name not in names),
            places={name: place for name, place in self.places.items() if name not in names},
        )

    def marked(self, mark: str) -> Pointer:
        """With the mark of one move."""
        return replace(self, moves=(mark, *self.moves[: _MOVES - 1]))
