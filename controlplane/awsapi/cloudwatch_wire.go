package awsapi

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CloudWatch is asked in three protocols: the query protocol of older clients (forms, answered in XML),
// JSON 1.0, and RPC v2 in CBOR (RFC 8949) of newer ones. Each becomes the JSON of the request's members and
// is answered with a tree.

// cwProtocol is how one request is spoken.
type cwProtocol struct {
	contentType string
	request     func(body []byte) (operation string, members []byte, err error)
	answer      func(operation, requestID string, t tree) []byte
	fault       func(requestID string, f *fault) []byte
}

// ask returns what answers an operation, or nil. STS is spoken in the query protocol only.
func (p *cwProtocol) ask(operation string) func(call, context.Context, []byte) (tree, error) {
	if ask := sts[operation]; ask != nil && p.contentType == contentXML {
		return ask
	}
	return cloudWatch[operation]
}

const contentXML = "text/xml"

const cborPath = "/service/" + cloudWatchService + "/operation/"

// cloudWatchProtocol returns the protocol of a request to CloudWatch, or nil for a request that is none.
func cloudWatchProtocol(r *http.Request) *cwProtocol {
	kind := r.Header.Get("Content-Type")
	target := r.Header.Get("X-Amz-Target")
	switch {
	case r.Method != http.MethodPost:
		return nil
	case strings.HasPrefix(r.URL.Path, cborPath):
		return &cwProtocol{"application/cbor", func(body []byte) (string, []byte, error) {
			members, err := cborToJSON(body)
			return strings.TrimPrefix(r.URL.Path, cborPath), members, err
		}, func(_, _ string, t tree) []byte { return cborTree(t) }, func(_ string, f *fault) []byte {
			return cborTree(tree{"__type": f.code, "message": f.message})
		}}
	case strings.HasPrefix(target, cloudWatchService+"."):
		return &cwProtocol{"application/x-amz-json-1.0", func(body []byte) (string, []byte, error) {
			return strings.TrimPrefix(target, cloudWatchService+"."), body, nil
		}, func(_, _ string, t tree) []byte { return jsonTree(t) }, func(_ string, f *fault) []byte {
			return jsonTree(tree{"__type": f.code, "message": f.message})
		}}
	case strings.HasPrefix(kind, "application/x-www-form-urlencoded") && r.URL.Path == "/":
		return &cwProtocol{contentXML, formToJSON, xmlAnswer, xmlFault}
	}
	return nil
}

// jsonTree writes times as JSON 1.0 has them.
func jsonTree(t tree) []byte {
	b, err := json.Marshal(epochs(t))
	if err != nil {
		return []byte("{}") // of what trees hold, only infinities can be the reason, and there are none
	}
	return b
}

func epochs(v any) any {
	switch v := v.(type) {
	case tree:
		out := tree{}
		for k, e := range v {
			out[k] = epochs(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = epochs(e)
		}
		return out
	case time.Time:
		return epoch(v)
	case float64: // as AWS writes it: clients in some languages tell 7 from 7.0
		text := strconv.FormatFloat(v, 'f', -1, 64)
		if !strings.Contains(text, ".") {
			text += ".0"
		}
		return json.RawMessage(text)
	}
	return v
}

const (
	formKeysMax  = 20_000
	formDepthMax = 12
)

// formToJSON makes members of a form like Dimensions.member.1.Name=Accelerator.
func formToJSON(body []byte) (operation string, members []byte, err error) {
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form) > formKeysMax {
		return "", nil, faultf("MalformedQueryString", "the form cannot be read")
	}
	root := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(form)) {
		steps := strings.Split(key, ".")
		if len(steps) > formDepthMax {
			return "", nil, faultf("MalformedQueryString", "the form is too deep")
		}
		at := root
		for i, step := range steps {
			if i == len(steps)-1 {
				at[step] = form.Get(key)
				break
			}
			next, ok := at[step].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[step] = next
			}
			at = next
		}
	}
	operation, _ = root["Action"].(string)
	delete(root, "Action")
	delete(root, "Version")
	members, err = json.Marshal(lists(root))
	return operation, members, err
}

// lists turns {"member": {"1": …, "2": …}} into lists, in the order of the numbers.
func lists(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	if inner, ok := m["member"].(map[string]any); ok && len(m) == 1 {
		type item struct {
			at    int
			value any
		}
		var items []item
		for k, e := range inner {
			n, err := strconv.Atoi(k)
			if err != nil {
				return m
			}
			items = append(items, item{n, lists(e)})
		}
		slices.SortFunc(items, func(a, b item) int { return a.at - b.at })
		list := make([]any, len(items))
		for i, e := range items {
			list[i] = e.value
		}
		return list
	}
	for k, e := range m {
		m[k] = lists(e)
	}
	return m
}

const cloudWatchXML = "http://monitoring.amazonaws.com/doc/2010-08-01/"

func xmlAnswer(operation, requestID string, t tree) []byte {
	var b strings.Builder
	space := cloudWatchXML
	if sts[operation] != nil {
		space = stsXML
	}
	fmt.Fprintf(&b, `<%sResponse xmlns="%s"><%sResult>`, operation, space, operation)
	writeXML(&b, t)
	fmt.Fprintf(&b, `</%sResult><ResponseMetadata><RequestId>%s</RequestId></ResponseMetadata></%sResponse>`,
		operation, requestID, operation)
	return []byte(b.String())
}

func xmlFault(requestID string, f *fault) []byte {
	var b strings.Builder
	kind := "Sender"
	if f.status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	fmt.Fprintf(&b, `<ErrorResponse xmlns="%s"><Error>`, cloudWatchXML)
	writeXML(&b, tree{"Type": kind, "Code": f.code, "Message": f.message})
	fmt.Fprintf(&b, `</Error><RequestId>%s</RequestId></ErrorResponse>`, requestID)
	return []byte(b.String())
}

func writeXML(b *strings.Builder, v any) {
	switch v := v.(type) {
	case tree:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(b, "<%s>", k)
			writeXML(b, v[k])
			fmt.Fprintf(b, "</%s>", k)
		}
	case []any:
		for _, e := range v {
			b.WriteString("<member>")
			writeXML(b, e)
			b.WriteString("</member>")
		}
	case time.Time:
		b.WriteString(v.UTC().Format("2006-01-02T15:04:05Z"))
	case float64:
		b.WriteString(strconv.FormatFloat(v, 'f', -1, 64))
	default:
		_ = xml.EscapeText(b, []byte(fmt.Sprint(v))) // a Builder takes everything
	}
}
