package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// explainFull is ErrNoSpace for those who can do something about it.
func (s *Store) explainFull() error {
	if len(s.cfg.Endpoints) > 0 {
		return fmt.Errorf("%w: what it holds is served on and changes are refused; make room in the etcd cluster: "+
			"compact, defragment, disarm the alarm (etcdctl compact, defrag, alarm disarm)", ErrNoSpace)
	}
	return fmt.Errorf("%w: what it holds is served on and changes are refused; it drops its history within seconds "+
		"to make room, and if it stays full the controllers need a larger --store-quota (now %d MiB)",
		ErrNoSpace, s.cfg.QuotaBytes>>20)
}

// keepRoom lets the embedded member take writes again after it was full, until ctx ends. etcd leaves that to
// an operator: compact the history, defragment the file, take the alarm back; and also after the quota was
// raised it stays closed until somebody takes the alarm back. Each member does it for itself.
func (s *Store) keepRoom(ctx context.Context, client *clientv3.Client, server *etcdserver.EtcdServer) {
	look := time.NewTicker(roomLook)
	defer look.Stop()
	var compacted int64 // the revision up to which history was dropped for room
	var told time.Time
	for {
		if ownFull(server) {
			err := s.makeRoom(ctx, client, server, &compacted)
			if err != nil && ctx.Err() == nil && time.Since(told) >= roomTell {
				told = time.Now()
				s.cfg.Log.Error("the store is full and refuses changes", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// makeRoom drops history, if any has come since compacted, and takes the member's alarm back if there is room
// then.
func (s *Store) makeRoom(ctx context.Context, client *clientv3.Client, server *etcdserver.EtcdServer,
	compacted *int64) error {
	enough := s.cfg.QuotaBytes / 10 * roomTenths
	before := server.Backend().Size()
	if now := server.KV().Rev(); before >= enough && now > *compacted {
		compactCtx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
		_, err := client.Compact(compactCtx, now, clientv3.WithCompactPhysical())
		cancel()
		// Compacted already, by another member or by the timer, is as good.
		if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			return fmt.Errorf("drop its history: %w", err)
		}
		// Not by the client: etcd's service for that wants a listener to tell.
		if err := server.Backend().Defrag(); err != nil {
			return fmt.Errorf("defragment it: %w", err)
		}
		*compacted = now
	}
	after := server.Backend().Size()
	if after >= enough {
		return fmt.Errorf("%d of %d MiB are in use, also without history: start the controllers with a larger "+
			"--store-quota", after>>20, s.cfg.QuotaBytes>>20)
	}
	disarmCtx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	_, err := client.AlarmDisarm(disarmCtx, &clientv3.AlarmMember{
		MemberID: uint64(server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE})
	if err != nil {
		return fmt.Errorf("take the alarm back: %w", err)
	}
	s.metrics.freed.Inc()
	s.cfg.Log.Warn("the store was full and takes changes again", "bytes_before", before, "bytes", after,
		"quota", s.cfg.QuotaBytes)
	return nil
}

// ownFull says whether this member's own alarm is on.
func ownFull(server *etcdserver.EtcdServer) bool {
	return full(server, func(id uint64) bool { return id == uint64(server.MemberID()) })
}

// anyFull says whether a member's alarm is on: then none takes writes.
func anyFull(server *etcdserver.EtcdServer) bool {
	return full(server, func(uint64) bool { return true })
}

func full(server *etcdserver.EtcdServer, of func(member uint64) bool) bool {
	for _, a := range server.Alarms() {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE && of(a.MemberID) {
			return true
		}
	}
	return false
}
