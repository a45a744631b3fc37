package netns

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// RequireRootEnv is the environment variable that turns skips for a missing capability into failures ("1").
const RequireRootEnv = "NEARCAST_REQUIRE_ROOT"

// TB is what this package needs of *testing.T and *testing.B. (Importing testing would put it into binaries.)
type TB interface {
	Helper()
	Name() string
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// RequireRoot lets the test run only where network namespaces can be made. Else it skips, and the message
// names what is missing and what for; with NEARCAST_REQUIRE_ROOT=1 it fails instead, so that a test run that
// should be complete can't pass by skipping.
func RequireRoot(t TB, what string) {
	t.Helper()
	Require(t, what, canMakeNamespaces())
}

// Require skips, or with NEARCAST_REQUIRE_ROOT=1 fails, the test when missing is not nil.
func Require(t TB, what string, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if os.Getenv(RequireRootEnv) == "1" {
		t.Fatalf("%s: needs %v (%s=1)", what, missing, RequireRootEnv)
	}
	t.Skipf("%s: needs %v", what, missing)
}

// canMakeNamespaces tries it: being root is not enough in many containers.
func canMakeNamespaces() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")
	}
	errc := make(chan error, 1)
	Thread(func() { errc <- unix.Unshare(unix.CLONE_NEWNET) })
	if err := <-errc; err != nil {
		return fmt.Errorf("CAP_SYS_ADMIN (unshare network namespace: %v)", err)
	}
	if err := prepareRunDir(); err != nil {
		return fmt.Errorf("CAP_SYS_ADMIN (%v)", err)
	}
	return nil
}

// testPrefix starts the prefixes of all test Sets, so that one Sweep finds what crashed tests left.
const testPrefix = "nct"

var testSets atomic.Uint32 // numbers the Sets of this process's tests

// ForTest returns a Set for one test, after RequireRoot. When the test ends it is closed, and the test fails
// if a namespace or a process in one is left. Leftovers of test processes that crashed are swept on the way.
func ForTest(t TB, what string) *Set {
	t.Helper()
	RequireRoot(t, what)
	if _, err := Sweep(testPrefix); err != nil {
		t.Fatalf("sweep leftovers of earlier tests: %v", err)
	}
	owner := strconv.FormatInt(int64(os.Getpid()), 36)
	set, err := Create(fmt.Sprintf("%s%s-%d-", testPrefix, owner, testSets.Add(1)))
	if err != nil {
		t.Fatalf("create namespace set: %v", err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Errorf("close namespace set: %v", err)
		}
		NoLeaks(t, set)
	})
	return set
}

// NoLeaks fails the test when anything of a closed Set is left: a name, or a process in one of its
// namespaces.
func NoLeaks(t TB, set *Set) {
	t.Helper()
	for _, leak := range set.Leaks() {
		t.Errorf("left behind by %s: %s", set.Prefix(), leak)
	}
}
