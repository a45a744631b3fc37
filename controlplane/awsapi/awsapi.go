package awsapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/series"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Config of a Handler. Catalog and all functions but Audit and Now are needed.
type Config struct {
	Catalog *catalog.Catalog
	// Key returns an access key or, with its token, a session that may be used now, and its secret. It may return
	// access.ErrUnknown and access.ErrExpired.
	Key func(ctx context.Context, id, token string) (access.AccessKey, string, error)
	// Session makes temporary credentials of an access key; nil: there are none.
	Session func(ctx context.Context, key string, role v1.Role, valid time.Duration, name string) (access.Session, error)
	// Deployed reports whether the fleet has applied the accelerator as it is.
	Deployed func(model.Accelerator) bool
	// Applied reports whether every connected node has applied a revision of the configuration.
	Applied func(revision uint64) bool
	// Account and Project translate between projects and account ids. Project may return access.ErrUnknown.
	Account func(ctx context.Context, project string) (string, error)
	Project func(ctx context.Context, account string) (string, error)
	// Health returns the verdict on an endpoint and its reason.
	Health func(model.GroupID, model.EndpointID) (model.HealthState, string)
	// Traffic and Places answer CloudWatch's questions; without Traffic there is no CloudWatch.
	Traffic *series.Series
	Places  series.Places
	// Audit, if set, is told of every call of a method that changes something, as access.Config.Audit is.
	Audit func(ctx context.Context, call access.Call)

	Now     func() time.Time      // nil: time.Now
	Log     *slog.Logger          // nil: discarded
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Catalog == nil || c.Key == nil || c.Deployed == nil || c.Health == nil ||
		c.Applied == nil || c.Account == nil || c.Project == nil {
		return errors.New("awsapi: Catalog, Key, Deployed, Applied, Account, Project and Health must be set")
	}
	return nil
}

// Handler answers the HTTP requests of AWS clients.
type Handler struct {
	cfg      Config
	log      *slog.Logger
	requests *prometheus.CounterVec
}

// New makes a Handler.
func New(cfg Config) (*Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h := &Handler{cfg: cfg, log: cfg.Log}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.cfg.Now == nil {
		h.cfg.Now = time.Now
	}
	h.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nearcast_awsapi_requests_total",
		Help: "Requests of AWS clients, by operation and the error that was answered.",
	}, []string{"operation", "error"})
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(h.requests); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// call is one request whose signature was right.
type call struct {
	*Handler
	key access.AccessKey
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	id := requestID()
	if p := cloudWatchProtocol(r); p != nil {
		h.serveCloudWatch(w, r, p, id)
		return
	}
	name, answer, err := h.serve(w, r)
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	code := ""
	if err != nil {
		code = err.code
		w.Header().Set("X-Amzn-Errortype", code)
		answer, _ = json.Marshal(map[string]string{"__type": err.code, "Message": err.message})
	}
	h.send(w, name, err, answer)
	h.requests.WithLabelValues(name, code).Inc()
	h.log.Debug("call", "operation", name, "error", code, "peer", r.RemoteAddr, "request_id", id,
		"took", time.Since(began))
}

// send sends an answer. Its length is said, as AWS does: clients stop reading where JSON ends, and of an answer in
// chunks there would be an end to come then, so that the connection could not be used again.
func (h *Handler) send(w http.ResponseWriter, name string, f *fault, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if f != nil {
		w.WriteHeader(f.status)
	}
	if _, err := w.Write(body); err != nil {
		h.log.Debug("answer not taken", "operation", name, "err", err)
	}
}

// serveCloudWatch answers a request to CloudWatch.
func (h *Handler) serveCloudWatch(w http.ResponseWriter, r *http.Request, p *cwProtocol, id string) {
	name, answer, f := h.cloudWatch(w, r, p)
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", p.contentType)
	if p.contentType == "application/cbor" {
		w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
	}
	code, body := "", []byte(nil)
	if f != nil {
		code, body = f.code, p.fault(id, f)
		w.Header().Set("X-Amzn-Query-Error", code+";Sender")
	} else {
		body = p.answer(name, id, answer)
	}
	h.send(w, name, f, body)
	h.requests.WithLabelValues(name, code).Inc()
}

// cloudWatch does what a request asks. name is one of the operations, or "".
func (h *Handler) cloudWatch(w http.ResponseWriter, r *http.Request, p *cwProtocol) (name string, answer tree,
	f *fault) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if err != nil {
		return "", nil, &fault{"RequestEntityTooLarge", http.StatusRequestEntityTooLarge,
			fmt.Sprintf("requests have at most %d bytes", bodyBytesMax)}
	}
	key, err := h.authenticate(r, body)
	var members []byte
	if err == nil {
		name, members, err = p.request(body)
	}
	if err != nil {
		f, _ = (&operation{}).translate(err, "")
		return "", nil, f
	}
	asked := name
	if ask := p.ask(name); ask == nil {
		name = "" // what strangers make up is no label of a metric
	}
	answer, f = h.askCloudWatch(r.Context(), key, p, asked, members)
	return name, answer, f
}

func requestID() string {
	id, err := uuid.NewRandom()
	if err != nil {
		return rand.Text()
	}
	return id.String()
}

// serve does what a request asks. name is one of the operations, or "" for anything else.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request) (name string, answer []byte, f *fault) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if err != nil {
		return "", nil, &fault{"RequestEntityTooLargeException", http.StatusRequestEntityTooLarge,
			fmt.Sprintf("requests have at most %d bytes", bodyBytesMax)}
	}
	target := r.Header.Get("X-Amz-Target")
	op, known := operations[target]
	if known {
		name = target[strings.LastIndexByte(target, '.')+1:]
	}
	key, err := h.authenticate(r, body)
	if err != nil {
		f, ours := (&operation{}).translate(err, "")
		if !ours {
			h.log.Error("request not authenticated", "operation", name, "err", err)
		}
		return name, nil, f
	}
	switch {
	case !known || r.Method != http.MethodPost || r.URL.Path != "/":
		return name, nil, faultf("UnknownOperationException", "%q is no operation of this endpoint", shorten(target))
	case !access.Allows(key.Role, op.need):
		return name, nil, faultf(exDenied,
			"User: arn:aws:iam::%s:user/%s is not authorized to perform: globalaccelerator:%s (its role is %s)",
			key.Account, key.ID, name, strings.TrimPrefix(key.Role.String(), "ROLE_"))
	}
	answer, err = h.run(r, op, call{h, key}, body)
	if err == nil {
		h.audit(r, op, name, key, body, answer, nil)
		return name, answer, nil
	}
	f, theirs := op.translate(err, key.Account)
	if !theirs {
		h.log.Error("operation failed", "operation", name, "key", key.ID, "err", err)
	}
	h.audit(r, op, name, key, body, nil, f)
	return name, nil, f
}

// authenticate returns the key that signed the request.
func (h *Handler) authenticate(r *http.Request, body []byte) (access.AccessKey, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return access.AccessKey{}, faultf("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	a, err := parseAuthorization(header)
	if err != nil {
		return access.AccessKey{}, err
	}
	token := r.Header.Get("X-Amz-Security-Token")
	key, secret, err := h.cfg.Key(r.Context(), a.keyID, token)
	switch {
	case errors.Is(err, access.ErrUnknown) && token != "":
		return access.AccessKey{}, faultf("UnrecognizedClientException", "The security token included in the request is "+
			"invalid: it is not one of this access key (is an AWS_SESSION_TOKEN of something else set?)")
	case errors.Is(err, access.ErrUnknown):
		return access.AccessKey{}, faultf("UnrecognizedClientException",
			"The security token included in the request is invalid.")
	case errors.Is(err, access.ErrExpired):
		return access.AccessKey{}, faultf("ExpiredTokenException", "The security token included in the request is expired")
	case err != nil:
		return access.AccessKey{}, err
	}
	return key, a.verify(r, body, secret, h.cfg.Now())
}

// run calls an operation. A request that nobody foresaw must not take the control plane away from
// everybody else.
func (h *Handler) run(r *http.Request, op *operation, c call, body []byte) (answer []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return op.run(r.Context(), c, body)
}

// audit tells of a change.
func (h *Handler) audit(r *http.Request, op *operation, name string, key access.AccessKey, body, answer []byte,
	f *fault) {
	if h.cfg.Audit == nil || !op.changes() {
		return
	}
	caller := access.Caller{Kind: identity.KindOperator, Name: "access key " + key.ID, Role: key.Role}
	caller.Peer, _ = netip.ParseAddrPort(r.RemoteAddr)
	done := access.Call{Method: "/aws.GlobalAccelerator/" + name}
	request := &structpb.Struct{}
	if request.UnmarshalJSON(body) == nil {
		done.Request = request
	}
	if f != nil {
		done.Err = f
	} else if id := madeID(answer); id != "" {
		done.Response = &v1.GetRequest{Id: id}
	}
	h.cfg.Audit(access.WithCaller(context.WithoutCancel(r.Context()), caller), done)
}

// madeID finds the ARN of what an answer is about.
func madeID(answer []byte) string {
	var out struct {
		Accelerator   struct{ AcceleratorArn string }
		Listener      struct{ ListenerArn string }
		EndpointGroup struct{ EndpointGroupArn string }

		CrossAccountAttachment struct{ AttachmentArn string }
		ByoipCidr              struct{ Cidr string }
	}
	if json.Unmarshal(answer, &out) != nil {
		return ""
	}
	return out.Accelerator.AcceleratorArn + out.Listener.ListenerArn + out.EndpointGroup.EndpointGroupArn +
		out.CrossAccountAttachment.AttachmentArn + out.ByoipCidr.Cidr
}
