//! How far the other lablets of a cell's placement are, and which delays are to hide that.

use std::collections::BTreeMap;

use iptl_dag::PeerId;
use iptl_dag::model::{Assignment, NetworkModel, Way};
use iptl_labnet::Compiled;
use iptl_wire::session::MAX_WAYS;

use crate::carrier::Carrier;

/// The shortest delay from instances of one lablet to those of another, in microseconds, with its regions.
pub(super) type Asked = (u64, String, String);

/// Returns the shortest delays from the instances on `here` to those on each other lablet.
pub(super) fn asked(
    network: &NetworkModel,
    compiled: &Compiled,
    placement: &[Assignment],
    here: &PeerId,
) -> BTreeMap<PeerId, Asked> {
    let mut regions: BTreeMap<&PeerId, Vec<u16>> = BTreeMap::new();
    for assignment in placement {
        let of = regions.entry(&assignment.lablet).or_default();
        let nodes = assignment.instances().filter_map(|id| compiled.nodes.get(&id).copied());
        of.extend(nodes.filter_map(|node| compiled.topology.public_region(node)));
    }
    for of in regions.values_mut() {
        of.sort_unstable();
        of.dedup();
    }
    let own = regions.remove(here).unwrap_or_default();
    let name = |region: u16| network.regions.get(usize::from(region)).cloned().unwrap_or_default();
    let delay = |from: u16, to: u16| network.delays_us.get(usize::from(from))?.get(usize::from(to)).copied();
    let shortest = |there: &[u16]| {
        let pairs = own.iter().flat_map(|from| there.iter().map(move |to| (*from, *to)));
        let (asked_us, from, to) = pairs.filter_map(|(from, to)| Some((delay(from, to)?, from, to))).min()?;
        Some((asked_us, name(from), name(to)))
    };
    regions.into_iter().filter_map(|(lablet, there)| Some((lablet.clone(), shortest(&there)?))).collect()
}

/// Measures the ways to other lablets, all at once; the slowest come first.
pub(super) async fn measure(carrier: &Carrier, to: Vec<(PeerId, Vec<String>, Asked)>) -> Vec<Way> {
    let measured = to.into_iter().map(|(to, addrs, (asked_us, from_region, to_region))| async move {
        let enough_ns = asked_us.saturating_add(Way::GRACE_US).saturating_mul(1_000);
        let way = carrier.measure(&to, &addrs, Some(enough_ns)).await;
        if let Err(error) = &way {
            tracing::warn!(lablet = %to, %error, "nobody knows how far a lablet is");
        }
        let way = way.ok();
        let measured_us = way.map(|way| way.best_ns / 1_000);
        Way { to, from_region, to_region, asked_us, measured_us, relayed: way.is_some_and(|way| way.relayed) }
    });
    let mut ways = futures::future::join_all(measured).await;
    ways.sort_by_key(|way| std::cmp::Reverse(way.measured_us.unwrap_or(0).saturating_sub(way.asked_us)));
    ways.truncate(MAX_WAYS);
    ways
}

#[cfg(test)]
mod tests {
    use iptl_dag::model::{AccessClass, GroupNetwork, IpModel, LinkModel};

    use super::*;

    #[test]
    fn shortest_delay_between_the_instances_of_two_lablets_is_what_is_to_hide_the_way() {
        let class = AccessClass { up: LinkModel::default(), down: LinkModel::default(), mtu: 1500 };
        let only = |region: &str| GroupNetwork {
            regions: BTreeMap::from([(region.to_owned(), 1)]),
            access: BTreeMap::new(),
            sites: Vec::new(),
            per: 1,
        };
        let network = NetworkModel {
            ip: IpModel::default(),
            regions: ["east", "west", "south"].map(str::to_owned).to_vec(),
            delays_us: vec![vec![1, 50_000, 80_000], vec![60_000, 2, 70_000], vec![90_000, 30_000, 3]],
            access: BTreeMap::from([("line".to_owned(), class)]),
            groups: [("e", "east"), ("s", "south"), ("w", "west")].map(|(g, r)| (g.to_owned(), only(r))).into(),
        };
        let groups = ["e", "s", "w"].map(|group| (group.to_owned(), 4)).into();
        let compiled = iptl_labnet::compile(&network, &groups, 1).unwrap();
        let peer = |n: u8| PeerId::from_ed25519(&[n; 32]);
        let on = |n: u8, group: &str, start: u32, count: u32| Assignment {
            lablet: peer(n),
            group: group.to_owned(),
            start,
            count,
        };
        let placement = [on(1, "e", 0, 4), on(2, "w", 0, 4), on(2, "s", 0, 2), on(3, "s", 2, 2)];
        let found = asked(&network, &compiled, &placement, &peer(1));
        let to = |us: u64, region: &str| (us, "east".to_owned(), region.to_owned());
        assert_eq!(found, BTreeMap::from([(peer(2), to(50_000, "west")), (peer(3), to(80_000, "south"))]));
        let back = asked(&network, &compiled, &placement, &peer(2));
        assert_eq!(back[&peer(1)], (60_000, "west".to_owned(), "east".to_owned()));
        // Within a region, instances of two lablets are as near as neighbours.
        assert_eq!(back[&peer(3)], (3, "south".to_owned(), "south".to_owned()));
    }
}
