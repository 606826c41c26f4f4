//! Behaviours that need the network.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::exit;
use std::time::{Duration, Instant};

use crate::iptl::lab::network;
use crate::variable;

const PORT: u16 = 4000;

pub fn behave(what: &str, args: &[String]) {
    match what {
        "tcp-echo" => tcp_echo(),
        "udp-ring" => udp_ring(),
        "v6" => v6(),
        "moves" => moves(),
        "clock" => clock(),
        "where" => say_where(),
        "mirror" => {
            let other = format!("g-{}", 1 - variable("IPTL_INDEX"));
            crate::mirror::run(std::env::var("IPTL_ADDR").unwrap().parse().unwrap(), &other);
        }
        "lan" => crate::lan::run(std::env::var("IPTL_ADDR").unwrap().parse().unwrap(), &args[0], false),
        "bulk" => bulk(args[0].parse().unwrap()),
        "names" => names(),
        "refused" => refused(),
        "no-host" => no_host(args[0].parse().unwrap()),
        "sockets" => sockets(),
        "reset" => reset(),
        "idle-poll" => idle_poll(),
        "shape" => shape(),
        other => panic!("unknown behaviour {other}"),
    }
}

/// Connects until somebody listens.
fn connect(name: &str) -> TcpStream {
    loop {
        match TcpStream::connect((name, PORT)) {
            Ok(stream) => return stream,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{name}: {e}"),
        }
    }
}

/// Instance 0 serves; the others say hello and are answered.
fn tcp_echo() {
    let (index, total) = (variable("IPTL_INDEX"), variable("IPTL_TOTAL"));
    if index == 0 {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        for _ in 1..total {
            let (mut stream, peer) = listener.accept().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), peer);
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).unwrap();
        }
        println!("served");
    } else {
        let mut stream = connect("g-0");
        stream.set_nodelay(true).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), PORT)));
        let local = stream.local_addr().unwrap();
        assert_eq!(local.ip().to_string(), std::env::var("IPTL_ADDR").unwrap());
        write!(stream, "hello from {index}").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        println!("{answer}");
    }
}

/// Instance 0 gives bytes back; the other has its network shaped, and says how long round trips take then.
fn shape() {
    if variable("IPTL_INDEX") == 0 {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).unwrap() == 1 {
                stream.write_all(&byte).unwrap();
            }
        }
        return;
    }
    let say_trip = |what: &str| {
        let mut stream = connect("g-0");
        stream.set_nodelay(true).unwrap();
        let trips = (0..5).map(|_| {
            let begun = Instant::now();
            stream.write_all(&[1]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            begun.elapsed().as_micros()
        });
        println!("{what} {}", trips.min().unwrap());
    };
    let none = network::Shape {
        filter: network::Filter::Accept,
        latency: 0,
        jitter: 0,
        bandwidth: 0,
        loss: 0,
        corrupt: 0,
        reorder: 0,
        duplicate: 0,
    };
    let rule = |filter| network::Rule { subnet: "10.0.0.1/32".to_owned(), shape: network::Shape { filter, ..none } };
    say_trip("clean");
    if let Err(reason) = network::configure(true, network::Shape { latency: 100_000_000, ..none }, &[]) {
        println!("refused: {reason}");
        // Whom the other still waits for.
        drop((connect("g-0"), connect("g-0")));
        exit(0);
    }
    say_trip("slow");
    network::configure(true, none, &[rule(network::Filter::Reject)]).unwrap();
    println!("reject {:?}", TcpStream::connect(("g-0", PORT)).map_err(|e| e.kind()).unwrap_err());
    let faster = network::Shape { latency: 20_000_000, ..none };
    network::configure(true, faster, &[rule(network::Filter::Accept)]).unwrap();
    say_trip("faster");
    let nowhere = network::Rule { subnet: "nowhere".to_owned(), shape: none };
    println!("nowhere {}", network::configure(true, none, &[nowhere]).unwrap_err());
}

/// A datagram goes round until everybody had it three times.
fn udp_ring() {
    let (index, total) = (variable("IPTL_INDEX"), variable("IPTL_TOTAL"));
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    let next = format!("g-{}", (index + 1) % total);
    let mut buffer = [0; 64];
    if index == 0 {
        // Until it has come round once, nobody knows that the others listen yet.
        socket.set_nonblocking(true).unwrap();
        loop {
            socket.send_to(&[0], (next.as_str(), PORT)).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            if socket.recv_from(&mut buffer).is_ok() {
                break;
            }
        }
        socket.set_nonblocking(false).unwrap();
        socket.send_to(&[1], (next.as_str(), PORT)).unwrap();
    }
    let mut lap = 0;
    while lap < 3 {
        let (_, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from.port(), PORT);
        match buffer[0] {
            0 if index != 0 => {
                socket.send_to(&[0], (next.as_str(), PORT)).unwrap();
            }
            0 => {}
            n => {
                lap = n;
                if index == 0 && lap == 3 {
                    break;
                }
                let n = if index == 0 { n + 1 } else { n };
                socket.send_to(&[n], (next.as_str(), PORT)).unwrap();
            }
        }
    }
    println!("three laps");
}

/// Instance 0 serves over IPv6; the others reach it by streams, datagrams and at an address that nobody has.
fn v6() {
    use std::net::{Ipv6Addr, ToSocketAddrs};
    let (index, total) = (variable("IPTL_INDEX"), variable("IPTL_TOTAL"));
    let own: Ipv6Addr = std::env::var("IPTL_ADDR6").unwrap().parse().unwrap();
    let udp = UdpSocket::bind((own, PORT)).unwrap();
    if index == 0 {
        let listener = TcpListener::bind(("::", PORT)).unwrap();
        // A port of one family is none of the other.
        let _beside = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        for _ in 1..total {
            let (mut stream, peer) = listener.accept().unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), own);
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            write!(stream, "{} from {}", text.to_uppercase(), peer.ip()).unwrap();
        }
        let mut buffer = vec![0; 65_536];
        for _ in 1..total {
            let (size, from) = udp.recv_from(&mut buffer).unwrap();
            assert!(from.is_ipv6());
            udp.send_to(&buffer[..size], from).unwrap();
        }
        println!("served");
        return;
    }
    let to = ("g-0", PORT).to_socket_addrs().unwrap().find(SocketAddr::is_ipv6).unwrap();
    let mut stream = loop {
        match TcpStream::connect(to) {
            Ok(stream) => break stream,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{e}"),
        }
    };
    write!(stream, "hello").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("HELLO from {own}"));
    // Larger than any packet.
    let sent = vec![7u8; 9_000];
    udp.send_to(&sent, to).unwrap();
    let mut buffer = vec![0; 65_536];
    let (size, from) = udp.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..size], from), (&sent[..], to));
    let nobody: SocketAddr = "[fd69:7074:6c00::a09:909]:9".parse().unwrap();
    let error = TcpStream::connect(nobody).map(|_| ()).unwrap_err();
    println!("{:?}", error.kind());
}

/// Says what the name of instance 0 leads to, until that is another address, and then reaches it there. Instance 0 answers.
fn moves() {
    use std::net::ToSocketAddrs;
    if variable("IPTL_INDEX") == 0 {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let _gone = stream.write_all(b"hello");
        }
    }
    let lookup = || ("g-0", PORT).to_socket_addrs().unwrap().next().unwrap();
    let first = lookup();
    println!("{}", first.ip());
    let now = loop {
        match lookup() {
            same if same == first => std::thread::sleep(Duration::from_millis(5)),
            other => break other,
        }
    };
    println!("{}", now.ip());
    let mut text = String::new();
    TcpStream::connect(now).unwrap().read_to_string(&mut text).unwrap();
    println!("{text}");
    let dead = TcpStream::connect(first).map(|_| ()).unwrap_err();
    println!("{:?}", dead.kind());
}

/// Says which addresses it was told that it has, and at which it is found by its name, and waits for ever.
fn say_where() {
    use std::net::ToSocketAddrs;
    let told = ["IPTL_ADDR", "IPTL_ADDR6"].map(|name| std::env::var(name).unwrap()).join(" ");
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let found = ("g-0", PORT).to_socket_addrs().unwrap().next().unwrap();
    TcpStream::connect(found).unwrap();
    listener.accept().unwrap();
    println!("{told}, found at {}", found.ip());
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Waits until its wall clock has jumped, and says by how many minutes; what time has passed goes on as it does.
fn clock() {
    use std::time::SystemTime;
    let (wall, began) = (SystemTime::now(), Instant::now());
    for sign in [1i64, -1] {
        loop {
            let passed = began.elapsed();
            let ahead = match SystemTime::now().duration_since(wall + passed) {
                Ok(ahead) => ahead.as_secs() as i64,
                Err(behind) => -(behind.duration().as_secs() as i64),
            };
            if ahead.signum() == sign && ahead.abs() > 60 {
                println!("{}", (ahead + 30 * sign) / 60);
                break;
            }
            assert!(passed < Duration::from_secs(60), "no jump");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Instance 1 sends megabytes to instance 0.
fn bulk(megabytes: usize) {
    if variable("IPTL_INDEX") == 0 {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 64 << 10];
        let (mut total, mut sum) = (0u64, 0u64);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => {
                    total += n as u64;
                    sum += u64::from(buffer[0]);
                }
            }
        }
        println!("{total}");
        std::hint::black_box(sum);
    } else {
        let mut stream = connect("g-0");
        let buffer = vec![7; 1 << 20];
        let started = Instant::now();
        for _ in 0..megabytes {
            stream.write_all(&buffer).unwrap();
        }
        println!("{:.0} MB/s", megabytes as f64 / started.elapsed().as_secs_f64());
    }
}

fn names() {
    use std::net::ToSocketAddrs;
    for name in ["g-0", "g-1", "1.g.lab", "localhost", "g-2", "example.com"] {
        let found = (name, 1).to_socket_addrs();
        let found: Vec<String> = found.map(|all| all.map(|a| a.ip().to_string()).collect()).unwrap_or_default();
        println!("{name} {}", if found.is_empty() { "-".to_owned() } else { found.join(" ") });
    }
}

fn refused() {
    let kind = |address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(|_| ()).unwrap_err().kind()
    };
    println!("{:?}", kind("10.0.0.1:9"));
    println!("{:?}", kind("127.0.0.1:9"));
    println!("{:?}", kind("10.9.9.9:9"));
}

/// Nothing of the host can be reached, whatever is tried.
fn no_host(port: u16) {
    for address in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"), "1.1.1.1:53".to_owned()] {
        assert!(TcpStream::connect(&address).is_err(), "{address}");
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(socket.send_to(b"x", "8.8.8.8:53").is_err());
    assert!(std::fs::read_dir("/").is_err() || std::fs::read_dir("/").unwrap().next().is_none());
    assert!(std::fs::File::create("/tmp/x").is_err());
    println!("nothing");
}

/// Opens sockets until it may not.
fn sockets() {
    let mut held = Vec::new();
    let error = loop {
        match UdpSocket::bind("0.0.0.0:0") {
            Ok(socket) => held.push(socket),
            Err(e) => break e,
        }
    };
    println!("{} {:?}", held.len(), error.raw_os_error());
    held.pop();
    assert!(UdpSocket::bind("0.0.0.0:0").is_ok());
}

/// Instance 1 breaks; instance 0 sees its connection end.
fn reset() {
    if variable("IPTL_INDEX") == 0 {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        let rest = stream.read(&mut byte);
        println!("{}", if matches!(rest, Ok(0) | Err(_)) { "ended" } else { "data" });
    } else {
        let mut stream = connect("g-0");
        stream.write_all(&[1]).unwrap();
        std::process::abort();
    }
}

/// Waits on a socket for a while; a host that polls would burn CPU time.
fn idle_poll() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    let _ = listener.accept();
}
