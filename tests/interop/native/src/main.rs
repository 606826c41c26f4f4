//! Does what the lab's own SDK can do, and fails where anything is not as it says. The same source is a Wasm program.
//!
//! Case `tour`: all that the SDK has. Case `shape`: it has its network shaped; one that cannot be had is refused. Case `stall`: waits for what never comes. Case `quiet`: leaves without waiting for
//! an answer.

use std::time::Duration;

use iptl_sdk::network::{self, Config, Filter, Shape};
use iptl_sdk::{Error, Result, pending, wait_any, wait_any_for};

/// Bytes that are no text, to see that none is lost on the way.
const BYTES: &[u8] = b"\xff\x00 \"{}\n";

fn main() -> Result<()> {
    let env = iptl_sdk::env()?;
    match env.case.as_str() {
        "tour" => tour(&env),
        "shape" => shape(),
        "stall" => iptl_sdk::barrier("never", u64::MAX),
        "quiet" => pending::signal("left").map(drop),
        other => fail(&format!("no case is called {other}")),
    }
}

fn tour(env: &iptl_sdk::Env) -> Result<()> {
    let total = u64::from(env.total);
    iptl_sdk::event("started", [("ordinal", env.ordinal)])?;
    let rounds: u32 = env.param("rounds")?;

    let seq = iptl_sdk::signal_and_wait("ready", total)?;
    check(seq >= 1 && seq <= total, "a number among all")?;
    iptl_sdk::barrier("ready", 1)?;

    let mut topic = iptl_sdk::subscribe("times")?;
    // Others may have published by now.
    let mut first = topic.try_next();
    check(first.is_none() || total > 1, "nothing before anybody published")?;
    for round in 0..rounds {
        iptl_sdk::publish("times", format!("{{\"from\":{},\"round\":{round}}}", env.ordinal).as_bytes())?;
    }
    iptl_sdk::publish("bytes", BYTES)?;
    let mut mine = 0;
    for position in 1..=total * u64::from(rounds) {
        let message = first.take().unwrap_or_else(|| topic.next())?;
        check(message.position == position, "positions without gaps")?;
        let text = String::from_utf8(message.payload).map_err(|e| Error::Refused(e.to_string()))?;
        mine += u32::from(text.starts_with(&format!("{{\"from\":{},", env.ordinal)));
    }
    check(mine == rounds, "its own messages among them")?;
    check(iptl_sdk::subscribe("bytes")?.next()?.payload == BYTES, "bytes as they were")?;

    // Nothing comes in time; then something does.
    let never = pending::barrier("never", total + 1)?;
    check(wait_any_for(&[&never, &topic], Duration::from_millis(20)).is_empty(), "nothing in time")?;
    let signal = pending::signal("two")?;
    check(wait_any(&[&never, &signal]) == [1], "the signal and not the barrier")?;
    drop(never);
    let mut signal = signal;
    check(signal.try_take().is_some_and(|n| n.is_ok_and(|n| n >= 1)), "the number of the signal")?;
    check(signal.wait().is_err(), "an answer is taken once")?;

    for refused in [
        iptl_sdk::signal("").map(drop),
        iptl_sdk::publish("large", &vec![0; 300 << 10]).map(drop),
        iptl_sdk::metric("bad", f64::NAN, ""),
        iptl_sdk::artifact("../outside", b"x"),
    ] {
        check(matches!(refused, Err(Error::Refused(_))), "refused with a reason")?;
    }

    iptl_sdk::metric("tour.rounds", f64::from(rounds), "rounds")?;
    iptl_sdk::artifact("notes/tour.txt", b"first\n")?;
    iptl_sdk::artifact("notes/tour.txt", b"second\n")?;
    iptl_sdk::event("done", ())?;
    println!("done");
    Ok(())
}

fn shape() -> Result<()> {
    let slow =
        Shape { latency: Duration::from_millis(50), jitter: Duration::from_micros(1), loss_ppm: 1, ..Shape::default() };
    let none = Shape { filter: Filter::Drop, bandwidth_bps: 1_000_000, ..Shape::default() };
    let config = Config { shape: slow, rules: vec![("10.9.0.0/16".to_owned(), none)], ..Config::default() };
    network::configure(&config)?;
    let refused = network::configure(&Config { rules: vec![("nowhere".to_owned(), slow)], ..config });
    check(matches!(&refused, Err(Error::Refused(reason)) if reason.contains("no subnet")), "no rule for nowhere")?;
    network::configure(&Config { enabled: false, ..Config::default() })
}

fn check(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { fail(what) }
}

fn fail(what: &str) -> Result<()> {
    Err(Error::Refused(format!("expected {what}")))
}
