package scenario

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/mmdb"
	"github.com/nearcast/nearcast/testbed/world"
)

// writeCountries puts a country database in the place of a file, made so many days after the testbed's first one.
func writeCountries(t *testing.T, path string, days int, networks map[string]string) {
	t.Helper()
	w := mmdb.New(true)
	for network, code := range networks {
		w.Add(netip.MustParsePrefix(network), mmdb.Place(code, 0, 0))
	}
	w.Built += int64(days) * 24 * 3600
	err := os.WriteFile(path+".new", w.Bytes("scenario-Country"), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// countries: who is from a denied country gets nothing, and others are not in its way. What the listener names and
// what the database says can change at any time, and an explicit network comes before a country.
func (g *guarded) countries(t *testing.T) {
	network := netip.MustParsePrefix(g.trusted())
	client := network.Addr().Next()
	refused := func(what string) {
		t.Helper()
		g.refused(t, what, client, g.at(world.ListenHTTP), "country")
	}
	served := func(what string) {
		t.Helper()
		eventually(t, 60*time.Second, what, func() error {
			if err := g.silence(client, g.at(world.ListenHTTP), silent); err == nil {
				return errors.New("it is not served")
			}
			return nil
		})
	}
	writeCountries(t, g.database, 1, map[string]string{network.String(): "KP", "9.0.0.0/8": "US"})
	g.run(t, nil, "listener", "update", g.app.TCP, "--deny-countries", "kp,us")
	refused("a client from a denied country")
	if _, err := g.fetchFrom("jakarta"); err != nil {
		t.Errorf("who is not from there: %v", err)
	}
	text, err := g.CLI(g.ctx, "status")
	if err != nil || !strings.Contains(text, "KP (1 networks)") || !strings.Contains(text, "scenario-Country") {
		t.Errorf("nearcast status does not say which lists there are: %v\n%s", err, text)
	}
	g.run(t, nil, "listener", "update", g.app.TCP, "--deny-countries", "US")
	served("the country is not denied any more")

	g.run(t, nil, "listener", "update", g.app.TCP, "--deny-countries", "", "--allow-countries", "US")
	refused("a client that is not from an allowed country")
	g.run(t, nil, "listener", "update", g.app.TCP, "--allow-from", client.String()+"/32")
	served("an allowed address")
	g.run(t, nil, "listener", "update", g.app.TCP, "--allow-from", "")
	refused("the address is nothing special any more")
	writeCountries(t, g.database, 2, map[string]string{network.String(): "US"})
	served("another database says that it is from there")
	g.run(t, nil, "listener", "update", g.app.TCP, "--allow-countries", "")
	eventually(t, 60*time.Second, "everybody", func() error {
		_, err := g.fetchFrom("jakarta")
		return err
	})
}
