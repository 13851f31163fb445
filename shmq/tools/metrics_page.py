"""Writes docs/reference/metrics.md: every metric, from the table that exporters serve by.

Run as `python -m shmq.tools.metrics_page > docs/reference/metrics.md`. Reads shmq.metrics, writes
standard output, fails with nothing.
"""

from __future__ import annotations

from shmq.core import core
from shmq.metrics import BROKER_LABELS, METRICS, MetricKind, MetricScope

__all__ = ["metrics_page"]

_HEAD = """# Metrics

Made by `python -m shmq.tools.metrics_page` from `shmq/metrics.py`. How they are had and watched:
[monitoring](../operate/monitoring.md).

Times are in seconds, sizes in bytes. A counter begins anew with its broker's life or, where the
append thread counts, with its memory; `rate()` and `increase()` take that as the reset that it is.
What a broker says of groups and replicas is about a second old, of its disk, memory and files two,
what it counts per message is of the moment. No metric tells who a client is.

Buckets of histograms, in seconds: {bounds}.
"""
_SCOPES = {
    MetricScope.BROKER: f"""## Brokers

Labels: {", ".join(BROKER_LABELS)}. Masters and slaves. Of a broker that died, `shmq_broker_up` is
left alone, until somebody goes on with its memory.
""",
    MetricScope.MASTER: """## Masters

The same labels. A slave has the same log and shows none of these, so that sums count once.
""",
    MetricScope.QUEUE: """## Queues

The same labels. By request: `shmq-exporter --queues`.
""",
    MetricScope.HOST: """## The host and the exporter
""",
}


def metrics_page() -> str:
    """The page as Markdown."""
    bounds = ", ".join(f"{bound / 1e9:g}" for bound in core.LATENCY_BOUNDS_NS)
    parts = [_HEAD.format(bounds=bounds)]
    for scope, head in _SCOPES.items():
        parts += [head, "| metric | kind | labels | what |\n|---|---|---|---|"]
        for metric in METRICS.values():
            if metric.scope is scope:
                labels = ", ".join(metric.labels)
                if metric.kind is MetricKind.HISTOGRAM:
                    labels = "le"
                parts.append(f"| {metric.name} | {metric.kind} | {labels or '–'} | {metric.text} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
