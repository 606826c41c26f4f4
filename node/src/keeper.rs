//! What a node keeps and tells others that it has: pins, and provider records for roots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iptl_artifacts::{Pin, PinKind, PinMode, Pins, PinsError};
use iptl_dag::Cid;
use iptl_dag::model::ExecutionId;

use crate::clock;
use crate::links::Links;

/// Keeps roots and announces them.
pub struct Keeper {
    pins: Pins,
    links: Links,
    /// Roots that executions need while they go on. In memory: an execution that is resumed names them again.
    held: Mutex<BTreeMap<ExecutionId, BTreeSet<Cid>>>,
}

impl Keeper {
    /// Makes a keeper over the pins of a node.
    pub fn new(pins: Pins, links: Links) -> Keeper {
        Keeper { pins, links, held: Mutex::default() }
    }

    /// Pins a root for good and announces it. Durable on return.
    pub fn keep(&self, root: Cid, kind: PinKind, name: &str) -> Result<(), PinsError> {
        let pin = Pin { root, mode: PinMode::Recursive, kind, name: name.to_owned(), pinned_ms: clock::wall().0 };
        tokio::task::block_in_place(|| self.pins.add([pin]))?;
        self.announce(root);
        Ok(())
    }

    /// Holds a root until its execution is over.
    pub fn hold(&self, execution: ExecutionId, root: Cid) {
        self.lock().entry(execution).or_default().insert(root);
    }

    /// Lets go of everything that was held for an execution.
    pub fn release(&self, execution: &ExecutionId) {
        self.lock().remove(execution);
    }

    /// Returns all pins.
    pub fn pins(&self) -> Vec<Pin> {
        self.pins.list()
    }

    /// Announces every root that is kept, as at start.
    pub fn announce_all(&self) {
        for pin in self.pins.list() {
            self.announce(pin.root);
        }
    }

    fn announce(&self, root: Cid) {
        if let Some(net) = self.links.net().cloned() {
            tokio::spawn(async move { net.provide(&root.hash().to_bytes()).await });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ExecutionId, BTreeSet<Cid>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
