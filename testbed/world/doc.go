// Package world answers: how does a whole deployment stand on one machine? It reads a world file
// (cities of clients, sites of nodes, regions of endpoints, delays between them), raises it in
// network namespaces over the emulated wide-area network, starts the shipped binaries in it,
// enrols the nodes and configures an accelerator through the CLI, as an operator would.
package world
