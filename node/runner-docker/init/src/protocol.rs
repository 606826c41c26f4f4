//! What the first process of a container and its lablet say to each other.
//!
//! Frames over a stream: the length of what follows (four bytes, little-endian), a byte that says what it is, fields.
//! Numbers are little-endian; text and bytes are preceded by their length as four bytes. This file is compiled into
//! both ends, which always come from one build but for a lablet that was updated while a container ran: [`VERSION`]
//! tells them.
//!
//! Whatever comes from a container is the word of a workload: [`FromInit::decode`] takes any bytes.

/// Version of this protocol.
pub const VERSION: u32 = 1;

/// Longest frame in bytes, without its length.
pub const MAX_FRAME: usize = 128 << 10;

/// Most bytes of a file in one frame.
pub const MAX_CHUNK: usize = 64 << 10;

/// Where the init program is seen in a container.
pub const INIT_PATH: &str = "/.iptl/init";

/// Where the directory with the lablet's socket is seen in a container.
pub const LAB_DIR: &str = "/.iptl/lab";

/// Name of the socket in it.
pub const SOCKET_NAME: &str = "lab.sock";

/// Name of the socket in it over which a device comes, while one is made.
pub const DEVICE_SOCKET_NAME: &str = "device.sock";

/// First argument of the init program where it is to make a device.
pub const DEVICE_VERB: &str = "device";

/// Variable that marks the processes of a command that a person executes.
pub const MARK: &str = "IPTL_EXEC";

/// First argument of the init program, before the value of [`MARK`], where it is to end such a command.
pub const END_VERB: &str = "end";

/// Argument of the init program where places outside of the lab may be reached: then it opens the sockets for that.
pub const EGRESS_VERB: &str = "egress";

/// Descriptors that come with [`FromInit::Hello`]: the sync listener, the ends to read of stdout and of stderr. Where it
/// was told [`EGRESS_VERB`], a listener and a socket for datagrams follow.
pub const HELLO_DESCRIPTORS: usize = 3;

/// Proves to init that who accepted its connection is the lablet that it belongs to, and the other way round.
pub type Token = [u8; 16];

/// Where the workload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has said yet what is to be done.
    New,
    /// Ready, and held.
    Held,
    /// It runs.
    Running,
    /// It is over.
    Over,
}

/// What init is told once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// To be shown by init whenever it connects again.
    pub token: Token,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Directory whose files are the artifacts.
    pub outputs: String,
    /// Bytes of artifacts that are too many.
    pub artifact_bytes: u64,
    /// Bytes of records in files that are too many.
    pub record_bytes: u64,
    /// CPU time in microseconds that the workload may use: samples come sooner when it is near.
    pub cpu_us: u64,
    /// Wall time in milliseconds after which init ends the workload where no lablet is there to do it.
    pub wall_ms: u64,
    /// Open files that a process may have.
    pub open_files: u64,
    /// The health check, where there is one.
    pub health: Option<HealthOrder>,
}

/// A command that says whether the workload is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthOrder {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Milliseconds between two looks.
    pub interval_ms: u64,
    /// Milliseconds after which a look has failed.
    pub timeout_ms: u64,
    /// Milliseconds after the start in which a failure does not count.
    pub start_ms: u64,
    /// Failures in a row that are too many.
    pub retries: u32,
}

/// From the lablet to init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToInit {
    /// What to do; the answer is [`FromInit::Ready`].
    Order(Order),
    /// Start the workload.
    Start,
    /// Send the workload a signal.
    Signal(i32),
    /// End everything in the container but init.
    Kill,
    /// Send the artifacts; only after [`FromInit::Ended`].
    Collect,
    /// Everything was received: end.
    Bye,
    /// Kill the workload as a loss of power would, and hold it again: [`ToInit::Start`] starts it anew.
    Crash,
    /// Stop every process in the container but init.
    Pause,
    /// Let them go on.
    Resume,
    /// Empty these directories before the workload is started again: after [`ToInit::Crash`].
    Empty(Vec<String>),
    /// Give these variables, `NAME=value`, to all that is started from now on.
    Set(Vec<String>),
}

/// What the workload has used and met so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// Memory in bytes now.
    pub memory: u64,
    /// Largest memory in bytes.
    pub memory_peak: u64,
    /// Bytes read from disk.
    pub read: u64,
    /// Bytes written to disk.
    pub written: u64,
    /// Bytes sent over the network.
    pub sent: u64,
    /// Bytes received over the network.
    pub received: u64,
    /// Processes killed because memory had run out.
    pub oom_kills: u64,
    /// How often a process was refused because there were too many.
    pub pids_refused: u64,
    /// What of the limits in files was met: [`Sample::OPEN_FILES`], [`Sample::ARTIFACTS`], [`Sample::RECORDS`].
    pub met: u32,
}

impl Sample {
    /// A process had as many files open as it may.
    pub const OPEN_FILES: u32 = 1;
    /// There are more bytes of artifacts than allowed, or no room for more.
    pub const ARTIFACTS: u32 = 2;
    /// There are more bytes of records than allowed.
    pub const RECORDS: u32 = 4;
}

/// How the workload's own process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// From init to the lablet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromInit {
    /// The first thing on a connection; [`HELLO_DESCRIPTORS`] come with it.
    Hello {
        /// [`VERSION`] of the sender.
        version: u32,
        /// As in the order; zeros before there was one.
        token: Token,
        /// Where the workload stands.
        phase: Phase,
        /// User that it runs as.
        uid: u32,
    },
    /// The order is understood, the workload is held.
    Ready,
    /// The workload's program runs.
    Started,
    /// The program cannot be executed, with the error of the system.
    NotStarted {
        /// `errno`.
        errno: i32,
    },
    /// What it has used.
    Sample(Sample),
    /// Its health check failed too often.
    Unwell {
        /// What the last look said.
        reason: String,
    },
    /// It is over, and nothing else runs in the container.
    Ended {
        /// How.
        end: End,
        /// What it has used in all.
        last: Sample,
    },
    /// The next bytes of an artifact; those of one file come in their order, file after file.
    Artifact {
        /// Its path below the directory of outputs.
        path: String,
        /// Bytes.
        data: Vec<u8>,
    },
    /// There are no more artifacts.
    Collected {
        /// Links that were not followed.
        links: u32,
        /// Other things that are no plain files or directories, or could not be read.
        other: u32,
        /// [`Sample::ARTIFACTS`] and [`Sample::RECORDS`] as they were found.
        met: u32,
    },
}

impl ToInit {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        frame(out, |w| match self {
            ToInit::Order(order) => {
                w.byte(1);
                w.0.extend_from_slice(&order.token);
                w.list(&order.argv);
                w.bytes(order.outputs.as_bytes());
                for n in [order.artifact_bytes, order.record_bytes, order.cpu_us, order.wall_ms, order.open_files] {
                    w.long(n);
                }
                match &order.health {
                    None => w.byte(0),
                    Some(health) => {
                        w.byte(1);
                        w.list(&health.argv);
                        w.long(health.interval_ms);
                        w.long(health.timeout_ms);
                        w.long(health.start_ms);
                        w.int(health.retries);
                    }
                }
            }
            ToInit::Start => w.byte(2),
            ToInit::Signal(signal) => {
                w.byte(3);
                w.int(signal.cast_unsigned());
            }
            ToInit::Kill => w.byte(4),
            ToInit::Collect => w.byte(5),
            ToInit::Bye => w.byte(6),
            ToInit::Crash => w.byte(7),
            ToInit::Pause => w.byte(8),
            ToInit::Resume => w.byte(9),
            ToInit::Empty(directories) => {
                w.byte(10);
                w.list(directories);
            }
            ToInit::Set(variables) => {
                w.byte(11);
                w.list(variables);
            }
        });
    }

    /// Reads a frame without its length; none where it is none of this protocol.
    pub fn decode(bytes: &[u8]) -> Option<ToInit> {
        let mut r = Reader(bytes);
        let message = match r.byte()? {
            1 => {
                let token = r.token()?;
                let argv = r.list()?;
                let outputs = r.text()?;
                let artifact_bytes = r.long()?;
                let record_bytes = r.long()?;
                let cpu_us = r.long()?;
                let wall_ms = r.long()?;
                let open_files = r.long()?;
                let health = match r.byte()? {
                    0 => None,
                    _ => Some(HealthOrder {
                        argv: r.list()?,
                        interval_ms: r.long()?,
                        timeout_ms: r.long()?,
                        start_ms: r.long()?,
                        retries: r.int()?,
                    }),
                };
                ToInit::Order(Order {
                    token,
                    argv,
                    outputs,
                    artifact_bytes,
                    record_bytes,
                    cpu_us,
                    wall_ms,
                    open_files,
                    health,
                })
            }
            2 => ToInit::Start,
            3 => ToInit::Signal(r.int()?.cast_signed()),
            4 => ToInit::Kill,
            5 => ToInit::Collect,
            6 => ToInit::Bye,
            7 => ToInit::Crash,
            8 => ToInit::Pause,
            9 => ToInit::Resume,
            10 => ToInit::Empty(r.list()?),
            11 => ToInit::Set(r.list()?),
            _ => return None,
        };
        r.0.is_empty().then_some(message)
    }
}

impl FromInit {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        frame(out, |w| match self {
            FromInit::Hello { version, token, phase, uid } => {
                w.byte(1);
                w.int(*version);
                w.0.extend_from_slice(token);
                w.byte(match phase {
                    Phase::New => 0,
                    Phase::Held => 1,
                    Phase::Running => 2,
                    Phase::Over => 3,
                });
                w.int(*uid);
            }
            FromInit::Ready => w.byte(2),
            FromInit::Started => w.byte(3),
            FromInit::NotStarted { errno } => {
                w.byte(4);
                w.int(errno.cast_unsigned());
            }
            FromInit::Sample(sample) => {
                w.byte(5);
                w.sample(sample);
            }
            FromInit::Unwell { reason } => {
                w.byte(6);
                w.bytes(reason.as_bytes());
            }
            FromInit::Ended { end, last } => {
                w.byte(7);
                let (kind, number) = match end {
                    End::Exited(code) => (0, *code),
                    End::Signalled(signal) => (1, *signal),
                };
                w.byte(kind);
                w.int(number.cast_unsigned());
                w.sample(last);
            }
            FromInit::Artifact { path, data } => {
                w.byte(8);
                w.bytes(path.as_bytes());
                w.bytes(data);
            }
            FromInit::Collected { links, other, met } => {
                w.byte(9);
                w.int(*links);
                w.int(*other);
                w.int(*met);
            }
        });
    }

    /// Reads a frame without its length; none where it is none of this protocol.
    pub fn decode(bytes: &[u8]) -> Option<FromInit> {
        let mut r = Reader(bytes);
        let message = match r.byte()? {
            1 => FromInit::Hello {
                version: r.int()?,
                token: r.token()?,
                phase: match r.byte()? {
                    0 => Phase::New,
                    1 => Phase::Held,
                    2 => Phase::Running,
                    3 => Phase::Over,
                    _ => return None,
                },
                uid: r.int()?,
            },
            2 => FromInit::Ready,
            3 => FromInit::Started,
            4 => FromInit::NotStarted { errno: r.int()?.cast_signed() },
            5 => FromInit::Sample(r.sample()?),
            6 => FromInit::Unwell { reason: r.text()? },
            7 => {
                let kind = r.byte()?;
                let number = r.int()?.cast_signed();
                let end = match kind {
                    0 => End::Exited(number),
                    1 => End::Signalled(number),
                    _ => return None,
                };
                FromInit::Ended { end, last: r.sample()? }
            }
            8 => FromInit::Artifact { path: r.text()?, data: r.bytes()?.to_vec() },
            9 => FromInit::Collected { links: r.int()?, other: r.int()?, met: r.int()? },
            _ => return None,
        };
        r.0.is_empty().then_some(message)
    }
}

fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Writer<'_>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(&mut Writer(out));
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn byte(&mut self, n: u8) {
        self.0.push(n);
    }

    fn int(&mut self, n: u32) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn long(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.int(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
    }

    fn list(&mut self, list: &[String]) {
        self.int(u32::try_from(list.len()).unwrap_or(u32::MAX));
        for item in list {
            self.bytes(item.as_bytes());
        }
    }

    fn sample(&mut self, s: &Sample) {
        for n in [
            s.cpu_us,
            s.memory,
            s.memory_peak,
            s.read,
            s.written,
            s.sent,
            s.received,
            s.oom_kills,
            s.pids_refused,
            u64::from(s.met),
        ] {
            self.long(n);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(size)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn int(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let size = self.int()?;
        self.take(usize::try_from(size).ok()?)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn list(&mut self) -> Option<Vec<String>> {
        let count = self.int()?;
        // Each takes four bytes at least: no more than that is reserved for a count that lies.
        let mut list = Vec::with_capacity((self.0.len() / 4).min(usize::try_from(count).ok()?));
        for _ in 0..count {
            list.push(self.text()?);
        }
        Some(list)
    }

    fn token(&mut self) -> Option<Token> {
        self.take(16)?.try_into().ok()
    }

    fn sample(&mut self) -> Option<Sample> {
        Some(Sample {
            cpu_us: self.long()?,
            memory: self.long()?,
            memory_peak: self.long()?,
            read: self.long()?,
            written: self.long()?,
            sent: self.long()?,
            received: self.long()?,
            oom_kills: self.long()?,
            pids_refused: self.long()?,
            met: u32::try_from(self.long()?).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_and_none_of_its_prefixes_does() {
        let order = Order {
            token: [7; 16],
            argv: vec!["/bin/x".into(), String::new()],
            outputs: "/outputs".into(),
            health: Some(HealthOrder { argv: vec!["/bin/h".into()], retries: 3, ..HealthOrder::default() }),
            ..Order::default()
        };
        let to = [
            ToInit::Order(order),
            ToInit::Start,
            ToInit::Signal(15),
            ToInit::Kill,
            ToInit::Collect,
            ToInit::Bye,
            ToInit::Crash,
            ToInit::Pause,
            ToInit::Resume,
            ToInit::Empty(vec!["/tmp".into()]),
            ToInit::Set(vec!["A=b".into(), String::new()]),
        ];
        for message in to {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(ToInit::decode(&bytes[4..]).as_ref(), Some(&message));
            for end in 4..bytes.len() {
                assert_eq!(ToInit::decode(&bytes[4..end]), None, "{message:?} cut at {end}");
            }
        }
        let last = Sample { cpu_us: 1, met: 6, ..Sample::default() };
        let from = [
            FromInit::Hello { version: 1, token: [1; 16], phase: Phase::Running, uid: 65534 },
            FromInit::Ready,
            FromInit::Started,
            FromInit::NotStarted { errno: 2 },
            FromInit::Sample(last),
            FromInit::Unwell { reason: "tired".into() },
            FromInit::Ended { end: End::Exited(-1), last },
            FromInit::Ended { end: End::Signalled(9), last },
            FromInit::Artifact { path: "a/b".into(), data: vec![0, 1] },
            FromInit::Collected { links: 1, other: 2, met: 3 },
        ];
        for message in from {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(FromInit::decode(&bytes[4..]).as_ref(), Some(&message));
            for end in 4..bytes.len() {
                assert_eq!(FromInit::decode(&bytes[4..end]), None, "{message:?} cut at {end}");
            }
        }
        assert_eq!(FromInit::decode(&[]), None);
        assert_eq!(FromInit::decode(&[99]), None);
    }
}
