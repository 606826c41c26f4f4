//! Talks to other instances over the lab network.

use std::ffi::{c_int, c_void};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
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
    // Both families at once, where there are both.
    let bound = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))
        .and_then(|udp| Ok((udp, TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?)));
    let (udp, tcp) = bound.unwrap_or_else(|_| {
        let any = (Ipv4Addr::UNSPECIFIED, PORT);
        (UdpSocket::bind(any).unwrap(), TcpListener::bind(any).unwrap())
    });
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
pub(crate) fn reach(name: &str, bytes: usize, v6: bool) -> ExitCode {
    let found = (name, PORT).to_socket_addrs().map(|mut addrs| addrs.find(|addr| addr.is_ipv6() == v6));
    let addr = match found {
        Ok(Some(addr)) => addr,
        other => {
            println!("no {name}: {other:?}");
            return ExitCode::FAILURE;
        }
    };
    println!("{name} is {}", addr.ip());
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let udp = UdpSocket::bind((any, 0)).unwrap();
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
    match echo(addr.ip()) {
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

/// Looks another up by the file of names and by the server of names, until both say something else than at first, and
/// tries all that it was called.
pub(crate) fn follow(name: &str) {
    let file = || {
        let text = std::fs::read_to_string("/etc/hosts").unwrap();
        let lines = text.lines().filter(|line| line.split_whitespace().skip(1).any(|word| word == name));
        lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let server = || [1, 28].map(|kind| ask(name, kind).unwrap_or_default()).join(" ");
    let first = (file(), server());
    println!("file {}\nserver {}", first.0, first.1);
    let now = loop {
        let now = (file(), server());
        if now.0 != first.0 && now.1 != first.1 {
            break now;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    println!("file {}\nserver {}", now.0, now.1);
    let connect = |addr: &str| TcpStream::connect_timeout(&(addr.parse::<IpAddr>().unwrap(), PORT).into(), TRY * 4);
    for addr in now.1.split(' ') {
        println!("{addr} {}", connect(addr).map_or_else(|e| e.to_string(), |_| "answers".to_owned()));
    }
    for addr in first.1.split(' ') {
        println!("{addr} {}", connect(addr).map_or_else(|_| "is nobody's", |_| "answers"));
    }
}

/// Asks the server of names that `/etc/resolv.conf` has for a record of one kind, and returns its address.
fn ask(name: &str, kind: u8) -> Option<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let server = text.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap().trim();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    udp.set_read_timeout(Some(TRY)).unwrap();
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(name.len()).unwrap()];
    query.extend_from_slice(name.as_bytes());
    query.extend([0, 0, kind, 0, 1]);
    udp.send_to(&query, (server, 53)).unwrap();
    let mut answer = [0; 512];
    let size = udp.recv(&mut answer).ok()?;
    let (record, data) = answer[query.len()..size].split_at_checked(12)?;
    match record[11] {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).to_string()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).to_string()),
    }
}

/// Tries to reach what is not of the lab, by TCP and by UDP, and says of each whether that worked.
pub(crate) fn escape(addresses: &[String]) {
    for address in addresses {
        let to: SocketAddr = address.parse().unwrap();
        let outcome = TcpStream::connect_timeout(&to, Duration::from_secs(5));
        println!("{address} {}", outcome.map_or_else(|e| format!("{:?}", e.kind()), |_| "reached".to_owned()));
        println!("{address} udp {}", ask_by_datagram(to, 1));
    }
    println!("{:?}", ("example.org", 80).to_socket_addrs().map(|_| ()).is_err());
    for line in std::fs::read_to_string("/proc/net/dev").unwrap().lines().skip(2) {
        println!("device {}", line.split(':').next().unwrap().trim());
    }
    let raw = [AF_INET, AF_INET6].map(|family| socket(family, SOCK_RAW, 255));
    println!("raw {}", if raw.iter().any(Option::is_some) { "open" } else { "refused" });
}

/// Says hello to places such as `tcp/192.0.2.7:443`, and says what each answered. Names are resolved.
pub(crate) fn reach_out(places: &[String]) {
    for place in places {
        let (protocol, at) = place.split_once('/').unwrap();
        let answer = match at.to_socket_addrs().map(|mut addrs| addrs.next()) {
            Ok(Some(to)) if protocol == "udp" => ask_by_datagram(to, TRIES),
            Ok(Some(to)) => ask_by_stream(to).unwrap_or_else(|e| format!("{:?}", e.kind())),
            other => format!("no name: {other:?}"),
        };
        println!("{place} {answer}");
    }
}

/// Tells the ports on which this container listens for connections at all of its addresses, to whoever asks for them.
pub(crate) fn serve_listeners() {
    let mut ports = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            // number, address:port, peer, state; listening is 0A.
            let words: Vec<&str> = line.split_whitespace().collect();
            let (addr, port) = words[1].split_once(':').unwrap();
            if words[3] == "0A" && addr.bytes().all(|b| b == b'0') {
                ports.push(u16::from_str_radix(port, 16).unwrap().to_string());
            }
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    for stream in listener.incoming() {
        stream.unwrap().write_all(ports.join(" ").as_bytes()).unwrap();
    }
}

/// Says hello at the ports that another listens on.
pub(crate) fn reach_listeners(name: &str) {
    let mut told = String::new();
    again(|| TcpStream::connect((name, PORT))?.read_to_string(&mut told)).unwrap();
    let places: Vec<String> = told.split(' ').map(|port| format!("tcp/{name}:{port}")).collect();
    reach_out(&places);
}

fn ask_by_stream(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(format!("said {answer:?}"))
}

/// Says hello again and again until somebody answers or the system says that nobody does.
fn ask_by_datagram(to: SocketAddr, tries: u32) -> String {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let udp = UdpSocket::bind((any, 0)).unwrap();
    udp.set_read_timeout(Some(TRY)).unwrap();
    let mut answer = [0; 64];
    let mut ask = || {
        udp.connect(to)?;
        udp.send(b"hello")?;
        udp.recv(&mut answer)
    };
    for _ in 0..tries {
        match ask() {
            Ok(size) => return format!("said {:?}", String::from_utf8_lossy(&answer[..size])),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return format!("{:?}", e.kind()),
        }
    }
    "silence".to_owned()
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
const AF_INET6: c_int = 10;
const SOCK_DGRAM: c_int = 2;
const SOCK_RAW: c_int = 3;
const ICMP: c_int = 1;
const ICMPV6: c_int = 58;

unsafe extern "C" {
    #[link_name = "socket"]
    fn open_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const c_void, size: u32) -> c_int;
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> Option<OwnedFd> {
    // SAFETY: takes numbers alone; the descriptor is nobody else's.
    unsafe {
        let fd = open_socket(family, kind, protocol);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// Sends an echo request as `ping` does where it is nobody special.
fn echo(addr: IpAddr) -> Option<Duration> {
    let (family, protocol, request) = if addr.is_ipv4() { (AF_INET, ICMP, 8) } else { (AF_INET6, ICMPV6, 128) };
    let fd = socket(family, SOCK_DGRAM, protocol)?;
    // Family, port, address, padding; over IPv6 family, port, flow, address, scope.
    let mut to = [0u8; 28];
    to[..2].copy_from_slice(&u16::try_from(family).unwrap().to_ne_bytes());
    let size = match addr {
        IpAddr::V4(addr) => {
            to[4..8].copy_from_slice(&addr.octets());
            16
        }
        IpAddr::V6(addr) => {
            to[8..24].copy_from_slice(&addr.octets());
            28
        }
    };
    // SAFETY: the address lives until the call is over, with its true size; the descriptor is ours.
    let socket = unsafe {
        use std::os::fd::AsRawFd;
        if connect(fd.as_raw_fd(), to.as_ptr().cast(), size) < 0 {
            return None;
        }
        UdpSocket::from(fd)
    };
    socket.set_read_timeout(Some(TRY)).unwrap();
    again(|| {
        socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4])?;
        socket.recv(&mut [0; 64])
    })
}
