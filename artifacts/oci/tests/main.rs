//! Images through their public surface. All of them are made here; no engine takes part.

mod build;
mod dedup;
mod hostile;
mod limits;
mod make;
mod rebuild;
mod round_trip;
mod sources;
mod unpack;
