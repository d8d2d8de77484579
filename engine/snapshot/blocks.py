"""The compiled half of a look-up: find a person's row, and check that nothing of theirs has changed before it is used.

What a person has in a table is checked together with their key and the number of rows, against a checksum beside where the
rows lie: a bit that turns in memory or on disk after the files were hashed gives an error, not a list. Candidates and their
ways are checked at the look-up, the other tables when they are asked for: reading them costs more than all else.

CRC-32C (RFC 3720, appendix B.4) of four interleaved streams of 8-byte words, which keeps the processor's CRC unit busy,
folded into one: a change of up to 32 bits in a row within a word is always found, any other but for one in 2^32.
Keys are pseudorandom, so the search interpolates between the ends before it halves (Perl, Itai & Avni 1978,
doi:10.1145/359545.359557).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from engine.identity import KEY_BYTES
from engine.schema import ALTERNATIVES, NEVER, NO_ITEM, NO_LANE

MISSING, DAMAGED = -1, -2
_GUESSES = 6  # of an interpolation before halving takes over; sound keys need two or three
_NEAR = 4  # lines on each side of a guess
_ALL = 0xFFFFFFFF
_POLYNOMIAL = 0x82F63B78
_HARDWARE = "sse4.2" in {name for name, has in binding.get_host_cpu_features().items() if has}

# Where a shard lies, as one row of int64: how many users, the halves of the first key, addresses of the keys and of the
# blocks, then of each table _WIDE numbers.
_FIRST, _KEYS, _BLOCKS, _AFTER = 1, 3, 4, 5
_WIDE = 14  # its rows, its columns, then address and bytes a row of each of up to six columns
_TABLES = 6
_CANDIDATES, _WAYS = 0, 1
_SPAN = 12  # bytes: checksum, start and count of one person's rows in one table
_BLOCK = _SPAN * _TABLES
_LINE = 64  # bytes that the processor fetches at once


def place(keys: NDArray[Any], block: NDArray[np.uint32], tables: Sequence[Sequence[NDArray[Any]]]) -> NDArray[np.int64]:
    """Describe one shard to the compiled code: addresses of arrays that the caller keeps alive.

    Args:
        keys: (U,) ascending. block: (U, 18) checksum, start and count in each table. tables: each one's columns.

    Returns:
        one row of the table of shards that `find` takes, as long for every shard of a snapshot.
    """
    first = np.frombuffer(keys[:1].tobytes() or bytes(KEY_BYTES), ">i8")
    row = [len(keys), int(first[0]), int(first[1]), _address(keys), _address(block)]
    for columns in tables:
        told = [len(columns[0]), len(columns)]
        for column in columns:
            told += [_address(column), column.itemsize * int(np.prod(column.shape[1:]))]
        row += told + [0] * (_WIDE - len(told))
    return np.array(row, np.int64)


def _address(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("The columns of a snapshot are contiguous.")
    return int(array.__array_interface__["data"][0])


def _load(bits: int) -> Any:
    """A load from any address: a column begins at a multiple of 8 bytes, a person's rows of it need not."""

    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(bits)))
            return builder.load(pointer, align=1)

        return getattr(types, f"uint{bits}")(types.int64), code

    return load


def _instruction(name: str, bits: int, wide: int) -> Any:
    """The processor's own CRC-32C step over `bits` bits; its state has `wide` bits."""

    @intrinsic
    def step(typing: Any, state: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = [ir.IntType(wide), ir.IntType(bits)]
            function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(kinds[0], kinds))
            return builder.call(function, arguments)

        kind = getattr(types, f"uint{wide}")
        return kind(kind, getattr(types, f"uint{bits}")), code

    return step


@intrinsic
def _fetch_line(typing: Any, address: Any) -> Any:
    """Have the processor fetch a line, and go on meanwhile."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(8)))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, number(0), number(3), number(1)])  # to read, into every cache, as data
        return context.get_dummy_value()

    return types.void(types.int64), code


_prefetch: Any = _fetch_line


def _table() -> NDArray[np.uint64]:
    """(256,) what each byte does to the state."""
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint64(1)) ^ np.uint64(_POLYNOMIAL), table >> np.uint64(1))
    return table


@intrinsic
def _as_float(typing: Any, bits: Any) -> Any:
    """The float that four bytes are."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), code


_float: Any = _as_float
_load64, _load32, _load16, _load8 = _load(64), _load(32), _load(16), _load(8)
_step64 = _instruction("llvm.x86.sse42.crc32.64.64", 64, 64)
_step8 = _instruction("llvm.x86.sse42.crc32.32.8", 8, 32)
_TABLE = _table()

if _HARDWARE:

    @njit(cache=True)
    def _word(state: Any, word: Any) -> Any:
        return _step64(state, word)

    @njit(cache=True)
    def _byte(state: Any, byte: Any) -> Any:
        return np.uint64(_step8(np.uint32(state), byte))

else:

    @njit(cache=True)
    def _byte(state: Any, byte: Any) -> Any:
        return _TABLE[(state ^ np.uint64(byte)) & np.uint64(255)] ^ (state >> np.uint64(8))

    @njit(cache=True)
    def _word(state: Any, word: Any) -> Any:
        for step in range(8):
            state = _byte(state, np.uint8((word >> np.uint64(8 * step)) & np.uint64(255)))
        return state


@njit(cache=True)
def _fold(state: Any, address: Any, size: Any) -> Any:
    """The state after `size` bytes at an address."""
    a = state
    end = address + size
    if size >= 32:
        b = c = d = np.uint64(_ALL)
        while address + 32 <= end:
            a, b = _word(a, _load64(address)), _word(b, _load64(address + 8))
            c, d = _word(c, _load64(address + 16)), _word(d, _load64(address + 24))
            address += 32
        a = _word(_word(a, b | (c << np.uint64(32))), d)
    while address + 8 <= end:
        a = _word(a, _load64(address))
        address += 8
    while address < end:
        a = _byte(a, _load8(address))
        address += 1
    return a


@njit(cache=True)
def _fetch(shard: Any, row: Any, table: Any) -> Any:
    """Ask for all of a person's rows in a table at once: waiting for one column after another takes longest.

    Returns:
        whether they lie in the table.
    """
    at, span = _AFTER + _WIDE * table, shard[_BLOCKS] + _BLOCK * row + _SPAN * table
    start, count = np.int64(_load32(span + 4)), np.int64(_load32(span + 8))
    if start + count > shard[at]:
        return False
    for column in range(at + 2, at + 2 + 2 * shard[at + 1], 2):
        line = shard[column] + start * shard[column + 1]
        end = line + count * shard[column + 1]
        while line < end:
            _prefetch(line)
            line += _LINE
    return True


@njit(cache=True)
def _checksum(shard: Any, row: Any, table: Any) -> Any:
    """Of a person's rows in a table, which they lie in."""
    at, span = _AFTER + _WIDE * table, shard[_BLOCKS] + _BLOCK * row + _SPAN * table
    start, count = np.int64(_load32(span + 4)), np.int64(_load32(span + 8))
    key = shard[_KEYS] + KEY_BYTES * row
    state = _word(_word(np.uint64(_ALL), _load64(key)), _load64(key + 8))
    state = _word(state, np.uint64((table << 32) | count))
    if count:
        for column in range(at + 2, at + 2 + 2 * shard[at + 1], 2):
            wide = shard[column + 1]
            state = _fold(state, shard[column] + start * wide, count * wide)
    return np.uint32(state)


@njit(cache=True)
def _sound(shard: Any, row: Any, table: Any) -> Any:
    """Whether a person's rows in a table are what was written."""
    return _checksum(shard, row, table) == _load32(shard[_BLOCKS] + _BLOCK * row + _SPAN * table)


@njit(cache=True)
def _half(address: Any) -> Any:
    """Eight bytes of a key as a number in the keys' order."""
    number = np.uint64(0)
    for place in range(8):
        number = (number << np.uint64(8)) | np.uint64(_load8(address + place))
    return number


@njit(cache=True)
def _row(keys: Any, count: Any, high: Any, low: Any) -> Any:
    """Where a key stands among `count` ascending ones, or MISSING."""
    first, last = np.int64(0), count - 1
    if last < 0:
        return np.int64(MISSING)
    least, most = _half(keys), _half(keys + KEY_BYTES * last)  # of what is at the ends, or just outside them
    guesses = 0
    while first <= last:
        middle = (first + last) // 2
        if guesses < _GUESSES and last - first > 8 and least <= high <= most and least < most:
            share = np.float64(high - least) / np.float64(most - least)
            middle = min(max(first + np.int64(share * np.float64(last - first)), first), last)
            guesses += 1
            if guesses == 2:  # of a hundred thousand keys the second guess is some ten away: wait for all of these once
                for line in range(-_NEAR, _NEAR + 1):
                    _prefetch(keys + KEY_BYTES * middle + _LINE * line)
        found = _half(keys + KEY_BYTES * middle)
        if found == high:
            second = _half(keys + KEY_BYTES * middle + 8)
            if second == low:
                return middle
            below = second < low
        else:
            below = found < high
        if below:
            first, least = middle + 1, found
        else:
            last, most = middle - 1, found
    return np.int64(MISSING)


@njit(cache=True, nogil=True)
def seal(shard: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(U, tables) the checksums of a shard whose spans are sound; those that are there are not looked at.

    Args:
        shard: a row that `place` made.
    """
    sums = np.empty((shard[0], _TABLES), np.uint32)
    for row in range(shard[0]):
        for table in range(_TABLES):
            sums[row, table] = _checksum(shard, row, table)
    return sums


@njit(cache=True)
def find(shards: NDArray[np.int64], key: bytes) -> Any:
    """Where a person stands: shard * 2^32 + row; MISSING, or DAMAGED where their candidates are not what was written.

    Args:
        shards: (S, ...) rows that `place` made, of shards with users, ascending by key.
        key: of KEY_BYTES bytes.
    """
    high = low = np.uint64(0)
    for place in range(8):
        high = (high << np.uint64(8)) | np.uint64(key[place])
        low = (low << np.uint64(8)) | np.uint64(key[8 + place])
    before, after = np.int64(0), np.int64(len(shards))
    while before < after:
        middle = (before + after) // 2
        first, second = np.uint64(shards[middle, _FIRST]), np.uint64(shards[middle, _FIRST + 1])
        if first < high or (first == high and second <= low):
            before = middle + 1
        else:
            after = middle
    if not before:
        return np.int64(MISSING)
    shard = shards[before - 1]
    row = _row(shard[_KEYS], shard[0], high, low)
    if row < 0:
        return np.int64(MISSING)
    if not (_fetch(shard, row, _CANDIDATES) and _fetch(shard, row, _WAYS)):
        return np.int64(DAMAGED)
    if not (_sound(shard, row, _CANDIDATES) and _sound(shard, row, _WAYS)):
        return np.int64(DAMAGED)
    return (before - 1) << 32 | row


@njit(cache=True)
def rows(shard: NDArray[np.int64], row: int, table: int) -> Any:
    """Where a person's rows in a table lie: start * 2^32 + count; DAMAGED where they are not what was written.

    Args:
        shard: a row that `place` made. row: as `find` gave it. table: its number.
    """
    if not _fetch(shard, row, table) or not _sound(shard, row, table):
        return np.int64(DAMAGED)
    span = shard[_BLOCKS] + _BLOCK * row + _SPAN * table
    return np.int64(_load32(span + 4)) << 32 | np.int64(_load32(span + 8))


@njit(cache=True)
def candidates(shard: NDArray[np.int64], row: int, bases: NDArray[np.uint64]) -> Any:
    """A person's candidates with one column a way, as policies want them. A way that is not used is never allowed.

    Args:
        shard: a row that `place` made. row: as `find` gave it. bases: what the codes of this shard mean.

    Returns:
        item (n,), then lane, basis, score and evidence, each (n, ALTERNATIVES).
    """
    block = shard[_BLOCKS] + _BLOCK * row
    first, count = np.int64(_load32(block + 4)), np.int64(_load32(block + 8))
    way = np.int64(_load32(block + _SPAN + 4))
    end = way + np.int64(_load32(block + _SPAN + 8))
    at = _AFTER + 2
    items, counts = shard[at], shard[at + 2]
    at += _WIDE
    lanes, codes, scores, proofs = shard[at], shard[at + 2], shard[at + 4], shard[at + 6]
    item, lane = np.empty(count, np.int32), np.full((count, ALTERNATIVES), NO_LANE, np.uint8)
    basis, score = np.full(lane.shape, NEVER, np.uint64), np.full(lane.shape, -np.inf, np.float32)
    evidence = np.full(lane.shape, NO_ITEM, np.int32)
    for place in range(count):
        item[place] = np.int32(_load32(items + 4 * (first + place)))
        for column in range(ALTERNATIVES):
            if way == end or column == np.int64(_load8(counts + first + place)):
                break
            lane[place, column] = _load8(lanes + way)
            basis[place, column] = bases[_load16(codes + 2 * way)]
            score[place, column] = _float(_load32(scores + 4 * way))
            evidence[place, column] = np.int32(_load32(proofs + 4 * way))
            way += 1
    return item, lane, basis, score, evidence
