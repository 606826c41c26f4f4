//! What programs in instances say: requests to the sync service, and lines of output.

use std::sync::Arc;

use iptl_testground::{Conversation, Dialect, Identity, Journal};

use crate::memory::bounded;

/// Bytes that an instance may record.
const RECORDS: u64 = 4096;

/// Messages, one a line, to the sync service: however many come, what waits is bounded, and the client is told to wait.
pub(crate) fn conversation(data: &[u8]) -> bool {
    let identity = Arc::new(Identity::new("r", "p", "c", "h"));
    let mut taken = false;
    for dialect in [Dialect::Go, Dialect::Rust, Dialect::Other] {
        let mut conversation = Conversation::new(1, identity.clone(), dialect);
        for message in data.split(|byte| *byte == b'\n') {
            if !conversation.wants_request() {
                break;
            }
            if bounded(64, data, || conversation.receive(message)).is_err() {
                break;
            }
            taken = true;
            while let Some(frame) = conversation.poll_frame() {
                assert!(!frame.is_empty());
            }
        }
        while conversation.poll_call().is_some() {}
        conversation.close();
        while conversation.poll_frame().is_some() {}
        while conversation.poll_event().is_some() {}
    }
    taken
}

/// Lines of stdout and of both files: what is recorded stays within what may be, but for the last line.
pub(crate) fn output(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let mut journal = Journal::new(RECORDS);
    for (at, line) in text.lines().enumerate() {
        journal.line(at as u64, line);
        journal.published(at as u64, line);
        journal.own_event(line, 0);
        journal.result(line, 0);
    }
    journal.finish();
    let recorded = [journal.take_events(), journal.take_metrics()].concat();
    let lines = || recorded.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines() {
        std::str::from_utf8(line).expect("records are text");
    }
    let longest = lines().map(<[u8]>::len).max().unwrap_or(0);
    assert!(recorded.len() as u64 <= RECORDS + longest as u64 + 1, "{} bytes are recorded", recorded.len());
    !recorded.is_empty()
}
