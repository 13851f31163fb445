"""A client's way to slaves: who there is, who hears of its groups, and which one it reads from.

What lives here: `SlaveLinks`. Consumers tell slaves of their groups while there is a master, so
that a slave knows all members when there is none; and read from one when a master sends them there,
or is gone and nobody has taken its place. A slave that refuses (slaveReadEnable) or does not answer
is left alone for a while; one whose connection ended is forgotten. Which process: the program's,
any of its threads. Writes nothing in shared memory. May fail: ServiceNotAvailableError where no
slave lets us read.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from shmq.client.broker_link import BrokerLink
from shmq.client.deadline import held
from shmq.clock import SYSTEM_CLOCK
from shmq.errors import ClosedError, ServiceNotAvailableError, ShmqError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmq.client.membership import Membership
    from shmq.client.route_cache import RouteCache
    from shmq.topic import BrokerData

__all__ = ["SlaveLinks"]

_log = logging.getLogger("shmq.client")

IN_PLACE_AFTER_NS = 1_500_000_000
"""A master that is gone for so long without a successor is not just being restarted."""
_LOOK_NS = 1_000_000_000
"""Between two questions who is master of a broker_name that has none."""
_REFUSED_NS = 5_000_000_000
"""A slave that refused, or did not answer, is left alone so long."""
_MASTER_ID = 0

_Key = tuple[str, int]
"""(broker_name, broker_id)."""


class SlaveLinks:
    """Of one client. Threads may share it.

    Args:
        make: connects to a slave: (socket_name, broker_name, broker_id).
        routes: where slaves are.
        membership: what they are told.
        on_place: called when one begins to stand in a master's place.
    """

    def __init__(
        self,
        make: Callable[[str, str, int], BrokerLink],
        routes: RouteCache,
        membership: Membership,
        *,
        on_place: Callable[[], None],
    ) -> None:
        self._make = make
        self._routes = routes
        self._membership = membership
        self._on_place = on_place
        self._lock = threading.Lock()
        """Held for a look at the tables, never while a broker is asked."""
        self._locks: dict[_Key, threading.Lock] = {}
        self._links: dict[_Key, BrokerLink] = {}
        self._ended: list[BrokerLink] = []
        self._addresses: dict[str, dict[int, str]] = {}
        self._refused_ns: dict[_Key, int] = {}
        self._gone_ns: dict[str, int] = {}
        self._in_place: dict[str, tuple[int, BrokerLink | None]] = {}
        self._is_closed = False

    # ---- who there is ----------------------------------------------------------------------------

    def learn(self, brokers: Iterable[BrokerData]) -> None:
        """Take what a route says of members."""
        for data in brokers:
            slaves = {number: at for number, at in data.broker_addrs.items() if number}
            self._addresses[data.broker_name] = slaves

    def any_of(self, broker_name: str) -> bool:
        """Whether a broker_name has slaves."""
        return bool(self._addresses.get(broker_name))

    def links(self) -> list[BrokerLink]:
        """Those that are connected; the others are let go."""
        with self._lock:
            for key in [key for key, link in self._links.items() if not link.is_up]:
                self._ended.append(self._links.pop(key))
            ended, self._ended = self._ended, []
            found = list(self._links.values())
        for link in ended:
            self._membership.forget(link)
            link.close()
        return found

    def _link(self, key: _Key) -> BrokerLink:
        """The connection to a slave, made now if there is none.

        Raises:
            ServiceNotAvailableError and others: there is none to be had just now.
        """
        link = self._links.get(key)
        if link is not None and link.is_up:
            return link
        name, broker_id = key
        what = f"connect to slave {name}:{broker_id}"
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with held(lock, what):
            link = self._links.get(key)
            if link is not None and link.is_up:
                return link
            if SYSTEM_CLOCK.monotonic_ns() < self._refused_ns.get(key, 0):
                raise ServiceNotAvailableError(f"{what}: it refused a moment ago")
            socket_name = self._addresses.get(name, {}).get(broker_id)
            if socket_name is None:
                raise ServiceNotAvailableError(f"{what}: no NameServer knows it")
            self.links()  # lets go of those that ended
            made = self._make(socket_name, name, broker_id)
            with self._lock:
                is_ours = not self._is_closed
                if is_ours:
                    self._links[key] = made
            if not is_ours:
                made.close()
                raise ClosedError(f"{what}: this client is closed")
            return made

    def _refused(self, key: _Key, error: ShmqError) -> None:
        _log.debug("slave %s:%d: %s", *key, error)
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        if now_ns >= self._refused_ns.get(key, 0):
            self._refused_ns[key] = now_ns + _REFUSED_NS

    # ---- telling ---------------------------------------------------------------------------------

    def greet(self, broker_name: str, group: str) -> None:
        """See that the slaves of a broker_name know what we are in a group, as far as they care."""
        for broker_id in self._addresses.get(broker_name, {}):
            key = broker_name, broker_id
            try:
                self._membership.greet(self._link(key), group)
            except ShmqError as error:
                self._refused(key, error)

    def heartbeat(self) -> None:
        """Tell all that are connected which groups this client is in."""
        for link in self.links():
            with suppress(ShmqError):
                self._membership.heartbeat(link)

    # ---- reading ---------------------------------------------------------------------------------

    def reading(self, broker_name: str, broker_id: int) -> BrokerLink:
        """A session with this slave, or else with the first that lets us read.

        Raises:
            ServiceNotAvailableError: none does.
        """
        if broker_name not in self._addresses:
            self.learn(self._routes.cluster().brokers.values())
        ids = sorted(self._addresses.get(broker_name, {}), key=lambda one: (one != broker_id, one))
        reason: ShmqError | str = "no NameServer knows one"
        for one in ids:
            key = broker_name, one
            try:
                link = self._link(key)
                link.begin()
                return link
            except ShmqError as error:
                self._refused(key, error)
                reason = error
        raise ServiceNotAvailableError(f"read from a slave of {broker_name}: {reason}")

    def master_is_there(self, broker_name: str) -> None:
        """A master of that name is connected: no slave is in its place."""
        if broker_name in self._gone_ns:
            self._gone_ns.pop(broker_name, None)
            self._in_place.pop(broker_name, None)

    def in_place_of_master(self, broker_name: str) -> BrokerLink | None:
        """A session with a slave, where the master has been gone for a while and no member has
        become master; None: wait for one.
        """
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        if now_ns - self._gone_ns.setdefault(broker_name, now_ns) < IN_PLACE_AFTER_NS:
            return None
        looked_ns, link = self._in_place.get(broker_name, (now_ns - _LOOK_NS, None))
        if now_ns - looked_ns < _LOOK_NS and (link is None or link.is_up):
            return link
        before, link = link, self._look(broker_name)
        self._in_place[broker_name] = now_ns, link
        if link is not None and before is None:
            self._on_place()
        return link

    def _look(self, broker_name: str) -> BrokerLink | None:
        try:
            known = self._routes.cluster().brokers
        except ServiceNotAvailableError:
            pass  # nobody can say: as it was known last
        else:
            self.learn(known.values())
            if broker_name in known and _MASTER_ID in known[broker_name].broker_addrs:
                return None
        with suppress(ServiceNotAvailableError):
            return self.reading(broker_name, _MASTER_ID)
        return None

    @property
    def without_master(self) -> list[str]:
        """broker_names that are read from a slave, for want of a master."""
        return [name for name, (_, link) in tuple(self._in_place.items()) if link is not None]

    # ---- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave all of them."""
        with self._lock:
            self._is_closed = True
            links, self._links = list(self._links.values()), {}
            ended, self._ended = self._ended, []
        for link in (*links, *ended):
            link.close()
