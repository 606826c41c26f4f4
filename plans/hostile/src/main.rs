//! Instances that misbehave, and neighbours that must not notice.
//!
//! The first argument says what an instance does: `good` or `rest` ([`good`]), or one of [`BEHAVIOURS`].

mod good;

use std::hint::black_box;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, ToSocketAddrs, UdpSocket};
use std::process::{Command, ExitCode};
use std::time::Duration;

use iptl_sdk::{Error, Result};

/// Something to do until the lab ends it.
type Behaviour = fn() -> Result<()>;

/// What a bad instance can do. None of these succeeds where the lab does its work.
const BEHAVIOURS: &[(&str, Behaviour)] = &[
    ("loop", endless_loop),
    ("memory", memory),
    ("stdout", stdout),
    ("recursion", recursion),
    ("trap", trap),
    ("exit", exit),
    ("sockets", sockets),
    ("sleep", sleep),
    ("artifacts", artifacts),
    ("records", records),
    ("packets", packets),
    ("topics", topics),
    ("fork-bomb", fork_bomb),
];

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let behave = match BEHAVIOURS.iter().find(|(name, _)| *name == wanted) {
        Some((_, behave)) => *behave,
        None if wanted == "good" => good::run,
        None if wanted == "rest" => good::rest,
        None if wanted == "gather" => good::gather,
        None if wanted == "quit" => good::quit,
        None => {
            eprintln!("no behaviour `{wanted}`");
            return ExitCode::from(2);
        }
    };
    match behave() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Never ends and never asks the host for anything.
fn endless_loop() -> Result<()> {
    let mut n = 0u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

/// Takes memory and uses it.
fn memory() -> Result<()> {
    let mut all = Vec::new();
    loop {
        all.push(vec![black_box(1u8); 1 << 20]);
        black_box(&all);
    }
}

/// Writes lines as fast as it can.
fn stdout() -> Result<()> {
    let line = "x".repeat(1000);
    loop {
        println!("{line}");
    }
}

/// Calls itself until there is no stack.
fn recursion() -> Result<()> {
    #[inline(never)]
    fn deeper(n: u64) -> u64 {
        let frame = black_box([n; 16]);
        if n == u64::MAX { 0 } else { deeper(n + 1) + black_box(frame)[0] }
    }
    black_box(deeper(0));
    Ok(())
}

/// Breaks as a program with a bug does.
fn trap() -> Result<()> {
    panic!("this instance breaks on purpose");
}

/// Ends by itself with a status of its own.
fn exit() -> Result<()> {
    std::process::exit(42);
}

/// Opens sockets and keeps them.
fn sockets() -> Result<()> {
    let mut all = Vec::new();
    loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)) {
            Ok(socket) => all.push(socket),
            Err(error) => return Err(Error::Refused(format!("{} sockets are open: {error}", all.len()))),
        }
    }
}

/// Does nothing for ever.
fn sleep() -> Result<()> {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Writes artifacts as fast as it can.
fn artifacts() -> Result<()> {
    let chunk = vec![0u8; 64 << 10];
    for n in 0u64.. {
        iptl_sdk::artifact(&format!("flood/{}", n % 100), &chunk)?;
    }
    Ok(())
}

/// Records events and values as fast as it can.
fn records() -> Result<()> {
    let text = "x".repeat(1000);
    loop {
        iptl_sdk::event("flood", [("text", text.as_str())])?;
        iptl_sdk::metric("flood", 1.0, "ms")?;
    }
}

/// Sends datagrams to every instance as fast as it can.
fn packets() -> Result<()> {
    let env = iptl_sdk::env()?;
    let socket = UdpSocket::bind((env.addr, 0))?;
    let others: Vec<_> =
        env.instances().filter_map(|peer| (peer.host(), good::UDP_PORT).to_socket_addrs().ok()?.next()).collect();
    let datagram = [0u8; 1200];
    loop {
        for other in &others {
            // Full queues are no reason to stop.
            let _ = socket.send_to(&datagram, other);
        }
    }
}

/// Publishes on ever more topics, and never waits for an answer.
fn topics() -> Result<()> {
    let payload = vec![0u8; 16 << 10];
    let mut calls = Vec::new();
    for n in 0u64.. {
        calls.push(iptl_sdk::pending::publish(&format!("flood-{n}"), &payload)?);
        if let Some(Err(error)) = calls.last_mut().and_then(iptl_sdk::Pending::try_take) {
            return Err(error);
        }
    }
    Ok(())
}

/// Starts itself again and again, as everything that it starts does. For containers: a component has no processes.
fn fork_bomb() -> Result<()> {
    let program = std::env::current_exe().map_err(|error| Error::Refused(error.to_string()))?;
    loop {
        // Where there is no room for another one, it is tried again.
        if let Err(error) = Command::new(&program).arg("fork-bomb").spawn()
            && error.kind() == ErrorKind::Unsupported
        {
            return Err(Error::Refused(error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_has_a_case_and_a_group_of_its_name() {
        let plan = include_str!("../plan.toml");
        for (name, _) in BEHAVIOURS {
            assert!(plan.contains(&format!("[cases.{name}.groups.bad]")), "{name} has no case");
            assert!(plan.contains(&format!("args = [\"{name}\"]")), "{name} is not run");
        }
    }
}
