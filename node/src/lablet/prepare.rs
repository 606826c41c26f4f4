//! From a grant to a prepared cell: every block is here and verified before anything starts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iptl_artifacts::export::{self, ExportError};
use iptl_artifacts::{BlobStore, read_block};
use iptl_dag::model::{self, GroupRun, Run, Workload, WorkloadKind};
use iptl_dag::walk::Limits;
use iptl_dag::{Cid, PeerId};
use iptl_runner::{Artifact, CellSpec, InstanceSpec, Origin, PrepareError, PreparedCell, Runner};
use iptl_wire::session::Grant;
use tokio::io::AsyncWriteExt;

use crate::fetch::{FetchError, Fetcher, Source, Wanted};
use crate::home::Home;

/// A lablet that finds nobody with the blocks of its grant for so long gives it back.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest content of a workload in bytes: far above any component, far below what a lender's disk should hold. A few
/// blocks can stand for more than all disks.
const MAX_ARTIFACT_SIZE: u64 = 256 << 20;

/// Most bytes of a workload with all that it links.
const MAX_WORKLOAD_SIZE: u64 = 4 << 30;

/// Bytes of arguments, environment and parameters over all instances of a cell: each instance has its own copy.
const MAX_START_SIZE: u64 = 256 << 20;

/// Why a cell could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(super) enum CellError {
    /// Blocks are missing.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A node is not what the grant says.
    #[error("{cid}: {reason}")]
    Bad {
        /// The node.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
    /// The grant takes other slots than its instances need.
    #[error("the grant has slots for {granted:?}, its groups need {needed:?}")]
    Slots {
        /// What the grant says.
        granted: BTreeMap<WorkloadKind, u32>,
        /// What the run says.
        needed: BTreeMap<WorkloadKind, u32>,
    },
    /// The workload's file could not be written.
    #[error("cannot write the artifact {cid}: {reason}")]
    Artifact {
        /// Its content.
        cid: Cid,
        /// Why.
        reason: String,
    },
    /// The runner refused.
    #[error(transparent)]
    Runner(#[from] PrepareError),
}

impl CellError {
    /// Tells whether any other lablet would fail in the same way.
    pub(super) fn lies_in_the_workload(&self) -> bool {
        match self {
            CellError::Bad { .. }
            | CellError::Runner(PrepareError::BadArtifact { .. } | PrepareError::MissingImport { .. }) => true,
            CellError::Fetch(_)
            | CellError::Artifact { .. }
            | CellError::Slots { .. }
            | CellError::Runner(
                PrepareError::NoRunner { .. }
                | PrepareError::NoCapacity { .. }
                | PrepareError::WorkerDied { .. }
                | PrepareError::Io { .. },
            ) => false,
        }
    }
}

/// A prepared cell with what was read on the way.
pub(super) struct Prepared {
    pub(super) run: Run,
    pub(super) cell: PreparedCell,
}

/// What preparing needs of its lablet.
#[derive(Clone)]
pub(super) struct Preparer {
    pub(super) lab: PeerId,
    pub(super) home: Home,
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) fetcher: Fetcher,
    pub(super) runner: Arc<dyn Runner>,
}

impl Preparer {
    /// Fetches what a grant names and lets the runner prepare its cell.
    ///
    /// Safe to drop: the runner gives the cell up, blocks that arrived stay.
    pub(super) async fn prepare(&self, orchestrator: Source, grant: &Grant) -> Result<Prepared, CellError> {
        let sources = sources(orchestrator, grant);
        let run: Run = self.node(&grant.run, &sources, true).await?;
        let mut artifacts = BTreeMap::new();
        for assignment in &grant.assignments {
            let group = group(&run, grant, &assignment.group)?;
            if let Entry::Vacant(vacant) = artifacts.entry(group.workload) {
                let workload: Workload = self.node(&group.workload, &sources, false).await?;
                let path = self.artifact(&workload).await?;
                vacant.insert(Artifact { cid: workload.content, path });
            }
        }
        let scratch = self.scratch(grant)?;
        let spec = spec(&self.lab, &run, grant, &artifacts, scratch)?;
        let cell = self.runner.prepare(spec).await?;
        Ok(Prepared { run, cell })
    }

    /// Fetches and reads a node.
    async fn node<T>(&self, cid: &Cid, sources: &[Source], shallow: bool) -> Result<T, CellError>
    where
        T: TryFrom<model::Node, Error = iptl_dag::DecodeError>,
    {
        let wanted = Wanted { root: *cid, from: sources.to_vec(), timeout: FETCH_TIMEOUT, shallow };
        let limits = Limits { bytes: MAX_WORKLOAD_SIZE, ..Limits::default() };
        self.fetcher.clone().within(limits).fetch(&wanted, |_| {}).await?;
        let bad = |reason: String| CellError::Bad { cid: *cid, reason };
        let block = read_block(&*self.store, cid)
            .await
            .map_err(FetchError::from)?
            .ok_or_else(|| CellError::Artifact { cid: *cid, reason: "it vanished from the store".to_owned() })?;
        model::from_bytes(block.data()).map_err(|e| bad(e.to_string()))
    }

    /// Returns the content of a workload as a file, writing it at first use.
    async fn artifact(&self, workload: &Workload) -> Result<PathBuf, CellError> {
        let path = self.home.path("cache").join("artifacts").join(workload.content.to_string());
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(path);
        }
        let failed = |reason: String| CellError::Artifact { cid: workload.content, reason };
        let unusable = |e: ExportError| match e {
            ExportError::TooLarge { .. } | ExportError::UnixFs { .. } => {
                CellError::Bad { cid: workload.content, reason: e.to_string() }
            }
            other => failed(other.to_string()),
        };
        let dir = path.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(dir).await.map_err(|e| failed(e.to_string()))?;
        let temp = tempfile::tempdir_in(dir).map_err(|e| failed(e.to_string()))?;
        let file = temp.path().join("artifact");
        let mut out = tokio::fs::File::create(&file).await.map_err(|e| failed(e.to_string()))?;
        export::stream_file(&*self.store, &workload.content, &mut out, MAX_ARTIFACT_SIZE).await.map_err(unusable)?;
        out.flush().await.map_err(|e| failed(e.to_string()))?;
        tokio::fs::rename(&file, &path).await.map_err(|e| failed(e.to_string()))?;
        Ok(path)
    }

    fn scratch(&self, grant: &Grant) -> Result<PathBuf, CellError> {
        let path = scratch_path(&self.home, grant);
        let failed = |e: std::io::Error| CellError::Artifact { cid: grant.run, reason: e.to_string() };
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        std::fs::create_dir_all(&path).map_err(failed)?;
        Ok(path)
    }
}

/// Returns the scratch folder of a grant's cell.
pub(super) fn scratch_path(home: &Home, grant: &Grant) -> PathBuf {
    let name = format!("{}-{}-{}", grant.cell.execution, grant.cell.epoch.counter, grant.attempt);
    home.path("scratch").join(name)
}

fn sources(orchestrator: Source, grant: &Grant) -> Vec<Source> {
    let mut sources = vec![orchestrator];
    for (peer, addrs) in &grant.roster {
        if let Ok(peer) = peer.parse::<PeerId>()
            && peer != grant.lablet
        {
            sources.push((peer, addrs.clone()));
        }
    }
    sources
}

fn group<'a>(run: &'a Run, grant: &Grant, name: &str) -> Result<&'a GroupRun, CellError> {
    run.groups.get(name).ok_or_else(|| CellError::Bad { cid: grant.run, reason: format!("it has no group {name:?}") })
}

/// Returns the bytes that one instance of a group is given at its start.
fn size_at_start(run: &Run, group: &GroupRun) -> u64 {
    let args = group.args.iter().map(String::len);
    let env = group.env.iter().map(|(name, value)| name.len() + value.len());
    let params = run.params.iter().map(|(name, value)| name.len() + value.to_string().len());
    args.chain(env).chain(params).map(|size| size as u64).sum()
}

fn spec(
    lab: &PeerId,
    run: &Run,
    grant: &Grant,
    artifacts: &BTreeMap<Cid, Artifact>,
    scratch: PathBuf,
) -> Result<CellSpec, CellError> {
    let mut instances = Vec::new();
    let mut start_size = 0;
    let mut needed: BTreeMap<WorkloadKind, u32> = BTreeMap::new();
    for assignment in &grant.assignments {
        let group = group(run, grant, &assignment.group)?;
        start_size = size_at_start(run, group).saturating_mul(u64::from(assignment.count)).saturating_add(start_size);
        if start_size > MAX_START_SIZE {
            let reason = format!("its arguments and environment take {start_size} bytes; {MAX_START_SIZE} are allowed");
            return Err(CellError::Bad { cid: grant.run, reason });
        }
        let beyond = assignment.start.checked_add(assignment.count).is_none_or(|end| end > group.count);
        if beyond {
            let reason = format!("group {:?} has no {} instances", assignment.group, assignment.start);
            return Err(CellError::Bad { cid: grant.run, reason });
        }
        let of_kind = needed.entry(group.kind).or_default();
        *of_kind = of_kind.saturating_add(assignment.count);
        let artifact = artifacts.get(&group.workload).expect("every group's workload was fetched");
        instances.extend(assignment.instances().map(|id| InstanceSpec {
            id,
            kind: group.kind,
            artifact: artifact.clone(),
            args: group.args.clone(),
            env: group.env.clone(),
            limits: group.resources,
            attempt: grant.attempt,
            container: None,
        }));
    }
    // The lablet keeps the room that the grant named before the run was here.
    if needed != grant.slots {
        return Err(CellError::Slots { granted: grant.slots.clone(), needed });
    }
    Ok(CellSpec {
        name: grant.cell.execution.alias(),
        seed: run.seed,
        run_id: grant.run.to_string(),
        case: run.case.clone(),
        params: run.params.iter().map(|(name, value)| (name.clone(), value.to_string())).collect(),
        groups: run.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect(),
        instances,
        scratch,
        origin: Origin {
            lab: lab.to_string(),
            execution: grant.cell.execution.to_string(),
            epoch: grant.cell.epoch.counter,
        },
    })
}
