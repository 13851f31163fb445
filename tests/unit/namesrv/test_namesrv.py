"""A NameServer in this process, asked over its socket: registration, queries, rights, fencing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from shmq.config import NamesrvConfig
from shmq.errors import (
    ConfigError,
    FencedError,
    OwnerError,
    ShmqError,
    TopicNotExistError,
)
from shmq.namesrv.namesrv import Cluster, NameServer, load_cluster
from shmq.remoting import namesrv_requests as requests
from shmq.remoting.client import Client
from shmq.remoting.codes import RequestCode, ResponseCode
from shmq.remoting.command import Command
from shmq.remoting.namesrv_requests import BrokerAddress
from shmq.remoting.runtime_folder import (
    RuntimeFolder,
    broker_socket_name,
    namesrv_socket_name,
)
from shmq.topic import Permission, TopicConfig
from tests.support.clock import SteppedClock
from tests.unit.namesrv.conftest import until
from tests.unit.namesrv.test_supervisor import TINY, how
from tests.unit.remoting.conftest import public_path  # noqa: F401 # a fixture
from tests.unit.shm import children

VERSION = {"counter": 1, "stateVersion": 0, "timestamp": 1_700_000_000_000}
NEWER = {**VERSION, "counter": 2}


def address(name: str = "a", broker_id: int = 0, *, epoch: int = 0) -> BrokerAddress:
    return BrokerAddress(
        cluster_name="c",
        broker_name=name,
        broker_id=broker_id,
        socket_name=broker_socket_name(name, broker_id),
        master_epoch=epoch,
    )


def topics(*names: str) -> dict[str, TopicConfig]:
    return {name: TopicConfig(topic_name=name) for name in names}


class Asked(Client):
    """A client with short calls."""

    def __init__(self, folder: RuntimeFolder, name: str = "ns0") -> None:
        super().__init__(folder, namesrv_socket_name(name), role="test", timeout_s=60)

    def ask(self, command: Command) -> Command:
        return self.call(command, timeout_s=60)

    def code(self, command: Command) -> int:
        return self.invoke(command, timeout_s=60).code

    def register(self, who: BrokerAddress, *names: str) -> Command:
        response = Command(0)
        for command in requests.register_broker(who, topics(*names), VERSION):
            response = self.ask(command)
        return response

    def topics(self) -> tuple[str, ...]:
        return requests.topics_of(self.ask(requests.topic_list()))


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def folder(runtime: Path, clock: SteppedClock) -> Iterator[RuntimeFolder]:
    """The folder of a NameServer ns0 that serves."""
    config = NamesrvConfig(runtime_path=runtime, scan_broker_interval_ms=10)
    server = NameServer(config, clock=clock)
    try:
        server.start()
        with RuntimeFolder.open(runtime) as opened:
            yield opened
    finally:
        server.stop()


@pytest.fixture
def client(folder: RuntimeFolder) -> Iterator[Asked]:
    with Asked(folder) as made:
        yield made


# ---- brokers -------------------------------------------------------------------------------------


def test_registered_topics_have_routes_and_the_slave_learns_its_master(client: Asked) -> None:
    assert client.register(address(), "t", "u").ext_fields == {"masterAddr": "broker-a-0"}
    slave = client.register(address("a", 1), "t")
    assert slave.ext_fields == {"masterAddr": "broker-a-0"}
    assert client.register(address("b", 1), "t").ext_fields == {}
    route = requests.route_of(client.ask(requests.route_info("t")))
    assert [data.broker_name for data in route.queue_datas] == ["a", "b"]
    assert dict(route.broker_datas[0].broker_addrs) == {0: "broker-a-0", 1: "broker-a-1"}
    with pytest.raises(
        TopicNotExistError, match="^No topic route info in name server for the topic: none$"
    ):
        client.ask(requests.route_info("none"))


def test_registration_of_more_than_a_frame_goes_in_chunks_and_counts_as_one(
    client: Asked, folder: RuntimeFolder
) -> None:
    names = [f"{'t' * 100}{number}" for number in range(5_000)]
    commands = list(requests.register_broker(address(), topics(*names), VERSION))
    assert len(commands) > 2
    with Asked(folder) as broker:
        for command in commands[:-1]:
            broker.ask(command)
            assert client.topics() == ()
        broker.ask(commands[-1])
        assert client.topics() == tuple(sorted(names))


@pytest.mark.parametrize("fault", ["order", "version", "twice", "count", "negative"])
def test_chunks_that_do_not_belong_together_are_refused(client: Asked, fault: str) -> None:
    names = [f"{'t' * 100}{number}" for number in range(5_000)]
    commands = list(requests.register_broker(address(), topics(*names), VERSION))
    match fault:
        case "order":
            wrong = [commands[1]]
        case "version":
            newer = list(requests.register_broker(address(), topics(*names), NEWER))
            wrong = [commands[0], newer[1]]
        case "twice":
            wrong = [commands[0], commands[1], commands[1]]
        case "count":
            commands[0].ext_fields = {**commands[0].ext_fields, "chunkCount": 0}
            wrong = [commands[0]]
        case _:
            commands[0].ext_fields = {**commands[0].ext_fields, "chunkIndex": -1}
            wrong = [commands[0]]
    for command in wrong[:-1]:
        client.ask(command)
    with pytest.raises(ConfigError, match="wanted all chunks of one version, in order"):
        client.ask(wrong[-1])
    assert client.topics() == ()
    client.register(address(), "t")
    assert client.topics() == ("t",)


def test_change_of_topics_travels_alone(client: Asked) -> None:
    client.register(address(), "t", "u")

    def change(previous: dict[str, int]) -> Command:
        return requests.register_topics(
            address(), topics("v"), ["t"], previous_version=previous, data_version=NEWER
        )

    assert client.code(change(NEWER)) == ResponseCode.BROKER_NOT_EXIST
    client.ask(change(VERSION))
    assert client.topics() == ("u", "v")
    changed = client.ask(requests.query_data_version(address(), VERSION)).ext_fields["changed"]
    assert changed is True
    changed = client.ask(requests.query_data_version(address(), NEWER)).ext_fields["changed"]
    assert changed is False


def test_unknown_broker_is_told_to_register(client: Asked, folder: RuntimeFolder) -> None:
    assert client.code(requests.broker_heartbeat(address())) == ResponseCode.BROKER_NOT_EXIST
    client.register(address(), "t")
    assert client.code(requests.broker_heartbeat(address())) == ResponseCode.SUCCESS
    with Asked(folder) as other:
        assert other.code(requests.broker_heartbeat(address())) == ResponseCode.BROKER_NOT_EXIST


def test_routes_end_with_their_broker_however_it_ends(
    client: Asked, folder: RuntimeFolder, runtime: Path
) -> None:
    with Asked(folder) as leaving:
        leaving.register(address("leaves"), "t")
        leaving.register(address("closes"), "t")
        leaving.ask(requests.unregister_broker(address("leaves")))
        assert set(_cluster(client)["c"]) == {"closes"}
    until(lambda: not _cluster(client))
    how(runtime, "a", "registers")
    with subprocess.Popen(
        [*TINY, "--config", "x", "--broker", "a", "--runtime", str(runtime)],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        while "is up" not in child.stdout.readline():
            pass
        assert client.topics() == ("t",)
        child.kill()
    until(lambda: client.topics() == ())


def _cluster(client: Asked) -> dict[str, tuple[str, ...]]:
    return dict(requests.cluster_of(client.ask(requests.cluster_info())).clusters)


def test_silent_broker_expires_while_one_that_beats_stays(
    client: Asked, clock: SteppedClock
) -> None:
    for name in ("silent", "beats"):
        for command in requests.register_broker(
            address(name), topics("t"), VERSION, heartbeat_timeout_ms=1_000
        ):
            client.ask(command)

    def pass_time() -> bool:
        clock.advance(ms=20)  # less than what counts as a pause of the NameServer
        client.ask(requests.broker_heartbeat(address("beats")))
        return _cluster(client) != {"c": ("beats", "silent")}

    until(pass_time)
    assert _cluster(client) == {"c": ("beats",)}


def test_second_process_under_a_name_is_refused_and_an_old_epoch_fenced(
    client: Asked, folder: RuntimeFolder
) -> None:
    client.register(address(epoch=5), "t")
    said = children.run(
        """
        import sys, pathlib
        from shmq.errors import ShmqError
        from tests.unit.namesrv.test_namesrv import Asked, address
        from shmq.remoting.runtime_folder import RuntimeFolder
        with Asked(RuntimeFolder.open(pathlib.Path(sys.argv[1]))) as client:
            for epoch in (5, 4, 6):
                try:
                    client.register(address(epoch=epoch), "u")
                    print(client.topics())
                except ShmqError as error:
                    print(error.name, error)
        """,
        folder.path,
    ).splitlines()
    assert said[0].startswith(f"{OwnerError.name} register a:0: pid {os.getpid()} of uid")
    assert said[1].startswith(f"{FencedError.name} register a:0: master epoch 4; 5 is registered")
    assert said[2] == "('u',)"


def test_other_uid_may_ask_but_not_register(public_path: Path) -> None:  # noqa: F811
    runtime = public_path / "run"
    server = NameServer(NamesrvConfig(runtime_path=runtime))
    server.start()
    try:
        (runtime / "namesrv-ns0.sock").chmod(0o666)
        runtime.chmod(0o755)
        said = children.run_as_nobody(
            """
            import sys, pathlib
            from shmq.errors import ShmqError
            from shmq.remoting import namesrv_requests as requests
            from tests.unit.namesrv.test_namesrv import *
            with Asked(RuntimeFolder.open(pathlib.Path(sys.argv[1]))) as client:
                print(client.topics())
                for command in (
                    next(requests.register_broker(address(), topics("t"), VERSION)),
                    requests.unregister_broker(address()),
                    requests.broker_heartbeat(address()),
                    requests.query_data_version(address(), VERSION),
                    requests.register_topics(
                        address(), {}, [], previous_version=VERSION, data_version=NEWER
                    ),
                ):
                    print(client.code(command))
            """,
            runtime,
        )
    finally:
        server.stop()
    assert said.splitlines() == ["()", *["16"] * 5]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("brokerAddr", "../../etc/passwd"),
        ("brokerAddr", "/run/x.sock"),
        ("brokerAddr", "namesrv-ns0"),
        ("brokerAddr", 5),
        ("brokerName", "a/b"),
        ("brokerName", "a\nb"),
        ("brokerName", "x" * 128),
        ("clusterName", ""),
        ("brokerId", -1),
        ("brokerId", 2**31),
        ("brokerId", "0"),
        ("heartbeatTimeoutMillis", 1),
        ("heartbeatTimeoutMillis", -1),
    ],
)
def test_field_that_cannot_be_is_refused_by_its_name(
    client: Asked, field: str, value: object
) -> None:
    (command,) = requests.register_broker(address(), topics("t"), VERSION)
    command.ext_fields = {**command.ext_fields, field: value}  # type: ignore[dict-item]
    with pytest.raises(ConfigError):
        client.ask(command)
    assert client.topics() == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"topicConfigTable": [], "dataVersion": {}}',
        b'{"topicConfigTable": {"t": 5}, "dataVersion": {}}',
        b'{"topicConfigTable": {"t": {}}, "dataVersion": {}}',
        b'{"topicConfigTable": {"": {"topicName": "t"}}, "dataVersion": {}}',
        b'{"topicConfigTable": {}, "dataVersion": {"counter": "x"}}',
        b'{"topicConfigTable": {}}',
    ],
)
def test_body_that_cannot_be_is_refused(client: Asked, body: bytes) -> None:
    for code in (RequestCode.REGISTER_BROKER, RequestCode.REGISTER_TOPIC_IN_NAMESRV):
        with pytest.raises(ConfigError):
            client.ask(Command(code, address().to_fields(), body))
    assert client.topics() == ()


# ---- whoever asks, and administrators ------------------------------------------------------------


def test_cluster_and_members_are_told_as_rocketmq_does(client: Asked) -> None:
    client.register(address(), "t")
    client.register(address("a", 1), "t")
    raw = orjson.loads(client.ask(requests.cluster_info()).body)
    assert raw == {
        "brokerAddrTable": {
            "a": {
                "cluster": "c",
                "brokerName": "a",
                "brokerAddrs": {"0": "broker-a-0", "1": "broker-a-1"},
            }
        },
        "clusterAddrTable": {"c": ["a"]},
    }
    group = requests.member_group_of(client.ask(requests.broker_member_group("c", "a")))
    assert dict(group.broker_addrs) == {0: "broker-a-0", 1: "broker-a-1"}
    for cluster, name in (("other", "a"), ("c", "none")):
        empty = requests.member_group_of(client.ask(requests.broker_member_group(cluster, name)))
        assert (dict(empty.broker_addrs), empty.broker_name) == ({}, name)
    assert requests.topics_of(client.ask(requests.topics_by_cluster("c"))) == ("t",)
    assert requests.topics_of(client.ask(requests.topics_by_cluster("other"))) == ()


def test_write_permission_is_wiped_and_given_back(client: Asked) -> None:
    client.register(address(), "t", "u")

    def perm() -> Permission:
        return requests.route_of(client.ask(requests.route_info("t"))).queue_datas[0].perm

    wiped = client.ask(requests.wipe_write_perm("a")).ext_fields
    assert (wiped, perm()) == ({"wipeTopicCount": 2}, Permission.READ)
    added = client.ask(requests.add_write_perm("a")).ext_fields
    assert (added, perm()) == ({"addTopicCount": 2}, Permission.READ | Permission.WRITE)


def test_order_configuration_goes_into_the_route(client: Asked) -> None:
    client.register(address(), "t")
    client.ask(requests.put_kv_config("ORDER_TOPIC_CONFIG", "t", "a:4"))
    route = requests.route_of(client.ask(requests.route_info("t")))
    assert route.order_topic_conf == "a:4"
    value = client.ask(requests.get_kv_config("ORDER_TOPIC_CONFIG", "t")).ext_fields["value"]
    assert value == "a:4"
    listed = client.ask(requests.kv_list("ORDER_TOPIC_CONFIG")).json()
    assert listed == {"table": {"t": "a:4"}}
    client.ask(requests.delete_kv_config("ORDER_TOPIC_CONFIG", "t"))
    missing = requests.get_kv_config("ORDER_TOPIC_CONFIG", "t")
    assert client.code(missing) == ResponseCode.QUERY_NOT_FOUND
    assert requests.route_of(client.ask(requests.route_info("t"))).order_topic_conf is None


def test_nobody_is_supervised_without_a_cluster_file(client: Asked) -> None:
    assert client.ask(requests.supervisor_status()).json() == {"brokers": []}


# ---- the service ---------------------------------------------------------------------------------


def test_service_is_healthy_while_its_loop_turns_and_stops_twice(runtime: Path) -> None:
    server = NameServer(NamesrvConfig(runtime_path=runtime))
    server.start()
    assert server.is_healthy()
    until(server.is_healthy)
    server.drain(10)
    server.stop()
    server.stop()
    assert [path.name for path in runtime.iterdir()] == ["namesrv-ns0.lock"]


def test_second_instance_of_a_name_is_refused_and_leaves_nothing(
    folder: RuntimeFolder, runtime: Path
) -> None:
    second = NameServer(NamesrvConfig(runtime_path=runtime))
    with pytest.raises(OwnerError, match="listen on namesrv-ns0"):
        second.start()
    second.stop()
    with Asked(folder) as client:
        assert client.topics() == ()


# ---- fencing without supervising -----------------------------------------------------------------


def test_registered_broker_that_hangs_is_killed_and_others_are_left_alone(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = NamesrvConfig(
        runtime_path=runtime,
        fence_brokers=True,
        broker_hung_timeout_ms=800,
        probe_interval_ms=50,
    )
    server = NameServer(config)
    server.start()
    started = []
    try:
        with RuntimeFolder.open(runtime) as folder, Asked(folder) as client:
            for name in ("hangs", "lives"):
                how(runtime, name, "registers")
                tiny = [*TINY, "--config", "x", "--broker", name, "--runtime", str(runtime)]
                child = subprocess.Popen(tiny, stdout=subprocess.PIPE, text=True)
                started.append(child)
                assert child.stdout is not None
                while "is up" not in child.stdout.readline():
                    pass
            os.kill(started[0].pid, signal.SIGSTOP)
            assert started[0].wait() == -signal.SIGKILL
            until(lambda: _cluster(client) == {"c": ("lives",)})
            assert started[1].poll() is None
    finally:
        server.stop()
        for child in started:
            child.kill()
            child.communicate()
    assert f"fenced broker=broker-hangs-0 pid {started[0].pid} of uid" in caplog.text


# ---- cluster files -------------------------------------------------------------------------------


def cluster(tmp_path: Path, text: str) -> Cluster:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    return load_cluster(file, Path("/run/x"))


def test_cluster_file_names_brokers_and_how_they_are_treated(tmp_path: Path) -> None:
    found = cluster(
        tmp_path,
        """
        [namesrv]
        broker_hung_timeout_ms = 5000
        [cluster]
        crash_count_max = 7
        [broker.a]
        store_path = "a"
        [broker.a-slave]
        brokerName = "a"
        broker_id = 1
        asyncLearner = true
        """,
    )
    assert found.config.crash_count_max == 7
    assert [(b.name, b.socket_name, b.broker_id) for b in found.brokers] == [
        ("a", "broker-a-0", 0),
        ("a-slave", "broker-a-1", 1),
    ]
    file = tmp_path / "cluster.toml"
    assert found.brokers[1].command == (
        *(sys.executable, "-P", "-m", "shmq.broker", "--config", str(file)),
        *("--broker", "a-slave", "--runtime", "/run/x", "--set", "listen_port=10921", "--wait"),
    )
    assert [b.broker_name for b in found.brokers] == ["a", "a"]
    assert [b.is_async_learner for b in found.brokers] == [False, True]


def test_brokers_that_name_no_port_get_one_each_that_no_other_names(tmp_path: Path) -> None:
    found = cluster(
        tmp_path,
        "[broker.a]\n[broker.b]\nlistenPort = 10911\n[broker.c]\nlisten_port = 7\n[broker.d]",
    )
    given = [b.command[b.command.index("/run/x") + 1 :] for b in found.brokers]
    assert given == [("--set", "listen_port=10921"), (), (), ("--set", "listen_port=10931")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no \[broker.NAME\]"),
        ("[broker]", r"no \[broker.NAME\]"),
        ("[broker]\na = 1", "wanted a table"),
        ("[broker.'a/b']", "wanted a name of 1 to 64"),
        ("[broker.a]\n[brokers.b]", "brokers: no such setting; did you mean broker"),
        ("[broker.a]\n[proxy.p]", r"\[proxy\]: a NameServer starts brokers only"),
        ("[broker.a]\n[broker.b]\nbroker_name='a'", r"broker a:0 is \[broker.a\] already"),
        (
            "[broker.a]\nlisten_port = 10921\n[broker.b]\nlistenPort = 10921",
            r"\[broker.b\]: listen_port: 10921 is that of \[broker.a\] already",
        ),
        ("[broker.a]\nbroker_id = 'x'", "wanted text, number"),
        (
            "[broker.a]\nenableControllerMode = true\n[broker.b]\nbroker_name='a'\nbroker_id = 1",
            r"\[broker.b\]: enable_controller_mode: other members of a say otherwise",
        ),
        ("[broker.a]\nasyncLearner = 7", r"\[broker.a\]: asyncLearner = 7, wanted"),
        ("[broker.a]\n[cluster]\ncrash_count = 1", "did you mean crash_count_max"),
        ("[broker.a]\n[cluster]\ncrash_count_max = 0", "wanted 1 to 100"),
        ("nonsense", "not TOML"),
    ],
)
def test_cluster_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cluster(tmp_path, text)


def test_who_elects_a_member_and_whether_it_may_be_is_read_from_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[broker.a]\nasyncLearner = true\n[broker.b]\nbroker_name = 'a'\nbroker_id = 1"
    for value, is_set in (("true", True), ("false", False)):
        monkeypatch.setenv("SHMQ_ASYNC_LEARNER", value)
        monkeypatch.setenv("SHMQ_ENABLE_CONTROLLER_MODE", value)
        found = cluster(tmp_path, text).brokers
        assert [each.is_async_learner for each in found] == [is_set, is_set]
        assert [each.broker_name for each in found] == (["", ""] if is_set else ["a", "a"])
        assert ["--wait" in each.command for each in found] == [not is_set, not is_set]


def test_settings_of_a_nameserver_are_held_against_each_other() -> None:
    with pytest.raises(ConfigError, match="probe_interval_ms = 600, wanted at most 500, half of"):
        NamesrvConfig(probe_interval_ms=600, broker_hung_timeout_ms=1_000)
    with pytest.raises(ConfigError, match="namesrv_name"):
        NamesrvConfig(namesrv_name="a b")
    assert issubclass(ConfigError, ShmqError)
