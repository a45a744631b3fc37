package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) attachmentCommand() *cobra.Command {
	type col = column[*pb.Attachment]
	return c.noun("attachment", "What projects let the accelerators of other projects use",
		"  nearcast attachment create shared-alb --project shop --for-project blog --endpoint i-0123abcd\n"+
			"  nearcast attachment list", []string{"attachments"},
		c.attachmentCreate(),
		getCommand(c, "ATTACHMENT", "nearcast attachment get 8f0c…", c.completeAttachments(),
			func(ctx context.Context, s *session, id string) (*pb.Attachment, error) { return s.attachment(ctx, id) },
			c.showAttachment),
		listCommand(c, "List the attachments", "nearcast attachment list", (*session).attachments,
			func(all []*pb.Attachment) error {
				return showList(c, "attachments", all,
					col{"ID", (*pb.Attachment).GetId},
					col{"NAME", (*pb.Attachment).GetName},
					col{"PROJECT", (*pb.Attachment).GetProject},
					col{"FOR", func(a *pb.Attachment) string {
						return strings.Join(slices.Concat(a.GetProjects(), a.GetAccelerators()), " ")
					}},
					col{"RESOURCES", resourcesText})
			}),
		c.attachmentUpdate(),
		c.deleteCommand("ATTACHMENT", "Delete an attachment; endpoints that it alone allowed leave their groups",
			"nearcast attachment delete 8f0c…", c.completeAttachments(), asIs,
			func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteAttachment(ctx, r)
				return err
			}))
}

func (s *session) attachments(ctx context.Context) ([]*pb.Attachment, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListAttachmentsResponse, error) {
		return s.ListAttachments(ctx, r)
	}, (*pb.ListAttachmentsResponse).GetAttachments)
}

func (s *session) attachment(ctx context.Context, id string) (*pb.Attachment, error) {
	return s.GetAttachment(ctx, &pb.GetRequest{Id: id})
}

func (c *cli) completeAttachments() cobra.CompletionFunc {
	return completeWith(c, (*session).attachments, (*pb.Attachment).GetId)
}

func resourceText(r *pb.SharedResource) string {
	if r.GetCidr() != "" {
		return r.GetCidr()
	}
	if r.GetRegion() != "" {
		return r.GetEndpoint() + "@" + r.GetRegion()
	}
	return r.GetEndpoint()
}

func resourcesText(a *pb.Attachment) string {
	var words []string
	for _, r := range a.GetResources() {
		words = append(words, resourceText(r))
	}
	return strings.Join(words, " ")
}

func (c *cli) showAttachment(a *pb.Attachment) error {
	return c.show(a, func(p *page) {
		p.line("ID", a.GetId())
		p.line("Name", a.GetName())
		p.line("Project", a.GetProject())
		p.line("For projects", strings.Join(a.GetProjects(), ", "))
		p.line("For accelerators", strings.Join(a.GetAccelerators(), ", "))
		p.line("Resources", resourcesText(a))
		p.line("Tags", tagsText(a.GetTags()))
		p.line("Since", timeText(a.GetCreatedTime()))
	})
}

// sharing are the parts of an attachment as flags.
type sharing struct{ projects, accelerators, endpoints, cidrs []string }

// add adds the flags; prefix is like "remove-".
func (v *sharing) add(cmd *cobra.Command, prefix, what string) {
	f := cmd.Flags()
	f.StringSliceVar(&v.projects, prefix+"for-project", nil, what+"`projects` whose accelerators may use the resources")
	f.StringSliceVar(&v.accelerators, prefix+"for-accelerator", nil, what+"single `accelerators` that may")
	f.StringArrayVar(&v.endpoints, prefix+"endpoint", nil,
		what+"a target or subnet: `NAME` or NAME@REGION; may be given several times")
	f.StringSliceVar(&v.cidrs, prefix+"cidr", nil, what+"`networks` within a range that the project brought")
}

func (v *sharing) resources() (all []*pb.SharedResource) {
	for _, e := range v.endpoints {
		r := &pb.SharedResource{Endpoint: e}
		if at := strings.LastIndexByte(e, '@'); at > 0 {
			r.Endpoint, r.Region = e[:at], e[at+1:]
		}
		all = append(all, r)
	}
	for _, n := range v.cidrs {
		all = append(all, &pb.SharedResource{Cidr: n})
	}
	return all
}

// ids returns the ids of the accelerators that are named.
func (v *sharing) ids(ctx context.Context, s *session) (ids []string, err error) {
	for _, ref := range v.accelerators {
		a, err := s.accelerator(ctx, ref)
		if err != nil {
			return nil, err
		}
		ids = append(ids, a.GetId())
	}
	return ids, nil
}

func (c *cli) attachmentCreate() *cobra.Command {
	var (
		req  pb.CreateAttachmentRequest
		a    pb.Attachment
		v    sharing
		tags []string
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Let accelerators of other projects use what belongs to one",
		Example: "  nearcast attachment create shared-alb --project shop --for-project blog --endpoint i-0123abcd@eu-fra-1\n" +
			"  nearcast attachment create range --project shop --for-accelerator web --cidr 192.0.2.0/24",
		Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			s, err := c.admin()
			if err != nil {
				return err
			}
			a.Name, a.Projects, a.Resources = args[0], v.projects, v.resources()
			if a.Accelerators, err = v.ids(cmd.Context(), s); err != nil {
				return err
			}
			if a.Tags, err = parseTags(tags); err != nil {
				return err
			}
			req.Attachment = &a
			made, err := s.CreateAttachment(cmd.Context(), &req)
			if err != nil {
				return err
			}
			return c.showAttachment(made)
		},
	}
	v.add(cmd, "", "")
	cmd.Flags().StringVar(&a.Project, "project", "", "the owner (default \"default\")")
	cmd.Flags().StringVar(&req.IdempotencyToken, "idempotency-token", "",
		"a `word` of your own: the same create sent again makes no second one")
	addTags(cmd, &tags)
	return cmd
}

func (c *cli) attachmentUpdate() *cobra.Command {
	var (
		more, less sharing
		name       string
	)
	cmd := &cobra.Command{
		Use: "update ATTACHMENT", Aliases: []string{"set"}, Short: "Change whom an attachment lets use what",
		Long: "Change whom an attachment lets use what. Endpoints that accelerators may not use any more leave their\n" +
			"groups at once; addresses that they have cannot be taken back.",
		Example: "  nearcast attachment update 8f0c… --for-project wiki --remove-for-project blog\n" +
			"  nearcast attachment update 8f0c… --endpoint i-4567cdef",
		Args: exactly("ATTACHMENT"), ValidArgsFunction: first(c.completeAttachments()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			a, err := s.attachment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			add, err := more.ids(cmd.Context(), s)
			if err != nil {
				return err
			}
			drop, err := less.ids(cmd.Context(), s)
			if err != nil {
				return err
			}
			a.Projects = changedList(a.GetProjects(), more.projects, less.projects, asText)
			a.Accelerators = changedList(a.GetAccelerators(), add, drop, asText)
			a.Resources = changedList(a.GetResources(), more.resources(), less.resources(), resourceText)
			mask := []string{"projects", "accelerators", "resources"}
			if name != "" {
				a.Name, mask = name, append(mask, "name")
			}
			made, err := s.UpdateAttachment(cmd.Context(), &pb.UpdateAttachmentRequest{Attachment: a,
				UpdateMask: maskOf(mask...), ExpectedRevision: a.GetRevision()})
			if err != nil {
				return err
			}
			return c.showAttachment(made)
		},
	}
	more.add(cmd, "", "also ")
	less.add(cmd, "remove-", "no more ")
	cmd.Flags().StringVar(&name, "name", "", "another `name`")
	return cmd
}

func asText(s string) string { return s }

// changedList returns a list with some elements more and some less.
func changedList[T any](list, add, drop []T, key func(T) string) []T {
	has := func(in []T, v T) bool {
		return slices.ContainsFunc(in, func(o T) bool { return key(o) == key(v) })
	}
	list = slices.DeleteFunc(slices.Clone(list), func(v T) bool { return has(drop, v) })
	for _, v := range add {
		if !has(list, v) {
			list = append(list, v)
		}
	}
	return list
}

func (c *cli) accessKeySession() *cobra.Command {
	var req pb.CreateSessionRequest
	var valid time.Duration
	cmd := &cobra.Command{
		Use: "session KEY", Short: "Make temporary credentials of an access key; they are printed once",
		Long: "Make temporary credentials with at most the rights of an access key, and print them as lines of a\n" +
			"shell. They end with their time, or at once when the key is revoked.",
		Example: "  eval \"$(nearcast access-key session NCAKQ2XJ4ZJ6M5RTVU7D --role viewer --for 1h)\"",
		Args:    exactly("KEY"),
		ValidArgsFunction: first(completeWith(c, (*session).accessKeys,
			(*pb.AccessKey).GetId)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			req.KeyId, req.Valid = args[0], durationpb.New(valid)
			made, err := s.CreateSession(cmd.Context(), &req)
			if err != nil {
				return err
			}
			if c.flags.output != "table" {
				return c.show(made, nil)
			}
			c.note("temporary credentials until %s; they are not shown again:", timeText(made.GetExpires()))
			_, err = fmt.Fprintf(c.stdout, "export AWS_ACCESS_KEY_ID=%s\nexport AWS_SECRET_ACCESS_KEY=%s\n"+
				"export AWS_SESSION_TOKEN=%s\n", made.GetAccessKeyId(), made.GetSecret(), made.GetToken())
			return err
		},
	}
	enumFlag(cmd, &req.Role, "role", "what they may do, at most what the key may (default the key's)")
	cmd.Flags().DurationVar(&valid, "for", time.Hour, "how long, 15m to 36h")
	cmd.Flags().StringVar(&req.Name, "name", "", "a `word` for the audit log")
	return cmd
}
