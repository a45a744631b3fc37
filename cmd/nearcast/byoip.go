package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) byoipCommand() *cobra.Command {
	type col = column[*pb.ByoipRange]
	step := func(verb, short string, do func(*session, context.Context, *pb.ByoipRangeRequest) (*pb.ByoipRange, error)) *cobra.Command {
		return c.byoipStep(verb, short, do)
	}
	return c.noun("byoip", "Address ranges that projects bring",
		"  nearcast byoip record set 192.0.2.0/24 --document rdap.json\n"+
			"  nearcast byoip provision 192.0.2.0/24 --message \"$text\" --signature \"$signature\"\n"+
			"  nearcast byoip advertise 192.0.2.0/24", nil,
		c.byoipRecordCommand(), c.byoipProvision(),
		listCommand(c, "List the ranges that were brought", "nearcast byoip list", (*session).ranges,
			func(all []*pb.ByoipRange) error {
				return showList(c, "ranges", all,
					col{"CIDR", (*pb.ByoipRange).GetCidr},
					col{"PROJECT", (*pb.ByoipRange).GetProject},
					col{"STATE", func(r *pb.ByoipRange) string { return enumText(r.GetState()) }},
					col{"APPLIED", func(r *pb.ByoipRange) string { return yesNo(r.GetApplied()) }},
					col{"POOL", (*pb.ByoipRange).GetPool},
					col{"LAST", func(r *pb.ByoipRange) string {
						if len(r.GetEvents()) == 0 {
							return ""
						}
						e := r.GetEvents()[0]
						return e.GetMessage() + ", " + c.ago(e.GetTime())
					}})
			}),
		step("advertise", "Let sites announce a range and accelerators have its addresses",
			func(s *session, ctx context.Context, r *pb.ByoipRangeRequest) (*pb.ByoipRange, error) {
				return s.AdvertiseRange(ctx, r)
			}),
		step("withdraw", "Let nobody announce a range that no accelerator uses",
			func(s *session, ctx context.Context, r *pb.ByoipRangeRequest) (*pb.ByoipRange, error) {
				return s.WithdrawRange(ctx, r)
			}),
		step("deprovision", "Give a range back that is not advertised",
			func(s *session, ctx context.Context, r *pb.ByoipRangeRequest) (*pb.ByoipRange, error) {
				return s.DeprovisionRange(ctx, r)
			}))
}

func (s *session) ranges(ctx context.Context) ([]*pb.ByoipRange, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListRangesResponse, error) {
		return s.ListRanges(ctx, r)
	}, (*pb.ListRangesResponse).GetRanges)
}

func (s *session) records(ctx context.Context) ([]*pb.RangeRecord, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListRangeRecordsResponse, error) {
		return s.ListRangeRecords(ctx, r)
	}, (*pb.ListRangeRecordsResponse).GetRecords)
}

func (c *cli) completeRanges() cobra.CompletionFunc {
	return completeWith(c, (*session).ranges, (*pb.ByoipRange).GetCidr)
}

func (c *cli) showRange(r *pb.ByoipRange) error {
	return c.show(r, func(p *page) {
		p.line("Range", r.GetCidr())
		p.line("Project", r.GetProject())
		p.line("State", enumText(r.GetState()))
		p.line("Known to all nodes", yesNo(r.GetApplied()))
		p.line("Pool", r.GetPool())
		p.heading("Events")
		for _, e := range r.GetEvents() {
			p.line(timeText(e.GetTime()), e.GetMessage())
		}
	})
}

func (c *cli) byoipProvision() *cobra.Command {
	var req pb.ProvisionRangeRequest
	cmd := &cobra.Command{
		Use: "provision CIDR", Short: "Bring a range: show that its owner lets the project have it",
		Long: "Bring a range. The message is 1|aws|ACCOUNT|CIDR|YYYYMMDD|SHA256|RSAPSS, where ACCOUNT is the project's\n" +
			"account id and the date its last day, signed with the key of a certificate in the range's record.",
		Example: "  text='1|aws|123456789012|192.0.2.0/24|20270101|SHA256|RSAPSS'\n" +
			"  signature=$(printf %s \"$text\" | openssl dgst -sha256 -sigopt rsa_padding_mode:pss \\\n" +
			"    -sigopt rsa_pss_saltlen:-1 -sign key.pem -keyform PEM | openssl base64 | tr -d '\\n')\n" +
			"  nearcast byoip provision 192.0.2.0/24 --project shop --message \"$text\" --signature \"$signature\"",
		Args: exactly("CIDR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			req.Cidr = args[0]
			made, err := s.ProvisionRange(cmd.Context(), &req)
			if err != nil {
				return err
			}
			return c.showRange(made)
		},
	}
	cmd.Flags().StringVar(&req.Project, "project", "", "who brings it (default \"default\")")
	cmd.Flags().StringVar(&req.Message, "message", "", "the `text` that was signed")
	cmd.Flags().StringVar(&req.Signature, "signature", "", "the signature in `base64`")
	return need(cmd, "message", "signature")
}

// byoipStep makes a command for one step of a range's life.
func (c *cli) byoipStep(verb, short string,
	do func(*session, context.Context, *pb.ByoipRangeRequest) (*pb.ByoipRange, error)) *cobra.Command {
	var req pb.ByoipRangeRequest
	cmd := &cobra.Command{
		Use: verb + " CIDR", Short: short, Example: "  nearcast byoip " + verb + " 192.0.2.0/24 --project shop",
		Args: exactly("CIDR"), ValidArgsFunction: first(c.completeRanges()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			if err := c.confirm("%s %s?", strings.ToUpper(verb[:1])+verb[1:], args[0]); err != nil {
				return err
			}
			req.Cidr = args[0]
			made, err := do(s, cmd.Context(), &req)
			if err != nil {
				return err
			}
			return c.showRange(made)
		},
	}
	cmd.Flags().StringVar(&req.Project, "project", "", "whose range it is (default \"default\")")
	c.addYes(cmd)
	return cmd
}

func (c *cli) byoipRecordCommand() *cobra.Command {
	type col = column[*pb.RangeRecord]
	return c.noun("record", "Who may sign for a range",
		"  nearcast byoip record set 192.0.2.0/24 --document rdap.json", []string{"records"},
		c.byoipRecordSet(),
		listCommand(c, "List the records", "nearcast byoip record list", (*session).records,
			func(all []*pb.RangeRecord) error {
				return showList(c, "records", all,
					col{"CIDR", (*pb.RangeRecord).GetCidr},
					col{"SIGNERS", func(r *pb.RangeRecord) string { return strings.Join(r.GetSigners(), "; ") }})
			}),
		c.deleteCommand("CIDR", "Delete a record; ranges that were brought by it stay", "nearcast byoip record delete 192.0.2.0/24",
			completeWith(c, (*session).records, (*pb.RangeRecord).GetCidr), asIs,
			func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteRangeRecord(ctx, r)
				return err
			}))
}

func (c *cli) byoipRecordSet() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "set CIDR", Short: "Record by whose certificates a range can be brought",
		Long: "Record who may sign for a range: the owners of the keys in X.509 certificates, which are in a PEM file or\n" +
			"in the remarks of the registry's RDAP answer. It replaces the record that there was.",
		Example: "  curl -s https://rdap.db.ripe.net/ip/192.0.2.0/24 > rdap.json\n" +
			"  nearcast byoip record set 192.0.2.0/24 --document rdap.json",
		Args: exactly("CIDR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.SetRangeRecord(cmd.Context(), &pb.SetRangeRecordRequest{
				Record: &pb.RangeRecord{Cidr: args[0], Document: string(text)}})
			if err != nil {
				return err
			}
			return c.show(made, func(p *page) {
				p.line("Range", made.GetCidr())
				for i, signer := range made.GetSigners() {
					p.line(fmt.Sprint("Signer ", i+1), signer)
				}
			})
		},
	}
	cmd.Flags().StringVar(&file, "document", "", "PEM or RDAP (JSON) `file`")
	return need(cmd, "document")
}
