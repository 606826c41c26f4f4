//! From a text that a person wrote to verified blocks: names, CIDs and paths; fetching with what it waits for.

use std::ops::Range;
use std::time::{Duration, Instant};

use iptl_dag::path::{PathError, Resolve, Step, Target};
use iptl_dag::{Block, Cid};
use iptl_node::rate::Rate;
use iptl_wire::control::{FetchReport, Reply, Request};
use serde_json::{Value, json};

use crate::client::{Client, unexpected};
use crate::context::{Context, millis};
use crate::exit::{Error, Exit, Result};
use crate::progress;
use crate::ui;

/// Nobody waits for longer than this without a word.
const FIRST_LINE: Duration = Duration::from_millis(800);

/// Between two lines about a fetch where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Whom to ask and for how long.
#[derive(clap::Args, Clone)]
pub struct Sources {
    /// Ask this peer first, no lab needed; may be repeated
    #[arg(long, value_name = "MULTIADDR")]
    pub peer: Vec<String>,
    /// Give up after so long without anybody who has it
    #[arg(long, default_value = "30s", value_parser = ui::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources { peer: Vec::new(), timeout: Duration::from_secs(30) }
    }
}

/// Where a text leads.
pub struct Located {
    /// The CID that it starts at.
    pub root: Cid,
    /// Path below it.
    pub path: String,
    /// What is there.
    pub target: Target,
}

impl Located {
    /// Returns the block that it leads to; a value inside a block has none of its own.
    pub fn block_cid(&self) -> Result<Cid> {
        match &self.target {
            Target::Block { cid } => Ok(*cid),
            Target::Value { .. } => Err(Error::usage(
                "path.value",
                format!("{}/{} is a value inside a block", self.root, self.path),
                "see it with `iptl dag get`",
            )),
        }
    }

    /// Returns the last name of the path, or the CID.
    pub fn name(&self) -> String {
        self.path.rsplit('/').next().filter(|s| !s.is_empty()).map_or_else(|| self.root.to_string(), str::to_owned)
    }
}

/// Finds what `CID/path`, `alias/path` or `last/path` means; fetches the blocks on the way.
pub async fn locate(ctx: &Context, client: &Client, text: &str, sources: &Sources) -> Result<Located> {
    let text = text.strip_prefix("/ipfs/").or_else(|| text.strip_prefix("ipfs://")).unwrap_or(text);
    let (head, path) = text.split_once('/').unwrap_or((text, ""));
    let root = resolve_name(client, head).await?;
    let mut resolve = Resolve::new(root, path).map_err(path_error)?;
    loop {
        let cid = match resolve.step() {
            Step::Found(target) => {
                return Ok(Located { root, path: path.trim_matches('/').to_owned(), target: target.clone() });
            }
            Step::Need(cid) => *cid,
        };
        let block = block(ctx, client, &cid, sources).await?;
        resolve.supply(&block).map_err(path_error)?;
    }
}

fn path_error(error: PathError) -> Error {
    Error::new(Exit::NotFound, "path.not-found", error, "list what there is with `iptl dag tree CID`")
}

/// Finds the CID behind a CID or a name.
pub async fn resolve_name(client: &Client, name: &str) -> Result<Cid> {
    if let Ok(cid) = name.parse::<Cid>() {
        return Ok(cid);
    }
    // Names are short; what is long is a CID with a slip in it.
    if name.len() > 40 || name.is_empty() {
        return Err(Error::usage(
            "cid.garbled",
            format!("`{name}` is no CID"),
            "copy it again: CIDs start with bafy, bafk, bafyr or Qm",
        ));
    }
    match client.call_one(Request::Resolve { name: name.to_owned() }).await? {
        Reply::Resolved { cid } => Ok(cid),
        other => Err(unexpected(&format!("{other:?}"))),
    }
}

/// Returns one block, from the node's store or from whoever has it.
pub async fn block(ctx: &Context, client: &Client, cid: &Cid, sources: &Sources) -> Result<Block> {
    match stored(client, cid).await {
        Ok(block) => return Ok(block),
        Err(error) if error.exit == Exit::NotFound => {}
        Err(error) => return Err(error),
    }
    fetch(ctx, client, *cid, sources, true).await?;
    stored(client, cid).await
}

/// Returns a block that the node has.
pub async fn stored(client: &Client, cid: &Cid) -> Result<Block> {
    match client.call_one(Request::Blocks { cids: vec![*cid] }).await? {
        Reply::Block { data, .. } => Block::verify(*cid, data).map_err(|e| unexpected(&e.to_string())),
        other => Err(unexpected(&format!("{other:?}"))),
    }
}

/// Has the node fetch a block, or all that it reaches, and shows how far that is.
pub async fn fetch(ctx: &Context, client: &Client, root: Cid, sources: &Sources, shallow: bool) -> Result<FetchReport> {
    let request = Request::Fetch { root, peers: sources.peer.clone(), timeout_ms: millis(sources.timeout), shallow };
    follow(ctx, client, root, request).await
}

/// Has the node fetch what holds some bytes of a file, and shows how far that is.
pub async fn fetch_range(
    ctx: &Context,
    client: &Client,
    root: Cid,
    range: Range<u64>,
    sources: &Sources,
) -> Result<FetchReport> {
    let (peers, timeout_ms) = (sources.peer.clone(), millis(sources.timeout));
    follow(ctx, client, root, Request::FetchRange { root, range, peers, timeout_ms }).await
}

async fn follow(ctx: &Context, client: &Client, root: Cid, request: Request) -> Result<FetchReport> {
    let mut replies = client.call(request).await?.into_channel();
    let bar = ctx.progress.then(bar);
    let started = Instant::now();
    let mut next_line = started + FIRST_LINE;
    let mut announced = false;
    let mut waiting = String::new();
    let mut rate = Rate::new(started);
    let report = loop {
        let reply = tokio::select! {
            reply = replies.recv() => reply,
            () = tokio::time::sleep(FIRST_LINE), if !announced && bar.is_none() => {
                announced = true;
                ctx.say(format!("… looking for {}", ui::short(&root)));
                continue;
            }
            _ = tokio::signal::ctrl_c() => {
                ctx.say("stopped; what is here stays, and the same command goes on from there");
                return Err(Error::new(Exit::Interrupted, "interrupted", "interrupted", ""));
            }
        };
        match reply.transpose()? {
            Some(Reply::Progress(progress)) => {
                let rate = rate.at(Instant::now(), progress.bytes_fetched);
                if let Some(bar) = &bar {
                    bar.set_length(progress.wanted.max(progress.blocks));
                    bar.set_position(progress.blocks);
                    bar.set_message(progress::fetching(&progress, rate, true));
                } else if progress.waiting != waiting || Instant::now() >= next_line {
                    waiting.clone_from(&progress.waiting);
                    next_line = Instant::now() + LINE_EVERY;
                    announced = true;
                    ctx.say(format!("… {}", progress::fetching(&progress, rate, false)));
                }
            }
            Some(Reply::Note { text }) => ctx.say(format!("… {text}")),
            Some(Reply::Fetched(report)) => break report,
            Some(other) => return Err(unexpected(&format!("{other:?}"))),
            None => return Err(unexpected("the end of a fetch without a report")),
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    for (peer, reason) in &report.dropped {
        ctx.say(format!("  dropped {}: {reason}", peer.short()));
    }
    tracing::debug!(%root, took_ms = millis(started.elapsed()), "fetched");
    Ok(report)
}

fn bar() -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("  {spinner} {bar:30} {pos}/{len} blocks  {msg}")
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    let bar = indicatif::ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Returns what a fetch did as fields of a JSON object.
pub fn report_json(report: &FetchReport) -> serde_json::Map<String, Value> {
    let providers: Vec<Value> =
        report.providers.iter().map(|(peer, bytes)| json!({"peer": peer.to_string(), "bytes": bytes})).collect();
    let dropped: Vec<Value> =
        report.dropped.iter().map(|(peer, why)| json!({"peer": peer.to_string(), "reason": why})).collect();
    let body = json!({
        "blocks": report.blocks, "bytes": report.bytes, "bytes_fetched": report.bytes_fetched,
        "providers": providers, "dropped": dropped,
    });
    match body {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

/// Says where bytes came from: `   (from 12D3…fQ9a 71 %, 12D3…a1b2 29 %)`.
pub fn shares(report: &FetchReport) -> String {
    let total: u64 = report.providers.iter().map(|(_, bytes)| bytes).sum();
    if total == 0 {
        return "   (all of it was here)".to_owned();
    }
    let parts: Vec<String> = report
        .providers
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(peer, bytes)| format!("{} {} %", peer.short(), bytes * 100 / total))
        .collect();
    format!("   (from {})", parts.join(", "))
}
