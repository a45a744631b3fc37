package tidy

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Sizes. A longer file or function is a place to ask whether it is two things.
const (
	fileLinesMax      = 500
	functionLinesMax  = 70
	packageFilesMax   = 24
	sourceFilesAtMost = 5000 // a walk that finds more has left the tree
)

type source struct {
	path string // relative, with slashes
	text []byte
	file *ast.File
	fset *token.FileSet
	test bool
}

// sources parses every hand-written Go file of the tree.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." && d.Name() != "." {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || generated(path) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("../..", path)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(rel), text, f, fset, strings.HasSuffix(path, "_test.go")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 || len(all) > sourceFilesAtMost {
		t.Fatalf("found %d source files", len(all))
	}
	return all
}

func generated(path string) bool {
	return strings.HasSuffix(path, ".pb.go") || strings.HasSuffix(path, "_bpfel.go") ||
		strings.HasSuffix(path, "_bpfeb.go")
}

func TestFormatted(t *testing.T) {
	for _, s := range sources(t) {
		want, err := format.Source(s.text)
		if err != nil || !bytes.Equal(want, s.text) {
			t.Errorf("%s is not gofmt'd (%v)", s.path, err)
		}
	}
}

func TestSizes(t *testing.T) {
	files := map[string]int{}
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > fileLinesMax && !s.test {
			t.Errorf("%s has %d lines, at most %d", s.path, n, fileLinesMax)
		}
		if s.test {
			continue
		}
		files[filepath.Dir(s.path)]++
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			lines := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1
			if lines > functionLinesMax {
				t.Errorf("%s: %s has %d lines, at most %d", s.path, f.Name.Name, lines, functionLinesMax)
			}
		}
	}
	for dir, n := range files {
		if n > packageFilesMax {
			t.Errorf("%s has %d source files, at most %d: it is two packages", dir, n, packageFilesMax)
		}
	}
}

// TestPackageDocs wants exactly one package comment a package, and for a room one that says the
// question it answers.
func TestPackageDocs(t *testing.T) {
	docs, packages := map[string][]string{}, map[string]string{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(s.path))
		packages[dir] = s.file.Name.Name
		if s.file.Doc != nil {
			docs[dir] = append(docs[dir], s.file.Doc.Text())
		}
	}
	for dir, name := range packages {
		switch {
		case len(docs[dir]) != 1:
			t.Errorf("%s has %d package comments, want one", dir, len(docs[dir]))
		case name != "main" && !strings.HasPrefix(docs[dir][0], "Package "+name+" answers: "):
			t.Errorf("%s: its package comment does not begin %q", dir, "Package "+name+" answers: ")
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
					t.Errorf("%s: %s has no comment", s.path, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					ts, ok := spec.(*ast.TypeSpec)
					if ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil && ts.Comment == nil {
						t.Errorf("%s: type %s has no comment", s.path, ts.Name.Name)
					}
				}
			}
		}
	}
}

// exportedReceiver leaves out methods of unexported types and the well-known ones whose meaning
// their interface gives.
func exportedReceiver(d *ast.FuncDecl) bool {
	switch d.Name.Name {
	case "String", "Error", "Unwrap", "Read", "Write", "Close", "Len", "Less", "Swap", "Push", "Pop",
		"Describe", "Collect", "ServeHTTP":
		return d.Recv == nil
	}
	if d.Recv == nil {
		return true
	}
	recv := d.Recv.List[0].Type
	if star, ok := recv.(*ast.StarExpr); ok {
		recv = star.X
	}
	if index, ok := recv.(*ast.IndexExpr); ok {
		recv = index.X
	}
	id, ok := recv.(*ast.Ident)
	return !ok || id.IsExported()
}

// TestWords refuses marks of unfinished work and hidden start-up code.
func TestWords(t *testing.T) {
	unfinished := regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)
	for _, s := range sources(t) {
		if strings.HasPrefix(s.path, "testbed/tidy/") {
			continue
		}
		for _, group := range s.file.Comments {
			if m := unfinished.FindString(group.Text()); m != "" {
				t.Errorf("%s: %s in a comment: finish it or open an issue", s.path, m)
			}
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init(): what runs must be seen from main", s.path)
			}
		}
	}
}
