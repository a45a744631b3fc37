/* Addresses and prefixes as keys of longest-prefix tries. */
#pragma once

#include "nearcast.h"

struct prefix {
	__u32 bits; /* 32 for protocol and family, then those of the address */
	__u8 protocol;
	__u8 family;
	__u16 zero;
	__u32 address[4]; /* network order; IPv4 is the first word alone */
};
