//! What a node keeps, for whom, and tells others that it has: pins, what executions hold, the index of what is public,
//! and provider records for roots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iptl_artifacts::{
    Added, BlobStore, CollectError, Collectable, Collected, Pin, PinKind, PinMode, Pins, PinsError, PublicError,
    PublicIndex, Recent, Session,
};
use iptl_dag::Cid;
use iptl_dag::model::ExecutionId;
use tokio_util::sync::CancellationToken;

use crate::announce::Announcer;
use crate::clock;
use crate::links::Links;
use crate::members::Members;

/// Why something is not kept, or not for whom it should be.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The index of what is public.
    #[error(transparent)]
    Public(#[from] PublicError),
}

/// How long what was uploaded or fetched stays without a pin: whoever brought it pins it, or reads it, in a moment.
const GRACE: Duration = Duration::from_secs(600);

/// Time between two looks at how much is stored.
const QUOTA_PAUSE: Duration = Duration::from_secs(30);

/// Which role of the node holds something: an orchestrator may lend its own machine to the same execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Its orchestrator.
    Orchestrator,
    /// Its lablet.
    Lablet,
}

/// What an execution needs while it goes on.
struct Held {
    roots: BTreeSet<Cid>,
    /// Keeps what is put before there is a root for it: logs, metrics, receipts.
    _session: Session,
}

/// Keeps roots and announces them.
pub struct Keeper {
    pins: Pins,
    public: Arc<PublicIndex>,
    store: Arc<Collectable>,
    members: Members,
    /// Pins and index change together, one change at a time: else a root could be added while it is taken out.
    changing: tokio::sync::Mutex<()>,
    /// Roots that nobody pins and somebody used: what was used last stays longest within a quota.
    recent: Recent,
    /// Roots that executions need while they go on. In memory: an execution that is resumed names them again.
    held: Mutex<BTreeMap<(ExecutionId, Holder), Held>>,
    announcer: Announcer,
}

impl Keeper {
    /// Makes a keeper over the pins of a node and the index that follows from them.
    pub fn new(
        pins: Pins,
        recent: Recent,
        public: Arc<PublicIndex>,
        store: Arc<Collectable>,
        members: Members,
        links: Links,
    ) -> Keeper {
        let (changing, held) = (tokio::sync::Mutex::default(), Mutex::default());
        let announcer = Announcer::new(links, members.clone());
        Keeper { pins, recent, public, store, members, announcer, changing, held }
    }

    /// Pins a root for good and announces it. Durable on return.
    ///
    /// Where nothing is said of who may read it, that stays as it is for a root that is pinned already, and is what the
    /// lab does with a new one.
    pub async fn keep(&self, root: Cid, kind: PinKind, name: &str, public: Option<bool>) -> Result<(), KeepError> {
        let _changing = self.changing.lock().await;
        self.keep_in_turn(root, kind, name.to_owned(), public).await
    }

    /// Pins a root with everything that it leads to and announces it, as [`keep`](Keeper::keep) does; where it is pinned
    /// already, kind and name stay if no other name is given. Durable on return.
    pub async fn pin(&self, root: Cid, kind: PinKind, name: Option<String>) -> Result<(), KeepError> {
        let _changing = self.changing.lock().await;
        let (kind, name) = self.called(&root, kind, name);
        self.keep_in_turn(root, kind, name, None).await
    }

    /// Pins a block without what it links; says no where it is pinned with that, and leaves it so. It is not announced:
    /// who finds a provider by a root wants what is below. Durable on return.
    pub async fn pin_block(&self, root: Cid, kind: PinKind, name: Option<String>) -> Result<bool, KeepError> {
        let _changing = self.changing.lock().await;
        if self.is_kept_whole(&root) {
            return Ok(false);
        }
        let (kind, name) = self.called(&root, kind, name);
        let pin = Pin { root, mode: PinMode::Direct, kind, name, pinned_ms: clock::wall().0, public: false };
        tokio::task::block_in_place(|| self.pins.add([pin]))?;
        Ok(true)
    }

    /// Returns what a root is called from now on.
    fn called(&self, root: &Cid, kind: PinKind, name: Option<String>) -> (PinKind, String) {
        let before = self.pins.get(root).map(|pin| (pin.kind, pin.name));
        let (kind, old) = before.unwrap_or((kind, String::new()));
        (kind, name.unwrap_or(old))
    }

    fn is_kept_whole(&self, root: &Cid) -> bool {
        self.pins.get(root).is_some_and(|pin| pin.mode == PinMode::Recursive)
    }

    async fn keep_in_turn(
        &self,
        root: Cid,
        kind: PinKind,
        name: String,
        public: Option<bool>,
    ) -> Result<(), KeepError> {
        let before = self.pins.get(&root).filter(|pin| pin.mode == PinMode::Recursive).map(|pin| pin.public);
        let public = public.or(before).unwrap_or(!self.members.is_private());
        let pin = Pin { root, mode: PinMode::Recursive, kind, name, pinned_ms: clock::wall().0, public };
        tokio::task::block_in_place(|| self.pins.add([pin]))?;
        match (before, public) {
            (Some(true), false) => drop(self.hide().await?),
            (_, true) => self.show(&root).await?,
            (Some(false) | None, false) => {}
        }
        self.announcer.announce(root, public);
        Ok(())
    }

    /// Lets strangers read what a root leads to; pins it where it is not. Durable on return.
    pub async fn share(&self, root: Cid) -> Result<Added, KeepError> {
        let _changing = self.changing.lock().await;
        if tokio::task::block_in_place(|| self.pins.set_public(&root, true))? {
            let added = self.public.add(&*self.store, &root).await?;
            self.announcer.announce(root, true);
            return Ok(added);
        }
        let (kind, name) = self.called(&root, PinKind::Data, None);
        let pin = Pin { root, mode: PinMode::Recursive, kind, name, pinned_ms: clock::wall().0, public: true };
        tokio::task::block_in_place(|| self.pins.add([pin]))?;
        let added = self.public.add(&*self.store, &root).await?;
        self.announcer.announce(root, true);
        Ok(added)
    }

    /// Lets only members read what a root leads to, unless another root that is public leads there too; says whether there
    /// is such a pin, and whether strangers may read the root all the same. Durable on return.
    pub async fn unshare(&self, root: &Cid) -> Result<(bool, bool), KeepError> {
        let _changing = self.changing.lock().await;
        let found = tokio::task::block_in_place(|| self.pins.set_public(root, false))?;
        if found {
            self.announcer.announce(*root, false);
            self.hide().await?;
        }
        Ok((found, self.public.contains(root.hash())))
    }

    /// Pins a root no more: it goes with the next collection, unless another pin leads there. Says whether there was a pin.
    /// Durable on return.
    pub async fn unpin(&self, root: &Cid) -> Result<bool, KeepError> {
        let _changing = self.changing.lock().await;
        let was_public = self.pins.get(root).is_some_and(|pin| pin.public);
        if !tokio::task::block_in_place(|| self.pins.remove(root))? {
            return Ok(false);
        }
        if was_public {
            self.hide().await?;
        }
        self.announcer.withdraw(*root);
        Ok(true)
    }

    /// Notes that a root is used, which takes so many bytes, where that is known: within a quota it stays for longer.
    pub fn used(&self, root: Cid, bytes: Option<u64>) {
        if !self.is_kept_whole(&root) {
            self.recent.used(root, clock::wall().0, bytes);
        }
    }

    /// Holds a root until its execution is over for this role. What is put or found meanwhile stays as well.
    pub fn hold(&self, execution: ExecutionId, holder: Holder, root: Cid) {
        let held = &mut *self.lock();
        let new = || Held { roots: BTreeSet::new(), _session: self.store.session() };
        held.entry((execution, holder)).or_insert_with(new).roots.insert(root);
    }

    /// Holds many roots of an execution at once, for as long.
    pub fn hold_all(&self, execution: ExecutionId, holder: Holder, roots: Vec<Cid>) {
        // Sorted once, rather than each put in its place.
        let mut roots: BTreeSet<Cid> = roots.into_iter().collect();
        let held = &mut *self.lock();
        let new = || Held { roots: BTreeSet::new(), _session: self.store.session() };
        held.entry((execution, holder)).or_insert_with(new).roots.append(&mut roots);
    }

    /// Lets go of everything that a role held for an execution.
    pub fn release(&self, execution: &ExecutionId, holder: Holder) {
        let held = self.lock().remove(&(*execution, holder));
        for root in held.iter().flat_map(|held| &held.roots) {
            self.used(*root, None);
        }
    }

    /// Keeps what is put or found from now on until some minutes after the answer is dropped.
    pub fn grace(&self) -> Grace {
        Grace { session: Some(self.store.session()) }
    }

    /// Drops what no pin and no execution leads to and nobody uses. Safe to drop half-way.
    pub async fn collect(&self) -> Result<Collected, CollectError> {
        self.store.collect(&|| self.roots()).await
    }

    /// Keeps the store within `quota` bytes, by collecting where it is over, until `stop`.
    pub async fn keep_within(&self, quota: u64, stop: CancellationToken) {
        loop {
            if let Err(error) = self.evict(quota).await {
                tracing::warn!(%error, "the store cannot be brought within its quota");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(QUOTA_PAUSE) => {}
            }
        }
    }

    /// Collects where more than `quota` bytes are on the disk; says whether it did.
    ///
    /// What no root leads to goes first; then roots that nobody pins, those that were used longest ago before others, and
    /// no more of them than it takes.
    pub async fn evict(&self, quota: u64) -> Result<bool, CollectError> {
        let mut left = self.store.usage().await?.on_disk;
        if left <= quota {
            return Ok(false);
        }
        let mut gone = Vec::new();
        loop {
            let roots = || self.roots().into_iter().chain(self.recent.roots().into_iter().map(|root| (root, true)));
            let collected = self.store.collect_within(&|| roots().collect(), quota).await?;
            left = self.store.usage().await?.on_disk;
            let (removed, freed) = (collected.removed, collected.freed);
            tracing::info!(removed, freed, left, roots = ?gone, "the store was over its quota");
            if left <= quota {
                return Ok(true);
            }
            gone = tokio::task::block_in_place(|| self.recent.forget(left - quota));
            if gone.is_empty() {
                tracing::warn!(left, quota, "what is pinned or in use takes more than the quota of the store");
                return Ok(true);
            }
        }
    }

    fn roots(&self) -> Vec<(Cid, bool)> {
        let held = self.lock();
        let held = held.values().flat_map(|held| held.roots.iter().map(|root| (*root, true)));
        self.pins.roots().into_iter().chain(held).collect()
    }

    /// Returns all pins.
    pub fn pins(&self) -> Vec<Pin> {
        self.pins.list()
    }

    /// Announces every root that is kept with all below it: at start, and where the node came into a lab.
    pub fn announce_all(&self) {
        for pin in self.pins.list().into_iter().filter(|pin| pin.mode == PinMode::Recursive) {
            self.announcer.announce(pin.root, pin.public);
        }
    }

    /// Adds public roots that the index lacks, as after a crash or where it was damaged.
    pub async fn catch_up(&self, lacking: Vec<Cid>) {
        if !lacking.is_empty() {
            tracing::info!(roots = lacking.len(), "indexing what strangers may read");
        }
        for root in lacking {
            let _changing = self.changing.lock().await;
            // It may have been unshared meanwhile.
            if self.pins.get(&root).is_some_and(|pin| pin.public)
                && let Err(error) = self.show(&root).await
            {
                tracing::error!(%root, %error, "strangers cannot read what they may");
            }
        }
    }

    async fn show(&self, root: &Cid) -> Result<(), KeepError> {
        let added = self.public.add(&*self.store, root).await?;
        if added.missing > 0 {
            tracing::info!(%root, missing = added.missing, "what is below blocks that are missing is not public yet");
        }
        Ok(())
    }

    async fn hide(&self) -> Result<Added, KeepError> {
        Ok(self.public.replace(&*self.store, &self.pins.public_roots()).await?)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ExecutionId, Holder), Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a session end some minutes after this is dropped.
pub struct Grace {
    session: Option<Session>,
}

impl Drop for Grace {
    fn drop(&mut self) {
        if let (Some(session), Ok(runtime)) = (self.session.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                tokio::time::sleep(GRACE).await;
                drop(session);
            });
        }
    }
}
