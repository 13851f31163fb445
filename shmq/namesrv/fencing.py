"""Kills registered brokers that are alive and hang, where somebody else restarts them (systemd).

Every broker that registers here and may register is asked whether it lives (probe.py). One that
gives no good answer for its time gets SIGKILL through the pidfd of the connection through which it
registered: that process, and no other that has its pid by now. Two NameServers that fence the same
broker kill it once.

In the NameServer, on its event loop.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from shmq.clock import AttendedTime, Clock
from shmq.errors import ShmqError
from shmq.namesrv.broker_watch import SilenceWatch
from shmq.namesrv.probe import Probe
from shmq.remoting.loop_thread import in_background
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.remoting.server import Connection

__all__ = ["Fencing"]

_log = logging.getLogger("shmq.namesrv")

_LOOK_INTERVAL_S: Final = 0.25
_PAUSE_MS_MAX: Final = 1_000


@dataclass(slots=True)
class _Watched:
    socket_name: str
    probe: Probe
    silence: SilenceWatch


class Fencing:
    """All registered brokers of one NameServer. Make it and use it in the loop's thread.

    Args:
        folder: where their sockets lie.
        hung_timeout_ms: silence after which one is killed.
        probe_interval_ms: between two questions.
        clock: where time comes from.
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        *,
        hung_timeout_ms: int,
        probe_interval_ms: int,
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._hung_timeout_ms = hung_timeout_ms
        self._probe_interval_ms = probe_interval_ms
        self._clock = clock
        self._time = AttendedTime(pause_ms_max=_PAUSE_MS_MAX)
        self._watched: dict[Connection, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None

    def watch(self, connection: Connection, socket_name: str) -> None:
        """A broker has registered through `connection`; watched until that ends."""
        incarnation = connection.identity.incarnation
        if connection in self._watched or incarnation is None:
            return
        silence = SilenceWatch(
            self._now_ns(),
            first_timeout_ms=self._hung_timeout_ms,
            timeout_ms=self._hung_timeout_ms,
        )
        probe = Probe(
            self._folder,
            socket_name,
            incarnation,
            interval_ms=self._probe_interval_ms,
            on_sign=lambda: silence.heard(self._now_ns()),
        )
        self._watched[connection] = _Watched(socket_name, probe, silence)
        probe.start()
        connection.on_close(self._ended)
        if self._looking is None or self._looking.done():
            self._looking = in_background(self._look())

    def close(self) -> None:
        """Watch no more. Twice does nothing."""
        if self._looking is not None:
            self._looking.cancel()
        for watched in self._watched.values():
            watched.probe.stop()
        self._watched.clear()

    def _now_ns(self) -> int:
        return self._time.look(self._clock.monotonic_ns())

    def _ended(self, connection: Connection, _error: ShmqError) -> None:
        watched = self._watched.pop(connection, None)
        if watched is not None:
            watched.probe.stop()

    async def _look(self) -> None:
        while self._watched:
            now_ns = self._now_ns()
            for connection, watched in tuple(self._watched.items()):
                if watched.silence.is_hung(now_ns):
                    self._fence(connection, watched)
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def _fence(self, connection: Connection, watched: _Watched) -> None:
        self._watched.pop(connection).probe.stop()
        try:
            was_alive = connection.kill_peer()
        except PermissionError as error:
            _log.error("fence broker=%s %s: %s", watched.socket_name, connection.identity, error)
            return
        _log.warning(
            "fenced broker=%s %s was_alive=%s reason=%s",
            watched.socket_name,
            connection.identity,
            was_alive,
            watched.probe.problem or "no sign of life",
        )
