package geo

import "math"

// earthRadius is the mean one, in kilometres (IUGG).
const earthRadius = 6371.0088

// rttPerKilometre is what a round trip takes for each kilometre of great circle, in milliseconds: light
// in fibre needs 0.01, and routes are about half as long again as the straight way.
const rttPerKilometre = 0.015

// point is a place as a unit vector: the angle between two is found without trigonometry where only
// the order matters.
type point struct{ x, y, z float64 }

func pointAt(lat, lon float64) point {
	lat, lon = lat*math.Pi/180, lon*math.Pi/180
	return point{math.Cos(lat) * math.Cos(lon), math.Cos(lat) * math.Sin(lon), math.Sin(lat)}
}

// chord is the square of the straight distance through the sphere: it orders as the distance does.
func (p point) chord(q point) float64 {
	dx, dy, dz := p.x-q.x, p.y-q.y, p.z-q.z
	return dx*dx + dy*dy + dz*dz
}

// kilometres turns a chord into a great circle's length.
func kilometres(chord float64) float64 {
	return 2 * earthRadius * math.Asin(min(1, math.Sqrt(chord)/2))
}
