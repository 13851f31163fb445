"""The broker room: one store served to clients, NameServers and tools.

Purpose: grants sessions and queues, keeps topics, groups, members, claims and consumer offsets, and
    tells NameServers; the messages themselves pass by it, in shared memory (store).
Process: the broker (`python -m shmq.broker`, bin/shmq-broker), one per (broker_name, broker_id),
    which is master, or waits until it is told to be (roles.py).
Writes: through the store its memory and its files (`shmq/epochs.json`, `cuts.json`); the tables of
    `config/`; `shmq/owners.json` and `shmq/broker_identity.json`; its control socket.
Reads: requests, which are hostile until they are checked; claims in clients' consumer pages, which
    are hostile too.
May import: store, remoting, shm, the words, core, orjson, the standard library.
Never: runs Python for a message (but for copies to who may not map the log), blocks its event loop
    on the disk or on a client, believes a claimed identity, imports a sibling room (client,
    namesrv, controller), numpy or grpc.
"""

__all__: list[str] = []
