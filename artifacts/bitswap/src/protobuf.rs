//! As much of protobuf as the messages need.

use iptl_dag::varint;

/// Bytes that are no protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Offset within the message.
    pub(crate) at: usize,
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no field of ours has.
    Fixed,
}

/// Reads the fields of a message one after another.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    size: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes, size: bytes.len() }
    }

    /// Returns the number and value of the next field; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(self.malformed()),
        };
        Ok(Some((key >> 3, value)))
    }

    /// Reads a varint of a bare sequence of them.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, rest) = varint::decode(self.rest).map_err(|_| self.malformed())?;
        self.rest = rest;
        Ok(value)
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(head)
    }

    fn malformed(&self) -> Malformed {
        Malformed { at: self.size - self.rest.len() }
    }
}

/// Appends a bare varint.
pub(crate) fn put_raw_varint(out: &mut Vec<u8>, value: u64) {
    varint::encode(value, out);
}

/// Appends a field that is a number.
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u64, value: u64) {
    put_raw_varint(out, number << 3);
    put_raw_varint(out, value);
}

/// Appends a field that is bytes or a message.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_raw_varint(out, number << 3 | 2);
    put_raw_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
