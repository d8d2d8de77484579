"""The way to Redis: a client whose every wait ends, and a breaker that spares requests a server that does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from engine.errors import BodegaError, SettingsError
from engine.live.redis_rows import Script

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class RedisLink:
    """Its calls raise nothing: an answer is None where there was none.

    Args:
        url: redis://, rediss:// (TLS) or unix://, with its password; it is neither logged nor shown.
        connect_seconds, read_seconds: how long a connection and an answer are waited for.
        failures, pause_seconds: after how many failures in a row nothing is asked, and for how long.

    Raises:
        SettingsError: the address is not one, or the driver is missing.
    """

    def __init__(
        self, url: str, connect_seconds: float, read_seconds: float, failures: int, pause_seconds: float
    ) -> None:
        self.client, self._faults, self._no_script = _connected(url, connect_seconds, read_seconds)
        self._breaker = _Breaker(failures, pause_seconds)
        self._why = ""

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return self._breaker.failures > 0

    @property
    def fault(self) -> BodegaError:
        """Why it is down."""
        return BodegaError(
            f"Redis does not serve today's state ({self._why}): this replica sees only the events that it took itself.",
            "Check that Redis runs, and its address, user and password; the state is made again when it answers.",
        )

    def ask(self, call: Callable[[], _T]) -> _T | None:
        """What `call` returns, unless the breaker is open or it fails."""
        if not self._breaker.lets():
            return None
        try:
            answer = call()
        except self._faults as error:
            self._why = type(error).__name__  # its text may hold the address
            if self._breaker.heard(answered=False):
                _log.warning("redis does not answer (%s): today's state is of this replica alone", self._why)
            return None
        if self._breaker.heard(answered=True):
            _log.info("redis answers again")
        return answer

    def run(self, script: Script, names: Sequence[str | bytes], values: Sequence[object] = ()) -> list[Any]:
        """Run a script, inside a call that is asked. A server that was restarted gets it anew."""
        try:
            return list(self.client.evalsha(script.name, len(names), *names, *values))
        except self._no_script:
            return list(self.client.eval(script.text, len(names), *names, *values))


class _Breaker:
    """After several failures in a row nothing is asked for a moment; then one call goes first.

    Args:
        failures: in a row, that open it.
        pause: seconds.
    """

    def __init__(self, failures: int, pause: float) -> None:
        self._most, self._pause = failures, pause
        self._lock = threading.Lock()
        self.failures = 0
        self._until = 0.0

    def lets(self) -> bool:
        """Whether to ask; of those who come after the pause only the first may."""
        with self._lock:
            if self.failures < self._most:
                return True
            now = time.monotonic()
            if now < self._until:
                return False
            self._until = now + self._pause
            return True

    def heard(self, answered: bool) -> bool:
        """Keep how a call went. Returns whether that changed how things stand."""
        with self._lock:
            before, self.failures = self.failures, 0 if answered else self.failures + 1
            self._until = time.monotonic() + self._pause
            return (before == 0) != (self.failures == 0)


def _connected(url: str, connect_seconds: float, read_seconds: float) -> tuple[Any, tuple[type[Exception], ...], Any]:
    """A client, what its calls raise, and what it raises of a script that Redis does not have."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise SettingsError("live.redis needs the driver of Redis.", "pip install 'bodega[redis]'.") from None
    try:
        client = redis.Redis.from_url(
            url,
            socket_connect_timeout=connect_seconds,
            socket_timeout=read_seconds,
            retry=Retry(NoBackoff(), 0),  # by default it would try for seconds
            protocol=2,
        )
    except ValueError:
        # Its own error would quote the address, and with it the password.
        raise SettingsError(
            "live.redis is not an address of Redis.", "Write redis[s]://[user:password@]host[:port][/number]."
        ) from None
    return client, (redis.RedisError, OSError), redis.exceptions.NoScriptError
