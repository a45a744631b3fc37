package guard

// Room of the maps unless Config says otherwise.
const (
	DefaultAddressesMax = 1 << 14 // accelerated prefixes; about 100 bytes of kernel memory each in use
	DefaultPrefixesMax  = 1 << 16 // (protocol, prefix) pairs with listeners; about 150 bytes each in use
	DefaultRangesMax    = 1 << 18 // port ranges; 8 bytes each, allocated at once
	DefaultListenersMax = 1 << 14 // 128 bytes each, allocated at once
	DefaultListedMax    = 1 << 20 // prefixes on lists; 24 bytes each in use, 48 while they change
	DefaultSourcesMax   = 1 << 18 // (listener, source) pairs with a rate; about 80 bytes each, allocated at once
)

// listsMax is how many lists there can be, one bit each, as LIST_WORDS of maps.h has them.
const listsMax = 256

// countriesMax is how many countries there can be: numbers from 1, as COUNTRY_WORDS of maps.h has them.
const countriesMax = 255

const layoutVersion = "v1" // of the pinned attachment's directory

const (
	addressExclusive   = 1
	addressNoFragments = 2

	listenerNoFragments   = 1
	listenerCountries     = 2
	listenerOnlyCountries = 4
)
