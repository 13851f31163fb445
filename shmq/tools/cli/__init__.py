"""The command line: `shmq VERB ...`, a client of the cluster like any other.

Purpose: one file for each verb; main.py finds them when they are wanted, so that no verb pays for
    another's imports. Exit codes: 0 done, 1 it could not be done (one line says why), 64 the
    command line is wrong; fsck and inspect have their own.
Process: the user's.
Writes: what its verbs say, through Admin, producers and consumers; `shm clean` removes objects.
Reads: standard input, files that are named.
May import: everything below; click.
Never: talks to a broker in a way that a program could not; guesses what cannot be undone.
"""

__all__: list[str] = []
