//! What the cores of a schedule were told, to run them again alone: without a network, disks, faults and a model.

use std::collections::BTreeMap;

use iptl_scheduler::lablet::{LabletConfig, LabletInput};
use iptl_scheduler::{Input, Lablet, Orchestrator, OrchestratorConfig};
use iptl_wire::Timestamp;

/// Inputs of all lives of all cores, in their order.
#[derive(Debug, Default)]
pub struct Heard {
    orchestrators: Vec<(OrchestratorConfig, Vec<(Timestamp, Input)>)>,
    lablets: Vec<(LabletConfig, Vec<(Timestamp, LabletInput)>)>,
    /// Which life each lablet leads now.
    lives: BTreeMap<usize, usize>,
}

impl Heard {
    pub(crate) fn orchestrator_starts(&mut self, config: OrchestratorConfig) {
        self.orchestrators.push((config, Vec::new()));
    }

    pub(crate) fn orchestrator(&mut self, now: Timestamp, input: &Input) {
        if let Some((_, heard)) = self.orchestrators.last_mut() {
            heard.push((now, input.clone()));
        }
    }

    pub(crate) fn lablet_starts(&mut self, lablet: usize, config: LabletConfig) {
        self.lives.insert(lablet, self.lablets.len());
        self.lablets.push((config, Vec::new()));
    }

    pub(crate) fn lablet(&mut self, lablet: usize, now: Timestamp, input: &LabletInput) {
        if let Some((_, heard)) = self.lives.get(&lablet).and_then(|life| self.lablets.get_mut(*life)) {
            heard.push((now, input.clone()));
        }
    }

    /// Tells new cores the same; returns how many inputs these were.
    ///
    /// # Panics
    ///
    /// Panics where cores do nothing at all: they are those of a schedule.
    pub fn again(self) -> u64 {
        let (mut inputs, mut effects) = (0, 0_u64);
        for (config, heard) in self.orchestrators {
            let mut core = Orchestrator::new(config);
            for (now, input) in heard {
                core.handle(now, input);
                effects += std::iter::from_fn(|| core.poll_effect()).count() as u64;
                effects += u64::from(core.poll_timeout().is_some());
                inputs += 1;
            }
        }
        for (config, heard) in self.lablets {
            let mut core = Lablet::new(config);
            for (now, input) in heard {
                core.handle(now, input);
                effects += std::iter::from_fn(|| core.poll_effect()).count() as u64;
                effects += u64::from(core.poll_timeout().is_some());
                inputs += 1;
            }
        }
        assert!(effects > 0, "cores that are told something do something");
        inputs
    }
}
