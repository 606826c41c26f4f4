//! Open calls of one instance, and the answers that it has not taken yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use iptl_runner::SyncReply;

/// Calls that an instance may have open.
const MAX_CALLS: usize = 4096;

/// Bytes of messages that may wait for an instance; a subscription that it does not read ends beyond it.
const MAX_WAITING: usize = 8 << 20;

/// Bytes that a waiting message costs beside its payload.
const MESSAGE_OVERHEAD: usize = 64;

/// Open calls of one instance.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_call: u64,
    calls: BTreeMap<u64, Call>,
    waiting_bytes: usize,
    closed: bool,
}

/// What a call is asking for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// One number; giving it up needs no word.
    Question,
    /// A barrier; the lab is told when it is given up.
    Barrier,
    /// Messages.
    Topic,
}

#[derive(Debug)]
struct Call {
    kind: CallKind,
    answer: Option<Result<u64, String>>,
    taken: bool,
    messages: VecDeque<(u64, Vec<u8>)>,
    waker: Option<Waker>,
}

/// A message that the instance takes: its position and payload, or why there will be no more.
pub(crate) type Taken = Result<(u64, Vec<u8>), String>;

impl Mailbox {
    /// Opens a call. The second value is false where it was answered at once: there are too many, or `failed` says
    /// why it cannot be asked.
    pub(crate) fn open(&self, kind: CallKind, failed: Option<String>) -> (u64, bool) {
        let mut state = self.state();
        let number = state.next_call;
        state.next_call += 1;
        let full = state.calls.len() >= MAX_CALLS;
        let failed = failed.or_else(|| full.then(|| format!("{MAX_CALLS} calls of the lab are open already")));
        let asked = failed.is_none();
        let call = Call { kind, answer: failed.map(Err), taken: false, messages: VecDeque::new(), waker: None };
        state.calls.insert(number, call);
        (number, asked)
    }

    /// Takes what the lab answered; what nobody waits for is dropped.
    pub(crate) fn deliver(&self, reply: SyncReply) {
        let mut state = self.state();
        let number = reply.target().1;
        let room = MAX_WAITING.saturating_sub(state.waiting_bytes);
        let Some(call) = state.calls.get_mut(&number) else { return };
        let mut cost = 0;
        match reply {
            SyncReply::Signalled { seq, .. } => call.settle(Ok(seq)),
            SyncReply::Opened { seq, .. } => call.settle(Ok(seq)),
            SyncReply::Published { position, .. } => call.settle(Ok(position)),
            SyncReply::Failed { reason, .. } => call.settle(Err(reason)),
            SyncReply::Message { position, payload, .. } => {
                cost = payload.len() + MESSAGE_OVERHEAD;
                if call.answer.is_some() {
                    cost = 0;
                } else if cost > room {
                    cost = 0;
                    call.settle(Err(format!("more than {MAX_WAITING} bytes of messages waited to be read")));
                } else {
                    call.messages.push_back((position, payload));
                }
            }
        }
        let waker = call.waker.take();
        state.waiting_bytes += cost;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until a call has something to take.
    pub(crate) fn poll_ready(&self, number: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        let Some(call) = state.calls.get_mut(&number) else { return Poll::Ready(()) };
        if call.answer.is_some() || call.taken || !call.messages.is_empty() {
            return Poll::Ready(());
        }
        call.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes the answer of a question or a barrier.
    pub(crate) fn take_answer(&self, number: u64) -> Option<Result<u64, String>> {
        let mut state = self.state();
        let call = state.calls.get_mut(&number)?;
        let answer = call.answer.take();
        call.taken |= answer.is_some();
        answer
    }

    /// Takes the next message of a topic. Why there will be no more is said again each time.
    pub(crate) fn take_message(&self, number: u64) -> Option<Taken> {
        let mut state = self.state();
        let call = state.calls.get_mut(&number)?;
        let Some((position, payload)) = call.messages.pop_front() else {
            return match &call.answer {
                Some(Err(reason)) => Some(Err(reason.clone())),
                Some(Ok(_)) | None => None,
            };
        };
        state.waiting_bytes -= payload.len() + MESSAGE_OVERHEAD;
        Some(Ok((position, payload)))
    }

    /// Forgets a call; true where the lab must be told that it is given up.
    pub(crate) fn forget(&self, number: u64) -> bool {
        let mut state = self.state();
        let Some(call) = state.calls.remove(&number) else { return false };
        let waiting: usize = call.messages.iter().map(|(_, payload)| payload.len() + MESSAGE_OVERHEAD).sum();
        state.waiting_bytes -= waiting;
        let open = call.answer.is_none() && !call.taken && !state.closed;
        match call.kind {
            CallKind::Question => false,
            CallKind::Barrier | CallKind::Topic => open,
        }
    }

    /// Forgets everything: the instance ended.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.calls.clear();
        state.waiting_bytes = 0;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    fn settle(&mut self, answer: Result<u64, String>) {
        if self.answer.is_none() && !self.taken {
            self.answer = Some(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::model::InstanceId;

    use super::*;

    fn id() -> InstanceId {
        InstanceId { group: "g".into(), index: 0 }
    }

    #[test]
    fn answer_is_taken_once() {
        let mailbox = Mailbox::default();
        let (call, asked) = mailbox.open(CallKind::Question, None);
        assert!(asked);
        assert_eq!(mailbox.take_answer(call), None);
        mailbox.deliver(SyncReply::Signalled { id: id(), call, seq: 3 });
        mailbox.deliver(SyncReply::Signalled { id: id(), call, seq: 4 });
        assert_eq!(mailbox.take_answer(call), Some(Ok(3)));
        assert_eq!(mailbox.take_answer(call), None);
        assert!(!mailbox.forget(call));
    }

    #[test]
    fn open_barriers_and_topics_are_given_up() {
        let mailbox = Mailbox::default();
        let (barrier, _) = mailbox.open(CallKind::Barrier, None);
        let (topic, _) = mailbox.open(CallKind::Topic, None);
        assert!(mailbox.forget(barrier));
        assert!(mailbox.forget(topic));
        assert!(!mailbox.forget(topic));
    }

    #[test]
    fn reader_that_does_not_read_loses_its_subscription_and_no_more() {
        let mailbox = Mailbox::default();
        let (call, _) = mailbox.open(CallKind::Topic, None);
        let payload = vec![0; 1 << 20];
        for position in 1..20 {
            mailbox.deliver(SyncReply::Message { id: id(), call, position, payload: payload.clone() });
        }
        let mut taken = 0;
        while let Some(Ok(_)) = mailbox.take_message(call) {
            taken += 1;
        }
        assert_eq!(taken, 7);
        assert!(matches!(mailbox.take_message(call), Some(Err(_))));
    }

    #[test]
    fn too_many_open_calls_are_refused() {
        let mailbox = Mailbox::default();
        for _ in 0..MAX_CALLS {
            assert!(mailbox.open(CallKind::Question, None).1);
        }
        let (call, asked) = mailbox.open(CallKind::Question, None);
        assert!(!asked);
        assert!(matches!(mailbox.take_answer(call), Some(Err(_))));
    }
}
