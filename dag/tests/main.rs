//! Tests of the data model through its public surface.

mod block;
mod car;
mod codecs;
mod decoding;
mod destinations;
mod examples;
mod facts;
mod frequent;
mod generate;
mod golden;
mod hamt;
mod model;
mod multiformats;
mod path;
mod profiles;
mod schema;
mod unixfs;
mod varint;
mod vectors;
mod walk;
