//! Signals, barriers and topics.

#![expect(unreachable_pub, reason = "the generated bindings re-export the resources of this file")]

use std::future::poll_fn;
use std::sync::Arc;

use async_trait::async_trait;
use iptl_runner::{CellEvent, SyncCall};
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::mailbox::CallKind;
use super::wit::sync::{Host, HostPending, HostSubscription, Message};
use super::{LabView, check_name};
use crate::worker::guest::Instance;

/// Largest message on a topic in bytes: one that a lab of thousands can still carry to everybody.
const MAX_PAYLOAD: usize = 256 << 10;

/// A call that waits for its answer.
pub struct Pending {
    instance: Arc<Instance>,
    call: u64,
    /// What the answer is where the lab answers without a number: the target of a barrier.
    target: Option<u64>,
}

/// A subscription.
pub struct Subscription {
    instance: Arc<Instance>,
    call: u64,
}

#[async_trait]
impl Pollable for Pending {
    async fn ready(&mut self) {
        poll_fn(|cx| self.instance.mailbox.poll_ready(self.call, cx)).await;
    }
}

#[async_trait]
impl Pollable for Subscription {
    async fn ready(&mut self) {
        poll_fn(|cx| self.instance.mailbox.poll_ready(self.call, cx)).await;
    }
}

impl LabView<'_> {
    /// Opens a call and asks the lab, unless `failed` says why that cannot be; waits while the lab lags behind.
    async fn ask(&mut self, kind: CallKind, failed: Option<String>, call: impl FnOnce(u64) -> SyncCall) -> u64 {
        self.cell.outbox.wait_for_room().await;
        let (number, asked) = self.instance.mailbox.open(kind, failed);
        if asked {
            self.cell.say(CellEvent::Sync { id: self.instance.id.clone(), call: call(number) });
        }
        number
    }

    fn pending(&mut self, call: u64, target: Option<u64>) -> Result<Resource<Pending>> {
        Ok(self.table.push(Pending { instance: Arc::clone(self.instance), call, target })?)
    }

    fn give_up(&self, call: u64) {
        if self.instance.mailbox.forget(call) {
            self.cell.say(CellEvent::Sync { id: self.instance.id.clone(), call: SyncCall::Cancel { call } });
        }
    }
}

impl Host for LabView<'_> {
    async fn signal(&mut self, state: String) -> Result<Resource<Pending>> {
        let failed = check_name("a state", &state).err();
        let call = self.ask(CallKind::Question, failed, |call| SyncCall::Signal { call, state }).await;
        self.pending(call, None)
    }

    async fn barrier(&mut self, state: String, target: u64) -> Result<Resource<Pending>> {
        let failed = check_name("a state", &state).err();
        let call = self.ask(CallKind::Barrier, failed, |call| SyncCall::Barrier { call, state, target }).await;
        self.pending(call, Some(target))
    }

    async fn signal_and_wait(&mut self, state: String, target: u64) -> Result<Resource<Pending>> {
        let failed = check_name("a state", &state).err();
        let call = self.ask(CallKind::Barrier, failed, |call| SyncCall::SignalAndWait { call, state, target }).await;
        self.pending(call, None)
    }

    async fn publish(&mut self, topic: String, payload: Vec<u8>) -> Result<Resource<Pending>> {
        let size = payload.len();
        let failed = check_name("a topic", &topic)
            .err()
            .or_else(|| (size > MAX_PAYLOAD).then(|| format!("a message of {size} bytes; {MAX_PAYLOAD} are allowed")));
        let call = self.ask(CallKind::Question, failed, |call| SyncCall::Publish { call, topic, payload }).await;
        self.pending(call, None)
    }

    async fn subscribe(&mut self, topic: String) -> Result<Resource<Subscription>> {
        let failed = check_name("a topic", &topic).err();
        let call = self.ask(CallKind::Topic, failed, |call| SyncCall::Subscribe { call, topic }).await;
        Ok(self.table.push(Subscription { instance: Arc::clone(self.instance), call })?)
    }
}

impl HostPending for LabView<'_> {
    fn subscribe(&mut self, pending: Resource<Pending>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, pending)
    }

    fn take(&mut self, pending: Resource<Pending>) -> Result<Option<Result<u64, String>>> {
        let pending = self.table.get(&pending)?;
        let answer = self.instance.mailbox.take_answer(pending.call);
        Ok(answer.map(|answer| answer.map(|number| pending.target.unwrap_or(number))))
    }

    fn drop(&mut self, pending: Resource<Pending>) -> Result<()> {
        let pending = self.table.delete(pending)?;
        self.give_up(pending.call);
        Ok(())
    }
}

impl HostSubscription for LabView<'_> {
    fn subscribe(&mut self, subscription: Resource<Subscription>) -> Result<Resource<DynPollable>> {
        subscribe(self.table, subscription)
    }

    fn next(&mut self, subscription: Resource<Subscription>) -> Result<Option<Result<Message, String>>> {
        let call = self.table.get(&subscription)?.call;
        let taken = self.instance.mailbox.take_message(call);
        Ok(taken.map(|taken| taken.map(|(position, payload)| Message { position, payload })))
    }

    fn drop(&mut self, subscription: Resource<Subscription>) -> Result<()> {
        let subscription = self.table.delete(subscription)?;
        self.give_up(subscription.call);
        Ok(())
    }
}
