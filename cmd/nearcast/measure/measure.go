// Package measure answers: what does a client at this place see of an application, directly and accelerated?
//
// Each round makes a new connection both ways, in turns, so that what changes on the line meanwhile meets
// both. All figures are medians.
package measure

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"time"
)

// Config says what to measure. URL, Direct and Rounds are needed.
type Config struct {
	URL    *url.URL // of the application at its accelerated address: http or https
	Direct string   // "host:port" of the same application without acceleration
	Host   string   // of the Host header and of TLS; "": the URL's
	Rounds int
	Bytes  int64 // most bytes read of an answer
	Upload int64 // bytes of a second request that each round posts; 0: none
	CA     *tls.Config
	// Timeout bounds one request.
	Timeout time.Duration
	Dial    func(ctx context.Context, address string) (net.Conn, error)
}

// Way is what one way to the application gives. What is 0 was not measured.
type Way struct {
	Address   string        `json:"address"`
	Local     string        `json:"local,omitempty"` // this side's address
	Rounds    int           `json:"rounds"`          // that succeeded
	Failed    int           `json:"failed"`
	Connect   time.Duration `json:"connect_ns"`    // TCP handshake: one round trip
	FirstByte time.Duration `json:"first_byte_ns"` // from the first packet
	Total     time.Duration `json:"total_ns"`      // until all of the answer was read
	Down      float64       `json:"down_bytes_per_second"`
	Up        float64       `json:"up_bytes_per_second"`
	Error     string        `json:"error,omitempty"` // the last one
}

// Result is both ways.
type Result struct {
	Direct      Way    `json:"direct"`
	Accelerated Way    `json:"accelerated"`
	Pays        bool   `json:"pays"`
	Verdict     string `json:"verdict"`
}

// Throughput is taken of answers of at least this size: smaller ones show the start of a connection.
const downBytesMin = 64 << 10

type sample struct {
	connect, first, total time.Duration
	down, up              float64
	local                 string
}

// Run measures.
func Run(ctx context.Context, c Config) (Result, error) {
	ways := [2]struct {
		address string
		way     Way
		samples []sample
	}{{address: c.Direct}, {address: addressOf(c.URL)}}
	for round := range c.Rounds {
		for i := range ways {
			w := &ways[(i+round)%2] // neither is always the first
			s, err := c.once(ctx, w.address)
			switch {
			case ctx.Err() != nil:
				return Result{}, ctx.Err()
			case err != nil:
				w.way.Failed++
				w.way.Error = err.Error()
			default:
				w.samples = append(w.samples, s)
			}
		}
	}
	for i := range ways {
		w := &ways[i]
		w.way.Address = w.address
		w.way.fill(w.samples)
	}
	r := Result{Direct: ways[0].way, Accelerated: ways[1].way}
	r.judge()
	return r, nil
}

func addressOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// once asks one way once, by a connection of its own for each request.
func (c *Config) once(ctx context.Context, address string) (s sample, err error) {
	if s, err = c.request(ctx, address, http.MethodGet, 0); err != nil || c.Upload == 0 {
		return s, err
	}
	up, err := c.request(ctx, address, http.MethodPost, c.Upload)
	s.up = up.up
	return s, err
}

func (c *Config) request(ctx context.Context, address, method string, upload int64) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var body io.Reader
	if upload > 0 {
		body = io.LimitReader(zeros{}, upload)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL.String(), body)
	if err != nil {
		return s, err
	}
	req.ContentLength = upload
	if c.Host != "" {
		req.Host = c.Host
	}
	config := &tls.Config{}
	if c.CA != nil {
		config = c.CA.Clone()
	}
	config.ServerName = req.URL.Hostname()
	if req.Host != "" {
		if host, _, err := net.SplitHostPort(req.Host); err == nil {
			config.ServerName = host
		} else {
			config.ServerName = req.Host
		}
	}
	var begin, connected, wrote, first time.Time
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, TLSClientConfig: config,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			begin = time.Now()
			conn, err := c.Dial(ctx, address)
			connected = time.Now()
			if err == nil {
				s.local = conn.LocalAddr().String()
			}
			return conn, err
		},
	}
	defer transport.CloseIdleConnections()
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders:         func() { wrote = time.Now() },
		GotFirstResponseByte: func() { first = time.Now() },
	}))
	resp, err := transport.RoundTrip(req) // no redirects: they would lead elsewhere
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, c.Bytes))
	end := time.Now()
	switch {
	case err != nil:
		return s, fmt.Errorf("read the answer: %w", err)
	case resp.StatusCode >= 400 && upload == 0:
		return s, fmt.Errorf("the application answers %s", resp.Status)
	case resp.StatusCode >= 400:
		return s, nil // it takes no uploads
	}
	s.connect, s.first, s.total = connected.Sub(begin), first.Sub(begin), end.Sub(begin)
	if took := end.Sub(first); n >= downBytesMin && took > 0 {
		s.down = float64(n) / took.Seconds()
	}
	if took := first.Sub(wrote); upload > 0 && took > 0 {
		s.up = float64(upload) / took.Seconds()
	}
	return s, nil
}

// zeros is a stream of zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (w *Way) fill(samples []sample) {
	w.Rounds = len(samples)
	if w.Rounds == 0 {
		return
	}
	w.Local = samples[0].local
	w.Connect = median(samples, func(s sample) time.Duration { return s.connect })
	w.FirstByte = median(samples, func(s sample) time.Duration { return s.first })
	w.Total = median(samples, func(s sample) time.Duration { return s.total })
	w.Down = median(samples, func(s sample) float64 { return s.down })
	w.Up = median(samples, func(s sample) float64 { return s.up })
}

// median returns the middle value, of an even number the smaller one.
func median[T time.Duration | float64](samples []sample, of func(sample) T) T {
	all := make([]T, len(samples))
	for i, s := range samples {
		all[i] = of(s)
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

// What a difference must at least be to be called one.
const (
	noiseTime  = 2 * time.Millisecond
	noiseShare = 0.05
)

// judge says in words what came of it.
func (r *Result) judge() {
	d, a := &r.Direct, &r.Accelerated
	if d.Rounds == 0 || a.Rounds == 0 {
		r.Verdict = "nothing to compare: one of the ways does not answer"
		return
	}
	saved := d.FirstByte - a.FirstByte
	share := float64(saved) / float64(d.FirstByte)
	down := 0.0
	if d.Down > 0 && a.Down > 0 {
		down = a.Down/d.Down - 1
	}
	sooner := saved > noiseTime && share > noiseShare
	later := -saved > noiseTime && -share > noiseShare
	r.Pays = (sooner || down > noiseShare) && !(later && down <= noiseShare) && !(sooner && down < -2*noiseShare)
	switch {
	case sooner:
		r.Verdict = fmt.Sprintf("the first byte comes %.0f%% sooner", 100*share)
	case later:
		r.Verdict = fmt.Sprintf("the first byte comes %.0f%% later", -100*share)
	default:
		r.Verdict = "the first byte comes as soon as without"
	}
	switch {
	case down > noiseShare:
		r.Verdict += fmt.Sprintf(", downloads are %.1f times as fast", 1+down)
	case down < -noiseShare:
		r.Verdict += fmt.Sprintf(", downloads are %.0f%% slower", -100*down)
	case d.Down > 0 && a.Down > 0:
		r.Verdict += ", downloads are as fast"
	}
	if r.Pays {
		r.Verdict = "acceleration pays here: " + r.Verdict
	} else {
		r.Verdict = "acceleration does not pay here: " + r.Verdict
	}
}
