//! Containers of a run reach each other over the lab network, and nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use iptl_dag::model::{
    AccessClass, Container, Exit, GatewayModel, GroupNetwork, IpModel, LinkModel, NetworkModel, SiteShare,
};
use iptl_runner::contract::places::homes_of_three;
use iptl_runner::contract::{Lab, instance};
use iptl_runner::{CellSpec, OutputStream, PrepareError, Runner};

use crate::engine;
use crate::support::{Bench, until, wrote};

/// One region with one access class, whose links up and down are these.
pub(crate) fn network(delay_us: u64, up: LinkModel, down: LinkModel) -> NetworkModel {
    NetworkModel {
        ip: IpModel::default(),
        regions: vec!["here".to_owned()],
        delays_us: vec![vec![delay_us]],
        access: BTreeMap::from([("line".to_owned(), AccessClass { up, down, mtu: 1500 })]),
        groups: BTreeMap::new(),
    }
}

pub(crate) fn delay(delay_us: u64) -> LinkModel {
    LinkModel { delay_us, ..LinkModel::default() }
}

/// A cell in which the first instance answers and the others reach it.
fn reaching(bench: &Bench, others: usize, network: Option<NetworkModel>) -> CellSpec {
    reaching_by(bench, "reach", others, network)
}

fn reaching_by(bench: &Bench, verb: &str, others: usize, network: Option<NetworkModel>) -> CellSpec {
    let reach = [verb, "g-0", "1000000"];
    let mut args = vec![&["answer"][..]];
    args.extend(vec![&reach[..]; others]);
    CellSpec { network, ..bench.cell(&Container::usual(), &args) }
}

/// Runs a cell whose first instance ends only when it is told to.
async fn run(bench: &Bench, cell: CellSpec) -> iptl_runner::contract::Outcome {
    let others = u32::try_from(cell.instances.len()).unwrap() - 1;
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "the others are done", |o| (1..=others).all(|i| o.ended.contains_key(&instance(i)))).await;
    lab.control.stop("the others are done".to_owned()).await;
    lab.finish().await
}

/// Returns what an instance said that something took, in milliseconds.
fn took(lines: &[String], what: &str) -> f64 {
    let line = lines.iter().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {what} in {lines:?}")).parse::<f64>().unwrap() / 1_000.0
}

#[tokio::test]
async fn containers_reach_each_other_by_address_and_name_where_no_network_is_described() {
    let bench = engine!();
    let outcome = run(&bench, reaching(&bench, 2, None)).await;
    for index in 1..=2 {
        let lines = outcome.lines(index, OutputStream::Out);
        assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 }, "{lines:?}");
        assert_eq!(lines[0], "g-0 is 10.0.0.1");
        assert_eq!(lines[1], format!("from 10.0.0.{}", index + 1));
        assert_eq!(lines.last().unwrap(), "stream whole");
        assert!(took(&lines, "echo") > 0.0);
        let ended = &outcome.ended[&instance(index)];
        let network = ended.network.as_ref().unwrap();
        assert!(network.up[0].offered > 100 && network.up[0].offered == network.up[0].delivered, "{network:?}");
        assert_eq!((network.spoofed, network.lost_by_lab, network.cell.overdue), (0, 0, 0));
        assert!(ended.usage.sent_bytes >= 1_000_000 && ended.usage.received_bytes >= 1_000_000, "{:?}", ended.usage);
    }
    bench.close().await;
}

/// Checks what those say who reached the first instance over IPv6.
fn reached_over_v6(outcome: &iptl_runner::contract::Outcome) {
    for index in 1..=2 {
        let lines = outcome.lines(index, OutputStream::Out);
        assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 }, "{lines:?}");
        assert_eq!(lines[0], "g-0 is fd69:7074:6c00::a00:1");
        assert_eq!(lines[1], format!("from fd69:7074:6c00::a00:{}", index + 1));
        assert_eq!(lines.last().unwrap(), "stream whole");
        assert!(took(&lines, "datagram") > 0.0 && took(&lines, "echo") > 0.0, "{lines:?}");
        let network = outcome.ended[&instance(index)].network.as_ref().unwrap();
        assert_eq!((network.spoofed, network.lost_by_lab), (0, 0), "kernels say nothing by themselves: {network:?}");
    }
}

#[tokio::test]
async fn containers_ping_and_talk_over_ipv6() {
    let bench = engine!();
    reached_over_v6(&run(&bench, reaching_by(&bench, "reach-v6", 2, None)).await);
    let described = network(1_000, LinkModel::default(), LinkModel::default());
    let alone = NetworkModel { ip: IpModel::Ipv6, ..described.clone() };
    reached_over_v6(&run(&bench, reaching_by(&bench, "reach-v6", 2, Some(alone))).await);
    // And where a network is of IPv4 alone there is nothing of it.
    let outcome = run(&bench, reaching_by(&bench, "reach-v6", 1, Some(described))).await;
    assert_eq!(outcome.lines(1, OutputStream::Out), ["no g-0: Ok(None)"]);
    bench.close().await;
}

#[tokio::test]
async fn link_of_a_container_is_captured_and_that_of_its_neighbour_is_not() {
    let bench = engine!();
    let mut cell = reaching(&bench, 1, None);
    cell.instances[1].capture = true;
    let outcome = run(&bench, cell).await;
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 });
    let artifacts = outcome.ended[&instance(1)].left.artifacts.clone().expect("there is a capture");
    let capture = std::fs::read(artifacts.join("lab-link.pcap")).unwrap();
    assert!(capture.len() > 1_000_000, "what it sent is there: {} bytes", capture.len());
    let (head, mut rest) = capture.split_at(iptl_labnet::PCAP_HEADER.len());
    assert_eq!(head, iptl_labnet::PCAP_HEADER);
    let mut packets = 0;
    while let Some((record, after)) = rest.split_first_chunk::<16>() {
        let size = u32::from_le_bytes([record[8], record[9], record[10], record[11]]) as usize;
        let (packet, after) = after.split_at(size);
        let header = iptl_labnet::Header::parse(packet).expect("a packet of IP");
        let ends = [header.src, header.dst];
        assert!(ends.contains(&[10, 0, 0, 2].into()), "its own alone: {ends:?}");
        (packets, rest) = (packets + 1, after);
    }
    assert!(rest.is_empty() && packets > 20, "{packets} packets");
    let other = &outcome.ended[&instance(0)].left.artifacts;
    assert!(other.as_ref().is_none_or(|artifacts| !artifacts.join("lab-link.pcap").exists()));
    bench.close().await;
}

#[tokio::test]
async fn engine_makes_the_devices_of_a_lablet_that_may_not() {
    let Some(bench) = Bench::unprivileged().await else { return };
    let outcome = run(&bench, reaching(&bench, 2, None)).await;
    for index in 1..=2 {
        let lines = outcome.lines(index, OutputStream::Out);
        assert_eq!(outcome.exit(index), &Exit::Exited { code: 0 }, "{lines:?}");
        assert_eq!(lines.last().unwrap(), "stream whole");
        let network = outcome.ended[&instance(index)].network.as_ref().unwrap();
        assert_eq!((network.spoofed, network.lost_by_lab), (0, 0));
    }
    reached_over_v6(&run(&bench, reaching_by(&bench, "reach-v6", 2, None)).await);
    // The workload has no more than otherwise.
    let (exit, lines) = bench.run_one(&Container::usual(), &["escape", "10.9.9.9:80"]).await;
    assert_eq!(exit, Exit::Exited { code: 0 });
    assert!(lines.contains(&"raw refused".to_owned()), "{lines:?}");
    bench.close().await;
}

#[tokio::test]
async fn network_goes_before_other_programs_only_where_the_owner_lets_it() {
    let bench = engine!();
    let realtime =
        |outcome: &iptl_runner::contract::Outcome| outcome.ended[&instance(1)].network.as_ref().unwrap().cell.realtime;
    let usual = realtime(&run(&bench, reaching(&bench, 1, None)).await);
    bench.close().await;
    let Some(bench) = Bench::without_priority().await else { return };
    let forbidden = realtime(&run(&bench, reaching(&bench, 1, None)).await);
    assert!(!forbidden, "its owner does not let it");
    bench.close().await;
    if !usual {
        crate::support::not_run("nobody may go before others on this machine, so that nothing was forbidden");
    }
}

#[tokio::test]
async fn links_of_50_ms_are_what_their_programs_measure() {
    let bench = engine!();
    let described = network(50_000, LinkModel::default(), LinkModel::default());
    let outcome = run(&bench, reaching(&bench, 1, Some(described))).await;
    let lines = outcome.lines(1, OutputStream::Out);
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 }, "{lines:?}");
    for what in ["datagram", "echo"] {
        let ms = took(&lines, what);
        assert!((100.0..150.0).contains(&ms), "{what}: {ms} ms there and back");
    }
    let network = outcome.ended[&instance(1)].network.clone().unwrap();
    let timed: u64 = network.cell.lateness.iter().sum();
    assert!(timed > 100, "{network:?}");
    bench.close().await;
}

#[tokio::test]
async fn loss_and_rate_of_a_link_are_counted_in_the_receipt() {
    let bench = engine!();
    let up = LinkModel { loss_ppm: 50_000, rate_bps: 50_000_000, queue_bytes: 64 << 10, ..delay(1_000) };
    let outcome = run(&bench, reaching(&bench, 1, Some(network(0, up, delay(2_000))))).await;
    let lines = outcome.lines(1, OutputStream::Out);
    assert_eq!(outcome.exit(1), &Exit::Exited { code: 0 }, "{lines:?}");
    assert_eq!(lines.last().unwrap(), "stream whole");
    let network = outcome.ended[&instance(1)].network.clone().unwrap();
    let (up, down) = (network.up[0], network.down[0]);
    assert!(up.lost > 0 && up.offered >= up.delivered + up.lost + up.overflowed, "{up:?}");
    assert!(up.asked_ns >= up.delivered * 1_000_000 && up.measured_ns >= up.asked_ns, "{up:?}");
    assert_eq!((down.lost, down.overflowed), (0, 0));
    bench.close().await;
}

#[tokio::test]
async fn container_behind_a_nat_has_a_private_address_and_is_answered() {
    let bench = engine!();
    let mut described = network(1_000, LinkModel::default(), LinkModel::default());
    let home = SiteShare { weight: 1, gateways: vec![GatewayModel::default()] };
    let of_h = GroupNetwork { regions: BTreeMap::new(), access: BTreeMap::new(), sites: vec![home], per: 1 };
    described.groups.insert("h".to_owned(), of_h);
    let mut cell = reaching(&bench, 1, Some(described));
    cell.groups = BTreeMap::from([("g".to_owned(), 1), ("h".to_owned(), 1)]);
    cell.instances[1].id.group = "h".to_owned();
    cell.instances[1].id.index = 0;
    let inner = cell.instances[1].id.clone();
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "it is done", |o| o.ended.contains_key(&inner)).await;
    lab.control.stop("it is done".to_owned()).await;
    let outcome = lab.finish().await;
    let said: Vec<&String> = outcome.output.iter().filter(|(id, ..)| *id == inner).map(|(_, _, line)| line).collect();
    assert_eq!(outcome.ended[&inner].exit, Exit::Exited { code: 0 }, "{said:?}");
    assert_eq!((said[0].as_str(), said[1].as_str()), ("g-0 is 10.0.0.1", "from 192.168.1.2"));
    assert_eq!(outcome.ended[&inner].network.as_ref().unwrap().up.len(), 2, "its own link and its gateway's");
    bench.close().await;
}

#[tokio::test]
async fn containers_in_one_home_find_each_other_by_multicast_too_and_have_one_address_outside() {
    let bench = engine!();
    let described = network(1_000, LinkModel::default(), LinkModel::default());
    let lan = ["lan", "g-0"];
    let mut cell = bench.cell(&Container::usual(), &[&["mirror", "h-0"], &lan, &lan, &lan]);
    cell.network = Some(homes_of_three(described));
    cell.groups = BTreeMap::from([("g".to_owned(), 1), ("h".to_owned(), 3)]);
    let home = [0, 1, 2].map(|index| iptl_dag::model::InstanceId { group: "h".to_owned(), index });
    for (id, instance) in home.iter().zip(&mut cell.instances[1..]) {
        instance.id = id.clone();
    }
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "all is said", |o| home.iter().all(|id| o.ended.contains_key(id))).await;
    lab.control.stop("all is said".to_owned()).await;
    let outcome = lab.finish().await;
    for (id, [own, one, other]) in home.iter().zip([[2, 3, 4], [3, 2, 4], [4, 2, 3]]) {
        let said: Vec<&str> =
            outcome.output.iter().filter(|(of, ..)| of == id).map(|(_, _, line)| line.as_str()).collect();
        let found = format!("192.168.1.{one} 192.168.1.{other}");
        assert_eq!(
            said,
            [
                format!("192.168.1.{own} finds {found}"),
                format!("by multicast {found}"),
                "seen as 172.16.0.1".to_owned()
            ],
        );
    }
    bench.close().await;
}

#[tokio::test]
async fn nothing_of_the_machine_can_be_reached() {
    let bench = engine!();
    let (host, datagrams) = listening();
    let port = host.local_addr().unwrap().port();
    let mut there: Vec<String> = ["127.0.0.1", "10.9.9.9", "172.17.0.1", "192.168.0.1", "169.254.169.254"]
        .map(|addr| format!("{addr}:{port}"))
        .into();
    // The same in the clothes of IPv6, the loopback there, neighbours by the address of a link, and documents' own.
    let mapped = there.iter().map(|at| format!("[::ffff:{}]:{port}", at.split(':').next().unwrap()));
    there.extend(mapped.collect::<Vec<_>>());
    there.extend(
        ["::1", "fe80::1", "fe80::1%1", "fe80::1%2", "fd00::1", "2001:db8::1", "ff02::1%2"]
            .map(|addr| format!("[{addr}]:{port}")),
    );
    // What this machine is called by others.
    there.extend(own_addresses().into_iter().map(|addr| SocketAddr::new(addr, port).to_string()));
    let mut args = vec!["escape"];
    args.extend(there.iter().map(String::as_str));
    let (exit, lines) = bench.run_one(&Container::usual(), &args).await;
    assert_eq!(exit, Exit::Exited { code: 0 });
    assert!(lines.iter().all(|line| !line.ends_with("reached") && !line.contains(" said ")), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains(" udp ")).count(), there.len(), "{lines:?}");
    assert!(lines.contains(&"true".to_owned()), "no name of outside is known: {lines:?}");
    let mut devices: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("device ")).collect();
    devices.sort_unstable();
    assert_eq!(devices, ["eth0", "lo"]);
    assert!(lines.contains(&"raw refused".to_owned()), "it cannot forge packets: {lines:?}");
    host.set_nonblocking(true).unwrap();
    assert!(host.accept().is_err(), "nobody came");
    datagrams.set_nonblocking(true).unwrap();
    let heard = datagrams.recv_from(&mut [0; 16]);
    assert!(heard.is_err(), "nothing came: {heard:?}");
    bench.close().await;
}

/// Listens on one port of all addresses of this machine, of both families where it has both.
fn listening() -> (TcpListener, UdpSocket) {
    loop {
        let any = |port| [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), (Ipv4Addr::UNSPECIFIED, port).into()];
        let tcp = TcpListener::bind(&any(0)[..]).unwrap();
        // Another program may have it for datagrams.
        if let Ok(udp) = UdpSocket::bind(&any(tcp.local_addr().unwrap().port())[..]) {
            return (tcp, udp);
        }
    }
}

/// Returns the addresses of this machine, but for its loopback.
fn own_addresses() -> Vec<IpAddr> {
    let output = std::process::Command::new("hostname").arg("--all-ip-addresses").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(|addr| addr.parse().unwrap()).collect()
}

#[tokio::test]
async fn network_that_cannot_be_is_refused_before_anything_starts() {
    let bench = engine!();
    let mut described = network(1_000, LinkModel::default(), LinkModel::default());
    described.delays_us = vec![vec![1, 2]];
    let refused = bench.runner.prepare(reaching(&bench, 1, Some(described))).await.err().unwrap();
    assert!(matches!(refused, PrepareError::BadNetwork { .. }), "{refused}");
    bench.close().await;
}

#[tokio::test]
async fn network_that_breaks_ends_its_cell_and_says_why() {
    let bench = engine!();
    let cell = bench.cell(&Container::usual(), &[&["answer"], &["ignore-term"]]);
    let mut lab = Lab::prepare(&bench.runner, cell).await;
    lab.control.start().await;
    until(&mut lab, "both run", |o| wrote(0, "listening")(o) && wrote(1, "ignoring")(o)).await;
    bench.runner.break_networks();
    let outcome = lab.finish().await;
    for index in 0..2 {
        let Exit::WorkerDied { reason } = outcome.exit(index) else { panic!("{:?}", outcome.exit(index)) };
        assert!(reason.starts_with("the lab network broke") && reason.contains("it was told to"), "{reason}");
        assert_eq!(outcome.ended[&instance(index)].network, None, "nothing is known of it any more");
    }
    // And another cell has a network of its own.
    let (exit, lines) = bench.run_one(&Container::usual(), &["escape", "10.9.9.9:80"]).await;
    assert_eq!(exit, Exit::Exited { code: 0 }, "{lines:?}");
    bench.close().await;
}

#[tokio::test]
async fn connections_outlive_the_lablet() {
    let bench = engine!();
    let cell = bench.cell(&Container::usual(), &[&["answer"], &["answer"]]);
    let mut lab = Lab::prepare(&bench.runner, cell.clone()).await;
    lab.control.start().await;
    until(&mut lab, "both listen", |o| wrote(0, "listening")(o) && wrote(1, "listening")(o)).await;
    bench.runner.leave().await;
    drop(lab);
    let again = bench.again().await;
    let adopted = again.adopt(cell).await.unwrap().unwrap();
    let lab = Lab::of(adopted);
    let ids = bench.containers();
    let reach = ["exec", &ids[0], crate::support::PROGRAM, "reach"];
    for name in ["g-0", "g-1"] {
        let said = crate::support::docker(&[&reach[..], &[name, "100000"]].concat());
        assert!(said.ends_with("stream whole"), "{said}");
    }
    lab.control.stop("seen".to_owned()).await;
    lab.finish().await;
    again.shutdown().await;
    bench.close().await;
}
