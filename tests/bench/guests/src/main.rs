//! The guest of the benchmarks: does what its case says and tells what it measured.
//!
//! Without a lab around it, it parks or ends as its first argument says: that is how the bare engine runs it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use iptl_sdk::{Env, Result};

const PORT: u16 = 7000;

/// Bytes of one write, and of one read.
const CHUNK: usize = 64 << 10;

/// Bytes of a small message.
const SMALL: usize = 64;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("bare-park") => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        Some("bare-end") => return Ok(()),
        Some("bare-flood") => {
            let bytes = std::env::args().nth(2).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
            eprintln!("{}", flood(bytes)?);
            return Ok(());
        }
        _ => {}
    }
    let env = iptl_sdk::env()?;
    match env.case.as_str() {
        "trivial" | "containers" => Ok(()),
        "park" | "parked-containers" => park(&env),
        "sync" | "synced-containers" => sync(&env),
        "flood" => iptl_sdk::metric("write.time", flood(env.param("bytes")?)?, "ms"),
        _ => stream(&env),
    }
}

fn park(env: &Env) -> Result<()> {
    iptl_sdk::signal_and_wait("parked", env.total.into())?;
    if env.ordinal == 0 {
        println!("open");
    }
    std::thread::sleep(env.param("hold")?);
    Ok(())
}

/// Writes lines of a hundred bytes; returns the milliseconds until the last of them was taken.
fn flood(bytes: u64) -> Result<f64> {
    let mut lines = Vec::with_capacity(CHUNK);
    while lines.len() < CHUNK {
        lines.extend([b'x'; 99]);
        lines.push(b'\n');
    }
    let mut out = std::io::stdout().lock();
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(lines.len() as u64);
        out.write_all(&lines[..part as usize])?;
        left -= part;
    }
    out.flush()?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

fn sync(env: &Env) -> Result<()> {
    let total = u64::from(env.total);
    iptl_sdk::signal_and_wait("ready", total)?;
    for round in 0..env.param::<u32>("barriers")? {
        let started = Instant::now();
        iptl_sdk::signal_and_wait(&format!("round-{round}"), total)?;
        iptl_sdk::metric("barrier.time", started.elapsed().as_secs_f64() * 1e3, "ms")?;
    }
    // The first instance publishes when all have what it published before: each message is alone on its way. All
    // lablets are on one machine, so the times of its one clock can be compared.
    let mut messages = iptl_sdk::subscribe("times")?;
    for number in 0..env.param::<u32>("messages")? {
        iptl_sdk::signal_and_wait(&format!("subscribed-{number}"), total)?;
        if env.ordinal == 0 {
            std::thread::sleep(Duration::from_millis(5));
            iptl_sdk::publish("times", &now_us().to_le_bytes())?;
        }
        let message = messages.next()?;
        let now = now_us();
        let sent = message.payload.try_into().map_or(now, u64::from_le_bytes);
        iptl_sdk::metric("message.time", now.saturating_sub(sent) as f64 / 1e3, "ms")?;
    }
    Ok(())
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// The first instance sends, the second takes and answers.
fn stream(env: &Env) -> Result<()> {
    let bytes: u64 = env.param("bytes")?;
    let rounds: u32 = env.param("rounds")?;
    let listener = TcpListener::bind((env.addr, PORT))?;
    iptl_sdk::signal_and_wait("listening", env.total.into())?;
    if env.ordinal == 1 {
        let (mut stream, _) = listener.accept()?;
        answer(&mut stream, bytes, rounds)?;
    } else {
        let mut stream = TcpStream::connect(("node-1", PORT))?;
        ask(&mut stream, bytes, rounds)?;
    }
    iptl_sdk::signal_and_wait("done", env.total.into())?;
    Ok(())
}

fn ask(stream: &mut TcpStream, bytes: u64, rounds: u32) -> Result<()> {
    let mut message = [0; SMALL];
    let mut times = Vec::with_capacity(rounds as usize);
    for _ in 0..rounds {
        let started = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let chunk = vec![7; CHUNK];
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(CHUNK as u64);
        stream.write_all(&chunk[..part as usize])?;
        left -= part;
    }
    stream.read_exact(&mut message[..1])?;
    let seconds = started.elapsed().as_secs_f64();
    println!("{} {}", bytes as f64 / 1e6 / seconds, times[times.len() / 2]);
    Ok(())
}

fn answer(stream: &mut TcpStream, bytes: u64, rounds: u32) -> Result<()> {
    let mut message = [0; SMALL];
    for _ in 0..rounds {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        left -= read as u64;
    }
    stream.write_all(&[1])?;
    Ok(())
}
