//! How far something is that moves bytes: how fast they come, from whom, and what is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iptl_node::rate::Rate;
use iptl_wire::control::FetchProgress;
use iptl_wire::session::FetchSum;

use crate::context::millis;
use crate::ui;

/// Most providers that are named.
const NAMED: usize = 3;

/// Writes a rate and how long the rest takes at it: `12.0 MiB/s, 4.2 s left`; nothing where nothing comes.
fn pace(rate: u64, left: u64) -> String {
    match (rate, left) {
        (0, _) => String::new(),
        (_, 0) => format!("{}/s", ui::bytes(rate)),
        _ => format!("{}/s, {} left", ui::bytes(rate), ui::duration(left.saturating_mul(1000) / rate)),
    }
}

/// Writes how far a fetch is, for a line of its own or behind a bar that shows the count by itself.
pub fn fetching(now: &FetchProgress, rate: u64, behind_bar: bool) -> String {
    let mut parts = Vec::new();
    if !behind_bar {
        parts.push(format!("{}/{} blocks", now.blocks, now.wanted));
    }
    parts.push(match now.size {
        // What the root says counts wrapping that is not here yet; it is a guess at the end.
        size if size > now.bytes => format!("{} of {}", ui::bytes(now.bytes), ui::bytes(size)),
        _ => ui::bytes(now.bytes),
    });
    let pace = pace(rate, now.size.saturating_sub(now.bytes));
    if !pace.is_empty() {
        parts.push(pace);
    }
    if !now.from.is_empty() {
        let mut from = now.from.clone();
        from.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let names: Vec<String> = from.iter().take(NAMED).map(|(peer, _)| peer.short()).collect();
        let more = from.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        parts.push(format!("from {}{more}", names.join(" ")));
    }
    if !now.waiting.is_empty() {
        parts.push(now.waiting.clone());
    }
    parts.join(", ")
}

/// Writes how far lablets are with what their instances need.
pub fn preparing(sum: &FetchSum, lablets: u32, rate: u64) -> String {
    let mut parts = vec![format!(
        "{} of {} on {}",
        ui::bytes(sum.bytes),
        ui::bytes(sum.size.max(sum.bytes)),
        ui::count(lablets.into(), "lablet")
    )];
    let pace = pace(rate, sum.left());
    if !pace.is_empty() {
        parts.push(pace);
    }
    let all = sum.fetched();
    let shares = [
        (sum.from_orchestrators, "from the orchestrator"),
        (sum.from_lablets, "from each other"),
        (sum.from_others, "from others"),
    ];
    let shares = shares.iter().filter(|(bytes, _)| *bytes > 0);
    parts.extend(shares.map(|(bytes, whom)| format!("{} % {whom}", (u128::from(*bytes) * 100).div_euclid(all.into()))));
    parts.join(", ")
}

/// Counts what is put into a store. Cheap to clone: the clones count together.
#[derive(Clone, Default)]
pub struct Counter {
    put: Arc<AtomicU64>,
}

impl Counter {
    /// Notes that so many bytes were put.
    pub fn add(&self, bytes: u64) {
        self.put.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns what tells how far an import is, of so many bytes where that is known.
    pub fn teller(&self, total: Option<u64>) -> impl FnMut() -> String + use<> {
        let (put, started) = (self.put.clone(), Instant::now());
        let before = put.load(Ordering::Relaxed);
        let mut rate = Rate::new(started);
        move || {
            let put = put.load(Ordering::Relaxed) - before;
            importing(put, total, rate.at(Instant::now(), put), started.elapsed())
        }
    }
}

fn importing(put: u64, total: Option<u64>, rate: u64, elapsed: Duration) -> String {
    let left = total.map_or(0, |total| total.saturating_sub(put));
    let amount = match total.filter(|total| *total > put) {
        Some(total) => format!("{} of {}", ui::bytes(put), ui::bytes(total)),
        None => ui::bytes(put),
    };
    match pace(rate, left) {
        pace if pace.is_empty() => format!("{amount}, {}", ui::duration(millis(elapsed))),
        pace => format!("{amount}, {pace}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetch_says_what_came_how_fast_from_whom_and_what_is_left() {
        let peer = |seed: u8| iptl_dag::PeerId::from_ed25519(&[seed; 32]);
        let mut now = FetchProgress {
            blocks: 34,
            wanted: 150,
            bytes_fetched: 20 << 20,
            bytes: 20 << 20,
            size: 100 << 20,
            from: vec![(peer(1), 5), (peer(2), 9)],
            waiting: String::new(),
        };
        let (first, second) = (peer(2).short(), peer(1).short());
        let expected = format!("34/150 blocks, 20.0 MiB of 100.0 MiB, 10.0 MiB/s, 8.0 s left, from {first} {second}");
        assert_eq!(fetching(&now, 10 << 20, false), expected);
        assert_eq!(fetching(&now, 0, true), format!("20.0 MiB of 100.0 MiB, from {first} {second}"));
        now = FetchProgress { waiting: "looking for a provider of x".to_owned(), from: Vec::new(), size: 0, ..now };
        assert_eq!(fetching(&now, 0, true), "20.0 MiB, looking for a provider of x");
        now.from = (1..=5).map(|seed| (peer(seed), u64::from(seed))).collect();
        assert!(fetching(&now, 1, true).contains(" and 2 more, "), "{}", fetching(&now, 1, true));
    }

    #[test]
    fn lablets_say_what_came_how_fast_from_whom_and_what_is_left() {
        let mut sum = FetchSum { bytes: 10 << 20, size: 40 << 20, ..FetchSum::default() };
        assert_eq!(preparing(&sum, 1, 0), "10.0 MiB of 40.0 MiB on 1 lablet");
        sum = FetchSum { from_orchestrators: 1, from_lablets: 3, ..sum };
        let expected = "10.0 MiB of 40.0 MiB on 4 lablets, 10.0 MiB/s, 3.0 s left, 25 % from the orchestrator, \
                        75 % from each other";
        assert_eq!(preparing(&sum, 4, 10 << 20), expected);
        // What a lablet claims may be any number.
        sum = FetchSum { bytes: u64::MAX, size: 0, from_others: u64::MAX, from_lablets: u64::MAX, ..sum };
        assert!(preparing(&sum, 1, u64::MAX).contains("100 % from others"));
    }

    #[test]
    fn import_says_what_is_left_where_that_is_known() {
        let elapsed = Duration::from_millis(1500);
        assert_eq!(importing(0, Some(3 << 20), 0, elapsed), "0 B of 3.0 MiB, 1.5 s");
        assert_eq!(importing(1 << 20, Some(3 << 20), 1 << 20, elapsed), "1.0 MiB of 3.0 MiB, 1.0 MiB/s, 2.0 s left");
        assert_eq!(importing(1 << 20, None, 1 << 20, elapsed), "1.0 MiB, 1.0 MiB/s");
    }
}
