import com.couchbase.client.dcp.Client;
import com.couchbase.client.dcp.StreamFrom;
import com.couchbase.client.dcp.StreamTo;
import com.couchbase.client.dcp.highlevel.DatabaseChangeListener;
import com.couchbase.client.dcp.highlevel.Deletion;
import com.couchbase.client.dcp.highlevel.DocumentChange;
import com.couchbase.client.dcp.highlevel.FlowControlMode;
import com.couchbase.client.dcp.highlevel.Mutation;
import com.couchbase.client.dcp.highlevel.Rollback;
import com.couchbase.client.dcp.highlevel.StreamEnd;
import com.couchbase.client.dcp.highlevel.StreamFailure;
import com.couchbase.client.dcp.state.PartitionState;
import com.couchbase.client.dcp.state.StateFormat;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;

/**
 * Drains a cluster with Couchbase's own Java client, resumes, and rolls back where it is told to. Arguments: the addresses of the nodes with
 * commas between them, the bucket, the user. The password is in PASSWORD. For each line on standard input it connects, streams from the state
 * that it has saved to what there is, saves its state, and prints one line of JSON.
 */
public class Drain implements DatabaseChangeListener {
  /** How long anything may take; nothing waits for it to pass. */
  private static final Duration PATIENCE = Duration.ofMinutes(1);

  private final AtomicLong mutations = new AtomicLong();
  private final AtomicLong deletions = new AtomicLong();
  private final AtomicLong bytes = new AtomicLong();
  private final AtomicLong rollbacks = new AtomicLong();
  private final AtomicLong disordered = new AtomicLong();
  private final AtomicLong failures = new AtomicLong();
  private final AtomicLongArray seqnos = new AtomicLongArray(1 << 16);
  private long ended;

  public static void main(String[] arguments) throws Exception {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    byte[] saved = null;
    while (lines.readLine() != null) {
      Client client = Client.builder()
          .seedNodes(arguments[0].split(","))
          .bucket(arguments[1])
          .credentials(arguments[2], System.getenv("PASSWORD"))
          .collectionsAware(true)
          .flowControl(1 << 20)
          .bootstrapTimeout(PATIENCE)
          .socketConnectTimeout(PATIENCE.toMillis())
          .build();
      Drain drain = new Drain();
      client.listener(drain, FlowControlMode.AUTOMATIC);
      client.connect().block();
      if (saved == null) {
        client.initializeState(StreamFrom.BEGINNING, StreamTo.NOW).block();
      } else {
        client.recoverState(StateFormat.JSON, saved).block();
        client.getSeqnos().collectList().block().forEach(now -> {
          PartitionState state = client.sessionState().get(now.partition());
          state.setEndSeqno(Math.max(now.seqno(), state.getStartSeqno()));
        });
      }
      drain.stream(client);
      saved = client.sessionState().export(StateFormat.JSON);
      client.disconnect().block();
    }
  }

  private void stream(Client client) throws Exception {
    // Vbuckets that have never had a document have no stream.
    long[] streams = {0};
    client.sessionState().foreachPartition((partition, state) -> {
      streams[0] += state.getEndSeqno() == 0 ? 0 : 1;
      seqnos.set(partition, state.getStartSeqno());
    });
    long begin = System.nanoTime();
    client.startStreaming().block();
    synchronized (this) {
      // The ends come behind the documents.
      while (ended < streams[0] && failures.get() == 0) {
        long left = PATIENCE.toMillis() - (System.nanoTime() - begin) / 1_000_000;
        if (left <= 0) {
          throw new IllegalStateException("only " + ended + " of " + streams[0] + " streams have ended");
        }
        wait(left);
      }
    }
    System.out.printf("{\"vbuckets\":%d,\"mutations\":%d,\"deletions\":%d,\"bytes\":%d,\"rollbacks\":%d,"
        + "\"disordered\":%d,\"failures\":%d,\"seconds\":%f}%n",
        client.numPartitions(), mutations.get(), deletions.get(), bytes.get(), rollbacks.get(),
        disordered.get(), failures.get(), (System.nanoTime() - begin) / 1e9);
  }

  private void move(DocumentChange change) {
    long seqno = change.getOffset().getSeqno();
    if (seqno <= seqnos.getAndSet(change.getVbucket(), seqno)) {
      disordered.incrementAndGet();
    }
  }

  @Override
  public void onMutation(Mutation mutation) {
    mutations.incrementAndGet();
    bytes.addAndGet(mutation.getKey().length() + mutation.getContent().length);
    move(mutation);
  }

  @Override
  public void onDeletion(Deletion deletion) {
    deletions.incrementAndGet();
    move(deletion);
  }

  @Override
  public void onRollback(Rollback rollback) {
    rollbacks.incrementAndGet();
    seqnos.set(rollback.getVbucket(), rollback.getSeqno());
    rollback.resume();
  }

  @Override
  public synchronized void onFailure(StreamFailure failure) {
    failures.incrementAndGet();
    failure.getCause().printStackTrace();
    notifyAll();
  }

  @Override
  public synchronized void onStreamEnd(StreamEnd end) {
    ended++;
    notifyAll();
  }
}
