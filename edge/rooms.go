package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// rooms are the running parts of a node. They are started in the order in which a snapshot is applied
// and stopped in the reverse, so that none loses what it stands on: the relay ends its flows while
// the backbone can still say so to the other nodes.
type rooms struct {
	log    *slog.Logger
	list   []*room
	failed chan error // 1: the first part that ended without being asked to
}

type room struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error // read after done
}

func newRooms(log *slog.Logger) *rooms { return &rooms{log: log, failed: make(chan error, 1)} }

// start runs a part until stop. A part that ends by itself brings the node down: half a node is worse
// than none, since the others rely on what it says.
func (r *rooms) start(name string, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	m := &room{name: name, stop: stop, done: make(chan struct{})}
	r.list = append(r.list, m)
	go r.run(ctx, m, run)
}

func (r *rooms) run(ctx context.Context, m *room, run func(context.Context) error) {
	defer close(m.done)
	m.err = run(ctx)
	if ctx.Err() != nil {
		return
	}
	err := m.err
	if err == nil {
		err = errors.New("ended by itself")
	}
	select {
	case r.failed <- fmt.Errorf("%s: %w", m.name, err):
	default:
	}
}

// end ends one part by its name, if it runs, and waits for it as stop does.
func (r *rooms) end(name string) {
	for i, m := range r.list {
		if m.name != name {
			continue
		}
		m.stop()
		select {
		case <-m.done:
		case <-time.After(roomStopTimeout):
			r.log.Warn("a part does not end", "part", name)
		}
		if m.err != nil && !errors.Is(m.err, context.Canceled) {
			r.log.Warn("a part ended with an error", "part", name, "error", m.err)
		}
		r.list = slices.Delete(r.list, i, i+1)
		return
	}
}

// stop ends every part, last started first, each before the next. One that does not end in time is
// reported and left behind.
func (r *rooms) stop() error {
	var errs []error
	for i := len(r.list) - 1; i >= 0; i-- {
		m := r.list[i]
		began := time.Now()
		m.stop()
		select {
		case <-m.done:
			r.log.Debug("part ended", "part", m.name, "took", time.Since(began).Round(time.Millisecond))
			if m.err != nil && !errors.Is(m.err, context.Canceled) {
				errs = append(errs, fmt.Errorf("%s: %w", m.name, m.err))
			}
		case <-time.After(roomStopTimeout):
			errs = append(errs, fmt.Errorf("%s did not end within %v", m.name, roomStopTimeout))
		}
	}
	return errors.Join(errs...)
}
