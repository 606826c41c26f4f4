//! Tests of the manifest and of runs made from it.

mod manifest;
mod mistakes;
mod network;
mod run;
mod scaffold;
mod shipped;
