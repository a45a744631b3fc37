package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/edge"
)

func upgradeCommand() *cobra.Command {
	var dataDir string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Have the node's next process take over from the running one, without a lost connection",
		Long: `Have the node's next process take over from the running one. Put the new program in the place of the old
first. The running process starts it, hands over its ports when the new one has a snapshot and its tunnels, and
ends when its own flows have ended. If the new one does not come to serve, the old one goes on as before.`,
		Example: "  install nearcast-edge /usr/local/bin/ && nearcast-edge upgrade\n" +
			"  nearcast-edge upgrade --data-dir /srv/nearcast --timeout 2m",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			before, now, err := upgrade(ctx, dataDir)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "process %d serves; process %d ends when its flows have ended\n", now, before)
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "/var/lib/nearcast-edge", "the node's data `directory`")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long the new process may take to serve")
	return cmd
}

// upgrade asks the process that serves, and waits until another one does.
func upgrade(ctx context.Context, dataDir string) (before, now int, err error) {
	if before, err = servingPID(dataDir); err != nil {
		return 0, 0, err
	}
	if err := syscall.Kill(before, syscall.SIGHUP); err != nil {
		return 0, 0, fmt.Errorf("ask process %d to upgrade: %w", before, err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err = servingPID(dataDir); err == nil && now != before {
			return before, now, nil
		}
		select {
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("no new process serves yet; process %d goes on, and its log says why", before)
		case <-tick.C:
		}
	}
}

func servingPID(dataDir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, edge.PIDFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("no node runs on data directory %s (--data-dir)", dataDir)
	}
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s names no process", filepath.Join(dataDir, edge.PIDFile))
	}
	return pid, nil
}
