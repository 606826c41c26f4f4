//! The first process of every container of the lab.
//!
//! It opens the listener of the sync service where only this container can reach it, hands it to the lablet with the
//! ends of stdout and stderr, and holds the workload until it is told to start it. Then it reaps what nobody waits
//! for, passes signals on, looks after the health check, and says each second what the container has used. When the
//! workload is over it ends everything else, hands over the artifacts, and ends.
//!
//! It runs as the workload's own user without any privilege, so nothing that it says is more than the word of a
//! workload; what it is protected by is that processes of a namespace cannot signal its first one, and that it is not
//! dumpable, so that they cannot look into it. If its lablet goes away it keeps all it was given and connects again.
//!
//! [`protocol`] is what the two say to each other, [`link`] the connection, [`child`] the workload's process,
//! [`usage`] the readings, [`outputs`] the artifacts, [`empty`] what a crash may take with it. Start reading at [`Init::run`]. The same program is executed in a
//! running container to end what a person left there: [`abandoned`], and in one of its own to make a device: [`network`].

mod abandoned;
mod child;
#[path = "../../../labnet/tun/src/device.rs"]
#[expect(dead_code, reason = "the lablet asks for counters, this does not")]
mod device;
mod empty;
mod link;
mod network;
mod outputs;
#[cfg_attr(not(test), expect(dead_code, reason = "each end uses its half"))]
mod protocol;
mod sys;
mod usage;

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use child::{Look, Running};
use link::Link;
use protocol::{End, FromInit, Order, Phase, Sample, ToInit};

/// Where programs of a container look for the sync service; the name of its host stands in `/etc/hosts`.
const SYNC_ADDRESS: (&str, u16) = ("127.0.0.1", 5050);

/// Time between two samples.
const SAMPLE: Duration = Duration::from_secs(1);

/// Time between two samples where the workload may soon have used all its CPU time.
const SAMPLE_NEAR_LIMIT: Duration = Duration::from_millis(50);

/// Time between two tries to reach the lablet.
const RECONNECT: Duration = Duration::from_millis(250);

/// How long a container waits for a lablet that never told it to start.
const HOLD_UNSTARTED: Duration = Duration::from_secs(60);

/// How long a workload runs on without a lablet: longer than leases last and a lablet takes to be started again, after
/// which nobody takes its result any more, and its machine's owner may have ended the lablet to have the machine back.
const HOLD_RUNNING: Duration = Duration::from_secs(120);

/// How long a container whose workload is over waits for a lablet to take what it left.
const HOLD_OVER: Duration = Duration::from_secs(3600);

fn main() {
    // Executed beside the one that the container began with, to end a command that nobody attends any more.
    let args: Vec<String> = std::env::args().collect();
    if let [_, verb, mark] = args.as_slice()
        && verb == protocol::END_VERB
    {
        std::process::exit(abandoned::end(mark));
    }
    // Executed in a container of its own, to make a device in the network of another.
    if let [_, verb, words @ ..] = args.as_slice()
        && verb == protocol::DEVICE_VERB
    {
        std::process::exit(network::make(words));
    }
    // An exit status is all that can be said without a lablet.
    let reaches_out = matches!(args.as_slice(), [_, verb] if verb == protocol::EGRESS_VERB);
    std::process::exit(match Init::new(reaches_out) {
        Ok(init) => init.run(),
        Err(_) => 70,
    });
}

struct Init {
    link: Option<Link>,
    next_connect: Instant,
    /// Since when there is no lablet.
    alone_since: Instant,
    handed: Handed,
    signals: OwnedFd,
    order: Option<Order>,
    running: Option<Running>,
    over: Option<Over>,
    started_at: Option<Instant>,
    next_sample: Instant,
    unwell: Option<String>,
    crash: Crash,
    /// Directories that are to be empty before the workload is started again.
    to_empty: Vec<String>,
    /// Whether the workload is stopped on purpose.
    paused: bool,
    /// What of limits in files was met at any time.
    met: u32,
}

/// What the lablet gets with every connection.
struct Handed {
    listener: TcpListener,
    out: OwnedFd,
    err: OwnedFd,
    /// What the lablet takes over that is to go to places outside of the lab.
    egress: Option<(TcpListener, UdpSocket)>,
    /// The ends that the workload gets; ours are closed when it is over, since it may be started again.
    writers: Option<(OwnedFd, OwnedFd)>,
}

/// Where a crash on purpose stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crash {
    None,
    /// Its processes are killed, and not all gone.
    Ending,
    /// And it is to start once they are.
    EndingToStart,
}

/// How it all ended.
enum Over {
    NotStarted(i32),
    Ended(End, Sample),
}

impl Init {
    fn new(reaches_out: bool) -> std::io::Result<Init> {
        sys::hide_from_others()?;
        let signals = sys::take_signals()?;
        let listener = TcpListener::bind(SYNC_ADDRESS)?;
        let egress = if reaches_out { Some(open_egress()?) } else { None };
        let (out, out_writer) = sys::pipe()?;
        let (err, err_writer) = sys::pipe()?;
        let now = Instant::now();
        Ok(Init {
            link: None,
            next_connect: now,
            alone_since: now,
            handed: Handed { listener, out, err, egress, writers: Some((out_writer, err_writer)) },
            signals,
            order: None,
            running: None,
            over: None,
            started_at: None,
            next_sample: now,
            unwell: None,
            crash: Crash::None,
            to_empty: Vec::new(),
            paused: false,
            met: 0,
        })
    }

    /// Lives until the lablet has everything, or has been away for too long; returns the status of the container.
    fn run(mut self) -> i32 {
        loop {
            let now = Instant::now();
            if self.link.is_none() {
                if self.has_waited_long_enough(now) {
                    return 71;
                }
                if now >= self.next_connect {
                    self.connect(now);
                }
            }
            if self.running.is_some() {
                self.look_after(now);
            }
            let (signalled, spoken) = sys::wait(
                self.signals.as_fd(),
                self.link.as_ref().map(Link::fd),
                self.running.as_ref().and_then(Running::look_fd),
                self.next_wake(now),
            );
            if signalled {
                self.reap();
            }
            if spoken && let Some(status) = self.listen() {
                return status;
            }
        }
    }

    fn phase(&self) -> Phase {
        match (&self.order, &self.running, &self.over) {
            (_, _, Some(_)) => Phase::Over,
            (_, Some(_), None) => Phase::Running,
            (Some(_), None, None) => Phase::Held,
            (None, None, None) => Phase::New,
        }
    }

    /// How long nothing needs to be done, in milliseconds.
    fn next_wake(&self, now: Instant) -> Duration {
        let mut wake = if self.running.is_some() {
            self.next_sample
        } else if self.link.is_some() {
            now + Duration::from_secs(3600)
        } else {
            now + HOLD_UNSTARTED
        };
        if self.link.is_none() {
            wake = wake.min(self.next_connect);
        }
        if let Some(health) = self.running.as_ref().and_then(Running::next_look)
            && !self.paused
        {
            wake = wake.min(health);
        }
        wake.saturating_duration_since(now)
    }

    fn has_waited_long_enough(&mut self, now: Instant) -> bool {
        let alone = now.saturating_duration_since(self.alone_since);
        match (&self.over, self.started_at) {
            (Some(_), _) => alone > HOLD_OVER,
            (None, None) => alone > HOLD_UNSTARTED,
            (None, Some(started)) => {
                let wall = self.order.as_ref().map_or(0, |order| order.wall_ms);
                let late = now.saturating_duration_since(started) > Duration::from_millis(wall);
                if late || alone > HOLD_RUNNING {
                    sys::kill_others();
                    self.reap();
                    self.end_crashed(libc::SIGKILL);
                }
                false
            }
        }
    }

    fn connect(&mut self, now: Instant) {
        self.next_connect = now + RECONNECT;
        let token = self.order.as_ref().map_or([0; 16], |order| order.token);
        let hello = FromInit::Hello { version: protocol::VERSION, token, phase: self.phase(), uid: sys::uid() };
        let mut fds = vec![self.handed.listener.as_raw_fd(), self.handed.out.as_raw_fd(), self.handed.err.as_raw_fd()];
        if let Some((tcp, udp)) = &self.handed.egress {
            fds.extend([tcp.as_raw_fd(), udp.as_raw_fd()]);
        }
        self.link = Link::connect(&hello, &fds).ok();
        match &self.over {
            Some(Over::NotStarted(errno)) => self.say(&FromInit::NotStarted { errno: *errno }),
            Some(Over::Ended(end, last)) => self.say(&FromInit::Ended { end: *end, last: *last }),
            None => {}
        }
        if let Some(reason) = self.unwell.clone() {
            self.say(&FromInit::Unwell { reason });
        }
    }

    fn say(&mut self, message: &FromInit) {
        let sent = self.link.as_mut().is_some_and(|link| link.send(message).is_ok());
        if !sent {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        if self.link.take().is_some() {
            self.alone_since = Instant::now();
            self.next_connect = self.alone_since;
        }
    }

    /// Takes what the lablet says; returns the status with which to end, where it says so.
    fn listen(&mut self) -> Option<i32> {
        loop {
            let message = match self.link.as_mut()?.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(_) => {
                    self.hang_up();
                    return None;
                }
            };
            match message {
                ToInit::Order(order) => {
                    self.order = Some(order);
                    self.say(&FromInit::Ready);
                }
                ToInit::Start => self.start(),
                ToInit::Signal(signal) => {
                    // Who is stopped hears nothing.
                    self.pause(false);
                    if let Some(running) = &self.running {
                        running.signal(signal);
                    }
                    self.end_crashed(signal);
                }
                ToInit::Kill => {
                    sys::kill_others();
                    self.end_crashed(libc::SIGKILL);
                }
                ToInit::Collect => self.collect(),
                ToInit::Bye => return Some(0),
                ToInit::Crash => {
                    if self.running.is_some() {
                        self.crash = Crash::Ending;
                        sys::kill_others();
                    }
                }
                ToInit::Pause => self.pause(true),
                ToInit::Resume => self.pause(false),
                ToInit::Empty(directories) => self.to_empty = directories,
                ToInit::Set(variables) => {
                    for (name, value) in variables.iter().filter_map(|variable| variable.split_once('=')) {
                        sys::set_variable(name, value);
                    }
                }
            }
        }
    }

    fn start(&mut self) {
        if self.running.is_some() {
            if self.crash == Crash::Ending {
                self.crash = Crash::EndingToStart;
            }
            return;
        }
        let (Some(order), Some((out, err))) = (&self.order, &self.handed.writers) else { return };
        let now = Instant::now();
        // A program that found a part of what it is to find nothing of would show what no disk does.
        let emptied =
            empty::all(&std::mem::take(&mut self.to_empty)).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
        match emptied.and_then(|()| Running::start(order, out, err, now)) {
            Ok(running) => {
                self.running = Some(running);
                self.started_at.get_or_insert(now);
                self.next_sample = now + SAMPLE_NEAR_LIMIT;
                self.say(&FromInit::Started);
            }
            Err(errno) => {
                self.handed.writers = None;
                self.over = Some(Over::NotStarted(errno));
                self.say(&FromInit::NotStarted { errno });
            }
        }
    }

    fn look_after(&mut self, now: Instant) {
        if now >= self.next_sample {
            let sample = self.sample();
            self.next_sample = now + self.until_next_sample(&sample);
            // A lablet that does not read is not waited for: the next sample holds the totals too.
            if self.link.as_ref().is_some_and(Link::has_room) {
                self.say(&FromInit::Sample(sample));
            }
        }
        let Some(running) = self.running.as_mut().filter(|_| !self.paused) else { return };
        if let Look::Unwell(reason) = running.look(now)
            && self.unwell.is_none()
        {
            self.unwell = Some(reason.clone());
            self.say(&FromInit::Unwell { reason });
        }
    }

    fn sample(&mut self) -> Sample {
        let mut sample = usage::read();
        if let Some(order) = &self.order {
            if usage::most_open_files() >= order.open_files.saturating_sub(1) {
                self.met |= Sample::OPEN_FILES;
            }
            self.met |= outputs::met(order);
        }
        sample.met = self.met;
        sample
    }

    fn until_next_sample(&self, sample: &Sample) -> Duration {
        let limit = self.order.as_ref().map_or(0, |order| order.cpu_us);
        let left = limit.saturating_sub(sample.cpu_us) / u64::from(sys::processors().max(1));
        // Only while it computes: one that waits just below its limit is not looked at all the time.
        Duration::from_micros(left).clamp(SAMPLE_NEAR_LIMIT, SAMPLE)
    }

    /// Passes signals on, and takes note of every process that ended.
    fn reap(&mut self) {
        loop {
            match (sys::next_signal(self.signals.as_fd()), &self.running) {
                (0, _) => break,
                (libc::SIGCHLD, _) | (_, None) => {}
                (signal, Some(running)) => running.signal(signal),
            }
        }
        while let Some((pid, end)) = sys::ended_child() {
            let Some(running) = &mut self.running else { continue };
            if running.pid() == pid {
                self.finish(end);
            } else {
                running.look_ended(pid, end);
            }
        }
    }

    /// Stops the workload, or lets it go on.
    fn pause(&mut self, paused: bool) {
        if self.running.is_none() || self.paused == paused {
            return;
        }
        self.paused = paused;
        sys::stop_others(paused);
        if let Some(running) = self.running.as_mut().filter(|_| !paused) {
            running.rest(Instant::now());
        }
    }

    /// Ends a workload that has crashed and was not started again.
    fn end_crashed(&mut self, signal: i32) {
        if self.started_at.is_some() && self.running.is_none() && self.over.is_none() {
            self.finish(End::Signalled(signal));
        } else if self.crash != Crash::None {
            // The end that it is about to come to counts.
            self.crash = Crash::None;
        }
    }

    fn finish(&mut self, end: End) {
        sys::kill_others();
        self.running = None;
        self.paused = false;
        sys::reap_all();
        let crash = std::mem::replace(&mut self.crash, Crash::None);
        if crash != Crash::None {
            if crash == Crash::EndingToStart {
                self.start();
            }
            return;
        }
        self.handed.writers = None;
        let last = self.sample();
        self.over = Some(Over::Ended(end, last));
        self.say(&FromInit::Ended { end, last });
    }

    fn collect(&mut self) {
        let Some(order) = self.order.clone() else { return };
        if self.over.is_none() {
            return;
        }
        let Some(link) = self.link.as_mut() else { return };
        match outputs::send(&order, &mut |message| link.send(message)) {
            Ok(collected) => self.say(&collected),
            Err(_) => self.hang_up(),
        }
    }
}

/// Opens sockets for all addresses that the container is going to have, of both families where there are both.
fn open_egress() -> std::io::Result<(TcpListener, UdpSocket)> {
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let tcp = TcpListener::bind((v6, 0)).or_else(|_| TcpListener::bind((v4, 0)))?;
    let udp = UdpSocket::bind((v6, 0)).or_else(|_| UdpSocket::bind((v4, 0)))?;
    Ok((tcp, udp))
}
