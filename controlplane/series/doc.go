// Package series answers: what traffic did accelerators carry, minute by minute, these last 15 days?
//
// Nodes report their counts by the minute; each report is one key of the store, named so that one that
// comes twice is there once, and every controller holds all of them in memory. The answers have the
// metrics and dimensions of AWS Global Accelerator in CloudWatch. Prometheus is not asked: the figures
// must be there without one, equal at every controller, and reports of an hour without controllers count.
package series
