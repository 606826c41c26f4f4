//! `iptl` alone: a short status and what to do next, not a wall of help.

use crate::client::Client;
use crate::commands::status;
use crate::context::Context;
use crate::exit::{Exit, Result};

pub async fn run(ctx: &Context) -> Result {
    let home = ctx.home();
    let status = match Client::connect(&home).await {
        Some(client) => Some(status::ask(&client).await?),
        None => None,
    };
    if ctx.json {
        let body = status.as_ref().map_or(serde_json::json!({"running": false}), status::to_json);
        ctx.answer_json("status", body);
        return Ok(Exit::Ok);
    }
    ctx.answer(format!("iptl {}    home {}", env!("CARGO_PKG_VERSION"), home.display()));
    let next: [&str; 3] = match &status {
        None => {
            ctx.answer("node    not running");
            [
                "iptl dev up            a whole lab on this computer",
                "iptl new my-plan       a plan that runs at once",
                "iptl join TICKET       lend this machine to a lab",
            ]
        }
        Some(status) => {
            for line in status::lines(status).into_iter().take(4) {
                ctx.answer(line);
            }
            [
                "iptl run ./my-plan     run a plan",
                "iptl ls runs           what ran",
                "iptl --help            everything else",
            ]
        }
    };
    ctx.say("next:");
    for line in next {
        ctx.say(format!("  {line}"));
    }
    Ok(Exit::Ok)
}
