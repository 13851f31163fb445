import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.RandomAccessFile;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.impl.consumer.DefaultMQPushConsumerImpl;
import org.apache.rocketmq.client.impl.factory.MQClientInstance;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * A producer or a consumer of bin/bench peers in Java; bench/peers/rocketmq_java.py tells it what to
 * do by lines on standard input, and it answers each. Times are those of CLOCK_MONOTONIC, which
 * System.nanoTime() is on Linux, as Python's monotonic_ns() is.
 */
public class Peer {
    private static final int FLYING_MAX = 1000;
    private static final int FLYING_BYTES = 64 << 20;
    private static final int BATCH = 500;
    private static final int BATCH_BYTES = 3 << 20;  // the broker takes 4 MiB, heads included
    private static final int PULL = 256;
    private static final long EARLY_NS = 300_000;  // a pacer's sleep ends so long before, as Python's
    private static final int LOOKED_AT = 64;  // of so many calls of the listener, one message
    private static final int LOOK_MS = 5;
    private static final int SETTLE_MS = 50;
    private static final int TIMEOUT_MS = 60_000;
    private static final VarHandle WORDS =
        MethodHandles.byteBufferViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

    private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

    private static PrintStream answers;

    public static void main(String[] arguments) throws Exception {
        answers = new PrintStream(System.out, true);
        System.setOut(System.err);  // what the client says of itself
        BufferedReader orders = new BufferedReader(new InputStreamReader(System.in));
        if (arguments[0].equals("produce")) {
            produce(orders, arguments[1], arguments[2]);
        } else {
            consume(orders, arguments[1], arguments[2], arguments[3],
                Integer.parseInt(arguments[4]));
        }
        System.exit(0);  // the client's threads do not end by themselves
    }

    // ---- producer -------------------------------------------------------------------------------

    private static void produce(BufferedReader orders, String namesrv, String topic)
            throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("producers");
        producer.setNamesrvAddr(namesrv);
        producer.setSendMsgTimeout(TIMEOUT_MS);
        producer.setMqClientApiTimeout(TIMEOUT_MS);
        producer.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);  // ours are one pattern
        producer.start();
        answers.println("ready");
        for (String order; (order = orders.readLine()) != null;) {
            String[] words = order.split(" ");
            int size = Integer.parseInt(words[1]);
            int count = Integer.parseInt(words[2]);
            long more = Long.parseLong(words[3]);
            byte[] body = bodyOf(size);
            Pacer pacer = new Pacer();
            long begin = System.nanoTime();
            switch (words[0]) {
                case "send":
                    for (int index = 0; index < count; index++) {
                        check(producer.send(new Message(topic, numbered(index, body))));
                    }
                    break;
                case "put":
                    fly(producer, topic, body, count, flyingOf(size), false, begin, 0, pacer);
                    break;
                case "batch":
                    batch(producer, topic, body, count);
                    break;
                case "flying":
                    fly(producer, topic, body, count, (int) more, true, begin, 0, pacer);
                    break;
                case "pace":
                    fly(producer, topic, body, count, flyingOf(size), true, begin, more, pacer);
                    break;
                default:
                    throw new IllegalArgumentException(words[0]);
            }
            answers.println(begin + " " + System.nanoTime() + pacer.said());
        }
        producer.shutdown();
    }

    /** As body_of() of peer.py. */
    private static byte[] bodyOf(int size) {
        byte[] body = new byte[size];
        for (int index = 0; index < size; index++) {
            body[index] = (byte) (1 + index % 251);
        }
        return body;
    }

    private static byte[] numbered(long number, byte[] body) {
        byte[] copy = body.clone();
        ByteBuffer.wrap(copy).order(ByteOrder.LITTLE_ENDIAN).putLong(number);
        return copy;
    }

    private static int flyingOf(int size) {
        return Math.max(8, Math.min(FLYING_MAX, FLYING_BYTES / size));
    }

    private static void batch(DefaultMQProducer producer, String topic, byte[] body, int count)
            throws Exception {
        int most = Math.max(1, Math.min(BATCH, BATCH_BYTES / body.length));
        for (int left = count; left > 0; left -= most) {
            List<Message> messages = new ArrayList<>(most);
            for (int index = 0; index < Math.min(most, left); index++) {
                messages.add(new Message(topic, body));
            }
            check(producer.send(messages));
        }
    }

    /**
     * Each without waiting, so many under way at most; with an interval, when it is due, the first
     * one an interval after the begin, and that is its number.
     */
    private static void fly(DefaultMQProducer producer, String topic, byte[] body, int count,
            int flying, boolean isNumbered, long begin, long interval, Pacer pacer)
            throws Exception {
        Semaphore room = new Semaphore(flying);
        AtomicReference<Throwable> failed = new AtomicReference<>();
        SendCallback callback = new SendCallback() {
            @Override
            public void onSuccess(SendResult result) {
                if (result.getSendStatus() != SendStatus.SEND_OK) {
                    failed.set(new IllegalStateException(result.toString()));
                }
                room.release();
            }

            @Override
            public void onException(Throwable error) {
                failed.set(error);
                room.release();
            }
        };
        for (int index = 0; index < count; index++) {
            long number = index;
            if (interval > 0) {
                number = begin + (index + 1) * interval;
                pacer.waitUntil(number);
            }
            byte[] sent = isNumbered ? numbered(number, body) : body;
            room.acquire();
            producer.send(new Message(topic, sent), callback);
        }
        room.acquire(flying);
        if (failed.get() != null) {
            throw new IllegalStateException("a send failed", failed.get());
        }
    }

    /** As Pacer of peer.py. */
    private static final class Pacer {
        private final StringBuilder late = new StringBuilder();
        private long cpu;

        void waitUntil(long due) {
            long left = due - System.nanoTime();
            if (left <= 0) {
                return;
            }
            long begin = THREADS.getCurrentThreadCpuTime();
            if (left > EARLY_NS) {
                LockSupport.parkNanos(left - EARLY_NS);
            }
            long now;
            while ((now = System.nanoTime()) < due) {
                Thread.yield();
            }
            cpu += THREADS.getCurrentThreadCpuTime() - begin;
            late.append(' ').append(now - due);
        }

        String said() {
            return " " + cpu + late;
        }
    }

    private static void check(SendResult result) {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            throw new IllegalStateException(result.toString());
        }
    }

    // ---- consumer -------------------------------------------------------------------------------

    /** What has come in this run; the listener's threads add to it. */
    private static final class Come implements MessageListenerConcurrently {
        private ByteBuffer words;
        private int at;
        private long count;
        private long calls;
        private long end;
        private boolean isRight;
        private byte[] wanted;
        private StringBuilder numbers;
        private StringBuilder ages;

        synchronized void begin(ByteBuffer board, int slot, boolean isNumbered, boolean isPaced,
                int size) {
            words = board;
            at = slot;
            count = 0;
            calls = 0;
            end = 0;
            isRight = true;
            wanted = bodyOf(size);
            numbers = isNumbered ? new StringBuilder() : null;
            ages = isPaced ? new StringBuilder() : null;
            WORDS.setVolatile(words, at, 0L);
        }

        synchronized String end() {
            return count + " " + (isRight ? 1 : 0) + " " + end + (numbers == null ? "" : numbers)
                + (ages == null ? "" : ages);
        }

        @Override
        public synchronized ConsumeConcurrentlyStatus consumeMessage(
                List<MessageExt> messages, ConsumeConcurrentlyContext context) {
            end = System.nanoTime();
            for (MessageExt message : messages) {
                byte[] body = message.getBody();
                isRight &= body.length == wanted.length;
                if (numbers != null) {
                    long number = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN).getLong();
                    numbers.append(' ').append(number);
                    if (ages != null) {
                        ages.append(' ').append(end - number);
                    }
                }
            }
            if (calls++ % LOOKED_AT == 0) {
                byte[] body = messages.get(messages.size() - 1).getBody();
                int begin = numbers == null ? 0 : Long.BYTES;
                isRight &= Arrays.equals(body, begin, body.length, wanted, begin, wanted.length);
            }
            count += messages.size();
            WORDS.setVolatile(words, at + 8, end);
            WORDS.setVolatile(words, at, count);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        }
    }

    private static void consume(BufferedReader orders, String namesrv, String topic, String group,
            int members) throws Exception {
        Come come = new Come();
        boolean isStarted = false;
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName("consumer-" + ProcessHandle.current().pid());
        consumer.setMqClientApiTimeout(TIMEOUT_MS);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setPullBatchSize(PULL);
        consumer.setConsumeMessageBatchMaxSize(PULL);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(come);
        answers.println("ready");
        for (String order; (order = orders.readLine()) != null;) {
            String[] words = order.split(" ");
            long run = Long.parseLong(words[2]);
            try (RandomAccessFile file = new RandomAccessFile(words[0], "rw")) {
                ByteBuffer board =
                    file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, file.length());
                come.begin(board, Integer.parseInt(words[1]) * 8, words[3].equals("1"),
                    words[4].equals("1"), Integer.parseInt(words[5]));
                if (!isStarted) {  // from then on messages come
                    consumer.start();
                    awaitShare(consumer, topic, members);
                    isStarted = true;
                }
                answers.println("receiving");
                while ((long) WORDS.getVolatile(board, 0) != run) {
                    Thread.sleep(LOOK_MS);
                }
            }
            answers.println(come.end());
        }
        consumer.shutdown();
    }

    /**
     * Wait until the whole group is there and this member has its final share of the queues. All
     * members see the same list then, so that no queue changes hands any more: what is being
     * consumed of one that does comes to its next owner once more. A first heartbeat that another
     * thread's was in the way of comes again after 30 s, so that it is sent anew here.
     */
    private static void awaitShare(DefaultMQPushConsumer consumer, String topic, int members)
            throws Exception {
        DefaultMQPushConsumerImpl impl = consumer.getDefaultMQPushConsumerImpl();
        MQClientInstance client = impl.getmQClientFactory();
        String group = consumer.getConsumerGroup();
        List<String> ids = List.of();
        Set<MessageQueue> held = Set.of();
        long deadline = System.nanoTime() + TIMEOUT_MS * 1_000_000L;
        while (System.nanoTime() < deadline) {
            ids = client.findConsumerIdList(topic, group);
            if (ids == null || !ids.contains(client.getClientId())) {
                client.sendHeartbeatToAllBrokerWithLock();
            }
            Set<MessageQueue> queues = impl.getRebalanceImpl().getTopicSubscribeInfoTable().get(topic);
            if (ids != null && ids.size() == members && queues != null) {
                List<String> sortedIds = new ArrayList<>(ids);
                List<MessageQueue> sortedQueues = new ArrayList<>(queues);
                Collections.sort(sortedIds);
                Collections.sort(sortedQueues);
                List<MessageQueue> share = consumer.getAllocateMessageQueueStrategy()
                    .allocate(group, client.getClientId(), sortedQueues, sortedIds);
                held = new HashSet<>(impl.getRebalanceImpl().getProcessQueueTable().keySet());
                held.removeIf(queue -> !queue.getTopic().equals(topic));
                if (held.equals(new HashSet<>(share))) {
                    return;
                }
                client.rebalanceImmediately();
            }
            Thread.sleep(SETTLE_MS);
        }
        throw new IllegalStateException("group " + group + " not divided: " + members
            + " members wanted, there are " + ids + "; this one has " + held);
    }
}
