//! What an instance asks of its own network: put in force, told among its events, and kept for another life of the
//! lablet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iptl_dag::model::InstanceId;
use iptl_labnet::Wish;
use iptl_runner::files::{CellFiles, NETWORK_EVENT};
use iptl_testground::{Asked, Journal};

use crate::cell::Cell;
use crate::state::InstanceDir;

/// Shapes the network of one instance as its program wishes.
pub(crate) struct Shaper {
    cell: Arc<Cell>,
    id: InstanceId,
    dir: InstanceDir,
    journal: Arc<Mutex<Journal>>,
    /// All that it has asked for so far.
    wish: Mutex<Wish>,
}

impl Shaper {
    /// Knows what the instance asked for in an earlier life of the lablet, which is in force already.
    pub(crate) fn new(cell: &Arc<Cell>, id: &InstanceId, dir: &InstanceDir, journal: &Arc<Mutex<Journal>>) -> Shaper {
        let wish = Mutex::new(dir.wish().unwrap_or_default());
        Shaper { cell: Arc::clone(cell), id: id.clone(), dir: dir.clone(), journal: Arc::clone(journal), wish }
    }

    /// Puts in force what the program asks for, and tells it; must be called within a tokio runtime.
    pub(crate) fn ask(self: &Arc<Self>, newer: Wish, asked: Asked) {
        let mut wish = lock(&self.wish);
        let next = match wish.then(&newer) {
            Ok(next) => next,
            Err(e) => return self.refuse(&newer, asked, e.to_string()),
        };
        // A network that ends tells the program by dropping what waits for it.
        let Some(network) = self.cell.network.upgrade() else { return };
        let in_force = network.shape(&self.id, next.clone());
        *wish = next;
        drop(wish);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            match in_force.await {
                Ok(Ok(())) => {
                    // The latest, whichever of several requests comes here first.
                    if let Err(error) = this.dir.set_wish(&lock(&this.wish)) {
                        tracing::warn!(%error, id = %this.id, "a wish of an instance will be forgotten by a restart");
                    }
                    this.note(Some(&newer), None);
                    asked.in_force();
                }
                Ok(Err(e)) => this.refuse(&newer, asked, e.to_string()),
                Err(_) => {}
            }
        });
    }

    /// Writes among its events what it asked for, and why it was refused where it was.
    pub(crate) fn note(&self, asked: Option<&Wish>, refused: Option<&str>) {
        lock(&self.journal).note(self.cell.at_us(), NETWORK_EVENT, &CellFiles::network_data(asked, refused));
    }

    fn refuse(&self, newer: &Wish, asked: Asked, reason: String) {
        self.note(Some(newer), Some(&reason));
        asked.refused(reason);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
