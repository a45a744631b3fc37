package gains

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

const ms = time.Millisecond

func seen(prefix string, rtt time.Duration, r model.ClientRegion) model.ClientNetwork {
	return model.ClientNetwork{Prefix: netip.MustParsePrefix(prefix), Regions: []model.ClientRegion{r},
		Sites: []model.ClientSite{{RTT: rtt, Samples: 1}}}
}

func TestRows(t *testing.T) {
	far := model.ClientRegion{Region: "eu", Flows: 10, Open: 182 * ms, Backbone: 180 * ms, Direct: 200 * ms,
		DirectBy: model.DirectPlace, Down: 9}
	reports := []Report{
		{"sin", []model.ClientNetwork{seen("10.0.1.0/24", 20*ms, far)}},
		{"sin", []model.ClientNetwork{seen("10.0.1.0/24", 30*ms, far)}}, // another node of the site
		{"fra", []model.ClientNetwork{seen("10.0.2.0/24", 30*ms, model.ClientRegion{Region: "eu", Flows: 90,
			Open: 1 * ms, Direct: 30 * ms, DirectBy: model.DirectPath})}},
		{"iad", []model.ClientNetwork{seen("10.0.3.0/24", 10*ms, model.ClientRegion{Region: "eu"})}}, // no flows
	}
	rows := Rows(reports, nil)
	if len(rows) != 2 || rows[0].Site != "fra" || rows[1].Flows != 20 {
		t.Fatalf("%+v", rows)
	}
	near, distant := rows[0], rows[1]
	if distant.Client != 25*ms || distant.Connect != 2*ms || distant.FirstByte() != 50*ms+180*ms+4*ms ||
		distant.FirstByteDirect() != 400*ms || !distant.Pays() || distant.DirectBy != model.DirectPlace {
		t.Errorf("far away: %+v, first byte %v", distant, distant.FirstByte())
	}
	if near.Pays() {
		t.Errorf("acceleration that saves nothing pays: %+v", near)
	}
	rows = Rows(reports, []model.DirectWay{
		{Network: netip.MustParsePrefix("10.0.0.0/8"), Region: "eu", RTT: 77 * ms, Source: model.DirectOperator},
		{Network: netip.MustParsePrefix("10.0.1.0/24"), Region: "eu", RTT: 90 * ms, Source: model.DirectProbe, Down: 5},
		{Network: netip.MustParsePrefix("10.0.1.0/24"), Region: "us", RTT: 1 * ms, Source: model.DirectProbe},
	})
	if rows[0].Direct != 77*ms || rows[0].DirectBy != model.DirectOperator {
		t.Errorf("what the operator says of 10/8 does not count: %+v", rows[0])
	}
	if rows[1].Direct != 90*ms || rows[1].DownDirect != 5 || rows[1].Pays() {
		t.Errorf("what the probe measured does not count: %+v", rows[1])
	}
	sums := Summarize(rows)
	if len(sums) != 1 || sums[0].Flows != 110 || sums[0].Losing != 20 || sums[0].Guessed != 0 ||
		sums[0].Saved != 2*77*ms-62*ms {
		t.Errorf("%+v", sums)
	}
}
