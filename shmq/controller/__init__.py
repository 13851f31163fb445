"""The Controller room: which member of a replica set is master, in which epoch, who is in sync.

Purpose: gives members their broker_id, keeps SyncStateSet and epochs, elects masters and has hung
    ones fenced. A state machine (controller.py, election.py, replicas.py) with its journal, and the
    process around it (manager.py, processor.py, host.py).
Process: shmq-controller, or a NameServer that is one too, in one thread: inputs come in one after
    the other. Of several that are given one folder one is active.
Writes: its socket; `controller.journal` and `controller.lock` in the Controller's folder (formats
    page controller_journal.md), by right of the lock.
Reads: its journal, the records and locks of masterships; the machine itself reads nothing: time,
    requests and what the host knows are passed in.
May import: remoting (response codes), store (files replaced as a whole), shm (the lock), the words,
    orjson, the standard library.
Never: decides by what its journal does not hold yet, elects while a living process holds
    mastership, kills who is no member.
"""

__all__: list[str] = []
