"""The page as Prometheus reads it: the text exposition format, version 0.0.4.

What lives here: `text_page`. prometheus_client writes the same page; at 10,000 series it takes most
of the time of a scrape for it, sorting and escaping the same labels again for each series. Here a
set of labels is spelled once, for this page and the next. Fails with nothing.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.metrics_core import Metric as Family

__all__ = ["CONTENT_TYPE", "text_page"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SPELLED_MAX = 65_536
"""Sets of labels whose text is kept for the next page."""


def text_page(families: Iterable[Family]) -> bytes:
    """These families, each with its samples, in UTF-8. One is asked for when those before it are
    written: the last may say what that took.
    """
    lines: list[str] = []
    last: Mapping[str, str] | None = None
    text = ""
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        lines.append(f"# HELP {name} {_escaped(family.documentation)}")
        lines.append(f"# TYPE {name} {family.type}")
        for sample in family.samples:
            labels = sample.labels
            if labels is not last:
                last = labels
                text = _spelled(tuple(labels.items()))
            lines.append(f"{sample.name}{text} {_number(sample.value)}")
    lines.append("")
    return "\n".join(lines).encode("utf-8", "replace")


@functools.lru_cache(maxsize=_SPELLED_MAX)
def _spelled(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(text, quote=True)}"' for name, text in labels)
    return f"{{{','.join(pairs)}}}"


def _escaped(text: str, *, quote: bool = False) -> str:
    if "\\" in text or "\n" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace("\n", "\\n")
        return text.replace('"', '\\"') if quote else text
    return text


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
