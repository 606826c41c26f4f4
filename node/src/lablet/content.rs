//! What a grant names, from those who have it: who they are, and how much of it has come.
//!
//! Lablets that need the same at the same time feed each other. Who needs what follows from the placement that a grant
//! brings and from the run: a lablet whose groups do not use a workload is neither asked for it nor waited for.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iptl_dag::model::ExecutionId;
use iptl_dag::walk::Limits;
use iptl_dag::{Cid, PeerId};
use iptl_wire::control::FetchProgress;
use iptl_wire::session::{CellFetch, FetchSum, Grant, MAX_WAITING};
use tokio::sync::watch;

use crate::fetch::{FetchError, Fetcher, Source, Wanted};

/// A lablet that finds nobody with the blocks of its grant for so long gives it back.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of a workload with all that it links.
const MAX_WORKLOAD_SIZE: u64 = 4 << 30;

/// How much is wanted of something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// One block.
    Block,
    /// It and all that it links, which is so large if that is known.
    Whole(u64),
}

/// Brings what one grant names.
pub(super) struct Content<'a> {
    fetcher: Fetcher,
    grant: &'a Grant,
    /// They have all of it; the first is who granted.
    orchestrators: Vec<Source>,
    coming: Coming,
}

impl<'a> Content<'a> {
    /// Tells how far it is through `told`.
    pub(super) fn new(
        fetcher: Fetcher,
        grant: &'a Grant,
        orchestrators: Vec<Source>,
        told: watch::Sender<Option<CellFetch>>,
    ) -> Content<'a> {
        let coming = Coming { execution: grant.cell.execution, told, state: Mutex::default() };
        Content { fetcher, grant, orchestrators, coming }
    }

    /// Notes that so many bytes will be fetched; from then on it is told how far that is.
    pub(super) fn expect(&self, bytes: u64) {
        let mut state = self.coming.state();
        state.expected = bytes;
        state.is_known = true;
        drop(state);
        self.coming.tell(FetchSum::default(), "");
    }

    /// Brings something that the groups need that `uses` says.
    ///
    /// Safe to drop: what came stays.
    pub(super) async fn fetch(
        &self,
        root: &Cid,
        extent: Extent,
        uses: impl Fn(&str) -> bool,
    ) -> Result<(), FetchError> {
        let (from, fellows) = self.givers(uses);
        let lablets: BTreeSet<PeerId> = fellows.iter().cloned().collect();
        let wanted = Wanted { root: *root, from, fellows, timeout: FETCH_TIMEOUT, shallow: extent == Extent::Block };
        let limits = Limits { bytes: MAX_WORKLOAD_SIZE, ..Limits::default() };
        let declared = match extent {
            Extent::Block => 0,
            Extent::Whole(size) => size,
        };
        self.coming.begin(declared);
        let sum = |bytes, size, from: &[(PeerId, u64)]| self.sum(bytes, size, from, &lablets);
        let told = |now: FetchProgress| {
            let size = declared.max(now.size).max(now.bytes);
            self.coming.tell(sum(now.bytes, size, &now.from), &now.waiting);
        };
        let report = self.fetcher.clone().within(limits).fetch(&wanted, told).await?;
        self.coming.end(sum(report.bytes, report.bytes, &report.providers));
        Ok(())
    }

    /// Returns whom to ask for what the groups need that `uses` says, and who of them fetches it too.
    fn givers(&self, uses: impl Fn(&str) -> bool) -> (Vec<Source>, Vec<PeerId>) {
        let has_all = |peer: &PeerId| self.orchestrators.first().is_some_and(|(leader, _)| leader == peer);
        let placed = self.grant.placement.iter().filter(|assignment| uses(&assignment.group));
        let fellows: BTreeSet<&PeerId> = placed
            .map(|assignment| &assignment.lablet)
            .filter(|peer| **peer != self.grant.lablet && !has_all(peer))
            .collect();
        let addrs = |peer: &PeerId| self.grant.roster.get(&peer.to_string()).cloned().unwrap_or_default();
        let lablets = fellows.iter().map(|peer| ((*peer).clone(), addrs(peer)));
        let from = self.orchestrators.iter().cloned().chain(lablets).collect();
        (from, fellows.into_iter().cloned().collect())
    }

    fn sum(&self, bytes: u64, size: u64, from: &[(PeerId, u64)], lablets: &BTreeSet<PeerId>) -> FetchSum {
        let mut sum = FetchSum { bytes, size, ..FetchSum::default() };
        for (peer, bytes) in from {
            let part = if lablets.contains(peer) {
                &mut sum.from_lablets
            } else if self.orchestrators.iter().any(|(orchestrator, _)| orchestrator == peer) {
                &mut sum.from_orchestrators
            } else {
                &mut sum.from_others
            };
            *part += bytes;
        }
        sum
    }
}

/// How much has come.
struct Coming {
    execution: ExecutionId,
    told: watch::Sender<Option<CellFetch>>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// What is here with all that it links.
    done: FetchSum,
    /// Bytes that will be fetched after what is fetched now.
    expected: u64,
    /// It is known how many these are.
    is_known: bool,
}

impl Coming {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, declared: u64) {
        let mut state = self.state();
        state.expected = state.expected.saturating_sub(declared);
    }

    /// Tells what came of what is fetched now.
    fn tell(&self, now: FetchSum, waiting: &str) {
        let State { done, expected, is_known } = *self.state();
        if !is_known && waiting.is_empty() {
            return;
        }
        let mut sum = done.plus(now);
        sum.size = sum.size.saturating_add(expected);
        let waiting = waiting.chars().take(MAX_WAITING / 4).collect();
        self.told.send_replace(Some(CellFetch { execution: self.execution, sum, waiting }));
    }

    fn end(&self, all: FetchSum) {
        let mut state = self.state();
        state.done = state.done.plus(all);
        drop(state);
        self.tell(FetchSum::default(), "");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use iptl_artifacts::{BlobStore, MemStore};
    use iptl_dag::model::{Assignment, Epoch};
    use iptl_dag::{Block, Codec, Ipld, codec};
    use iptl_trust::Keypair;
    use iptl_wire::session::CellRef;

    use super::*;
    use crate::links::Links;

    /// A peer that answers requests for blocks out of its store, and counts who asks.
    struct Peer {
        links: Links,
        addrs: Vec<String>,
        store: Arc<dyn BlobStore>,
        asked: Arc<AtomicU32>,
    }

    impl Peer {
        async fn new(seed: u8, blocks: Vec<Block>) -> Peer {
            let seed = [seed; 32];
            let listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
            let config = iptl_net::Config { seed, listen, ..Default::default() };
            let (net, mut events) = iptl_net::start(config).await.unwrap();
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            let store: Arc<dyn BlobStore> = Arc::new(MemStore::default());
            store.put(blocks).await.unwrap();
            let asked = Arc::new(AtomicU32::new(0));
            let mut incoming = net.accept(iptl_artifacts_iroh::PROTOCOL, 16).await.unwrap();
            let (provider, count) = (iptl_artifacts_iroh::Provider::over(store.clone()), asked.clone());
            tokio::spawn(async move {
                while let Some((_, stream)) = incoming.next().await {
                    count.fetch_add(1, Ordering::Relaxed);
                    let provider = provider.clone();
                    tokio::spawn(async move { provider.serve(stream).await });
                }
            });
            let addrs = net.addrs().await;
            let links = Links::new(Keypair::from_seed(&seed).peer().clone(), Some(net));
            Peer { links, addrs, store, asked }
        }

        fn id(&self) -> PeerId {
            self.links.peer().clone()
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    /// A root with leaves, told apart by a byte.
    fn dag(of: u8) -> Vec<Block> {
        let leaves = (0..400_u16).map(|n| Block::new(Codec::Raw, [&n.to_le_bytes(), &[of; 4000][..]].concat()));
        let mut blocks: Vec<Block> = leaves.collect();
        let links = blocks.iter().map(|leaf| Ipld::Link(*leaf.cid())).collect();
        blocks.insert(0, codec::to_block(&Ipld::List(links)));
        blocks
    }

    /// A grant to `lablet`; each group has one instance on its lablet.
    fn grant(lablet: &PeerId, placed: &[(&str, PeerId, Vec<String>)]) -> Grant {
        let execution = ExecutionId(*codec::to_block(&"an execution".to_owned()).cid());
        let assignment = |(group, lablet, _): &(&str, PeerId, Vec<String>)| Assignment {
            group: (*group).to_owned(),
            start: 0,
            count: 1,
            lablet: lablet.clone(),
        };
        let placement: Vec<Assignment> = placed.iter().map(assignment).collect();
        Grant {
            cell: CellRef { execution, epoch: Epoch { counter: 1, peer: lablet.clone() } },
            lablet: lablet.clone(),
            run: execution.0,
            assignments: placement.iter().filter(|a| a.lablet == *lablet).cloned().collect(),
            slots: BTreeMap::new(),
            attempt: 1,
            memory_bytes: 0,
            roster: placed.iter().map(|(_, peer, addrs)| (peer.to_string(), addrs.clone())).collect(),
            placement,
        }
    }

    fn content<'a>(
        me: &Peer,
        grant: &'a Grant,
        orchestrators: Vec<Source>,
    ) -> (Content<'a>, watch::Receiver<Option<CellFetch>>) {
        let (told, heard) = watch::channel(None);
        (Content::new(Fetcher::new(me.store.clone(), me.links.clone()), grant, orchestrators, told), heard)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lablet_whose_groups_do_not_use_a_workload_is_neither_asked_for_it_nor_waited_for() {
        let (first, second) = (dag(1), dag(2));
        let orchestrator = Peer::new(31, [first.clone(), second.clone()].concat()).await;
        let me = Peer::new(32, Vec::new()).await;
        let fellow = Peer::new(33, first.clone()).await;
        let stranger_to_it = Peer::new(34, second.clone()).await;
        let placed = [("first", &me), ("first", &fellow), ("second", &stranger_to_it)];
        let placed = placed.map(|(group, peer)| (group, peer.id(), peer.addrs.clone()));
        let grant = grant(&me.id(), &placed);
        let from = vec![(orchestrator.id(), orchestrator.addrs.clone())];
        let (content, heard) = content(&me, &grant, from);
        let size = |blocks: &[Block]| blocks.iter().map(|block| block.data().len() as u64).sum::<u64>();

        assert_eq!(*heard.borrow(), None);
        content.expect(2_000_000);
        assert_eq!(heard.borrow().as_ref().unwrap().sum, FetchSum { size: 2_000_000, ..FetchSum::default() });
        content.fetch(first[0].cid(), Extent::Whole(1_000_000), |group| group == "first").await.unwrap();
        assert_eq!(stranger_to_it.asked(), 0, "it has no instance that uses the workload");
        assert!(orchestrator.asked() > 0 && fellow.asked() > 0);
        let sum = heard.borrow().as_ref().unwrap().sum;
        assert_eq!((sum.bytes, sum.left()), (size(&first), 1_000_000), "{sum:?}");
        assert!(sum.from_orchestrators > 0 && sum.from_lablets > 0 && sum.from_others == 0, "{sum:?}");
        assert_eq!(sum.fetched(), size(&first));

        // Of what it uses it is asked, and the other is not.
        let asked = fellow.asked();
        content.fetch(second[0].cid(), Extent::Whole(1_000_000), |group| group == "second").await.unwrap();
        assert!(stranger_to_it.asked() > 0);
        assert_eq!(fellow.asked(), asked);
        let sum = heard.borrow().as_ref().unwrap().sum;
        assert_eq!((sum.bytes, sum.left()), (size(&first) + size(&second), 0), "{sum:?}");
    }

    #[tokio::test]
    async fn orchestrators_are_asked_for_what_they_have_and_are_fellows_only_where_they_run_it_too() {
        let ids: Vec<PeerId> = (1..=5).map(|seed| Keypair::from_seed(&[seed; 32]).peer().clone()).collect();
        let [leader, follower, lending, me, other] = &ids[..] else { panic!() };
        let at = |peer: &PeerId| (peer.clone(), vec![format!("/of/{peer}")]);
        let placed = [leader, lending, me, other].map(|peer| ("node", peer.clone(), at(peer).1));
        let grant = grant(me, &placed);
        let (told, _heard) = watch::channel(None);
        let fetcher = Fetcher::new(Arc::new(MemStore::default()), Links::new(me.clone(), None));
        let content = Content::new(fetcher, &grant, [leader, follower, lending].map(at).to_vec(), told);
        let (from, fellows) = content.givers(|_| true);
        assert_eq!(from[..3], [leader, follower, lending].map(at));
        assert_eq!(BTreeSet::from_iter(fellows), BTreeSet::from([lending.clone(), other.clone()]));
        assert!(from.contains(&at(other)) && !from.contains(&at(me)));
        assert_eq!(content.givers(|group| group == "nobody").1, []);
    }
}
