"""shmq: RocketMQ for one host, message queues in shared memory.

Public names and nothing else live here. Importing it fails in one line where the compiled core
cannot run.
"""

import sys
import sysconfig

if not sys.platform.startswith("linux"):
    raise ImportError(f"shmq runs on Linux only (futex, memfd, pidfd); this is {sys.platform}")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise ImportError("shmq needs a Python with the GIL; this one is free-threaded")

__all__: list[str] = []
