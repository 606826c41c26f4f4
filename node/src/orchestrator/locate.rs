//! Where an instance is in which somebody wants to execute a command.

use iptl_dag::PeerId;
use iptl_dag::model::{ExecutionId, InstanceId};
use iptl_scheduler::Orchestrator;
use iptl_wire::control::{Failure, FailureKind};

use super::registry::Registry;

/// Finds the lablet of an instance that may run, for somebody who may touch it: the lab's owner, who is nobody here, or
/// who submitted the run.
pub(super) fn lablet_of(
    registry: &Registry,
    core: &Orchestrator,
    name: &str,
    instance: &InstanceId,
    by: Option<&PeerId>,
) -> Result<(ExecutionId, PeerId), Failure> {
    let id = registry.find(name)?;
    let Some(active) = registry.active.get(&id) else {
        return Err(not_running(format!("{} is over", id.alias())));
    };
    if by.is_some_and(|by| *by != active.by) {
        return Err(Failure {
            kind: FailureKind::Denied,
            code: "exec.not-allowed".to_owned(),
            message: format!("{} was submitted by {}, and not by you", id.alias(), active.by.short()),
            help: "ask who submitted it, or the lab's owner".to_owned(),
        });
    }
    if active.groups.get(&instance.group).is_none_or(|count| instance.index >= *count) {
        let groups: Vec<_> = active.groups.iter().map(|(name, count)| format!("{count} {name}")).collect();
        return Err(Failure {
            kind: FailureKind::NotFound,
            code: "exec.no-instance".to_owned(),
            message: format!("{} has no instance {instance}: it has {}", id.alias(), groups.join(", ")),
            help: "write execution/group/index; indexes begin at zero".to_owned(),
        });
    }
    let holder = core.cells(&id).into_iter().find(|(_, (_, held))| held.iter().any(|a| a.holds(instance)));
    match holder {
        Some((lablet, _)) => Ok((id, lablet)),
        None => Err(not_running(format!("{instance} of {} is on no lablet now", id.alias()))),
    }
}

fn not_running(message: String) -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        code: "exec.not-running".to_owned(),
        message,
        help: "see what runs: `iptl ls runs`".to_owned(),
    }
}
