//! What happens to a lab with several orchestrators, written down before it happens.
//!
//! Whom a fault hits may be named by what it does: who leads is who leads when the fault comes, so that a schedule stays
//! worth running when what came before it is left out.

use serde::{Deserialize, Serialize};

use crate::network::Draws;
use crate::schedule::Submit;

/// Virtual time after which nothing bad happens any more, in seconds.
const FAULTS_UNTIL_S: u64 = 70;

/// Names of the profiles, for people.
pub const NAMES: &[&str] = &["takeover", "takeover-crowd"];

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Seed of all that is not written here: delays, durations, what machines have.
    pub seed: u64,
    /// Numbers.
    pub profile: Profile,
    /// What is submitted when.
    pub submissions: Vec<Submit>,
    /// What goes wrong when, sorted by time.
    pub faults: Vec<Planned>,
}

/// What one schedule does to its lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Orchestrators.
    pub orchestrators: u32,
    /// Lablets.
    pub lablets: u32,
    /// Most instances of one group.
    pub group_size: u32,
    /// Messages lost, in parts per million.
    pub loss_ppm: u32,
    /// Messages doubled, in parts per million.
    pub double_ppm: u32,
    /// Copies of messages that come very late, in parts per million.
    pub late_ppm: u32,
    /// Largest drift of a monotonic clock, in parts per million.
    pub drift_ppm: u32,
    /// Longest time that a write takes on a disk that is not slow, in microseconds.
    pub write_us: u64,
    /// Attempts that runs allow for each instance.
    pub max_attempts: u32,
    /// Whether runs and their groups say what is to happen to what is lost or fails, and want machines for themselves.
    pub policies: bool,
    /// Instances that fail, in parts per million.
    pub fail_ppm: u32,
    /// Instances that never end by themselves, in parts per million.
    pub hang_ppm: u32,
    /// Preparations, seals and results that fail, in parts per million.
    pub prepare_fail_ppm: u32,
    /// Virtual time after which nothing bad happens any more, in seconds.
    pub faults_until_s: u64,
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Virtual time in milliseconds.
    pub at_ms: u64,
    /// What happens.
    pub fault: Fault,
}

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// The orchestrator that leads in the latest term when it happens; the first one where none does.
    Leader,
    /// An orchestrator.
    Orchestrator(u32),
    /// A lablet.
    Lablet(u32),
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A node dies and is started again.
    Crash {
        /// Which.
        node: Node,
        /// How long it is down.
        down_ms: u64,
        /// Whether it dies in its next write that makes something durable, rather than at once.
        in_write: bool,
        /// How much of what was being written reached the disk, in percent: a log keeps its first part.
        written_pct: u32,
    },
    /// A node stands still, and takes in afterwards what came meanwhile.
    Freeze {
        /// Which.
        node: Node,
        /// How long.
        ms: u64,
    },
    /// Nothing passes between a node and some others, in one direction or both.
    Cut {
        /// The node.
        node: Node,
        /// The others; itself among them does nothing.
        from: Vec<Node>,
        /// How long.
        ms: u64,
        /// Whether what the node says to them is lost.
        there: bool,
        /// Whether what they say to the node is lost.
        back: bool,
    },
    /// Who leads hands over, where the other one is ready.
    HandOver {
        /// The other one.
        to: u32,
    },
    /// A lablet speaks of what other lablets hold.
    Forge {
        /// Lablet.
        lablet: u32,
    },
    /// Writes take long.
    SlowDisk {
        /// Whose.
        node: Node,
        /// How long it is slow.
        ms: u64,
        /// How often longer each write takes.
        factor: u64,
    },
    /// Writes fail.
    FullDisk {
        /// Whose.
        node: Node,
        /// How long.
        ms: u64,
    },
    /// A wall clock jumps.
    Jump {
        /// Whose.
        node: Node,
        /// By how much; the node is told at once, as its driver looks often.
        by_ms: i64,
    },
    /// The owner of a lablet wants it back, and lends it again later.
    Drain {
        /// Lablet.
        lablet: u32,
        /// Whether what runs is stopped.
        at_once: bool,
        /// How long.
        ms: u64,
    },
}

impl Schedule {
    /// Draws the schedule of a seed; none where nobody knows the profile.
    pub fn draw(seed: u64, profile: &str) -> Option<Schedule> {
        let mut draws = Draws::new(seed, 76);
        let crowd = match profile {
            "takeover" => false,
            "takeover-crowd" => true,
            _ => return None,
        };
        // Half of the labs have only deaths, cuts, handovers and lies: what else goes wrong hides these.
        let wide = draws.chance(500_000) || crowd;
        let profile = if crowd { Profile::crowd(&mut draws) } else { Profile::few(&mut draws, wide) };
        let executions = if crowd { draws.between(2, 8) } else { draws.between(1, 5) };
        let submissions = (0..executions as u32)
            .map(|number| Submit {
                number,
                at_ms: draws.between(8_000, (FAULTS_UNTIL_S - 10) * 1_000),
                cancel_after_ms: (wide && draws.chance(250_000)).then(|| draws.between(0, 12_000)),
            })
            .collect();
        let mut faults = Vec::new();
        let count = if crowd { draws.between(6, 24) } else { draws.between(1, 9) };
        for _ in 0..count {
            let at_ms = draws.between(8_000, FAULTS_UNTIL_S * 1_000);
            let drawn = profile.faults(&mut draws, wide);
            faults.extend(drawn.into_iter().map(|fault| Planned { at_ms, fault }));
        }
        faults.sort_by_key(|planned| planned.at_ms);
        Some(Schedule { seed, profile, submissions, faults })
    }
}

impl Profile {
    /// A lab of a few lablets, in which anything may go wrong, each seed something else.
    fn few(draws: &mut Draws, wide: bool) -> Profile {
        let orchestrators = draws.between(2, 3) as u32;
        let lablets = if draws.chance(100_000) { draws.between(6, 12) } else { draws.between(2, 5) } as u32;
        let mut maybe = |most| if draws.chance(500_000) { draws.between(0, most) as u32 } else { 0 };
        let (loss_ppm, double_ppm, late_ppm) = (maybe(80_000), maybe(150_000), maybe(40_000));
        let mut further = |most| if wide { maybe(most) } else { 0 };
        let (fail_ppm, prepare_fail_ppm, write_us) = (further(100_000), further(100_000), further(10_000));
        Profile {
            orchestrators,
            lablets,
            group_size: 4,
            loss_ppm,
            double_ppm,
            late_ppm,
            drift_ppm: 300,
            write_us: u64::from(write_us),
            max_attempts: if draws.chance(400_000) { draws.between(2, 3) as u32 } else { 1 },
            policies: wide && draws.chance(700_000),
            fail_ppm,
            hang_ppm: 50_000,
            prepare_fail_ppm,
            faults_until_s: FAULTS_UNTIL_S,
        }
    }

    /// A lab of a hundred lablets and more.
    fn crowd(draws: &mut Draws) -> Profile {
        let lablets = draws.between(100, 240) as u32;
        let loss_ppm = draws.between(0, 20_000) as u32;
        let few = Profile::few(draws, true);
        Profile { orchestrators: 3, lablets, group_size: 150, loss_ppm, late_ppm: 0, hang_ppm: 2_000, ..few }
    }

    /// Draws one thing that goes wrong; some of them are several faults at once.
    fn faults(&self, draws: &mut Draws, wide: bool) -> Vec<Fault> {
        let any = Node::Orchestrator(draws.between(0, u64::from(self.orchestrators) - 1) as u32);
        let orchestrator = if draws.chance(700_000) { Node::Leader } else { any };
        let lablet = draws.between(0, u64::from(self.lablets) - 1) as u32;
        let either = if draws.chance(500_000) { orchestrator } else { Node::Lablet(lablet) };
        let shortest = if draws.chance(100_000) { 200 } else { 2_000 };
        let ms = draws.between(shortest, 25_000);
        let orchestrators: Vec<Node> = (0..self.orchestrators).map(Node::Orchestrator).collect();
        let crash = |draws: &mut Draws, node, in_write_ppm| Fault::Crash {
            node,
            down_ms: ms,
            in_write: draws.chance(in_write_ppm),
            written_pct: [0, 0, 50, 100][draws.between(0, 3) as usize],
        };
        let ways = [(true, true), (true, false), (false, true)];
        let kind = draws.between(0, if wide { 15 } else { 9 });
        let drawn = match kind {
            0 | 1 => crash(draws, orchestrator, 500_000),
            2 => crash(draws, Node::Lablet(lablet), if wide { 700_000 } else { 0 }),
            3 => Fault::Freeze { node: orchestrator, ms },
            // One that follows hears nothing any more, and claims.
            5 if draws.chance(500_000) => {
                let (there, back) = ways[draws.between(0, 2) as usize];
                Fault::Cut { node: any, from: vec![Node::Leader], ms, there, back }
            }
            4 | 5 => {
                let (there, back) = ways[draws.between(0, 2) as usize];
                // From some of the lablets, too.
                let some = (0..self.lablets).filter(|_| draws.chance(500_000)).map(Node::Lablet).collect();
                let lablets = Fault::Cut { node: orchestrator, from: some, ms, there: true, back: true };
                return vec![Fault::Cut { node: orchestrator, from: orchestrators, ms, there, back }, lablets];
            }
            6 => {
                let (there, back) = ways[draws.between(0, 2) as usize];
                Fault::Cut { node: Node::Lablet(lablet), from: vec![orchestrator], ms, there, back }
            }
            7 => Fault::Cut { node: Node::Lablet(lablet), from: orchestrators, ms, there: true, back: true },
            8 => match any {
                Node::Orchestrator(to) => Fault::HandOver { to },
                Node::Leader | Node::Lablet(_) => return Vec::new(),
            },
            9 => Fault::Forge { lablet },
            10 => Fault::SlowDisk { node: either, ms, factor: draws.between(10, 400) },
            11 => Fault::FullDisk { node: if draws.chance(300_000) { any } else { either }, ms: ms / 2 },
            12 => {
                let size = [1_000, 60_000, 3_600_000, 31_536_000_000][draws.between(0, 3) as usize];
                let by_ms = draws.between(1, size) as i64;
                Fault::Jump { node: either, by_ms: if draws.chance(500_000) { by_ms } else { -by_ms } }
            }
            13 => Fault::Drain { lablet, at_once: draws.chance(500_000), ms },
            _ => Fault::Freeze { node: Node::Lablet(lablet), ms },
        };
        // What is wrong with a machine matters most where somebody takes over.
        let taken = (kind > 9 && draws.chance(400_000)).then(|| crash(draws, Node::Leader, 0));
        std::iter::once(drawn).chain(taken).collect()
    }
}

impl Schedule {
    /// Whether every node that a fault names is there.
    pub(crate) fn names_who_is_there(&self) -> bool {
        let there = |node: &Node| self.is_there(*node);
        self.faults.iter().all(|planned| match &planned.fault {
            Fault::Crash { node, .. }
            | Fault::Freeze { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::FullDisk { node, .. }
            | Fault::Jump { node, .. } => there(node),
            Fault::Cut { node, .. } => there(node),
            Fault::HandOver { to } => there(&Node::Orchestrator(*to)),
            Fault::Forge { lablet } | Fault::Drain { lablet, .. } => there(&Node::Lablet(*lablet)),
        })
    }

    fn is_there(&self, node: Node) -> bool {
        match node {
            Node::Leader => true,
            Node::Orchestrator(n) => n < self.profile.orchestrators,
            Node::Lablet(n) => n < self.profile.lablets,
        }
    }

    /// Leaves those out of cuts that are not there any more: with them nothing is cut.
    pub(crate) fn forget_who_is_gone(&mut self) {
        let whole = self.clone();
        for planned in &mut self.faults {
            if let Fault::Cut { from, .. } = &mut planned.fault {
                from.retain(|node| whole.is_there(*node));
            }
        }
    }
}
