"""RocketMQ's latency fault table: how long a slow broker is avoided."""

import pytest

from shmq.client.fault_table import LatencyFaultTable

MS = 1_000_000


@pytest.mark.parametrize(
    ("latency_ms", "avoid_ms"),
    [(0, 0), (49, 0), (100, 0), (549, 0), (550, 2000), (1800, 5000), (3000, 6000), (15000, 30000)],
)
def test_slow_send_has_its_broker_avoided(latency_ms: int, avoid_ms: int):
    table = LatencyFaultTable()
    assert table.update("a", latency_ms * MS, 1000) == (avoid_ms > 0)
    assert table.is_avoided("a", 1000 + avoid_ms * MS - 1) == (avoid_ms > 0)
    assert not table.is_avoided("a", 1000 + avoid_ms * MS)
    assert not table.is_avoided("b", 1000)


def test_quick_send_forgives():
    table = LatencyFaultTable()
    table.update("a", 600 * MS, 0)
    assert table.next_change_ns(1) == 2000 * MS
    assert table.update("a", MS, 1)
    assert not table.is_avoided("a", 1)
    assert table.next_change_ns(1) is None
