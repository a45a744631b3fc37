// Package countries answers: which networks does a country have, and who says so?
//
//	country database (MMDB files) → Open: all of it compiled → Keeper: what listeners name → store → every fleet
//
// A controller that has a database compiles it when it starts and when a file changes, and writes the lists of
// those countries that listeners name to the store. Every controller builds snapshots from the store alone, so
// nodes are told the same by all of them. Which controllers have a database, and whether it is the same one, does
// not matter: a list gives way to one from a database that was made later, and otherwise only to the controller
// that wrote it, which may go back to an older file. So two controllers never overwrite each other in turns. A
// list stays as it is when its controller goes or a file is bad.
//
//	countries/database       what the newest database of the cluster has: v1.CountryDatabase
//	countries/lists/<code>   the networks of one country: v1.StoredCountryList
//	countries/revision       is written with every change of a list, so its Modified is that of all lists
package countries
