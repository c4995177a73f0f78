import com.couchbase.client.dcp.Client;
import com.couchbase.client.dcp.StreamFrom;
import com.couchbase.client.dcp.StreamTo;
import com.couchbase.client.dcp.highlevel.DatabaseChangeListener;
import com.couchbase.client.dcp.highlevel.Deletion;
import com.couchbase.client.dcp.highlevel.FlowControlMode;
import com.couchbase.client.dcp.highlevel.Mutation;
import com.couchbase.client.dcp.highlevel.SnapshotMarker;
import com.couchbase.client.dcp.highlevel.StreamEnd;
import com.couchbase.client.dcp.highlevel.StreamFailure;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Drains a cluster with Couchbase's own Java client, and prints one line of JSON. Arguments: the addresses of the nodes with commas between
 * them, the bucket, the user. The password is in PASSWORD.
 */
public class Drain {
  public static void main(String[] arguments) throws Exception {
    AtomicLong mutations = new AtomicLong();
    AtomicLong deletions = new AtomicLong();
    AtomicLong bytes = new AtomicLong();
    AtomicLong ended = new AtomicLong();
    AtomicLong failures = new AtomicLong();
    Client client = Client.builder()
        .seedNodes(arguments[0].split(","))
        .bucket(arguments[1])
        .credentials(arguments[2], System.getenv("PASSWORD"))
        .collectionsAware(true)
        .flowControl(1 << 20)
        .build();
    client.listener(new DatabaseChangeListener() {
      @Override
      public void onMutation(Mutation mutation) {
        mutations.incrementAndGet();
        bytes.addAndGet(mutation.getKey().length() + mutation.getContent().length);
      }

      @Override
      public void onDeletion(Deletion deletion) {
        deletions.incrementAndGet();
      }

      @Override
      public void onFailure(StreamFailure failure) {
        failures.incrementAndGet();
        failure.getCause().printStackTrace();
      }

      @Override
      public void onStreamEnd(StreamEnd end) {
        synchronized (ended) {
          ended.incrementAndGet();
          ended.notifyAll();
        }
      }
    }, FlowControlMode.AUTOMATIC);
    client.connect().block();
    client.initializeState(StreamFrom.BEGINNING, StreamTo.NOW).block();
    long begin = System.nanoTime();
    client.startStreaming().block();
    // Vbuckets without documents have no stream. The ends come behind the documents.
    long[] streams = {0};
    client.sessionState().foreachPartition(partition -> streams[0] += partition.getEndSeqno() == 0 ? 0 : 1);
    synchronized (ended) {
      while (ended.get() < streams[0]) {
        ended.wait(60_000);
      }
    }
    double seconds = (System.nanoTime() - begin) / 1e9;
    System.out.printf("{\"vbuckets\":%d,\"mutations\":%d,\"deletions\":%d,\"bytes\":%d,\"failures\":%d,\"seconds\":%f}%n",
        client.numPartitions(), mutations.get(), deletions.get(), bytes.get(), failures.get(), seconds);
    client.disconnect().block();
  }
}
