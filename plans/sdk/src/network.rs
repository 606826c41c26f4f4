//! What the program asks of its own network: a shaper of what it sends, before its link. The run's network stays what it
//! is, and comes on top.
//!
//! ```no_run
//! # use std::time::Duration;
//! use iptl_sdk::network::{Config, Filter, Shape, configure};
//!
//! let slow = Shape { latency: Duration::from_millis(100), ..Shape::default() };
//! let gone = Shape { filter: Filter::Drop, ..Shape::default() };
//! configure(&Config { shape: slow, rules: vec![("10.0.0.7/32".to_owned(), gone)], ..Config::default() })?;
//! # iptl_sdk::Result::Ok(())
//! ```

use std::time::Duration;

use crate::{Result, back};

/// What becomes of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// They are sent.
    #[default]
    Accept,
    /// They are not, and the sender is told by an ICMP error.
    Reject,
    /// They are not, and nobody is told.
    Drop,
}

/// What is done to packets. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Whether they are sent.
    pub filter: Filter,
    /// Time that they wait, up to a day.
    pub latency: Duration,
    /// How far they are off it, evenly, up to a day.
    pub jitter: Duration,
    /// Bits per second, IP headers included; zero is no limit.
    pub bandwidth_bps: u64,
    /// Chance that one is lost, in a million.
    pub loss_ppm: u32,
    /// Chance that one bit of one is turned, in a million.
    pub corrupt_ppm: u32,
    /// Chance that one does not wait, in a million.
    pub reorder_ppm: u32,
    /// Chance that one is sent twice, in a million.
    pub duplicate_ppm: u32,
}

/// What the program asks of its network. The default is the network as the run says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether it has one at all: otherwise nothing goes out and nothing comes in.
    pub enabled: bool,
    /// What is done where no rule says otherwise.
    pub shape: Shape,
    /// By subnet, as `10.0.0.0/24`: the smallest that has a destination counts. Rules stay until another for their subnet
    /// takes their place, and one that does nothing ends it. One that only filters leaves the shape as it is.
    pub rules: Vec<(String, Shape)>,
}

impl Default for Config {
    fn default() -> Config {
        Config { enabled: true, shape: Shape::default(), rules: Vec::new() }
    }
}

/// Asks for a network, and returns once it is in force.
///
/// # Errors
///
/// Fails with the lab's reason where it cannot be had; then all stays as it was.
pub fn configure(config: &Config) -> Result<()> {
    back::configure(config)
}
