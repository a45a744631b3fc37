package enroll

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
)

// Authority is the cluster's certificate authority, the same at every controller. Load must have
// succeeded before anything else is asked of it.
type Authority struct {
	store   *store.Store
	cluster string
	log     *slog.Logger

	mu      sync.Mutex
	current *authority
	changed chan struct{} // closed when current is replaced
}

// authority is one immutable state of an Authority.
type authority struct {
	ca    *identity.CA        // signs
	roots []*x509.Certificate // its certificate first, then those still trusted
}

// storedAuthority is an authority as it lies in the store.
type storedAuthority struct {
	Active  string `json:"active"`            // PEM: key and certificate
	Trusted string `json:"trusted,omitempty"` // PEM: certificates trusted besides, while one rotates
}

// NewAuthority returns the authority that s holds for a cluster. log may be nil.
func NewAuthority(s *store.Store, cluster string, log *slog.Logger) (*Authority, error) {
	if err := identity.ValidateCluster(cluster); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Authority{store: s, cluster: cluster, log: log, changed: make(chan struct{})}, nil
}

// Load reads the authority, or makes it if the cluster has none yet. A store that holds another
// cluster is an error.
func (a *Authority) Load(ctx context.Context) error {
	kv, err := a.store.Get(ctx, authorityKey)
	if errors.Is(err, store.ErrNotFound) {
		if err := a.create(ctx); err != nil {
			return err
		}
		kv, err = a.store.Get(ctx, authorityKey)
	}
	if err != nil {
		return fmt.Errorf("read the authority: %w", err)
	}
	return a.take(kv.Value)
}

func (a *Authority) create(ctx context.Context) error {
	ca, err := identity.NewCA(a.cluster)
	if err != nil {
		return err
	}
	pem, err := ca.Marshal()
	if err != nil {
		return err
	}
	value, err := json.Marshal(storedAuthority{Active: string(pem)})
	if err != nil {
		return fmt.Errorf("encode the authority: %w", err)
	}
	_, err = a.store.Txn(ctx, []store.Cond{store.Absent(authorityKey)}, store.Put(authorityKey, value))
	if errors.Is(err, store.ErrConflict) {
		return nil // another controller was first, and its authority is the one
	}
	if err != nil {
		return fmt.Errorf("store the authority: %w", err)
	}
	a.log.Info("certificate authority made", "cluster", a.cluster, "hash", fmt.Sprintf("%x", ca.Hash()))
	return nil
}

// take makes a stored authority the current one.
func (a *Authority) take(value []byte) error {
	var stored storedAuthority
	if err := json.Unmarshal(value, &stored); err != nil {
		return fmt.Errorf("read the authority: %w", err)
	}
	ca, err := identity.ParseCA([]byte(stored.Active))
	if err != nil {
		return err
	}
	if ca.Cluster() != a.cluster {
		return fmt.Errorf("the store holds cluster %q, not %q", ca.Cluster(), a.cluster)
	}
	n := &authority{ca: ca, roots: []*x509.Certificate{ca.Certificate()}}
	if stored.Trusted != "" {
		more, err := identity.ParseCertificatesPEM([]byte(stored.Trusted))
		if err != nil {
			return fmt.Errorf("read the authorities trusted besides: %w", err)
		}
		n.roots = append(n.roots, more...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = n
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

func (a *Authority) get() (*authority, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current, a.changed
}

// Cluster returns the cluster's name.
func (a *Authority) Cluster() string { return a.cluster }

// CA returns the authority that signs now.
func (a *Authority) CA() *identity.CA {
	n, _ := a.get()
	return n.ca
}

// Roots returns the authorities trusted, the one that signs first. The caller must not change them.
func (a *Authority) Roots() []*x509.Certificate {
	n, _ := a.get()
	return n.roots
}

// SignNode signs a node's certificate for the key of a request.
func (a *Authority) SignNode(csrDER []byte, id string) ([]byte, error) {
	return a.CA().Sign(csrDER, identity.Subject{Cluster: a.cluster, Kind: identity.KindNode, Name: id},
		identity.LeafLifetime)
}

// Issue makes credentials for this process itself.
func (a *Authority) Issue(kind identity.Kind, name string) (*identity.Credentials, error) {
	c := new(identity.Credentials)
	return c, a.reissue(c, kind, name)
}

func (a *Authority) reissue(c *identity.Credentials, kind identity.Kind, name string) error {
	now, _ := a.get()
	key, csr, err := identity.NewRequest()
	if err != nil {
		return err
	}
	der, err := now.ca.Sign(csr, identity.Subject{Cluster: a.cluster, Kind: kind, Name: name},
		identity.LeafLifetime)
	if err != nil {
		return err
	}
	return c.Update(der, key, now.roots)
}

// Run follows the authority in the store and keeps this process's own credentials, which Issue made,
// fresh: they are made anew at two thirds of their life, and when the authority changes.
func (a *Authority) Run(ctx context.Context, own *identity.Credentials) error {
	_, changed := a.get() // before the watch may change it: what it is told first may be another authority
	watching := make(chan error, 1)
	go func() { watching <- a.follow(ctx) }()
	err := a.keep(ctx, own, changed)
	if watchErr := <-watching; err == nil {
		err = watchErr
	}
	return err
}

// follow takes over each change of the stored authority.
func (a *Authority) follow(ctx context.Context) error {
	err := a.store.Watch(ctx, authorityKey, 0, func(u store.Update) error {
		for _, kv := range u.Puts {
			if kv.Key != authorityKey {
				continue
			}
			if err := a.take(kv.Value); err != nil {
				a.log.Error("the stored authority is refused; the old one stays", "err", err)
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch the authority: %w", err)
}

// keep makes own anew when it is time, and whenever changed, and what follows it, is closed.
func (a *Authority) keep(ctx context.Context, own *identity.Credentials, changed <-chan struct{}) error {
	subject := own.Subject()
	for {
		timer := time.NewTimer(time.Until(own.RenewAt()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
		_, changed = a.get()
		if err := a.reissue(own, subject.Kind, subject.Name); err != nil {
			a.log.Error("own certificate is not renewed; trying again", "err", err, "ends", own.NotAfter())
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(renewRetry):
			}
		}
	}
}
