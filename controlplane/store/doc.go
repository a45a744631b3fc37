// Package store answers: where does the cluster keep what must not be lost, and who may change it now?
//
// It is etcd, inside this process or elsewhere, and nothing outside this package knows that: callers see
// keys, transactions guarded by revisions, watches, leases and leaders, and this package's errors.
package store
