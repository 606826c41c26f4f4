//! A look at the heads of CBOR before it is decoded.

const SHORT: &str = "it says that it holds more than there is";
const OPEN: &str = "a length is left open";

/// Refuses lists and maps that announce more items than bytes follow, and lengths that are left open.
///
/// The decoder reserves up to a megabyte for a list that says it is long, and lists stand in one another: a kilobyte
/// could reserve hundreds of megabytes before it is found to be short. What else is wrong is left to the decoder.
pub(super) fn check_lengths(bytes: &[u8]) -> Result<(), &'static str> {
    after_first(bytes).map(|_rest| ())
}

/// Passes over the first value and returns what stands behind it, under the same conditions.
pub(crate) fn after_first(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let mut rest = bytes;
    // Items that were announced and have not come. Each takes a byte at least.
    let mut owed: u64 = 1;
    while owed > 0 {
        let (head, tail) = rest.split_first().ok_or(SHORT)?;
        let size = match head & 0x1f {
            0..=23 => 0,
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return Err(OPEN),
        };
        let (argument, tail) = tail.split_at_checked(size).ok_or(SHORT)?;
        let number = match size {
            0 => u64::from(head & 0x1f),
            _ => argument.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        };
        owed -= 1;
        rest = tail;
        match head >> 5 {
            2 | 3 => rest = usize::try_from(number).ok().and_then(|size| rest.get(size..)).ok_or(SHORT)?,
            4 => owed = owed.saturating_add(number),
            5 => owed = owed.saturating_add(number.saturating_mul(2)),
            6 => owed += 1,
            // Numbers, and simple values.
            _ => {}
        }
        if owed > rest.len() as u64 {
            return Err(SHORT);
        }
    }
    Ok(rest)
}
