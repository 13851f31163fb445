"""What a scrape says that it took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric as Family

from shmq.exporter.collector import Collector
from shmq.exporter.text_page import text_page
from tests.support.clock import SteppedClock


class SlowToWrite(Collector):
    """Each family takes 7 ms to be written."""

    def __init__(self, runtime: Path, clock: SteppedClock) -> None:
        super().__init__(runtime, clock=clock)
        self._stepped = clock
        self.count = 0

    def collect(self) -> Iterator[Family]:
        for family in super().collect():
            yield family
            self._stepped.advance(ms=7)
            self.count += 1


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[SlowToWrite]:
    made = SlowToWrite(tmp_path, SteppedClock())
    yield made
    made.close()


def test_the_last_line_says_what_all_before_it_took(collector: SlowToWrite) -> None:
    page = text_page(collector.collect()).decode()
    took_ms = 7 * (collector.count - 1)
    assert took_ms > 0
    assert page.endswith(f"\nshmq_exporter_scrape_seconds {took_ms / 1000!r}\n")


def test_a_family_is_asked_for_when_those_before_it_are_written() -> None:
    written = []

    class Samples(list[object]):
        def __iter__(self) -> Iterator[object]:
            written.append(self)
            return super().__iter__()

    def families() -> Iterator[Family]:
        for number in range(3):
            assert len(written) == number
            family = Family(f"f{number}", "text", "gauge")
            family.samples = Samples()
            yield family

    text_page(families())
    assert len(written) == 3
