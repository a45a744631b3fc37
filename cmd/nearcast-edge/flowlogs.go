package main

import (
	"cmp"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearcast/nearcast/edge/flowlog"
)

// flowLogsConfig says where flow logs go. Credentials of a store come from the environment variables that
// AWS's tools use, so that they are on no command line.
func (o *options) flowLogsConfig(getenv func(string) string) (flowlog.Config, error) {
	cfg := flowlog.Config{Format: flowlog.Format(o.flowLogsFormat), Account: o.flowLogsAccount, Interval: o.flowLogsInterval}
	if o.flowLogsInterval != 0 && o.flowLogsInterval < time.Second {
		return cfg, errors.New("--flow-logs-interval must be at least 1s")
	}
	if cfg.Format != flowlog.AWS && cfg.Format != flowlog.JSON {
		return cfg, errors.New("--flow-logs-format must be aws or json")
	}
	switch {
	case o.flowLogs == "":
	case strings.Contains(o.flowLogs, "://"):
		s := &flowlog.S3{
			Endpoint: o.flowLogs, Key: getenv("AWS_ACCESS_KEY_ID"), Secret: getenv("AWS_SECRET_ACCESS_KEY"),
			Token:  getenv("AWS_SESSION_TOKEN"),
			Region: cmp.Or(getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION"), "us-east-1"),
		}
		cfg.Destination = s
		return cfg, s.Validate()
	case !filepath.IsAbs(o.flowLogs):
		return cfg, errors.New("a directory must be given with its whole path")
	default:
		cfg.Destination = flowlog.Directory(o.flowLogs)
	}
	return cfg, nil
}
