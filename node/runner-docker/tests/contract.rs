//! The suite that every runner passes, one test for each fact.

use iptl_runner::contract;

use crate::engine;

macro_rules! facts {
    ($($fact:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $fact() {
                let bench = engine!();
                contract::$fact(&bench.fixture()).await;
                bench.close().await;
            }
        )*
    };
}

facts!(
    statuses_are_told,
    output_is_told_and_logged,
    environment_is_the_labs,
    misbehaviour_ends_its_instance_and_no_other,
    what_was_within_the_limit_is_kept,
    records_and_artifacts_are_left,
    barrier_opens_for_all,
    messages_come_in_one_order,
    nothing_runs_before_start,
    stop_ends_whatever_runs,
    stop_before_start_ends_all,
    wall_time_ends_what_waits,
    killed_worker_ends_its_cell_and_no_other,
    dropped_control_stops_the_cell,
    cell_beyond_capacity_is_refused,
);
