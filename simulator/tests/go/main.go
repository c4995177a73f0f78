// Drains a cluster with Couchbase's own Go client, resumes, and rolls back where it is told to.
//
// Arguments: the addresses of the nodes with commas between them, the bucket, the user. The password is in PASSWORD.
// For each line on standard input it streams from where it was to what there is, and prints one line of JSON.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/couchbase/gocbcore/v10"
	"github.com/couchbase/gocbcore/v10/memd"
)

const patience = 60 * time.Second

// position is where the client is in a vbucket.
type position struct {
	id                uint16
	uuid              gocbcore.VbUUID
	seqno, start, end uint64
}

// summary is what one pass has seen.
type summary struct {
	Vbuckets    int     `json:"vbuckets"`
	Mutations   int64   `json:"mutations"`
	Deletions   int64   `json:"deletions"`
	Expirations int64   `json:"expirations"`
	Snapshots   int64   `json:"snapshots"`
	Advanced    int64   `json:"advanced"`
	Collections int64   `json:"collections"`
	Bytes       int64   `json:"bytes"`
	Rollbacks   int64   `json:"rollbacks"`
	Disordered  int64   `json:"disordered"`
	Seconds     float64 `json:"seconds"`
	CPUSeconds  float64 `json:"cpu_seconds"`
	MaxRSS      int64   `json:"max_rss"`
}

// observer follows one stream.
type observer struct {
	at    *position
	sum   *summary
	ended chan error
}

func (o *observer) move(seqno uint64) {
	if seqno <= o.at.seqno {
		atomic.AddInt64(&o.sum.Disordered, 1)
	}
	o.at.seqno = seqno
}

func (o *observer) SnapshotMarker(m gocbcore.DcpSnapshotMarker) {
	atomic.AddInt64(&o.sum.Snapshots, 1)
	o.at.start, o.at.end = m.StartSeqNo, m.EndSeqNo
}

func (o *observer) Mutation(m gocbcore.DcpMutation) {
	atomic.AddInt64(&o.sum.Mutations, 1)
	atomic.AddInt64(&o.sum.Bytes, int64(len(m.Key)+len(m.Value)))
	o.move(m.SeqNo)
}

func (o *observer) Deletion(m gocbcore.DcpDeletion) {
	atomic.AddInt64(&o.sum.Deletions, 1)
	o.move(m.SeqNo)
}

func (o *observer) Expiration(m gocbcore.DcpExpiration) {
	atomic.AddInt64(&o.sum.Expirations, 1)
	o.move(m.SeqNo)
}

func (o *observer) SeqNoAdvanced(m gocbcore.DcpSeqNoAdvanced) {
	atomic.AddInt64(&o.sum.Advanced, 1)
	o.move(m.SeqNo)
}

func (o *observer) CreateCollection(m gocbcore.DcpCollectionCreation) { o.collections(m.SeqNo) }
func (o *observer) DeleteCollection(m gocbcore.DcpCollectionDeletion) { o.collections(m.SeqNo) }
func (o *observer) FlushCollection(m gocbcore.DcpCollectionFlush)     { o.collections(m.SeqNo) }
func (o *observer) CreateScope(m gocbcore.DcpScopeCreation)           { o.collections(m.SeqNo) }
func (o *observer) DeleteScope(m gocbcore.DcpScopeDeletion)           { o.collections(m.SeqNo) }
func (o *observer) ModifyCollection(m gocbcore.DcpCollectionModification) {
	o.collections(m.SeqNo)
}
func (o *observer) OSOSnapshot(gocbcore.DcpOSOSnapshot) {}

func (o *observer) collections(seqno uint64) {
	atomic.AddInt64(&o.sum.Collections, 1)
	o.move(seqno)
}

func (o *observer) End(_ gocbcore.DcpStreamEnd, err error) { o.ended <- err }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 4 {
		return errors.New("usage: drain ADDRESSES BUCKET USER")
	}
	config := &gocbcore.DCPAgentConfig{BucketName: os.Args[2], EnableCCCPPoller: true}
	config.SeedConfig.MemdAddrs = strings.Split(os.Args[1], ",")
	config.SecurityConfig.Auth = gocbcore.PasswordAuthProvider{Username: os.Args[3], Password: os.Getenv("PASSWORD")}
	config.IoConfig.UseCollections = true
	config.DCPConfig.UseExpiryOpcode = true
	flags := memd.DcpOpenFlagProducer | memd.DcpOpenFlagIncludeDeleteTimes
	agent, err := gocbcore.CreateDcpAgent(config, "drain", flags)
	if err != nil {
		return err
	}
	defer agent.Close()
	ready := make(chan error, 1)
	_, err = agent.WaitUntilReady(time.Now().Add(patience), gocbcore.WaitUntilReadyOptions{
		RetryStrategy: gocbcore.NewBestEffortRetryStrategy(nil),
	}, func(_ *gocbcore.WaitUntilReadyResult, err error) { ready <- err })
	if err != nil {
		return err
	}
	if err := <-ready; err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	snapshot, err := agent.ConfigSnapshot()
	if err != nil {
		return err
	}
	count, err := snapshot.NumVbuckets()
	if err != nil {
		return err
	}
	nodes, err := snapshot.NumServers()
	if err != nil {
		return err
	}
	positions := make([]position, count)
	for id := range positions {
		positions[id].id = uint16(id)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		sum, err := drain(agent, nodes, positions)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(sum); err != nil {
			return err
		}
	}
	return nil
}

// drain streams all vbuckets from where they are to what there is.
func drain(agent *gocbcore.DCPAgent, nodes int, positions []position) (*summary, error) {
	sum := &summary{}
	begin, busy := time.Now(), usage()
	ends, err := highest(agent, nodes)
	if err != nil {
		return nil, err
	}
	sum.Vbuckets = len(ends)
	var wait sync.WaitGroup
	failures := make(chan error, len(positions))
	for i := range positions {
		wait.Add(1)
		go func(at *position) {
			defer wait.Done()
			if err := follow(agent, at, ends[at.id], sum); err != nil {
				failures <- fmt.Errorf("vbucket %d: %w", at.id, err)
			}
		}(&positions[i])
	}
	wait.Wait()
	used := usage()
	sum.Seconds, sum.CPUSeconds = time.Since(begin).Seconds(), cpu(used)-cpu(busy)
	// Linux counts it in KiB.
	sum.MaxRSS = int64(used.Maxrss) * 1024
	select {
	case err := <-failures:
		return nil, err
	default:
		return sum, nil
	}
}

// usage is what this process has used so far, in all its threads.
func usage() (usage syscall.Rusage) {
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage
}

// cpu is how long it was busy, in seconds.
func cpu(usage syscall.Rusage) float64 {
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// highest asks all nodes for the last positions of their active vbuckets.
func highest(agent *gocbcore.DCPAgent, nodes int) (map[uint16]uint64, error) {
	ends := map[uint16]uint64{}
	// The client counts nodes from 1 here.
	for node := 1; node <= nodes; node++ {
		answer := make(chan error, 1)
		_, err := agent.GetVbucketSeqnos(node, memd.VbucketStateActive, gocbcore.GetVbucketSeqnoOptions{},
			func(entries []gocbcore.VbSeqNoEntry, err error) {
				for _, entry := range entries {
					ends[entry.VbID] = uint64(entry.SeqNo)
				}
				answer <- err
			})
		if err != nil {
			return nil, err
		}
		if err := <-answer; err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// follow streams one vbucket, as often as it is told to roll back.
func follow(agent *gocbcore.DCPAgent, at *position, end uint64, sum *summary) error {
	for {
		o := &observer{at: at, sum: sum, ended: make(chan error, 1)}
		opened := make(chan error, 1)
		to := end
		if to < at.seqno {
			to = at.seqno
		}
		_, err := agent.OpenStream(at.id, memd.DcpStreamAddFlagActiveOnly, at.uuid, gocbcore.SeqNo(at.seqno), gocbcore.SeqNo(to),
			gocbcore.SeqNo(at.start), gocbcore.SeqNo(at.end), o, gocbcore.OpenStreamOptions{},
			func(log []gocbcore.FailoverEntry, err error) {
				if err == nil {
					at.uuid = log[0].VbUUID
				}
				opened <- err
			})
		if err != nil {
			return err
		}
		err = <-opened
		var rollback gocbcore.DCPRollbackError
		if errors.As(err, &rollback) {
			atomic.AddInt64(&sum.Rollbacks, 1)
			at.seqno, at.start, at.end = uint64(rollback.SeqNo), uint64(rollback.SeqNo), uint64(rollback.SeqNo)
			if at.seqno == 0 {
				at.uuid = 0
			}
			continue
		}
		if err != nil {
			return err
		}
		select {
		case err := <-o.ended:
			at.start, at.end = at.seqno, at.seqno
			return err
		case <-time.After(patience):
			return errors.New("the stream does not end")
		}
	}
}
