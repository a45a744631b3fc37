package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// profile begins to take CPU and allocation profiles of edge and gateway, for as long as the load is
// measured, and returns what waits for them. It does nothing for other systems than Nearcast, and when
// no profiles are wanted.
func (b *rawBench) profile(ctx context.Context, s rawSystem, what string) (wait func() error) {
	if b.opt.Profiles == "" || s.name != sysNearcast {
		return func() error { return nil }
	}
	kind := strings.ToLower(strings.NewReplacer(" ", "-", "/", "-", ",", "").Replace(what))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for side, host := range map[string]string{"edge": "near-1", "gateway": "fra-1"} {
		for _, p := range []struct{ name, path string }{{"cpu", "profile"}, {"allocs", "allocs"}} {
			url := fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", world.MetricsAddr, p.path, int(b.seconds.Seconds()))
			file := filepath.Join(b.opt.Profiles, fmt.Sprintf("%s-%s.%s.pprof", kind, side, p.name))
			wg.Go(func() {
				err := download(ctx, b.w.NS(host), url, file)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	return func() error {
		wg.Wait()
		return errors.Join(errs...)
	}
}

// download keeps what a URL gives, as seen from a namespace.
func download(ctx context.Context, ns *netns.NS, url, file string) error {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return ns.DialContext(ctx, network, addr)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("take a profile: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("take a profile: %s: %s", url, resp.Status)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}
