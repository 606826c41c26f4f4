//! Bad input: each a clear message with what to do, its exit code, and nothing lost.

mod blocks;
mod networks;
mod peers;
mod plans;
mod tickets;
