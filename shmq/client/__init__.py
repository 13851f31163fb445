"""The client room: a program's producers and consumers.

Purpose: finds brokers, holds one session with each, sends through its rings and reads its log in
    place; follows a broker through its restarts; shares queues out within a group.
Process: the user's program.
Writes: its own rings, chunk memory and consumer pages; requests on the control sockets.
Reads: everything the brokers granted, read-only.
May import: remoting, the words, the core, orjson, the standard library; numpy in batches and
    loans only.
Never: decides what is stored, keeps a lock that another process waits for, survives a fork.
"""

__all__: list[str] = []
