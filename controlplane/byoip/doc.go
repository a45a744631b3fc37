// Package byoip answers: may this account bring this address range?
//
// The answer is AWS's: the owner of a range puts an X.509 certificate into its registry's record of the range
// (RDAP), and signs with the certificate's key a message that names the account and the range. It is pure:
// records are given to it, and it asks nobody.
package byoip
