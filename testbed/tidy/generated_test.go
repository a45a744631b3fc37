package tidy

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TestGeneratedProtobufIsFresh compiles each .proto file in process and compares it with the
// descriptor inside the committed generated code. `make generate` mends a difference.
func TestGeneratedProtobufIsFresh(t *testing.T) {
	files, err := filepath.Glob("../../proto/nearcast/v1/*.proto")
	if err != nil || len(files) == 0 {
		t.Fatalf("no .proto files: %v", err)
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{"../../proto"}}),
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Fatal(err)
		}
		name := "nearcast/v1/" + filepath.Base(f)
		source, err := compiler.Compile(context.Background(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		committed, err := protoregistry.GlobalFiles.FindFileByPath(name)
		if err != nil {
			t.Errorf("%s has no generated code: run make generate", name)
			continue
		}
		if !proto.Equal(descriptor(source[0]), descriptor(committed)) {
			t.Errorf("the generated code of %s is stale: run make generate", name)
		}
	}
}

// descriptor returns f's descriptor as the generator stores it: without source positions.
func descriptor(f protoreflect.FileDescriptor) proto.Message {
	d := protodesc.ToFileDescriptorProto(f)
	d.SourceCodeInfo = nil
	return d
}
