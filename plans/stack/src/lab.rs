//! The lab's answers as futures.
//!
//! What a component waits for at the lab and what it waits for on sockets cannot be waited for in one call, so answers
//! are looked for now and then: after two milliseconds first, and at last five times in a second. A hundred instances
//! that look more often take a machine more than it is worth.

use std::time::Duration;

use futures_timer::Delay;
use iptl_sdk::{Message, Pending, Result, Subscription};

const FIRST_LOOK: Duration = Duration::from_millis(2);
const LATER_LOOKS: Duration = Duration::from_millis(200);

/// Waits for the answer of a call.
///
/// # Errors
///
/// Fails as the call does.
pub async fn answer(mut call: Pending) -> Result<u64> {
    let mut pause = FIRST_LOOK;
    loop {
        if let Some(answer) = call.try_take() {
            return answer;
        }
        look_later(&mut pause).await;
    }
}

/// Waits for the next message of a topic.
///
/// # Errors
///
/// Fails where there will be no more.
pub async fn next(topic: &mut Subscription) -> Result<Message> {
    let mut pause = FIRST_LOOK;
    loop {
        if let Some(message) = topic.try_next() {
            return message;
        }
        look_later(&mut pause).await;
    }
}

async fn look_later(pause: &mut Duration) {
    Delay::new(*pause).await;
    *pause = (*pause * 2).min(LATER_LOOKS);
}
