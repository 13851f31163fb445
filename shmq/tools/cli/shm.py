"""`shmq shm`: what lies in shared memory, and the removal of what nobody will come back for."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shmq.config import default_namesrv_folder
from shmq.shm.manifest import load, manifest_path
from shmq.shm.names import parse, parse_store
from shmq.shm.reaper import Finding, Verdict, reap
from shmq.tools.cli.output import (
    bytes_text,
    cluster_option,
    confirm,
    echo_json,
    echo_table,
    json_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmq.shm.names import StoreName

__all__ = ["shm"]


@click.group()
def shm() -> None:
    """Shared memory: the segments that brokers own in /dev/shm."""


@shm.command("ls")
@json_option
@cluster_option
def _ls(namesrv: str | None, is_json: bool) -> None:
    """List the memory of each store, and who wants it."""
    findings = reap(_mark_folders(namesrv), [], dry_run=True)
    stores: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        stores[str(_store_of(finding))].append(finding)
    rows = [
        (name, len(found), sum(item.size_bytes for item in found), _state(found[0]))
        for name, found in sorted(stores.items())
    ]
    if is_json:
        keys = ("store", "objects", "sizeBytes", "state")
        echo_json({"stores": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    echo_table(
        ("STORE", "OBJECTS", "SIZE", "STATE"),
        ((name, count, bytes_text(size), state) for name, count, size, state in rows),
    )


@shm.command("clean")
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A store of this host; what its manifest lists is kept for its broker. Repeatable.",
)
@click.option(
    "--forget",
    "forgotten",
    multiple=True,
    metavar="STORE",
    help="A store, as `shm ls` names it, whose folder is gone: messages of it that were never "
    "written to disk are lost. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@cluster_option
def _clean(
    namesrv: str | None,
    stores: tuple[Path, ...],
    forgotten: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    is_json: bool,
) -> None:
    """Remove what dead brokers left; what lives or may be adopted stays.

    A dead broker's memory may hold messages that its disk has not: it is removed only if its store
    is named, with --store by its folder or with --forget by its name.
    """
    folders = _mark_folders(namesrv)
    names = {_store(text) for text in forgotten}
    manifests = [manifest_path(store) for store in stores]
    brokers = {_broker(name) for name in names}
    for path in manifests:
        manifest = load(path)
        if manifest is not None:  # it speaks for earlier generations of its broker's memory, too
            brokers.add(_broker(manifest.store))
    chosen = [
        finding
        for finding in reap(folders, manifests, dry_run=True, unmarked=names)
        if finding.verdict is Verdict.WOULD_REMOVE
    ]
    unnamed = sorted(
        {str(store) for store in map(_store_of, chosen) if _broker(store) not in brokers}
    )
    if unnamed:
        raise click.UsageError(
            f"the stores of {', '.join(unnamed)} are not named: say --store FOLDER for each, or "
            "--forget NAME if what is not on its disk may be lost"
        )
    if chosen and not dry_run:
        size = bytes_text(sum(item.size_bytes for item in chosen))
        confirm(f"remove {len(chosen)} objects, {size}", yes)
        chosen = reap(folders, manifests, dry_run=False, unmarked=names)
        chosen = [item for item in chosen if item.verdict is Verdict.REMOVED]
    _tell(chosen, is_json=is_json)


def _tell(findings: Iterable[Finding], *, is_json: bool) -> None:
    rows = [(item.name, item.size_bytes, str(item.verdict), item.reason) for item in findings]
    if is_json:
        keys = ("name", "sizeBytes", "verdict", "reason")
        echo_json({"objects": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    if not rows:
        click.echo("nothing to remove")
        return
    echo_table(
        ("OBJECT", "SIZE", "VERDICT", "REASON"),
        ((name, bytes_text(size), verdict, reason) for name, size, verdict, reason in rows),
    )


def _mark_folders(namesrv: str | None) -> list[Path]:
    """Where the brokers of a cluster, living or dead, keep the marks of their memory."""
    runtime = Path(namesrv) if namesrv else default_namesrv_folder()
    return sorted(runtime.glob("broker-*.d"))


def _store(text: str) -> StoreName:
    name = parse_store(text)
    if name is None:
        raise click.UsageError(f"--forget {text}: wanted a store as `shmq shm ls` names it")
    return name


def _store_of(finding: Finding) -> StoreName:
    name = parse(finding.name)
    assert name is not None, "the reaper finds only names that parse"
    return name.store


def _broker(store: StoreName) -> tuple[str, str, int]:
    return store.cluster, store.broker, store.broker_id


def _state(finding: Finding) -> str:
    if finding.verdict is Verdict.WOULD_REMOVE:
        return "left by a dead broker: its store's next start adopts it, or another member"
    return f"{finding.verdict}: {finding.reason}"
