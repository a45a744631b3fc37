// Package fleet answers: what has each node been told, and what does it say?
//
//	catalog ─┐ triggers                         ┌→ Sync stream → node
//	verdicts ┼→ compile (debounced) → published ┼→ Sync stream → node     (a controller has many)
//	lists of ┘                                  └→ Sync stream → node
//	countries
//	node → Sync stream → session → store (records: applied revision, health, paths) → mirror
//	mirror → the leader's health.Board → verdicts in the store → compile of every controller
//
// Every controller serves any node, and what nodes say goes through the store, so every controller
// sees all of it. That is why one controller is as good as another, and why the death of one
// costs its nodes a reconnect and nothing else.
//
// A node gets whole snapshots, and only the newest: a stream keeps no queue, so a node that reads slowly
// holds up nobody and misses only what was overtaken. Watches are not trusted alone: on a timer the
// compiler asks the store again, and each stream sends Compare.
//
// How many of each: Fleet, compiler, mirror 1 a controller; session 1 a connected node; verdict
// maker and prober 1 a cluster, at the leader.
package fleet
