"""`shmq pub` without a cluster."""

from __future__ import annotations

from shmq.config import BrokerConfig
from shmq.tools.cli.pub import pub


def test_a_send_waits_longer_than_its_broker_waits_for_slave_and_disk() -> None:
    """Else its outcome is unknown, where FLUSH_SLAVE_TIMEOUT would have said it."""
    timeout_s = next(option.default for option in pub.params if option.name == "timeout")
    config = BrokerConfig(store_path=None)  # type: ignore[arg-type]  # defaults only
    assert timeout_s * 1000 > config.slave_timeout_ms
    assert timeout_s * 1000 > config.sync_flush_timeout_ms
