//! A look at the heads of CBOR before it is decoded.

/// Says whether lists and maps announce more items than bytes follow.
///
/// The decoder reserves up to a megabyte for a list that says it is long, and lists stand in one another: a kilobyte
/// could reserve hundreds of megabytes before it is found to be short. What else is wrong is left to the decoder.
pub(super) fn promises_too_much(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    // Items that were announced and have not come. Each takes a byte at least.
    let mut owed: u64 = 1;
    while owed > 0 {
        let Some((head, tail)) = rest.split_first() else { return true };
        let size = match head & 0x1f {
            0..=23 => 0,
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            // Lengths that are left open: the decoder refuses them.
            _ => return false,
        };
        let Some((argument, tail)) = tail.split_at_checked(size) else { return true };
        let number = match size {
            0 => u64::from(head & 0x1f),
            _ => argument.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        };
        owed -= 1;
        rest = tail;
        match head >> 5 {
            2 | 3 => match usize::try_from(number).ok().and_then(|size| rest.get(size..)) {
                Some(behind) => rest = behind,
                None => return true,
            },
            4 => owed = owed.saturating_add(number),
            5 => owed = owed.saturating_add(number.saturating_mul(2)),
            6 => owed += 1,
            // Numbers, and simple values.
            _ => {}
        }
        if owed > rest.len() as u64 {
            return true;
        }
    }
    false
}
