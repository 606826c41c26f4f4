//! What plan authors write, checked and turned into the lab's data.
//!
//! [`parse`] reads a `plan.toml` into a [`Manifest`] or a list of [`Diagnostic`]s with places and suggestions, all
//! that one pass can see; [`Manifest::to_plan`] makes the plan's node, [`make_run`] a run of it with somebody's
//! choices, some of which may stand in files ([`network_in`], [`faults_in`]); [`explain`] has the long text of every code; [`scaffold`] has the files of a new plan. `docs/spec/plan-manifest.md` is the format's page.
//!
//! Nothing here reads a file: the caller brings the text. Building workloads is the command line's work.

mod beside;
mod codes;
mod diagnostic;
mod manifest;
mod names;
mod network;
mod run;
mod scaffold;
mod section;
mod units;

pub use beside::{clean_network, faults_in, network_in, unfit_faults};
pub use codes::{CODES, explain};
pub use diagnostic::{Diagnostic, Related};
pub use manifest::{
    ImageSource, MAX_INSTANCES, MAX_MANIFEST_BYTES, Manifest, ToPlanError, WorkloadDef, WorkloadSource, parse,
};
pub use names::{MAX_METRIC_NAME, MAX_NAME, is_metric_name, is_name, param_variable};
pub use network::{
    CLEAN as CLEAN_NETWORK, MAX_REGIONS, fault_summary, preset as network_preset, presets as network_presets,
    summary as network_summary,
};
pub use run::{DEFAULT_CASE, DEFAULT_SEED, RunOptions, chosen_case, make_run};
pub use scaffold::{ScaffoldError, ScaffoldFile, scaffold};
