// Package load answers: what did a client see? It has the servers that worlds put behind
// accelerators and the clients that measure them: times to each step, bytes checked, failures kept
// with their moment. It knows nothing of Nearcast: the same code measures a direct connection.
package load
