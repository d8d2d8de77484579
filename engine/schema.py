"""Column names, codes and Arrow schemas that cross rooms: each fact once."""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 1
ALTERNATIVES = 3  # ways in which one candidate may be justified
NOBODY = 0  # basis of what relies on no grant
NEVER = 2**64 - 1  # basis that no set of grants covers: marks an unused alternative
# A basis with this bit relies on what the person did today, which the dial lets in earlier than what is stored.
TODAY = 2**63
NO_ITEM = -1

# The order is the code that artefacts store: append only.
EVENTS = (
    "view",
    "click",
    "cart",
    "purchase",
    "like",
    "dismiss",
    "dismiss_category",
    "return",
    "gift",
    "impression",
)
PURCHASE = EVENTS.index("purchase")
LANES = ("two_tower", "similar", "usual", "discovery", "popular", "session", "pinned", "other")
OTHER_LANE = LANES.index("other")  # of a lane that a team registered under a name of its own
NO_LANE = 255

USER_KEY = pa.binary(16)
TIME = pa.timestamp("us", tz="UTC")

# What ingest leaves for the other stages: one shard a user bucket, sorted by user_key, ts, item, event.
ACTIVITY = pa.schema(
    [
        ("user_key", USER_KEY),  # rotating
        ("item", pa.int32()),  # row of the catalogue
        ("event", pa.uint8()),  # code of EVENTS
        ("ts", TIME),
        ("weight", pa.float32()),  # interest, by event type; 0 for a flagged gift
        ("source", pa.uint8()),  # code of the consent vocabulary
        ("trainable", pa.bool_()),  # the person lets this source train models
        ("profilable", pa.bool_()),  # the person lets this source rank for them
    ]
)

# The catalogue after checks, sorted by item_id; the row number is the item's code everywhere else.
CATALOGUE = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("categories", pa.list_(pa.string())),  # root to leaf
        ("creator", pa.string()),
        ("price", pa.float64()),
        ("sensitive", pa.list_(pa.string())),
        ("regions", pa.list_(pa.string())),
        ("available_from", TIME),
        ("available_until", TIME),
        ("added", TIME),
    ]
)

# How often an item was wanted by how many, by everybody and by nobody in particular.
POPULARITY = pa.schema([("item", pa.int32()), ("weight", pa.float64()), ("people", pa.int64())])

# Added to the number of a group of events for those of sensitive items, which ask for the grant of `sensitive` as well.
DELICATE = 64

# Consent as the night reads it at one ledger sequence.
LINKS = pa.schema([("user_key", USER_KEY), ("person", USER_KEY)])  # stable, ascending; what linked ids share
STANDINGS = pa.schema(
    [
        ("user_key", USER_KEY),  # stable, ascending
        ("granted", pa.uint64()),
        ("preference", pa.uint8()),
        ("erased_at", pa.int64()),  # microseconds since the epoch: nothing up to it counts; 0: never erased
    ]
)

# What a team hands to jobs.import_consent. An empty source means all sources.
GRANTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("purpose", pa.string()),
        ("source", pa.string()),
        ("granted", pa.bool_()),
        ("notice_version", pa.string()),
        ("actor", pa.string()),
        ("occurred_at", TIME),
    ]
)


def alternatives(kind: pa.DataType) -> pa.DataType:
    """The Arrow type of one value per alternative of a candidate."""
    return pa.list_(kind, ALTERNATIVES)


# --- the snapshot: fixed-width columns only, so that a reader takes NumPy views -------------------------------------
# Rows of one user lie together in each of the tables below; SNAPSHOT_USERS says where.
SNAPSHOT_USERS = pa.schema(
    [
        ("user_key", USER_KEY),  # rotating, ascending
        *(
            (f"{table}_{edge}", pa.uint32())
            for table in ("candidates", "sums", "seen", "mix", "cadence")
            for edge in ("start", "count")
        ),
    ]
)
CANDIDATES = pa.schema(
    [
        ("item", pa.int32()),
        ("lane", alternatives(pa.uint8())),
        ("basis", alternatives(pa.uint64())),
        ("score", alternatives(pa.float32())),  # expected wants within the horizon, best alternative first
        ("evidence", alternatives(pa.int32())),  # the item that justifies it, or NO_ITEM
    ]
)
SEEN = pa.schema([("item", pa.int32()), ("basis", pa.uint64())])
MIX = pa.schema([("category", pa.int32()), ("share", pa.float32()), ("basis", pa.uint64())])
CADENCE = pa.schema(
    [
        ("item", pa.int32()),
        ("purchases", pa.uint32()),
        ("gap_days", pa.float32()),  # mean days between purchases; 0 with a single one
        ("last", pa.int64()),  # microseconds since the epoch
        ("basis", pa.uint64()),
    ]
)


def sums_schema(decays: int, width: int) -> pa.Schema:
    """Decayed sums of one user in one group of events (a source's purchases, or its other events).

    `weights` and `sums` are relative to `last`, the time of the group's last event, so that old groups never underflow.
    """
    return pa.schema(
        [
            ("group", pa.uint8()),  # bit of the consent vocabulary
            ("last", pa.int64()),  # microseconds since the epoch
            ("weights", pa.list_(pa.float32(), decays)),
            ("sums", pa.list_(pa.float32(), decays * width)),
        ]
    )


def items_schema(width: int, neighbours: int) -> pa.Schema:
    """The item table of a snapshot: what rules and replies need, the vector, and the nearest items by co-visits."""
    return pa.schema(
        [
            ("item_id", pa.string()),  # ascending
            ("title", pa.string()),
            ("categories", pa.list_(pa.string())),
            ("root_category", pa.int32()),  # row of the categories table; -1: none
            ("creator", pa.int32()),  # code; -1: none
            ("price", pa.float32()),  # NaN: none
            ("sensitive", pa.bool_()),
            ("regions", pa.list_(pa.string())),
            ("available_from", pa.int64()),  # microseconds since the epoch; the type's minimum and maximum: open
            ("available_until", pa.int64()),
            ("popularity", pa.float32()),  # share of all wants
            ("tail", pa.bool_()),
            ("vector", pa.list_(pa.float32(), width)),
            ("neighbour", pa.list_(pa.int32(), neighbours)),  # NO_ITEM: fewer than that
            ("likeness", pa.list_(pa.float32(), neighbours)),
        ]
    )


# Lists for people of whom nothing may be used, one a segment. Category -1 is the whole shop, the region '' everywhere.
FALLBACK = pa.schema([("region", pa.string()), ("category", pa.int32()), ("item", pa.int32()), ("score", pa.float32())])
CATEGORIES = pa.schema([("name", pa.string())])
# Candidates as files hold them: most have a single way to be justified, so the ways are rows of their own, in the order of
# the candidates and of their worth.
STORED_CANDIDATES = pa.schema([("item", pa.int32()), ("ways", pa.uint8())])
WAYS = pa.schema(
    [
        ("lane", pa.uint8()),
        ("basis", pa.uint64()),
        ("score", pa.float32()),
        ("evidence", pa.int32()),
    ]
)
# Every basis that a shard of people uses, ascending; the other tables of the shard name them by row.
BASES = pa.schema([("basis", pa.uint64())])
# The user tower as plain arrays, by name.
TOWER = pa.schema([("name", pa.string()), ("shape", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
