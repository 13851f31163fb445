"""The shm room: shared memory objects as the kernel sees them.

Purpose: names, makes, grows, attaches to, lists and removes shared memory objects; knows what the
    machine has room for. A shared memory object here is a name, an fd and a size.
Process: the broker, which owns the objects; slaves and tools, which attach; the reaper's caller.
Writes: objects' names, sizes and modes in /dev/shm; sealed memfds; `<store>/shmq/manifest.json`;
    mark files, lock and record of mastership in the runtime folder. Never a byte inside an object:
    those are the core's.
Reads: the first 128 bytes of segments (header.py); /dev/shm, /proc and the memory cgroup.
May import: the words, the core's layout, posix_ipc, orjson, the standard library.
Never: maps an object for use, passes its in-use mark to anybody, removes what it cannot place.
"""

__all__: list[str] = []
