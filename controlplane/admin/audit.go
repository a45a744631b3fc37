package admin

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Audit is the log of changes, in the store, so that it is one for all controllers.
type Audit struct {
	store *store.Store
	log   *slog.Logger
}

// NewAudit returns the audit log that s holds. log gets every entry too, and may be nil.
func NewAudit(s *store.Store, log *slog.Logger) *Audit {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Audit{store: s, log: log}
}

// Record writes an entry about a call that has ended. It is access.Config.Audit. What cannot be stored
// is in the process's log at least.
func (a *Audit) Record(ctx context.Context, call access.Call) {
	ctx, cancel := context.WithTimeout(ctx, auditWriteTimeout)
	defer cancel()
	entry := auditEntry(access.FromContext(ctx), call, time.Now())
	a.log.Info("audit", "operator", entry.Operator, "method", entry.Method, "object", entry.Object,
		"outcome", entry.Outcome, "peer", entry.Peer, "request", entry.Request)
	value, err := proto.Marshal(entry)
	if err == nil {
		_, err = a.store.Put(ctx, auditKey(entry.Time.AsTime()), value)
	}
	if err != nil {
		a.log.Error("an entry of the audit log is not stored", "err", err)
	}
}

// auditKey sorts the newest entry first.
func auditKey(t time.Time) string {
	return fmt.Sprintf("%s%019d-%s", auditPrefix, math.MaxInt64-t.UnixNano(), rand.Text()[:8])
}

func auditEntry(caller access.Caller, call access.Call, now time.Time) *v1.AuditEntry {
	method := call.Method[strings.LastIndexByte(call.Method, '/')+1:]
	entry := &v1.AuditEntry{
		Time: timestamppb.New(now), Operator: caller.Name, Method: method, Outcome: "ok",
		Object: objectOf(method, call), Request: withoutSecrets(call.Request), Revision: revisionOf(call.Response),
	}
	if r, ok := call.Request.(*v1.EnrollRequest); ok {
		if token, err := identity.ParseToken(r.GetToken()); err == nil {
			entry.Operator = "join token " + token.ID
		}
	}
	if caller.Peer.IsValid() {
		entry.Peer = caller.Peer.String()
	}
	if call.Err != nil {
		s := status.Convert(call.Err)
		entry.Outcome = s.Code().String() + ": " + s.Message()
	}
	return entry
}

// objectOf names what a call was about: its kind by the method, its id by the answer or the request.
func objectOf(method string, call access.Call) string {
	kind := method
	for _, verb := range []string{"Create", "Update", "Delete", "Add", "Remove", "Tag", "Untag", "Set"} {
		if rest, ok := strings.CutPrefix(method, verb); ok {
			kind = rest
			break
		}
	}
	kind = strings.ToLower(kind)
	for _, m := range []any{call.Response, call.Request} {
		if id := idOf(m, 2); id != "" {
			return kind + "/" + id
		}
	}
	return kind
}

// idOf finds the id in a message: a field that is one, or the same one level below.
func idOf(m any, depth int) string {
	message, ok := m.(proto.Message)
	if !ok || depth == 0 || !message.ProtoReflect().IsValid() {
		return ""
	}
	r := message.ProtoReflect()
	for _, name := range []protoreflect.Name{"id", "group_id", "node_id", "name"} {
		f := r.Descriptor().Fields().ByName(name)
		if f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() && r.Get(f).String() != "" {
			return r.Get(f).String()
		}
	}
	for i := range r.Descriptor().Fields().Len() {
		f := r.Descriptor().Fields().Get(i)
		if f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap() && r.Has(f) {
			if id := idOf(r.Get(f).Message().Interface(), depth-1); id != "" {
				return id
			}
		}
	}
	return ""
}

func revisionOf(m any) uint64 {
	if r, ok := m.(interface{ GetRevision() uint64 }); ok {
		return r.GetRevision()
	}
	return 0
}

// secretFields are the names of text and bytes that must not be written down, and of what is too long
// and says nothing.
var secretFields = []protoreflect.Name{"secret", "token", "password", "gossip_keys", "certificate_request"}

// withoutSecrets returns a request as JSON, cut to what is kept.
func withoutSecrets(request any) string {
	m, ok := request.(proto.Message)
	if !ok {
		return ""
	}
	m = proto.Clone(m)
	redact(m.ProtoReflect())
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return ""
	}
	if len(text) > auditRequestBytes {
		return strings.ToValidUTF8(string(text[:auditRequestBytes]), "") + "…"
	}
	return string(text)
}

func redact(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		isMessage := f.Kind() == protoreflect.MessageKind
		switch {
		case slices.Contains(secretFields, f.Name()) && !isMessage:
			m.Clear(f)
			if f.Kind() == protoreflect.StringKind && !f.IsList() {
				m.Set(f, protoreflect.ValueOfString("(redacted)"))
			}
		case isMessage && f.IsList():
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		case isMessage && !f.IsMap():
			redact(v.Message())
		}
		return true
	})
}

// List returns a page of entries, newest first.
func (a *Audit) List(ctx context.Context, req *v1.ListRequest) (*v1.ListAuditResponse, error) {
	size, after, err := pageRequest(req)
	if err != nil {
		return nil, err
	}
	if after != "" && !strings.HasPrefix(after, auditPrefix) {
		return nil, access.Invalid("page_token", "is not one that a list returned")
	}
	page, err := a.store.List(ctx, auditPrefix, store.ListOptions{Limit: size, After: after})
	if err != nil {
		return nil, fmt.Errorf("list the audit log: %w", err)
	}
	resp := &v1.ListAuditResponse{}
	for _, kv := range page.Items {
		entry := new(v1.AuditEntry)
		if err := proto.Unmarshal(kv.Value, entry); err != nil {
			return nil, status.Errorf(codes.DataLoss, "read %s from the store: %v", kv.Key, err)
		}
		resp.Entries = append(resp.Entries, entry)
	}
	if page.More && len(page.Items) > 0 {
		resp.NextPageToken = pageToken(page.Items[len(page.Items)-1].Key)
	}
	return resp, nil
}

// Run keeps the log bounded until ctx ends, while turn says that it is this process's turn.
func (a *Audit) Run(ctx context.Context, turn func() bool) error {
	tick := time.NewTicker(auditTrimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !turn() {
			continue
		}
		if err := a.trim(ctx, auditEntriesMax); err != nil && ctx.Err() == nil {
			a.log.Warn("the audit log is not trimmed; trying again", "err", err)
		}
	}
}

// trim removes the oldest entries beyond max.
func (a *Audit) trim(ctx context.Context, max int) error {
	page, err := a.store.List(ctx, auditPrefix, store.ListOptions{KeysOnly: true})
	if err != nil {
		return err
	}
	if len(page.Items) <= max {
		return nil
	}
	for chunk := range slices.Chunk(page.Items[max:], auditTrimAtOnce) {
		ops := make([]store.Op, len(chunk))
		for i, kv := range chunk {
			ops[i] = store.Delete(kv.Key)
		}
		if _, err := a.store.Txn(ctx, nil, ops...); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) ListAudit(ctx context.Context, req *v1.ListRequest) (*v1.ListAuditResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	return s.cfg.Audit.List(ctx, req)
}
