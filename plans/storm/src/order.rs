//! What every instance must see of a topic.

/// Messages of one topic as they came in.
pub struct Order {
    /// Number of the next message by sender.
    next: Vec<u32>,
    publishes: u32,
    seen: u64,
    digest: u64,
}

impl Order {
    /// Expects `publishes` messages from each of `total` senders.
    pub fn new(total: u32, publishes: u32) -> Order {
        Order { next: vec![0; total as usize], publishes, seen: 0, digest: 0xcbf2_9ce4_8422_2325 }
    }

    /// Takes the next message; says what is wrong with it.
    pub fn see(&mut self, position: u64, payload: &[u8]) -> Result<(), String> {
        if position != self.seen + 1 {
            return Err(format!("message {position} came after {}", self.seen));
        }
        let Some((sender, number)) = decode(payload) else { return Err(format!("message {position} is garbled")) };
        let Some(next) = self.next.get_mut(sender as usize) else {
            return Err(format!("message {position} is of instance {sender}, which does not exist"));
        };
        if number != *next || number >= self.publishes {
            return Err(format!("message {position} is number {number} of instance {sender}, not {next}"));
        }
        *next += 1;
        self.seen = position;
        for byte in payload.iter().take(8) {
            // FNV-1a: enough to compare orders that nobody forges.
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }

    /// Tells whether all messages were seen.
    pub fn is_complete(&self) -> bool {
        self.seen == self.next.len() as u64 * u64::from(self.publishes)
    }

    /// Returns what two equal orders have in common.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// Makes a message of at least eight bytes.
pub fn encode(sender: u32, number: u32, size: usize) -> Vec<u8> {
    let mut payload = [sender.to_le_bytes(), number.to_le_bytes()].concat();
    payload.resize(size.max(8), sender as u8);
    payload
}

/// Reads sender and number of a message; none where its filling is not what the sender wrote.
pub fn decode(payload: &[u8]) -> Option<(u32, u32)> {
    let (sender, rest) = payload.split_first_chunk::<4>()?;
    let (number, filling) = rest.split_first_chunk::<4>()?;
    let sender = u32::from_le_bytes(*sender);
    filling.iter().all(|byte| *byte == sender as u8).then_some((sender, u32::from_le_bytes(*number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(messages: &[(u64, u32, u32)]) -> Result<Order, String> {
        let mut order = Order::new(2, 2);
        for (position, sender, number) in messages {
            order.see(*position, &encode(*sender, *number, 20))?;
        }
        Ok(order)
    }

    #[test]
    fn equal_orders_have_equal_digests_and_others_do_not() {
        let a = see(&[(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 0, 1)]).unwrap();
        let b = see(&[(1, 1, 0), (2, 0, 0), (3, 1, 1), (4, 0, 1)]).unwrap();
        assert!(a.is_complete() && b.is_complete());
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.digest(), see(&[(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 0, 1)]).unwrap().digest());
    }

    #[test]
    fn messages_that_are_lost_doubled_or_foreign_are_noticed() {
        assert!(see(&[(2, 0, 0)]).is_err());
        assert!(see(&[(1, 0, 0), (1, 0, 0)]).is_err());
        assert!(see(&[(1, 0, 0), (2, 0, 0)]).is_err());
        assert!(see(&[(1, 0, 1)]).is_err());
        assert!(see(&[(1, 2, 0)]).is_err());
        assert!(see(&[(1, 0, 0), (2, 0, 1), (3, 0, 2)]).is_err());
        let mut order = Order::new(1, 1);
        assert!(order.see(1, &[1, 2, 3]).is_err());
        assert!(!order.is_complete());
    }

    #[test]
    fn messages_carry_their_sender_and_number() {
        assert_eq!(decode(&encode(300, 7, 64)), Some((300, 7)));
        assert_eq!(encode(1, 2, 0).len(), 8);
        let mut damaged = encode(300, 7, 64);
        damaged[40] ^= 1;
        assert_eq!(decode(&damaged), None);
    }
}
