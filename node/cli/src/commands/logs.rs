//! `iptl logs`: output of instances, from a live execution or out of a result.

use iptl_wire::control::{Reply, Request};
use serde_json::json;

use crate::client::unexpected;
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::node;

/// Prints the output of instances.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl logs last\n  iptl logs x-7k3pq/peers/3 -f")]
pub struct Args {
    /// Execution, or `execution/group`, or `execution/group/index`
    #[arg(default_value = "last")]
    target: String,
    /// Go on until the execution ends
    #[arg(short, long)]
    follow: bool,
    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
}

pub async fn run(ctx: &Context, args: Args) -> Result {
    let mut parts = args.target.splitn(3, '/');
    let execution = parts.next().unwrap_or("last").to_owned();
    let group = parts.next().map(str::to_owned);
    let index = parts
        .next()
        .map(|text| {
            text.parse::<u32>().map_err(|_| {
                Error::usage(
                    "logs.index",
                    format!("`{text}` is not the index of an instance"),
                    "write execution/group/index, as in `iptl logs last/peers/3`",
                )
            })
        })
        .transpose()?;
    let client = node::reach(ctx).await?;
    let request = Request::Logs { execution, group, index, follow: args.follow };
    let mut replies = client.call(request).await?;
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply?,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        match reply {
            None => return Ok(Exit::Ok),
            Some(Reply::Output(line)) => {
                if args.grep.as_ref().is_some_and(|text| !line.line.contains(text.as_str())) {
                    continue;
                }
                if ctx.json {
                    ctx.answer_json(
                        "output",
                        json!({
                            "group": line.instance.group, "index": line.instance.index, "stream": line.stream,
                            "t_us": line.at_us, "line": line.line,
                        }),
                    );
                } else {
                    let stamp = format!("{}.{:03}", crate::ui::clock(line.at_us / 1000), line.at_us / 1000 % 1000);
                    ctx.answer(format!("{stamp}  {:<12}  {}", line.instance.to_string(), line.line));
                }
            }
            Some(Reply::Note { text }) => ctx.say(format!("… {text}")),
            Some(other) => return Err(unexpected(&format!("{other:?}"))),
        }
    }
}
