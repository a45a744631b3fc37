// Package identity answers: who is at the other end of a connection?
//
// The cluster is a certificate authority. Every process of it has an ECDSA P-256 key and a short-lived
// certificate whose only name is a SPIFFE URI, spiffe://<cluster>/<kind>/<name>. DNS names and
// addresses play no part: machines move, identities stay. This package makes and reads those
// certificates, and holds the one recipe for a *tls.Config that the whole project uses:
//
//   - TLS 1.3 only, no session tickets (so that every handshake proves the identity anew);
//   - the chain is verified against the current roots, which may be several while the authority
//     rotates, at each handshake and not when the Config was made;
//   - then the URI is read and its cluster, kind and, where wanted, name are compared.
//
// crypto/tls's own verification is replaced (it insists on host names), never merely switched off.
//
// A machine that has no certificate yet holds a join token: the SHA-256 of the authority's
// certificate, an id and a secret. JoinTLS checks the authority by that hash, so the secret is sent
// to nobody else.
package identity
