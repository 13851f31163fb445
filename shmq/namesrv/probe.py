"""Asks a broker again and again whether it lives, and believes nobody else who answers.

The question is GET_BROKER_STATUS on the broker's own socket: what answers is the loop that serves
its clients, and it says whether its append thread makes progress. Only the process that is watched
counts; the kernel says who listens there.

In the NameServer, on its event loop. A broker that does not answer holds up nothing but its probe.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from shmq.errors import ClosedError, ShmqError
from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.codes import RequestCode
from shmq.remoting.command import Command
from shmq.remoting.loop_thread import in_background
from shmq.remoting.runtime_folder import RuntimeFolder
from shmq.shm.incarnation import Incarnation

__all__ = ["Probe"]

_log = logging.getLogger("shmq.namesrv")

_FIRST_S = 0.02
"""Between two questions until the first answer: somebody may wait for what it is."""


class Probe:
    """One broker's probe; runs from `start` to `stop`.

    Args:
        folder: where its socket lies; stays open as long as the probe runs.
        socket_name: its socket.
        incarnation: its process.
        interval_ms: between two questions.
        on_sign: called for each answer that says the broker is well.
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        socket_name: str,
        incarnation: Incarnation,
        *,
        interval_ms: int,
        on_sign: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._socket_name = socket_name
        self._incarnation = incarnation
        self._interval_s = interval_ms / 1e3
        self._on_sign = on_sign
        self._client: AsyncClient | None = None
        self._problem: str | None = None
        self._said: Mapping[str, object] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why the last question had no good answer; None if it had, or none was asked yet."""
        return self._problem

    @property
    def said(self) -> Mapping[str, object]:
        """The fields of its last answer; none before the first."""
        return self._said

    def start(self) -> None:
        """Begin to ask."""
        self._task = in_background(self._ask_for_ever())

    def stop(self) -> None:
        """Ask no more. Twice does nothing."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _ask_for_ever(self) -> None:
        was_answered = was_told = False  # while it starts, silence is nothing to tell
        while True:  # endless: until it is stopped
            before, self._problem = self._problem, await self._ask()
            if self._problem is None:
                self._on_sign()
                was_answered, was_told = True, False
            # Once is nothing: it changes its role, or its end is told by its pidfd in a moment.
            elif before is not None and was_answered and not was_told:
                was_told = True
                _log.warning("no answer broker=%s problem=%s", self._socket_name, self._problem)
            is_late = self._problem is not None and not was_answered
            await asyncio.sleep(min(self._interval_s, _FIRST_S) if is_late else self._interval_s)

    async def _ask(self) -> str | None:
        """Ask once; the problem, or None if all is well."""
        try:
            if self._client is None or self._client.is_closed:
                self._client = await self._connect()
            command = Command(RequestCode.GET_BROKER_STATUS)
            # Each question has the time of several, so that a late answer is an answer too.
            response = await self._client.invoke(command, timeout_s=3 * self._interval_s)
        except ShmqError as error:
            return str(error)
        except OSError as error:  # no descriptor left, a folder that went away
            return f"ask {self._socket_name}: {error}"
        response.close()
        self._said = response.ext_fields
        if response.ext_fields.get("isHealthy") is False:
            return f"it says: {response.ext_fields.get('problem') or 'not healthy'}"
        return None

    async def _connect(self) -> AsyncClient:
        client = await AsyncClient.connect(
            self._folder, self._socket_name, role="supervisor", timeout_s=3 * self._interval_s
        )
        if client.identity.incarnation != self._incarnation:
            client.close()
            raise ClosedError(f"{self._socket_name} is served by {client.identity}")
        return client
