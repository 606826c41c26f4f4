//! What a case and its groups say of instances that are lost or fail, and of the machines and the start that they want.

use iptl_dag::model::loss::MAX_RERUNS;
use iptl_dag::model::{BarrierLoss, GroupLoss, MaxLost, Placing};
use toml::de::DeValue;

use super::MAX_INSTANCES;
use super::case::MAX_TIMEOUT_MS;
use super::group::narrow;
use crate::section::{Section, Sink, quantity, wrong_type};
use crate::units;

/// Keys of a case that are read here.
pub(super) const CASE_KEYS: &[&str] = &["max_lost", "barriers", "dedicated", "start_within", "slow_ways"];

/// Keys of a group that are read here.
pub(super) const GROUP_KEYS: &[&str] = &["rerun", "max_lost", "fail_fast"];

/// What a case says.
pub(super) struct CaseLoss {
    pub(super) max_lost: Option<MaxLost>,
    pub(super) barriers: BarrierLoss,
    pub(super) placing: Placing,
}

pub(super) fn of_case(sink: &mut Sink, section: &Section<'_>) -> CaseLoss {
    let words = [("fail", BarrierLoss::Fail), ("release", BarrierLoss::Release), ("wait", BarrierLoss::Wait)];
    CaseLoss {
        max_lost: max_lost(sink, section),
        barriers: section.word(sink, "barriers", &words).map(|word| word.value).unwrap_or_default(),
        placing: Placing {
            dedicated: section.boolean(sink, "dedicated").is_some_and(|dedicated| dedicated.value),
            slow_ways: section.boolean(sink, "slow_ways").is_some_and(|slow| slow.value),
            within_ms: section.duration_ms(sink, "start_within", 1, MAX_TIMEOUT_MS).map(|within| within.value),
        },
    }
}

/// Reads what a group says; none where it says nothing.
pub(super) fn of_group(sink: &mut Sink, section: &Section<'_>) -> Option<GroupLoss> {
    let loss = GroupLoss {
        rerun: narrow(section.integer(sink, "rerun", 0, i64::from(MAX_RERUNS)), 0),
        max_lost: max_lost(sink, section),
        fail_fast: section.boolean(sink, "fail_fast").is_some_and(|fail_fast| fail_fast.value),
    };
    (loss != GroupLoss::default()).then_some(loss)
}

/// Reads `max_lost = 3` or `max_lost = "5%"`.
fn max_lost(sink: &mut Sink, section: &Section<'_>) -> Option<MaxLost> {
    let node = section.get("max_lost")?;
    if let DeValue::Integer(_) = node.get_ref() {
        let most = section.integer(sink, "max_lost", 0, i64::from(MAX_INSTANCES))?;
        return Some(MaxLost::Count(narrow(Some(most), 0)));
    }
    let path = section.path_of("max_lost");
    let DeValue::String(_) = node.get_ref() else {
        wrong_type(sink, &path, node, "a number or a share", Some("write `3` or `\"5%\"`".to_owned()));
        return None;
    };
    let share = quantity(sink, &path, node, "a share", "5%", units::share_ppm)?;
    Some(MaxLost::Share(share.value))
}
