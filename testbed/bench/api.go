package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	"github.com/aws/smithy-go"
)

// APIOptions say how the AWS API is asked.
type APIOptions struct {
	Bin, Dir     string        // the built binaries; an empty directory for data and logs
	Accelerators int           // that there are, each with a listener and a group of two endpoints
	Rate         int           // requests a second
	For          time.Duration // how long
	Say          func(format string, args ...any)
}

// APIReport is what the requests took.
type APIReport struct {
	Operations []APIOperation // all together first, then each, most frequent first
	Late       time.Duration  // how much later than planned requests left at worst: the bench's own lateness
}

// APIOperation is one kind of request. Times begin when the request was to be made, not when it was.
type APIOperation struct {
	Name          string
	Requests      int
	P50, P99, Max time.Duration
	Errors        map[string]int
}

const (
	apiFillers = 16    // accelerators that are made at once
	apiAtOnce  = 2_000 // requests under way; beyond that the controller is lost
)

// API starts a controller, fills it with accelerators and asks it by AWS's API at a steady rate, whatever it
// answers (an open loop, so that a slow answer delays no other request).
func API(ctx context.Context, opt APIOptions) (*APIReport, error) {
	c, err := startController(ctx, opt)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	client, err := c.client(ctx)
	if err != nil {
		return nil, err
	}
	b := &apiBench{opt: opt, client: client, made: make([]apiMade, opt.Accelerators), took: map[string][]time.Duration{},
		failed: map[string]map[string]int{}}
	begin := time.Now()
	if err := b.fill(ctx); err != nil {
		return nil, fmt.Errorf("make accelerators: %w (%s)", err, c.log())
	}
	opt.Say("made %d accelerators with a listener and a group each in %v", opt.Accelerators, time.Since(begin).Round(time.Second))
	opt.Say("asking %d times a second for %v", opt.Rate, opt.For)
	b.ask(ctx)
	return b.report(), ctx.Err()
}

// apiMade are the ARNs of one accelerator.
type apiMade struct{ accelerator, listener, group string }

type apiBench struct {
	opt    APIOptions
	client *ga.Client
	made   []apiMade

	mu     sync.Mutex
	took   map[string][]time.Duration
	failed map[string]map[string]int // by operation and error code
	late   time.Duration
}

// fill makes the accelerators.
func (b *apiBench) fill(ctx context.Context) error {
	next := make(chan int)
	errs := make([]error, apiFillers)
	var fillers sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for f := range apiFillers {
		fillers.Go(func() {
			for i := range next {
				if b.made[i], errs[f] = b.create(ctx, i); errs[f] != nil {
					cancel()
					return
				}
			}
		})
	}
	for i := range b.made {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	fillers.Wait()
	return errors.Join(errs...)
}

// create makes one accelerator and what is below it.
func (b *apiBench) create(ctx context.Context, i int) (m apiMade, err error) {
	a, err := b.client.CreateAccelerator(ctx, &ga.CreateAcceleratorInput{Name: aws.String(fmt.Sprintf("bench-%05d", i))})
	if err != nil {
		return m, err
	}
	m.accelerator = *a.Accelerator.AcceleratorArn
	l, err := b.client.CreateListener(ctx, &ga.CreateListenerInput{AcceleratorArn: &m.accelerator, Protocol: types.ProtocolTcp,
		PortRanges: []types.PortRange{{FromPort: aws.Int32(443), ToPort: aws.Int32(443)}}})
	if err != nil {
		return m, err
	}
	m.listener = *l.Listener.ListenerArn
	g, err := b.client.CreateEndpointGroup(ctx, &ga.CreateEndpointGroupInput{ListenerArn: &m.listener,
		EndpointGroupRegion: aws.String("us-east-1"), EndpointConfigurations: apiEndpoints(i, 128)})
	if err == nil {
		m.group = *g.EndpointGroup.EndpointGroupArn
	}
	return m, err
}

func apiEndpoints(i int, weight int32) (list []types.EndpointConfiguration) {
	for n := range 2 {
		list = append(list, types.EndpointConfiguration{Weight: &weight,
			EndpointId: aws.String(fmt.Sprintf("10.20.%d.%d", 2*(i/200)+n, 1+i%200))})
	}
	return list
}

type apiRequest struct {
	share int
	name  string
	do    func(b *apiBench, ctx context.Context, m apiMade, i int) error
}

// apiMix is how often each operation is asked, in 1,000: two thirds read, as pollers and refreshing tools do.
var apiMix = []apiRequest{
	{280, "DescribeAccelerator", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: &m.accelerator}))
	}},
	{160, "DescribeEndpointGroup", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.DescribeEndpointGroup(ctx, &ga.DescribeEndpointGroupInput{EndpointGroupArn: &m.group}))
	}},
	{60, "ListTagsForResource", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: &m.accelerator}))
	}},
	{60, "ListListeners", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.ListListeners(ctx, &ga.ListListenersInput{AcceleratorArn: &m.accelerator}))
	}},
	{60, "ListEndpointGroups", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.ListEndpointGroups(ctx, &ga.ListEndpointGroupsInput{ListenerArn: &m.listener}))
	}},
	{40, "ListAccelerators", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.ListAccelerators(ctx, &ga.ListAcceleratorsInput{MaxResults: aws.Int32(100)}))
	}},
	{180, "UpdateEndpointGroup", func(b *apiBench, ctx context.Context, m apiMade, i int) error {
		return second(b.client.UpdateEndpointGroup(ctx, &ga.UpdateEndpointGroupInput{EndpointGroupArn: &m.group,
			EndpointConfigurations: apiEndpoints(i, rand.Int32N(256))}))
	}},
	{60, "TagResource", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.TagResource(ctx, &ga.TagResourceInput{ResourceArn: &m.accelerator,
			Tags: []types.Tag{{Key: aws.String("round"), Value: aws.String(fmt.Sprint(rand.Int()))}}}))
	}},
	{60, "UpdateAccelerator", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		return second(b.client.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: &m.accelerator,
			Name: aws.String(fmt.Sprintf("renamed-%d", rand.Int32()))}))
	}},
	{40, "UpdateListener", func(b *apiBench, ctx context.Context, m apiMade, _ int) error {
		affinity := []types.ClientAffinity{types.ClientAffinityNone, types.ClientAffinitySourceIp}[rand.IntN(2)]
		return second(b.client.UpdateListener(ctx, &ga.UpdateListenerInput{ListenerArn: &m.listener, ClientAffinity: affinity}))
	}},
}

func second[T any](_ T, err error) error { return err }

// ask makes the requests, each at its time.
func (b *apiBench) ask(ctx context.Context) {
	total := 0
	for _, o := range apiMix {
		total += o.share
	}
	var running sync.WaitGroup
	slots := make(chan struct{}, apiAtOnce)
	begin, n := time.Now(), int(b.opt.For.Seconds()*float64(b.opt.Rate))
	for i := range n {
		due := begin.Add(time.Duration(i) * time.Second / time.Duration(b.opt.Rate))
		time.Sleep(time.Until(due))
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			running.Wait()
			return
		}
		b.late = max(b.late, time.Since(due))
		pick := rand.IntN(total)
		at := slices.IndexFunc(apiMix, func(o apiRequest) bool {
			pick -= o.share
			return pick < 0
		})
		which := rand.IntN(len(b.made))
		running.Go(func() {
			defer func() { <-slots }()
			err := apiMix[at].do(b, ctx, b.made[which], which)
			b.note(apiMix[at].name, time.Since(due), err)
		})
	}
	running.Wait()
}

func (b *apiBench) note(name string, took time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took[name] = append(b.took[name], took)
	if err == nil {
		return
	}
	// On a busy machine a large answer breaks off now and then with "use of closed network connection", which is an
	// error of the client's own side. (Perhaps smithy-go closes the request's body before net/http has seen its end.)
	code := "answer not read"
	var e smithy.APIError
	if errors.As(err, &e) {
		code = e.ErrorCode()
	}
	if b.failed[name] == nil {
		b.failed[name] = map[string]int{}
	}
	b.failed[name][code]++
}

func (b *apiBench) report() *APIReport {
	r := &APIReport{Late: b.late}
	all := APIOperation{Name: "all", Errors: map[string]int{}}
	var took []time.Duration
	for name, list := range b.took {
		took = append(took, list...)
		r.Operations = append(r.Operations, apiOperation(name, list, b.failed[name]))
		for code, n := range b.failed[name] {
			all.Errors[code] += n
		}
	}
	slices.SortFunc(r.Operations, func(x, y APIOperation) int {
		return cmp.Or(y.Requests-x.Requests, cmp.Compare(x.Name, y.Name))
	})
	r.Operations = slices.Insert(r.Operations, 0, apiOperation("all", took, all.Errors))
	return r
}

func apiOperation(name string, took []time.Duration, failed map[string]int) APIOperation {
	slices.Sort(took)
	at := func(share float64) time.Duration {
		if len(took) == 0 {
			return 0
		}
		return took[min(len(took)-1, int(share*float64(len(took))))]
	}
	return APIOperation{name, len(took), at(0.5), at(0.99), at(1), failed}
}

// WriteTo prints the report as a table.
func (r *APIReport) WriteTo(w io.Writer) (int64, error) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "operation\trequests\tp50\tp99\tmax\terrors")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
	for _, o := range r.Operations {
		wrong := "none"
		if len(o.Errors) > 0 {
			wrong = fmt.Sprint(o.Errors)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", o.Name, o.Requests, ms(o.P50), ms(o.P99), ms(o.Max), wrong)
	}
	fmt.Fprintf(t, "requests left at most %s late\n", ms(r.Late))
	return 0, t.Flush()
}

// client makes a client with a new key, after it has configured what accelerators need.
func (c *apiController) client(ctx context.Context) (*ga.Client, error) {
	for _, args := range [][]string{
		{"pool", "create", "a", "--zone", "a", "--prefix", "198.18.0.0/20"},
		{"pool", "create", "b", "--zone", "b", "--prefix", "198.19.0.0/20"},
		{"settings", "update", "--accelerators-max", fmt.Sprint(c.opt.Accelerators)},
	} {
		if err := c.cli(ctx, nil, args...); err != nil {
			return nil, err
		}
	}
	var key struct {
		Key    struct{ ID string }
		Secret string
	}
	if err := c.cli(ctx, &key, "access-key", "create", "-o", "json"); err != nil {
		return nil, err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: apiAtOnce, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext}
	return ga.New(ga.Options{Region: "us-west-2", BaseEndpoint: aws.String("http://" + c.aws), RetryMaxAttempts: 1,
		HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: key.Key.ID, SecretAccessKey: key.Secret}, nil
		})}), nil
}
