"""Finished segments for tests: the header is written by C, from layout.h itself."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from shmq.core import core
from shmq.shm.incarnation import Incarnation, boot_id
from shmq.shm.names import ObjectKind, ObjectName, StoreName, new_generation
from shmq.shm.segment import SHM_FOLDER, Segment, create
from tests.support.require import require_program

ROOT = Path(__file__).resolve().parents[3]
_SOURCE = r"""
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <shmq/layout.h>

static const struct { const char *name; uint64_t magic; uint32_t kind; } kinds[] = {
    {"control", SHMQ_MAGIC_CONTROL, SHMQ_KIND_CONTROL},
    {"topics", SHMQ_MAGIC_TOPICS, SHMQ_KIND_TOPICS},
    {"arena", SHMQ_MAGIC_ARENA, SHMQ_KIND_ARENA},
    {"completion", SHMQ_MAGIC_COMPLETION, SHMQ_KIND_COMPLETION},
    {"stats", SHMQ_MAGIC_STATS, SHMQ_KIND_STATS},
    {"service", SHMQ_MAGIC_INGRESS, SHMQ_KIND_INGRESS},
};

int main(int argc, char **argv)
{
    if (argc == 1) {
        printf("%u %zu %u\n", SHMQ_LAYOUT_VERSION, sizeof(struct shmq_segment_header),
               SHMQ_HOT_SLOT_MAX);
        return 0;
    }
    /* path kind number generation boot_id pid start_time uid epoch size version has_magic */
    struct shmq_segment_header header;
    memset(&header, 0, sizeof header);
    uint64_t magic = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (!strcmp(kinds[i].name, argv[2])) {
            magic = kinds[i].magic;
            header.kind = kinds[i].kind;
        }
    }
    header.number = strtoull(argv[3], NULL, 10);
    header.store_generation = strtoull(argv[4], NULL, 16);
    for (int i = 0; i < 16; i++) {
        char digits[3] = {argv[5][2 * i], argv[5][2 * i + 1], 0};
        header.boot_id[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    header.owner_pid = (uint32_t)strtoul(argv[6], NULL, 10);
    header.owner_start_time = strtoull(argv[7], NULL, 10);
    header.owner_uid = (uint32_t)strtoul(argv[8], NULL, 10);
    header.master_epoch = strtoull(argv[9], NULL, 10);
    shmq_store_relaxed(&header.size_bytes, strtoull(argv[10], NULL, 10));
    header.layout_version = (uint32_t)strtoul(argv[11], NULL, 10);
    if (argv[12][0] == '1')
        shmq_store_relaxed(&header.magic, magic);
    int fd = open(argv[1], O_RDWR);
    return fd < 0 || pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header;
}
"""


@dataclass(frozen=True)
class Finisher:
    """Writes headers as the core does."""

    program: Path

    @classmethod
    def build(cls, folder: Path) -> "Finisher":
        compiler = require_program("gcc", "gcc")
        source = folder / "finish.c"
        source.write_text(_SOURCE)
        program = folder / "finish"
        include = ROOT / "shmq" / "core" / "include"
        subprocess.run([compiler, "-std=gnu11", f"-I{include}", "-o", program, source], check=True)
        return cls(program)

    def constants(self) -> tuple[int, ...]:
        """(layout version, header size, hot slots at most) as layout.h has them."""
        out = subprocess.run([self.program], capture_output=True, text=True, check=True).stdout
        return tuple(map(int, out.split()))

    def finish(
        self,
        name: ObjectName,
        *,
        size_bytes: int,
        kind: ObjectKind | None = None,
        number: int | None = None,
        generation: str | None = None,
        boot: bytes | None = None,
        owner: Incarnation | None = None,
        version: int = core.LAYOUT_VERSION,
        has_magic: bool = True,
    ) -> None:
        """Write a right header into the object `name`, but for what the test says otherwise."""
        owner = owner or Incarnation.current()
        subprocess.run(
            [
                self.program,
                f"{SHM_FOLDER}{name}",
                kind or name.kind,
                str(name.n if number is None else number),
                generation or name.store.generation,
                (boot or boot_id()).hex(),
                str(owner.pid),
                str(owner.start_time),
                "1000",
                "7",
                str(size_bytes),
                str(version),
                "1" if has_magic else "0",
            ],
            check=True,
        )

    def make(self, name: ObjectName, *, size_bytes: int = 8192) -> Segment:
        """Create a segment and finish it."""
        segment = create(name, size_bytes=size_bytes)
        if name.kind is not ObjectKind.HOT:
            self.finish(name, size_bytes=size_bytes)
        return segment


def new_store(cluster_name: str, *, broker_name: str = "broker-a") -> StoreName:
    """A store of this boot with a fresh generation."""
    return StoreName.make(
        cluster_name=cluster_name,
        broker_name=broker_name,
        broker_id=0,
        boot_id=boot_id(),
        generation=new_generation(),
    )
