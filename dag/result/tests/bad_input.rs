//! What a lab could not do, marked in the result with a figure.

use iptl_dag::model::{CellNetworkUse, Exit, NetworkUse, Receipt};

use crate::world::{World, id};

/// Seals a run whose network used so much of a processor in ten seconds, and returns its distortions.
fn distortions(cpu_us: Option<u64>) -> Vec<String> {
    let cell = CellNetworkUse { cpu_us, wall_us: 10_000_000, ..CellNetworkUse::default() };
    let mut world = World::new(&[("a", 1)], Vec::new());
    let network = Some(NetworkUse { cell, ..NetworkUse::default() });
    world.add(Receipt { network, ..world.receipt(id("a", 0), Exit::Exited { code: 0 }) });
    let mut found = Vec::new();
    world.seal(|body| found.extend(body.distortions.iter().map(|distortion| distortion.what.clone())));
    found
}

#[test]
fn rates_that_the_machine_cannot_carry() {
    assert_eq!(distortions(None), [""; 0]);
    assert_eq!(distortions(Some(7_000_000)), [""; 0]);
    let said = distortions(Some(9_300_000));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("93 % of a processor") && said[0].contains("beyond 70 %"), "{said:?}");
}
