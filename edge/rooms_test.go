package edge

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
)

func TestRoomsStopInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRooms(slog.New(slog.DiscardHandler))
		var ended []string
		for _, name := range []string{"a", "b", "c"} {
			r.start(name, func(ctx context.Context) error {
				<-ctx.Done()
				ended = append(ended, name) // stop waits for each, so they never race
				return ctx.Err()
			})
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if got := strings.Join(ended, " "); got != "c b a" {
			t.Errorf("ended %s", got)
		}
	})
}

func TestRoomsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRooms(slog.New(slog.DiscardHandler))
		r.start("good", func(ctx context.Context) error { <-ctx.Done(); return nil })
		broken := errors.New("no such port")
		r.start("bad", func(context.Context) error { return broken })
		if err := <-r.failed; !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "bad: ") {
			t.Errorf("%v", err)
		}
		r.start("early", func(context.Context) error { return nil })
		if err := <-r.failed; err == nil {
			t.Error("a part that ended by itself was not noticed")
		}
		hangs := make(chan struct{})
		r.start("hangs", func(context.Context) error { <-hangs; return nil })
		if err := r.stop(); err == nil || !strings.Contains(err.Error(), "hangs did not end") {
			t.Errorf("%v", err)
		}
		close(hangs)
	})
}
