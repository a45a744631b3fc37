package geo

import "net/netip"

// placesMax is how many records of databases a Scratch remembers, with the distances from there: a direct-mapped
// table, in which a newcomer takes the place of whoever has the same slot. A power of two.
const placesMax = 4096

// near is what a record of a database means for a Map.
type near struct {
	file     int
	offset   uintptr // + 1; 0: nothing
	location Location
	km       []float64 // great circle from there to each site; nil: the record has no place of its own
}

// places is a Scratch's memory of records. Reading a record and working out distances costs ten times as much
// as finding it, and clients come from few places.
type places struct {
	of    *Map
	table []near
}

// at returns the memory for a Map, empty if it was another's.
func (p *places) at(m *Map) []near {
	if p.of != m {
		p.of = m
		if p.table == nil {
			p.table = make([]near, placesMax)
		}
		clear(p.table)
	}
	return p.table
}

// distances returns the great circles from a place to all sites.
func (m *Map) distances(from point) []float64 {
	km := make([]float64, len(m.sites))
	for i := range m.sites {
		km[i] = kilometres(from.chord(m.sites[i].at))
	}
	return km
}

// near returns how far a client is from each site, by the databases; nil: they do not know.
func (m *Map) near(client netip.Addr, j *judgement, s *Scratch) []float64 {
	if m.db == nil {
		return nil
	}
	table := s.places.at(m)
	for i, r := range m.db.readers {
		offset, bits, ok := find(r, client)
		j.scope = max(j.scope, bits)
		if !ok {
			continue
		}
		slot := &table[mix(uint64(offset)<<8|uint64(i))%placesMax]
		if slot.offset != offset+1 || slot.file != i {
			*slot = near{file: i, offset: offset + 1, location: m.db.read(i, offset)}
			if l := &slot.location; l.Placed {
				slot.km = m.distances(pointAt(l.Latitude, l.Longitude))
			}
		}
		j.where.merge(slot.location)
		if slot.km != nil {
			j.source = SourcePlace
			return slot.km
		}
	}
	if km := m.country[j.where.Country]; km != nil {
		j.source = SourceCountry
		return km
	}
	return nil
}
