//! A runner with a directory of its own, and images made of the tests' program.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use iptl_dag::model::{Container, Exit, Resources};
use iptl_dag::{Block, Codec};
use iptl_runner::contract::{Behaviour, Fixture, Lab, Outcome, instance};
use iptl_runner::{Artifact, CellSpec, ContainerSpec, OutputStream, Runner};
use iptl_runner_docker::{Devices, DockerConfig, DockerRunner, OwnerLimits};
use sha2::{Digest, Sha256};

/// Where the program stands in its image.
pub(crate) const PROGRAM: &str = "/program";

/// A runner of its own for one test.
pub(crate) struct Bench {
    pub(crate) runner: DockerRunner,
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    /// Connects to the engine; none where there is none and that may be.
    pub(crate) async fn new() -> Option<Bench> {
        Bench::with(OwnerLimits::default()).await
    }

    pub(crate) async fn with(limits: OwnerLimits) -> Option<Bench> {
        Bench::at(limits, None).await
    }

    pub(crate) async fn at(limits: OwnerLimits, socket: Option<PathBuf>) -> Option<Bench> {
        let dir = tempfile::tempdir().unwrap();
        match DockerRunner::connect(DockerConfig { socket, ..config(dir.path(), limits) }).await {
            Ok(runner) => Some(Bench { runner, dir }),
            Err(e) => {
                let required = std::env::var_os("CI").is_some()
                    || std::env::var_os("IPTL_DOCKER").is_some_and(|value| value == "required");
                assert!(!required, "these tests need a container engine: {} ({})", e.reason, e.fix);
                not_run(&format!("there is no container engine: {} ({})", e.reason, e.fix));
                None
            }
        }
    }

    /// One whose lablet is nobody special on its machine.
    pub(crate) async fn unprivileged() -> Option<Bench> {
        let bench = Bench::new().await?;
        let config = DockerConfig { devices: Devices::Engine, ..config(bench.dir.path(), OwnerLimits::default()) };
        bench.runner.shutdown().await;
        Some(Bench { runner: DockerRunner::connect(config).await.unwrap(), ..bench })
    }

    /// One whose owner lets no thread of its go before others.
    pub(crate) async fn without_priority() -> Option<Bench> {
        let bench = Bench::new().await?;
        let config = DockerConfig { realtime: false, ..config(bench.dir.path(), OwnerLimits::default()) };
        bench.runner.shutdown().await;
        Some(Bench { runner: DockerRunner::connect(config).await.unwrap(), ..bench })
    }

    /// A runner as a lablet would make it after a restart.
    pub(crate) async fn again(&self) -> DockerRunner {
        DockerRunner::connect(config(self.dir.path(), OwnerLimits::default())).await.unwrap()
    }

    pub(crate) fn fixture(&self) -> Fixture {
        let artifact = program();
        Fixture {
            runner: Arc::new(self.runner.clone()),
            workload: Box::new(move |behaviour: Behaviour| (artifact.clone(), vec![behaviour.name().to_owned()])),
            container: Some(plain(Container::usual())),
        }
    }

    /// Makes a cell whose instances have these arguments, in containers with these settings.
    pub(crate) fn cell(&self, settings: &Container, args: &[&[&str]]) -> CellSpec {
        let scratch = self.dir.path().join(format!("scratch-{}", args.len()));
        self.cell_in(&scratch, settings, args)
    }

    pub(crate) fn cell_in(&self, scratch: &Path, settings: &Container, args: &[&[&str]]) -> CellSpec {
        std::fs::create_dir_all(scratch).unwrap();
        let mut cell = self.fixture().cell(scratch, &vec![Behaviour::Park; args.len()]);
        for (instance, args) in cell.instances.iter_mut().zip(args) {
            instance.args = args.iter().map(|arg| (*arg).to_owned()).collect();
            instance.container = Some(plain(settings.clone()));
            instance.limits = Resources { cpu_ms: 20_000, wall_ms: 60_000, ..instance.limits };
        }
        cell
    }

    /// Runs a cell to its end.
    pub(crate) async fn run(&self, cell: CellSpec) -> Outcome {
        let lab = Lab::prepare(&self.runner, cell).await;
        lab.control.start().await;
        lab.finish().await
    }

    /// Runs one instance and returns how it ended and what it wrote to stdout.
    pub(crate) async fn run_one(&self, settings: &Container, args: &[&str]) -> (Exit, Vec<String>) {
        let outcome = self.run(self.cell(settings, &[args])).await;
        (outcome.exit(0).clone(), outcome.lines(0, OutputStream::Out))
    }

    /// Returns the containers of this bench that there are.
    pub(crate) fn containers(&self) -> Vec<String> {
        let id = std::fs::read_to_string(self.dir.path().join("lablet/id")).unwrap();
        docker(&["ps", "--all", "--quiet", "--filter", &format!("label=iptl.lablet={}", id.trim())])
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Ends with nothing left.
    pub(crate) async fn close(self) {
        self.runner.shutdown().await;
        assert_eq!(self.containers(), Vec::<String>::new(), "containers are left");
    }
}

/// Says that the test which calls it is not run here, where nobody keeps it for a test that failed. Fails it where `CI` is
/// set: there all tests are run, and one that was not has shown nothing.
#[track_caller]
pub(crate) fn not_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "this test cannot be run, and CI is set: {why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _closed = writeln!(std::io::stderr(), "NOT RUN: {test}: {why}");
}

fn config(dir: &Path, limits: OwnerLimits) -> DockerConfig {
    DockerConfig { limits, ..DockerConfig::new(dir.join("lablet")) }
}

pub(crate) fn plain(settings: Container) -> ContainerSpec {
    ContainerSpec { settings, files: BTreeMap::new(), egress: BTreeMap::new() }
}

/// Returns what the engine's own command line says.
pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Follows a cell until a condition holds.
pub(crate) async fn until(lab: &mut Lab, what: &str, holds: impl Fn(&Outcome) -> bool) {
    let all = async {
        while !holds(&lab.outcome) {
            assert!(lab.step().await, "the cell was over before {what}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| panic!("no {what} within a minute"));
}

/// Returns whether an instance has written a line.
pub(crate) fn wrote(index: u32, line: &str) -> impl Fn(&Outcome) -> bool {
    move |outcome| outcome.output.iter().any(|(id, _, text)| *id == instance(index) && text == line)
}

/// Returns the image of the tests' program.
pub(crate) fn program() -> Artifact {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    let made = ARTIFACT.get_or_init(|| {
        let bytes = std::fs::read(built()).unwrap();
        let layer = tar(&[("program", 0o755, &bytes)]);
        artifact("program", &layer, &serde_json::json!({ "Entrypoint": [PROGRAM] }), "amd64")
    });
    made.clone()
}

/// Returns the layer of an image that was written here.
pub(crate) fn layer_of(archive: &[u8]) -> Vec<u8> {
    let mut rest = archive;
    loop {
        let (head, after) = rest.split_at(512);
        let text = |from: usize, to: usize| String::from_utf8_lossy(&head[from..to]).trim_end_matches('\0').to_owned();
        let size = usize::from_str_radix(&text(124, 135), 8).unwrap();
        if text(0, 100) == "layer.tar" {
            return after[..size].to_vec();
        }
        rest = &after[size.next_multiple_of(512)..];
    }
}

/// Writes an image of one layer as an engine would save it.
pub(crate) fn artifact(name: &str, layer: &[u8], config: &serde_json::Value, architecture: &str) -> Artifact {
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(layer))] },
        "history": [{ "created_by": "the tests of the Docker runner" }],
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let manifest =
        serde_json::json!([{ "Config": config_name, "RepoTags": null, "Layers": ["layer.tar"] }]).to_string();
    let archive = tar(&[
        (&config_name, 0o644, config.as_bytes()),
        ("layer.tar", 0o644, layer),
        ("manifest.json", 0o644, manifest.as_bytes()),
    ]);
    save(name, &archive)
}

/// Keeps bytes as a workload.
pub(crate) fn save(name: &str, archive: &[u8]) -> Artifact {
    // A block holds less than some archives.
    let cid = *Block::new(Codec::Raw, sha256(archive).into_bytes()).cid();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{cid}.tar"));
    // Several tests may do this at once, all with the same bytes.
    let new = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(new.path(), archive).unwrap();
    new.persist(&path).unwrap();
    Artifact { cid, path }
}

/// Makes a tar of plain files.
pub(crate) fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, mode, bytes) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let mut put = |at: usize, text: String| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(100, format!("{mode:07o}\0"));
        put(108, "0000000\0".to_owned());
        put(116, "0000000\0".to_owned());
        put(124, format!("{:011o}\0", bytes.len()));
        put(136, "00000000000\0".to_owned());
        put(148, " ".repeat(8));
        put(156, "0".to_owned());
        put(257, "ustar\u{0}00".to_owned());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn built() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--target", &triple, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success(), "the program does not build; is the target {triple} installed?");
    target.join(triple).join("release/iptl-test-program")
}
