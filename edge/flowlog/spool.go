package flowlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// errFull says that the spool holds as much as it may.
var errFull = errors.New("the spool is full")

// spool is the directory of segments: files of records that are not delivered yet. Each begins with a
// line that says where it goes. A segment is only ever appended to, by one write a batch, so that a killed
// process leaves whole records and at most one cut one.
type spool struct {
	dir  string
	boot string
	max  int64

	used int64          // bytes of all segments
	part map[string]int // number of the present segment of an accelerator, in this interval
}

// header is the first line of a segment.
type header struct {
	Account     string              `json:"account"`
	Accelerator model.AcceleratorID `json:"accelerator"`
	Bucket      string              `json:"bucket"`
	Prefix      string              `json:"prefix"`
	Region      model.RegionName    `json:"region"`
	Node        string              `json:"node"`
}

const segmentSuffix = ".seg"

// openSpool opens the directory, which may hold segments of a process before this one.
func openSpool(dir, boot string, max int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir, boot: boot, max: max, part: map[string]int{}}
	return s, s.measure()
}

// measure looks how much there is.
func (s *spool) measure() error {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	s.used = 0
	for _, e := range list {
		if info, err := e.Info(); err == nil {
			s.used += info.Size()
		}
	}
	return nil
}

// append adds records to the segment of an accelerator and interval.
func (s *spool) append(h header, interval time.Time, records []byte) error {
	if s.used+int64(len(records)) > s.max {
		return errFull
	}
	key := strconv.FormatInt(interval.Unix(), 10) + "_" + string(h.Accelerator)
	name := func() string {
		return filepath.Join(s.dir, fmt.Sprintf("%d_%s_%d_%s%s", interval.Unix(), s.boot, s.part[key], h.Accelerator, segmentSuffix))
	}
	info, err := os.Stat(name())
	if err == nil && info.Size()+int64(len(records)) > segmentBytes {
		s.part[key]++
		_, err = os.Stat(name())
	}
	if errors.Is(err, os.ErrNotExist) {
		first, err := json.Marshal(h)
		if err != nil {
			return err
		}
		records = append(append(first, '\n'), records...)
	}
	f, err := os.OpenFile(name(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	n, err := f.Write(records)
	s.used += int64(n)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// sealed returns the segments to which nothing is added any more, oldest first: those of intervals before
// this one, and those of other processes.
func (s *spool) sealed(interval time.Time) ([]string, error) {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		parts := strings.SplitN(e.Name(), "_", 4)
		if len(parts) != 4 || !strings.HasSuffix(e.Name(), segmentSuffix) {
			continue
		}
		began, err := strconv.ParseInt(parts[0], 10, 64)
		if err == nil && (parts[1] != s.boot || began < interval.Unix()) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// errBroken says that a segment can never be delivered.
var errBroken = errors.New("segment is damaged")

// read returns where a segment goes and its records, without one that was cut.
func (s *spool) read(name string) (h header, records []byte, err error) {
	all, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return h, nil, err
	}
	h, records, ok := parseSegment(all)
	if !ok {
		return h, nil, errBroken
	}
	return h, records, nil
}

func parseSegment(all []byte) (h header, records []byte, ok bool) {
	first, records, found := bytes.Cut(all, []byte{'\n'})
	if !found || json.Unmarshal(first, &h) != nil || h.Accelerator == "" {
		return h, nil, false
	}
	return h, records[:bytes.LastIndexByte(records, '\n')+1], true
}

// remove forgets a segment that was delivered.
func (s *spool) remove(name string) error { return os.Remove(filepath.Join(s.dir, name)) }

// objectKey is the name of a segment's file in AWS's layout. The same segment always has the same name.
func objectKey(h header, name string) string {
	began, _ := strconv.ParseInt(name[:strings.IndexByte(name+"_", '_')], 10, 64)
	t := time.Unix(began, 0).UTC()
	sum := sha256.Sum256([]byte(h.Node + "/" + name))
	id := sha256.Sum256([]byte("flow log of " + h.Accelerator))
	file := fmt.Sprintf("%s_globalaccelerator_%s_fl-%s_%s_%s.log.gz", h.Account, h.Accelerator,
		hex.EncodeToString(id[:6]), t.Format("20060102T1504Z"), hex.EncodeToString(sum[:4]))
	return path.Join(strings.Trim(h.Prefix, "/"), "AWSLogs", h.Account, "globalaccelerator", string(h.Region),
		t.Format("2006/01/02"), file)
}
