"""The tools room: what a person runs to look at a broker's memory and files, and to mend a store.

Purpose: inspect (any segment or file, field by field), fsck (check and repair a store), doctor,
    generated pages, and `shmq`, the command line of the cluster (cli/).
Process: a process of its own, started by a person or a script; ends when it has answered.
Writes: standard output and error; fsck --repair the store, under its lock; service install its
    prefix, its configuration and the system's units; shm clean removes what no process has.
Reads: segments in /dev/shm, store folders, the answers of NameServers, brokers and Controllers.
May import: everything below; psutil, click (cli/).
Never: writes shared memory, opens the lock file of a store that its own process holds.
"""

__all__: list[str] = []
