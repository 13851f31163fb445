"""A master's store and its slave's in two real processes, joined as brokers join them.

What lives here: `Pair`. The master passes what a client that maps the log gets; the slave its
control segment. Either may be killed; `join` brings the slave to the master's successor.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shmq.store.replica import LogBegin
from tests.crash.scene import wipe
from tests.support.dev_shm import DEV_SHM, ours_in_dev_shm
from tests.support.store_process import wait_until
from tests.support.zygote import ForkedStore

if TYPE_CHECKING:
    from pathlib import Path

    from shmq.config import StoreConfig
    from tests.support.zygote import Zygote


class Pair(contextlib.ExitStack):
    """The two stores. A context manager.

    Args:
        zygote: where the processes come from.
        config: of the master; the slave has the same in folders of its own.
        slave_options: other settings of the slave's.
    """

    def __init__(self, zygote: Zygote, config: StoreConfig, **slave_options: Any) -> None:
        super().__init__()
        assert config.runtime_path is not None
        self._zygote = zygote
        self.master = ForkedStore(zygote, config)
        self.callback(lambda: (self.master.abandon(), wipe(config)))
        self.slave_config = replace(
            config,
            store_path=config.store_path.with_name("slave"),
            runtime_path=config.runtime_path.with_name("run-slave"),
            broker_id=1,
            **slave_options,
        )
        self.index: int | None = None
        self._session: int | None = None
        self.slave: ForkedStore

    def open_slave(self) -> None:
        """Start the slave, from empty or from what its folder has, and join it to its master."""
        self.slave = ForkedStore(self._zygote, self.slave_config, begin=self._log_begin())
        slave = self.slave
        self.callback(lambda: (slave.abandon(), wipe(self.slave_config)))
        self.join()

    def _log_begin(self) -> LogBegin:
        begin, fds = self.master.call("open_control")
        os.close(fds["control"])
        return LogBegin(*begin)

    def join(self) -> None:
        """Have the slave follow the master, both as they live now."""
        offer, fds = self.master.open_session(producer=False, consumer=False)
        begin = self._log_begin()
        _, own = self.slave.call("open_control")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.index = self.master.call(
                "add_replica", {"control": own["control"], "socket": ours.fileno()}
            )[0]
            given = {name: fds[name] for name in ("control", "log", "event")}
            self.slave.call(
                "follow",
                {**given, "socket": theirs.fileno()},
                record_crc_position=begin.record_crc_position,
            )
        self._session = offer.session
        for fd in (*fds.values(), own["control"]):
            os.close(fd)

    def kill_master(self) -> None:
        """SIGKILL; its successor adopts, and the slave follows that."""
        self.master.kill()
        self.master = self.master.restart()
        assert self.master.is_adopted
        self.slave.call("unfollow")
        self.join()

    def kill_slave(self, *, wiped: bool = False) -> None:
        """SIGKILL; its successor adopts, or finds nothing in shared memory (`wiped`)."""
        self.slave.kill()
        self.master.call("remove_replica", index=self.index)
        self.master.call("close_session", session=self._session)
        if wiped:
            own = f".{self.slave_config.broker_name}.{self.slave_config.broker_id}."
            for name in ours_in_dev_shm():
                if self.slave_config.cluster_name in name and own in name:
                    (DEV_SHM / name).unlink()
        self.slave = self.slave.restart()
        slave = self.slave
        self.callback(slave.abandon)
        assert self.slave.is_adopted is not wiped
        self.join()

    def await_equal(self) -> None:
        """Return once the slave has what the master has committed now."""
        committed = self.master.facts()["positions"]["committed_position"]
        wait_until(lambda: self.slave.facts()["positions"]["committed_position"] >= committed)

    def check_equal(self) -> None:
        """Stop both in order, and hold files and queues of the slave to those of the master."""
        self.await_equal()
        queues = [dict(queues_of(store)) for store in (self.master, self.slave)]
        for key, master in queues[0].items():
            slave = queues[1].get(key)
            assert slave is not None or master["max_queue_offset"] == 0, key
            if slave is not None:
                assert slave["max_queue_offset"] == master["max_queue_offset"], key
                assert slave["visible_max"] == master["visible_max"], key
        self.slave.stop()
        self.master.stop()
        check_same_files(self.master.config.store_path, self.slave_config.store_path)


def queues_of(store: ForkedStore) -> list[tuple[tuple[str, int], dict[str, int]]]:
    """(topic, queue_id) and offsets of each queue of a store."""
    return [((topic, number), at) for topic, number, _, at in store.facts()["queues"]]


def check_same_files(master: Path, slave: Path) -> None:
    """Every log file that the slave has is the master's to the byte, and so are derived files.

    What is made ready ahead is zeros, and one may have made more of it; the last complete file need
    not be derived yet.
    """
    for folder in ("commitlog", "shmq/consumequeue"):
        theirs = {path.name: path for path in (master / folder).iterdir()}
        ours = {path.name: path for path in (slave / folder).iterdir()}
        for name in sorted(theirs.keys() & ours.keys()):
            if name == "floors":
                continue
            assert ours[name].read_bytes() == theirs[name].read_bytes(), f"{folder}/{name} differs"
        for name in theirs.keys() ^ ours.keys():
            path = theirs.get(name) or ours[name]
            assert path.suffix == ".cq" or not any(path.read_bytes()), f"{path} has no twin"
