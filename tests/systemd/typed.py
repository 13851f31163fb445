"""What is typed of each page of docs/operate, and what is to come out; what is not typed, and why.

A command that stands on a page and in neither table fails tests/style/test_operate_pages.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.services import IN_SYNC

__all__ = ["FILES", "NOT_TYPED", "PLACEHOLDERS", "TYPED", "Typed"]

_HAND = "/tmp/shmq-0"
"""The runtime folder of what root starts by hand."""
_SETTLED = f"until {IN_SYNC} && shmq check broker disk >/dev/null; do sleep 0.05; done"
_BACK = (
    "shmq ha status set | grep --quiet '^set *0 .*MASTER'"
    f" || {{ shmq ha switch set --to 0; {_SETTLED}; }};"
)
_STOPPED = "systemctl stop shmq-broker@broker-a;"
_STARTED = "systemctl start shmq-broker@broker-a"
_PID = "$(systemctl show --value --property=MainPID shmq-broker@broker-a)"


@dataclass(frozen=True)
class Typed:
    """How a command is typed."""

    says: str
    """A regular expression for what comes out of it, or is to be seen of what it started."""
    codes: tuple[int, ...] = (0,)
    """What it may exit with."""
    names: tuple[tuple[str, str], ...] = ()
    """What is filled in for words of the page, before those of PLACEHOLDERS."""
    before: str = ""
    """What has been done by then."""
    look: str = "true"
    """Shows what it started; asked until what it says fits."""
    after: str = ""
    """What is done behind it."""
    at_terminal: bool = False
    """It wants one; it is ended by q."""


_OF_SET = (("BROKER", "set"), ("broker-a", "set"), ("ID", "1"))


def _switched(says: str) -> Typed:
    return Typed(says, names=_OF_SET, before=_BACK, after=_SETTLED)


_HA = r"^set +1 +SLAVE"
_DOCTOR = Typed(r"(?m)^ok +kernel: ", (0, 1))  # it warns, of this machine's file system for one
_CLUSTER = Typed(r"(?m)^NameServers: namesrv-ns0\n(.*\n)+.* broker-a +0 +RUNNING")
_LAG = r"TOPIC +BROKER +QUEUE +MAX +CONSUMED +LAG(.*\n)+orders +broker-a +0 "
_SHOWN = Typed(r"(?m)^expiredUnreadTotal +0$(.*\n)+^aclProblem +-$")
_CLEAN = Typed(r": clean: .* 0 findings left", before=_STOPPED, after=_STARTED)
_LISTED = Typed(r"(?m)^BROKER +ID +PHASE(.*\n)+^broker-a +0 +RUNNING")
_UNIT_LOG = Typed(r"shmq-namesrv.*shmq\.namesrv registered")
_STATUS = Typed(r"(?m)^shmq-broker@broker-a.service +enabled +active \(running\)(.*\n)+^runs from")
_PAIR = f"shmq ha status -n {_HAND}"
_PAIR_SAYS = r"broker-a +0 +ASYNC_MASTER(.*\n)+broker-a +1 +SLAVE .* yes "


def _editor(*lines: str) -> str:
    """An editor that writes these."""
    text = " ".join(f"'{line}'" for line in lines)
    return (
        f"printf '%s\\n' {text} > written;"
        " printf '%s\\n' '#!/bin/sh' 'cat /root/written > \"$1\"' > editor; chmod +x editor;"
        " export SYSTEMD_EDITOR=/root/editor;"
    )


_EXPORTER = _editor(
    "[Service]", "ExecStart=", "ExecStart=/opt/shmq/bin/shmq-exporter --runtime /run/shmq --queues"
)
_EXPORTER_SOCKET = _editor("[Socket]", "ListenStream=", "ListenStream=0.0.0.0:5557")
_ACL_USERS = "id ops >/dev/null 2>&1 || useradd ops; id billing >/dev/null 2>&1 || useradd billing;"

_UNCLEAN = Typed(
    "its Controller decides what may be given up: enableElectUncleanMaster", (1,), names=_OF_SET
)

PLACEHOLDERS = {
    "GROUP": "billing",
    "TOPIC": "orders",
    "NAME": "broker-a",
    "BROKER": "broker-a",
    "KEY": "order-17",
    "ID": "$(cat /root/sent)",
    "STORE": "/var/lib/shmq/brokers/broker-a",
    "PID": _PID,
    "FOLDER": "/run/shmq",
    "FILE": "/root/page.toml",
    "VALUE": "broker-a:4",
    "N": "3",
    "/where/it/shall/be": "/root/moved",
}
"""What a person fills in, by the word of the pages."""

TYPED: dict[str, dict[str, Typed]] = {
    "at-night": {
        "shmq top": Typed("BROKER.*ROLE", at_terminal=True),
        "shmq top brokers": Typed("BROKER.*ROLE", at_terminal=True),
        "shmq top topics": Typed("TOPIC.*KEPT", at_terminal=True),
        "shmq check all": Typed(
            r"^SHMQ BROKER OK .*\n(SHMQ \w+ OK .*\n){6}SHMQ HA OK .*\nSHMQ DLQ OK "
        ),
        "shmq check lag -w 60 -c 300": Typed(r"^SHMQ LAG OK \| lag=[\d.]+ messages=\d+\n$"),
        "shmq doctor": _DOCTOR,
        "shmq cluster list": _CLUSTER,
        "shmq broker show NAME": _SHOWN,
        "shmq broker show BROKER": _SHOWN,
        "shmq ha status": Typed(r"(?m)^set +0 .*\n^set +1 "),
        "shmq ha switch BROKER": Typed("set: ", names=_OF_SET, after=_SETTLED),
        "shmq group lag GROUP": Typed(_LAG),
        "shmq group show GROUP": Typed(r"billing on broker-a: consumeEnable = True"),
        "shmq dlq ls GROUP": Typed(r"^STORED \(UTC\) +ID +TOPIC +FAILED"),
        "shmq dlq replay GROUP": Typed(r"^billing: 0 dead letters"),
        "shmq broker config get NAME": Typed(r"(?m)^file_reserved_hours +72 +72 +yes$"),
        "shmq broker config set NAME fileReservedTime=24": Typed(
            r"^broker-a: file_reserved_hours = 24, until it ends$",
            after="shmq broker config set broker-a fileReservedTime=72",
        ),
        "shmq msg find TOPIC --key KEY": Typed(r" broker-a .* order-17 +hello"),
        "shmq msg get ID": Typed(r"hello"),
        "shmq top --once": Typed(r"^BROKER +ID +ROLE(.*\n)+broker-a +0 +master"),
        "shmq top topics --once --json --sort messages": Typed(r'"topics":\[\{.*"orders"'),
        "shmq check broker": Typed(r"^SHMQ BROKER OK \| brokers=3 "),
        "shmq check services": Typed(r"^SHMQ SERVICES OK \| services=2 "),
        "shmq check disk shm memory files": Typed(r"^(SHMQ (DISK|SHM|MEMORY|FILES) OK .*\n){4}$"),
        "shmq check disk": Typed(r"^SHMQ DISK OK \| used_percent="),
        "shmq check memory": Typed(r"^SHMQ MEMORY OK \| used_percent="),
        "shmq check files": Typed(r"^SHMQ FILES OK \| used_percent="),
        "shmq check shm": Typed(r"^SHMQ SHM OK \| used_percent="),
        "shmq broker list": _LISTED,
        "shmq service status": _STATUS,
        "shmq shm ls": Typed(r"^STORE +OBJECTS +SIZE +STATE\nshmq\.DefaultCluster\.broker-a\.0\."),
        "shmq fsck STORE": _CLEAN,
        "systemctl stop shmq-broker@NAME": Typed(
            "^inactive$", look="systemctl is-active shmq-broker@broker-a", after=_STARTED
        ),
        "systemctl status shmq-exporter.socket shmq-exporter": Typed(
            r"Listen: 127.0.0.1:5557 \(Stream\)",
            (0, 3),  # 3: nobody has asked it yet
        ),
        "systemctl status shmq-namesrv shmq-controller": Typed(
            r'Status: "namesrv ns0: \d+ broker names(.*\n)+.*Status: "controller c0: active'
        ),
        "journalctl -u 'shmq-broker@*'": Typed(r"shmq\.broker master epoch="),
        "journalctl -u 'shmq-broker@*' -g 'client left'": Typed(r"client left|No entries", (0, 1)),
        "journalctl -u shmq-namesrv": _UNIT_LOG,
        "journalctl -u shmq-namesrv -u shmq-controller": Typed(
            r"shmq\.controller decided MasterElected"
        ),
        "journalctl -u shmq-exporter": Typed(r"shmq\.service ready name=exporter|No entries"),
        "systemctl cat shmq-exporter": Typed(r"(?m)^ExecStart=/opt/shmq/bin/shmq-exporter "),
        "dmesg": Typed(""),
        "mount -o remount,size=... /dev/shm": Typed(
            r" 4\.0G ", names=(("...", "4G"),), look="df --human-readable /dev/shm"
        ),
        "systemctl set-property shmq-broker@NAME MemoryMax=...": Typed(
            r"MemoryMax=3221225472",
            names=(("...", "3G"),),
            look="systemctl show --property=MemoryMax shmq-broker@broker-a",
            after="systemctl revert shmq-broker@broker-a",
        ),
    },
    "controller": {
        "shmq-controller --store /disk1/controller --runtime /run/by-hand\n"
        "shmq-broker --store /disk1/a0 --name broker-a --id 0 --runtime /run/by-hand"
        " --set enableControllerMode=true\n"
        "shmq-broker --store /disk2/a1 --name broker-a --id 1 --runtime /run/by-hand"
        " --set enableControllerMode=true": Typed(
            # One of the two is master: whichever the Controller heard of first.
            r"broker-a +1 +0 +(yes|-) +yes +yes(.*\n)+broker-a +1 +1 +(?!\1)(yes|-) +yes +yes",
            look="shmq ha sync-state -n /run/by-hand",
        ),
        "shmq ha sync-state broker-a": Typed(
            r"^BROKER +EPOCH +ID +MASTER(.*\n)+set .* yes(.*\n)+set ", names=_OF_SET
        ),
        "shmq ha elect broker-a --to 1": _switched(r"set"),
        "shmq ha clean broker-a --id 2": Typed(
            r"set",
            names=(("broker-a", "set"), ("2", "0 --yes")),  # nobody is there to be asked
            before="systemctl stop shmq-broker@set-0;",
            after=f"systemctl start shmq-broker@set-0; {_SETTLED}",
        ),
        "shmq ha status": Typed(r"set +0 +SLAVE(.*\n)+set +1 +ASYNC_MASTER"),
    },
    "doctor": {
        "shmq doctor": _DOCTOR,
        "shmq doctor --quiet --namesrv /run/shmq --store /disk2/a1": Typed(
            r"/disk2/a1", (0, 1), before="mkdir --parents /disk2/a1;"
        ),
        "mount -o remount,size=... /dev/shm": Typed(
            r" 5\.0G ", names=(("...", "5G"),), look="df --human-readable /dev/shm"
        ),
        "shmq shm clean": Typed(r"^nothing to remove$"),
        "shmq cluster list": _CLUSTER,
        "shmq ha status": Typed(r"set +\d +ASYNC_MASTER"),
    },
    "fencing": {
        "shmq-namesrv --cluster FILE": Typed(
            r"broker-a +0 +RUNNING(.*\n)+.*broker-b +0 +RUNNING",
            look=f"shmq broker list -n {_HAND}",
        ),
        "shmq service install": Typed(r"^shmq runs from /opt/shmq; systemctl restart shmq.target"),
    },
    "high-availability": {
        "shmq ha status": Typed(r"set +0 +(ASYNC_MASTER|SLAVE)"),
        "shmq ha switch broker-a --to 1": _switched("set: "),
        "shmq broker epoch broker-a": Typed(r"\d", names=_OF_SET),
        "shmq ha sync-state": Typed(r"(?m)^set +\d+ +\d+ +yes"),
        "shmq ha elect broker-a --to 1": _switched("set"),
        "shmq ha switch BROKER --to ID": _switched("set: "),
        "shmq ha switch BROKER --to ID --unclean": _UNCLEAN,
        "shmq dev --slaves 1": Typed(_PAIR_SAYS, look=_PAIR),
        "shmq-namesrv --cluster FILE": Typed(_PAIR_SAYS, look=_PAIR),
        "shmq cluster list": _CLUSTER,
        "shmq check ha": Typed(r"^SHMQ HA OK \| masters=2 "),
        "shmq doctor": _DOCTOR,
    },
    "monitoring": {
        "shmq-exporter --runtime FOLDER": Typed(
            r'shmq_broker_up\{[^}]*"broker-a"[^}]*\} 1',
            before="systemctl stop shmq-exporter.socket shmq-exporter;",
            look='python3 -c "from urllib.request import urlopen as get;'
            " print(get('http://127.0.0.1:5557/metrics').read().decode())\"",
            after="systemctl start shmq-exporter.socket",
        ),
        "systemctl edit shmq-exporter": Typed(
            "--runtime /run/shmq --queues ;",
            before=_EXPORTER,
            look="systemctl show --property=ExecStart shmq-exporter",
            after="systemctl revert shmq-exporter",
            at_terminal=True,
        ),
        "systemctl edit shmq-exporter.socket": Typed(
            r"Listen=0\.0\.0\.0:5557 \(Stream\)",
            before=_EXPORTER_SOCKET,
            look="systemctl show --property=Listen shmq-exporter.socket",
            after="systemctl revert shmq-exporter.socket",
            at_terminal=True,
        ),
        "shmq check broker --brokers N": Typed(r"^SHMQ BROKER OK \| brokers=3 "),
        "shmq check services": Typed(r"^SHMQ SERVICES OK "),
    },
    "moving-to-rocketmq": {
        "shmq fsck STORE": _CLEAN,
        "runuser -u shmq -- /opt/shmq/bin/shmq fsck STORE --repair": _CLEAN,
        "cp -r --sparse=always STORE /where/it/shall/be": Typed(
            ": clean: ", before=_STOPPED, look="shmq fsck /root/moved", after=_STARTED
        ),
    },
    "replication": {
        "shmq-broker --store /disk1/a0 --name broker-a --id 0\n"
        "shmq-broker --store /disk2/a1 --name broker-a --id 1 --set brokerRole=SLAVE": Typed(
            _PAIR_SAYS, look=_PAIR
        ),
        "shmq topic update payments -a shmq.broker.role=SYNC_MASTER": Typed(
            "payments on set: ",
            before="shmq topic create payments --broker set;",
            look="shmq topic show payments",
        ),
        "shmq-broker --store /disk2/a1 --name broker-a --id 1 --set brokerRole=SLAVE"
        " --set slaveReadEnable=true\n"
        "shmq group update GROUP --slow-broker-id 2": Typed(
            r"(?m)whichBrokerWhenConsumeSlowly = 2",
            before=f"export SHMQ_NAMESRV={_HAND};"
            " shmq-namesrv & daemons=$!; shmq-broker --store /disk1/a0 --name broker-a --id 0 &"
            ' daemons="$! $daemons";'
            " until shmq group create billing; do sleep 0.05; done;",
            look="shmq group show billing",
        ),
        "shmq fsck STORE": _CLEAN,
        "shmq ha status": Typed(r"set +\d +ASYNC_MASTER"),
        "shmq ha switch BROKER --to ID --unclean": _UNCLEAN,
    },
    "retention": {
        "shmq broker clean NAME": Typed(r"^broker-a: removes what is older than fileReservedTime"),
        "shmq broker list": _LISTED,
        "shmq broker show NAME": _SHOWN,
    },
    "rights": {
        "shmq acl check /etc/shmq/acl.toml\n"
        "shmq-broker  --config broker.toml --set acl_file=/etc/shmq/acl.toml\n"
        "shmq-namesrv --acl /etc/shmq/acl.toml": Typed(
            r"aclFile +/etc/shmq/acl.toml(.*\n)+.*aclProblem +-",
            before=f"{_ACL_USERS} groupadd --force trading; cp page.toml /etc/shmq/acl.toml;"
            f" printf 'store_path = \"store-a\"\\n' > broker.toml;",
            look=f"shmq broker show broker-a -n {_HAND}",
            after="rm /etc/shmq/acl.toml broker.toml",
        ),
        "shmq acl explain FILE --user billing --send orders": Typed(
            r'topic_perms "orders=SUB"', (1,)
        ),
        "shmq broker show NAME": _SHOWN,
    },
    "systemd": {
        "shmq service install --broker NAME": Typed(
            "shmq runs from /opt/shmq", names=(("NAME", "set-1"),)
        ),
        "shmq service install --controller": Typed("shmq runs from /opt/shmq"),
        "shmq service status": _STATUS,
        "systemctl stop shmq.target": Typed(
            "inactive",
            look="until [ $(systemctl is-active shmq-namesrv) = inactive ]; do sleep 0.05; done;"
            " systemctl is-active shmq-namesrv",
            after=f"systemctl start shmq.target; {_SETTLED}",
        ),
        "systemctl stop shmq.target 'shmq-*'": Typed(
            r"^inactive\ninactive\ninactive\n$",
            look="systemctl is-active shmq-namesrv shmq-broker@broker-a shmq-broker@set-0",
            after=f"systemctl start shmq.target; {_SETTLED}",
        ),
        "gpasswd --delete alice shmq": Typed(
            "Removing user alice from group shmq", after="shmq service allow alice"
        ),
        "systemctl edit shmq-broker@set-1": Typed(
            "/disk2/shmq",
            before=_editor("[Service]", "ReadWritePaths=/disk2/shmq"),
            look="systemctl show --property=ReadWritePaths shmq-broker@set-1",
            after="systemctl revert shmq-broker@set-1",
            at_terminal=True,
        ),
        "systemctl status shmq-broker@broker-a": Typed(
            r'Status: "broker broker-a:0: master, epoch \d+, \d+ clients, \d+ bytes not yet on '
        ),
        "journalctl --unit 'shmq*'": Typed(r"shmq\.namesrv registered broker=broker-a:0"),
        "systemctl reset-failed 'shmq*'": Typed(""),
        "systemctl start shmq.target": Typed("^active", look="systemctl is-active shmq.target"),
    },
    "topics-and-groups": {
        "shmq broker wipe-write broker-a\nshmq group lag GROUP\nshmq broker add-write broker-a": (
            Typed(
                r"routes of \d+ topics lead no producer there(.*\n)+orders +broker-a(.*\n)+"
                r"broker-a: routes of \d+ topics lead producers there again"
            )
        ),
        "shmq namesrv kv put ORDER_TOPIC_CONFIG TOPIC VALUE": Typed(
            r"^ORDER_TOPIC_CONFIG/orders: kept by namesrv-ns0",
            after="shmq namesrv kv delete ORDER_TOPIC_CONFIG orders",
        ),
    },
}
"""By page and command."""

FILES = {
    "fencing": "[namesrv]    ",
    "high-availability": "[broker.a0]",
    "rights": "# /etc/shmq/acl.toml",
}
"""The file that a page shows and its commands name: how it begins."""

_VERB = "names a verb in a sentence; typed where it stands in full"
_ROCKETMQ = "needs Apache RocketMQ: tests/interop/test_oracle.py does what it says"
_OWN_TEST = "tests/systemd/test_services.py types it"
_BACKUP = "tests/cluster/test_backup.py types it"
_OTHER = "is of a checkout, not of an installation"

NOT_TYPED: dict[str, dict[str, str]] = {
    "at-night": {
        "top -H -p $(pgrep -f 'shmq.broker.*broker-a')": "needs procps; a minimal Debian has none",
        "shmq check": "a heading",
        "systemctl status": _VERB,
        "prlimit --pid PID --nofile=...": "a container may not: tests/cluster/test_healing.py",
        "mount -o remount,rw": "its store is no mount: tests/cluster/test_healing.py",
    },
    "backup": {
        "tar -C STORE --exclude=manifest.json --exclude=prepare -cf BACKUP.tar ./config ./shmq"
        " ./commitlog": _BACKUP,
        "mkdir -p NEW": _BACKUP,
        "tar -C NEW -xf BACKUP.tar": _BACKUP,
        "shmq fsck NEW": _BACKUP,
        "shmq-broker --store NEW --name NAME": _BACKUP,
        "bin/bench scale": _OTHER,
    },
    "controller": {
        "shmq ha clean BROKER --id 0": "the same as with broker-a --id 2",
        "shmq ha clean BROKER": "forgets the set: tests/cluster/test_controller.py",
        "[namesrv]": "tests/cluster/test_controller.py runs such a file",
    },
    "doctor": {
        "shmq ha switch": _VERB,
        "swapoff -a": "would take the swap of the host",
    },
    "fencing": {
        "shmq-namesrv --fence": "how its unit runs it: tests/systemd/test_services.py has it fence",
        "kill -9": _VERB,
    },
    "high-availability": {
        "shmq ha switch": _VERB,
        "shmq ha switch BROKER": "the same as on the page at-night",
        "shmq ha clean BROKER --id ID": "the same as on the page controller",
        "bin/bench failover --how upgrade": _OTHER,
        "become master with /disk1/a0: broker broker-a:1 was master last, and its log in /disk2/a1"
        " goes on: it ends at 81920 in master epoch 2, ours": (
            "what a log says: tests/cluster/test_returning_master.py"
        ),
    },
    "monitoring": {
        "promtool test rules shmq-alerts.test.yml": "tests/cluster/test_prometheus.py runs it",
    },
    "moving-to-rocketmq": {
        "mqbroker -c /where/it/shall/be/broker.conf -n NAMESERVER:9876": _ROCKETMQ,
        "mqadmin topicStatus -t TOPIC": _ROCKETMQ,
        "mqadmin consumerProgress -g GROUP": _ROCKETMQ,
        "mqadmin clusterList": _ROCKETMQ,
        "touch abort": _ROCKETMQ,
        "shmq topic show": _VERB,
        "shmq group lag": _VERB,
        "shmq fsck STORE --repair": "root may not write in it; typed as the user of the services",
    },
    "replication": {"shmq pub": _VERB, "shmq broker show": _VERB},
    "retention": {"shmq group lag": _VERB},
    "rights": {
        "PermissionDeniedError: send to topic orders: denied to pid 4711 of uid 1003 by"
        ' /etc/shmq/acl.toml: accounts[1] (user billing): topic_perms "orders=SUB"': (
            "what a program gets: tests/cluster/test_rights.py"
        ),
    },
    "systemd": {
        "systemctl edit": _VERB,
        "pip wheel --wheel-dir wheels '.[exporter]'": _OWN_TEST,
        "python3 -m venv /opt/shmq": _OWN_TEST,
        "/opt/shmq/bin/shmq service allow alice": _OWN_TEST,
        "su --login alice --command '/opt/shmq/bin/shmq pub orders hello'": _OWN_TEST,
        "/opt/shmq/bin/shmq service install --controller --broker set-0 --broker set-1": _OWN_TEST,
        "/opt/shmq/bin/pip install --upgrade --no-index --find-links wheels 'shmq[exporter]'": (
            _OWN_TEST
        ),
        "/opt/shmq/bin/shmq service uninstall": _OWN_TEST,
    },
    "topics-and-groups": {
        "shmq topic create|update TOPIC": _VERB,
        "shmq group create|update GROUP": _VERB,
        "shmq group show": _VERB,
    },
}
"""The reason, by page and command, or first line of a block."""
