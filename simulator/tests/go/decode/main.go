// Decodes recorded mutations as Couchbase's own Go client does between a socket and the observer of a stream.
//
// Arguments: a file of whole frames, all of them mutations; the seconds to run; and how far to go. `packets` reads packets and hands over what
// the client's DCP component makes of them. `observer` does what its connections do in between as well: one goroutine reads and puts each packet
// into a queue, another one takes it out, finds the stream's request by its opaque, and hands over. It prints one line of JSON.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/couchbase/gocbcore/v10"
	"github.com/couchbase/gocbcore/v10/memd"
)

// queueSize is what the client's own has, with its usual buffer of 20 MiB.
const queueSize = (20*1024*1024 + 23) / 24

// observer counts.
type observer interface {
	Mutation(m gocbcore.DcpMutation)
}

type counter struct {
	events, bytes, seqnos uint64
}

func (c *counter) Mutation(m gocbcore.DcpMutation) {
	c.events++
	c.bytes += uint64(len(m.Key) + len(m.Value))
	c.seqnos += m.SeqNo
}

// socket gives the same frames again and again, until the time is up.
type socket struct {
	frames []byte
	at     int
	until  time.Time
}

func (s *socket) Read(into []byte) (int, error) {
	if s.at == len(s.frames) {
		if time.Now().After(s.until) {
			return 0, io.EOF
		}
		s.at = 0
	}
	n := copy(into, s.frames[s.at:])
	s.at += n
	return n, nil
}

func (*socket) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 4 {
		return errors.New("usage: decode FILE SECONDS packets|observer")
	}
	frames, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	if len(frames) < 24 {
		return errors.New("the file holds no frame")
	}
	seconds, err := strconv.ParseFloat(os.Args[2], 64)
	if err != nil {
		return err
	}
	began, busy := time.Now(), cpu()
	seen := &counter{}
	conn := memd.NewConn(&socket{frames: frames, until: began.Add(time.Duration(seconds * float64(time.Second)))})
	switch os.Args[3] {
	case "packets":
		err = packets(conn, seen)
	case "observer":
		err = queued(conn, binary.BigEndian.Uint32(frames[12:]), seen)
	default:
		err = errors.New("it goes as far as packets, or observer")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"mutations":   seen.events,
		"bytes":       seen.bytes,
		"seqnos":      seen.seqnos,
		"seconds":     time.Since(began).Seconds(),
		"cpu_seconds": cpu() - busy,
	})
}

// packets decodes until there are no frames.
func packets(conn *memd.Conn, to observer) error {
	for {
		packet, err := next(conn)
		if packet == nil {
			return err
		}
		dispatch(packet, to)
		memd.ReleasePacket(packet)
	}
}

// next is none at the end.
func next(conn *memd.Conn) (*memd.Packet, error) {
	packet, _, err := conn.ReadPacket()
	if err == io.EOF {
		return nil, nil
	}
	if err == nil && packet.Command != memd.CmdDcpMutation {
		return nil, fmt.Errorf("opcode %#x is no mutation", packet.Command)
	}
	return packet, err
}

// dispatch is what dcpComponent.OpenStream does with a mutation.
func dispatch(packet *memd.Packet, to observer) {
	mutation := gocbcore.DcpMutation{
		SeqNo:        binary.BigEndian.Uint64(packet.Extras[0:]),
		RevNo:        binary.BigEndian.Uint64(packet.Extras[8:]),
		Flags:        binary.BigEndian.Uint32(packet.Extras[16:]),
		Expiry:       binary.BigEndian.Uint32(packet.Extras[20:]),
		LockTime:     binary.BigEndian.Uint32(packet.Extras[24:]),
		Cas:          packet.Cas,
		Datatype:     packet.Datatype,
		VbID:         packet.Vbucket,
		CollectionID: packet.CollectionID,
		Key:          packet.Key,
		Value:        packet.Value,
	}
	if packet.StreamIDFrame != nil {
		mutation.StreamID = packet.StreamIDFrame.StreamID
	}
	to.Mutation(mutation)
}

// response, buffer and request are like memdQResponse, dcpBuffer and memdQRequest.
type response struct {
	*memd.Packet
	remoteAddr, sourceAddr, sourceConnID string
}

type buffer struct {
	resp       *response
	packetLen  int
	isInternal bool
}

type request struct {
	processingLock sync.Mutex
	callback       func(*response)
}

// queued is like memdClient.run and memdClient.resolveRequest, without tracing, metrics and the circuit breaker. All mutations are of the stream
// with this opaque.
func queued(conn *memd.Conn, opaque uint32, to observer) error {
	queue, done := make(chan *buffer, queueSize), make(chan struct{})
	var lock sync.Mutex
	var lastActivity int64
	var shutdown, closing uint32
	received, unknown := 0, 0
	stream := &request{callback: func(resp *response) { dispatch(resp.Packet, to) }}
	requests := map[uint32]*request{opaque: stream}
	go func() {
		defer close(done)
		for q := range queue {
			if atomic.LoadUint32(&shutdown) != 0 {
				return
			}
			lock.Lock()
			req := requests[q.resp.Opaque]
			lock.Unlock()
			if atomic.LoadUint32(&closing) != 0 || req == nil {
				unknown++
				continue
			}
			req.processingLock.Lock()
			received += q.packetLen
			req.processingLock.Unlock()
			req.callback(q.resp)
			memd.ReleasePacket(q.resp.Packet)
		}
	}()
	for {
		packet, err := next(conn)
		if packet == nil {
			close(queue)
			<-done
			if err == nil && unknown > 0 {
				return fmt.Errorf("%d mutations are of another stream than the first", unknown)
			}
			return err
		}
		atomic.StoreInt64(&lastActivity, time.Now().UnixNano())
		resp := &response{Packet: packet, remoteAddr: "here", sourceAddr: "there", sourceConnID: "it"}
		queue <- &buffer{resp: resp, packetLen: 24 + len(packet.Extras) + len(packet.Key) + len(packet.Value)}
	}
}

// cpu is how long this process has been busy, in seconds, in all its threads.
func cpu() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}
