//! Labs of real processes, and the control API of their orchestrator.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use iptl_dag::model::{Counts, Fact, Signed};
use iptl_dag::{Block, Cid, model};
use iptl_labnet::{Access, Engine, EngineConfig, RealmId, Topology};
use iptl_labnet_tun::{DEVICE_NAME, Interface, Namespace, Network, Options, Outlets};
use iptl_wire::control::{Event, MAX_FRAME_SIZE, Reply, Request, Upload};
use iptl_wire::frame;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Bytes before a record of a log: its length and its hash.
const LOG_HEADER: usize = 4 + 32;

/// Returns the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two levels below the root").to_path_buf()
}

/// The plan that the measures run.
pub struct Guest {
    /// Its folder.
    pub plan: PathBuf,
    /// It as a component.
    pub component: PathBuf,
    /// It as a static program.
    pub program: PathBuf,
}

/// Builds the guest, as a component and as a static program.
pub fn build_guest() -> Result<Guest> {
    let plan = repository().join("tests/bench/guests");
    let targets = ["wasm32-wasip2", "x86_64-unknown-linux-musl"];
    for target in targets {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--release", "--locked", "--target", target]).current_dir(&plan);
        // The plan's manifest says where its build goes.
        let status = cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").status().context("cargo")?;
        anyhow::ensure!(status.success(), "the guest does not build; is the target {target} installed?");
    }
    let [component, program] = targets.map(|target| plan.join("target").join(target).join("release"));
    Ok(Guest { component: component.join("bench.wasm"), program: program.join("bench"), plan })
}

/// One node of a lab.
pub struct Node {
    /// Its home.
    pub home: PathBuf,
    /// Its process.
    pub pid: u32,
    /// An address of it.
    pub addr: String,
}

/// A lab; it ends with the value.
pub struct Lab {
    home: tempfile::TempDir,
    /// The orchestrator.
    pub orchestrator: Node,
    /// The lablets.
    pub lablets: Vec<Node>,
    /// CID of the guest's plan.
    pub plan: String,
    /// Its processes, where nothing else ends them.
    far: Vec<Child>,
    /// What lies between its machines, where they are in namespaces of their own.
    _between: Option<Network>,
}

/// Time in which a node answers, and a lab is complete.
const START: Duration = Duration::from_secs(60);

impl Lab {
    /// Starts an orchestrator and lablets and publishes the guest.
    pub fn start(lablets: u32, guest: &Guest) -> Result<Lab> {
        Lab::start_by(&[], lablets, guest)
    }

    /// Starts one whose nodes may neither enter namespaces nor make devices, whoever runs the benchmark.
    pub fn start_unprivileged(lablets: u32, guest: &Guest) -> Result<Lab> {
        let by: &[&str] = if user()? == 0 { &["setpriv", "--bounding-set=-sys_admin,-net_admin"] } else { &[] };
        Lab::start_by(by, lablets, guest)
    }

    fn start_by(by: &[&str], lablets: u32, guest: &Guest) -> Result<Lab> {
        let home = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
        let up = iptl_by(by, home.path(), &["dev", "up", "-n", &lablets.to_string(), "--json"]).and_then(|text| {
            let up: Value = serde_json::from_str(&text)?;
            let nodes = up["lablets"].as_array().context("no list of lablets")?;
            Ok((node(&up["orchestrator"])?, nodes.iter().map(node).collect::<Result<Vec<_>>>()?))
        });
        let (orchestrator, nodes) = up.inspect_err(|_| down(home.path()))?;
        let lab = Lab { home, orchestrator, lablets: nodes, plan: String::new(), far: Vec::new(), _between: None };
        lab.published(guest)
    }

    fn published(mut self, guest: &Guest) -> Result<Lab> {
        let path = guest.plan.to_string_lossy().into_owned();
        self.plan = self.iptl(&["-q", "publish", "plan", "--no-build", &path])?;
        Ok(self)
    }

    /// Starts an orchestrator and two lablets in namespaces as machines so far from each other, one way, would be.
    pub fn start_far(delay: Duration, guest: &Guest) -> Result<Lab> {
        let home = tempfile::Builder::new().prefix("iptl-bench-").tempdir()?;
        let (between, machines) = machines(3, delay)?;
        let mut lab = Lab {
            orchestrator: Node { home: home.path().to_owned(), pid: 0, addr: String::new() },
            lablets: Vec::new(),
            home,
            plan: String::new(),
            far: Vec::new(),
            _between: Some(between),
        };
        for (number, (namespace, addr)) in machines.iter().enumerate() {
            let home = match number {
                0 => lab.home.path().to_owned(),
                number => lab.home.path().join(format!("lablet-{number}")),
            };
            let (quic, tcp) = (format!("/ip4/{addr}/udp/4001/quic-v1"), format!("/ip4/{addr}/tcp/4001"));
            if number == 0 {
                iptl(&home, &["-q", "lab", "init"])?;
            } else {
                let ticket = lab.iptl(&["invite", "-q"])?;
                namespace.run(|| iptl(&home, &["-q", "join", &ticket]))??;
            }
            let mut up = program(&home, &["up", "--no-mdns", "--no-docker", "--listen", &quic, "--listen", &tcp])?;
            up.stdout(Stdio::null()).stderr(Stdio::null());
            let child = namespace.run(|| up.spawn())??;
            let node = Node { home: home.clone(), pid: child.id(), addr: tcp };
            lab.far.push(child);
            wait("a node that answers", || iptl(&home, &["status", "--json"]).is_ok())?;
            match number {
                0 => lab.orchestrator = node,
                _ => lab.lablets.push(node),
            }
        }
        wait("two lablets", || {
            let status = lab.iptl(&["status", "--json"]).unwrap_or_default();
            let status: Value = serde_json::from_str(&status).unwrap_or_default();
            status["lablets_ready"].as_u64() == Some(2)
        })?;
        lab.published(guest)
    }

    /// Runs a command line on the lab; returns its answer.
    pub fn iptl(&self, args: &[&str]) -> Result<String> {
        iptl(self.home.path(), args)
    }

    /// Makes a run of the guest and executes it.
    pub async fn run(&self, case: &str, args: &[&str]) -> Result<Ended> {
        let submitted = self.submit(case, args)?;
        self.watch(submitted.execution, |_| {}).await
    }

    /// Makes a run of the guest and submits it.
    pub fn submit(&self, case: &str, args: &[&str]) -> Result<Submitted> {
        let mut all = vec!["run", "--detach", "--json", "--case", case, &self.plan];
        all.extend(args);
        let text = self.iptl(&all)?;
        let answer: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        let cid = |key: &str| -> Result<Cid> { Ok(answer[key].as_str().context("no CID in the answer")?.parse()?) };
        Ok(Submitted { run: cid("run")?, execution: cid("execution")? })
    }

    /// Follows an execution to its end.
    pub async fn watch(&self, execution: Cid, mut each: impl FnMut(&Event)) -> Result<Ended> {
        let mut replies = self.call(&Request::Watch { execution: execution.to_string() }).await?;
        while let Some(reply) = replies.next().await? {
            let Reply::Event(event) = reply else { bail!("{reply:?} instead of an event") };
            each(&event);
            if let Event::Finished { counts, thresholds, .. } = event {
                return Ok(Ended { execution, counts, measured: thresholds.into_iter().map(|t| t.1).collect() });
            }
            if let Event::Failed { failure, .. } = event {
                bail!("the execution failed: {failure}");
            }
        }
        bail!("the execution did not end")
    }

    /// Returns what the instances of an ended execution wrote, each line with its time in microseconds since the start.
    pub async fn output(&self, execution: Cid) -> Result<Vec<(u64, String)>> {
        let request = Request::Logs { execution: execution.to_string(), group: None, index: None, follow: false };
        let mut replies = self.call(&request).await?;
        let mut lines = Vec::new();
        while let Some(reply) = replies.next().await? {
            if let Reply::Output(line) = reply {
                lines.push((line.at_us, line.line));
            }
        }
        Ok(lines)
    }

    /// Sends a request to the orchestrator.
    pub async fn call(&self, request: &Request) -> Result<Replies> {
        call(&self.orchestrator.home, request).await
    }

    /// Returns a block of the orchestrator.
    pub async fn block(&self, cid: Cid) -> Result<Block> {
        let mut replies = self.call(&Request::Blocks { cids: vec![cid] }).await?;
        match replies.next().await? {
            Some(Reply::Block { data, .. }) => Ok(Block::verify(cid, data)?),
            other => bail!("{other:?} instead of a block"),
        }
    }

    /// Stores a block at the orchestrator.
    pub async fn put(&self, block: &Block) -> Result<()> {
        let mut replies = self.call(&Request::Put {}).await?;
        replies.send(&Upload::Block { cid: *block.cid(), data: block.data().to_vec() }).await?;
        replies.send(&Upload::End {}).await?;
        while replies.next().await?.is_some() {}
        Ok(())
    }

    /// Returns what the orchestrator wrote down about an execution.
    pub fn facts(&self, execution: Cid) -> Result<Vec<Fact>> {
        let (log, name) = (self.orchestrator.home.join("log"), format!("{execution}.log"));
        // One that is over is laid aside, sooner or later.
        let bytes = std::fs::read(log.join(&name)).or_else(|_| std::fs::read(log.join("over").join(&name)))?;
        let mut rest = bytes.as_slice();
        let mut facts = Vec::new();
        while let Some((header, after)) = rest.split_at_checked(LOG_HEADER) {
            let length = u32::from_be_bytes(header[..4].try_into()?) as usize;
            let (body, after) = after.split_at_checked(length).context("a torn log")?;
            facts.push(model::from_bytes::<Signed<Fact>>(body)?.body);
            rest = after;
        }
        Ok(facts)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.far.is_empty() {
            return down(self.home.path());
        }
        for process in &mut self.far {
            // One that has ended is what is wanted.
            let _ended = process.kill();
            let _ended = process.wait();
        }
    }
}

/// Makes network namespaces, as machines in a network of their own would be, this far from each other.
fn machines(count: u8, delay: Duration) -> Result<(Network, Vec<(Namespace, Ipv4Addr)>)> {
    let mut topology = Topology::new(vec![vec![u64::try_from(delay.as_nanos())?]])?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let addr = Ipv4Addr::new(10, 77, 0, number);
        nodes.push((topology.add_node(RealmId::PUBLIC, addr, None, Access::default())?, addr));
    }
    let outlets = Outlets {
        away: Box::new(|_| {}),
        captured: Box::new(|_| {}),
        happened: Box::new(|_| {}),
        ended: Box::new(|_| {}),
    };
    let network = Network::start(Engine::new(topology, EngineConfig::default()), Options::default(), outlets)?;
    let mut machines = Vec::new();
    for (node, addr) in nodes {
        let namespace = Namespace::empty().context("network namespaces need root")?;
        let interface = Interface { name: DEVICE_NAME.to_owned(), addrs: vec![(addr.into(), 16)], mtu: 1500 };
        network.attach(node, namespace.open(&interface)?);
        machines.push((namespace, addr));
    }
    Ok((network, machines))
}

/// Waits until something holds.
fn wait(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        anyhow::ensure!(begun.elapsed() < START, "no {what} within {} s", START.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A run that was submitted.
pub struct Submitted {
    /// The run.
    pub run: Cid,
    /// Its execution.
    pub execution: Cid,
}

/// An execution that ended.
pub struct Ended {
    /// The execution.
    pub execution: Cid,
    /// Instances by how they ended.
    pub counts: Counts,
    /// What was measured for each threshold of the plan.
    pub measured: Vec<Option<f64>>,
}

/// The replies to one request.
pub struct Replies {
    stream: UnixStream,
}

impl Replies {
    async fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        Ok(self.stream.write_all(&frame::encode(message)).await?)
    }

    /// Returns the next reply, none at the end.
    pub async fn next(&mut self) -> Result<Option<Reply>> {
        let mut header = [0; frame::HEADER_SIZE];
        self.stream.read_exact(&mut header).await?;
        let mut body = vec![0; frame::length(header, MAX_FRAME_SIZE)?];
        self.stream.read_exact(&mut body).await?;
        match frame::decode(&body)? {
            Reply::End {} => Ok(None),
            Reply::Error(failure) => Err(failure.into()),
            reply => Ok(Some(reply)),
        }
    }
}

/// Sends a request to the node of a home.
pub async fn call(home: &Path, request: &Request) -> Result<Replies> {
    let stream = UnixStream::connect(home.join("api.sock")).await?;
    let mut replies = Replies { stream };
    replies.send(request).await?;
    Ok(replies)
}

fn node(value: &Value) -> Result<Node> {
    let home = value["home"].as_str().context("a node without a home")?.into();
    let addr = value["addrs"][0].as_str().context("a node without an address")?.to_owned();
    Ok(Node { home, pid: value["pid"].as_u64().context("a node without a process")?.try_into()?, addr })
}

/// Returns a command line on a home.
pub fn program(home: &Path, args: &[&str]) -> Result<Command> {
    program_by(&[], home, args)
}

/// Returns it as run by a program that makes something of whom it starts.
fn program_by(by: &[&str], home: &Path, args: &[&str]) -> Result<Command> {
    let program = std::env::current_exe()?.with_file_name("iptl");
    anyhow::ensure!(program.exists(), "{} is not built", program.display());
    let mut command = match by {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.arg("--home").arg(home).args(args).stdin(Stdio::null());
    for name in ["IPTL_HOME", "IPTL_LOG", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    Ok(command)
}

/// Runs a command line on a home; returns its answer.
pub fn iptl(home: &Path, args: &[&str]) -> Result<String> {
    iptl_by(&[], home, args)
}

/// Runs it by a program that makes something of whom it starts.
fn iptl_by(by: &[&str], home: &Path, args: &[&str]) -> Result<String> {
    let output = program_by(by, home, args)?.output()?;
    if !output.status.success() {
        bail!("iptl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Returns the user of this process.
fn user() -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid())
}

fn down(home: &Path) {
    if let Err(error) = iptl(home, &["-q", "dev", "down"]) {
        eprintln!("cannot stop the lab: {error:#}");
    }
}
