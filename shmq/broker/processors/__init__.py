"""The broker's processors: one file for each kind of request, one table for all.

Purpose: take a request apart, ask who may, let the tables of the room do it, put the answer
    together; docs/reference/broker-requests.md is what they keep to.
Process: the broker, in the thread of its event loop.
Writes: nothing itself.
Reads: requests, field by field, each with its range.
May import: what the broker room may.
Never: keeps state of its own, waits for the disk on the loop.
"""

__all__: list[str] = []
