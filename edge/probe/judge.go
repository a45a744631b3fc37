package probe

import "github.com/nearcast/nearcast/proto/model"

// judge turns a series of results into a state. Consecutive results count, both ways, as load
// balancers do (facts: AWS Global Accelerator, "consecutive threshold applied both ways; new
// endpoints must pass first").
//
// From INITIAL one success is enough: an endpoint that is new must serve soon, and it gets no
// traffic before it. It takes the whole unhealthy threshold to condemn it, since until then it is
// without traffic anyway, and one that is still starting would have to earn its way back.
type judge struct {
	state model.HealthState
	ok    bool // the last result
	run   int  // how many in a row were like it
}

// add counts one result and reports whether the state changed.
func (j *judge) add(ok bool, healthyThreshold, unhealthyThreshold int) (changed bool) {
	if j.run == 0 || ok != j.ok {
		j.ok, j.run = ok, 0
	}
	j.run++
	before := j.state
	switch {
	case ok && (j.state == model.HealthInitial || j.run >= healthyThreshold):
		j.state = model.HealthHealthy
	case !ok && j.run >= unhealthyThreshold:
		j.state = model.HealthUnhealthy
	}
	return j.state != before
}

func stateName(s model.HealthState) string {
	switch s {
	case model.HealthHealthy:
		return "healthy"
	case model.HealthUnhealthy:
		return "unhealthy"
	}
	return "initial"
}
