package awsapi

import "time"

const (
	// bodyBytesMax bounds a request. The largest that the model allows, 10 endpoints and 10 overrides
	// or 50 tags with every text at its limit, is some 60 KB.
	bodyBytesMax = 256 << 10
	// skewMax is how far a client's clock may be off. AWS's is 5 minutes, too.
	skewMax = 5 * time.Minute
	// signedHeadersMax bounds the headers that a signature covers; clients sign up to ten.
	signedHeadersMax = 64
	// authorizationBytesMax bounds the Authorization header; clients send some 400 bytes.
	authorizationBytesMax = 4 << 10
	pageSizeDefault       = 10
	resourcesPerPage      = 100 // of GetResources; AWS's default
	tokenBytesMax         = 255
	tagKeysReserved       = "aws:"
)
