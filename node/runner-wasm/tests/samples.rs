//! What instances use is written down each second, where it changed.

use iptl_dag::model::Exit;
use iptl_runner::contract::{Behaviour, Lab, instance};

use crate::fixture;

#[tokio::test]
async fn samples_come_each_second_of_who_does_something() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let mut cell = fixture.cell(dir.path(), &[Behaviour::Spin, Behaviour::Park, Behaviour::Succeed]);
    for spec in &mut cell.instances {
        spec.limits.wall_ms = 3_300;
        spec.limits.cpu_ms = 60_000;
    }
    let lab = Lab::prepare(&*fixture.runner, cell).await;
    lab.control.start().await;
    let outcome = lab.finish().await;
    assert_eq!(outcome.exit(0), &Exit::OutOfTime {});
    let ended = &outcome.ended[&instance(0)];
    let text = std::fs::read_to_string(ended.left.samples.as_ref().unwrap()).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!((2..=5).contains(&rows.len()), "{text}");
    let column = |name: &str| rows.iter().map(|row| row[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert!(column("t").is_sorted() && column("t")[0] > 0, "{text}");
    let cpu = column("cpu_us");
    assert!(cpu.is_sorted_by(|a, b| a < b) && cpu[0] > 100_000, "{text}");
    assert_eq!(cpu[cpu.len() - 1], ended.usage.cpu_us, "the last sample says what the receipt says");
    assert!(column("memory").iter().all(|memory| *memory > 0), "{text}");
    // One that waits and one that was over before the first look cost nothing.
    for index in [1, 2] {
        assert_eq!(outcome.ended[&instance(index)].left.samples, None, "instance {index}");
    }
}
