"""The command line: `shmq VERB ...`, a client like any other.

What lives here: one file for each noun; main.py finds them when they are wanted, so that no verb
pays for another's imports. Which process: the user's. Writes: what its verbs say. Exit codes: 0
done, 1 it could not be done (one line says why), 64 the command line is wrong; fsck has its own.
"""

__all__: list[str] = []
