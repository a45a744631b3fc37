package awsapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// decode reads a request's body into a pointer to a struct of shapes.go and checks it. Members that are
// not known are ignored, as AWS does. Its errors are faults.
func decode(body []byte, into any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(into); err != nil {
		return faultf("SerializationException", "%s", jsonProblem(err))
	}
	if _, err := dec.Token(); err != io.EOF {
		return faultf("SerializationException", "there is something behind the request's object")
	}
	var problems []string
	checkShape(reflect.ValueOf(into).Elem(), "", &problems)
	if len(problems) > 0 {
		plural := "s"
		if len(problems) == 1 {
			plural = ""
		}
		return invalidf("%d validation error%s detected: %s", len(problems), plural, strings.Join(problems, "; "))
	}
	return nil
}

// jsonProblem is the decoder's text without the names of our types.
func jsonProblem(err error) string {
	if e, ok := err.(*json.UnmarshalTypeError); ok {
		return fmt.Sprintf("member %s cannot be a %s", e.Field, e.Value)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

const problemsMax = 10 // what a message tells

// checkShape checks a struct's members against their tags.
func checkShape(v reflect.Value, path string, problems *[]string) {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		if field.Anonymous {
			checkShape(f, path, problems)
			continue
		}
		name := strings.ToLower(field.Name[:1]) + field.Name[1:]
		if path != "" {
			name = path + "." + name
		}
		rules := rulesOf(field.Tag.Get("shape"))
		add := func(value any, format string, args ...any) {
			if len(*problems) < problemsMax {
				*problems = append(*problems, fmt.Sprintf("Value %v at '%s' failed to satisfy constraint: %s",
					value, name, fmt.Sprintf(format, args...)))
			}
		}
		if f.IsNil() {
			if _, required := rules["required"]; required {
				add("null", "Member must not be null")
			}
			continue
		}
		if f.Kind() == reflect.Pointer && f.Elem().Kind() == reflect.Struct {
			checkShape(f.Elem(), name, problems)
			continue
		}
		if f.Kind() == reflect.Pointer {
			checkScalar(f.Elem(), rules, add)
			continue
		}
		checkBounds(float64(f.Len()), rules["items"], func(low bool, bound string) {
			add("of "+strconv.Itoa(f.Len())+" items", "Member must have length %s %s", than(low), bound)
		})
		for j := range f.Len() {
			switch e := f.Index(j); e.Kind() {
			case reflect.Struct:
				checkShape(e, fmt.Sprintf("%s.%d.member", name, j+1), problems)
			case reflect.String:
				each := map[string]string{"len": rules["each"]}
				if enum, ok := rules["enum"]; ok {
					each["enum"] = enum
				}
				checkScalar(e, each, add)
			case reflect.Int64:
				checkScalar(e, map[string]string{"range": rules["each"]}, add)
			}
		}
	}
}

func checkScalar(v reflect.Value, rules map[string]string, add func(any, string, ...any)) {
	switch v.Kind() {
	case reflect.String:
		shown := "'" + shorten(v.String()) + "'"
		checkBounds(float64(utf8.RuneCountInString(v.String())), rules["len"], func(low bool, bound string) {
			add(shown, "Member must have length %s %s", than(low), bound)
		})
		if enum, ok := rules["enum"]; ok && !has(strings.Split(enum, "|"), v.String()) {
			add(shown, "Member must satisfy enum value set: [%s]", strings.ReplaceAll(enum, "|", ", "))
		}
	case reflect.Int64:
		checkBounds(float64(v.Int()), rules["range"], func(low bool, bound string) {
			add("'"+strconv.FormatInt(v.Int(), 10)+"'", "Member must have value %s %s", than(low), bound)
		})
	case reflect.Float32:
		checkBounds(v.Float(), rules["range"], func(low bool, bound string) {
			add(fmt.Sprintf("'%v'", v.Float()), "Member must have value %s %s", than(low), bound)
		})
	}
}

func than(low bool) string {
	if low {
		return "greater than or equal to"
	}
	return "less than or equal to"
}

// checkBounds calls wrong if n is not within "low..high"; "" has no bounds.
func checkBounds(n float64, bounds string, wrong func(low bool, bound string)) {
	low, high, ok := strings.Cut(bounds, "..")
	if !ok {
		return
	}
	if l, _ := strconv.ParseFloat(low, 64); n < l {
		wrong(true, low)
	}
	if h, _ := strconv.ParseFloat(high, 64); n > h {
		wrong(false, high)
	}
}

// rulesOf reads a tag.
func rulesOf(tag string) map[string]string {
	rules := map[string]string{}
	for rule := range strings.SplitSeq(tag, ",") {
		name, value, _ := strings.Cut(rule, "=")
		rules[name] = value
	}
	return rules
}

func has(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// shorten bounds what a message repeats of a request.
func shorten(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}
