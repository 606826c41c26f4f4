//! From a grant to a prepared cell: every block is here and verified before anything starts.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use iptl_artifacts::read_block;
use iptl_dag::model::{
    self, Container, Destination, FaultSchedule, GroupRun, InstanceId, Network, NetworkModel, Run, Workload,
    WorkloadKind,
};
use iptl_dag::{Cid, PeerId};
use iptl_runner::{Artifact, CellSpec, ContainerSpec, InstanceSpec, Origin, PrepareError, PreparedCell, Runners};
use iptl_wire::session::{CellFetch, Grant};
use tokio::sync::watch;

use super::artifacts::{ArtifactError, Artifacts};
use super::content::{Content, Extent};
use super::egress::{self, EgressError};
use super::ways::{self, Asked};
use crate::fetch::{FetchError, Fetcher, Source};
use crate::home::Home;

/// Folder in a cell's scratch for what containers are given; no group is called so.
const FILES_DIR: &str = ".files";

/// File in a cell's scratch for what its sync must not forget.
const SYNC_FILE: &str = ".sync";

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
    /// What instances are given could not be made files.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The runner refused.
    #[error(transparent)]
    Runner(#[from] PrepareError),
    /// Instances are to reach a place outside of the lab and cannot be let.
    #[error(transparent)]
    Egress(#[from] EgressError),
}

impl CellError {
    /// Tells whether any other lablet would fail in the same way.
    pub(super) fn lies_in_the_workload(&self) -> bool {
        match self {
            CellError::Bad { .. }
            | CellError::Artifact(ArtifactError::Bad { .. })
            | CellError::Runner(
                PrepareError::BadArtifact { .. } | PrepareError::MissingImport { .. } | PrepareError::BadNetwork { .. },
            ) => true,
            CellError::Fetch(_)
            | CellError::Artifact(ArtifactError::Write { .. } | ArtifactError::Store(_))
            | CellError::Slots { .. }
            | CellError::Egress(_)
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
    /// Other lablets of its placement, and the shortest delay to each; of a run with a network.
    pub(super) asked: BTreeMap<PeerId, Asked>,
}

/// A cell that runs on.
pub(super) struct Adopted {
    pub(super) run: Run,
    pub(super) cell: PreparedCell,
    /// Instances of which nothing is left.
    pub(super) gone: BTreeSet<InstanceId>,
    /// Whose cell it is, for its runners.
    pub(super) origin: Origin,
}

/// What preparing needs of its lablet.
#[derive(Clone)]
pub(super) struct Preparer {
    pub(super) lab: PeerId,
    pub(super) artifacts: Artifacts,
    pub(super) fetcher: Fetcher,
    pub(super) runners: Runners,
    /// Places outside of the lab that the owner grants.
    pub(super) granted: BTreeSet<Destination>,
}

impl Preparer {
    /// Fetches what a grant names, telling how far that is, and lets the runner prepare its cell.
    ///
    /// Safe to drop: the runner gives the cell up, blocks that arrived stay.
    pub(super) async fn prepare(
        &self,
        orchestrators: Vec<Source>,
        grant: &Grant,
        told: watch::Sender<Option<CellFetch>>,
    ) -> Result<Prepared, CellError> {
        let content = Content::new(self.fetcher.clone(), grant, orchestrators, told);
        let every = |_: &str| true;
        let run: Run = self.node(&content, &grant.run, Extent::Block, every).await?;
        let scratch = self.scratch(grant)?;
        // How much there is to fetch is known before the first of it comes.
        let mut workloads: BTreeMap<Cid, Workload> = BTreeMap::new();
        for assignment in &grant.assignments {
            let group = group(&run, grant, &assignment.group)?;
            if let Entry::Vacant(vacant) = workloads.entry(group.workload) {
                let workload: Workload =
                    self.node(&content, &group.workload, Extent::Block, uses(&run, &group.workload)).await?;
                if workload.kind != group.kind {
                    let reason = format!("it is a {:?} workload, and the run says {:?}", workload.kind, group.kind);
                    return Err(CellError::Bad { cid: group.workload, reason });
                }
                vacant.insert(workload);
            }
        }
        content.expect(workloads.values().map(|workload| workload.size).fold(0, u64::saturating_add));
        let mut artifacts = BTreeMap::new();
        for (cid, workload) in &workloads {
            content.fetch(&workload.content, Extent::Whole(workload.size), uses(&run, cid)).await?;
            let path = self.artifacts.of(workload).await?;
            artifacts.insert(*cid, Artifact { cid: workload.content, path });
        }
        let pinned = egress::pin(&self.granted, &places_outside(&run, grant)?).await?;
        egress::note(&scratch, &pinned)?;
        let mut containers = BTreeMap::new();
        for assignment in &grant.assignments {
            let group = group(&run, grant, &assignment.group)?;
            if let Some(settings) = &group.container
                && let Entry::Vacant(vacant) = containers.entry(assignment.group.clone())
            {
                let spec = self.container(&content, &run, settings, &scratch, &assignment.group).await?;
                vacant.insert(ContainerSpec { egress: egress::of(settings, &pinned), ..spec });
            }
        }
        let network = match &run.network {
            Network::Clean => None,
            Network::Model(cid) => Some(self.node(&content, cid, Extent::Whole(0), every).await?),
        };
        let mut faults = Vec::new();
        for cid in &run.faults {
            faults.push(self.node(&content, cid, Extent::Whole(0), every).await?);
        }
        let files = Files { artifacts, containers, network, faults, scratch };
        let spec = spec(&self.lab, &run, grant, files)?;
        let asked = asked(&run, grant, &spec)?;
        let cell = self.runners.prepare(spec).await?;
        Ok(Prepared { run, cell, asked })
    }

    /// Takes over what an earlier life of the lablet started of a granted cell; none where nothing of it is left.
    /// Nothing is fetched: what it was prepared from is still here, or the cell is lost.
    ///
    /// Safe to drop: what runs goes on.
    pub(super) async fn adopt(&self, grant: &Grant) -> Result<Option<Adopted>, CellError> {
        let scratch = scratch_path(&self.artifacts.home, grant);
        if !scratch.is_dir() {
            return Ok(None);
        }
        let run: Run = self.stored(&grant.run).await?;
        // What the owner grants no more is closed from now on, and its container ends.
        let pinned = egress::noted(&scratch, &self.granted, &places_outside(&run, grant)?)?;
        let (mut artifacts, mut containers) = (BTreeMap::new(), BTreeMap::new());
        for assignment in &grant.assignments {
            let group = group(&run, grant, &assignment.group)?;
            if let Some(settings) = &group.container {
                let files = settings.files.keys().enumerate();
                let files = files.map(|(number, inside)| (inside.clone(), given(&scratch, &assignment.group, number)));
                let egress = egress::of(settings, &pinned);
                let spec = ContainerSpec { settings: settings.clone(), files: files.collect(), egress };
                containers.insert(assignment.group.clone(), spec);
            }
            if let Entry::Vacant(vacant) = artifacts.entry(group.workload) {
                let workload: Workload = self.stored(&group.workload).await?;
                let path = self.artifacts.of(&workload).await?;
                vacant.insert(Artifact { cid: workload.content, path });
            }
        }
        let network = match &run.network {
            Network::Clean => None,
            Network::Model(cid) => Some(self.stored(cid).await?),
        };
        let mut faults = Vec::new();
        for cid in &run.faults {
            faults.push(self.stored(cid).await?);
        }
        let files = Files { artifacts, containers, network, faults, scratch };
        let spec = spec(&self.lab, &run, grant, files)?;
        let origin = spec.origin.clone();
        let (cell, gone) = self.runners.adopt(spec).await?;
        Ok(cell.map(|cell| Adopted { run, cell, gone, origin }))
    }

    /// Fetches the files that the containers of a group get and writes them down for this cell.
    async fn container(
        &self,
        content: &Content<'_>,
        run: &Run,
        settings: &Container,
        scratch: &Path,
        group: &str,
    ) -> Result<ContainerSpec, CellError> {
        let mut files = BTreeMap::new();
        for (number, (inside, cid)) in settings.files.iter().enumerate() {
            let gets = |group: &str| {
                let container = run.groups.get(group).and_then(|group| group.container.as_ref());
                container.is_some_and(|container| container.files.values().any(|file| file == cid))
            };
            content.fetch(cid, Extent::Whole(0), gets).await?;
            let write = |e: std::io::Error| ArtifactError::Write { cid: *cid, reason: e.to_string() };
            let path = given(scratch, group, number);
            let dir = path.parent().expect("it is below the scratch");
            tokio::fs::create_dir_all(dir).await.map_err(write)?;
            self.artifacts.file(cid, &path).await?;
            files.insert(inside.clone(), path);
        }
        Ok(ContainerSpec { settings: settings.clone(), files, egress: BTreeMap::new() })
    }

    /// Fetches and reads a node that the groups need that `uses` says.
    async fn node<T>(
        &self,
        content: &Content<'_>,
        cid: &Cid,
        extent: Extent,
        uses: impl Fn(&str) -> bool,
    ) -> Result<T, CellError>
    where
        T: TryFrom<model::Node, Error = iptl_dag::DecodeError>,
    {
        content.fetch(cid, extent, uses).await?;
        self.stored(cid).await
    }

    /// Reads a node that is in the store.
    async fn stored<T>(&self, cid: &Cid) -> Result<T, CellError>
    where
        T: TryFrom<model::Node, Error = iptl_dag::DecodeError>,
    {
        let bad = |reason: String| CellError::Bad { cid: *cid, reason };
        let block = read_block(self.artifacts.store(), cid)
            .await
            .map_err(FetchError::from)?
            .ok_or_else(|| ArtifactError::Write { cid: *cid, reason: "it vanished from the store".to_owned() })?;
        model::from_bytes(block.data()).map_err(|e| bad(e.to_string()))
    }

    fn scratch(&self, grant: &Grant) -> Result<PathBuf, CellError> {
        let path = scratch_path(&self.artifacts.home, grant);
        let failed = |e: std::io::Error| ArtifactError::Write { cid: grant.run, reason: e.to_string() };
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e).into()),
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

/// Returns the file in which a cell's sync remembers what it must; none where no instance can outlive the lablet.
pub(super) fn memory_path(home: &Home, grant: &Grant) -> Option<PathBuf> {
    let outlives = grant.slots.get(&WorkloadKind::Docker).is_some_and(|count| *count > 0);
    outlives.then(|| scratch_path(home, grant).join(SYNC_FILE))
}

/// Returns where a file stands that the containers of a group get.
fn given(scratch: &Path, group: &str, number: usize) -> PathBuf {
    scratch.join(FILES_DIR).join(group).join(number.to_string())
}

/// Returns what says whether a group uses a workload.
fn uses<'a>(run: &'a Run, workload: &'a Cid) -> impl Fn(&str) -> bool + use<'a> {
    move |group| run.groups.get(group).is_some_and(|group| group.workload == *workload)
}

fn group<'a>(run: &'a Run, grant: &Grant, name: &str) -> Result<&'a GroupRun, CellError> {
    run.groups.get(name).ok_or_else(|| CellError::Bad { cid: grant.run, reason: format!("it has no group {name:?}") })
}

/// Returns the places outside of the lab that instances of a grant are to reach.
fn places_outside(run: &Run, grant: &Grant) -> Result<BTreeSet<Destination>, CellError> {
    let mut places = BTreeSet::new();
    for assignment in &grant.assignments {
        let group = group(run, grant, &assignment.group)?;
        let wanted: Vec<_> = group.container.iter().flat_map(|container| &container.egress).cloned().collect();
        if group.kind == WorkloadKind::Wasm && !wanted.is_empty() {
            let reason = format!("group {:?} is of components, which have no way out of the lab", assignment.group);
            return Err(CellError::Bad { cid: grant.run, reason });
        }
        places.extend(wanted);
    }
    Ok(places)
}

/// Returns the bytes that one instance of a group is given at its start.
fn size_at_start(run: &Run, group: &GroupRun) -> u64 {
    let args = group.args.iter().map(String::len);
    let env = group.env.iter().map(|(name, value)| name.len() + value.len());
    let params = run.params.iter().map(|(name, value)| name.len() + value.to_string().len());
    args.chain(env).chain(params).map(|size| size as u64).sum()
}

/// What was made for a cell on this machine.
struct Files {
    /// By workload.
    artifacts: BTreeMap<Cid, Artifact>,
    /// By group.
    containers: BTreeMap<String, ContainerSpec>,
    /// Where it is not clean.
    network: Option<NetworkModel>,
    faults: Vec<FaultSchedule>,
    scratch: PathBuf,
}

/// Refuses a network or faults that are none of this run, or that the cell could not have.
fn check_network(run: &Run, network: Option<&NetworkModel>, faults: &[FaultSchedule]) -> Result<(), CellError> {
    let (Network::Model(cid), Some(network)) = (&run.network, network) else {
        return match run.faults.first() {
            Some(cid) => Err(CellError::Bad { cid: *cid, reason: "faults need a network to happen in".to_owned() }),
            None => Ok(()),
        };
    };
    let cid = *cid;
    let groups = run.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect();
    let bad = |cid: &Cid, what, e: &dyn std::error::Error| CellError::Bad {
        cid: *cid,
        reason: format!("it is {what} of this run: {e}"),
    };
    let compiled = iptl_labnet::compile(network, &groups, run.seed).map_err(|e| bad(&cid, "no network", &e))?;
    if let Some(first) = run.faults.first() {
        iptl_labnet::Faults::new(faults, network, &compiled, &groups, run.seed)
            .map_err(|e| bad(first, "no schedule of faults", &e))?;
    }
    Ok(())
}

/// Returns the delays that are to hide the ways to other lablets; none where nothing is promised of delays.
fn asked(run: &Run, grant: &Grant, spec: &CellSpec) -> Result<BTreeMap<PeerId, Asked>, CellError> {
    let (Network::Model(cid), Some(network)) = (&run.network, &spec.network) else { return Ok(BTreeMap::new()) };
    if grant.placement.iter().all(|assignment| assignment.lablet == grant.lablet) {
        return Ok(BTreeMap::new());
    }
    let compiled = iptl_labnet::compile(network, &spec.groups, run.seed)
        .map_err(|e| CellError::Bad { cid: *cid, reason: format!("it is no network of this run: {e}") })?;
    Ok(ways::asked(network, &compiled, &grant.placement, &grant.lablet))
}

fn spec(lab: &PeerId, run: &Run, grant: &Grant, files: Files) -> Result<CellSpec, CellError> {
    let Files { artifacts, containers, network, faults, scratch } = files;
    check_network(run, network.as_ref(), &faults)?;
    if run.capture_count() > Run::MAX_CAPTURES {
        let reason = format!("it has {} instances captured; {} may be", run.capture_count(), Run::MAX_CAPTURES);
        return Err(CellError::Bad { cid: grant.run, reason });
    }
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
        // What begins anew has waited already.
        let delay_ms = |id: &InstanceId| if grant.attempt > 1 { 0 } else { run.delay_ms(&id.group, id.index) };
        instances.extend(assignment.instances().map(|id| InstanceSpec {
            capture: run.captures(&id),
            start_after_ms: delay_ms(&id),
            id,
            kind: group.kind,
            artifact: artifact.clone(),
            args: group.args.clone(),
            env: group.env.clone(),
            limits: group.resources,
            attempt: grant.attempt,
            container: containers.get(&assignment.group).cloned(),
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
        plan: run.plan.to_string(),
        case: run.case.clone(),
        params: run.params.iter().map(|(name, value)| (name.clone(), value.to_string())).collect(),
        groups: run.groups.iter().map(|(name, group)| (name.clone(), group.count)).collect(),
        network,
        mixed: run.kinds().len() > 1,
        faults,
        instances,
        scratch,
        origin: Origin {
            lab: lab.to_string(),
            execution: grant.cell.execution.to_string(),
            epoch: grant.cell.epoch.counter,
        },
    })
}
