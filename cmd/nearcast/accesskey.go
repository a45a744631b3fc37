package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) accessKeyCommand() *cobra.Command {
	type col = column[*pb.AccessKey]
	return c.noun("access-key", "Keys with which AWS clients use the cluster",
		"  nearcast access-key create --role operator\n  nearcast access-key list", []string{"access-keys"},
		c.accessKeyCreate(),
		listCommand(c, "List the access keys, without their secrets", "nearcast access-key list",
			(*session).accessKeys, func(all []*pb.AccessKey) error {
				return showList(c, "access keys", all,
					col{"ID", (*pb.AccessKey).GetId},
					col{"ROLE", func(k *pb.AccessKey) string { return enumText(k.GetRole()) }},
					col{"PROJECT", (*pb.AccessKey).GetProject},
					col{"ACCOUNT", (*pb.AccessKey).GetAccountId},
					col{"EXPIRES", func(k *pb.AccessKey) string { return c.until(k.GetExpires()) }},
					col{"SINCE", func(k *pb.AccessKey) string { return timeText(k.GetCreatedTime()) }},
					col{"BY", (*pb.AccessKey).GetCreatedBy},
					col{"DESCRIPTION", (*pb.AccessKey).GetDescription})
			}),
		c.accessKeyRotate(), c.accessKeyRevoke())
}

func (c *cli) accessKeyCreate() *cobra.Command {
	k := pb.AccessKey{Role: pb.Role_ROLE_OPERATOR}
	cmd := &cobra.Command{
		Use: "create", Short: "Make an access key; the secret is printed once",
		Long: "Make an access key for the aws command line, the AWS SDKs, Terraform and others, and print it as\n" +
			"lines of a shell. It sees and makes the accelerators of one project. A project has an account id,\n" +
			"which its first key fixes.",
		Example: "  nearcast access-key create --role operator --project shop --account-id 123456789012\n" +
			"  eval \"$(nearcast access-key create)\"",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateAccessKey(cmd.Context(), &pb.CreateAccessKeyRequest{Key: &k})
			if err != nil {
				return err
			}
			return c.showAccessKey(made)
		},
	}
	f := cmd.Flags()
	enumFlag(cmd, &k.Role, "role", "what it may do")
	f.StringVar(&k.Project, "project", "", "`name` of the project whose accelerators it sees (default \"default\")")
	f.StringVar(&k.AccountId, "account-id", "", "the project's account `id`, 12 digits (default: its own, or made up)")
	f.StringVar(&k.Description, "description", "", "`words` for people")
	return cmd
}

func (c *cli) accessKeyRotate() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "rotate KEY", Short: "Make a new key with the same rights; the old one ends",
		Example: "  nearcast access-key rotate NCAKQ2XJ4ZJ6M5RTVU7D --grace 24h",
		Args:    exactly("KEY"),
		ValidArgsFunction: first(completeWith(c, (*session).accessKeys,
			(*pb.AccessKey).GetId)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.RotateAccessKey(cmd.Context(), &pb.RotateAccessKeyRequest{Id: args[0],
				Grace: durationpb.New(grace)})
			if err != nil {
				return err
			}
			return c.showAccessKey(made)
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", time.Hour, "how long the old key still works; 0: not at all")
	return cmd
}

func (c *cli) accessKeyRevoke() *cobra.Command {
	var rev uint64
	cmd := &cobra.Command{
		Use: "revoke KEY", Aliases: []string{"delete", "rm"}, Short: "Revoke an access key at once",
		Example:           "  nearcast access-key revoke NCAKQ2XJ4ZJ6M5RTVU7D",
		Args:              exactly("KEY"),
		ValidArgsFunction: first(completeWith(c, (*session).accessKeys, (*pb.AccessKey).GetId)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			if err := c.confirm("Revoke access key %s?", args[0]); err != nil {
				return err
			}
			_, err = s.DeleteAccessKey(cmd.Context(), &pb.DeleteRequest{Id: args[0], ExpectedRevision: rev})
			return c.done(err, "revoked access key %s", args[0])
		},
	}
	addRevision(cmd, &rev)
	c.addYes(cmd)
	return cmd
}

// showAccessKey prints a key and its secret, the only time that they are there together.
func (c *cli) showAccessKey(made *pb.AccessKeySecret) error {
	if c.flags.output != "table" {
		return c.show(made, nil)
	}
	k := made.GetKey()
	c.note("access key of role %s for project %s, account %s; the secret is not shown again:",
		enumText(k.GetRole()), k.GetProject(), k.GetAccountId())
	_, err := fmt.Fprintf(c.stdout, "export AWS_ACCESS_KEY_ID=%s\nexport AWS_SECRET_ACCESS_KEY=%s\n",
		k.GetId(), made.GetSecret())
	return err
}
