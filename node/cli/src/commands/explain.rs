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
