// Package backbone answers: how do the bytes of many flows cross the distance between two nodes,
// fast, fairly, and without dying with any one connection?
package backbone
