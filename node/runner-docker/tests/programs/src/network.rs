//! Talks to other instances over the lab network.

use std::ffi::{c_int, c_void};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Where `answer` listens.
const PORT: u16 = 7000;

/// A try that has no answer after this time is made again.
const TRY: Duration = Duration::from_millis(500);

/// Tries before it is over.
const TRIES: u32 = 40;

/// Answers datagrams and connections with what they hold, for ever.
pub(crate) fn answer() {
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        loop {
            let (size, from) = udp.recv_from(&mut bytes).unwrap();
            let _lost = udp.send_to(&bytes[..size], from);
        }
    });
    println!("listening");
    for stream in tcp.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
    }
}

/// Reaches another by name: looks it up, sends datagrams, echo requests and a stream, and says what they took.
pub(crate) fn reach(name: &str, bytes: usize) -> ExitCode {
    let addr = match (name, PORT).to_socket_addrs() {
        Ok(mut addrs) => addrs.next().unwrap(),
        Err(e) => {
            println!("no {name}: {e}");
            return ExitCode::FAILURE;
        }
    };
    println!("{name} is {}", addr.ip());
    let SocketAddr::V4(addr) = addr else { return ExitCode::FAILURE };
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    udp.connect(addr).unwrap();
    println!("from {}", udp.local_addr().unwrap().ip());
    udp.set_read_timeout(Some(TRY)).unwrap();
    let Some(took) = again(|| {
        udp.send(b"hello")?;
        udp.recv(&mut [0; 16])
    }) else {
        println!("no datagram came back");
        return ExitCode::FAILURE;
    };
    println!("datagram {}", took.as_micros());
    match echo(*addr.ip()) {
        Some(took) => println!("echo {}", took.as_micros()),
        None => println!("no echo came back"),
    }
    let Some(_) = again(|| TcpStream::connect(addr)) else {
        println!("no connection");
        return ExitCode::FAILURE;
    };
    let mut stream = TcpStream::connect(addr).unwrap();
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = vec![0; bytes];
    stream.read_exact(&mut received).unwrap();
    writing.join().unwrap();
    println!("stream {}", if received == sent { "whole" } else { "broken" });
    ExitCode::SUCCESS
}

/// Asks that what it sends waits for 100 ms, and says how long round trips to another take, for ever.
pub(crate) fn shaped(name: &str) {
    let config = r#"{"enable":true,"callback_state":"shaped","default":{"latency":100000000}}"#;
    println!("asked {}", crate::sync::Sync::connect().configure(config).contains("\"error\":\"\""));
    let to = (name, PORT).to_socket_addrs().unwrap().next().unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    udp.connect(to).unwrap();
    udp.set_read_timeout(Some(TRY)).unwrap();
    for round in 0u64.. {
        let began = Instant::now();
        let _gone = udp.send(&round.to_be_bytes());
        let mut answer = [0; 8];
        // An answer that comes late is not taken for another's.
        while udp.recv(&mut answer).is_ok() {
            if answer == round.to_be_bytes() {
                println!("trip {}", began.elapsed().as_micros());
                break;
            }
        }
    }
}

/// Tries to reach what is not of the lab, and says of each whether that worked.
pub(crate) fn escape(addresses: &[String]) {
    for address in addresses {
        let to: SocketAddrV4 = address.parse().unwrap();
        let outcome = TcpStream::connect_timeout(&SocketAddr::V4(to), Duration::from_secs(5));
        println!("{address} {}", outcome.map_or_else(|e| format!("{:?}", e.kind()), |_| "reached".to_owned()));
    }
    println!("{:?}", ("example.org", 80).to_socket_addrs().map(|_| ()).is_err());
    for line in std::fs::read_to_string("/proc/net/dev").unwrap().lines().skip(2) {
        println!("device {}", line.split(':').next().unwrap().trim());
    }
    let raw = socket(SOCK_RAW, 255);
    println!("raw {}", if raw.is_some() { "open" } else { "refused" });
}

/// Does something until it works; returns how long the try that worked took.
fn again<T>(mut act: impl FnMut() -> std::io::Result<T>) -> Option<Duration> {
    for _ in 0..TRIES {
        let began = Instant::now();
        if act().is_ok() {
            return Some(began.elapsed());
        }
        std::thread::sleep(TRY.saturating_sub(began.elapsed()));
    }
    None
}

const AF_INET: c_int = 2;
const SOCK_DGRAM: c_int = 2;
const SOCK_RAW: c_int = 3;
const ICMP: c_int = 1;

unsafe extern "C" {
    #[link_name = "socket"]
    fn open_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const c_void, size: u32) -> c_int;
}

fn socket(kind: c_int, protocol: c_int) -> Option<OwnedFd> {
    // SAFETY: takes numbers alone; the descriptor is nobody else's.
    unsafe {
        let fd = open_socket(AF_INET, kind, protocol);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// Sends an echo request as `ping` does where it is nobody special.
fn echo(addr: Ipv4Addr) -> Option<Duration> {
    let fd = socket(SOCK_DGRAM, ICMP)?;
    // Family, port, address, padding.
    let mut to = [0u8; 16];
    to[..2].copy_from_slice(&2u16.to_ne_bytes());
    to[4..8].copy_from_slice(&addr.octets());
    // SAFETY: the address lives until the call is over, with its true size; the descriptor is ours.
    let socket = unsafe {
        use std::os::fd::AsRawFd;
        if connect(fd.as_raw_fd(), to.as_ptr().cast(), 16) < 0 {
            return None;
        }
        UdpSocket::from(fd)
    };
    socket.set_read_timeout(Some(TRY)).unwrap();
    again(|| {
        socket.send(&[8, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4])?;
        socket.recv(&mut [0; 64])
    })
}
