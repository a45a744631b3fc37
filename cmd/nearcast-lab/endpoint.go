package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/load"
)

// endpointCommand is an application behind an accelerator, a process of its own so that a scenario
// can kill or freeze it.
func endpointCommand() *cobra.Command {
	var name, congestion string
	cmd := &cobra.Command{
		Use:    "endpoint",
		Short:  "Run a test application on its well-known ports (used inside worlds)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runEndpoint(cmd.Context(), name, congestion)
		},
	}
	cmd.Flags().StringVar(&name, "name", "endpoint", "what it calls itself in answers")
	cmd.Flags().StringVar(&congestion, "congestion", "", "TCP congestion control of its sockets; empty: the host's")
	return cmd
}

func runEndpoint(ctx context.Context, name, congestion string) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if congestion == "" {
			return nil
		}
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		}); e != nil {
			return e
		}
		if err != nil {
			return fmt.Errorf("congestion control %q: %w", congestion, err)
		}
		return nil
	}}
	lc.SetMultipathTCP(false)
	s := &load.Server{
		Name:   name,
		Listen: func(network, address string) (net.Listener, error) { return lc.Listen(ctx, network, address) },
		Packet: func(network, address string) (net.PacketConn, error) { return net.ListenPacket(network, address) },
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return serveControl(ctx, s) })
	return group.Wait()
}

// serveControl lets the scenario ask whether it is up, switch its health and read its counters.
func serveControl(ctx context.Context, s *load.Server) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		// Ready means that the last of its sockets listens.
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", load.PortHTTP), time.Second)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		conn.Close()
	})
	mux.HandleFunc("/healthy", func(http.ResponseWriter, *http.Request) { s.SetHealthy(true) })
	mux.HandleFunc("/unhealthy", func(http.ResponseWriter, *http.Request) { s.SetHealthy(false) })
	mux.HandleFunc("/counters", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"connections":%d,"requests":%d,"datagrams":%d}`,
			s.Connections.Load(), s.Requests.Load(), s.Datagrams.Load())
	})
	server := &http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", load.PortControl), Handler: mux,
		ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
