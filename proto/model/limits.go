package model

import "time"

// What a snapshot may hold at most. The numbers are far above any fleet that we know of; they exist
// so that a broken or hostile controller cannot make a node run out of memory. Beyond a limit the
// snapshot is refused whole.
const (
	SnapshotBytesMax        = 32 << 20 // serialised; a gRPC client must be allowed to receive this much
	SnapshotAcceleratorsMax = 10_000
	SnapshotListenersMax    = 20_000
	SnapshotGroupsMax       = 50_000
	SnapshotEndpointsMax    = 200_000 // over all groups
	SnapshotPoolsMax        = 1_000
	SnapshotRegionsMax      = 1_000
	SnapshotSitesMax        = 1_000
	SnapshotNodesMax        = 2_000
	SnapshotGossipKeysMax   = 8
	SnapshotNetworksMax     = 1_000 // endpoint_allow_networks
	SnapshotPeersMax        = 4_000 // BGP sessions of all sites
	SnapshotSubnetsMax      = 10_000
	SnapshotZonesMax        = 256
	SnapshotZoneBytesMax    = 8 << 20    // text of all zones
	SnapshotCookiesMax      = 2          // cookie_secrets: RFC 9018 5
	CountriesMax            = 250        // of a guard's list, and lists of a snapshot: as many as there are
	CountryNetworksMax      = 1_000_000  // of all lists of a snapshot; the guard has room for 48,576 others then
	CountryBytesMax         = 1280 << 10 // of one packed list; a change of the store holds 1.4 MB
)

// snapshotFieldsMax bounds the fields of all objects of a snapshot before any is made: an empty
// element of a list is 2 bytes on the wire and about 60 in memory.
const snapshotFieldsMax = 4 << 20

// What one object may hold at most, whatever the operators' Settings say.
const (
	PortRangesMax        = 100   // of a listener
	PortOverridesMax     = 100   // of a group
	EndpointsMax         = 1_000 // of a group
	TagsMax              = 200   // of a resource
	ProxyNetworksMax     = 64    // proxy_protocol_from of a listener
	GuardNetworksMax     = 1_000 // allowed, and denied, of a listener
	AcceleratorPoolsMax  = 2     // one a zone
	AddressesMax         = 4     // of an accelerator: two zones, two families
	PoolPrefixesMax      = 256
	ZoneTextMax          = 512 << 10 // bytes; a change of the store holds 1.5 MB
	ZoneAliasesMax       = 1_000
	ZoneKeysMax          = 4
	SteeringNetworksMax  = 10_000
	NameServersMax       = 13   // what a referral of 512 bytes holds (RFC 1035)
	BalanceWeightDefault = 100  // of a node in its site
	BalanceWeightMax     = 1000 //
	BalanceNodesMax      = 31   // nodes of one site that balance its flows (numbers in the kernel's tables)
	NodeAddressesMax     = 32   // backbone addresses of a node, and service addresses of a node

	CustomRoutingDestinationsMax = 100   // of a group of custom routing; AWS's
	CustomRoutingEndpointsMax    = 1_000 // of a group of custom routing
	MappingRangesMax             = 256   // of ports that one endpoint of custom routing has
	CustomRoutingRangeMin        = 16    // ports that a range of a custom routing listener has at least; AWS's
	AttachmentsMax               = 10_000
	PrincipalsMax                = 1_000 // of an attachment
	BYOIPEventsMax               = 10    // as many as AWS keeps of an accelerator
	BYOIPBitsMin4, BYOIPBitsMax4 = 8, 24 // RFC 7454 6.1.3: longer ones are not taken
	BYOIPBitsMin6, BYOIPBitsMax6 = 19, 48
	ResourcesMax                 = 500 // of an attachment; AWS's
	SubnetBitsMin                = 16  // a larger subnet has more addresses than an accelerator has ports
)

// TrafficRowsMax bounds the rows of one report of a node; what it has more goes into another one.
const TrafficRowsMax = 1_000

// Lengths, in characters unless they say bytes. Sources: AWS Global Accelerator's API reference for
// names, tags and paths; RFC 1035 for host names.
const (
	NameMax        = 64
	IDMax          = 64
	TargetNameMax  = 255
	HostMax        = 253
	TagKeyMax      = 128
	TagValueMax    = 256
	HealthPathMax  = 255
	DescriptionMax = 256
	ReasonMax      = 1024 // bytes, of a verdict's reason

	FlowLogsTextMax = 255 // bucket and prefix
)

// Ranges of times and counts.
const (
	IdleTimeoutMin     = time.Second
	TCPIdleTimeoutMax  = 24 * time.Hour
	UDPIdleTimeoutMax  = time.Hour
	HealthIntervalMin  = time.Second
	HealthIntervalMax  = 300 * time.Second
	HealthTimeoutMin   = 100 * time.Millisecond
	HealthThresholdMax = 10
)

// Limits of BGP. Sources: RFC 4271 (hold time), RFC 4724 (restart time has 12 bits); the others are far
// beyond what makes sense.
const (
	AggregatesMax    = 256 // announce_aggregates
	CommunitiesMax   = 32  // of a site, and of a session
	PrependsMax      = 10
	DrainTimeMax     = time.Hour
	HoldTimeMin      = 3 * time.Second
	HoldTimeMax      = time.Hour
	ConnectRetryMin  = 2 * time.Second
	ConnectRetryMax  = 10 * time.Minute
	RestartTimeMax   = 4095 * time.Second
	BFDIntervalMin   = 10 * time.Millisecond
	BFDIntervalMax   = 10 * time.Second
	BFDMultiplierMax = 50
)

// fieldErrorsMax bounds the list of what is wrong with one object: a person mends the first ones
// and asks again, and a list without bound would be a way to make large answers from small requests.
const fieldErrorsMax = 50

// shownMax bounds how many bytes of a value that is not understood are shown in a message.
const shownMax = 80

// Defaults of Settings: the quotas of AWS Global Accelerator, which its users plan with.
const (
	DefaultAcceleratorsMax            = 20
	DefaultListenersPerAcceleratorMax = 10
	DefaultGroupsPerAcceleratorMax    = 42
	DefaultPortRangesPerListenerMax   = 10
	DefaultPortOverridesPerGroupMax   = 10
	DefaultEndpointsPerGroupMax       = 10
	DefaultTagsPerResourceMax         = 50

	DefaultCustomRoutingAcceleratorsMax = 10
	DefaultAttachmentsMax               = 10
	DefaultPrincipalsPerAttachmentMax   = 10
	DefaultBYOIPRangesMax               = 2
	DefaultMaxEjectionPercent           = 100 // ours: verdicts may take out a whole group, which then fails over
)
