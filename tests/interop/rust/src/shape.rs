//! Has the network of an instance shaped, and measures what that did.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use testground::client::Client;
use testground::network_conf::{FilterAction, LinkRule, LinkShape, NetworkConfiguration, RoutingPolicyType};

const PORT: u16 = 7000;

/// What is not there after this time does not come.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes that are sent to see a bandwidth: 0.8 s at 1 Mbit/s.
const BULK: usize = 100_000;

pub async fn run(client: Client) -> Result<(), Box<dyn Error>> {
    if std::env::var("IPTL_INDEX")? == "0" {
        let listener = TcpListener::bind(("0.0.0.0", PORT))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(stream));
            }
        });
        client.signal_and_wait("listening", 2).await?;
        client.barrier("measured", 1).await?;
        client.record_success().await?;
        return Ok(());
    }
    client.signal_and_wait("listening", 2).await?;
    let first = ("g-0", PORT).to_socket_addrs()?.next().ok_or("nobody is called g-0")?;
    let say = |what: &str, value: String| client.record_message(format!("{what} {value}"));
    say("clean", round_trip_us(first)?);

    let slow = || LinkShape { latency: 100_000_000, ..shape() };
    client.configure_network(config("slow", slow())).await?;
    say("slow", round_trip_us(first)?);

    let rule = |filter| vec![rule(first, LinkShape { filter, ..shape() })];
    for (what, filter) in [("drop", FilterAction::Drop), ("reject", FilterAction::Reject)] {
        client.configure_network(NetworkConfiguration { rules: Some(rule(filter)), ..config(what, slow()) }).await?;
        say(what, outcome(first));
    }
    // Accepted again, and less slow.
    let faster = || LinkShape { latency: 20_000_000, ..shape() };
    let again = NetworkConfiguration { rules: Some(rule(FilterAction::Accept)), ..config("faster", faster()) };
    client.configure_network(again).await?;
    say("faster", round_trip_us(first)?);

    client.configure_network(NetworkConfiguration { enable: false, ..config("off", shape()) }).await?;
    say("off", outcome(first));

    client.configure_network(config("narrow", LinkShape { bandwidth: 1_000_000, ..shape() })).await?;
    say("narrow", bulk_us(first)?);

    client.configure_network(config("lossy", LinkShape { loss: 100.0, ..shape() })).await?;
    say("lossy", outcome(first));

    let out = NetworkConfiguration { routing_policy: RoutingPolicyType::AllowAll, ..config("out", shape()) };
    say("refused", client.configure_network(out).await.err().map_or_else(String::new, |e| format!("{e:?}")));
    let near = NetworkConfiguration { rules: Some(vec![self::rule(first, slow())]), ..config("near", shape()) };
    client.configure_network(near).await?;
    say("near", round_trip_us(first)?);

    client.signal("measured").await?;
    client.record_success().await?;
    Ok(())
}

fn shape() -> LinkShape {
    LinkShape {
        latency: 0,
        jitter: 0,
        bandwidth: 0,
        filter: FilterAction::Accept,
        loss: 0.0,
        corrupt: 0.0,
        corrupt_corr: 0.0,
        reorder: 0.0,
        reorder_corr: 0.0,
        duplicate: 0.0,
        duplicate_corr: 0.0,
    }
}

fn rule(to: SocketAddr, link_shape: LinkShape) -> LinkRule {
    LinkRule { link_shape, subnet: format!("{}/32", to.ip()).parse().expect("it is one address") }
}

fn config(state: &str, default: LinkShape) -> NetworkConfiguration {
    NetworkConfiguration {
        network: "default".to_owned(),
        ipv4: None,
        ipv6: None,
        enable: true,
        default,
        rules: None,
        callback_state: state.to_owned(),
        callback_target: Some(1),
        routing_policy: RoutingPolicyType::DenyAll,
    }
}

/// Gives back what comes.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut bytes = [0; 4096];
    while let Ok(size @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..size]).is_err() {
            return;
        }
    }
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Returns the shortest of five round trips, in microseconds.
fn round_trip_us(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = connect(to)?;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        best = best.min(begun.elapsed());
    }
    Ok(best.as_micros().to_string())
}

/// Returns how long it takes until many bytes have come back, in microseconds.
fn bulk_us(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = connect(to)?;
    let mut other = stream.try_clone()?;
    let begun = Instant::now();
    let writing = std::thread::spawn(move || other.write_all(&vec![1; BULK]));
    stream.read_exact(&mut vec![0; BULK])?;
    writing.join().map_err(|_| ErrorKind::Other)??;
    Ok(begun.elapsed().as_micros().to_string())
}

/// Returns how an attempt to connect ends.
fn outcome(to: SocketAddr) -> String {
    match connect(to) {
        Ok(_) => "connected".to_owned(),
        Err(e) if e.kind() == ErrorKind::TimedOut => "silence".to_owned(),
        Err(e) => format!("{:?}", e.kind()),
    }
}
