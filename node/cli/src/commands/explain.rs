//! `iptl explain`: the long form of an error code.

use serde_json::json;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};

/// Explains an error code.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl explain E0203\n  iptl explain fetch.no-provider")]
pub struct Args {
    /// Code, as errors show it
    code: String,
}

/// Codes of the command line and the control API, with what they mean and what to do.
const CODES: &[(&str, &str)] = &[
    (
        "node.not-running",
        "The command needs a running node and none answers on the socket of the home.\n\
         Start one with `iptl up`, or name the home of one that runs with --home or IPTL_HOME.",
    ),
    (
        "node.gone",
        "The node closed the connection in the middle of an answer: it stopped or broke.\n\
         Its log is in the directory `log` of its home. Starting it again goes on where it was.",
    ),
    (
        "fetch.no-provider",
        "Nobody who was asked has the content. Who holds it may be offline, or not be known here.\n\
         Name a peer that has it with --peer MULTIADDR, or wait longer with --timeout.",
    ),
    (
        "build.failed",
        "The build command of a workload ended with an error; its output stands above the message.\n\
         Run the command by hand in the folder of the plan. `iptl doctor` checks the toolchain.",
    ),
    (
        "workload.not-component",
        "The file that a workload names is not a WebAssembly component: the lab runs WASI 0.2 commands.\n\
         Build with `cargo build --target wasm32-wasip2`; a core module has to be made a component first.",
    ),
    (
        "execution.over",
        "The execution has ended, so there is nothing to see of it live. Its result holds what each instance used second\n\
         by second (`samples` of a receipt), and `iptl show` sums it up.",
    ),
    (
        "exec.not-allowed",
        "Commands are executed in a container only where three people agree: the plan's author set `exec = true` in the\n\
         group's `container` section, the owner of the machine set `exec = true` under `[docker]` in its node.toml, and\n\
         it was you who submitted the run, or you own the lab. The message says which of them is missing.",
    ),
    (
        "exec.no-instance",
        "The run has no such group, or fewer instances in it. Instances are written `execution/group/index`, with\n\
         indexes from zero: `iptl exec last/peers/0 -- sh`.",
    ),
    (
        "exec.not-running",
        "The instance has not started yet, or has ended; a container ends with its program.\n\
         `iptl ls runs` says what runs. What it wrote is in `iptl logs`, what it left in the result.",
    ),
    (
        "exec.unsupported",
        "Only containers have processes beside which a command can run. An instance of a component (`runner = \"wasm\"`)\n\
         is a part of a process of the lab: look at its output with `iptl logs`, at its use with `iptl top`.",
    ),
    (
        "exec.failed",
        "The container engine did not start the command; the message has its words. Most images hold few programs: one\n\
         without a shell has no `sh`. A program that is not there may also show as status 126 or 127.",
    ),
    (
        "exec.unreachable",
        "The lablet that runs the instance has no connection to the lab just now. It is never dialled: it comes back by\n\
         itself while its lease holds, and the instance runs on meanwhile.",
    ),
    (
        "exec.lost",
        "The connection ended before the command did. The lablet ends a command that nobody attends; its receipt says\n\
         that it was executed, and its status where that is known.",
    ),
    (
        "exec.too-many",
        "A lablet runs 32 commands at a time, and its part of a run takes 128 in all: each stands in a receipt.",
    ),
    (
        "exec.command",
        "There is no command, or it is longer than 4 KiB: it stands in the receipt of the instance. Longer text can be\n\
         given on standard input: `iptl exec last/peers/0 -- sh < script.sh`.",
    ),
    ("exec.target", "An instance is written `execution/group/index`: `last/peers/3`, `x-7k3pq/peers/3`."),
    ("plan.invalid", "The plan file has mistakes; each was shown with its place, code and remedy."),
    (
        "cid.garbled",
        "The text is neither a CID nor a name that the lab knows. CIDs start with `bafy`, `bafk`, `bafyr` or `Qm`;\n\
         names are aliases such as `x-7k3pq`, and `last`.",
    ),
];

pub fn run(ctx: &Context, args: Args) -> Result {
    let code = args.code.trim().trim_start_matches("iptl::plan::");
    let own = CODES.iter().find(|(known, _)| *known == code).map(|(_, text)| *text);
    let Some(text) = own.or_else(|| iptl_plans::explain(code)) else {
        return Err(Error::usage(
            "explain.unknown",
            format!("no error has the code `{code}`"),
            "codes look like E0203 or fetch.no-provider",
        ));
    };
    if ctx.json {
        ctx.answer_json("explanation", json!({"code": code, "text": text}));
    } else {
        ctx.answer(format!("{code}\n\n{text}"));
    }
    Ok(Exit::Ok)
}
