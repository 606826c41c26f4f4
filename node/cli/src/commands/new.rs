//! `iptl new`: a folder with a plan that builds and runs at once.

use std::path::PathBuf;

use iptl_plans::ScaffoldError;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Error, Exit, Result};

/// Makes a folder with a plan; the SDK's source is in it, so that it builds years from now.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  iptl new my-plan && iptl run ./my-plan --local\n  iptl new lab-tests/first")]
pub struct Args {
    /// Folder to make; its last part is the name of the plan
    path: PathBuf,
}

pub fn run(ctx: &Context, args: Args) -> Result {
    let name = args.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let files = iptl_plans::scaffold(&name).map_err(|e| {
        let ScaffoldError::BadName { nearest, .. } = &e;
        Error::usage("new.name", &e, format!("for example:  iptl new {}", args.path.with_file_name(nearest).display()))
    })?;
    if args.path.exists() {
        return Err(Error::usage(
            "new.exists",
            format!("{} exists already", args.path.display()),
            "choose another name; nothing was changed",
        ));
    }
    for (path, text) in files {
        let path = args.path.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)?;
    }
    if ctx.json {
        ctx.answer_json("new", json!({"path": args.path.display().to_string(), "name": name}));
    } else {
        ctx.answer(args.path.display());
        ctx.next(format!("iptl run ./{} --local    (no lab needed)", args.path.display()));
    }
    Ok(Exit::Ok)
}
