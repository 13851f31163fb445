"""Our page is prometheus_client's page: read back, it says the same."""

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from shmq.exporter.text_page import text_page

LABELS = st.dictionaries(st.sampled_from(["topic", "group", "le"]), st.text(), max_size=3)
VALUES = st.integers(0, 2**64 - 1) | st.floats(allow_nan=False) | st.booleans()


class Fixed(Collector):
    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def collect(self) -> list[Family]:
        return self.families


def read(page: bytes) -> list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]:
    return [
        (
            family.name,
            family.type,
            family.documentation,
            [(sample.name, sample.labels, float(sample.value)) for sample in family.samples],
        )
        for family in text_string_to_metric_families(page.decode())
    ]


@given(
    st.sampled_from(["counter", "gauge", "histogram"]),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"])).map(str.strip),
    st.lists(st.tuples(LABELS, VALUES), min_size=1),
)
def test_says_what_prometheus_client_says(
    kind: str, text: str, samples: list[tuple[dict[str, str], float]]
) -> None:
    family = Family("shmq_things", f"T{text}", kind)
    name = "shmq_things_total" if kind == "counter" else "shmq_things"
    for labels, value in samples:
        family.add_sample(name, labels, value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed([family]))
    assert read(text_page([family])) == read(generate_latest(registry))


def test_labels_that_are_shared_are_spelled_alike_and_those_that_are_not_are_not() -> None:
    shared = {"topic": 'a"b\\c\nd'}
    first, second = Family("shmq_a", "A", "gauge"), Family("shmq_b", "B", "gauge")
    first.add_sample("shmq_a", shared, 1)
    first.add_sample("shmq_a", {"topic": "x"}, 2)
    second.add_sample("shmq_b", shared, math.inf)
    second.add_sample("shmq_b", {}, math.nan)
    assert text_page([first, second]).decode().splitlines() == [
        "# HELP shmq_a A",
        "# TYPE shmq_a gauge",
        r'shmq_a{topic="a\"b\\c\nd"} 1',
        'shmq_a{topic="x"} 2',
        "# HELP shmq_b B",
        "# TYPE shmq_b gauge",
        r'shmq_b{topic="a\"b\\c\nd"} +Inf',
        "shmq_b NaN",
    ]
