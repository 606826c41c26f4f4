//! A well-behaved neighbour: it talks to others of its group, records, and sleeps, and measures whether it is disturbed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use iptl_sdk::{Error, Result};

const TCP_PORT: u16 = 7000;

/// Where floods of datagrams arrive, at a socket that nobody reads.
pub const UDP_PORT: u16 = 7001;

/// Length of one round.
const ROUND: Duration = Duration::from_millis(20);

/// Longest time for a neighbour to answer.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run() -> Result<()> {
    let env = iptl_sdk::env()?;
    let watch: Duration = env.param("watch")?;
    let listener = TcpListener::bind((env.addr, TCP_PORT))?;
    let _flooded = UdpSocket::bind((env.addr, UDP_PORT))?;

    // Only the good are waited for: the others never signal.
    iptl_sdk::signal_and_wait("good-listening", env.group_size.into())?;
    let next = (env.index + 1) % env.group_size;
    let mut out = TcpStream::connect((format!("{}-{next}", env.group).as_str(), TCP_PORT))?;
    let (mut input, _) = listener.accept()?;
    for stream in [&out, &input] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
    }
    for round in 0..(watch.as_millis() / ROUND.as_millis()) as u32 {
        let asleep = Instant::now();
        std::thread::sleep(ROUND);
        metric("good.lag", asleep.elapsed().saturating_sub(ROUND))?;

        let sent_at = Instant::now();
        out.write_all(&round.to_le_bytes())?;
        let mut asked = [0; 4];
        input.read_exact(&mut asked)?;
        input.write_all(&asked)?;
        let mut answer = [0; 4];
        out.read_exact(&mut answer)?;
        metric("good.rtt", sent_at.elapsed())?;
        if answer != round.to_le_bytes() {
            return Err(Error::Refused(format!("round {round} was answered with {answer:?}")));
        }
    }
    iptl_sdk::artifact("good.txt", b"undisturbed\n")?;
    println!("undisturbed");
    iptl_sdk::signal_and_wait("good-done", env.group_size.into())?;
    Ok(())
}

/// Rests for as long as `watch` says, without a word to anybody but its log.
pub fn rest() -> Result<()> {
    let watch: Duration = iptl_sdk::env()?.param("watch")?;
    println!("began");
    std::thread::sleep(watch);
    println!("rested");
    Ok(())
}

/// Waits for all of its group, of which the first comes only once it has rested for as long as `watch` says.
pub fn gather() -> Result<()> {
    let env = iptl_sdk::env()?;
    let watch: Duration = env.param("watch")?;
    if env.index == 0 {
        std::thread::sleep(watch);
    }
    iptl_sdk::signal_and_wait("gathered", env.group_size.into())?;
    println!("gathered");
    Ok(())
}

/// Waits for all of its group, of which the first goes without a word.
pub fn quit() -> Result<()> {
    let env = iptl_sdk::env()?;
    if env.index > 0 {
        iptl_sdk::signal_and_wait("gathered", env.group_size.into())?;
        println!("gathered");
    }
    Ok(())
}

fn metric(name: &str, time: Duration) -> Result<()> {
    iptl_sdk::metric(name, time.as_secs_f64() * 1e3, "ms")
}
