//! Containers reach those places outside of the lab that they were let reach, and no others.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use iptl_dag::model::{Container, Destination, EgressUse, Exit};
use iptl_runner::contract::{Lab, Outcome, instance};
use iptl_runner::{CellSpec, OutputStream, Runner};

use crate::engine;
use crate::support::{Bench, until, wrote};

/// A server of this machine that answers what it hears with a word before it, until the test is over.
fn serve_tcp() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = String::new();
            let _ = stream.read_to_string(&mut heard);
            let _ = stream.write_all(format!("outside {heard}").as_bytes());
        }
    });
    at
}

fn serve_udp() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((size, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&[b"outside ", &bytes[..size]].concat(), from);
        }
    });
    at
}

/// Lets an instance of a cell reach places, which are at these addresses.
fn let_out(cell: &mut CellSpec, index: usize, places: &[(&str, SocketAddr)]) {
    let container = cell.instances[index].container.as_mut().unwrap();
    for (place, at) in places {
        let place: Destination = place.parse().unwrap();
        container.settings.egress.insert(place.clone());
        container.egress.insert(place, vec![*at]);
    }
}

fn used(outcome: &Outcome, index: u32) -> Vec<(String, EgressUse)> {
    let network = outcome.ended[&instance(index)].network.as_ref().unwrap();
    network.egress.iter().map(|(place, used)| (place.to_string(), *used)).collect()
}

#[tokio::test]
async fn place_that_is_granted_is_reached_and_no_other_port_or_host() {
    let bench = engine!();
    reaches_what_it_may(&bench).await;
    bench.close().await;
}

#[tokio::test]
async fn place_that_is_granted_is_reached_where_the_engine_makes_devices() {
    let Some(bench) = Bench::unprivileged().await else { return };
    reaches_what_it_may(&bench).await;
    bench.close().await;
}

async fn reaches_what_it_may(bench: &Bench) {
    let (tcp, udp, other) = (serve_tcp(), serve_udp(), serve_tcp());
    let name = format!("tcp/service.example:{}", tcp.port());
    let reached = [name.clone(), format!("udp/service.example:{}", udp.port())];
    // Another port of the host, the port by the other protocol, another host, the machine itself, and whatever its name.
    let closed = [
        format!("tcp/service.example:{}", other.port()),
        format!("tcp/127.0.0.1:{}", tcp.port()),
        format!("tcp/192.0.2.65:{}", tcp.port()),
        format!("tcp/192.0.2.128:{}", tcp.port()),
        format!("tcp/{tcp}"),
    ];
    let args: Vec<&str> = ["reach-out"].into_iter().chain(reached.iter().chain(&closed).map(String::as_str)).collect();
    let others: Vec<&str> = vec!["reach-out", &name, "tcp/192.0.2.64:80"];
    let mut cell = bench.cell(&Container::usual(), &[&args, &others]);
    let places = [(&reached[0], tcp, "tcp"), (&reached[1], udp, "udp")]
        .map(|(place, at, protocol)| (format!("{}/{protocol}", &place[4..]), at));
    let_out(&mut cell, 0, &places.each_ref().map(|(place, at)| (place.as_str(), *at)));
    let outcome = bench.run(cell).await;
    let lines = outcome.lines(0, OutputStream::Out);
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 }, "{lines:#?}");
    for place in &reached {
        assert!(lines.contains(&format!("{place} said \"outside hello\"")), "{lines:#?}");
    }
    for place in &closed {
        let line = lines.iter().find(|line| line.starts_with(&format!("{place} "))).expect("it was tried");
        assert!(!line.contains("said"), "{lines:#?}");
    }
    let once = EgressUse { connections: 1, failed: 0, sent_bytes: 5, received_bytes: 13 };
    let mut expected = places.map(|(place, _)| (place, once));
    expected.sort_by_key(|(place, _)| place.parse::<Destination>().unwrap());
    assert_eq!(used(&outcome, 0), expected);
    // One of the same cell that was not let: the name leads nowhere.
    let lines = outcome.lines(1, OutputStream::Out);
    assert!(lines.iter().all(|line| !line.contains("said")), "{lines:#?}");
    assert_eq!(used(&outcome, 1), []);
}

#[tokio::test]
async fn carrier_of_one_instance_is_closed_to_others() {
    let bench = engine!();
    let tcp = serve_tcp();
    let place = format!("service.example:{}/tcp", tcp.port());
    // It listens at all addresses of its instance; the system says where.
    let mut cell = bench.cell(&Container::usual(), &[&["listeners"], &["reach-listeners", "g-0"]]);
    let_out(&mut cell, 0, &[(&place, tcp)]);
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "it was tried", |o| o.ended.contains_key(&instance(1))).await;
    lab.control.stop("it was tried".to_owned()).await;
    let outcome = lab.finish().await;
    let lines = outcome.lines(1, OutputStream::Out);
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 }, "{lines:#?}");
    assert!(
        !lines.is_empty() && lines.iter().all(|line| line.ends_with("said \"\"") || line.ends_with("ConnectionReset"))
    );
    let none = EgressUse::default();
    assert_eq!(used(&outcome, 0), [(place, none)]);
    bench.close().await;
}

#[tokio::test]
async fn place_that_does_not_answer_is_counted_and_harms_nobody() {
    let bench = engine!();
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = format!("gone.example:{}/tcp", gone.port());
    let args = ["reach-out".to_owned(), format!("tcp/gone.example:{}", gone.port())];
    let mut cell = bench.cell(&Container::usual(), &[&args.each_ref().map(String::as_str)]);
    let_out(&mut cell, 0, &[(&place, gone)]);
    let outcome = bench.run(cell).await;
    assert_eq!(outcome.exit(0), &Exit::Exited { code: 0 });
    assert_eq!(used(&outcome, 0), [(place, EgressUse { failed: 1, ..EgressUse::default() })]);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_out_of_the_lab_outlive_the_lablet() {
    let bench = engine!();
    let tcp = serve_tcp();
    let place = format!("service.example:{}/tcp", tcp.port());
    let mut spec = bench.cell(&Container::usual(), &[&["answer"]]);
    let_out(&mut spec, 0, &[(&place, tcp)]);
    let mut lab = Lab::prepare(&bench.runner, spec.clone()).await;
    lab.control.start().await;
    until(&mut lab, "it runs", wrote(0, "listening")).await;
    bench.runner.leave().await;
    drop(lab);
    let again = bench.again().await;
    let mut lab = Lab::of(again.adopt(spec).await.unwrap().unwrap());
    let ids = bench.containers();
    let at = format!("tcp/service.example:{}", tcp.port());
    // Init shows its sockets again a moment after the lablet is back.
    let reaches = || crate::support::docker(&["exec", &ids[0], crate::support::PROGRAM, "reach-out", &at]);
    let reached = (0..100).any(|_| reaches().ends_with("said \"outside hello\""));
    assert!(reached, "{}", reaches());
    lab.control.stop("seen".to_owned()).await;
    while lab.step().await {}
    let network = lab.outcome.ended[&instance(0)].network.clone().unwrap();
    assert_eq!(network.egress[&place.parse::<Destination>().unwrap()].connections, 1);
    again.shutdown().await;
    bench.close().await;
}
