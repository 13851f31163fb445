"""What the memory, a CRC and the disk do without us."""

import argparse
import os
import time
import zlib

from measuring import ROOT, Figure, runs_of


def row_base(options: argparse.Namespace) -> dict[str, Figure]:
    """Copies and CRCs of 64 MiB that are mapped already; a file of 256 MiB written in order."""
    data, target = bytes(range(256)) * (1 << 18), memoryview(bytearray(64 << 20))

    def copy(_run: int) -> float:
        begin = time.perf_counter()
        target[:] = data
        return len(data) / (time.perf_counter() - begin) / 1e9

    def crc(_run: int) -> float:
        begin = time.perf_counter()
        zlib.crc32(data)
        return len(data) / (time.perf_counter() - begin) / 1e9

    def disk(_run: int) -> float:
        path = ROOT / ".bench-device"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            os.posix_fallocate(fd, 0, 4 * len(data))
            os.fsync(fd)
            begin = time.perf_counter()
            for place in range(0, 4 * len(data), 4 << 20):
                os.pwrite(fd, target[: 4 << 20], place)
            os.fdatasync(fd)
            return 4 * len(data) / (time.perf_counter() - begin) / 1e9
        finally:
            os.close(fd)
            path.unlink()

    copy(0)
    return {
        "memcpy 64MiB": runs_of(copy, options.runs, "GB/s", "memory"),
        "zlib.crc32 64MiB": runs_of(crc, options.runs, "GB/s", "one core"),
        "disk 256MiB in order": runs_of(disk, options.runs, "GB/s", "the disk"),
    }
