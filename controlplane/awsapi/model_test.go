package awsapi

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// modelShape is a shape of the published service model.
type modelShape struct {
	Type     string
	Required []string
	Members  map[string]struct{ Shape string }
	Member   struct{ Shape string }
	Enum     []string
	Min, Max *float64
}

type serviceModel struct {
	Operations map[string]struct {
		Input  struct{ Shape string }
		Errors []struct{ Shape string }
	}
	Shapes map[string]modelShape
}

// publishedModels are the service models that come with installed AWS command lines.
func publishedModels(t *testing.T) map[string]serviceModel {
	models := map[string]serviceModel{}
	// NEARCAST_MODELS may name another directory of Python packages, with a newer botocore.
	for _, root := range []string{"/usr/lib/python3/dist-packages", "/usr/share", os.Getenv("NEARCAST_MODELS")} {
		for _, dir := range []string{"awscli/botocore", "botocore"} {
			files, _ := filepath.Glob(filepath.Join(root, dir, "data/globalaccelerator/*/service-2.json*"))
			for _, file := range files {
				f := must[*os.File](t)(os.Open(file))
				defer f.Close()
				var r io.Reader = f
				if strings.HasSuffix(file, ".gz") {
					r = must[*gzip.Reader](t)(gzip.NewReader(f))
				}
				var m serviceModel
				if err := json.NewDecoder(r).Decode(&m); err != nil {
					t.Fatal(err)
				}
				models[file] = m
			}
		}
	}
	return models
}

func TestAgainstThePublishedModel(t *testing.T) {
	models := publishedModels(t)
	if len(models) == 0 {
		if os.Getenv("NEARCAST_REQUIRE_ROOT") == "1" {
			t.Fatal("no service model is installed: install awscli")
		}
		t.Skip("no service model is installed: install awscli")
	}
	for file, m := range models {
		current := m.Operations["ListCrossAccountAttachments"].Input.Shape != ""
		for name, said := range m.Operations {
			op := operations[targetPrefix+name]
			if op == nil {
				t.Errorf("%s: %s is not in the table", file, name)
				continue
			}
			m.compare(t, name, said.Input.Shape, reflect.TypeOf(op.request).Elem(), current)
			for _, e := range said.Errors {
				if !op.models(e.Shape) {
					t.Errorf("%s: %s also has %s", file, name, e.Shape)
				}
			}
		}
		if current && len(m.Operations) != len(operations)-1 {
			t.Errorf("the model has %d operations and the table %d", len(m.Operations), len(operations)-1)
		}
	}
}

// compare demands that each member of a shape is a field with its constraints, and no field is made up.
// An older model may lack members.
func (m serviceModel) compare(t *testing.T, path, shape string, typ reflect.Type, current bool) {
	fields := map[string]reflect.StructField{}
	for _, f := range reflect.VisibleFields(typ) {
		if !f.Anonymous {
			fields[f.Name] = f
		}
	}
	s := m.Shapes[shape]
	for name, member := range s.Members {
		f, ok := fields[name]
		if !ok {
			t.Errorf("%s has no member %s", path, name)
			continue
		}
		rules := rulesOf(f.Tag.Get("shape"))
		if _, required := rules["required"]; required != has(s.Required, name) {
			t.Errorf("%s.%s: required is %v", path, name, required)
		}
		if of := m.Shapes[member.Shape]; of.Type == "structure" {
			m.compare(t, path+"."+name, member.Shape, f.Type.Elem(), current)
		} else {
			m.compareMember(t, path+"."+name, of, f.Type, rules, current)
		}
		delete(fields, name)
	}
	for name := range fields {
		if current {
			t.Errorf("%s.%s is not in the model", path, name)
		}
	}
}

func (m serviceModel) compareMember(t *testing.T, path string, s modelShape, typ reflect.Type,
	rules map[string]string, current bool) {
	bounds := func(rule string) {
		low, high, _ := strings.Cut(rules[rule], "..")
		check := func(said *float64, ours string) {
			if n, err := strconv.ParseFloat(ours, 64); said != nil && (err != nil || n != *said) {
				t.Errorf("%s: %s is %q, the model says %v", path, rule, rules[rule], *said)
			}
		}
		check(s.Min, low)
		check(s.Max, high)
	}
	switch s.Type {
	case "structure":
		t.Fatalf("%s is a structure", path) // compare is for these
	case "string":
		if !strings.HasSuffix(path, "CidrAuthorizationContext.Signature") { // see cidrAuthorization
			bounds("len")
		}
		if got := rules["enum"]; len(s.Enum) != len(strings.FieldsFunc(got, func(c rune) bool { return c == '|' })) {
			t.Errorf("%s: enum %q, the model says %v", path, got, s.Enum)
		}
		for _, e := range s.Enum {
			if !has(strings.Split(rules["enum"], "|"), e) {
				t.Errorf("%s: no value %s", path, e)
			}
		}
	case "integer", "float":
		bounds("range")
	case "list":
		bounds("items")
		inner := m.Shapes[s.Member.Shape]
		if inner.Type == "structure" {
			m.compare(t, path, s.Member.Shape, typ.Elem(), current)
		} else {
			m.compareMember(t, path+"[]", inner, typ.Elem(),
				map[string]string{"len": rules["each"], "range": rules["each"], "enum": rules["enum"]}, current)
		}
	}
}
