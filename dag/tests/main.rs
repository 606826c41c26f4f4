//! Tests of the data model through its public surface.

mod block;
mod car;
mod decoding;
mod examples;
mod generate;
mod golden;
mod model;
mod path;
mod schema;
mod unixfs;
mod walk;
