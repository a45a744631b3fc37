package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// ask sends one request and reads its answer of at most a buffer.
func ask(c net.Conn, size int, buf []byte) error {
	if _, err := fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: bench\r\n\r\n", size); err != nil {
		return err
	}
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		if i := strings.Index(string(buf[:n]), "\r\n\r\n"); i >= 0 && n >= i+4+size {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func bulk(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	buf := make([]byte, 256<<10)
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", s.tcp.String())
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: bench\r\n\r\n", int64(8<<30))
		for {
			n, err := c.Read(buf)
			count.Add(int64(n))
			if err != nil {
				break
			}
		}
		stop()
		c.Close()
	}
	return nil
}

func connections(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", s.tcp.String())
		if err != nil {
			return err
		}
		err = ask(c, 1, buf)
		c.Close()
		if err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

func requests(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	c, err := net.Dial("tcp", s.tcp.String())
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		if err := ask(c, 1, buf); err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

func datagrams(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	c, err := net.Dial("udp", s.udp.String())
	if err != nil {
		return err
	}
	defer c.Close()
	out, in := make([]byte, 64), make([]byte, 2048)
	for ctx.Err() == nil {
		if _, err := c.Write(out); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := io.ReadAtLeast(c, in, 1); err != nil {
			continue // lost: send again
		}
		count.Add(1)
	}
	return nil
}
