package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// apiController is a shipped controller on loopback.
type apiController struct {
	opt              APIOptions
	process          *exec.Cmd
	server, web, aws string
}

// startController starts one and waits until it is ready.
func startController(ctx context.Context, opt APIOptions) (*apiController, error) {
	c := &apiController{opt: opt}
	for _, to := range []*string{&c.server, &c.web, &c.aws} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		*to = l.Addr().String()
		l.Close()
	}
	out, err := os.Create(filepath.Join(opt.Dir, "controller.log"))
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own
	c.process = exec.Command(filepath.Join(opt.Bin, "nearcast-controller"), "--cluster", "bench", "--data-dir",
		filepath.Join(opt.Dir, "data"), "--listen", c.server, "--metrics-listen", c.web, "--aws-listen", c.aws)
	c.process.Stdout, c.process.Stderr = out, out
	if err := c.process.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + c.web + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return c, nil
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			c.stop()
			return nil, fmt.Errorf("the controller is not ready: %s", c.log())
		}
	}
}

// stop ends the controller.
func (c *apiController) stop() {
	_ = c.process.Process.Signal(syscall.SIGTERM) // else it has ended by itself
	_ = c.process.Wait()
}

// log returns the last words of the controller.
func (c *apiController) log() string {
	text, err := os.ReadFile(filepath.Join(c.opt.Dir, "controller.log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-1000):])
}

// cli runs the shipped CLI as the administrator, and decodes what it prints into out.
func (c *apiController) cli(ctx context.Context, out any, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.opt.Bin, "nearcast"), append([]string{"--server", c.server}, args...)...)
	cmd.Env = append(os.Environ(), "NEARCAST_CONTEXTS="+filepath.Join(c.opt.Dir, "data", "admin-context.yaml"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nearcast %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(stdout.Bytes(), out)
}
