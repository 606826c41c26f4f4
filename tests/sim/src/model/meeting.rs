//! Who came to the barrier at which all instances of a run meet, and when it may open or fail.

use iptl_dag::model::{BarrierLoss, ExecutionId, InstanceId};

use super::{Model, Truth};
use crate::reach::Point;

impl Truth {
    /// Instances that never signalled, and whether each of them is gone for good.
    fn absent(&self) -> Vec<(InstanceId, bool)> {
        let all = self
            .run
            .groups
            .iter()
            .flat_map(|(name, group)| (0..group.count).map(move |index| InstanceId { group: name.clone(), index }));
        all.filter(|instance| !self.signalled.contains(instance))
            .map(|instance| {
                let gone = self.log.is_gone(&self.run, &instance);
                (instance, gone)
            })
            .collect()
    }
}

impl Model {
    /// An instance signals, and waits for all others.
    pub fn signals(&mut self, id: &ExecutionId, instance: &InstanceId) {
        if let Some(truth) = self.truths.get_mut(id) {
            truth.signalled.insert(instance.clone());
        }
    }

    /// The barrier opens for an instance: everybody has come, or is gone for good where the plan wants it to open then.
    pub fn opens(&mut self, id: &ExecutionId, instance: &InstanceId) {
        let Some(truth) = self.truths.get(id) else { return };
        let absent = truth.absent();
        let releases = truth.run.loss.barriers == BarrierLoss::Release && absent.iter().all(|(_, gone)| *gone);
        self.reached.at(if absent.is_empty() { Point::BarrierOpened } else { Point::BarrierReleased });
        let anew = truth.starts.values().any(|starts| starts.len() > 1);
        if anew && absent.is_empty() {
            self.reached.at(Point::MetAgain);
        }
        self.check("barrier-early", absent.is_empty() || releases, || {
            format!("{}: the barrier opens for {instance}, and these have not come: {absent:?}", id.alias())
        });
    }

    /// The barrier fails for an instance: the plan wants that, and somebody is gone for good who has not come, or was not
    /// heard to.
    pub fn fails(&mut self, id: &ExecutionId, instance: &InstanceId, why: &str) {
        self.reached.at(Point::BarrierFailed);
        let Some(truth) = self.truths.get(id) else { return };
        let absent = truth.absent();
        let is_gone = absent.iter().any(|(_, gone)| *gone) || truth.log.lost_one(&truth.run);
        let may = truth.run.loss.barriers != BarrierLoss::Wait && is_gone;
        self.check("barrier-fails-early", may, || {
            format!("{}: the barrier fails for {instance} ({why}), and absent are {absent:?}", id.alias())
        });
    }
}
