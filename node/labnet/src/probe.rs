//! A probe of a network before one trusts it: what its links do on this machine, against what they are asked to do.
//!
//! [`Probe`] has an engine with two nodes in each region, on clean links, and one for each access class; it sends
//! datagrams between them by a plan of its own and counts what becomes of them. It is told the time, as the engine is:
//! on a clock that is late, what it finds is late.
//!
//! First it sends few packets on all links, for their delays and losses; then more than limited links can carry, for
//! their rates.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use iptl_dag::model::NetworkModel;

use crate::compile::{self, CompileError};
use crate::engine::{Engine, EngineConfig, Lateness, LinkId, LinkStats};
use crate::hosts::datagram;
use crate::link::LinkConfig;
use crate::topology::{Access, NodeId, RealmId, Topology};

/// Time in which packets for delays and losses are sent, and then those for rates.
const QUIET_NS: u64 = 1_000_000_000;
const BUSY_NS: u64 = 500_000_000;

/// From when on in the busy time a rate is measured: queues have filled up.
const SETTLED_NS: u64 = 100_000_000;

/// Packets for the delays of all pairs of regions together, and for one pair at least and at most.
const PAIRS_PACKETS: usize = 4_000;
const PAIR_PACKETS: std::ops::RangeInclusive<usize> = 4..=200;

/// Packets for the loss of one link.
const LOSS_PACKETS: u64 = 1_000;

/// Most packets in a second for the rate of one link; faster ones are not measured.
const MAX_RATE_PACKETS: u64 = 10_000;

/// Payload of packets for delays, and size of those for rates.
const SMALL: usize = 64;
const LARGE: u64 = 1_000;

/// Most regions and access classes that are probed; further ones are left out.
const MAX_PLACES: usize = 64;

/// Bytes before the payload of a datagram.
const HEADS: usize = 28;

/// What a link did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Which link: `east to west`, `dsl up`.
    pub link: String,
    /// Packets that came through for delays.
    pub packets: u64,
    /// Mean time that the model asked for, in nanoseconds: queues and jitter are part of it.
    pub asked_ns: u64,
    /// Mean time that it took.
    pub measured_ns: u64,
    /// Chance of a loss that was asked for, in a million.
    pub asked_loss_ppm: u32,
    /// Packets that were lost of those sent, in a million.
    pub measured_loss_ppm: u32,
    /// Rate that was asked for in bits a second; zero is no limit.
    pub asked_rate_bps: u64,
    /// Rate that was measured; none where there is no limit, or one beyond what is sent here.
    pub measured_rate_bps: Option<u64>,
}

/// A probe on its way.
#[derive(Debug)]
pub struct Probe {
    engine: Engine,
    links: Vec<Watched>,
    /// What is to be sent, by time.
    sends: VecDeque<Send>,
    begun_ns: Option<u64>,
    /// When the delays are known, and the last packet of all has come.
    stage: Stage,
    number: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Quiet,
    Filling,
    Busy,
    Over,
}

#[derive(Debug)]
struct Watched {
    name: String,
    link: LinkId,
    asked: LinkConfig,
    /// What it had done when delays and losses were known.
    quiet: LinkStats,
    /// Bytes that it had delivered when rates began to count, and since, and from when to when.
    from: (u64, u64),
    to: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Send {
    at_ns: u64,
    from: NodeId,
    to: Ipv4Addr,
    size: usize,
}

impl Probe {
    /// Makes the probe of a network.
    ///
    /// # Errors
    ///
    /// Returns why it is no network.
    pub fn new(network: &NetworkModel) -> Result<Probe, CompileError> {
        compile::check(network, &network.groups.keys().map(|group| (group.clone(), 0)).collect())?;
        let regions = network.regions.len().min(MAX_PLACES);
        let delays = network.delays_us.iter().take(regions);
        let delays = delays.map(|row| row.iter().take(regions).map(|us| us.saturating_mul(1_000)).collect());
        let mut topology = Topology::new(delays.collect())?;
        let mut count = 0u32;
        let mut node = |access: Access| {
            count += 1;
            let addr = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + count);
            topology.add_node(RealmId::PUBLIC, addr, None, access).map(|node| (node, addr))
        };
        let mut places = Vec::new();
        for region in (0u16..).take(regions) {
            let access = || Access { region, ..Access::default() };
            places.push([node(access())?, node(access())?]);
        }
        let mut sends = Vec::new();
        let mut links = Vec::new();
        let watched = |name: String, link, asked| Watched {
            name,
            link,
            asked,
            quiet: LinkStats::default(),
            from: (0, 0),
            to: (0, 0),
        };
        let each =
            (PAIRS_PACKETS / (regions * regions).max(1)).clamp(*PAIR_PACKETS.start(), *PAIR_PACKETS.end()) as u64;
        for (a, from) in places.iter().enumerate() {
            for (b, to) in places.iter().enumerate() {
                let name = format!("{} to {}", network.regions[a], network.regions[b]);
                let ends = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
                let delay_ns = network.delays_us[a][b].saturating_mul(1_000);
                let link = LinkId::Region { from: ends(a), to: ends(b) };
                links.push(watched(name, link, LinkConfig { delay_ns, ..LinkConfig::default() }));
                let offset = (a * regions + b) as u64 * 10_000;
                sends.extend((0..each).map(|n| Send {
                    at_ns: n * QUIET_NS / each + offset,
                    from: from[0].0,
                    to: to[1].1,
                    size: SMALL + HEADS,
                }));
            }
        }
        let [(peer, peer_addr), _] = places[0];
        for (class, access) in network.access.iter().take(MAX_PLACES) {
            let (up, down) = (compile::link(&access.up), compile::link(&access.down));
            let (own, addr) = node(Access { region: 0, up, down, mtu: access.mtu })?;
            let ways =
                [("up", LinkId::NodeUp(own), up, own, peer_addr), ("down", LinkId::NodeDown(own), down, peer, addr)];
            for (way, link, asked, from, to) in ways {
                links.push(watched(format!("{class} {way}"), link, asked));
                // A slow link must not fill up before it is to.
                let half = asked.rate_bps / (8 * 2 * (SMALL + HEADS) as u64);
                let count = if asked.rate_bps == 0 { LOSS_PACKETS } else { LOSS_PACKETS.min(half).max(1) };
                let quiet = (0..count).map(|n| n * QUIET_NS / count);
                sends.extend(quiet.map(|at_ns| Send { at_ns, from, to, size: SMALL + HEADS }));
                if let Some(per_second) = packets_for(asked.rate_bps) {
                    let size = (LARGE as usize).min(usize::from(access.mtu));
                    let busy =
                        (0..per_second * BUSY_NS / 1_000_000_000).map(|n| QUIET_NS + n * 1_000_000_000 / per_second);
                    sends.extend(busy.map(|at_ns| Send { at_ns, from, to, size }));
                }
            }
        }
        sends.sort_by_key(|send| send.at_ns);
        Ok(Probe {
            engine: Engine::new(topology, EngineConfig::default()),
            links,
            sends: sends.into(),
            begun_ns: None,
            stage: Stage::Quiet,
            number: 0,
        })
    }

    /// Takes note of the time, in nanoseconds, and does what is due.
    pub fn advance(&mut self, now_ns: u64) {
        let begun_ns = *self.begun_ns.get_or_insert(now_ns);
        self.engine.handle_timeout(now_ns);
        self.drain();
        while let Some(send) = self.sends.front().copied().filter(|send| begun_ns + send.at_ns <= now_ns) {
            if send.at_ns >= QUIET_NS && self.stage == Stage::Quiet {
                self.end_quiet();
            }
            self.sends.pop_front();
            self.send(now_ns, send);
        }
        let past_ns = now_ns - begun_ns;
        if self.stage == Stage::Quiet && past_ns >= QUIET_NS {
            self.end_quiet();
        }
        if self.stage == Stage::Filling && past_ns >= QUIET_NS + SETTLED_NS {
            self.stage = Stage::Busy;
            self.look(now_ns, |watched, seen| watched.from = seen);
        }
        if self.stage == Stage::Busy && past_ns >= QUIET_NS + BUSY_NS {
            self.stage = Stage::Over;
            self.look(now_ns, |watched, seen| watched.to = seen);
        }
    }

    /// Returns when [`advance`](Probe::advance) has something to do next; none where the probe is over.
    pub fn poll_timeout(&self) -> Option<u64> {
        let begun_ns = self.begun_ns.unwrap_or(0);
        let stage = match self.stage {
            Stage::Quiet => QUIET_NS,
            Stage::Filling => QUIET_NS + SETTLED_NS,
            Stage::Busy => QUIET_NS + BUSY_NS,
            Stage::Over => return None,
        };
        let send = self.sends.front().map(|send| begun_ns + send.at_ns);
        send.into_iter().chain(self.engine.poll_timeout()).chain([begun_ns + stage]).min()
    }

    /// Returns what links did, so far as is known.
    pub fn links(&self) -> Vec<Probed> {
        self.links
            .iter()
            .map(|watched| watched.probed(self.engine.link_stats(watched.link).unwrap_or_default()))
            .collect()
    }

    /// Returns how late packets were handled.
    pub fn lateness(&self) -> &Lateness {
        self.engine.lateness()
    }

    fn send(&mut self, now_ns: u64, send: Send) {
        let src = self.engine.addr(send.from).unwrap_or(Ipv4Addr::UNSPECIFIED);
        self.number = self.number.wrapping_add(1);
        let payload = vec![0; send.size.saturating_sub(HEADS)];
        let bytes = datagram(SocketAddr::from((src, 7)), SocketAddr::from((send.to, 7)), self.number, &payload);
        self.engine.handle_packet(now_ns, send.from, bytes);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            self.engine.recycle(output.bytes);
        }
    }

    /// Notes what links did as long as none was full.
    fn end_quiet(&mut self) {
        self.stage = Stage::Filling;
        for watched in &mut self.links {
            watched.quiet = self.engine.link_stats(watched.link).unwrap_or_default();
        }
    }

    fn look(&mut self, now_ns: u64, note: impl Fn(&mut Watched, (u64, u64))) {
        for watched in &mut self.links {
            let delivered = self.engine.link_stats(watched.link).unwrap_or_default().delivered_bytes;
            note(watched, (now_ns, delivered));
        }
    }
}

impl Watched {
    fn probed(&self, now: LinkStats) -> Probed {
        let Watched { name, asked, quiet, from, to, .. } = self;
        // What was under way when links began to fill up has come by now; the delays of full links are those of queues.
        let timed = if packets_for(asked.rate_bps).is_some() { *quiet } else { now };
        let mean = |sum: u64| sum.checked_div(timed.delivered).unwrap_or(0);
        let bits = to.1.saturating_sub(from.1).saturating_mul(8);
        let rate = u128::from(bits) * 1_000_000_000 / u128::from(to.0.saturating_sub(from.0).max(1));
        let lost = u128::from(quiet.lost) * 1_000_000 / u128::from(quiet.offered.max(1));
        Probed {
            link: name.clone(),
            packets: timed.delivered,
            asked_ns: mean(timed.asked_ns),
            measured_ns: mean(timed.measured_ns),
            asked_loss_ppm: asked.loss_ppm,
            measured_loss_ppm: u32::try_from(lost).unwrap_or(u32::MAX),
            asked_rate_bps: asked.rate_bps,
            measured_rate_bps: packets_for(asked.rate_bps)
                .filter(|_| to.0 > from.0)
                .map(|_| u64::try_from(rate).unwrap_or(u64::MAX)),
        }
    }
}

/// Returns how many packets a second are more than a link carries; none where it has no limit, or one that is not probed.
fn packets_for(rate_bps: u64) -> Option<u64> {
    let fits = rate_bps / (LARGE * 8);
    let more = fits + fits / 2 + 20;
    (rate_bps > 0 && more <= MAX_RATE_PACKETS).then_some(more)
}
