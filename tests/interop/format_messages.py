"""What the producers of test_store_format.py send, and how the test knows it again.

Numbers of one producer's messages, and with them size, place in the pool of bytes, queue and tag,
come from a seed: the producer and the test make the same table, and nothing but the seed travels.
The user's flag of a message is its number in its producer's order.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALL_MAX = 64
SIZE_MAX = 4 << 20
LARGE_MEAN = (SIZE_MAX - SMALL_MAX) / math.log(SIZE_MAX / SMALL_MAX)  # of sizes spread by their log
TAGS = ("", "new", "paid", "shipped")
POOL_SIZE = 2 * SIZE_MAX


def pool(seed: int) -> bytes:
    """The bytes of which bodies are slices."""
    return random.Random(seed).randbytes(POOL_SIZE)


@dataclass(frozen=True)
class Plan:
    """The messages of one producer."""

    producer: int
    queues: NDArray[np.int64]
    sizes: NDArray[np.int64]
    places: NDArray[np.int64]
    tags: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    def keys(self, number: int) -> tuple[str, ...]:
        """Every eighth message has keys."""
        return (f"order-{number}", f"of-{self.producer}") if number % 8 == 0 else ()

    def properties(self, number: int) -> dict[str, str]:
        """Every sixteenth has properties of its own."""
        return {"nummer": str(number), "größe": "☃ 10 m"} if number % 16 == 0 else {}


def plan(seed: int, producer: int, *, count: int, queue_count: int, body_bytes: int) -> Plan:
    """The table of one producer: `count` messages of about `body_bytes` bytes together. Most are
    small; the few from SMALL_MAX to SIZE_MAX have most of the bytes.
    """
    rng = np.random.default_rng([seed, producer])
    sizes = rng.integers(1, SMALL_MAX + 1, size=count)
    large_count = max(2, int((body_bytes - sizes.sum()) / LARGE_MEAN))
    large = rng.choice(count, size=large_count, replace=False)
    low, high = math.log2(SMALL_MAX), math.log2(SIZE_MAX)
    sizes[large] = np.exp2(rng.uniform(low, high, size=large_count)).astype(np.int64)
    sizes[large[0]], sizes[large[1]] = 1, SIZE_MAX
    return Plan(
        producer=producer,
        queues=rng.integers(queue_count, size=count),
        sizes=sizes,
        places=rng.integers(POOL_SIZE - SIZE_MAX, size=count),
        tags=rng.integers(len(TAGS), size=count),
    )
