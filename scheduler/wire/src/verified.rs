//! Proof that a message was checked before the core sees it.

/// A value whose signature, hash and permission were checked by the driver, or by the simulator that stands in for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// Vouches for `value`. Only code that has just checked it, and the simulator, call this.
    pub fn vouch(value: T) -> Verified<T> {
        Verified(value)
    }

    /// Returns the value.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.0
    }
}
