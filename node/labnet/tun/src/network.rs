//! The thread that runs an engine.
//!
//! [`Network::start`] gives an engine a thread of its own, which does nothing else: it waits, to the nanosecond, for
//! packets from devices and for what the engine has to do next. Everybody else has a [`Network`], which tells it things
//! and waits for nothing. The thread ends when it is told to, when nobody has a handle any more, or when it breaks; it
//! says which of these, once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use iptl_labnet::{
    Addrs, Away, Captured, Doors, Engine, Faults, Happened, LinkConfig, LinkId, NodeId, OFFLOAD_SIZE, Output, Wish,
    WishError, prefix_of,
};

use crate::alarm::Alarm;
use crate::device::{self, Counters, Device};
use crate::report::{LabReport, NodeReport, Report};
use crate::sys::{self, Epoll};

/// Packets that are taken from one device before others have their turn.
const TURN: usize = 64;

/// The largest packet.
const MAX_PACKET: usize = 0xffff;

/// Packets of more bytes stay where they were read; others are copied, so that what is under way takes no more memory
/// than it needs.
const LARGE: usize = 32 << 10;

/// Bytes of packets from other machines that may wait for the thread.
const MAX_WAITING: usize = 32 << 20;

/// Time between two looks at what the thread uses.
const LOOK_NS: u64 = 1_000_000_000;

/// Share of a processor, in a hundred, beyond which the thread no longer goes before others: a flood must not take the
/// machine from its owner.
const REALTIME_SHARE: u64 = 50;

/// Token of the pipe that wakes the thread.
const WAKE: u64 = u64::MAX;

/// Returns the time that networks go by, in nanoseconds: one clock for all of a machine, which never goes back.
pub fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

/// Name of every device.
pub const DEVICE_NAME: &str = "eth0";

/// How a network is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether its thread goes before others, where it may and as long as it uses little of a processor.
    pub realtime: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { realtime: true }
    }
}

/// How a network ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It was told to.
    Stopped(Box<Report>),
    /// Its thread broke, and nothing is delivered any more.
    Broken {
        /// Why.
        reason: String,
    },
}

/// What a network hands to others.
pub struct Outlets {
    /// Takes a packet for a node of another machine. Must not wait: all packets do meanwhile.
    pub away: Box<dyn FnMut(Away) + Send>,
    /// Takes a piece of a capture. Must not wait either.
    pub captured: Box<dyn FnMut(Captured) + Send>,
    /// Is told of a fault that has happened to the network. Must not wait either.
    pub happened: Box<dyn FnMut(Happened) + Send>,
    /// Is told once how the network ended.
    pub ended: Box<dyn FnOnce(End) + Send>,
}

type Reply<T> = Box<dyn FnOnce(T) + Send>;

enum Order {
    Attach(NodeId, Device),
    Detach(NodeId),
    Away(Vec<Away>),
    Configure(LinkId, LinkConfig),
    Shape(NodeId, Box<Wish>, Reply<Result<(), WishError>>),
    Partition(Vec<Option<u8>>),
    Faults(Box<Faults>, u64),
    Capture(NodeId, u64, u64),
    Doors(NodeId, Doors),
    Report(Reply<Report>),
    Stop,
}

/// A handle to a network. Without any the network ends.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    orders: mpsc::Sender<Order>,
    wake: PipeWriter,
    bell: Arc<Bell>,
}

/// What both sides see of the orders that wait.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    waiting: AtomicUsize,
    crowded_out: AtomicU64,
}

impl Network {
    /// Starts the thread of an engine.
    ///
    /// # Errors
    ///
    /// Fails where the system has no thread or descriptors left.
    pub fn start(engine: Engine, options: Options, outlets: Outlets) -> io::Result<Network> {
        let (orders, queue) = mpsc::channel();
        let (woken, wake) = io::pipe()?;
        let epoll = Epoll::new()?;
        epoll.add(woken.as_fd(), WAKE)?;
        let bell = Arc::new(Bell::default());
        let started_ns = now_ns();
        let Outlets { away, captured, happened, ended } = outlets;
        let mut runner = Runner {
            engine,
            epoll,
            alarm: Alarm::default(),
            queue,
            woken,
            bell: Arc::clone(&bell),
            started_ns,
            devices: BTreeMap::new(),
            gone: BTreeMap::new(),
            away,
            captured,
            happened,
            faults: None,
            options,
            realtime: false,
            looked_ns: started_ns,
            looked_cpu_us: 0,
            lab: LabReport::default(),
            scratch: Vec::with_capacity(MAX_PACKET),
        };
        std::thread::Builder::new().name("labnet".to_owned()).spawn(move || {
            let end = match catch_unwind(AssertUnwindSafe(|| runner.run())) {
                Ok(Ok(())) => End::Stopped(Box::new(runner.report())),
                Ok(Err(e)) => End::Broken { reason: e.to_string() },
                Err(panic) => End::Broken { reason: said(&*panic) },
            };
            ended(end);
        })?;
        Ok(Network { shared: Arc::new(Shared { orders, wake, bell }) })
    }

    /// Gives a node its device.
    pub fn attach(&self, node: NodeId, device: Device) {
        self.shared.tell(Order::Attach(node, device));
    }

    /// Takes a node's device away; what it has counted is kept.
    pub fn detach(&self, node: NodeId) {
        self.shared.tell(Order::Detach(node));
    }

    /// Hands over packets from another machine, as [`Engine::handle_away`] takes them. Beyond a bound of what may wait
    /// they are lost, and counted.
    pub fn come_in(&self, packets: Vec<Away>) {
        let size = size_of_all(&packets);
        let bell = &self.shared.bell;
        if bell.waiting.fetch_add(size, Ordering::Relaxed) + size > MAX_WAITING {
            bell.waiting.fetch_sub(size, Ordering::Relaxed);
            bell.crowded_out.fetch_add(packets.len() as u64, Ordering::Relaxed);
            return;
        }
        self.shared.tell(Order::Away(packets));
    }

    /// Changes what a link does from now on.
    pub fn configure(&self, link: LinkId, config: LinkConfig) {
        self.shared.tell(Order::Configure(link, config));
    }

    /// Puts in force what a node asks of its own network, as [`Engine::shape`] does. `reply` is called by its thread once
    /// it is so, must not wait, and is dropped where the thread has ended.
    pub fn shape(&self, node: NodeId, wish: Wish, reply: impl FnOnce(Result<(), WishError>) + Send + 'static) {
        self.shared.tell(Order::Shape(node, Box::new(wish), Box::new(reply)));
    }

    /// Parts the network, as [`Engine::partition`] does.
    pub fn partition(&self, sides: Vec<Option<u8>>) {
        self.shared.tell(Order::Partition(sides));
    }

    /// Has faults happen, with times that count from a time of [`now_ns`].
    pub fn set_faults(&self, faults: Faults, start_ns: u64) {
        self.shared.tell(Order::Faults(Box::new(faults), start_ns));
    }

    /// Captures what a node sends and gets from now on, as [`Engine::capture`] does.
    pub fn capture(&self, node: NodeId, limit: u64, ahead_ns: u64) {
        self.shared.tell(Order::Capture(node, limit, ahead_ns));
    }

    /// Gives a node ways out of the lab, as [`Engine::set_doors`] does.
    pub fn set_doors(&self, node: NodeId, doors: Doors) {
        self.shared.tell(Order::Doors(node, doors));
    }

    /// Asks what the network did so far; what was captured until then has been handed over. `reply` is called by its thread, and dropped where it has ended.
    pub fn report(&self, reply: impl FnOnce(Report) + Send + 'static) {
        self.shared.tell(Order::Report(Box::new(reply)));
    }

    /// Ends it; its [`Outlets`] are told.
    pub fn stop(&self) {
        self.shared.tell(Order::Stop);
    }
}

impl Shared {
    fn tell(&self, order: Order) {
        // A network that has ended hears nothing, and has said so.
        if self.orders.send(order).is_ok() && !self.bell.rung.swap(true, Ordering::AcqRel) {
            let _ended = (&self.wake).write_all(&[0]);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tell(Order::Stop);
    }
}

struct Port {
    tun: File,
    device: Device,
}

/// What the thread has.
struct Runner {
    engine: Engine,
    epoll: Epoll,
    alarm: Alarm,
    queue: mpsc::Receiver<Order>,
    woken: PipeReader,
    bell: Arc<Bell>,
    started_ns: u64,
    devices: BTreeMap<usize, Port>,
    /// What devices that are gone had counted.
    gone: BTreeMap<usize, Counters>,
    away: Box<dyn FnMut(Away) + Send>,
    captured: Box<dyn FnMut(Captured) + Send>,
    happened: Box<dyn FnMut(Happened) + Send>,
    /// With the time from which theirs count.
    faults: Option<(Box<Faults>, u64)>,
    options: Options,
    realtime: bool,
    looked_ns: u64,
    looked_cpu_us: u64,
    lab: LabReport,
    scratch: Vec<u8>,
}

impl Runner {
    /// Runs until it is told to stop.
    fn run(&mut self) -> io::Result<()> {
        sys::exact_timers();
        self.realtime = self.options.realtime && sys::set_realtime(true);
        let mut tokens = Vec::new();
        loop {
            let now = now_ns();
            self.do_faults(now)?;
            self.engine.handle_timeout(now);
            self.hand_out();
            let now = now_ns();
            self.look(now);
            let fault =
                self.faults.as_ref().and_then(|(faults, start)| Some(start.saturating_add(faults.poll_timeout()?)));
            let due_ns = self.engine.poll_timeout().into_iter().chain(fault).min();
            tokens.clear();
            self.epoll.wait(self.alarm.sleep_ns(now, due_ns), &mut tokens)?;
            for token in tokens.drain(..) {
                if token == WAKE {
                    if self.take_orders()? {
                        return Ok(());
                    }
                } else if let Ok(node) = usize::try_from(token) {
                    self.take_packets(node);
                }
            }
        }
    }

    /// Does as it is told; returns whether that is to end.
    fn take_orders(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64];
        let _rung = self.woken.read(&mut bytes)?;
        self.bell.rung.store(false, Ordering::Release);
        loop {
            match self.queue.try_recv() {
                Ok(Order::Attach(node, device)) => self.attach(node, device)?,
                Ok(Order::Detach(node)) => self.detach(node.index()),
                Ok(Order::Away(packets)) => {
                    self.bell.waiting.fetch_sub(size_of_all(&packets), Ordering::Relaxed);
                    for packet in packets {
                        self.engine.handle_away(now_ns(), packet);
                    }
                    self.hand_out();
                }
                Ok(Order::Configure(link, config)) => {
                    self.engine.configure(link, config);
                }
                Ok(Order::Shape(node, wish, reply)) => reply(self.engine.shape(node, &wish)),
                Ok(Order::Partition(sides)) => self.engine.partition(&sides),
                Ok(Order::Faults(faults, start_ns)) => self.faults = Some((faults, start_ns)),
                Ok(Order::Capture(node, limit, ahead_ns)) => self.engine.capture(node, limit, ahead_ns),
                Ok(Order::Doors(node, doors)) => self.engine.set_doors(node, doors),
                Ok(Order::Report(reply)) => {
                    self.hand_out();
                    reply(self.report());
                }
                Ok(Order::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(true),
                Err(mpsc::TryRecvError::Empty) => return Ok(false),
            }
        }
    }

    fn do_faults(&mut self, now_ns: u64) -> io::Result<()> {
        while let Some((faults, start_ns)) = &mut self.faults
            && let Some(happened) = faults.advance(*start_ns, now_ns, &mut self.engine)
        {
            for moved in happened.moved.iter().filter(|moved| moved.before != moved.now) {
                let Some(port) = self.devices.get(&moved.node.index()) else { continue };
                let with_prefixes = |addrs: Addrs| addrs.iter().map(|addr| (addr, prefix_of(addr))).collect::<Vec<_>>();
                let (before, now) = (with_prefixes(moved.before), with_prefixes(moved.now));
                match device::readdress(&port.device, DEVICE_NAME, &before, &now) {
                    // Its namespace is gone, and the device with it.
                    Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
                    changed => changed?,
                }
            }
            (self.happened)(happened);
        }
        Ok(())
    }

    fn attach(&mut self, node: NodeId, device: Device) -> io::Result<()> {
        self.detach(node.index());
        let tun = File::from(device.tun.try_clone()?);
        self.epoll.add(tun.as_fd(), node.index() as u64)?;
        self.devices.insert(node.index(), Port { tun, device });
        Ok(())
    }

    fn detach(&mut self, node: usize) {
        let Some(port) = self.devices.remove(&node) else { return };
        // Its namespace may be gone, and the device with it.
        let _gone = self.epoll.remove(port.tun.as_fd());
        add(self.gone.entry(node).or_default(), device::counters(&port.device, DEVICE_NAME).unwrap_or_default());
    }

    /// Takes what a node has sent.
    fn take_packets(&mut self, node: usize) {
        for _ in 0..TURN {
            let Some(port) = self.devices.get(&node) else { return };
            let mut description = [0; OFFLOAD_SIZE];
            match sys::read_packet(port.tun.as_fd(), &mut description, &mut self.scratch) {
                Ok(false) => {}
                Ok(true) => {
                    let bytes = if self.scratch.len() > LARGE {
                        let next = self.engine.buffer(MAX_PACKET);
                        std::mem::replace(&mut self.scratch, next)
                    } else {
                        let mut bytes = self.engine.buffer(self.scratch.len());
                        bytes.extend_from_slice(&self.scratch);
                        bytes
                    };
                    self.engine.handle_offloaded(now_ns(), NodeId::from_index(node), bytes, description);
                    self.hand_out();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.detach(node),
            }
        }
    }

    /// Delivers what the engine is done with.
    fn hand_out(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            let Output { node, bytes, header, offload, .. } = output;
            match self.devices.get(&node.index()) {
                Some(port) => {
                    let description = offload.encode(&bytes, &header);
                    let parts = [IoSlice::new(&description), IoSlice::new(&bytes)];
                    // What its system does not take the device counts itself, where there still is one.
                    if (&port.tun).write_vectored(&parts).is_err_and(|e| e.raw_os_error() == Some(libc::EBADFD)) {
                        self.lab.undelivered += 1;
                        self.detach(node.index());
                    }
                }
                None => self.lab.undelivered += 1,
            }
            self.engine.recycle(bytes);
        }
        while let Some(packet) = self.engine.poll_away() {
            (self.away)(packet);
        }
        while let Some(piece) = self.engine.poll_captured() {
            (self.captured)(piece);
        }
    }

    /// Looks now and then whether the thread uses too much to go before others.
    fn look(&mut self, now_ns: u64) {
        let passed_ns = now_ns - self.looked_ns;
        if !self.realtime || passed_ns < LOOK_NS {
            return;
        }
        let cpu_us = sys::thread_cpu_us();
        let used_ns = (cpu_us - self.looked_cpu_us).saturating_mul(1_000);
        (self.looked_ns, self.looked_cpu_us) = (now_ns, cpu_us);
        if used_ns.saturating_mul(100) > passed_ns.saturating_mul(REALTIME_SHARE) {
            tracing::info!("a network uses much of a processor and no longer goes before others");
            self.realtime = !sys::set_realtime(false);
        }
    }

    fn report(&self) -> Report {
        let mut nodes = BTreeMap::new();
        let seen: std::collections::BTreeSet<usize> = self.devices.keys().chain(self.gone.keys()).copied().collect();
        for node in seen {
            let id = NodeId::from_index(node);
            let (up, down) = self.engine.links_of(id);
            let mut counters = self.gone.get(&node).copied().unwrap_or_default();
            if let Some(port) = self.devices.get(&node) {
                add(&mut counters, device::counters(&port.device, DEVICE_NAME).unwrap_or_default());
            }
            let spoofed = self.engine.spoofed_by(id).unwrap_or_default();
            let Counters { overrun, refused } = counters;
            let own = self.engine.own_use(id);
            nodes.insert(node, NodeReport { up, down, own, spoofed, overrun, refused });
        }
        Report {
            nodes,
            regions: self.engine.regions(),
            across: self.engine.across(),
            engine: self.engine.stats(),
            lateness: self.engine.lateness().clone(),
            lab: LabReport {
                cpu_us: sys::thread_cpu_us(),
                wall_us: (now_ns() - self.started_ns) / 1_000,
                realtime: self.realtime,
                crowded_out: self.bell.crowded_out.load(Ordering::Relaxed),
                ..self.lab
            },
        }
    }
}

fn add(to: &mut Counters, more: Counters) {
    to.overrun += more.overrun;
    to.refused += more.refused;
}

fn size_of_all(packets: &[Away]) -> usize {
    packets.iter().map(|packet| packet.bytes.len() + size_of::<Away>()).sum()
}

/// Returns what a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "its thread broke".to_owned(), |text| format!("its thread broke: {text}"))
}
