//! `iptl logs`: output of instances, from a live execution or out of a result.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use iptl_dag::model::InstanceId;
use iptl_wire::control::{Event, Reply, Request};
use iptl_wire::session::OutputLine;
use serde_json::json;

use crate::client::{Client, unexpected};
use crate::context::Context;
use crate::exit::{Error, Exit, Result};
use crate::narrative::{AWAY_LIMIT, AWAY_PAUSE, is_away};
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
    let mut of = Target { execution, group, index, follow: args.follow, lives: None };
    let mut shown = Shown { ctx, grep: args.grep, seen: BTreeMap::new(), pass: BTreeMap::new() };
    let reading = async {
        let mut gone_at = None;
        loop {
            let error = match shown.read_to_the_end(&client, &mut of, &mut gone_at).await {
                Ok(()) => return Ok(Exit::Ok),
                Err(error) => error,
            };
            if !args.follow || client.is_temporary() || !is_away(&error) {
                return Err(error);
            }
            let since = *gone_at.get_or_insert_with(|| {
                ctx.say(format!("… the node went away; attaching again for up to {} s", AWAY_LIMIT.as_secs()));
                Instant::now()
            });
            if since.elapsed() >= AWAY_LIMIT {
                return Err(error);
            }
            tokio::time::sleep(AWAY_PAUSE).await;
        }
    };
    tokio::select! {
        exit = reading => exit,
        _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
    }
}

/// Whose output is shown.
struct Target {
    execution: String,
    group: Option<String>,
    index: Option<u32>,
    follow: bool,
    /// Whether it was not over when it was first asked for; unknown before that.
    lives: Option<bool>,
}

impl Target {
    fn request(&self) -> Request {
        let Target { execution, group, index, follow, lives: _ } = self;
        Request::Logs { execution: execution.clone(), group: group.clone(), index: *index, follow: *follow }
    }

    /// Finds out which execution is meant, and whether it is over: `last` may be another one later.
    async fn find(&mut self, client: &Client) -> Result<()> {
        let first = client.call(Request::Watch { execution: self.execution.clone() }).await?.next().await?;
        self.lives = Some(match first {
            Some(Reply::Event(Event::Finished { execution, .. })) => {
                self.execution = execution.to_string();
                false
            }
            Some(Reply::Event(Event::Failed { .. })) => false,
            Some(Reply::Event(Event::Submitted { execution, .. })) => {
                self.execution = execution.to_string();
                true
            }
            _ => true,
        });
        Ok(())
    }
}

/// What was shown, so that nothing is shown twice: whoever attaches again hears some of it again.
struct Shown<'a> {
    ctx: &'a Context,
    grep: Option<String>,
    /// How often each line was shown, by the hash of all that it says: two lines may be equal.
    seen: BTreeMap<u64, u32>,
    /// What came of each instance since it was told from the beginning, which is so after each attaching, and where a
    /// lablet comes back: the time of the last line, and how often each came.
    pass: BTreeMap<InstanceId, (u64, BTreeMap<u64, u32>)>,
}

impl Shown<'_> {
    /// Shows what there is; where it is followed, all of it. Whoever comes late, falls behind or was away has not heard
    /// everything: what is missing stands in the result.
    async fn read_to_the_end(&mut self, client: &Client, of: &mut Target, gone_at: &mut Option<Instant>) -> Result<()> {
        if of.follow && of.lives.is_none() {
            of.find(client).await?;
        }
        self.read(client, &of.request(), gone_at).await?;
        if of.lives == Some(true) {
            self.read(client, &of.request(), gone_at).await?;
        }
        Ok(())
    }

    /// Shows the lines of one answer to its end. Once one came, the node is there again.
    async fn read(&mut self, client: &Client, request: &Request, gone_at: &mut Option<Instant>) -> Result<()> {
        self.pass.clear();
        let mut replies = client.call(request.clone()).await?;
        while let Some(reply) = replies.next().await? {
            if let Some(since) = gone_at.take() {
                self.ctx.say(format!("… attached again after {} s", since.elapsed().as_secs()));
            }
            match reply {
                Reply::Output(line) => self.show(line),
                Reply::Note { text } => self.ctx.say(format!("… {text}")),
                other => return Err(unexpected(&format!("{other:?}"))),
            }
        }
        Ok(())
    }

    fn show(&mut self, line: OutputLine) {
        let mut hasher = DefaultHasher::new();
        (&line.instance.group, line.instance.index, &line.stream, line.at_us, &line.line).hash(&mut hasher);
        let hash = hasher.finish();
        let (last_us, pass) = self.pass.entry(line.instance.clone()).or_default();
        if line.at_us < std::mem::replace(last_us, line.at_us) {
            pass.clear();
        }
        let times = pass.entry(hash).or_default();
        *times += 1;
        let seen = self.seen.entry(hash).or_default();
        if *times <= *seen {
            return;
        }
        *seen = *times;
        if self.grep.as_ref().is_some_and(|text| !line.line.contains(text.as_str())) {
            return;
        }
        if self.ctx.json {
            self.ctx.answer_json(
                "output",
                json!({
                    "group": line.instance.group, "index": line.instance.index, "stream": line.stream,
                    "t_us": line.at_us, "line": line.line,
                }),
            );
        } else {
            let stamp = format!("{}.{:03}", crate::ui::clock(line.at_us / 1000), line.at_us / 1000 % 1000);
            self.ctx.answer(format!("{stamp}  {:<12}  {}", line.instance.to_string(), line.line));
        }
    }
}
