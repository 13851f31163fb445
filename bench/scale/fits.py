"""How each figure grows with the number in front of its label."""

import math
import re
from typing import Any

_SIZED = re.compile(r"(?P<size>[0-9]+) (?P<what>.*)")


def fits(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By figure, of those that were taken at several sizes: a line through its medians, as
    `constant` and `per_thousand`, and the `exponent` of the last step: 1 is linear, 0 is constant;
    of a figure that is "each", 0 is linear in all.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for label, figure in figures.items():
        match = _SIZED.match(label)
        if match:
            points.setdefault(match["what"], []).append((int(match["size"]), figure["median"]))
    found = {}
    for what, taken in points.items():
        taken.sort()
        if len(taken) < 2:
            continue
        sizes, values = [size for size, _ in taken], [value for _, value in taken]
        slope, constant = _line(sizes, values)
        (small, before), (large, after) = taken[-2:]
        is_above = before > 0 and after > 0
        found[what] = {
            "constant": constant,
            "per_thousand": slope * 1000,
            "exponent": math.log(after / before) / math.log(large / small) if is_above else None,
            "sizes": sizes,
        }
    return found


def _line(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """Slope and constant of the line of least squares."""
    mean_size, mean_value = sum(sizes) / len(sizes), sum(values) / len(values)
    pairs = list(zip(sizes, values, strict=True))
    slope = sum((x - mean_size) * (y - mean_value) for x, y in pairs) / sum(
        (x - mean_size) ** 2 for x in sizes
    )
    return slope, mean_value - slope * mean_size
