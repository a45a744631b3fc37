package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"

	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/wan"
	"github.com/nearcast/nearcast/testbed/world"
)

// machines is a subnet of eight addresses behind the gateway of eu-fra-1. A machine answers with whom it
// took for the client and at which of its own addresses and ports.
var machines = netip.MustParsePrefix("10.250.0.0/29")

const (
	machinePort = 7300 // TCP and UDP
	machineTCP  = 7301 // TCP only
)

// custom is an accelerator of custom routing in a world of one edge and one gateway.
type custom struct {
	*deployment
	api         *ga.Client
	accelerator string // ARNs
	group       string
	at          netip.Addr                         // one of its addresses
	ports       map[string]types.PortMapping       // by destination, "10.250.0.1:7300"
	lastAnswers map[string]netip.AddrPort          // of clients, by destination: for flow logs
	logs        string                             // directory of flow logs
	flows       map[string]map[netip.AddrPort]bool // clients by protocol that were answered
}

// one makes a world of one edge and one gateway.
func one(name string) func(*world.Spec) {
	return func(s *world.Spec) {
		s.Name = name // of at most eight letters
		s.Sites = s.Sites[:2]
		s.Sites[1].Nodes = 1
		s.Regions = []world.RegionSpec{{Name: "eu-fra-1", At: "fra", Endpoints: 1}}
		s.Cities = s.Cities[:1]
	}
}

// TestCustomRouting has the shipped binaries carry custom routing's traffic: every port leads to the one
// machine that the API names, TCP and UDP, which sees the client's own address; what is denied is refused.
func TestCustomRouting(t *testing.T) {
	c := &custom{flows: map[string]map[netip.AddrPort]bool{}, logs: t.TempDir()}
	c.deployment = stand(t, "main", one("custom"), world.Options{ControllerArgs: []string{"--aws-listen", awsListen},
		NodeArgs: []string{"--flow-logs", c.logs, "--flow-logs-interval", "2s"}})
	c.subnet(t)
	c.create(t)
	c.allow(t, "10.250.0.0", "10.250.0.3", "10.250.0.7")
	t.Run("allowed and denied ports", c.leads)
	t.Run("denied while it is used", c.denies)
	t.Run("explained", c.explained)
	t.Run("counted and logged", c.counted)
	t.Run("without the dispatcher", c.plainSockets)
	kill(t, c.Nodes["sin-1"], c.Nodes["fra-1"]) // nobody waits for the flows that are left
}

// client is an SDK's, which asks the controller from its own machine.
func (d *deployment) client(t *testing.T) *ga.Client {
	t.Helper()
	var key struct {
		Key    struct{ ID string }
		Secret string
	}
	d.run(t, &key, "access-key", "create", "--role", "operator", "--account-id", "123456789012")
	transport := &http.Transport{DialContext: d.NS("ctl-1").DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return ga.New(ga.Options{Region: "us-west-2", BaseEndpoint: aws.String("http://" + awsListen),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: key.Key.ID, SecretAccessKey: key.Secret}, nil
		}),
		HTTPClient: &http.Client{Transport: transport}})
}

// subnet has the endpoint's machine be eight, and tells the network and the gateway the way to them and back.
func (c *custom) subnet(t *testing.T) {
	const host, gateway = "eu-fra-1-app-1", "fra-1"
	client := c.Host("jakarta").V4
	c.do(t, c.Fabric.Change(func(f *wan.Change) error {
		return errors.Join(
			f.Attach(wan.Route{Prefix: machines, From: gateway, To: []string{host}}),
			f.Attach(wan.Route{Prefix: netip.PrefixFrom(client, 32), From: host, To: []string{gateway}}))
	}))
	c.do(t, c.NS(host).AddRoute(netns.Route{Dst: machines, Local: true}))
	c.do(t, c.NS(gateway).AddRoute(netns.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Local: true, Table: 100}))
	c.do(t, c.NS(gateway).AddRule(netns.Rule{Pref: 50, Iif: "eth0", From: machines, Table: 100}))
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	for addr := machines.Addr(); machines.Contains(addr); addr = addr.Next() {
		for _, port := range []uint16{machinePort, machineTCP} {
			l, err := c.NS(host).Listen(c.ctx, "tcp", netip.AddrPortFrom(addr, port))
			if err != nil {
				t.Fatal(err)
			}
			u, err := c.NS(host).ListenPacket(c.ctx, "udp", netip.AddrPortFrom(addr, port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close(); u.Close() })
			running.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					running.Go(func() { machineTalks(conn) })
				}
			})
			running.Go(func() {
				b := make([]byte, 100)
				for {
					_, from, err := u.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%v %v\n", from, netip.AddrPortFrom(addr, port)), from)
				}
			})
		}
	}
	c.run(t, nil, "subnet", "create", "subnet-game", "--region", "eu-fra-1", "--prefix", machines.String())
}

// machineTalks answers each byte with who is at both ends.
func machineTalks(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(conn, b); err != nil {
			return
		}
		fmt.Fprintf(conn, "%v %v\n", conn.RemoteAddr(), conn.LocalAddr())
	}
}

// create makes the accelerator as its users do, with AWS's SDK.
func (c *custom) create(t *testing.T) {
	t.Helper()
	c.api = c.client(t)
	a, err := c.api.CreateCustomRoutingAccelerator(c.ctx, &ga.CreateCustomRoutingAcceleratorInput{Name: aws.String("game")})
	c.do(t, err)
	l, err := c.api.CreateCustomRoutingListener(c.ctx, &ga.CreateCustomRoutingListenerInput{
		AcceleratorArn: a.Accelerator.AcceleratorArn,
		PortRanges:     []types.PortRange{{FromPort: aws.Int32(10000), ToPort: aws.Int32(60000)}}})
	c.do(t, err)
	g, err := c.api.CreateCustomRoutingEndpointGroup(c.ctx, &ga.CreateCustomRoutingEndpointGroupInput{
		ListenerArn: l.Listener.ListenerArn, EndpointGroupRegion: aws.String("eu-fra-1"),
		DestinationConfigurations: []types.CustomRoutingDestinationConfiguration{
			{FromPort: aws.Int32(machinePort), ToPort: aws.Int32(machinePort), Protocols: []types.CustomRoutingProtocol{"TCP", "UDP"}},
			{FromPort: aws.Int32(machineTCP), ToPort: aws.Int32(machineTCP), Protocols: []types.CustomRoutingProtocol{"TCP"}}}})
	c.do(t, err)
	_, err = c.api.AddCustomRoutingEndpoints(c.ctx, &ga.AddCustomRoutingEndpointsInput{
		EndpointGroupArn:       g.EndpointGroup.EndpointGroupArn,
		EndpointConfigurations: []types.CustomRoutingEndpointConfiguration{{EndpointId: aws.String("subnet-game")}}})
	c.do(t, err)
	_, err = c.api.UpdateCustomRoutingAcceleratorAttributes(c.ctx, &ga.UpdateCustomRoutingAcceleratorAttributesInput{
		AcceleratorArn: a.Accelerator.AcceleratorArn, FlowLogsEnabled: aws.Bool(true),
		FlowLogsS3Bucket: aws.String("logs"), FlowLogsS3Prefix: aws.String("edge")})
	c.do(t, err)
	listener := *l.Listener.ListenerArn // what is not to be said in AWS's words
	c.run(t, nil, "listener", "update", listener[strings.LastIndexByte(listener, '/')+1:], "--udp-idle-timeout", "15s")
	c.accelerator, c.group = *a.Accelerator.AcceleratorArn, *g.EndpointGroup.EndpointGroupArn
	c.at = netip.MustParseAddr(a.Accelerator.IpSets[0].IpAddresses[0])
}

// allow lets traffic through to machines, waits until the fleet does, and learns the mappings.
func (c *custom) allow(t *testing.T, addrs ...string) {
	t.Helper()
	_, err := c.api.AllowCustomRoutingTraffic(c.ctx, &ga.AllowCustomRoutingTrafficInput{EndpointGroupArn: &c.group,
		EndpointId: aws.String("subnet-game"), DestinationAddresses: addrs})
	c.do(t, err)
	c.deployed(t)
	c.ports = map[string]types.PortMapping{}
	pages := ga.NewListCustomRoutingPortMappingsPaginator(c.api,
		&ga.ListCustomRoutingPortMappingsInput{AcceleratorArn: &c.accelerator})
	for pages.HasMorePages() {
		page, err := pages.NextPage(c.ctx)
		c.do(t, err)
		for _, m := range page.PortMappings {
			c.ports[fmt.Sprintf("%s:%d", *m.DestinationSocketAddress.IpAddress, *m.DestinationSocketAddress.Port)] = m
		}
	}
	if len(c.ports) != 16 {
		t.Fatalf("%d mappings, want 8 machines with 2 ports each", len(c.ports))
	}
}

func (c *custom) deployed(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, "DEPLOYED", func() error {
		a, err := c.api.DescribeCustomRoutingAccelerator(c.ctx,
			&ga.DescribeCustomRoutingAcceleratorInput{AcceleratorArn: &c.accelerator})
		if err == nil && a.Accelerator.Status != types.CustomRoutingAcceleratorStatusDeployed {
			err = fmt.Errorf("status %s", a.Accelerator.Status)
		}
		return err
	})
}

// port is the accelerated address and port that leads to a destination.
func (c *custom) port(destination string) netip.AddrPort {
	return netip.AddrPortFrom(c.at, uint16(*c.ports[destination].AcceleratorPort))
}

// question asks over an open connection, and checks that both ends know each other.
func (c *custom) question(conn net.Conn, destination string) error {
	for range 4 { // datagrams may be lost
		if _, err := conn.Write([]byte("?")); err != nil {
			return err
		}
		wait := 10 * time.Second
		if conn.LocalAddr().Network() == "udp" {
			wait = time.Second
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		b := make([]byte, 100)
		n, err := conn.Read(b)
		var timeout net.Error
		switch want := fmt.Sprintf("%v %s\n", conn.LocalAddr(), destination); {
		case errors.As(err, &timeout) && timeout.Timeout():
			continue
		case err != nil:
			return err
		case string(b[:n]) != want:
			return fmt.Errorf("the machine says %q, want %q", b[:n], want)
		}
		return nil
	}
	return errors.New("no answer")
}

// visit makes a new flow to a destination.
func (c *custom) visit(network, destination string) error {
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	conn, err := c.NS("jakarta").Dial(ctx, network, netip.AddrPort{}, c.port(destination))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = c.question(conn, destination); err == nil {
		at := netip.MustParseAddrPort(conn.LocalAddr().String())
		if c.flows[network] == nil {
			c.flows[network] = map[netip.AddrPort]bool{}
		}
		c.flows[network][at] = true
	}
	return err
}

// leads visits every mapping by TCP and UDP.
func (c *custom) leads(t *testing.T) {
	served, refused := 0, 0
	for destination, m := range c.ports {
		allowed := m.DestinationTrafficState == types.CustomRoutingDestinationTrafficStateAllow
		for _, network := range []string{"tcp", "udp"} {
			if network == "udp" && (strings.HasSuffix(destination, ":7301") || !allowed && refused%8 != 0) {
				refused++
				continue // one silence of four seconds in eight is enough
			}
			if !allowed {
				if err := c.visit(network, destination); err == nil || network == "tcp" && !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s to %s, which is denied: %v", network, destination, err)
				}
				refused++
				continue
			}
			eventually(t, 60*time.Second, network+" to "+destination, func() error { return c.visit(network, destination) })
			served++
		}
	}
	// What is within the listener's range and not mapped.
	conn, err := c.NS("jakarta").Dial(c.ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(c.at, 59999))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port that is not mapped: %v, %v", conn, err)
	}
	if served != 3*3 || refused == 0 {
		t.Errorf("%d were served, %d refused", served, refused)
	}
	t.Logf("%d mappings served, client address kept; those that are denied or not mapped are refused", served)
}

// denies takes back what is used: new flows are refused at once, and those that were there go on.
func (c *custom) denies(t *testing.T) {
	const destination = "10.250.0.3:7300"
	var old []net.Conn
	for _, network := range []string{"tcp", "udp"} {
		conn, err := c.NS("jakarta").Dial(c.ctx, network, netip.AddrPort{}, c.port(destination))
		c.do(t, err)
		defer conn.Close()
		c.do(t, c.question(conn, destination))
		old = append(old, conn)
	}
	_, err := c.api.DenyCustomRoutingTraffic(c.ctx, &ga.DenyCustomRoutingTrafficInput{EndpointGroupArn: &c.group,
		EndpointId: aws.String("subnet-game"), DestinationAddresses: []string{"10.250.0.3"}})
	c.do(t, err)
	begin := time.Now()
	took := eventually(t, 60*time.Second, "a refusal", func() error {
		if err := c.visit("tcp", destination); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("not refused: %w", errors.Join(err, errors.New("served")))
		}
		return nil
	})
	c.deployed(t)
	t.Logf("refused %v after the answer to Deny; DEPLOYED after %v", took.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	if err := c.visit("udp", destination); err == nil {
		t.Error("UDP to what was denied is served")
	}
	for _, conn := range old {
		if err := c.question(conn, destination); err != nil {
			t.Errorf("a flow from before, %s: %v", conn.LocalAddr().Network(), err)
		}
	}
	if err := c.visit("tcp", "10.250.0.7:7301"); err != nil {
		t.Errorf("what stays allowed: %v", err)
	}
}

// explained asks the edge where ports lead.
func (c *custom) explained(t *testing.T) {
	for destination, want := range map[string]string{
		"10.250.0.7:7301": "tcp 10.250.0.7:7301 in subnet subnet-game of eu-fra-1 by fra-1, client address transparent",
		"10.250.0.3:7300": "denied",
	} {
		text, err := c.CLI(c.ctx, "steer", "explain", "--client", c.Host("jakarta").V4.String(), "--accelerator", "game",
			"--node", "sin-1", "--port", fmt.Sprint(c.port(destination).Port()))
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%s is explained as %s (%v)", destination, text, err)
		}
	}
}

// counted: the edge's counters hold the flows.
func (c *custom) counted(t *testing.T) {
	n := len(c.flows["tcp"]) + len(c.flows["udp"])
	eventually(t, 90*time.Second, "the flows are counted", func() error {
		if got := metric(t, c.Nodes["sin-1"], "nearcast_traffic_flows_total"); got < float64(n) {
			return fmt.Errorf("%v flows, want %d", got, n)
		}
		return nil
	})
	// A record is there when its flow has ended: datagrams have been silent for long enough then.
	var all []record
	denied := 0
	eventually(t, 3*time.Minute, "the flows are logged", func() error {
		all = inDirectory(t, c.logs)
		if denied = deniedAmong(all); denied == 0 {
			return errors.New("no datagram that was denied is logged")
		}
		logged := map[string]map[netip.AddrPort]bool{"tcp": {}, "udp": {}}
		for _, r := range all {
			if r.fields[15] == "ACCEPT" && r.fields[0] == "2.0" && strings.HasPrefix(r.fields[7], "10.250.0.") && r.fields[17] == "-" {
				logged[strings.ToLower(r.fields[9])][r.client()] = true
			}
		}
		for network, clients := range c.flows {
			for client := range clients {
				if !logged[network][client] {
					return fmt.Errorf("%s of %v is not among %d records", network, client, len(all))
				}
			}
		}
		return nil
	})
	t.Logf("%d flows are in the counters and in %d records of the flow logs, %d more that were denied", n, len(all), denied)
}

// deniedAmong counts records of what was denied.
func deniedAmong(all []record) (n int) {
	for _, r := range all {
		if r.fields[15] == "REJECT" && r.fields[len(r.fields)-1] == "denied" {
			n++
		}
	}
	return n
}

// plainSockets has the edge do without the kernel's dispatcher: a socket for each port that is open, and a
// clear word on those that there is no room for.
func (c *custom) plainSockets(t *testing.T) {
	edge := c.Nodes["sin-1"]
	kill(t, edge)
	edge.AddArgs("--kernel-dispatch", "off")
	c.start(t, edge)
	for _, network := range []string{"tcp", "udp"} {
		eventually(t, 60*time.Second, network, func() error { return c.visit(network, "10.250.0.7:7300") })
	}
	if err := c.visit("tcp", "10.250.0.3:7300"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a denied port: %v", err)
	}
}
