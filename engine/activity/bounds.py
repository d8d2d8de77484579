"""What the bytes of a foreign file may cost: any fault of theirs ends as FileRefused, in bounded memory and time."""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.activity.footer import decoded
from engine.errors import FileRefused

HEADROOM = 1 << 29  # bytes of memory that reading may take beyond what the process has reserved
LARGEST_FOOTER = 4 << 20  # bytes; pyarrow takes up to 250 times as much for the lists that they may spell
_TAIL = 1 << 16  # bytes that are read to find the footer; most are shorter
# Whatever is raised over bytes: pyarrow's own errors, and Python's where a size or a text makes no sense or a field is missing.
_BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, IndexError, AttributeError)
_one_at_a_time = threading.Lock()  # the bound is the process's


@contextlib.contextmanager
def refusing(path: str, why: str) -> Iterator[None]:
    """Whatever is wrong with the bytes becomes FileRefused."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileRefused(path, "vanished", str(error)) from error
    except MemoryError as error:
        raise FileRefused(path, "too_large", "it unpacks to more than a file of a log can need") from error
    except _BROKEN as error:
        raise FileRefused(path, why, str(error) or type(error).__name__) from error


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let the process take HEADROOM more memory at most, for as long as pages are unpacked.

    Sizes in a file may lie, and a short page can name a long text a million times. pyarrow asks for the memory of columns in
    large pieces and reports it when one is refused. For the many small ones of a footer it does not: that has its own bound.
    """
    with _one_at_a_time, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # not Linux: the sizes that a file tells are all there is to go by
            taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)  # unlike RLIMIT_AS it leaves shared memory alone
            limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_DATA, (min([taken + HEADROOM, *limits]), hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_DATA, (soft, hard))
        yield


def read_footer(path: str, source: pa.NativeFile, size: int) -> tuple[pq.FileMetaData, dict[int, Any]]:
    """The footer of a Parquet file, as pyarrow and as `footer` read it.

    Raises:
        FileRefused: there is none, or one that no sound file has.
    """
    with refusing(path, "bad_footer"):
        tail = source.read_at(min(size, _TAIL), max(0, size - _TAIL))
        if len(tail) < 12 or tail[-4:] not in (b"PAR1", b"PARE"):
            raise FileRefused(path, "bad_footer", "it does not end as one")
        length = int.from_bytes(tail[-8:-4], "little")
        if length > size - 8:
            raise FileRefused(path, "bad_footer", "its footer is longer than the file")
        if length > LARGEST_FOOTER:
            raise FileRefused(path, "too_large", f"its footer has {length / 2**20:.1f} MiB")
        if length > len(tail) - 8:
            tail = source.read_at(length + 8, size - length - 8)
        told = {} if tail[-4:] == b"PARE" else decoded(path, tail[-8 - length : -8])
        return pq.ParquetFile(pa.BufferReader(tail), thrift_string_size_limit=LARGEST_FOOTER).metadata, told
