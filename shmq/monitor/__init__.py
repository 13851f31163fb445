"""Watching brokers from outside: what they count, read from their shared memory.

Purpose: one reading of all brokers of a host, for the exporter, `shmq top` and `shmq check`.
Process: whoever watches.
Writes: nothing.
Reads: the brokers' control, topics and stats objects, mapped read-only; marks of their stores.
May import: shm and everything below it.
Never: asks a broker, writes to its memory, shows who a client is.
"""
