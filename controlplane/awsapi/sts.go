package awsapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file is as much of AWS's Security Token Service as clients need that were pointed at one endpoint for
// everything: who am I (Terraform asks at its start), and temporary credentials. It is spoken in the query
// protocol.

const (
	stsXML       = "https://sts.amazonaws.com/doc/2011-06-15/"
	exValidation = "ValidationError"
)

// sts are the operations by name.
var sts = map[string]func(call, context.Context, []byte) (tree, error){
	"GetCallerIdentity": asks(call.callerIdentity),
	"GetSessionToken":   asks(call.sessionToken),
	"AssumeRole":        asks(call.assumeRole),
}

// arn is what AWS would call the caller: a user, or what a session was made for.
func (c call) arn() string {
	if c.key.Session != "" {
		return assumedARN(c.key.Account, c.key.Role, c.key.Session)
	}
	return fmt.Sprintf("arn:aws:iam::%s:user/%s", c.key.Account, c.key.ID)
}

func roleWord(r v1.Role) string { return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_")) }

func assumedARN(account string, r v1.Role, session string) string {
	return fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", account, roleWord(r), session)
}

func (c call) callerIdentity(context.Context, *struct{}) (tree, error) {
	return tree{"Account": c.key.Account, "Arn": c.arn(), "UserId": c.key.ID}, nil
}

type sessionToken struct{ DurationSeconds number }

func (c call) sessionToken(ctx context.Context, in *sessionToken) (tree, error) {
	return c.session(ctx, c.key.Role, "", in.DurationSeconds)
}

type assumeRole struct {
	RoleArn         string
	RoleSessionName string
	DurationSeconds number
}

// assumeRole gives a session one of the roles of this cluster: arn:aws:iam::<own account>:role/viewer, operator
// or admin, at most the key's.
func (c call) assumeRole(ctx context.Context, in *assumeRole) (tree, error) {
	name, ok := strings.CutPrefix(in.RoleArn, "arn:aws:iam::"+c.key.Account+":role/")
	role := v1.Role(v1.Role_value["ROLE_"+strings.ToUpper(name)])
	if !ok || role == v1.Role_ROLE_UNSPECIFIED || name != roleWord(role) {
		return nil, faultf("AccessDenied", "%s is not authorized to perform: sts:AssumeRole on resource: %s (roles are "+
			"arn:aws:iam::%s:role/viewer, operator and admin)", c.arn(), shorten(in.RoleArn), c.key.Account)
	}
	if in.RoleSessionName == "" {
		return nil, faultf(exValidation, "RoleSessionName must not be null")
	}
	out, err := c.session(ctx, role, in.RoleSessionName, in.DurationSeconds)
	if err != nil {
		return nil, err
	}
	id := out["Credentials"].(tree)["AccessKeyId"]
	out["AssumedRoleUser"] = tree{"Arn": assumedARN(c.key.Account, role, in.RoleSessionName),
		"AssumedRoleId": fmt.Sprintf("%s:%s", id, in.RoleSessionName)}
	return out, nil
}

func (c call) session(ctx context.Context, role v1.Role, name string, seconds number) (tree, error) {
	if c.key.Session != "" {
		return nil, faultf("AccessDenied", "temporary credentials cannot make others: use the access key")
	}
	if c.cfg.Session == nil {
		return nil, faultf("InvalidAction", "there are no sessions at this endpoint")
	}
	if seconds < 0 || seconds > 1e6 {
		return nil, faultf(exValidation, "DurationSeconds must be 900 to 129600")
	}
	made, err := c.cfg.Session(ctx, c.key.ID, role, time.Duration(seconds)*time.Second, name)
	var wrong model.FieldErrors
	switch {
	case errors.As(err, &wrong) && wrong[0].Field == "role":
		return nil, faultf("AccessDenied", "%s is not authorized to perform: sts:AssumeRole: the role is more than its own", c.arn())
	case errors.As(err, &wrong):
		return nil, faultf(exValidation, "%s", wrong.Error())
	case errors.Is(err, access.ErrUnknown):
		return nil, faultf("InvalidClientTokenId", "The security token included in the request is invalid.")
	case err != nil:
		return nil, err
	}
	return tree{"Credentials": tree{"AccessKeyId": made.ID, "SecretAccessKey": made.Secret, "SessionToken": made.Token,
		"Expiration": made.Expires}}, nil
}
