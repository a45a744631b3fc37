package load

import (
	"context"
	"testing"
	"time"
)

func TestRateLongAndDatagrams(t *testing.T) {
	at := startServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	rateCtx, stopRate := context.WithCancel(ctx)
	rate := &Rate{Dial: direct, Addr: at[PortHTTP], Every: 20 * time.Millisecond, Timeout: time.Minute, Size: 100}
	rateDone := make(chan struct{})
	go func() { rate.Run(rateCtx); close(rateDone) }()

	longCtx, stopLong := context.WithCancel(ctx)
	long := &Long{Dial: direct, Addr: at[PortEcho], Count: 10, Every: time.Millisecond}
	longDone := make(chan error, 1)
	go func() { longDone <- long.Run(longCtx, nil) }()

	d := &Datagrams{Dial: direct, Addr: at[PortUDP], Clients: 5, Total: 2003, Window: 4, SizeMax: 1400}
	if err := d.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if d.Sent.Load() != 2003 || d.Foreign.Load() != 0 || d.Damaged.Load() != 0 || d.Echoed.Load() < 1900 {
		t.Errorf("datagrams: %d sent, %d echoed, %d foreign, %d damaged",
			d.Sent.Load(), d.Echoed.Load(), d.Foreign.Load(), d.Damaged.Load())
	}
	for len(rate.Attempts()) == 0 || long.Messages.Load() < 10 {
		if ctx.Err() != nil {
			t.Fatal("no attempts or no messages")
		}
		time.Sleep(time.Millisecond)
	}
	stopRate()
	stopLong()
	<-rateDone
	if err := <-longDone; err != nil || long.Broken.Load() != 0 {
		t.Errorf("long: %v, %d broken: %v", err, long.Broken.Load(), long.Errors())
	}
	if f := Failed(rate.Attempts()); len(f) != 0 || By(rate.Attempts())["unit"] == 0 {
		t.Errorf("attempts: %d failed, by %v", len(f), By(rate.Attempts()))
	}
}

func TestQuantile(t *testing.T) {
	ds := []time.Duration{5, 1, 4, 2, 3}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0, 1}, {0.5, 3}, {0.99, 5}, {1, 5}} {
		if got := Quantile(ds, c.q); got != c.want {
			t.Errorf("Quantile(%v) = %v, want %v", c.q, got, c.want)
		}
	}
	if Median(nil) != 0 {
		t.Error("median of nothing")
	}
}
