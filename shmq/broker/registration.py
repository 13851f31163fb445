"""Tells every NameServer that this broker lives and which topics it has.

What lives here: `Registration`: one link, a task with a connection, for each NameServer socket that
lies in the runtime folder. A link registers everything once, then what changes, at once; each
interval it asks whether the NameServer still has the version it was told. A NameServer that dies
changes nothing here: its link tries again with back-off for as long as its socket lies there. New
ones are found by looking into the folder each second, which costs microseconds.

The loop's thread owns it. Never raises for what a NameServer does: it logs, and tries again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from shmq.errors import ShmqError
from shmq.remoting import namesrv_requests as requests
from shmq.remoting.aio_client import AsyncClient
from shmq.remoting.codes import ResponseCode
from shmq.remoting.command import error_of
from shmq.remoting.loop_thread import in_background

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmq.remoting.runtime_folder import RuntimeFolder
    from shmq.store.config_files import DataVersion

    from .topics import TopicTable

__all__ = ["Registration"]

_log = logging.getLogger("shmq.broker")

_LOOK_INTERVAL_S: Final = 1.0
_TIMEOUT_S: Final = 3.0
"""For a connection, and for an answer; RocketMQ has 24 s (registerBrokerTimeoutMills)."""
_BACK_OFF_S: Final = 0.05
_BACK_OFF_MAX_S: Final = 1.0
_STALE_CODES: Final = frozenset(
    {ResponseCode.BROKER_NOT_EXIST, ResponseCode.SUBSCRIPTION_NOT_LATEST}
)
"""Answers that mean: register in full."""


class Registration:
    """All links of one broker.

    Args:
        folder: the runtime folder; used as long as this lives.
        address: of the broker.
        topics: what it has.
        interval_s: between two signs of life where nothing changes.
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        address: requests.BrokerAddress,
        topics: TopicTable,
        *,
        interval_s: float,
    ) -> None:
        self._folder = folder
        self._address = address
        self._topics = topics
        self._interval_s = interval_s
        self._links: dict[str, _Link] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def registered_names(self) -> list[str]:
        """NameServers that know this broker now, by their sockets' names."""
        return sorted(name for name, link in self._links.items() if link.version is not None)

    def start(self) -> None:
        """Begin to look for NameServers."""
        self._task = in_background(self._look())

    def changed(self, topics: Iterable[str]) -> None:
        """These topics were made, changed or deleted: tell everybody."""
        names = set(topics)
        for link in self._links.values():
            link.pending |= names
            link.wake.set()

    async def told(self, *, timeout_s: float) -> None:
        """Return when every NameServer that is connected knows what `changed` said, or later."""
        waiting = [
            asyncio.create_task(link.is_told.wait())
            for link in self._links.values()
            if link.version is not None and link.tell_begins()
        ]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()

    async def stop(self) -> None:
        """Leave every NameServer, as far as they answer."""
        if self._task is not None:
            self._task.cancel()
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.leave() for link in links))

    async def _look(self) -> None:
        while True:  # until stop(): NameServers may come at any time
            try:
                names = self._folder.socket_names("namesrv")
            except OSError as error:  # no descriptor left, a folder that went away
                _log.warning("cannot look for NameServers: %s", error)
                names = []
            for name in names:
                link = self._links.get(name)
                if link is None or link.is_over:
                    self._links[name] = _Link(self._folder, name, self._address, self._topics)
                    self._links[name].start(self._interval_s)
            await asyncio.sleep(_LOOK_INTERVAL_S)


class _Link:
    """The way to one NameServer."""

    def __init__(
        self,
        folder: RuntimeFolder,
        name: str,
        address: requests.BrokerAddress,
        topics: TopicTable,
    ) -> None:
        self.pending: set[str] = set()
        """Topics that changed since `version`."""
        self.wake = asyncio.Event()
        self.is_told = asyncio.Event()
        self.version: DataVersion | None = None
        """What the NameServer has; None while it is not connected."""
        self._folder = folder
        self._name = name
        self._address = address
        self._topics = topics
        self._client: AsyncClient | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """The NameServer's socket is gone, or the task failed."""
        return self._task is not None and self._task.done()

    def start(self, interval_s: float) -> None:
        self._task = asyncio.create_task(self._run(interval_s))

    def tell_begins(self) -> bool:
        """Whether something is left to be told; `is_told` is set when it was."""
        if not self.pending:
            return False
        self.is_told.clear()
        return True

    async def leave(self) -> None:
        """Unregister if connected, and end."""
        if self._task is not None:
            self._task.cancel()
        if self._client is not None and not self._client.is_closed:
            try:
                command = requests.unregister_broker(self._address)
                await self._client.call(command, timeout_s=_TIMEOUT_S)
            except ShmqError as error:
                _log.warning("not unregistered namesrv=%s: %s", self._name, error)
            self._client.close()

    # ---- the task ----------------------------------------------------------------------------

    async def _run(self, interval_s: float) -> None:
        back_off_s = _BACK_OFF_S
        while self._name in self._folder.socket_names("namesrv"):
            try:
                self._client = await AsyncClient.connect(
                    self._folder,
                    self._name,
                    role="broker",
                    timeout_s=_TIMEOUT_S,
                    on_close=lambda _error: self.wake.set(),
                )
                back_off_s = _BACK_OFF_S
                await self._serve(self._client, interval_s)
            except (ShmqError, OSError) as error:  # OSError: no descriptor left
                if self.version is not None:
                    _log.warning("registration lost namesrv=%s: %s", self._name, error)
            finally:
                self.version = None
                self.is_told.set()
            if self._client is not None:
                self._client.close()
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _BACK_OFF_MAX_S)

    async def _serve(self, client: AsyncClient, interval_s: float) -> None:
        """Register, then say what changes; raises when the connection has ended."""
        await self._register(client)
        _log.info("registered namesrv=%s topics=%d", self._name, len(self._topics))
        while True:  # ends by the error of a connection that has ended
            self.wake.clear()
            if not self.pending:
                self.is_told.set()
                try:
                    async with asyncio.timeout(interval_s):
                        await self.wake.wait()
                except TimeoutError:
                    await self._ask(client)
                    continue
            if self.pending:
                await self._update(client)
            elif client.is_closed:
                await self._ask(client)  # raises what ended it

    async def _register(self, client: AsyncClient) -> None:
        """Tell everything."""
        self.pending.clear()
        version = self._topics.data_version
        commands = requests.register_broker(self._address, self._topics.routes(), version.to_dict())
        for command in commands:
            await client.call(command, timeout_s=_TIMEOUT_S)
        self.version = version

    async def _update(self, client: AsyncClient) -> None:
        """Tell what changed."""
        assert self.version is not None
        names = set(self.pending)
        self.pending.clear()
        configs = self._topics.routes(names)
        version = self._topics.data_version
        command = requests.register_topics(
            self._address,
            configs,
            sorted(names - configs.keys()),
            previous_version=self.version.to_dict(),
            data_version=version.to_dict(),
        )
        response = await client.invoke(command, timeout_s=_TIMEOUT_S)
        if response.code in _STALE_CODES:
            await self._register(client)
            return
        error = error_of(response)
        if error is not None:
            raise error
        self.version = version

    async def _ask(self, client: AsyncClient) -> None:
        """Whether the NameServer still has what it was told; register again if not."""
        assert self.version is not None
        command = requests.query_data_version(self._address, self.version.to_dict())
        response = await client.call(command, timeout_s=_TIMEOUT_S)
        if response.ext_fields.get("changed"):
            await self._register(client)
