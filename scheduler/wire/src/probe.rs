//! Probes of networks: what machines make of them before anybody trusts them.
//!
//! A request of the control API goes to the orchestrator, which opens a stream of [`PROTOCOL`] to each lablet in turn, on
//! the connection that the lablet has made, and writes a [`ProbeOrder`]. The answer is a reply of the control API, and
//! the end.

use iptl_dag::PeerId;
use iptl_dag::model::NetworkModel;
use serde::{Deserialize, Serialize};

/// Protocol ID of the stream between orchestrator and lablet.
pub const PROTOCOL: &str = "/iptl/probe/1";

/// Most lablets of which a lablet says how far away they are.
pub const MAX_OTHERS: usize = 64;

/// What a lablet is to probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeOrder {
    /// The network.
    pub network: NetworkModel,
    /// Other lablets with their names and addresses, at most [`MAX_OTHERS`].
    pub others: Vec<(PeerId, String, Vec<String>)>,
}

/// What a lablet found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeReport {
    /// Who.
    pub peer: PeerId,
    /// Its name.
    pub lablet: String,
    /// What links did: one for each pair of regions, and two for each access class.
    pub links: Vec<LinkProbe>,
    /// How late packets were handled on it: upper bounds of the median and of the hundredth, and the most, in
    /// nanoseconds.
    pub late_ns: [u64; 3],
    /// How far other lablets are.
    pub ways: Vec<WayProbe>,
}

/// What a link did, and what it was asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkProbe {
    /// Which: `east to west`, `dsl up`.
    pub link: String,
    /// Packets whose delays were measured.
    pub packets: u64,
    /// Mean delay that was asked for, queues and jitter included, in nanoseconds.
    pub asked_ns: u64,
    /// Mean delay that was measured.
    pub measured_ns: u64,
    /// Chance of a loss in a million.
    pub asked_loss_ppm: u32,
    /// What was lost of a million.
    pub measured_loss_ppm: u32,
    /// Rate in bits a second; zero is no limit.
    pub asked_rate_bps: u64,
    /// Rate that was measured; none where there is no limit, or it is beyond what a probe sends.
    pub measured_rate_bps: Option<u64>,
}

/// How far another lablet is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WayProbe {
    /// Who.
    pub to: PeerId,
    /// Its name.
    pub lablet: String,
    /// Half of the shortest round trip, in nanoseconds; none where there is no way.
    pub best_ns: Option<u64>,
    /// Half of the median.
    pub median_ns: Option<u64>,
    /// Whether packets go by way of a third machine.
    pub relayed: bool,
    /// Why there is no way; empty where there is one.
    pub trouble: String,
}
