"""What requests ask for and what responses answer: RocketMQ's numbers, and ours from 9000 on.

The numbers are those of RocketMQ 5 (RequestCode.java, ResponseCode.java), so that whoever knows its
protocol, its logs or mqadmin reads ours. A code is listed once some room of shmq sends, serves or
means to serve it; numbers that only RocketMQ has any use for stay out. Ours: 9000 to 9099 for every
connection, from 9100 on for brokers; response codes of ours are the table in shmq.errors.

Pure words: nothing is written, nothing blocks, nothing fails.
"""

from enum import IntEnum, unique

__all__ = ["RequestCode", "ResponseCode", "code_name"]


@unique
class RequestCode(IntEnum):
    """What a request or a one-way command asks for."""

    # messages, where the memory is not mapped
    SEND_MESSAGE = 10
    PULL_MESSAGE = 11
    QUERY_MESSAGE = 12
    VIEW_MESSAGE_BY_ID = 33
    CONSUMER_SEND_MSG_BACK = 36
    END_TRANSACTION = 37
    SEND_MESSAGE_V2 = 310
    SEND_BATCH_MESSAGE = 320
    LITE_PULL_MESSAGE = 361
    RECALL_MESSAGE = 370
    POP_MESSAGE = 200050
    ACK_MESSAGE = 200051
    PEEK_MESSAGE = 200052
    CHANGE_MESSAGE_INVISIBLETIME = 200053
    NOTIFICATION = 200054
    BATCH_ACK_MESSAGE = 200151

    # clients and groups of a broker
    HEART_BEAT = 34
    UNREGISTER_CLIENT = 35
    GET_CONSUMER_LIST_BY_GROUP = 38
    LOCK_BATCH_MQ = 41
    UNLOCK_BATCH_MQ = 42
    CHECK_CLIENT_CONFIG = 46
    GET_CONSUMER_CONNECTION_LIST = 203
    GET_PRODUCER_CONNECTION_LIST = 204
    QUERY_TOPIC_CONSUME_BY_WHO = 300
    QUERY_ASSIGNMENT = 400

    # offsets
    QUERY_CONSUMER_OFFSET = 14
    UPDATE_CONSUMER_OFFSET = 15
    SEARCH_OFFSET_BY_TIMESTAMP = 29
    GET_MAX_OFFSET = 30
    GET_MIN_OFFSET = 31
    GET_EARLIEST_MSG_STORETIME = 32
    GET_ALL_CONSUMER_OFFSET = 43
    GET_ALL_DELAY_OFFSET = 45
    GET_CONSUME_STATS = 208
    CLONE_GROUP_OFFSET = 314
    INVOKE_BROKER_TO_RESET_OFFSET = 222

    # topics, groups and settings of a broker
    UPDATE_AND_CREATE_TOPIC = 17
    UPDATE_AND_CREATE_TOPIC_LIST = 18
    GET_ALL_TOPIC_CONFIG = 21
    UPDATE_BROKER_CONFIG = 25
    GET_BROKER_CONFIG = 26
    GET_BROKER_RUNTIME_INFO = 28
    UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
    GET_ALL_SUBSCRIPTIONGROUP_CONFIG = 201
    GET_TOPIC_STATS_INFO = 202
    DELETE_SUBSCRIPTIONGROUP = 207
    DELETE_TOPIC_IN_BROKER = 215
    GET_SYSTEM_TOPIC_LIST_FROM_BROKER = 305
    QUERY_CONSUME_QUEUE = 321
    DELETE_EXPIRED_COMMITLOG = 329
    GET_TOPIC_CONFIG = 351
    GET_SUBSCRIPTIONGROUP_CONFIG = 352

    # broker -> client, one-way or asked
    CHECK_TRANSACTION_STATE = 39
    NOTIFY_CONSUMER_IDS_CHANGED = 40
    RESET_CONSUMER_CLIENT_OFFSET = 220
    GET_CONSUMER_STATUS_FROM_CLIENT = 221
    GET_CONSUMER_RUNNING_INFO = 307
    CONSUME_MESSAGE_DIRECTLY = 309
    PUSH_REPLY_MESSAGE_TO_CLIENT = 326

    # NameServer
    PUT_KV_CONFIG = 100
    GET_KV_CONFIG = 101
    DELETE_KV_CONFIG = 102
    REGISTER_BROKER = 103
    UNREGISTER_BROKER = 104
    GET_ROUTEINFO_BY_TOPIC = 105
    GET_BROKER_CLUSTER_INFO = 106
    WIPE_WRITE_PERM_OF_BROKER = 205
    GET_ALL_TOPIC_LIST_FROM_NAMESERVER = 206
    DELETE_TOPIC_IN_NAMESRV = 216
    REGISTER_TOPIC_IN_NAMESRV = 217
    GET_KVLIST_BY_NAMESPACE = 219
    GET_TOPICS_BY_CLUSTER = 224
    QUERY_DATA_VERSION = 322
    ADD_WRITE_PERM_OF_BROKER = 327
    GET_BROKER_MEMBER_GROUP = 901
    BROKER_HEARTBEAT = 904

    # replicas and their Controller
    GET_BROKER_HA_STATUS = 907
    CONTROLLER_ALTER_SYNC_STATE_SET = 1001
    CONTROLLER_ELECT_MASTER = 1002
    CONTROLLER_REGISTER_BROKER = 1003
    CONTROLLER_GET_REPLICA_INFO = 1004
    CONTROLLER_GET_METADATA_INFO = 1005
    CONTROLLER_GET_SYNC_STATE_DATA = 1006
    GET_BROKER_EPOCH_CACHE = 1007
    NOTIFY_BROKER_ROLE_CHANGED = 1008
    UPDATE_CONTROLLER_CONFIG = 1009
    GET_CONTROLLER_CONFIG = 1010
    CLEAN_BROKER_DATA = 1011
    CONTROLLER_GET_NEXT_BROKER_ID = 1012
    CONTROLLER_APPLY_BROKER_ID = 1013

    # ours: every connection
    HELLO = 9000
    """The first frame of a connection, from the side that connected."""
    GO_AWAY = 9001
    """The last frame of a connection, from the side that ends it: its remark says why."""
    GET_SUPERVISOR_STATUS = 9002
    """Of a NameServer: which brokers it watches and how they are."""
    PUT_KV_CONFIG_LIST = 9003
    """Of a NameServer: PUT_KV_CONFIG for many keys of a namespace."""
    AWAIT_ROUTE_CHANGE = 9004
    """Of a NameServer: answered when its routes are others than those that were seen."""

    # ours: brokers (docs/reference/broker-requests.md)
    ATTACH_SESSION = 9100
    """Makes a client's shared memory and passes it on."""
    RESUME_SESSION = 9101
    """Hands the memory of a session back to the successor of its broker."""
    DETACH_SESSION = 9102
    """Ends the session, drained."""
    GRANT_CHUNK = 9103
    """Makes memory for large bodies."""
    GRANT_SEND = 9104
    """Lets a session send to a topic: handles of its write queues."""
    GET_TOPIC_QUEUES = 9105
    """Handles and offsets of the read queues of a topic."""
    SUBSCRIBE_BELL = 9106
    """Rings a consumer's bell when queues have something new."""
    UNSUBSCRIBE_BELL = 9107
    """Rings it no more."""
    READ_ENTRIES = 9108
    """ConsumeQueue entries that have left memory."""
    GRANT_SOCKET = 9109
    """A socket that is readable when a bell of the session was rung: for event loops."""
    CLAIM_QUEUES = 9110
    """Takes queues for a member of a group: who claims reports their progress."""
    RELEASE_QUEUES = 9111
    """Gives them back."""
    NOTIFY_CLAIMS_REVOKED = 9112
    """Broker -> client: another has claimed the queues."""
    NOTIFY_TOPIC_CHANGED = 9113
    """Broker -> client: ask for the topic's queues again."""
    GET_REPLICA_BEGIN = 9114
    """A slave asks its master where the log of a slave begins, before it has a store."""
    ATTACH_REPLICA = 9115
    """A slave hands its control segment over, and gets what a client that maps the log gets."""
    GET_LOG_CHECKSUM = 9116
    """A slave compares its log with its master's: CRC-32 of some bytes."""
    RESEND_MESSAGES = 9117
    """A slave hands over what was cut of its log: what the master lacks is appended again."""
    GET_EXPIRED_QUEUES = 9118
    """A slave asks where the queues go on of which no message is kept."""
    MERGE_CONSUMER_OFFSETS = 9119
    """A slave hands its master what consumers reported to it while there was none."""
    GET_BROKER_STATUS = 9120
    """Whether a broker lives and how far it is."""


@unique
class ResponseCode(IntEnum):
    """What a response answers."""

    SUCCESS = 0
    SYSTEM_ERROR = 1
    SYSTEM_BUSY = 2
    REQUEST_CODE_NOT_SUPPORTED = 3
    TRANSACTION_FAILED = 4

    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12
    MESSAGE_ILLEGAL = 13
    SERVICE_NOT_AVAILABLE = 14
    VERSION_NOT_SUPPORTED = 15
    NO_PERMISSION = 16
    TOPIC_NOT_EXIST = 17
    TOPIC_EXIST_ALREADY = 18
    PULL_NOT_FOUND = 19
    PULL_RETRY_IMMEDIATELY = 20
    PULL_OFFSET_MOVED = 21
    QUERY_NOT_FOUND = 22
    SUBSCRIPTION_PARSE_FAILED = 23
    SUBSCRIPTION_NOT_EXIST = 24
    SUBSCRIPTION_NOT_LATEST = 25
    SUBSCRIPTION_GROUP_NOT_EXIST = 26
    FILTER_DATA_NOT_EXIST = 27
    FILTER_DATA_NOT_LATEST = 28
    INVALID_PARAMETER = 29

    TRANSACTION_SHOULD_COMMIT = 200
    TRANSACTION_SHOULD_ROLLBACK = 201
    TRANSACTION_STATE_UNKNOW = 202
    TRANSACTION_STATE_GROUP_WRONG = 203
    CONSUMER_NOT_ONLINE = 206
    CONSUME_MSG_TIMEOUT = 207
    NO_MESSAGE = 208
    POLLING_FULL = 209
    POLLING_TIMEOUT = 210
    BROKER_NOT_EXIST = 211
    FLOW_CONTROL = 215

    CONTROLLER_FENCED_MASTER_EPOCH = 2000
    CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH = 2001
    CONTROLLER_INVALID_MASTER = 2002
    CONTROLLER_INVALID_REPLICAS = 2003
    CONTROLLER_MASTER_NOT_AVAILABLE = 2004
    CONTROLLER_INVALID_REQUEST = 2005
    CONTROLLER_BROKER_NOT_ALIVE = 2006
    CONTROLLER_NOT_LEADER = 2007
    CONTROLLER_BROKER_METADATA_NOT_EXIST = 2008
    CONTROLLER_INVALID_CLEAN_BROKER_METADATA = 2009
    CONTROLLER_BROKER_NEED_TO_BE_REGISTERED = 2010
    CONTROLLER_MASTER_STILL_EXIST = 2011
    CONTROLLER_ELECT_MASTER_FAILED = 2012
    CONTROLLER_ALTER_SYNC_STATE_SET_FAILED = 2013
    CONTROLLER_BROKER_ID_INVALID = 2014


def code_name(code: int) -> str:
    """A request code as logs and errors show it: its name, or the number where it has none."""
    try:
        return RequestCode(code).name
    except ValueError:
        return str(code)
