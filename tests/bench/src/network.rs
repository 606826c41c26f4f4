//! The lab network of containers against the kernel's own: namespaces with a device each, joined by the engine or by
//! veth pairs on a bridge. No container engine takes part.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iptl_labnet::{Access, Engine, EngineConfig, Jitter, LinkConfig, RealmId, Topology};
use iptl_labnet_tun::{DEVICE_NAME, Interface, Namespace, Network, Options, Outlets, Report, empty_waits, now_ns};

use crate::report::{Row, percentile};

/// Pairs of bulk transfers, one after the other by each way, and the time of each.
const PAIRS: usize = 11;
const BULK: Duration = Duration::from_secs(1);
const BULK_GOAL: f64 = 0.9;

/// Time of a flood of small packets, and the share of the bridge's packets that the engine is to pass.
const FLOOD: Duration = Duration::from_secs(2);
const FLOOD_GOAL: f64 = 0.5;

/// Packets over a delay of 100 ms, and the time between them.
const TIMED: usize = 500;
const APART: Duration = Duration::from_millis(5);
const DELAY_NS: u64 = 100_000_000;

/// Bits per second of a narrow link, and the time over which they are counted.
const NARROW: u64 = 10_000_000;
const NARROW_TIME: Duration = Duration::from_secs(4);

/// Bytes of a datagram there, and of the heads before it.
const NARROW_PAYLOAD: usize = 1472;
const HEADS: usize = 28;

/// Packets of which one in twenty is lost.
const LOSSY: u64 = 100_000;
const BURST: u64 = 100;

/// Packets with jitter, and the width of it.
const JITTERED: usize = 500;
const SPREAD_NS: u64 = 10 * MS;

/// Namespaces that are set up.
const MANY: usize = 200;

/// Time over which idle ones are watched.
const IDLE: Duration = Duration::from_secs(5);

const MS: u64 = 1_000_000;

/// Takes all measures.
pub async fn measure() -> Result<Vec<Row>> {
    tokio::task::spawn_blocking(|| {
        let mut rows = vec![bulk()?];
        rows.extend(flood()?);
        rows.extend(delay()?);
        rows.push(narrow()?);
        rows.push(lossy()?);
        rows.push(jitter()?);
        rows.extend(many()?);
        Ok(rows)
    })
    .await?
}

/// Namespaces and what joins them.
struct World {
    namespaces: Vec<(Namespace, Ipv4Addr)>,
    /// None where it is the kernel.
    network: Option<Network>,
    /// The bridge's own namespace.
    _bridge: Option<Namespace>,
}

impl World {
    /// Joins namespaces by the engine, with these links up.
    fn of_engine(ups: &[LinkConfig]) -> Result<World> {
        let mut topology = Topology::new(vec![vec![0]])?;
        let mut nodes = Vec::new();
        for (i, up) in ups.iter().enumerate() {
            let addr = address(i);
            let access = Access { up: *up, ..Access::default() };
            nodes.push((topology.add_node(RealmId::PUBLIC, addr, None, access)?, addr));
        }
        let engine = Engine::new(topology, EngineConfig::default());
        let outlets = Outlets {
            away: Box::new(|_| {}),
            captured: Box::new(|_| {}),
            happened: Box::new(|_| {}),
            ended: Box::new(|_| {}),
        };
        let network = Network::start(engine, Options::default(), outlets)?;
        let mut namespaces = Vec::new();
        for (node, addr) in nodes {
            let namespace = Namespace::empty().context("network namespaces need root")?;
            let device = namespace.open(&Interface {
                name: DEVICE_NAME.to_owned(),
                addrs: vec![(addr.into(), 8)],
                mtu: 1500,
            })?;
            network.attach(node, device);
            namespaces.push((namespace, addr));
        }
        let world = World { namespaces, network: Some(network), _bridge: None };
        world.report()?;
        Ok(world)
    }

    /// Joins two namespaces by veth pairs on a bridge.
    fn of_kernel() -> Result<World> {
        let bridge = Namespace::empty().context("network namespaces need root")?;
        ip(&bridge, "link add br0 type bridge")?;
        ip(&bridge, "link set br0 up")?;
        let mut namespaces = Vec::new();
        for i in 0..2 {
            let (namespace, addr) = (Namespace::empty()?, address(i));
            let there = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
            ip(&bridge, &format!("link add v{i} type veth peer name eth0 netns {there}"))?;
            ip(&bridge, &format!("link set v{i} master br0 up"))?;
            ip(&namespace, "link set lo up")?;
            ip(&namespace, &format!("addr add {addr}/8 dev eth0"))?;
            ip(&namespace, "link set eth0 up")?;
            namespaces.push((namespace, addr));
        }
        let world = World { namespaces, network: None, _bridge: Some(bridge) };
        // The bridge learns who is where by the first packets.
        world.transfer(Duration::from_millis(200))?;
        Ok(world)
    }

    fn report(&self) -> Result<Report> {
        let network = self.network.as_ref().context("the kernel reports nothing")?;
        let (sender, receiver) = mpsc::channel();
        network.report(move |report| drop(sender.send(report)));
        receiver.recv().context("the network broke")
    }

    fn udp(&self, node: usize) -> Result<UdpSocket> {
        let (namespace, addr) = &self.namespaces[node];
        Ok(namespace.run(|| UdpSocket::bind((*addr, 7000)))??)
    }

    /// Sends as much as goes from the first to the second over one connection; returns bits per second.
    fn transfer(&self, time: Duration) -> Result<f64> {
        let (namespace, addr) = &self.namespaces[1];
        let listener = namespace.run(|| TcpListener::bind((*addr, 0)))??;
        let at = listener.local_addr()?;
        let mut sender = self.namespaces[0].0.run(|| TcpStream::connect(at))??;
        let (mut receiver, _) = listener.accept()?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (bytes, begun) = (vec![7; 256 << 10], Instant::now());
                while begun.elapsed() < time && sender.write_all(&bytes).is_ok() {}
            });
            let (mut bytes, mut received, begun) = (vec![0; 256 << 10], 0, Instant::now());
            loop {
                match receiver.read(&mut bytes)? {
                    0 => return Ok(received as f64 * 8.0 / begun.elapsed().as_secs_f64()),
                    size => received += size,
                }
            }
        })
    }

    /// Floods the second with small packets; returns how many came to it in a second, and for each second of processors
    /// that the machine spent on it: sender, receiver, kernel and engine together.
    fn flood(&self) -> Result<(f64, f64)> {
        let (sender, receiver) = (self.udp(0)?, self.udp(1)?);
        sender.connect(receiver.local_addr()?)?;
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        let over = AtomicBool::new(false);
        let came = |namespace: &Namespace| -> Result<u64> {
            let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
            let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
            Ok(line.split_ascii_whitespace().nth(1).unwrap_or("0").parse()?)
        };
        let before = came(&self.namespaces[1].0)?;
        let cpu_before = busy()?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _full = sender.send(&[7; 64]);
                }
            });
            let (begun, mut bytes) = (Instant::now(), [0; 64]);
            while begun.elapsed() < FLOOD {
                let _none = receiver.recv(&mut bytes);
            }
            over.store(true, Ordering::Relaxed);
            let came = (came(&self.namespaces[1].0)? - before) as f64;
            let (wall, cpu) = (begun.elapsed(), busy()?.saturating_sub(cpu_before));
            Ok((came / wall.as_secs_f64(), came / cpu.as_secs_f64().max(f64::EPSILON)))
        })
    }
}

fn bulk() -> Result<Row> {
    let (ours, theirs) = (World::of_engine(&[LinkConfig::default(); 2])?, World::of_kernel()?);
    let (mut engine, mut kernel, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let pair = (ours.transfer(BULK)?, theirs.transfer(BULK)?);
        engine.push(pair.0 / 1e9);
        kernel.push(pair.1 / 1e9);
        ratios.push(pair.0 / pair.1);
    }
    let ratio = percentile(&ratios, 50);
    Ok(Row {
        measure: format!("bulk TCP between two namespaces on clean links, {PAIRS} pairs of {} s", BULK.as_secs()),
        figure: format!("median {:.2} Gbit/s", percentile(&engine, 50)),
        reference: format!("veth pairs on a bridge: median {:.2} Gbit/s", percentile(&kernel, 50)),
        ratio: format!("median {ratio:.2} ×, {:.2} to {:.2}", percentile(&ratios, 1), percentile(&ratios, 100)),
        goal: format!("≥ {BULK_GOAL} ×"),
        reached: Some(ratio >= BULK_GOAL),
        bound: "four copies of each large packet where the bridge makes two, and a switch to the engine and back for it: two \
                processors are too few for three threads"
            .to_owned(),
    })
}

fn flood() -> Result<Vec<Row>> {
    let (ours, theirs) = (World::of_engine(&[LinkConfig::default(); 2])?, World::of_kernel()?);
    let before = ours.report()?;
    let (engine, engine_per_core) = ours.flood()?;
    let after = ours.report()?;
    let (kernel, kernel_per_core) = theirs.flood()?;
    let (cpu, passed) = (after.lab.cpu_us - before.lab.cpu_us, after.engine.delivered - before.engine.delivered);
    let per_core = passed as f64 * 1e6 / cpu.max(1) as f64;
    let ratio = engine_per_core / kernel_per_core;
    let said = |packets: f64, per_core: f64| {
        format!("{:.0} k for each second of processors, {:.0} k/s", per_core / 1e3, packets / 1e3)
    };
    Ok(vec![Row {
        measure: "datagrams of 64 bytes, flooded by one sender, by all processor time of the machine".to_owned(),
        figure: format!("{}; {:.0} k for one of the engine's", said(engine, engine_per_core), per_core / 1e3),
        reference: format!("veth pairs on a bridge: {}", said(kernel, kernel_per_core)),
        ratio: format!("{ratio:.2} ×; {:.2} × of the packets per second", engine / kernel),
        goal: format!("≥ {FLOOD_GOAL} ×"),
        reached: Some(ratio >= FLOOD_GOAL),
        bound: "a read and a write of the device for each packet; the bridge forwards in the sender's own call"
            .to_owned(),
    }])
}

/// Returns the time that all processors of this machine have spent on anything so far. What forwards packets works in
/// whoever's time, that of interrupts included, so that no one process or thread has all of it.
fn busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no line of all processors")?;
    let ticks: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = ticks[..] else { bail!("too few times: {line}") };
    // A hundred for each second, whatever the kernel's own clock does: USER_HZ is part of its interface.
    Ok(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}

fn delay() -> Result<Vec<Row>> {
    let link = LinkConfig { delay_ns: DELAY_NS, ..LinkConfig::default() };
    let world = World::of_engine(&[link, LinkConfig::default()])?;
    let (sender, receiver) = (world.udp(0)?, world.udp(1)?);
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(Duration::from_secs(10)))?;
    let errors: Vec<f64> = std::thread::scope(|scope| -> Result<Vec<f64>> {
        scope.spawn(move || {
            for _ in 0..TIMED {
                let _full = sender.send(&now_ns().to_le_bytes());
                std::thread::sleep(APART);
            }
        });
        let mut bytes = [0; 8];
        let mut errors = Vec::new();
        for _ in 0..TIMED {
            receiver.recv(&mut bytes)?;
            let took = now_ns() - u64::from_le_bytes(bytes);
            errors.push((took as f64 - DELAY_NS as f64) / 1e3);
        }
        Ok(errors)
    })?;
    let report = world.report()?;
    let waits = empty_waits(TIMED, u64::try_from(APART.as_nanos())?, report.lab.realtime)?;
    let waits: Vec<f64> = waits.into_iter().map(|ns| ns as f64 / 1e3).collect();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let (late, empty) = (report.lateness.quantile_ns(990) as f64 / 1e3, percentile(&waits, 99));
    let class = if report.lab.realtime { "real-time" } else { "of no class of its own" };
    Ok(vec![
        Row {
            measure: format!("datagram over a delay of 100 ms, {TIMED} of them, as the receiver sees it"),
            figure: format!("mean {mean:+.0} µs, p99 {:+.0} µs", percentile(&errors, 99)),
            reference: "100 ms".to_owned(),
            ratio: format!("{:.4} ×", 1.0 + mean * 1e3 / DELAY_NS as f64),
            goal: "mean within 100 µs".to_owned(),
            reached: Some(mean.abs() <= 100.0),
            bound: "wake-ups of the engine and of the receiver".to_owned(),
        },
        Row {
            measure: format!("lateness in the engine at that, p99; its thread is {class}"),
            figure: format!("at most {late:.0} µs (its histogram doubles)"),
            reference: format!("an empty loop of epoll_pwait2: {empty:.0} µs"),
            ratio: format!("{:+.0} µs", late - empty),
            goal: "≤ 100 µs more".to_owned(),
            reached: Some(late - empty <= 100.0),
            bound: "the timer's interrupt and the scheduler".to_owned(),
        },
    ])
}

fn narrow() -> Result<Row> {
    let link = LinkConfig { rate_bps: NARROW, queue_bytes: 64 << 10, ..LinkConfig::default() };
    let world = World::of_engine(&[link, LinkConfig::default()])?;
    let (sender, receiver) = (world.udp(0)?, world.udp(1)?);
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(Duration::from_secs(10)))?;
    let over = AtomicBool::new(false);
    // By what the receiver's program gets and its clock: from one datagram to another a whole time later.
    let rate = std::thread::scope(|scope| -> Result<f64> {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _full = sender.send(&[7; NARROW_PAYLOAD]);
                // Half as much again as goes through.
                std::thread::sleep(Duration::from_micros(800));
            }
        });
        let counted = (|| {
            let mut bytes = [0; NARROW_PAYLOAD];
            // Until its queue is full.
            for _ in 0..200 {
                receiver.recv(&mut bytes)?;
            }
            let (begun, mut received) = (Instant::now(), 0u64);
            while begun.elapsed() < NARROW_TIME {
                received += (receiver.recv(&mut bytes)? + HEADS) as u64;
            }
            Ok(received as f64 * 8.0 / begun.elapsed().as_secs_f64())
        })();
        over.store(true, Ordering::Relaxed);
        counted
    })?;
    let ratio = rate / NARROW as f64;
    Ok(Row {
        measure: format!(
            "datagrams over a link of 10 Mbit/s, IP bytes as the receiver gets them over {} s",
            NARROW_TIME.as_secs()
        ),
        figure: format!("{:.3} Mbit/s", rate / 1e6),
        reference: "10 Mbit/s".to_owned(),
        ratio: format!("{ratio:.4} ×"),
        goal: "± 0.5 %".to_owned(),
        reached: Some((ratio - 1.0).abs() <= 0.005),
        bound: "wake-ups of the receiver at both ends of the time".to_owned(),
    })
}

fn lossy() -> Result<Row> {
    let link = LinkConfig { loss_ppm: 50_000, ..LinkConfig::default() };
    let world = World::of_engine(&[link, LinkConfig::default()])?;
    let (sender, receiver) = (world.udp(0)?, world.udp(1)?);
    sender.connect(receiver.local_addr()?)?;
    receiver.set_nonblocking(true)?;
    let (mut sent, mut received) = (0, 0);
    let mut bytes = [0; 64];
    let mut take = || -> Result<u64> {
        let mut taken = 0;
        while receiver.recv(&mut bytes).is_ok() {
            taken += 1;
        }
        Ok(taken)
    };
    while sent < LOSSY {
        for _ in 0..BURST {
            sender.send(&[7; 64])?;
        }
        sent += BURST;
        // Not faster than they are taken: until the engine has dealt with all of them, and the receiver has what came.
        while world.report()?.nodes[&0].up[0].offered + world.report()?.nodes[&0].overrun < sent {}
        received += take()?;
    }
    // What was handed out last is at its socket by the next time.
    std::thread::sleep(Duration::from_millis(100));
    received += take()?;
    let node = world.report()?.nodes[&0].clone();
    ensure!(node.overrun == 0, "{} packets found no room in their device", node.overrun);
    let (offered, lost) = (sent as f64, (sent - received) as f64);
    let deviation = (offered * 0.05 * 0.95).sqrt();
    Ok(Row {
        measure: format!("loss of 5 %, {LOSSY} packets, by what the receiver gets"),
        figure: format!(
            "{:.3} %; the model says that it lost {}, {lost} did not come",
            lost / offered * 100.0,
            node.up[0].lost
        ),
        reference: format!("5 %, deviation {:.3} %", deviation / offered * 100.0),
        ratio: format!("{:+.1} deviations", (lost - offered * 0.05) / deviation),
        goal: "within 3 deviations".to_owned(),
        reached: Some((lost - offered * 0.05).abs() <= 3.0 * deviation),
        bound: "chance".to_owned(),
    })
}

/// Jitter as packets have it that went through devices, held against its distribution by Kolmogorov and Smirnov.
fn jitter() -> Result<Row> {
    let link =
        LinkConfig { delay_ns: 50 * MS, jitter: Jitter::Uniform, jitter_ns: SPREAD_NS / 2, ..LinkConfig::default() };
    let world = World::of_engine(&[link, LinkConfig::default()])?;
    let (sender, receiver) = (world.udp(0)?, world.udp(1)?);
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut delays: Vec<f64> = std::thread::scope(|scope| -> Result<Vec<f64>> {
        scope.spawn(move || {
            for _ in 0..JITTERED {
                let _full = sender.send(&now_ns().to_le_bytes());
                // Wider than the jitter: a link that keeps order holds none back for the one before it.
                std::thread::sleep(Duration::from_nanos(SPREAD_NS + 2 * MS));
            }
        });
        let mut bytes = [0; 8];
        (0..JITTERED)
            .map(|_| {
                receiver.recv(&mut bytes)?;
                Ok((now_ns() - u64::from_le_bytes(bytes)) as f64)
            })
            .collect()
    })?;
    delays.sort_unstable_by(f64::total_cmp);
    // The machine's own share, which every packet has, is not the model's: the quickest has least of it.
    let (low, wide) = ((50 * MS) as f64 - SPREAD_NS as f64 / 2.0, SPREAD_NS as f64);
    let count = delays.len() as f64;
    let distance = delays.iter().enumerate().map(|(at, delay)| {
        let expected = ((delay - low) / wide).clamp(0.0, 1.0);
        (expected - at as f64 / count).abs().max(((at + 1) as f64 / count - expected).abs())
    });
    let distance = distance.fold(0.0, f64::max);
    // Beyond which one in a hundred of true samples is.
    let critical = 1.63 / count.sqrt();
    Ok(Row {
        measure: format!(
            "jitter of ± {} ms over 50 ms, {JITTERED} packets through devices, by Kolmogorov and Smirnov",
            SPREAD_NS / 2 / MS
        ),
        figure: format!("distance {distance:.4}"),
        reference: format!("1 % of samples of the distribution itself are further than {critical:.4}"),
        ratio: format!("{:.2} ×", distance / critical),
        goal: "≤ 1 ×".to_owned(),
        reached: Some(distance <= critical),
        bound: "what the machine adds to each delay".to_owned(),
    })
}

fn many() -> Result<Vec<Row>> {
    let begun = Instant::now();
    let world = World::of_engine(&[LinkConfig { delay_ns: MS, ..LinkConfig::default() }; MANY])?;
    let took = begun.elapsed();
    let bare = Instant::now();
    let empty: Vec<Namespace> = (0..MANY).map(|_| Namespace::empty()).collect::<std::io::Result<_>>()?;
    let bare = bare.elapsed();
    drop(empty);
    let before = world.report()?.lab;
    std::thread::sleep(IDLE);
    let after = world.report()?.lab;
    let share = (after.cpu_us - before.cpu_us) as f64 * 100.0 / (after.wall_us - before.wall_us) as f64;
    Ok(vec![
        Row {
            measure: format!("{MANY} namespaces with a device each, set up one by one"),
            figure: format!("{:.0} ms", took.as_secs_f64() * 1e3),
            reference: format!("the namespaces alone: {:.0} ms", bare.as_secs_f64() * 1e3),
            ratio: format!("{:.2} ×", took.as_secs_f64() / bare.as_secs_f64()),
            goal: "≤ 2 s".to_owned(),
            reached: Some(took <= Duration::from_secs(2)),
            bound: "the kernel, which makes a device under one lock for all namespaces".to_owned(),
        },
        Row {
            measure: format!("engine of {MANY} idle nodes, over {} s", IDLE.as_secs()),
            figure: format!("{share:.2} % of a processor, the two reports that count it included"),
            reference: "–".to_owned(),
            ratio: "–".to_owned(),
            goal: "≤ 1 %".to_owned(),
            reached: Some(share <= 1.0),
            bound: "nothing wakes it".to_owned(),
        },
    ])
}

fn address(i: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + u32::try_from(i).unwrap_or(0))
}

/// Runs `ip` in a namespace: only what the network is held against is made by it.
fn ip(namespace: &Namespace, args: &str) -> Result<()> {
    let output = namespace.run(|| Command::new("ip").args(args.split(' ')).output())?;
    let output = output.context("the reference needs `ip`: sudo apt-get install iproute2")?;
    ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
