//! How far the lablets of an execution are with what their instances need, put together from what each says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iptl_dag::PeerId;
use iptl_wire::control::Event;
use iptl_wire::session::{CellFetch, FetchSum};

use crate::rate::Rate;

/// Time between two lines about it.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What the lablets of one execution said.
#[derive(Default)]
pub(super) struct Fetching {
    /// The last that each said.
    said: BTreeMap<PeerId, CellFetch>,
    rate: Option<Rate>,
    told_at: Option<Instant>,
    /// It was told that nothing is missing.
    is_over: bool,
}

impl Fetching {
    /// Takes in what a lablet says, and returns what is to be told; `name` says what people call a lablet.
    pub(super) fn said(
        &mut self,
        now: Instant,
        from: PeerId,
        what: CellFetch,
        name: impl Fn(&PeerId) -> String,
    ) -> Option<Event> {
        self.said.insert(from, what);
        let sum = self.said.values().fold(FetchSum::default(), |sum, said| sum.plus(said.sum));
        let rate = self.rate.get_or_insert_with(|| Rate::new(now)).at(now, sum.fetched());
        let lacking: Vec<_> = self.said.iter().filter(|(_, said)| is_lacking(said)).collect();
        if lacking.is_empty() {
            // What was here before anybody could wait for it is not told of.
            if self.is_over || self.told_at.is_none() {
                return None;
            }
            self.is_over = true;
        } else {
            if self.told_at.is_some_and(|at| now - at < TELL_EVERY) {
                return None;
            }
            self.is_over = false;
        }
        self.told_at = Some(now);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let last = lacking.iter().max_by_key(|(_, said)| said.sum.left()).filter(|_| self.said.len() > 1);
        let waiting = lacking.iter().find(|(_, said)| !said.waiting.is_empty());
        Some(Event::Fetching {
            lablets: count(self.said.len()),
            fetching: count(lacking.len()),
            sum,
            rate,
            behind: last.map(|(peer, said)| (name(peer), said.sum.bytes, said.sum.size)),
            waiting: waiting.map(|(peer, said)| (name(peer), said.waiting.clone())),
        })
    }
}

/// Whether a lablet lacks something; how much is not always known.
fn is_lacking(said: &CellFetch) -> bool {
    said.sum.left() > 0 || !said.waiting.is_empty()
}

#[cfg(test)]
mod tests {
    use iptl_dag::codec;
    use iptl_dag::model::ExecutionId;

    use super::*;

    fn peer(seed: u8) -> PeerId {
        PeerId::from_ed25519(&[seed; 32])
    }

    fn said(bytes: u64, size: u64) -> CellFetch {
        let sum = FetchSum { bytes, size, from_orchestrators: bytes, ..FetchSum::default() };
        let execution = ExecutionId(*codec::to_block(&"x".to_owned()).cid());
        CellFetch { execution, sum, waiting: String::new() }
    }

    fn name(peer: &PeerId) -> String {
        peer.short()
    }

    #[test]
    fn what_lablets_say_is_summed_up_once_a_second_until_nothing_is_missing() {
        let mut fetching = Fetching::default();
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert!(fetching.said(start, peer(1), said(0, 100), name).is_some());
        assert_eq!(fetching.said(after(500), peer(2), said(50, 100), name), None, "a second has not passed");
        let told = fetching.said(after(1000), peer(1), said(20, 100), name);
        let sum = FetchSum { bytes: 70, size: 200, from_orchestrators: 70, ..FetchSum::default() };
        let behind = Some((peer(1).short(), 20, 100));
        assert_eq!(told, Some(Event::Fetching { lablets: 2, fetching: 2, sum, rate: 70, behind, waiting: None }));
        assert_eq!(fetching.said(after(1100), peer(1), said(100, 100), name), None);
        let Some(Event::Fetching { fetching: 0, sum, behind: None, .. }) =
            fetching.said(after(1200), peer(2), said(100, 100), name)
        else {
            panic!("that all is there is told at once");
        };
        assert_eq!((sum.bytes, sum.left()), (200, 0));
        assert_eq!(fetching.said(after(9000), peer(2), said(100, 100), name), None, "and once");
        // A lablet that comes later, for what another lost.
        assert!(fetching.said(after(9001), peer(3), said(0, 100), name).is_some());
    }

    #[test]
    fn lablets_that_had_it_all_are_not_told_of() {
        let mut fetching = Fetching::default();
        assert_eq!(fetching.said(Instant::now(), peer(1), said(100, 100), name), None);
    }

    #[test]
    fn sums_that_a_lablet_makes_up_are_borne() {
        let mut fetching = Fetching::default();
        let now = Instant::now();
        fetching.said(now, peer(1), said(0, u64::MAX), name);
        let far = CellFetch { waiting: "looking for a provider of x".to_owned(), ..said(u64::MAX, u64::MAX) };
        let told = fetching.said(now + TELL_EVERY, peer(2), far, name);
        let Some(Event::Fetching { sum, waiting: Some((who, _)), .. }) = told else { panic!("{told:?}") };
        assert_eq!((sum.bytes, sum.size, who), (u64::MAX, u64::MAX, peer(2).short()));
    }
}
