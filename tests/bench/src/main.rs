//! The benchmarks: each figure beside what bounds it, measured in the same run on the same machine.
//!
//! One file per measure: [`run`], [`park`], [`transfer`], [`memory`], [`cars`], [`blocks`], [`exchange`], [`feed`], [`sync`], [`stream`],
//! [`idle`], [`containers`], [`images`], [`network`], [`orchestrator`] with [`crowd`]. Labs are real processes of the program `iptl` beside this
//! one ([`lab`]); what they are held against is measured by [`mod@reference`] in this process, and by the bare engine in one of its own ([`bare`]).
//! [`report`] writes the table.

#![allow(unreachable_pub, reason = "a binary has no outside; `pub` here says what a module means for its siblings")]

mod bare;
mod blocks;
mod cars;
mod containers;
mod crowd;
mod engine;
mod exchange;
mod feed;
mod idle;
mod images;
mod lab;
mod memory;
mod native;
mod network;
mod orchestrator;
mod park;
mod process;
mod reference;
mod report;
mod run;
mod stream;
mod sync;
mod transfer;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::report::{Report, Row};

/// Measures the lab and writes a table of what came of it.
#[derive(Parser)]
#[command(name = "iptl-bench", max_term_width = 110)]
struct Cli {
    /// Only these measures
    #[arg(value_enum)]
    measures: Vec<Measure>,
    /// Bytes of the file that is imported and of the one that is fetched, in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    file: u64,
    /// Bytes that move, or go through a CAR, while memory is looked at, in MiB; the disk has to hold them twice
    #[arg(long, default_value_t = 10 << 10, value_name = "MIB")]
    moved: u64,
    /// Warm runs of the trivial plan
    #[arg(long, default_value_t = 50)]
    runs: u32,
    /// Instances that are parked
    #[arg(long, default_value_t = 10_000)]
    parked: u32,
    /// Where the table goes; nowhere where only some measures are taken
    #[arg(long)]
    out: Option<PathBuf>,
    /// What the page says about how this run differs from others
    #[arg(long, default_value = "")]
    note: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Measure {
    /// A trivial run of three instances, and the idle lab after it
    Run,
    /// Many parked instances
    Park,
    /// The store on disk: importing, reading, opening
    Blocks,
    /// A file from another node's store
    Transfer,
    /// Memory of two nodes while much moves between them
    Memory,
    /// Memory of a command while large CARs are written and read
    Cars,
    /// Many small blocks, between our nodes and with boxo; second versions
    Exchange,
    /// Large artifacts that many lablets want at once
    Feed,
    /// Barriers and topics
    Sync,
    /// TCP between instances
    Stream,
    /// Containers: many, idle, at barriers, talkative
    Containers,
    /// Containers of a lablet that may not make devices
    Unprivileged,
    /// Images of containers: read, rebuilt, moved
    Images,
    /// The lab network of containers beside the kernel's own
    Network,
    /// The orchestrator: many executions, its death, long logs, many lablets
    Orchestrator,
    /// Of these, its death and who takes over
    Takeover,
    /// Of these, a large placement
    Placing,
    /// Of these, the cores of many lablets in one thread
    Crowd,
}

fn main() -> Result<()> {
    // Two providers are in the tree: without a choice, the first TLS configuration panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The bare engine runs without the threads of a runtime, and in a process whose memory is its own.
    if std::env::args().nth(1).as_deref() == Some(bare::VERB) {
        return bare::child(std::env::args().skip(2).collect());
    }
    // So is that of a placement.
    if std::env::args().nth(1).as_deref() == Some(orchestrator::placing::VERB) {
        return orchestrator::placing::child(&std::env::args().skip(2).collect::<Vec<_>>());
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(cli))
}

async fn measure(cli: Cli) -> Result<()> {
    let all = [
        Measure::Run,
        Measure::Park,
        Measure::Blocks,
        Measure::Transfer,
        Measure::Memory,
        Measure::Cars,
        Measure::Exchange,
        Measure::Feed,
        Measure::Sync,
        Measure::Stream,
        Measure::Containers,
        Measure::Unprivileged,
        Measure::Images,
        Measure::Network,
        Measure::Orchestrator,
    ];
    let wanted = if cli.measures.is_empty() { all.to_vec() } else { cli.measures.clone() };
    let out = match cli.out {
        Some(out) => Some(out),
        None => cli.measures.is_empty().then(|| lab::repository().join("docs/BENCHMARKS.md")),
    };
    let guest = lab::build_guest()?;
    let mut report = Report::begin();
    let mut failed = Vec::new();
    for measure in wanted {
        let measured = match measure {
            Measure::Run => run::measure(&guest, cli.runs).await,
            Measure::Park => park::measure(&guest, cli.parked).await,
            Measure::Blocks => blocks::measure(cli.file << 20).await,
            Measure::Transfer => transfer::measure(cli.file << 20).await,
            Measure::Memory => memory::measure(cli.moved << 20).await,
            Measure::Cars => cars::measure(cli.moved << 20).await,
            Measure::Exchange => exchange::measure().await,
            Measure::Feed => feed::measure(&guest),
            Measure::Sync => sync::measure(&guest).await,
            Measure::Stream => stream::measure(&guest).await,
            Measure::Containers => containers::measure(&guest, &mut report).await.map(|()| Vec::new()),
            Measure::Unprivileged => containers::measure_unprivileged(&guest).await,
            Measure::Images => images::measure(&guest, &mut report).await.map(|()| Vec::new()),
            Measure::Network => network::measure().await,
            Measure::Orchestrator => orchestrator::measure(&guest).await,
            Measure::Takeover => orchestrator::takeover::measure(&guest).await.map(|row| vec![row]),
            Measure::Placing => orchestrator::placing::measure(),
            Measure::Crowd => crowd::measure(),
        };
        match measured {
            Ok(rows) => rows.into_iter().for_each(|row: Row| report.add(row)),
            Err(error) => {
                eprintln!("  not measured: {error:#}");
                failed.push(format!("{error:#}"));
            }
        }
        // After each, so that what was measured is not lost with what comes next.
        if let Some(out) = &out {
            std::fs::write(out, report.text(&cli.note))?;
        }
    }
    println!("\n{}", report.text(&cli.note));
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(())
}
