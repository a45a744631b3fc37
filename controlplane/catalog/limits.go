package catalog

import "time"

const (
	// changeAttempts bounds how often one change starts over because others were faster. With three
	// controllers writing without pause each attempt wins one time in three: 30 lost ones are one in
	// 200,000.
	changeAttempts = 30
	// changePause is what the n-th attempt waits at most, n times.
	changePause = 2 * time.Millisecond
	// idempotencyTokenMax is AWS Global Accelerator's.
	idempotencyTokenMax = 255
	// watchDebounce lets what one operator does at once become one State.
	watchDebounce = 20 * time.Millisecond
	// debounceMax bounds how long a stream of changes can hold a State back: this many debounces.
	debounceMax = 10
	// pageSizeDefault and pageSizeMax bound a listing's page.
	pageSizeDefault = 100
	pageSizeMax     = 1000
	// mappingPageMax bounds a page of port mappings, which are computed; AWS's.
	mappingPageMax = 20_000
	// trafficItemsMax bounds the addresses and the ports that one request allows or denies; AWS's.
	trafficItemsMax = 100
	// deprovisionedMax bounds the records of a project's ranges that were given back.
	deprovisionedMax = 10
	// gossipKeysMax: the one in use, the one before and the one to come.
	gossipKeysMax = 3
	// cookieSecretBytes is the key of SipHash-2-4 (RFC 9018 4.4).
	cookieSecretBytes = 16
)
