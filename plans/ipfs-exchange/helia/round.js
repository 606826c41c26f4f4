// Who fetches from whom: one round for each pair of kinds, and one of all.
import { createHash } from 'node:crypto'

// Returns the rounds in the order in which they come: the name, which the content follows from, kinds whose seeds have the
// content from the start, and kinds that fetch it.
export function roundsOf (lab) {
  const kinds = [...new Set(lab.instances.map(({ group }) => group))]
  const rounds = kinds.flatMap((from) => kinds.map((to) => ({ name: `${from}-to-${to}`, from: [from], to: [to] })))
  return kinds.length > 1 ? [...rounds, { name: 'all', from: kinds, to: kinds }] : rounds
}

// Returns the ordinals of those whom an instance connects to: the next of its group, so that what one of a group has reaches
// all of it, one of each other group, and others at random until there are so many.
export function neighbours (lab, connections) {
  const groups = Map.groupBy(lab.instances.entries(), ([, { group }]) => group)
  const chosen = []
  for (const [group, members] of groups) {
    const index = lab.index + (group === lab.group ? 1 : 0)
    chosen.push(members[index % members.length][0])
  }
  const others = [...lab.instances.keys()].filter((ordinal) => !chosen.includes(ordinal))
  const place = (ordinal) => createHash('sha256').update(`${lab.seed} ${lab.ordinal} ${ordinal}`).digest('hex')
  others.sort((one, other) => place(one) < place(other) ? -1 : 1)
  const wanted = [...chosen, ...others].filter((ordinal) => ordinal !== lab.ordinal)
  const least = chosen.filter((ordinal) => ordinal !== lab.ordinal).length
  return wanted.slice(0, Math.max(connections, least))
}
