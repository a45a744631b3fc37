// Nearcast is the operators' command line: it shows and changes what a cluster does, through a
// controller's admin API. All of it is a function of an env, so that tests call it in process.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// env is all that the program takes from outside.
type env struct {
	args           []string // without the program's name
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	now            func() time.Time
	sleep          func(context.Context, time.Duration) error // returns early when the context ends
	dial           func(ctx context.Context, address string) (net.Conn, error)
	terminal       bool // somebody sits there who can be asked
	width          int  // columns of the terminal that stdout is; 0: it is none
}

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2   // the command line itself is wrong
	exitDiffers     = 3   // apply --dry-run --exit-code: there is something to change
	exitInterrupted = 130 // as shells have it for SIGINT
)

// cli is one run of the program.
type cli struct {
	env
	flags   globalFlags
	session *session // made when a command first needs it
}

type globalFlags struct {
	contexts, context string
	server, ca        string
	token, tokenFile  string
	output            string
	timeout           time.Duration
	yes               bool          // of commands that ask
	wait              bool          // of commands that change accelerators
	waitTimeout       time.Duration // of the same
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, e env) int {
	c := &cli{env: e}
	defer c.close()
	root := c.root()
	root.SetArgs(e.args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return c.report(ctx, cmd, err)
}

// usageError is a command line that cannot be understood.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError ends the program with a code after all has been said.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// report tells stderr what went wrong and how to go on, and returns the exit code.
func (c *cli) report(ctx context.Context, cmd *cobra.Command, err error) int {
	var usage usageError
	var exit exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case ctx.Err() != nil:
		fmt.Fprintln(c.stderr, "nearcast: interrupted")
		return exitInterrupted
	case errors.As(err, &usage) || isCobraUsage(cmd, err):
		fmt.Fprintf(c.stderr, "nearcast: %s\nSee: %s --help\n", printable(err.Error()), cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(c.stderr, "nearcast: %s\n", c.explain(err))
	return exitFailed
}

// isCobraUsage tells errors that cobra makes by itself before any command runs. It never calls a
// command then, so the mark that each command sets (see ran) is missing.
func isCobraUsage(cmd *cobra.Command, _ error) bool {
	return cmd.Annotations == nil || cmd.Annotations[ranMark] == ""
}

const ranMark = "nearcast/ran"

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "nearcast",
		Short: "Operate a Nearcast cluster",
		Long: `Operate a Nearcast cluster: accelerators and what is below them, the fleet that serves them,
and who may do what.

Objects are named by their id, or by their name if only one has it. A listener can also be called
ACCELERATOR:PORT or ACCELERATOR:PORT/PROTOCOL (web:443, web:53/udp), or just ACCELERATOR if it has
only one. Of two with the same port, the one for TCP is meant unless a protocol is said. A group is
LISTENER@REGION (web:443@eu-fra-1, web@eu-fra-1).`,
		Example: `  nearcast status
  nearcast accelerator create web --wait
  nearcast listener create --accelerator web --ports 443
  nearcast group create --listener web:443 --region eu-fra-1 --endpoint 10.0.0.1
  nearcast apply -f nearcast.yaml`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		PersistentPreRunE: c.before,
		RunE:              c.needSubcommand,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(c.helpCommand())
	f := root.PersistentFlags()
	f.StringVar(&c.flags.contexts, "contexts", "",
		"contexts `file` (default $NEARCAST_CONTEXTS or ~/.config/nearcast/contexts.yaml)")
	f.StringVar(&c.flags.context, "context", "", "`name` of the context to use instead of the current one")
	f.StringVar(&c.flags.server, "server", "", "controller's `host:port`, instead of the context's")
	f.StringVar(&c.flags.ca, "ca", "", "`file` of the cluster's CA certificate (PEM), instead of the context's")
	f.StringVar(&c.flags.token, "token", "",
		"operator's `token`; other users of the machine may see it, so prefer --token-file")
	f.StringVar(&c.flags.tokenFile, "token-file", "", "`file` that holds the operator's token; - is stdin")
	f.StringVarP(&c.flags.output, "output", "o", "table", "`format`: table, json or yaml")
	f.DurationVar(&c.flags.timeout, "timeout", 15*time.Second, "how long to wait for each answer")
	mustComplete(root, "output", options("table", "json", "yaml"))
	mustComplete(root, "context", c.completeContexts)

	root.AddGroup(&cobra.Group{ID: "traffic", Title: "Traffic:"}, &cobra.Group{ID: "fleet", Title: "Fleet:"},
		&cobra.Group{ID: "look", Title: "Look:"}, &cobra.Group{ID: "access", Title: "Access:"},
		&cobra.Group{ID: "tool", Title: "This tool:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add("traffic", c.acceleratorCommand(), c.listenerCommand(), c.groupCommand(), c.endpointCommand(),
		c.targetCommand(), c.subnetCommand(), c.customGroupCommand(), c.attachmentCommand(),
		c.zoneCommand(), c.applyCommand(), c.exportCommand())
	add("fleet", c.poolCommand(), c.regionCommand(), c.siteCommand(), c.peerCommand(), c.nodeCommand(),
		c.tokenCommand(), c.steerCommand(), c.byoipCommand(), c.settingsCommand())
	add("look", c.statusCommand(), c.announceCommand(), c.healthCommand(), c.pathCommand(), c.snapshotCommand(),
		c.topCommand(), c.flowsCommand(), c.gainsCommand(), c.probeCommand())
	add("access", c.operatorCommand(), c.accessKeyCommand(), c.auditCommand(), c.whoamiCommand())
	add("tool", c.contextCommand(), c.completionCommand(), c.versionCommand())
	markAll(root)
	return root
}

func (c *cli) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Show what a command does", Example: "  nearcast help accelerator create",
		GroupID: "tool",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("there is no command %q", strings.Join(args, " "))
			}
			return found.Help()
		},
	}
}

// markAll makes each command note that it has run, so that report knows an error of the command from
// one of its command line; and lets flag errors be usage errors.
func markAll(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if cmd.Annotations == nil {
				cmd.Annotations = map[string]string{}
			}
			cmd.Annotations[ranMark] = "yes"
			return inner(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markAll(sub)
	}
}

// before runs before every command.
func (c *cli) before(cmd *cobra.Command, _ []string) error {
	var missing []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Annotations[cobra.BashCompOneRequiredFlag] != nil && !f.Changed {
			missing = append(missing, "--"+f.Name)
		}
	})
	if len(missing) == 1 {
		return usagef("%s is missing", missing[0])
	} else if len(missing) > 1 {
		return usagef("%s are missing", strings.Join(missing, " and "))
	}
	if !slices.Contains([]string{"table", "json", "yaml"}, c.flags.output) {
		return usagef("--output is table, json or yaml, not %q", c.flags.output)
	}
	if c.flags.timeout <= 0 {
		return usagef("--timeout must be more than 0, like 15s")
	}
	return nil
}

// noun makes a command that only holds others.
func (c *cli) noun(use, short, example string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Aliases: aliases,
		Args: cobra.ArbitraryArgs, RunE: c.needSubcommand,
	}
	cmd.AddCommand(verbs...)
	return cmd
}

// needSubcommand shows help, or says that there is no such command and which are like it.
func (c *cli) needSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := ""
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usagef("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
}

// exactly demands the named arguments, no more and no fewer.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing", names[len(args)])
		case len(args) > len(names) && len(names) == 0:
			return usagef("%q is too much: this command takes no arguments", args[0])
		case len(args) > len(names):
			return usagef("%q is too much: expected only %s", args[len(names)], strings.Join(names, " "))
		}
		return nil
	}
}

// atLeast demands the named arguments; the last one may come several times.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing", names[len(args)])
		}
		return nil
	}
}

// atMost allows the named arguments and no more.
func atMost(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usagef("%q is too much: expected at most %s", args[len(names)], strings.Join(names, " "))
		}
		return nil
	}
}

// need makes flags of a command required.
func need(cmd *cobra.Command, flags ...string) *cobra.Command {
	for _, f := range flags {
		if err := cmd.MarkFlagRequired(f); err != nil {
			panic(err) // the flag is misspelled in this program
		}
	}
	return cmd
}

// options completes a flag with fixed words.
func options(words ...string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

func mustComplete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag is misspelled in this program
	}
}

// addYes gives a command that asks before it acts the flag that answers.
func (c *cli) addYes(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&c.flags.yes, "yes", "y", false, "do not ask")
}

// addForce gives a command that a guard of the controller may refuse the flag that overrides it.
func addForce(cmd *cobra.Command, force *bool, also string) {
	cmd.Flags().BoolVar(force, "force", false, "also if "+also)
}

// What --force lets through.
const (
	forceShrink = "it leaves fewer than half of a group's endpoints"
	forceServed = "no active edge is left for an enabled accelerator"
)

var errNotConfirmed = errors.New("not confirmed, so nothing was changed; --yes does not ask")

// confirm asks whoever sits there. Without a terminal there is nobody, and the command was the word.
func (c *cli) confirm(format string, args ...any) error {
	if c.flags.yes || !c.terminal {
		return nil
	}
	fmt.Fprintf(c.stderr, format+" [y/N] ", args...)
	line, err := bufio.NewReader(io.LimitReader(c.stdin, 100)).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	if err != nil && !errors.Is(err, io.EOF) || answer != "y" && answer != "yes" {
		return errNotConfirmed
	}
	return nil
}

// note tells people something that is not the answer.
func (c *cli) note(format string, args ...any) {
	fmt.Fprintln(c.stderr, printable(fmt.Sprintf(format, args...)))
}

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, osEnv())
	stop()
	os.Exit(code)
}

// osEnv is the env of this process.
func osEnv() env {
	dialer := &net.Dialer{}
	dialer.SetMultipathTCP(false)
	_, stdinIsTerminal := terminalWidth(os.Stdin)
	_, stderrIsTerminal := terminalWidth(os.Stderr)
	width, _ := terminalWidth(os.Stdout)
	return env{
		args:   os.Args[1:],
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		now:    time.Now,
		sleep:  sleep,
		dial: func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
		terminal: stdinIsTerminal && stderrIsTerminal,
		width:    width,
	}
}

// terminalWidth returns the columns of a terminal, and false if f is none.
func terminalWidth(f *os.File) (columns int, ok bool) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(size.Col), true
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
