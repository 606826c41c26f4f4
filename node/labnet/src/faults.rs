//! Faults carried out on an [`Engine`]: a function of the schedule, the network, the seed and the time.
//!
//! [`Faults`] is told the time and does to the engine what is due; what concerns instances themselves it names in what
//! [`Faults::advance`] returns, for whoever runs them.

use std::collections::{BTreeMap, BTreeSet};

use iptl_dag::model::{Fault, FaultKind, FaultSchedule, FaultTarget, InstanceId, NetworkModel, ScheduledFault};

use crate::compile::{Compiled, link};
use crate::draw::{Draw, mix};
use crate::engine::{Engine, LinkId};
use crate::topology::{Addrs, NodeId, Topology};

/// Sides that a partition may have.
const MAX_SIDES: usize = 255;

/// Most faults of a run: each is looked at when it is due, and a schedule fits a block.
const MAX_FAULTS: usize = 10_000;

/// Shortest time after which a fault happens again, in milliseconds: faults must not be all that a cell does.
const MIN_PERIOD_MS: u64 = 10;

/// Farthest that a clock may jump, in milliseconds: a century, so that dates stay ones that programs can write down.
const MAX_STEP_MS: u64 = 100 * 366 * 24 * 3_600_000;

/// Why a schedule does not fit its run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// It names what is not there.
    #[error("fault {number} names {what} `{name}`, which the run does not have")]
    Unknown {
        /// Which fault, from one.
        number: usize,
        /// `group`, `region` or `access class`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Too many faults, or too many sides of one.
    #[error("{count} {what}; there may be {limit}")]
    TooMany {
        /// How many.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// It happens again too soon.
    #[error("fault {number} happens every {every_ms} ms; {MIN_PERIOD_MS} ms are the least")]
    TooOften {
        /// Which fault, from one.
        number: usize,
        /// Its period.
        every_ms: u64,
    },
    /// A share or chance of more than a million in a million, or a clock that jumps too far.
    #[error("fault {number} has a share of more than the whole, or a clock that jumps by more than a century")]
    OutOfRange {
        /// Which fault, from one.
        number: usize,
    },
}

/// A fault that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// When it was due, in nanoseconds from the start.
    pub due_ns: u64,
    /// What it was; never the end of one.
    pub what: FaultKind,
    /// Instances that it concerns, in their order.
    pub hit: Vec<InstanceId>,
    /// What is to be done to them, where it is not all done.
    pub act: Option<Act>,
    /// Who has other addresses now.
    pub moved: Vec<Moved>,
}

/// An instance that has other addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which.
    pub id: InstanceId,
    /// Its node.
    pub node: NodeId,
    /// Its addresses for itself until now.
    pub before: Addrs,
    /// Its addresses for itself from now on.
    pub now: Addrs,
    /// Its addresses for others from now on.
    pub public: Addrs,
}

/// What a fault does to instances themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// They end at once, and start again after this time.
    Crash {
        /// In nanoseconds.
        restart_ns: u64,
        /// Whether what they had written is gone then.
        files_lost: bool,
    },
    /// Their wall clocks jump.
    Clock {
        /// In milliseconds.
        by_ms: i64,
    },
    /// They stop, and go on after this time.
    Pause {
        /// In nanoseconds.
        for_ns: u64,
    },
}

/// The faults of a run.
#[derive(Clone, Debug)]
pub struct Faults {
    faults: Vec<ScheduledFault>,
    /// When each is due next.
    due: BTreeSet<(u64, usize)>,
    /// How often each has happened.
    counts: Vec<u64>,
    places: BTreeMap<InstanceId, Place>,
    regions: Vec<String>,
    seed: u64,
}

#[derive(Clone, Debug)]
struct Place {
    node: NodeId,
    region: u16,
    class: String,
}

impl Faults {
    /// Makes the faults of a run.
    ///
    /// # Errors
    ///
    /// Returns the first thing in the schedules that does not fit the run.
    pub fn new(
        schedules: &[FaultSchedule],
        network: &NetworkModel,
        compiled: &Compiled,
        groups: &BTreeMap<String, u32>,
        seed: u64,
    ) -> Result<Faults, FaultError> {
        let faults: Vec<ScheduledFault> = schedules.iter().flat_map(|schedule| schedule.faults.clone()).collect();
        if faults.len() > MAX_FAULTS {
            return Err(FaultError::TooMany { count: faults.len(), what: "faults", limit: MAX_FAULTS });
        }
        for (at, fault) in faults.iter().enumerate() {
            check(at + 1, fault, network, groups)?;
        }
        let due = faults.iter().enumerate().map(|(at, fault)| (fault.at_ms.saturating_mul(1_000_000), at)).collect();
        let places = compiled.nodes.iter().map(|(id, node)| {
            let class = compiled.classes.get(id).cloned().unwrap_or_default();
            let region = compiled.topology.public_region(*node).unwrap_or(0);
            (id.clone(), Place { node: *node, region, class })
        });
        Ok(Faults {
            counts: vec![0; faults.len()],
            due,
            places: places.collect(),
            regions: network.regions.clone(),
            seed,
            faults,
        })
    }

    /// Returns when the next fault is due, in nanoseconds from the start.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.due.first().map(|(at_ns, _)| *at_ns)
    }

    /// Carries out the next fault, if one is due. `start_ns` is the time of the start on the engine's clock.
    pub fn advance(&mut self, start_ns: u64, now_ns: u64, engine: &mut Engine) -> Option<Happened> {
        let (due_ns, at) =
            self.due.first().copied().filter(|(due_ns, _)| start_ns.saturating_add(*due_ns) <= now_ns)?;
        self.due.remove(&(due_ns, at));
        let ScheduledFault { every_ms, fault, .. } = self.faults[at].clone();
        if every_ms > 0 {
            self.due.insert((due_ns.saturating_add(every_ms.saturating_mul(1_000_000)), at));
        }
        let count = self.counts[at];
        self.counts[at] += 1;
        // Packets that were due before it are not touched by it.
        engine.handle_timeout(start_ns.saturating_add(due_ns));
        let seed = mix(mix(self.seed, at as u64), count);
        let happened = |what, hit| Happened { due_ns, what, hit, act: None, moved: Vec::new() };
        Some(match fault {
            Fault::Partition { sides } => {
                let mut of_nodes = vec![None; engine.topology().len()];
                let mut hit = Vec::new();
                for (side, targets) in (0u8..).zip(&sides) {
                    for target in targets {
                        for (id, place) in self.chosen(target, seed) {
                            of_nodes[place.node.index()] = Some(side);
                            hit.push(id.clone());
                        }
                    }
                }
                engine.partition(&of_nodes);
                hit.sort();
                hit.dedup();
                happened(FaultKind::Partition, hit)
            }
            Fault::Heal {} => {
                engine.partition(&[]);
                happened(FaultKind::Heal, self.places.keys().cloned().collect())
            }
            Fault::Link { access, up, down } => {
                let mut hit = Vec::new();
                for (id, place) in self.places.iter().filter(|(_, place)| place.class == access) {
                    let (of_up, of_down) = access_links(engine.topology(), place.node);
                    engine.configure(of_up, link(&up));
                    engine.configure(of_down, link(&down));
                    hit.push(id.clone());
                }
                happened(FaultKind::Link, hit)
            }
            Fault::Delay { from, to, delay_us } => {
                let place = |name: &str| self.regions.iter().position(|region| region == name);
                let ends = place(&from).zip(place(&to));
                if let Some((from, to)) = ends.and_then(|(a, b)| Some((u16::try_from(a).ok()?, u16::try_from(b).ok()?)))
                {
                    let between = LinkId::Region { from, to };
                    if let Some(now) = engine.link(between).copied() {
                        engine
                            .configure(between, crate::LinkConfig { delay_ns: delay_us.saturating_mul(1_000), ..now });
                    }
                    let concerned = self.places.iter().filter(|(_, place)| [from, to].contains(&place.region));
                    return Some(happened(FaultKind::Delay, concerned.map(|(id, _)| id.clone()).collect()));
                }
                happened(FaultKind::Delay, Vec::new())
            }
            Fault::Rebind { who } => {
                let mut hit = Vec::new();
                for (id, place) in self.chosen(&who, seed) {
                    for gateway in engine.topology().gateways(place.node) {
                        engine.restart_gateway(gateway);
                    }
                    hit.push(id.clone());
                }
                happened(FaultKind::Rebind, hit)
            }
            Fault::Address { who } => {
                let hit = self.chosen(&who, seed).into_iter().map(|(id, _)| id.clone()).collect();
                let moved = self.readdress(&who, seed, engine);
                Happened { moved, ..happened(FaultKind::Address, hit) }
            }
            Fault::Clock { who, by_ms } => {
                let hit = self.chosen(&who, seed).into_iter().map(|(id, _)| id.clone()).collect();
                Happened { act: Some(Act::Clock { by_ms }), ..happened(FaultKind::Clock, hit) }
            }
            Fault::Crash { who, restart_ms, files_lost, new_address } => {
                let hit = self.chosen(&who, seed).into_iter().map(|(id, _)| id.clone()).collect();
                // While they are down nobody has either.
                let moved = if new_address { self.readdress(&who, seed, engine) } else { Vec::new() };
                let act = Act::Crash { restart_ns: restart_ms.saturating_mul(1_000_000), files_lost };
                Happened { act: Some(act), moved, ..happened(FaultKind::Crash, hit) }
            }
            Fault::Pause { who, for_ms } => {
                let hit = self.chosen(&who, seed).into_iter().map(|(id, _)| id.clone()).collect();
                let act = Act::Pause { for_ns: for_ms.saturating_mul(1_000_000) };
                Happened { act: Some(act), ..happened(FaultKind::Pause, hit) }
            }
        })
    }

    /// Gives the instances that a target means other addresses; those for whom none is left keep theirs.
    fn readdress(&self, who: &FaultTarget, seed: u64, engine: &mut Engine) -> Vec<Moved> {
        let mut moved = Vec::new();
        for (id, place) in self.chosen(who, seed) {
            let node = place.node;
            let Some((before, now)) = engine.readdress(node) else { continue };
            let public = engine.topology().public_addrs(node).unwrap_or(now);
            moved.push(Moved { id: id.clone(), node, before, now, public });
            // Whoever shares its NAT is found at the new address too, and stays the same for itself.
            let outermost = |node| engine.topology().gateways(node).last().copied();
            let Some(shared) = outermost(node) else { continue };
            let others = self.places.iter().filter(|(_, other)| other.node != node);
            for (id, place) in others.filter(|(_, other)| outermost(other.node) == Some(shared)) {
                let node = place.node;
                let Some(same) = engine.topology().addrs(node) else { continue };
                let public = engine.topology().public_addrs(node).unwrap_or(same);
                moved.push(Moved { id: id.clone(), node, before: same, now: same, public });
            }
        }
        moved
    }

    /// Returns the instances that a target means, as many as its share says, rounded.
    fn chosen(&self, target: &FaultTarget, seed: u64) -> Vec<(&InstanceId, &Place)> {
        let region = |place: &Place| self.regions.get(usize::from(place.region));
        let mut all: Vec<(&InstanceId, &Place)> = self
            .places
            .iter()
            .filter(|(id, place)| {
                target.group.as_ref().is_none_or(|group| *group == id.group)
                    && target.region.as_ref().is_none_or(|wanted| region(place) == Some(wanted))
            })
            .collect();
        let wanted = (all.len() as u64 * u64::from(target.share_ppm) + 500_000) / 1_000_000;
        let wanted = usize::try_from(wanted).unwrap_or(all.len()).min(all.len());
        for i in 0..wanted {
            let rest = all.len() - i;
            let other = Draw::new(seed, i as u64).below(0, rest as u64);
            all.swap(i, i + usize::try_from(other).unwrap_or(0));
        }
        all.truncate(wanted);
        all.sort_by_key(|(id, _)| *id);
        all
    }
}

/// Returns the links of an instance in the public realm: its own, or its outermost gateway's.
pub(crate) fn access_links(topology: &Topology, node: NodeId) -> (LinkId, LinkId) {
    match topology.gateways(node).last() {
        Some(gateway) => (LinkId::GatewayUp(*gateway), LinkId::GatewayDown(*gateway)),
        None => (LinkId::NodeUp(node), LinkId::NodeDown(node)),
    }
}

fn check(
    number: usize,
    scheduled: &ScheduledFault,
    network: &NetworkModel,
    groups: &BTreeMap<String, u32>,
) -> Result<(), FaultError> {
    if (1..MIN_PERIOD_MS).contains(&scheduled.every_ms) {
        return Err(FaultError::TooOften { number, every_ms: scheduled.every_ms });
    }
    let unknown = |what, name: &String| FaultError::Unknown { number, what, name: name.clone() };
    let region = |name: &String| match network.regions.contains(name) {
        true => Ok(()),
        false => Err(unknown("region", name)),
    };
    let target = |target: &FaultTarget| {
        if let Some(name) = target.group.as_ref().filter(|name| !groups.contains_key(*name)) {
            return Err(unknown("group", name));
        }
        if target.share_ppm > 1_000_000 {
            return Err(FaultError::OutOfRange { number });
        }
        target.region.as_ref().map_or(Ok(()), region)
    };
    match &scheduled.fault {
        Fault::Partition { sides } if sides.len() > MAX_SIDES => {
            Err(FaultError::TooMany { count: sides.len(), what: "sides", limit: MAX_SIDES })
        }
        Fault::Partition { sides } => sides.iter().flatten().try_for_each(target),
        Fault::Heal {} => Ok(()),
        Fault::Link { access, up, down } => {
            let chances = [up, down]
                .map(|link| link.loss_ppm.max(link.duplicate_ppm).max(link.reorder_ppm).max(link.corrupt_ppm));
            match network.access.contains_key(access) {
                true if chances.iter().any(|ppm| *ppm > 1_000_000) => Err(FaultError::OutOfRange { number }),
                true => Ok(()),
                false => Err(unknown("access class", access)),
            }
        }
        Fault::Delay { from, to, .. } => region(from).and_then(|()| region(to)),
        Fault::Clock { by_ms, .. } if by_ms.unsigned_abs() > MAX_STEP_MS => Err(FaultError::OutOfRange { number }),
        Fault::Rebind { who }
        | Fault::Address { who }
        | Fault::Clock { who, .. }
        | Fault::Crash { who, .. }
        | Fault::Pause { who, .. } => target(who),
    }
}
