//! Tests of the data model through its public surface.

mod car;
mod generate;
mod path;
mod unixfs;
mod walk;
