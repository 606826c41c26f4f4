//! Networks in which instances are behind something, and what instances see there.

use std::collections::BTreeMap;

use iptl_dag::model::{GatewayModel, GroupNetwork, NetworkModel, PortsModel, SiteShare};

use super::Outcome;
use crate::cell::OutputStream;

/// Puts one of every two instances of group `g` of a network behind a NAT, whose ports are drawn.
#[must_use]
pub fn one_behind_a_nat(mut network: NetworkModel) -> NetworkModel {
    let nat = GatewayModel { ports: PortsModel::Random, ..GatewayModel::default() };
    let sites = [Vec::new(), vec![nat]].map(|gateways| SiteShare { weight: 1, gateways }).to_vec();
    network.groups = BTreeMap::from([("g".to_owned(), GroupNetwork { sites, ..GroupNetwork::default() })]);
    network
}

/// Puts every three instances of group `h` of a network into one home.
#[must_use]
pub fn homes_of_three(mut network: NetworkModel) -> NetworkModel {
    let sites = vec![SiteShare { weight: 1, gateways: vec![GatewayModel::default()] }];
    network.groups = BTreeMap::from([("h".to_owned(), GroupNetwork { sites, per: 3, ..GroupNetwork::default() })]);
    network
}

/// Checks what one of two instances, the one [behind a NAT](one_behind_a_nat), has said whose mappings were forgotten: it
/// asks under which address and port the other sees it, before and after, and both whether the old one leads anywhere.
pub fn check_rebound(outcome: &Outcome) {
    let lines = [0, 1].map(|index| outcome.lines(index, OutputStream::Out)).concat();
    let [first, then, old, new] = lines.as_slice() else { panic!("{outcome:?}") };
    let port = |line: &String| line.strip_prefix("seen as 172.16.0.1:").map(str::to_owned);
    // The address of the NAT is what it was, and its ports are others.
    assert!(port(first).is_some() && port(then).is_some() && port(first) != port(then), "{lines:?}");
    assert_eq!((old.as_str(), new.as_str()), ("old mapping: nothing", "new mapping: heard"));
}
