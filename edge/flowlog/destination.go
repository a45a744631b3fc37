package flowlog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Destination is where files of records go. Putting the same file again replaces it.
type Destination interface {
	Put(ctx context.Context, bucket, key string, body []byte) error
}

// Directory is a Destination on a file system: bucket and key are a path below it.
type Directory string

// Put writes a file whole or not at all.
func (d Directory) Put(_ context.Context, bucket, key string, body []byte) error {
	at := filepath.Join(string(d), filepath.FromSlash(filepath.Join("/", bucket, key)))
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(at), ".part-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(body)
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), at)
}

// S3 is a Destination that speaks S3's protocol, in path style, which every compatible store takes. One
// request is all that is needed (a file has at most 75 MB before compression), so this is an HTTP request
// with the signature of AWS's own SDK, and not a client library.
type S3 struct {
	Endpoint string // "https://host:port"
	Region   string // of the signature
	Key      string // access key id
	Secret   string
	Token    string       // session token, may be empty
	Client   *http.Client // nil: http.DefaultClient
}

// Validate reports what is missing.
func (s *S3) Validate() error {
	u, err := url.Parse(s.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is not an endpoint, like https://s3.eu-west-1.amazonaws.com", s.Endpoint)
	case s.Key == "" || s.Secret == "":
		return errors.New("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case s.Region == "":
		return errors.New("no region for signatures: set AWS_REGION")
	}
	return nil
}

// Put stores an object.
func (s *S3) Put(ctx context.Context, bucket, key string, body []byte) error {
	if bucket == "" {
		return errors.New("the accelerator has no bucket for its flow logs")
	}
	at := strings.TrimRight(s.Endpoint, "/") + "/" + bucket + "/" + (&url.URL{Path: key}).EscapedPath()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, at, bytes.NewReader(body))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	req.Header.Set("Content-Type", "application/gzip")
	req.Header.Set("X-Amz-Content-Sha256", hash)
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	creds := aws.Credentials{AccessKeyID: s.Key, SecretAccessKey: s.Secret, SessionToken: s.Token}
	if err := signer.SignHTTP(ctx, creds, req, hash, "s3", s.Region, time.Now()); err != nil {
		return err
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("put %s/%s: %s: %s", bucket, key, res.Status, bytes.TrimSpace(text))
	}
	return nil
}
