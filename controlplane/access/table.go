package access

import (
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Need is what a method asks of its caller. Needs of operators are ordered: each role may do what
// the ones before it may.
type Need uint8

// The needs. The zero value is nobody's, so that a row that was forgotten denies.
const (
	NeedNever    Need = iota
	NeedNothing       // anybody: the method authenticates its caller by itself
	NeedNode          // a node that exists and is not revoked
	NeedViewer        // an operator of any role
	NeedOperator      // an operator of role OPERATOR or ADMIN
	NeedAdmin         // an operator of role ADMIN
)

// Rule is one row of the table.
type Rule struct {
	Need Need
	// Changes says that a successful call changes the configuration, so it belongs in the audit log.
	Changes bool
}

// Lookup returns the rule of a full method name like "/nearcast.v1.AdminService/GetNode".
// A method that has none is refused to everybody.
func Lookup(method string) Rule { return table[method] }

// table is the statement of policy, and is never written to: viewers read; operators change
// accelerators and what is below them, targets, and drain nodes and announcements (to revoke one is an administrator's,
// which UpdateNode checks itself); the rest is administrators'.
var table = map[string]Rule{
	v1.EnrollService_Enroll_FullMethodName: {NeedNothing, true},
	v1.NodeService_Renew_FullMethodName:    {NeedNode, false},
	v1.NodeService_Sync_FullMethodName:     {NeedNode, false},

	v1.AdminService_CreateAccelerator_FullMethodName: {NeedOperator, true},
	v1.AdminService_GetAccelerator_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListAccelerators_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdateAccelerator_FullMethodName: {NeedOperator, true},
	v1.AdminService_DeleteAccelerator_FullMethodName: {NeedOperator, true},

	v1.AdminService_CreateListener_FullMethodName: {NeedOperator, true},
	v1.AdminService_GetListener_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListListeners_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdateListener_FullMethodName: {NeedOperator, true},
	v1.AdminService_DeleteListener_FullMethodName: {NeedOperator, true},

	v1.AdminService_CreateEndpointGroup_FullMethodName: {NeedOperator, true},
	v1.AdminService_GetEndpointGroup_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListEndpointGroups_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdateEndpointGroup_FullMethodName: {NeedOperator, true},
	v1.AdminService_DeleteEndpointGroup_FullMethodName: {NeedOperator, true},
	v1.AdminService_AddEndpoints_FullMethodName:        {NeedOperator, true},
	v1.AdminService_UpdateEndpoints_FullMethodName:     {NeedOperator, true},
	v1.AdminService_RemoveEndpoints_FullMethodName:     {NeedOperator, true},

	v1.AdminService_CreateTarget_FullMethodName: {NeedOperator, true},
	v1.AdminService_GetTarget_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListTargets_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdateTarget_FullMethodName: {NeedOperator, true},
	v1.AdminService_DeleteTarget_FullMethodName: {NeedOperator, true},

	v1.CustomRoutingService_CreateSubnet_FullMethodName: {NeedOperator, true},
	v1.CustomRoutingService_GetSubnet_FullMethodName:    {NeedViewer, false},
	v1.CustomRoutingService_ListSubnets_FullMethodName:  {NeedViewer, false},
	v1.CustomRoutingService_UpdateSubnet_FullMethodName: {NeedOperator, true},
	v1.CustomRoutingService_DeleteSubnet_FullMethodName: {NeedOperator, true},

	v1.CustomRoutingService_CreateCustomRoutingGroup_FullMethodName:     {NeedOperator, true},
	v1.CustomRoutingService_GetCustomRoutingGroup_FullMethodName:        {NeedViewer, false},
	v1.CustomRoutingService_ListCustomRoutingGroups_FullMethodName:      {NeedViewer, false},
	v1.CustomRoutingService_DeleteCustomRoutingGroup_FullMethodName:     {NeedOperator, true},
	v1.CustomRoutingService_AddCustomRoutingEndpoints_FullMethodName:    {NeedOperator, true},
	v1.CustomRoutingService_RemoveCustomRoutingEndpoints_FullMethodName: {NeedOperator, true},
	v1.CustomRoutingService_SetCustomRoutingTraffic_FullMethodName:      {NeedOperator, true},
	v1.CustomRoutingService_ListPortMappings_FullMethodName:             {NeedViewer, false},

	v1.SharingService_CreateAttachment_FullMethodName:  {NeedOperator, true},
	v1.SharingService_GetAttachment_FullMethodName:     {NeedViewer, false},
	v1.SharingService_ListAttachments_FullMethodName:   {NeedViewer, false},
	v1.SharingService_UpdateAttachment_FullMethodName:  {NeedOperator, true},
	v1.SharingService_DeleteAttachment_FullMethodName:  {NeedOperator, true},
	v1.SharingService_SetRangeRecord_FullMethodName:    {NeedAdmin, true},
	v1.SharingService_ListRangeRecords_FullMethodName:  {NeedViewer, false},
	v1.SharingService_DeleteRangeRecord_FullMethodName: {NeedAdmin, true},
	v1.SharingService_ProvisionRange_FullMethodName:    {NeedOperator, true},
	v1.SharingService_ListRanges_FullMethodName:        {NeedViewer, false},
	v1.SharingService_AdvertiseRange_FullMethodName:    {NeedOperator, true},
	v1.SharingService_WithdrawRange_FullMethodName:     {NeedOperator, true},
	v1.SharingService_DeprovisionRange_FullMethodName:  {NeedOperator, true},
	v1.SharingService_CreateSession_FullMethodName:     {NeedAdmin, true},

	v1.AdminService_TagResource_FullMethodName:   {NeedOperator, true},
	v1.AdminService_UntagResource_FullMethodName: {NeedOperator, true},

	v1.AdminService_CreatePool_FullMethodName: {NeedAdmin, true},
	v1.AdminService_GetPool_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListPools_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdatePool_FullMethodName: {NeedAdmin, true},
	v1.AdminService_DeletePool_FullMethodName: {NeedAdmin, true},

	v1.AdminService_CreateSite_FullMethodName: {NeedAdmin, true},
	v1.AdminService_GetSite_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListSites_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdateSite_FullMethodName: {NeedAdmin, true},
	v1.AdminService_DeleteSite_FullMethodName: {NeedAdmin, true},

	v1.AdminService_CreateRegion_FullMethodName: {NeedAdmin, true},
	v1.AdminService_ListRegions_FullMethodName:  {NeedViewer, false},
	v1.AdminService_DeleteRegion_FullMethodName: {NeedAdmin, true},

	v1.AdminService_CreateZone_FullMethodName:  {NeedAdmin, true},
	v1.AdminService_GetZone_FullMethodName:     {NeedViewer, false},
	v1.AdminService_ListZones_FullMethodName:   {NeedViewer, false},
	v1.AdminService_UpdateZone_FullMethodName:  {NeedAdmin, true},
	v1.AdminService_DeleteZone_FullMethodName:  {NeedAdmin, true},
	v1.AdminService_RollZoneKey_FullMethodName: {NeedAdmin, true},

	v1.AdminService_GetSteering_FullMethodName:    {NeedViewer, false},
	v1.AdminService_UpdateSteering_FullMethodName: {NeedAdmin, true},
	v1.AdminService_ExplainSteer_FullMethodName:   {NeedViewer, false},
	v1.AdminService_ListGains_FullMethodName:      {NeedViewer, false},
	v1.AdminService_SetDirectPath_FullMethodName:  {NeedOperator, true},

	v1.AdminService_GetNode_FullMethodName:    {NeedViewer, false},
	v1.AdminService_ListNodes_FullMethodName:  {NeedViewer, false},
	v1.AdminService_UpdateNode_FullMethodName: {NeedOperator, true},
	v1.AdminService_DeleteNode_FullMethodName: {NeedAdmin, true},

	v1.AdminService_CreateBgpPeer_FullMethodName:     {NeedAdmin, true},
	v1.AdminService_GetBgpPeer_FullMethodName:        {NeedViewer, false},
	v1.AdminService_ListBgpPeers_FullMethodName:      {NeedViewer, false},
	v1.AdminService_UpdateBgpPeer_FullMethodName:     {NeedAdmin, true},
	v1.AdminService_DeleteBgpPeer_FullMethodName:     {NeedAdmin, true},
	v1.AdminService_ListAnnouncements_FullMethodName: {NeedViewer, false},
	v1.AdminService_SetAnnouncing_FullMethodName:     {NeedOperator, true},

	v1.AdminService_CreateJoinToken_FullMethodName: {NeedAdmin, true},
	v1.AdminService_ListJoinTokens_FullMethodName:  {NeedViewer, false},
	v1.AdminService_DeleteJoinToken_FullMethodName: {NeedAdmin, true},

	v1.AdminService_CreateOperator_FullMethodName: {NeedAdmin, true},
	v1.AdminService_ListOperators_FullMethodName:  {NeedViewer, false},
	v1.AdminService_DeleteOperator_FullMethodName: {NeedAdmin, true},

	v1.AdminService_CreateAccessKey_FullMethodName: {NeedAdmin, true},
	v1.AdminService_ListAccessKeys_FullMethodName:  {NeedViewer, false},
	v1.AdminService_RotateAccessKey_FullMethodName: {NeedAdmin, true},
	v1.AdminService_DeleteAccessKey_FullMethodName: {NeedAdmin, true},

	v1.AdminService_GetSettings_FullMethodName:    {NeedViewer, false},
	v1.AdminService_UpdateSettings_FullMethodName: {NeedAdmin, true},

	v1.AdminService_ListHealth_FullMethodName:  {NeedViewer, false},
	v1.AdminService_ListPaths_FullMethodName:   {NeedViewer, false},
	v1.AdminService_GetStatus_FullMethodName:   {NeedViewer, false},
	v1.AdminService_GetSnapshot_FullMethodName: {NeedViewer, false},
	v1.AdminService_ListAudit_FullMethodName:   {NeedViewer, false},
	v1.AdminService_WhoAmI_FullMethodName:      {NeedViewer, false},
}
