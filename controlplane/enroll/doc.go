// Package enroll answers: who becomes a member of the cluster?
//
// The Authority holds the cluster's certificate authority, which lies in the store, made by whichever
// controller starts first. Tokens are the join tokens that operators make. Service trades a token and a
// certificate request for a node's identity:
//
//	token known, secret right, not ended, not used up → scope allows this node → use counted →
//	node registered in the catalog → certificate signed
//
// The use is counted in one conditional transaction before anything is given, so a single-use token
// gives one identity however many controllers are asked at once. An answer that was lost on its way is
// given again: the same token with the same key gets a certificate for the same node.
package enroll
