//! The interfaces of `iptl:lab`: what plan code says to the lab.

mod artifacts;
mod mailbox;
mod network;
mod records;
mod sync;

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, ResourceTable};

use super::cell::Cell;
use super::guest::{Guest, Instance};

pub(crate) use mailbox::Mailbox;

/// Longest name of a state, a topic, an event or a metric, in bytes.
const MAX_NAME: usize = 256;

mod bindings {
    wasmtime::component::bindgen!({
        path: ["wit/poll", "../../plans/sdk/wit/lab.wit"],
        world: "iptl:lab/plan",
        imports: {
            "iptl:lab/sync.signal": async | trappable,
            "iptl:lab/sync.barrier": async | trappable,
            "iptl:lab/sync.signal-and-wait": async | trappable,
            "iptl:lab/sync.publish": async | trappable,
            "iptl:lab/sync.subscribe": async | trappable,
            default: trappable,
        },
        with: {
            "wasi:io/poll": wasmtime_wasi_io::bindings::wasi::io::poll,
            "iptl:lab/sync.pending": super::sync::Pending,
            "iptl:lab/sync.subscription": super::sync::Subscription,
        },
        require_store_data_send: true,
    });
}

use bindings::iptl::lab as wit;

/// What the functions of `iptl:lab` see of a guest.
struct LabView<'a> {
    table: &'a mut ResourceTable,
    cell: &'a Arc<Cell>,
    instance: &'a Arc<Instance>,
}

struct HasLab;

impl HasData for HasLab {
    type Data<'a> = LabView<'a>;
}

fn view(guest: &mut Guest) -> LabView<'_> {
    LabView { table: &mut guest.table, cell: &guest.cell, instance: &guest.instance }
}

/// Adds `iptl:lab` to a linker.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wit::sync::add_to_linker::<Guest, HasLab>(linker, view)?;
    wit::network::add_to_linker::<Guest, HasLab>(linker, view)?;
    wit::records::add_to_linker::<Guest, HasLab>(linker, view)?;
    wit::artifacts::add_to_linker::<Guest, HasLab>(linker, view)
}

/// Checks a name that a guest gave.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("the name of {what} has {} bytes; it may have 1 to {MAX_NAME}", name.len()));
    }
    Ok(())
}
