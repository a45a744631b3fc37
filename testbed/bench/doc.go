// Package bench answers: how fast is Nearcast beside what people use today, and how far from what
// physics allows? Every figure is taken in the same run as its peers', in turns, and is told as a
// ratio first: machines are noisy and shared.
package bench
