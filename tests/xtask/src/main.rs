//! The commands of the repository: `cargo xtask setup|demo|test|soak|mutate|fuzz|bench|fmt`.
//!
//! [`setup`] brings what is missing and says why, [`mod@test`] is the gate, [`demo`] shows the whole path once. Every
//! command starts with its own part of the set-up, so that each works on a machine that has only Rust and a C compiler.

#![allow(unreachable_pub, reason = "a binary has no outside; `pub` here says what a module means for its siblings")]

mod demo;
mod engine;
mod fuzz;
mod mutate;
mod setup;
mod shell;
mod test;
mod witness;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::shell::Shell;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The commands of the repository", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need, each with its reason
    Setup,
    /// A lab of four processes, one run, and its result fetched and verified by a fifth
    Demo(demo::Args),
    /// Everything that must hold: format, lints, licences, plans, tests, documents
    Test(test::Args),
    /// The tests that take too long for every day: those that `cargo test` lists as ignored
    Soak,
    /// Put bugs into a copy of the scheduler, and demand that the simulator finds each
    Mutate(mutate::Args),
    /// Feed decoders with what strangers might send, guided by what it reaches
    Fuzz(fuzz::Args),
    /// Measure, and write docs/BENCHMARKS.md
    Bench {
        /// What the benchmark program gets
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build the programs under tests/interop, which stand for those of other people
    Witnesses,
    /// Format all Rust code, that of the plans too
    Fmt,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Shell::new().and_then(|shell| match cli.command {
        Command::Setup => setup::all(&shell),
        Command::Demo(args) => demo::run(&shell, &args),
        Command::Test(args) => test::run(&shell, &args),
        Command::Soak => soak(&shell),
        Command::Mutate(args) => mutate::run(&shell, &args),
        Command::Fuzz(args) => fuzz::run(&shell, &args),
        Command::Bench { args } => bench(&shell, &args),
        Command::Witnesses => setup::for_witnesses(&shell).and_then(|()| witness::build(&shell)),
        Command::Fmt => fmt(&shell),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak(shell: &Shell) -> anyhow::Result<()> {
    setup::for_build(shell)?;
    engine::ensure(shell)?;
    test::build_plans(shell)?;
    shell.step("soak", "the tests that are ignored every day, one after another");
    shell.run(shell.cargo().args(["build", "--workspace", "--bin", "iptl"]))?;
    let tests =
        ["test", "--package", "iptl-e2e", "--test", "main", "--", "--ignored", "--test-threads", "1", "--nocapture"];
    shell.run(shell.cargo().args(tests))?;
    // By name: the other ignored test there is a process that this one kills.
    let kills = ["test", "--package", "iptl-artifacts-pack", "--test", "main", "--", "--ignored", "two_hundred_kills"];
    shell.run(shell.cargo().args(kills))?;
    // Two gigabytes are hashed.
    let vectors = ["test", "--release", "--package", "iptl-dag", "--test", "main", "--", "--ignored", "of_a_gigabyte"];
    shell.run(shell.cargo().args(vectors))
}

fn bench(shell: &Shell, args: &[String]) -> anyhow::Result<()> {
    setup::for_build(shell)?;
    engine::ensure(shell)?;
    test::build_plans(shell)?;
    shell.step("bench", "release build, then the measures");
    // One build of everything: `cargo run` of one package would unify other features and compile most of it again.
    shell.run(shell.cargo().args(["build", "--release", "--workspace"]))?;
    shell.run(shell.command(shell.target.join("release/iptl-bench")).args(args))
}

fn fmt(shell: &Shell) -> anyhow::Result<()> {
    shell.run(shell.cargo().args(["fmt", "--all"]))?;
    for guest in shell.guests()? {
        shell.run(shell.cargo().arg("fmt").current_dir(guest))?;
    }
    Ok(())
}
