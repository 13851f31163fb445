"""`shmq namesrv`: list NameServers; the key-value configuration that they keep."""

from __future__ import annotations

import click

from shmq.client.admin import Admin
from shmq.tools.cli.output import cluster_option, confirm, echo_json, echo_table, json_option

__all__ = ["namesrv"]


@click.group()
def namesrv() -> None:
    """NameServers: know where topics are; each keeps a key-value configuration."""


@namesrv.command("list")
@json_option
@cluster_option
def _list(namesrv: str | None, is_json: bool) -> None:
    """List the NameServers that answer."""
    with Admin(namesrv) as admin:
        names = admin.namesrvs()
    if is_json:
        echo_json({"namesrvs": names})
        return
    echo_table(("NAMESERVER",), ((name,) for name in names))


@namesrv.group("kv")
def _kv() -> None:
    """Values by namespace and key. ORDER_TOPIC_CONFIG holds "broker:queues;..." of each topic, over
    which a key's queue is counted while a broker is down.
    """


@_kv.command("list")
@click.argument("namespace")
@json_option
@cluster_option
def _kv_list(namesrv: str | None, namespace: str, is_json: bool) -> None:
    """List the keys and values of a namespace."""
    with Admin(namesrv) as admin:
        table = admin.kv_list(namespace)
    if is_json:
        echo_json({"namespace": namespace, "table": table})
        return
    echo_table(("KEY", "VALUE"), sorted(table.items()))


@_kv.command("get")
@click.argument("namespace")
@click.argument("key")
@cluster_option
def _kv_get(namesrv: str | None, namespace: str, key: str) -> None:
    """Print a value."""
    with Admin(namesrv) as admin:
        click.echo(admin.kv_get(namespace, key))


@_kv.command("put")
@click.argument("namespace")
@click.argument("key")
@click.argument("value")
@cluster_option
def _kv_put(namesrv: str | None, namespace: str, key: str, value: str) -> None:
    """Keep a value at all NameServers."""
    with Admin(namesrv) as admin:
        names = admin.kv_put(namespace, key, value)
    click.echo(f"{namespace}/{key}: kept by {', '.join(names)}")


@_kv.command("delete")
@click.argument("namespace")
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_option
def _kv_delete(namesrv: str | None, namespace: str, key: str, yes: bool) -> None:
    """Forget a value at all NameServers."""
    with Admin(namesrv) as admin:
        confirm(f"delete {namespace}/{key}", yes)
        names = admin.kv_delete(namespace, key)
    click.echo(f"{namespace}/{key}: forgotten by {', '.join(names)}")
