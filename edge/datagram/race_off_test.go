//go:build !race

package datagram

const raceDetector = false
