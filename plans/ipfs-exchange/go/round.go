package main

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"lab.iptl/plan"
)

// round is one content, fetched by some kinds of nodes while the others look on.
type round struct {
	// name of the round, which its content follows from.
	name string
	// from are kinds whose seeds have the content from the start, to those that fetch it.
	from, to []string
}

// allRounds returns the rounds in the order in which they come: one for each pair of kinds, and one of all.
func allRounds(here *lab.Lab) []round {
	kinds := slices.Compact(slices.Clone(here.Groups))
	var rounds []round
	for _, from := range kinds {
		for _, to := range kinds {
			rounds = append(rounds, round{from + "-to-" + to, []string{from}, []string{to}})
		}
	}
	if len(kinds) > 1 {
		rounds = append(rounds, round{"all", kinds, kinds})
	}
	return rounds
}

// metric returns the name of a metric: of a pair, and where all exchange with all, of what this kind of nodes got of
// another.
func (r round) metric(what, from string, here *lab.Lab) string {
	switch {
	case r.name != "all":
		return fmt.Sprintf("exchange.%s.%s", what, r.name)
	case from == "":
		return fmt.Sprintf("exchange.all.%s.to-%s", what, here.Group)
	default:
		return fmt.Sprintf("exchange.all.%s.%s-to-%s", what, from, here.Group)
	}
}

// neighbours returns whom an instance connects to: the next of its group, so that what one of a group has reaches all of
// it, one of each other group, and others at random until there are so many.
func neighbours(here *lab.Lab, connections int) []int {
	members := map[string][]int{}
	for ordinal, group := range here.Groups {
		members[group] = append(members[group], ordinal)
	}
	var chosen []int
	for _, group := range slices.Compact(slices.Clone(here.Groups)) {
		index := here.Index
		if group == here.Group {
			index++
		}
		if ordinal := members[group][index%len(members[group])]; ordinal != here.Ordinal {
			chosen = append(chosen, ordinal)
		}
	}
	for _, ordinal := range rand.New(rand.NewPCG(here.Seed, uint64(here.Ordinal))).Perm(len(here.Hosts)) {
		if len(chosen) >= connections {
			break
		}
		if ordinal != here.Ordinal && !slices.Contains(chosen, ordinal) {
			chosen = append(chosen, ordinal)
		}
	}
	return chosen
}
