package awsapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// TestEveryConstraint takes every member of every operation, which TestAgainstThePublishedModel compares
// with AWS's model, and breaks each of its constraints: left out, too short, too long, too low, too high,
// too many, another word, another type. The answer must be the error of invalid arguments and name the member.
func TestEveryConstraint(t *testing.T) {
	broken := 0
	for target, op := range operations {
		if op.run == nil {
			continue
		}
		breakMembers(reflect.TypeOf(op.request).Elem(), func(member string, body map[string]any, code string) {
			broken++
			b, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			_, err = op.run(context.Background(), call{}, b)
			var f *fault
			if !errors.As(err, &f) || f.code != code || !strings.Contains(strings.ToLower(f.message), strings.ToLower(member)) {
				t.Errorf("%s: %.200s: %v, want %s about %s", target, b, err, code, member)
			}
		})
	}
	if broken < 300 {
		t.Errorf("only %d constraints were found", broken)
	}
}

// breakMembers calls try with a body for each constraint of a struct that it breaks.
func breakMembers(typ reflect.Type, try func(member string, body map[string]any, code string)) {
	for i := range typ.NumField() {
		field := typ.Field(i)
		if field.Anonymous {
			breakMembers(field.Type, try)
			continue
		}
		name, rules := field.Name, rulesOf(field.Tag.Get("shape"))
		with := func(v any, code string) { try(name, map[string]any{name: v}, code) }
		if _, required := rules["required"]; required {
			try(name, map[string]any{}, exInvalidArgument)
		}
		inner := field.Type.Elem()
		if inner.Kind() == reflect.Struct && field.Type.Kind() == reflect.Pointer {
			breakMembers(inner, func(member string, body map[string]any, code string) {
				try(member, map[string]any{name: body}, code)
			})
			continue
		}
		if field.Type.Kind() == reflect.Pointer {
			for _, v := range outside(inner, rules) {
				with(v, exInvalidArgument)
			}
			with([]any{}, "SerializationException")
			continue
		}
		with("text", "SerializationException")
		low, high, _ := strings.Cut(rules["items"], "..")
		if n, err := strconv.Atoi(high); err == nil {
			with(filled(n+1, inner), exInvalidArgument)
		}
		if n, err := strconv.Atoi(low); err == nil && n > 0 {
			with(filled(n-1, inner), exInvalidArgument)
		}
		switch inner.Kind() {
		case reflect.Struct:
			breakMembers(inner, func(member string, body map[string]any, code string) {
				try(member, map[string]any{name: []any{body}}, code)
			})
		default:
			for _, v := range outside(inner, map[string]string{"len": rules["each"], "range": rules["each"],
				"enum": rules["enum"]}) {
				with([]any{v}, exInvalidArgument)
			}
		}
	}
}

func filled(n int, inner reflect.Type) []any {
	list := make([]any, n)
	for i := range list {
		switch inner.Kind() {
		case reflect.Struct:
			list[i] = map[string]any{}
		case reflect.String:
			list[i] = fmt.Sprint("item-", i)
		default:
			list[i] = i + 1
		}
	}
	return list
}

// outside returns values that rules do not allow.
func outside(typ reflect.Type, rules map[string]string) (bad []any) {
	bounds := func(rule string, value func(n float64) any) {
		low, high, ok := strings.Cut(rules[rule], "..")
		if !ok {
			return
		}
		if n, _ := strconv.ParseFloat(low, 64); rule == "range" || n > 0 {
			bad = append(bad, value(n-1))
		}
		n, _ := strconv.ParseFloat(high, 64)
		bad = append(bad, value(n+1))
	}
	switch typ.Kind() {
	case reflect.String:
		bounds("len", func(n float64) any { return strings.Repeat("x", int(n)) })
		if rules["enum"] != "" {
			bad = append(bad, "SOMETHING")
		}
	case reflect.Int64, reflect.Float32:
		bounds("range", func(n float64) any { return n })
	}
	return bad
}
