//! The fake runner passes the suite that real ones pass, as far as scripts can misbehave.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod several;

use std::path::PathBuf;
use std::sync::Arc;

use iptl_dag::model::Exit;
use iptl_runner::contract::{self, Behaviour, Fixture};
use iptl_runner::{Artifact, FakeRunner, InstanceSpec, OutputStream, Step};

#[tokio::test]
async fn fake_runner_keeps_the_contract() {
    let artifact = Artifact { cid: iptl_dag::codec::cid_of(&"a script"), path: PathBuf::new() };
    let fixture = Fixture {
        runner: Arc::new(FakeRunner::new(script)),
        workload: Box::new(move |behaviour| (artifact.clone(), vec![behaviour.name().to_owned()])),
        container: None,
    };
    contract::statuses_are_told(&fixture).await;
    contract::output_is_told_and_logged(&fixture).await;
    contract::misbehaviour_ends_its_instance_and_no_other(&fixture).await;
    contract::records_and_artifacts_are_left(&fixture).await;
    contract::barrier_opens_for_all(&fixture).await;
    contract::messages_come_in_one_order(&fixture).await;
    contract::nothing_runs_before_start(&fixture).await;
    contract::stop_ends_whatever_runs(&fixture).await;
    contract::stop_before_start_ends_all(&fixture).await;
    contract::dropped_control_stops_the_cell(&fixture).await;
    contract::cell_beyond_capacity_is_refused(&fixture).await;
}

fn script(instance: &InstanceSpec) -> Vec<Step> {
    let behaviour = Behaviour::ALL.into_iter().find(|b| b.name() == instance.args[0]).unwrap();
    let too_much = |what: &str| vec![Step::Exit(Exit::TooMuchOutput { what: what.to_owned() })];
    let out = |line: &str| Step::Print(OutputStream::Out, line.to_owned());
    match behaviour {
        Behaviour::Succeed | Behaviour::Environment => Vec::new(),
        Behaviour::Fail => vec![Step::Exit(Exit::Exited { code: 3 })],
        Behaviour::Print => {
            vec![out("one"), out("two"), Step::Print(OutputStream::Err, "three".to_owned()), out("four")]
        }
        Behaviour::Spin if instance.limits.cpu_ms <= 1_000 => vec![Step::Exit(Exit::OutOfCpu {})],
        Behaviour::Spin | Behaviour::Park => vec![Step::Forever],
        Behaviour::EatMemory => vec![Step::Exit(Exit::OutOfMemory {})],
        Behaviour::FloodOutput => too_much("output"),
        Behaviour::FloodRecords => too_much("records"),
        Behaviour::FloodArtifacts => too_much("artifacts"),
        Behaviour::Recurse => vec![Step::Exit(Exit::StackOverflow {})],
        Behaviour::Trap => vec![Step::Exit(Exit::Trapped { trap: "unreachable".to_owned() })],
        Behaviour::Barrier => {
            vec![Step::Signal("ready".to_owned()), Step::Barrier("ready".to_owned(), 20), out("open")]
        }
        Behaviour::Gossip => vec![
            Step::Publish("t".to_owned(), instance.id.index.to_string().into_bytes()),
            Step::Receive("t".to_owned(), 5),
        ],
        Behaviour::Record => vec![
            Step::Event("hello".to_owned(), r#"{"a":1}"#.to_owned()),
            Step::Metric("m".to_owned(), 1.5, "ms".to_owned()),
            Step::Artifact("dir/file".to_owned(), b"abc".to_vec()),
        ],
    }
}
