package model

import (
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// AttachmentID names an attachment: a UUID.
type AttachmentID string

// Attachment lets accelerators of other projects use what belongs to Project.
type Attachment struct {
	ID           AttachmentID
	Project      string // the owner
	Name         string
	Projects     []string        // who may use the resources: all their accelerators,
	Accelerators []AcceleratorID // and these
	Resources    []SharedResource
	Tags         map[string]string
	Created      time.Time
	Modified     time.Time
	Revision     uint64
}

// SharedResource is an endpoint (a target's or subnet's name) or a network that its owner brought.
type SharedResource struct {
	Endpoint EndpointID   // "": a network
	Region   RegionName   // of the endpoint; "": wherever it is
	CIDR     netip.Prefix // zero: an endpoint
}

// Grants reports whether the attachment is for an accelerator of a project.
func (a *Attachment) Grants(project string, id AcceleratorID) bool {
	return slices.Contains(a.Projects, project) || id != "" && slices.Contains(a.Accelerators, id)
}

// BYOIPState is what a range that was brought is good for.
type BYOIPState uint8

// The states of a range.
const (
	BYOIPReady BYOIPState = iota + 1
	BYOIPAdvertising
	BYOIPDeprovisioned
)

// BYOIPRange is a network that a project brought.
type BYOIPRange struct {
	CIDR     netip.Prefix
	Project  string
	State    BYOIPState
	Pool     PoolName     // "": deprovisioned
	Events   []BYOIPEvent // newest first, at most BYOIPEventsMax
	Revision uint64
}

// Withdrawn reports whether a range that is ready was advertised before.
func (r *BYOIPRange) Withdrawn() bool { return r.State == BYOIPReady && len(r.Events) > 1 }

// BYOIPEvent is one step of a range's life.
type BYOIPEvent struct {
	Time    time.Time
	Message string
}

// RangeRecord is what an operator knows of who may sign for a network.
type RangeRecord struct {
	CIDR     netip.Prefix
	Document string // PEM certificates, or RDAP's JSON with them in its remarks
	Revision uint64
}

var byoipStates = enumTable[pb.ByoipState, BYOIPState]{
	{pb.ByoipState_BYOIP_STATE_UNSPECIFIED, 0},
	{pb.ByoipState_BYOIP_STATE_READY, BYOIPReady},
	{pb.ByoipState_BYOIP_STATE_ADVERTISING, BYOIPAdvertising},
	{pb.ByoipState_BYOIP_STATE_DEPROVISIONED, BYOIPDeprovisioned},
}

// AttachmentFromProto converts an attachment.
func AttachmentFromProto(p *pb.Attachment) (Attachment, error) {
	c := newCheck("attachment")
	a := Attachment{
		ID: AttachmentID(p.GetId()), Project: p.GetProject(), Name: p.GetName(), Tags: tagsFrom(p.GetTags()),
		Created:  timeFrom(c, "created_time", p.GetCreatedTime()),
		Modified: timeFrom(c, "modified_time", p.GetModifiedTime()), Revision: p.GetRevision(),
		Resources: listFrom(c, "resources", p.GetResources(), ResourcesMax,
			func(c check, field string, r *pb.SharedResource) SharedResource {
				out := SharedResource{Endpoint: EndpointID(r.GetEndpoint()), Region: RegionName(r.GetRegion())}
				if r.GetCidr() != "" {
					out.CIDR = prefixFrom(c, field+".cidr", r.GetCidr())
				}
				return out
			}),
	}
	if c.count("projects", len(p.GetProjects()), PrincipalsMax) {
		a.Projects = names[string](p.GetProjects())
	}
	if c.count("accelerators", len(p.GetAccelerators()), PrincipalsMax) {
		a.Accelerators = names[AcceleratorID](p.GetAccelerators())
	}
	if a.Project == "" {
		a.Project = DefaultProject
	}
	return a, c.err()
}

// AttachmentToProto converts an attachment.
func AttachmentToProto(a Attachment) *pb.Attachment {
	p := &pb.Attachment{
		Id: string(a.ID), Project: a.Project, Name: a.Name, Projects: names[string](a.Projects),
		Accelerators: names[string](a.Accelerators), Tags: tagsFrom(a.Tags), CreatedTime: timeTo(a.Created),
		ModifiedTime: timeTo(a.Modified), Revision: a.Revision,
	}
	for _, r := range a.Resources {
		out := &pb.SharedResource{Endpoint: string(r.Endpoint), Region: string(r.Region)}
		if r.CIDR.IsValid() {
			out.Cidr = r.CIDR.String()
		}
		p.Resources = append(p.Resources, out)
	}
	return p
}

// Validate judges an attachment by itself.
func (a Attachment) Validate() error {
	c := newCheck("attachment")
	c.idOrNone("id", string(a.ID))
	c.name("project", a.Project)
	if a.Name == "" {
		c.wrong("name", "is missing; give 1–%d characters", NameMax)
	}
	c.text("name", a.Name, NameMax)
	for i, p := range a.Projects {
		c.name(index("projects", i), p)
		if slices.Contains(a.Projects[:i], p) {
			c.wrong(index("projects", i), "names %s twice; leave one out", show(p))
		}
		if p == a.Project {
			c.wrong(index("projects", i), "is the owner, who needs no attachment; leave it out")
		}
	}
	for i, id := range a.Accelerators {
		c.id(index("accelerators", i), string(id))
		if slices.Contains(a.Accelerators[:i], id) {
			c.wrong(index("accelerators", i), "names %s twice; leave one out", show(string(id)))
		}
	}
	if c.count("resources", len(a.Resources), ResourcesMax) {
		for i := range a.Resources {
			a.checkResource(c, i)
		}
	}
	c.tags(a.Tags)
	return c.err()
}

func (a *Attachment) checkResource(c check, i int) {
	field, r := index("resources", i), a.Resources[i]
	switch {
	case (r.Endpoint != "") == r.CIDR.IsValid():
		c.wrong(field, "has an endpoint and a cidr, or neither; give one of them")
	case r.CIDR.IsValid() && r.Region != "":
		c.wrong(field+".region", "is for endpoints; a network is everywhere, leave it out")
	case utf8.RuneCountInString(string(r.Endpoint)) > TargetNameMax:
		c.wrong(field+".endpoint", "has more than %d characters", TargetNameMax)
	}
	if r.Region != "" {
		c.name(field+".region", string(r.Region))
	}
	for _, other := range a.Resources[:i] {
		if other.Endpoint == r.Endpoint && other.CIDR == r.CIDR {
			c.wrong(field, "is there twice; leave one out")
			return
		}
	}
}

// BYOIPRangeFromProto converts a range.
func BYOIPRangeFromProto(p *pb.ByoipRange) (BYOIPRange, error) {
	c := newCheck("range")
	return BYOIPRange{
		CIDR: prefixFrom(c, "cidr", p.GetCidr()), Project: p.GetProject(),
		State: byoipStates.from(c, "state", p.GetState()), Pool: PoolName(p.GetPool()), Revision: p.GetRevision(),
		Events: listFrom(c, "events", p.GetEvents(), BYOIPEventsMax,
			func(c check, field string, e *pb.ByoipEvent) BYOIPEvent {
				return BYOIPEvent{timeFrom(c, field+".time", e.GetTime()), e.GetMessage()}
			}),
	}, c.err()
}

// BYOIPRangeToProto converts a range.
func BYOIPRangeToProto(r BYOIPRange) *pb.ByoipRange {
	p := &pb.ByoipRange{Cidr: r.CIDR.String(), Project: r.Project, State: byoipStates.to(r.State),
		Pool: string(r.Pool), Revision: r.Revision}
	for _, e := range r.Events {
		p.Events = append(p.Events, &pb.ByoipEvent{Time: timeTo(e.Time), Message: e.Message})
	}
	return p
}

// CheckRange says whether a network can be brought or recorded: it is one that the internet takes.
func CheckRange(field string, p netip.Prefix) error {
	c := newCheck("")
	switch {
	case !p.IsValid():
		c.wrong(field, "is missing; write it like 192.0.2.0/24")
	case p != p.Masked():
		c.wrong(field, "%v has bits beyond its length; write %v", p, p.Masked())
	case p.Addr().Is4() && (p.Bits() > BYOIPBitsMax4 || p.Bits() < BYOIPBitsMin4):
		c.wrong(field, "%v must be /%d to /%d: the internet takes nothing longer", p, BYOIPBitsMin4, BYOIPBitsMax4)
	case p.Addr().Is6() && (p.Bits() > BYOIPBitsMax6 || p.Bits() < BYOIPBitsMin6):
		c.wrong(field, "%v must be /%d to /%d: the internet takes nothing longer", p, BYOIPBitsMin6, BYOIPBitsMax6)
	}
	return c.err()
}

// RangeRecordFromProto converts a record.
func RangeRecordFromProto(p *pb.RangeRecord) (RangeRecord, error) {
	c := newCheck("record")
	r := RangeRecord{Document: p.GetDocument(), Revision: p.GetRevision()}
	if p.GetCidr() != "" {
		r.CIDR = prefixFrom(c, "cidr", p.GetCidr())
	}
	return r, c.err()
}

// RangeRecordToProto converts a record; the signers are the caller's to add.
func RangeRecordToProto(r RangeRecord) *pb.RangeRecord {
	return &pb.RangeRecord{Cidr: r.CIDR.String(), Document: r.Document, Revision: r.Revision}
}
