package main

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v2"

	"github.com/nearcast/nearcast/proto/identity"
)

// contextsFile is what this tool remembers between runs: clusters, and how to talk to them.
type contextsFile struct {
	Current  string         `yaml:"current,omitempty"`
	Contexts []contextEntry `yaml:"contexts"`
}

// contextEntry is one way to talk to one cluster.
type contextEntry struct {
	Name   string `yaml:"name"`
	Server string `yaml:"server"` // host:port of a controller
	CA     string `yaml:"ca"`     // the cluster's certificate authorities, PEM
	Token  string `yaml:"token"`  // the operator's
}

const (
	contextsBytesMax = 1 << 20 // of a contexts file; each entry is about 1 KB
	defaultPort      = "7443"  // of controllers
)

func (f *contextsFile) find(name string) *contextEntry {
	for i := range f.Contexts {
		if f.Contexts[i].Name == name {
			return &f.Contexts[i]
		}
	}
	return nil
}

func (f *contextsFile) names() []string {
	var names []string
	for _, e := range f.Contexts {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return names
}

// contextsPath is where the contexts are: the flag, the environment, or the user's configuration.
func (c *cli) contextsPath() string {
	switch {
	case c.flags.contexts != "":
		return c.flags.contexts
	case c.getenv("NEARCAST_CONTEXTS") != "":
		return c.getenv("NEARCAST_CONTEXTS")
	case c.getenv("XDG_CONFIG_HOME") != "":
		return filepath.Join(c.getenv("XDG_CONFIG_HOME"), "nearcast", "contexts.yaml")
	}
	return filepath.Join(c.getenv("HOME"), ".config", "nearcast", "contexts.yaml")
}

// loadContexts reads the contexts; a file that is not there holds none.
func (c *cli) loadContexts() (*contextsFile, error) {
	path := c.contextsPath()
	f, err := readContexts(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &contextsFile{}, nil
	}
	if info, statErr := os.Stat(path); statErr == nil && info.Mode().Perm()&0o077 != 0 {
		c.note("%s holds secrets and others can read it; mend it with: chmod 600 %s", path, path)
	}
	return f, err
}

func readContexts(path string) (*contextsFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, contextsBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if len(text) > contextsBytesMax {
		return nil, fmt.Errorf("%s is larger than %d bytes; it is not a contexts file", path, contextsBytesMax)
	}
	var f contextsFile
	if err := yaml.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("%s is not a contexts file: %v; it looks like "+
			"{current: NAME, contexts: [{name, server, ca, token}]}", path, err)
	}
	return &f, nil
}

// writeContexts replaces a contexts file. It holds secrets, so nobody else may read it.
func writeContexts(path string, f *contextsFile) error {
	text, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return identity.ReplaceFile(path, text) // mode 0600
}

// target is where commands go: what the flags say, and for the rest what the context says.
func (c *cli) target() (contextEntry, error) {
	f, err := c.loadContexts()
	if err != nil {
		return contextEntry{}, err
	}
	entry, err := c.chooseContext(f)
	if err != nil {
		return entry, err
	}
	if c.flags.server != "" {
		entry.Server = c.flags.server
	}
	if c.flags.ca != "" {
		pem, err := os.ReadFile(c.flags.ca)
		if err != nil {
			return entry, fmt.Errorf("read the CA certificate: %w", err)
		}
		entry.CA = string(pem)
	}
	if token, err := c.tokenFlag(); err != nil {
		return entry, err
	} else if token != "" {
		entry.Token = token
	}
	entry.Server = withPort(entry.Server)
	return entry, nil
}

// chooseContext returns the context that the flag, the file or their absence says.
func (c *cli) chooseContext(f *contextsFile) (contextEntry, error) {
	name := c.flags.context
	if name == "" {
		name = f.Current
	}
	if name == "" && len(f.Contexts) == 1 {
		name = f.Contexts[0].Name
	}
	switch {
	case name != "":
		if e := f.find(name); e != nil {
			return *e, nil
		}
		if c.flags.context == "" && c.flags.server != "" {
			return contextEntry{}, nil
		}
		return contextEntry{}, fmt.Errorf("%s has no context %q; it has: %s", c.contextsPath(), name,
			orNone(f.names()))
	case c.flags.server != "":
		return contextEntry{}, nil
	case len(f.Contexts) > 0:
		return contextEntry{}, fmt.Errorf("no context is in use; choose one of %s with: nearcast context use NAME",
			strings.Join(f.names(), ", "))
	}
	return contextEntry{}, fmt.Errorf(`no cluster is known: %s has no contexts. Do one of these:
  on the controller's machine: export NEARCAST_CONTEXTS=DATA_DIR/admin-context.yaml
  with a copy of that file:    nearcast context import admin-context.yaml
  with a token of your own:    nearcast context add NAME --server HOST:7443 --ca ca.pem --token-file FILE`,
		c.contextsPath())
}

// tokenFlag returns the token that the command line or the environment gives, if any.
func (c *cli) tokenFlag() (string, error) {
	switch {
	case c.flags.token != "" && c.flags.tokenFile != "":
		return "", usagef("--token and --token-file exclude each other")
	case c.flags.token != "":
		return c.flags.token, nil
	case c.flags.tokenFile == "":
		return c.getenv("NEARCAST_TOKEN"), nil
	}
	var in io.Reader = c.stdin
	if c.flags.tokenFile != "-" {
		file, err := os.Open(c.flags.tokenFile)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, 4096))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("%s holds no token", c.flags.tokenFile)
	}
	return token, nil
}

// withPort adds the controllers' port to a host without one.
func withPort(server string) string {
	if server == "" {
		return ""
	}
	if _, _, err := net.SplitHostPort(server); err == nil {
		return server
	}
	return net.JoinHostPort(strings.Trim(server, "[]"), defaultPort)
}

// parseCA reads certificate authorities from PEM.
func parseCA(text string) ([]*x509.Certificate, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("it is not said which CA the controller must have; give --ca FILE, " +
			"a PEM file as in the context of any other operator of the cluster")
	}
	roots, err := identity.ParseCertificatesPEM([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("read the CA certificate: %w", err)
	}
	return roots, nil
}

func (c *cli) contextCommand() *cobra.Command {
	return c.noun("context", "Say which cluster commands talk to, and as whom",
		"  nearcast context list\n  nearcast context use prod",
		[]string{"contexts", "ctx"},
		&cobra.Command{
			Use: "list", Aliases: []string{"ls"}, Short: "List the contexts; * marks the one in use",
			Example: "  nearcast context list", Args: exactly(), RunE: c.contextList,
		},
		&cobra.Command{
			Use: "use NAME", Short: "Use a context from now on", Example: "  nearcast context use prod",
			Args: exactly("NAME"), ValidArgsFunction: first(c.completeContexts), RunE: c.contextUse,
		},
		&cobra.Command{
			Use: "add NAME", Short: "Add a context, or replace the one of this name",
			Long: "Add a context, or replace the one of this name, from --server, --ca and --token-file (or\n" +
				"--token). It is used from now on if no other is.",
			Example: "  nearcast context add prod --server ctl-1.example.com --ca ca.pem --token-file token.txt\n" +
				"  nearcast context add prod --server ctl-1.example.com --ca ca.pem --token-file - < token.txt",
			Args: exactly("NAME"), RunE: c.contextAdd,
		},
		&cobra.Command{
			Use: "import FILE", Short: "Add the contexts of another contexts file",
			Example: "  nearcast context import admin-context.yaml",
			Args:    exactly("FILE"), RunE: c.contextImport,
		},
		&cobra.Command{
			Use: "remove NAME", Aliases: []string{"rm", "delete"}, Short: "Forget a context",
			Example: "  nearcast context remove old", Args: exactly("NAME"),
			ValidArgsFunction: first(c.completeContexts), RunE: c.contextRemove,
		},
		c.contextShowCommand(),
	)
}

func (c *cli) contextList(*cobra.Command, []string) error {
	f, err := c.loadContexts()
	if err != nil {
		return err
	}
	type shown struct {
		Name    string `json:"name"`
		Server  string `json:"server"`
		Cluster string `json:"cluster"`
		Current bool   `json:"current"`
	}
	var all []shown
	for _, e := range f.Contexts {
		all = append(all, shown{e.Name, e.Server, clusterOf(e), e.Name == f.Current})
	}
	return showRecords(c, "contexts", all,
		column[shown]{" ", func(s shown) string { return map[bool]string{true: "*", false: " "}[s.Current] }},
		column[shown]{"NAME", func(s shown) string { return s.Name }},
		column[shown]{"CLUSTER", func(s shown) string { return s.Cluster }},
		column[shown]{"SERVER", func(s shown) string { return s.Server }})
}

// clusterOf returns the cluster's name as its CA tells it, or "".
func clusterOf(e contextEntry) string {
	roots, err := parseCA(e.CA)
	if err != nil {
		return ""
	}
	cluster, err := identity.CertificateCluster(roots[0])
	if err != nil {
		return ""
	}
	return cluster
}

// editContexts loads the contexts, changes them and writes them back.
func (c *cli) editContexts(edit func(*contextsFile) error) error {
	f, err := c.loadContexts()
	if err != nil {
		return err
	}
	if err := edit(f); err != nil {
		return err
	}
	if err := writeContexts(c.contextsPath(), f); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	return nil
}

func (f *contextsFile) mustFind(name string) (*contextEntry, error) {
	if e := f.find(name); e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("there is no context %q; there are: %s", name, orNone(f.names()))
}

// put adds or replaces an entry, and lets it be used if no other one is.
func (f *contextsFile) put(e contextEntry) {
	if old := f.find(e.Name); old != nil {
		*old = e
	} else {
		f.Contexts = append(f.Contexts, e)
	}
	if f.Current == "" || f.find(f.Current) == nil {
		f.Current = e.Name
	}
}

func (c *cli) contextUse(_ *cobra.Command, args []string) error {
	return c.editContexts(func(f *contextsFile) error {
		e, err := f.mustFind(args[0])
		if err != nil {
			return err
		}
		f.Current = e.Name
		c.note("now using %s (%s)", e.Name, e.Server)
		return nil
	})
}

func (c *cli) contextAdd(_ *cobra.Command, args []string) error {
	if c.flags.server == "" || c.flags.ca == "" || c.flags.token == "" && c.flags.tokenFile == "" {
		return usagef("--server, --ca and --token-file (or --token) are needed")
	}
	ca, err := os.ReadFile(c.flags.ca)
	if err != nil {
		return fmt.Errorf("read the CA certificate: %w", err)
	}
	if _, err := parseCA(string(ca)); err != nil {
		return err
	}
	token, err := c.tokenFlag()
	if err != nil {
		return err
	}
	if _, err := identity.ParseOperatorToken(token); err != nil {
		return err
	}
	return c.editContexts(func(f *contextsFile) error {
		f.put(contextEntry{Name: args[0], Server: withPort(c.flags.server), CA: string(ca), Token: token})
		c.note("added %s to %s; try it: nearcast --context %s whoami", args[0], c.contextsPath(), args[0])
		return nil
	})
}

func (c *cli) contextImport(_ *cobra.Command, args []string) error {
	from, err := readContexts(args[0])
	if err != nil {
		return err
	}
	if len(from.Contexts) == 0 {
		return fmt.Errorf("%s holds no contexts", args[0])
	}
	return c.editContexts(func(f *contextsFile) error {
		for _, e := range from.Contexts {
			if old := f.find(e.Name); old != nil && *old != e {
				if err := c.confirm("Replace the context %s (%s) by the one in %s?", e.Name, old.Server,
					args[0]); err != nil {
					return err
				}
			}
			f.put(e)
			c.note("added %s (%s)", e.Name, e.Server)
		}
		return nil
	})
}

func (c *cli) contextRemove(_ *cobra.Command, args []string) error {
	return c.editContexts(func(f *contextsFile) error {
		if _, err := f.mustFind(args[0]); err != nil {
			return err
		}
		f.Contexts = slices.DeleteFunc(f.Contexts, func(e contextEntry) bool { return e.Name == args[0] })
		c.note("removed %s", args[0])
		if f.Current == args[0] {
			f.Current = ""
			c.note("it was in use; choose another one: nearcast context use NAME")
		}
		return nil
	})
}

func (c *cli) contextShowCommand() *cobra.Command {
	var reveal bool
	cmd := &cobra.Command{
		Use: "show [NAME]", Short: "Show a context, without its secret",
		Example: "  nearcast context show\n  nearcast context show prod --reveal",
		Args:    atMost("NAME"), ValidArgsFunction: first(c.completeContexts),
		RunE: func(_ *cobra.Command, args []string) error { return c.contextShow(args, reveal) },
	}
	cmd.Flags().BoolVar(&reveal, "reveal", false, "show the token, too")
	return cmd
}

func (c *cli) contextShow(args []string, reveal bool) error {
	if len(args) == 1 {
		c.flags.context = args[0]
	}
	e, err := c.target()
	if err != nil {
		return err
	}
	if !reveal {
		e.Token = hideToken(e.Token)
	}
	if c.flags.output != "table" {
		return c.data(map[string]string{"name": e.Name, "server": e.Server, "ca": e.CA, "token": e.Token})
	}
	p := c.page()
	p.line("Name", e.Name)
	p.line("Server", e.Server)
	p.line("Cluster", clusterOf(e))
	if roots, err := parseCA(e.CA); err == nil {
		p.line("CA", fmt.Sprintf("SHA-256 %x, until %s", sha256.Sum256(roots[0].Raw),
			roots[0].NotAfter.Format("2006-01-02")))
	}
	p.line("Token", e.Token)
	p.line("File", c.contextsPath())
	return p.write()
}

// hideToken keeps whose token it is and hides its secret.
func hideToken(text string) string {
	if t, err := identity.ParseOperatorToken(text); err == nil {
		return "NCO1." + t.Name + ".…"
	}
	if text == "" {
		return ""
	}
	return "…"
}
