package awsapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"

	"github.com/nearcast/nearcast/controlplane/access"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

const testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

var signedTime = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// signed returns a request as a server reads it, signed by the SDK.
func signed(t testing.TB, url, region, service, body string, header ...string) *http.Request {
	t.Helper()
	r := must[*http.Request](t)(http.NewRequest("POST", url, strings.NewReader(body)))
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", targetPrefix+"ListAccelerators")
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	sum := sha256.Sum256([]byte(body))
	err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: "NCAKEXAMPLE",
		SecretAccessKey: testSecret}, r, hex.EncodeToString(sum[:]), service, region, signedTime)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = r.URL.Host
	return r
}

func verify(r *http.Request, body string, at time.Time) error {
	a, err := parseAuthorization(r.Header.Get("Authorization"))
	if err != nil {
		return err
	}
	return a.verify(r, []byte(body), testSecret, at)
}

func faultCode(err error) string {
	var f *fault
	if errors.As(err, &f) {
		return f.code
	}
	return fmt.Sprint(err)
}

func TestSignaturesOfTheSDK(t *testing.T) {
	for name, r := range map[string]*http.Request{
		"plain":   signed(t, "http://ctl.example.com:8080/", "us-west-2", "globalaccelerator", "{}"),
		"region":  signed(t, "http://192.0.2.1/", "eu-ams-1", "monitoring", "{}"),
		"query":   signed(t, "http://x/?b=2&a=1&a=0&c=%20%2F+~&d", "us-west-2", "tagging", "{}"),
		"path":    signed(t, "http://x/a%20b/c/", "us-west-2", "tagging", "{}"),
		"spaces":  signed(t, "http://x/", "us-west-2", "x", "{}", "X-Amz-Meta-A", "  a   b ", "X-Amz-Meta-A", "c"),
		"unicode": signed(t, "http://x/", "us-west-2", "x", "{}", "X-Amz-Meta-A", "ü"),
	} {
		if err := verify(r, "{}", signedTime); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, err := range map[string]error{
			"another body": verify(r, "{ }", signedTime),
			"another host": func() error {
				c := r.Clone(context.Background())
				c.Host = "elsewhere"
				return verify(c, "{}", signedTime)
			}(),
			"another target": func() error {
				c := r.Clone(context.Background())
				c.Header.Set("X-Amz-Target", targetPrefix+"DeleteAccelerator")
				return verify(c, "{}", signedTime)
			}(),
			"too old":   verify(r, "{}", signedTime.Add(skewMax+time.Second)),
			"too young": verify(r, "{}", signedTime.Add(-skewMax-time.Second)),
		} {
			if faultCode(err) != "InvalidSignatureException" {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		if err := verify(r, "{}", signedTime.Add(skewMax)); err != nil {
			t.Errorf("%s, just in time: %v", name, err)
		}
	}
}

func TestHeadersThatMustBeSigned(t *testing.T) {
	for _, name := range []string{"host", "x-amz-date", "x-amz-target"} {
		r := signed(t, "http://x/", "us-west-2", "x", "{}")
		auth := r.Header.Get("Authorization")
		r.Header.Set("Authorization", strings.Replace(strings.Replace(auth, name+";", "", 1), ";"+name, "", 1))
		if code := faultCode(verify(r, "{}", signedTime)); code != "IncompleteSignatureException" {
			t.Errorf("%s not signed: %s", name, code)
		}
	}
	r := signed(t, "http://x/", "us-west-2", "x", "{}")
	r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	if verify(r, "{}", signedTime) == nil {
		t.Error("a payload that is not signed was taken")
	}
}

func TestAuthentication(t *testing.T) {
	w := newWorld(t)
	k, secret, err := w.keys.Create(t.Context(), access.AccessKey{Role: v1.Role_ROLE_OPERATOR})
	if err != nil {
		t.Fatal(err)
	}
	try := func(id, secret, token string) error {
		c := w.clientWith(aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token})
		return second(c.ListAccelerators(t.Context(), &ga.ListAcceleratorsInput{}))
	}
	if err := try(k.ID, secret, ""); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a wrong secret", try(k.ID, secret+"x", ""), "InvalidSignatureException")
	wantCode(t, "an unknown key", try("AKIAIOSFODNN7EXAMPLE", secret, ""), "UnrecognizedClientException")
	wantCode(t, "a session token", try(k.ID, secret, "abc"), "UnrecognizedClientException")
	w.set(func() { w.skew = 6 * time.Minute })
	wantCode(t, "a clock 6 minutes off", try(k.ID, secret, ""), "InvalidSignatureException")
	w.set(func() { w.skew = 4 * time.Minute })
	if err := try(k.ID, secret, ""); err != nil {
		t.Errorf("a clock 4 minutes off: %v", err)
	}
	w.set(func() { w.skew = 0 })
	if err := w.keys.Delete(t.Context(), k.ID, 0); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a revoked key", try(k.ID, secret, ""), "UnrecognizedClientException")

	h := must[*Handler](t)(New(w.bare()))
	for what, c := range map[string]struct {
		header, body string
		status       int
		code         string
	}{
		"nothing":    {"", "{}", 400, "MissingAuthenticationTokenException"},
		"bearer":     {"Bearer x", "{}", 400, "IncompleteSignatureException"},
		"large body": {"", strings.Repeat("x", bodyBytesMax+1), 413, "RequestEntityTooLargeException"},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(c.body))
		r.Header.Set("Authorization", c.header)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != c.status || !strings.Contains(rec.Body.String(), `"__type":"`+c.code+`"`) ||
			rec.Header().Get("X-Amzn-Requestid") == "" {
			t.Errorf("%s: %d %s", what, rec.Code, rec.Body)
		}
	}
}

func FuzzAuthorization(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=A/20260701/us-west-2/globalaccelerator/aws4_request, " +
		"SignedHeaders=content-type;host;x-amz-date, Signature=" + strings.Repeat("0a", 32))
	f.Add("AWS4-HMAC-SHA256 Credential=////,SignedHeaders=,Signature=")
	f.Add("Bearer x")
	f.Fuzz(func(t *testing.T, header string) {
		a, err := parseAuthorization(header)
		if err != nil {
			if faultCode(err) != "IncompleteSignatureException" {
				t.Errorf("%q: %v", header, err)
			}
			return
		}
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("X-Amz-Date", signedTime.Format(sigTime))
		if a.verify(r, nil, testSecret, signedTime) == nil {
			t.Errorf("%q was taken for a signature", header)
		}
	})
}

// FuzzRequests gives any body to any operation: the answer is a fault or a success, never a panic, and
// nothing is ours to blame.
func FuzzRequests(f *testing.F) {
	w := newWorld(f)
	key := access.AccessKey{ID: "k", Role: v1.Role_ROLE_OPERATOR, Project: "default", Account: account}
	h := must[*Handler](f)(New(w.bare()))
	f.Add("ListAccelerators", []byte(`{"MaxResults":1,"NextToken":"accelerators-1"}`))
	f.Add("CreateListener", []byte(`{"PortRanges":[{"FromPort":1e3}],"Protocol":"TCP"}`))
	f.Add("TagResource", []byte(`{"ResourceArn":"arn:aws:globalaccelerator::123456789012:accelerator/x","Tags":[null]}`))
	f.Add("UpdateEndpointGroup", []byte(`{"TrafficDialPercentage":1e99}`))
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		op := operations[targetPrefix+name]
		if op == nil || op.run == nil {
			return
		}
		r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		if _, err := h.run(r, op, call{h, key}, body); err != nil {
			if f, theirs := op.translate(err, account); !theirs {
				t.Errorf("%s %q: %v: %v", name, body, f, err)
			}
		}
	})
}
