//! Tests of sync: rows of facts, and random schedules against a model.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

mod book;
mod facts;
mod losses;
mod rest;
mod schedules;
mod world;
