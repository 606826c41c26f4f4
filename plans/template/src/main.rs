//! Each instance greets the next one over TCP and measures how long the answer takes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;

fn main() -> iptl_sdk::Result<()> {
    let env = iptl_sdk::env()?;
    let rounds: u32 = env.param("rounds")?;
    println!("{} {} of {} at {}", env.group, env.index, env.group_size, env.addr);

    // Nobody greets before all listen.
    let listener = TcpListener::bind((env.addr, PORT))?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;

    // A connection is made by the lab network, so this does not wait for the other's `accept`.
    let next = (env.index + 1) % env.group_size;
    let mut out = TcpStream::connect((format!("{}-{next}", env.group).as_str(), PORT))?;
    let (mut input, _) = listener.accept()?;
    input.set_read_timeout(Some(Duration::from_secs(30)))?;
    out.set_read_timeout(Some(Duration::from_secs(30)))?;

    // In step: all send, all answer what they got, all read their answer.
    for round in 0..rounds {
        let sent_at = Instant::now();
        out.write_all(b"hello")?;
        let mut greeting = [0; 5];
        input.read_exact(&mut greeting)?;
        input.write_all(&greeting)?;
        let mut answer = [0; 5];
        out.read_exact(&mut answer)?;
        iptl_sdk::metric("greeting.rtt", sent_at.elapsed().as_secs_f64() * 1e3, "ms")?;
        iptl_sdk::event("greeted", [("round", round), ("next", next)])?;
    }

    // Nobody leaves while others still talk.
    iptl_sdk::signal_and_wait("done", env.total.into())?;
    Ok(())
}
