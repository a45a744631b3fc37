package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) flowsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "flows", Short: "Watch flows of clients on a node", Example: "  nearcast flows tail", RunE: c.needSubcommand,
	}
	cmd.AddCommand(c.flowsTailCommand())
	return cmd
}

func (c *cli) flowsTailCommand() *cobra.Command {
	var socket, accelerator string
	cmd := &cobra.Command{
		Use: "tail", Short: "Show the flows of this machine's node as they end, and each minute while they last",
		Long: `Show the flows of this machine's node as they end, and each minute while they last, those that
were rejected among them. Run it on the node, as the user that the node runs as or as root: whoever
may open the socket in its data directory may see the flows. It works for every accelerator, with or
without flow logs.`,
		Example: "  nearcast flows tail\n  nearcast flows tail -o json | jq 'select(.action == \"REJECT\")'", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.tail(cmd.Context(), socket, accelerator) },
	}
	cmd.Flags().StringVar(&socket, "socket", "/var/lib/nearcast-edge/flows.sock", "`file` flows.sock in the node's data directory")
	cmd.Flags().StringVar(&accelerator, "accelerator", "", "only flows of this accelerator's `id`")
	return cmd
}

// tailed is what is shown of a record; see edge/flowlog.
type tailed struct {
	Accelerator string    `json:"accelerator_id"`
	Client      string    `json:"client"`
	Accelerated string    `json:"accelerated"`
	Endpoint    string    `json:"endpoint"`
	Protocol    string    `json:"protocol"`
	Packets     uint64    `json:"packets"`
	Bytes       uint64    `json:"bytes"`
	End         time.Time `json:"end"`
	Action      string    `json:"action"`
	Direction   string    `json:"direction"`
	Reason      string    `json:"reject_reason"`
	Missed      uint64    `json:"missed"`
}

func (c *cli) tail(ctx context.Context, socket, accelerator string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied: run this as the user that the node runs as, or as root", socket)
	case err != nil:
		return fmt.Errorf("no node listens at %s (%v): run this on a node with the role edge; --socket says where its"+
			" data directory is", socket, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil || !errors.Is(err, io.EOF) {
				return err
			}
			return errors.New("the node has ended")
		}
		var r tailed
		if json.Unmarshal(line, &r) != nil || accelerator != "" && r.Accelerator != accelerator && r.Missed == 0 {
			continue
		}
		if c.flags.output == "table" {
			line = []byte(r.text())
		}
		if _, err := c.stdout.Write(line); err != nil {
			return err
		}
	}
}

func (r *tailed) text() string {
	if r.Missed > 0 {
		return fmt.Sprintf("(%d batches missed: more came than could be shown)\n", r.Missed)
	}
	arrow, to := "→", r.Endpoint
	if r.Direction == "EGRESS" {
		arrow = "←"
	}
	if to == "" {
		to = "-"
	}
	return printable(fmt.Sprintf("%s %-6s %-4s %s %s %s %s %s  %d packets  %d bytes %s", r.End.Format("15:04:05"), r.Action,
		r.Protocol, r.Client, arrow, r.Accelerated, arrow, to, r.Packets, r.Bytes, r.Reason)) + "\n"
}

// flowLogs reads where flow logs go; nil: it says nothing like it.
func flowLogs(text string) *pb.FlowLogs {
	bucket, prefix, ok := strings.Cut(text, "/")
	switch {
	case text == "off":
		return &pb.FlowLogs{}
	case !ok || bucket == "" || prefix == "":
		return nil
	}
	return &pb.FlowLogs{Enabled: true, Bucket: bucket, Prefix: prefix}
}

// flowLogsText is flowLogs backwards.
func flowLogsText(f *pb.FlowLogs) string {
	if !f.GetEnabled() {
		return ""
	}
	return f.GetBucket() + "/" + f.GetPrefix()
}
