import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * Asks a real RocketMQ, through its own client and its own mqadmin, what tests/support/rocketmq.py
 * wants to know. One line of words with tabs between them in, lines out, the last of which is "end".
 * Texts that may hold anything travel as base64. Written for 4.9 and 5: `var` stands where a class
 * lives in another package there.
 */
public class Oracle {
    private static final int WAIT_S = 30;
    private static final int KEY_THREADS = 4;
    private static final int COUNT_MAX = 64;  // what a broker gives at most for one key

    private static PrintStream answers;
    private static String namesrv;
    private static DefaultMQPullConsumer consumer;
    private static DefaultMQAdminExt admin;
    private static DefaultMQProducer producer;

    public static void main(String[] arguments) throws Exception {
        answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err);  // what RocketMQ's logging says of itself
        namesrv = arguments[0];
        consumer = new DefaultMQPullConsumer("oracle-reader");
        consumer.setNamesrvAddr(namesrv);
        consumer.start();
        admin = new DefaultMQAdminExt(10_000);
        admin.setNamesrvAddr(namesrv);
        admin.setAdminExtGroup("oracle-admin");
        admin.start();
        producer = new DefaultMQProducer("oracle-producer");
        producer.setNamesrvAddr(namesrv);
        producer.start();
        answers.println("end");
        BufferedReader in =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            try {
                answer(line.split("\t", -1));
            } catch (Throwable thrown) {  // told to whoever asked
                answers.println("error\t" + base64(String.valueOf(thrown)));
                thrown.printStackTrace();
            }
            answers.println("end");
        }
        System.exit(0);
    }

    private static void answer(String[] words) throws Exception {
        switch (words[0]) {
            case "brokers" -> brokers();
            case "read" -> read(words[1]);
            case "keys" -> keys(words[1], Path.of(words[2]));
            case "unique" -> unique(words[1], Path.of(words[2]));
            case "ids" -> ids(words[1], Path.of(words[2]));
            case "progress" -> progress(words[1]);
            case "consume" -> consume(words[1], words[2], Integer.parseInt(words[3]));
            case "send" -> send(words[1], words[2], Integer.parseInt(words[3]), words[4],
                Integer.parseInt(words[5]));
            case "mqadmin" -> mqadmin(Arrays.copyOfRange(words, 1, words.length));
            default -> throw new IllegalArgumentException(words[0]);
        }
    }

    /** Who is registered. */
    private static void brokers() throws Exception {
        for (String name : admin.examineBrokerClusterInfo().getBrokerAddrTable().keySet()) {
            answers.println("broker\t" + name);
        }
    }

    /** Every message of a topic, by queue and offset. */
    private static void read(String topic) throws Exception {
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(topic)) {
            long end = consumer.maxOffset(queue);
            long at = consumer.minOffset(queue);
            answers.println(String.join("\t", "queue", queue.getBrokerName(),
                String.valueOf(queue.getQueueId()), String.valueOf(at), String.valueOf(end)));
            while (at < end) {
                var result = consumer.pull(queue, "*", at, 1000);
                if (result.getMsgFoundList() == null) {
                    throw new IllegalStateException(queue + " at " + at + ": " + result);
                }
                result.getMsgFoundList().forEach(message -> show(queue.getBrokerName(), message));
                at = result.getNextBeginOffset();
            }
        }
    }

    private static void show(String brokerName, MessageExt message) {
        String id = ((MessageClientExt) message).getOffsetMsgId();
        byte[] body = message.getBody() == null ? new byte[0] : message.getBody();
        answers.println(String.join("\t", "message", brokerName,
            String.valueOf(message.getQueueId()), String.valueOf(message.getQueueOffset()), id,
            String.valueOf(message.getFlag()), String.valueOf(message.getBornTimestamp()),
            String.valueOf(message.getStoreTimestamp()),
            Base64.getEncoder().encodeToString(body),
            base64(MessageDecoder.messageProperties2String(message.getProperties()))));
    }

    /** Where messages are that have the keys of a file, one a line, in base64. */
    private static void keys(String topic, Path file) throws Exception {
        each(file, line -> {
            String key = new String(Base64.getDecoder().decode(line), StandardCharsets.UTF_8);
            var found = new TreeMap<String, String>();
            var result = admin.queryMessage(topic, key, COUNT_MAX, 0, Long.MAX_VALUE);
            for (MessageExt message : result.getMessageList()) {
                found.put(place(message), "");
            }
            return String.join("\t", "key", line, String.join(",", found.keySet()));
        });
    }

    /** Which messages a file's unique keys name, one a line: the ids that producers know. */
    private static void unique(String topic, Path file) throws Exception {
        var client = consumer.getDefaultMQPullConsumerImpl().getRebalanceImpl().getmQClientFactory();
        each(file, id -> String.join("\t", "id", id,
            place(client.getMQAdminImpl().queryMessageByUniqKey(topic, id))));
    }

    /** Which messages a file's offset ids name, one a line: address of a broker, place in its log. */
    private static void ids(String topic, Path file) throws Exception {
        each(file, id -> String.join("\t", "id", id, place(admin.viewMessage(topic, id))));
    }

    private static String place(MessageExt message) {
        return message.getStoreHost().toString().replaceAll(".*:", "") + ":"
            + message.getQueueId() + ":" + message.getQueueOffset();
    }

    private interface Question {
        String ask(String line) throws Exception;
    }

    private static void each(Path file, Question question) throws Exception {
        var pool = Executors.newFixedThreadPool(KEY_THREADS);
        var futures = new java.util.ArrayList<java.util.concurrent.Future<String>>();
        for (String line : Files.readAllLines(file)) {
            futures.add(pool.submit(() -> {
                try {
                    return question.ask(line);
                } catch (Exception thrown) {
                    return String.join("\t", "missing", line, base64(thrown.toString()));
                }
            }));
        }
        for (var future : futures) {
            answers.println(future.get());
        }
        pool.shutdown();
    }

    /** How far a group has come. */
    private static void progress(String group) throws Exception {
        var table = admin.examineConsumeStats(group).getOffsetTable();
        for (var entry : table.entrySet()) {
            MessageQueue queue = entry.getKey();
            answers.println(String.join("\t", "progress", queue.getTopic(), queue.getBrokerName(),
                String.valueOf(queue.getQueueId()),
                String.valueOf(entry.getValue().getBrokerOffset()),
                String.valueOf(entry.getValue().getConsumerOffset())));
        }
    }

    /** Go on as a member of a group until so many messages have come, or none comes any more. */
    private static void consume(String topic, String group, int count) throws Exception {
        var member = new DefaultMQPushConsumer(group);
        member.setNamesrvAddr(namesrv);
        member.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        member.subscribe(topic, "*");
        var left = new CountDownLatch(count);
        MessageListenerConcurrently listener = (messages, context) -> {
            synchronized (answers) {
                for (MessageExt message : messages) {
                    show(context.getMessageQueue().getBrokerName(), message);
                    left.countDown();
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        };
        member.registerMessageListener(listener);
        member.start();
        boolean isAll = left.await(WAIT_S, TimeUnit.SECONDS);
        // Offsets follow when the listener has returned for every message.
        var queues = member.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable();
        for (int look = 0; look < 100 * WAIT_S; look++) {
            if (queues.values().stream().allMatch(queue -> queue.getMsgCount().get() == 0)) {
                break;
            }
            Thread.sleep(10);
        }
        member.shutdown();
        answers.println("came\t" + isAll);
    }

    /** Send messages to a queue; delay level 0: at once. */
    private static void send(String topic, String brokerName, int queueId, String file,
            int delayLevel) throws Exception {
        var queue = new MessageQueue(topic, brokerName, queueId);
        for (String line : Files.readAllLines(Path.of(file))) {
            byte[] body = Base64.getDecoder().decode(line);
            var message = new Message(topic, "oracle", "oracle-key", body);
            if (delayLevel > 0) {
                message.setDelayTimeLevel(delayLevel);
            }
            var sent = producer.send(message, queue);
            answers.println(String.join("\t", "sent", sent.getSendStatus().toString(),
                String.valueOf(sent.getQueueOffset()), sent.getMsgId()));
        }
    }

    /** What mqadmin prints. */
    private static void mqadmin(String[] arguments) throws Exception {
        var printed = new ByteArrayOutputStream();
        var before = System.out;
        System.setOut(new PrintStream(printed, true, StandardCharsets.UTF_8));
        System.setProperty("rocketmq.namesrv.addr", namesrv);
        try {
            MQAdminStartup.main0(arguments, null);
        } finally {
            System.setOut(before);
        }
        answers.println("printed\t" + base64(printed.toString(StandardCharsets.UTF_8)));
    }

    private static String base64(String text) {
        return Base64.getEncoder().encodeToString(text.getBytes(StandardCharsets.UTF_8));
    }
}
