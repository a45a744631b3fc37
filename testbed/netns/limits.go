package netns

import "time"

const (
	// prefixLenMax bounds a Set's prefix and nameLenMax a namespace's own name: together they are one file name
	// under runDir, and still readable in a shell prompt.
	prefixLenMax = 24
	nameLenMax   = 40

	// killTimeout is how long Close waits for killed processes to leave a namespace. SIGKILL takes effect in
	// milliseconds; only a process in uninterruptible sleep takes longer, and then the error should say so.
	killTimeout = 20 * time.Second

	// killPause is the pause between two looks at /proc while waiting for that.
	killPause = 5 * time.Millisecond

	// addrTimeout is how long AddAddr waits for the kernel to take an IPv6 address into use: a worker does it, within
	// a millisecond on an idle machine. addrPause is the pause between two looks.
	addrTimeout = 20 * time.Second
	addrPause   = time.Millisecond

	// waitDelay is how long Cmd waits for the pipes of an ended process: a grandchild that holds them open must
	// not hang the caller for ever.
	waitDelay = 3 * time.Second
)
