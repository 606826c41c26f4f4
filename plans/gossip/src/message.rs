//! What is published: who by, its number, and when.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a message without anything that fills it.
pub const SMALLEST: usize = 16;

/// Makes a message of now, of at least [`SMALLEST`] bytes.
pub fn new(publisher: u32, number: u32, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size.max(SMALLEST));
    bytes.extend_from_slice(&publisher.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&micros().to_be_bytes());
    bytes.resize(size.max(SMALLEST), 0);
    bytes
}

/// Returns how many milliseconds ago a message was published, by this machine's clock and the publisher's; none where
/// the bytes are no message. Where the publisher's clock is ahead, that is none ago.
pub fn age_ms(bytes: &[u8]) -> Option<f64> {
    let at: [u8; 8] = bytes.get(8..SMALLEST)?.try_into().ok()?;
    Some(micros().saturating_sub(u64::from_be_bytes(at)) as f64 / 1e3)
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_old_as_it_is() {
        let message = new(7, 8, 100);
        assert_eq!(message.len(), 100);
        assert!(age_ms(&message).is_some_and(|age| (0.0..10_000.0).contains(&age)));
        assert_eq!(new(1, 2, 0).len(), SMALLEST);
        assert_eq!(age_ms(&message[..SMALLEST - 1]), None);
    }
}
