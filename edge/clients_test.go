package edge

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// TestClientsFile: what was measured outlives the process, and a damaged or old file is not used.
func TestClientsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), clientsFile)
	if list, err := loadClients(path, time.Now()); list != nil || err != nil {
		t.Fatalf("without a file: %v, %v", list, err)
	}
	list := []model.ClientNetwork{{Prefix: netip.MustParsePrefix("198.51.100.0/24"),
		Sites: []model.ClientSite{{Site: "fra", RTT: 9 * time.Millisecond, Samples: 3}}}}
	if err := keepClients(path, list); err != nil {
		t.Fatal(err)
	}
	back, err := loadClients(path, time.Now())
	if err != nil || len(back) != 1 || back[0].Prefix != list[0].Prefix || back[0].Sites[0] != list[0].Sites[0] {
		t.Errorf("%+v, %v", back, err)
	}
	if old, err := loadClients(path, time.Now().Add(clientsAge+time.Hour)); old != nil || err != nil {
		t.Errorf("an old one: %v, %v", old, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		damaged := append([]byte{}, whole...)
		damaged[at] ^= 1
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := loadClients(path, time.Now()); err == nil {
			t.Fatalf("with byte %d damaged it is %v", at, list)
		}
	}
	if err := os.WriteFile(path, whole[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadClients(path, time.Now()); err == nil {
		t.Error("a file cut short was read")
	}
}
