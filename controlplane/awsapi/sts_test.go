package awsapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"

	"github.com/nearcast/nearcast/controlplane/access"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// stsAnswer is what is looked at of STS's answers.
type stsAnswer struct {
	XMLName xml.Name
	Code    string         `xml:"Error>Code"`
	Account string         `xml:"GetCallerIdentityResult>Account"`
	Arn     string         `xml:"GetCallerIdentityResult>Arn"`
	Token   stsCredentials `xml:"GetSessionTokenResult>Credentials"`
	Assumed stsCredentials `xml:"AssumeRoleResult>Credentials"`
	User    string         `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
}

type stsCredentials struct {
	AccessKeyId, SecretAccessKey, SessionToken string
	Expiration                                 time.Time
}

func (c stsCredentials) aws() aws.Credentials {
	return aws.Credentials{AccessKeyID: c.AccessKeyId, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
}

// sts asks as SDKs do: a form, signed.
func (w *world) sts(c aws.Credentials, action string, form ...string) (out stsAnswer) {
	w.t.Helper()
	values := url.Values{"Action": {action}, "Version": {"2011-06-15"}}
	for i := 0; i < len(form); i += 2 {
		values.Set(form[i], form[i+1])
	}
	body := values.Encode()
	r := must[*http.Request](w.t)(http.NewRequestWithContext(w.t.Context(), "POST", w.url+"/", strings.NewReader(body)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(w.t.Context(), c, r, hex.EncodeToString(sum[:]), "sts", "us-east-1", time.Now()); err != nil {
		w.t.Fatal(err)
	}
	resp := must[*http.Response](w.t)(http.DefaultTransport.RoundTrip(r))
	defer resp.Body.Close()
	text := must[[]byte](w.t)(io.ReadAll(resp.Body))
	if err := xml.Unmarshal(text, &out); err != nil {
		w.t.Fatalf("%v: %s", err, text)
	}
	w.t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	return out
}

func TestSTS(t *testing.T) {
	w := newWorld(t)
	k, secret, err := w.keys.Create(t.Context(), access.AccessKey{Role: v1.Role_ROLE_OPERATOR, Account: account})
	if err != nil {
		t.Fatal(err)
	}
	key := aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: secret}
	if me := w.sts(key, "GetCallerIdentity"); me.Account != account || me.Arn != "arn:aws:iam::"+account+":user/"+k.ID ||
		me.XMLName.Space != stsXML {
		t.Errorf("who am I: %+v", me)
	}
	token := w.sts(key, "GetSessionToken", "DurationSeconds", "900").Token
	if time.Until(token.Expiration) > 15*time.Minute || time.Until(token.Expiration) < 10*time.Minute {
		t.Errorf("a session until %v", token.Expiration)
	}
	assumed := w.sts(key, "AssumeRole", "RoleArn", "arn:aws:iam::"+account+":role/viewer", "RoleSessionName", "ada")
	if assumed.User != "arn:aws:sts::"+account+":assumed-role/viewer/ada" {
		t.Errorf("assumed %+v", assumed)
	}
	viewer := assumed.Assumed.aws()
	if me := w.sts(viewer, "GetCallerIdentity"); me.Arn != assumed.User {
		t.Errorf("who is the session: %+v", me)
	}
	// Sessions do what they may, and no more.
	arn := w.accelerator(w.clientWith(token.aws()), "web").AcceleratorArn
	reader := w.clientWith(viewer)
	must[any](t)(reader.DescribeAccelerator(t.Context(), &ga.DescribeAcceleratorInput{AcceleratorArn: arn}))
	_, err = reader.UpdateAccelerator(t.Context(), &ga.UpdateAcceleratorInput{AcceleratorArn: arn, Name: aws.String("x")})
	wantCode(t, "a viewer's session that changes", err, "AccessDeniedException")
	for what, c := range map[string]struct {
		by   aws.Credentials
		code string
		ask  []string
	}{
		"more than the key":   {key, "AccessDenied", []string{"AssumeRole", "RoleArn", "arn:aws:iam::" + account + ":role/admin", "RoleSessionName", "ada"}},
		"another account's":   {key, "AccessDenied", []string{"AssumeRole", "RoleArn", "arn:aws:iam::" + consumer + ":role/viewer", "RoleSessionName", "ada"}},
		"no such role":        {key, "AccessDenied", []string{"AssumeRole", "RoleArn", "arn:aws:iam::" + account + ":role/root", "RoleSessionName", "ada"}},
		"no name":             {key, "ValidationError", []string{"AssumeRole", "RoleArn", "arn:aws:iam::" + account + ":role/viewer"}},
		"too short":           {key, "ValidationError", []string{"GetSessionToken", "DurationSeconds", "60"}},
		"endless":             {key, "ValidationError", []string{"GetSessionToken", "DurationSeconds", "99999999999"}},
		"of a session":        {viewer, "AccessDenied", []string{"GetSessionToken"}},
		"what is not offered": {key, "InvalidAction", []string{"GetFederationToken"}},
	} {
		if got := w.sts(c.by, c.ask[0], c.ask[1:]...); got.Code != c.code {
			t.Errorf("%s: %q, want %s", what, got.Code, c.code)
		}
	}
	w.set(func() { w.skew = 4 * time.Minute })
	if err := w.keys.Delete(t.Context(), k.ID, 0); err != nil {
		t.Fatal(err)
	}
	_, err = reader.DescribeAccelerator(t.Context(), &ga.DescribeAcceleratorInput{AcceleratorArn: arn})
	wantCode(t, "a session whose key was revoked", err, "UnrecognizedClientException")
}
