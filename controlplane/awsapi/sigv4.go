package awsapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file verifies AWS Signature Version 4 as AWS's documentation describes it, for any region and
// service and whatever headers the client signed. It is for requests whose signature is in the
// Authorization header; presigned URLs are not for JSON services.

const (
	sigAlgorithm = "AWS4-HMAC-SHA256"
	sigTime      = "20060102T150405Z"
	sigEnd       = "aws4_request"
)

// authorization is what an Authorization header says.
type authorization struct {
	keyID, date, region, service string   // the credential and its scope
	signed                       []string // names of headers, lower case, in the order given
	signature                    []byte
}

// parseAuthorization reads an Authorization header. Its errors are faults.
func parseAuthorization(header string) (a authorization, err error) {
	if len(header) > authorizationBytesMax {
		return a, incomplete("the Authorization header is too long")
	}
	algorithm, rest, _ := strings.Cut(strings.TrimSpace(header), " ")
	if algorithm != sigAlgorithm {
		return a, incomplete("Authorization header requires the algorithm " + sigAlgorithm)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if _, twice := parts[name]; !ok || twice {
			return a, incomplete("Authorization header has a part that is not name=value, or one twice")
		}
		parts[name] = value
	}
	for _, name := range []string{"Credential", "SignedHeaders", "Signature"} {
		if parts[name] == "" {
			return a, incomplete("Authorization header requires '" + name + "' parameter")
		}
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(scope) != 5 || scope[4] != sigEnd || slices.Contains(scope, "") {
		return a, incomplete("Credential must be KEY/YYYYMMDD/REGION/SERVICE/" + sigEnd)
	}
	a.keyID, a.date, a.region, a.service = scope[0], scope[1], scope[2], scope[3]
	a.signed = strings.Split(parts["SignedHeaders"], ";")
	if len(a.signed) > signedHeadersMax {
		return a, incomplete("SignedHeaders names too many headers")
	}
	for _, name := range a.signed {
		if name == "" || name != strings.ToLower(name) {
			return a, incomplete("SignedHeaders must be names in lower case with ';' between them")
		}
	}
	a.signature, err = hex.DecodeString(parts["Signature"])
	if err != nil || len(a.signature) != sha256.Size {
		return a, incomplete("Signature must have 64 hexadecimal digits")
	}
	return a, nil
}

// signedAt returns when the request says that it was signed, and checks that this is about now.
func (a *authorization) signedAt(h http.Header, now time.Time) (time.Time, error) {
	at, err := time.Parse(sigTime, h.Get("X-Amz-Date"))
	if err != nil {
		if h.Get("X-Amz-Date") != "" || !slices.Contains(a.signed, "date") {
			return at, incomplete("X-Amz-Date must be there, be signed, and look like " + sigTime)
		}
		if at, err = http.ParseTime(h.Get("Date")); err != nil {
			return at, incomplete("the Date header is not one of HTTP")
		}
	}
	at = at.UTC()
	if at.Format("20060102") != a.date {
		return at, invalidSignature("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date")
	}
	switch show := func(t time.Time) string { return t.UTC().Format(sigTime) }; {
	case at.Before(now.Add(-skewMax)):
		return at, invalidSignature(fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - 5 min.)",
			show(at), show(now.Add(-skewMax)), show(now)))
	case at.After(now.Add(skewMax)):
		return at, invalidSignature(fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + 5 min.)",
			show(at), show(now.Add(skewMax)), show(now)))
	}
	return at, nil
}

// mustSign are the headers that change what a request means; a signature that leaves one out could be
// carried over to another request.
var mustSign = []string{"X-Amz-Date", "X-Amz-Target", "X-Amz-Content-Sha256", "X-Amz-Security-Token"}

// verify checks that who knows secret signed r, with body, about now. Its errors are faults.
func (a *authorization) verify(r *http.Request, body []byte, secret string, now time.Time) error {
	at, err := a.signedAt(r.Header, now)
	if err != nil {
		return err
	}
	if !slices.Contains(a.signed, "host") {
		return incomplete("'Host' must be a 'SignedHeader' in the AWS Authorization")
	}
	for _, name := range mustSign {
		if len(r.Header.Values(name)) > 0 && !slices.Contains(a.signed, strings.ToLower(name)) {
			return incomplete("'" + name + "' must be a 'SignedHeader' in the AWS Authorization")
		}
	}
	sum := sha256.Sum256(body)
	payload := hex.EncodeToString(sum[:])
	if said := r.Header.Get("X-Amz-Content-Sha256"); said != "" && said != payload {
		return invalidSignature("X-Amz-Content-Sha256 is not the hash of the body")
	}
	canonical, err := a.canonicalRequest(r, payload)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(canonical))
	scope := strings.Join([]string{a.date, a.region, a.service, sigEnd}, "/")
	toSign := strings.Join([]string{sigAlgorithm, at.Format(sigTime), scope, hex.EncodeToString(hash[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{a.date, a.region, a.service, sigEnd, toSign} {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part))
		key = m.Sum(nil)
	}
	if !hmac.Equal(key, a.signature) {
		return invalidSignature("The request signature we calculated does not match the signature you provided. " +
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

func (a *authorization) canonicalRequest(r *http.Request, payload string) (string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", incomplete("the query cannot be read")
	}
	var pairs []string
	for name, values := range query {
		for _, v := range values {
			pairs = append(pairs, sigEscape(name, false)+"="+sigEscape(v, false))
		}
	}
	slices.Sort(pairs)
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, sigEscape(path, true), strings.Join(pairs, "&"))
	for _, name := range a.signed {
		fmt.Fprintf(&b, "%s:%s\n", name, headerValue(r, name))
	}
	fmt.Fprintf(&b, "\n%s\n%s", strings.Join(a.signed, ";"), payload)
	return b.String(), nil
}

// headerValue returns a header as it is signed: values joined, runs of spaces one space.
func headerValue(r *http.Request, name string) string {
	switch name { // the HTTP server takes these out of the header
	case "host":
		return r.Host
	case "content-length":
		if r.ContentLength >= 0 {
			return strconv.FormatInt(r.ContentLength, 10)
		}
	case "transfer-encoding":
		return strings.Join(r.TransferEncoding, ",")
	}
	values := slices.Clone(r.Header.Values(name))
	for i, v := range values {
		values[i] = strings.Join(strings.FieldsFunc(v, func(c rune) bool { return c == ' ' }), " ")
	}
	return strings.Join(values, ",")
}

// sigEscape is percent-encoding of all but the unreserved characters of RFC 3986, and of '/' if it stays.
func sigEscape(s string, slash bool) string {
	const upper = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			strings.IndexByte("-._~", c) >= 0, c == '/' && slash:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', upper[c>>4], upper[c&15]})
		}
	}
	return b.String()
}
