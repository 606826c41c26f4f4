//! Networks as data, and packets: those of instances, and those that lablets send each other.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use iptl_dag::codec;
use iptl_dag::model::NetworkModel;
use iptl_labnet::{
    Access, Away, Engine, EngineConfig, Header, IcmpError, MAX_PACKET_SIZE, NatConfig, NodeId, Packet, RealmId,
    Topology, compile, embedded, fragments,
};

use crate::memory::{bounded, typed};

/// Instances of each group of a network.
const INSTANCES: u32 = 3;

/// A description is a network of its groups, in which packets can be sent, or it is refused.
pub(crate) fn network(data: &[u8]) -> bool {
    let Ok(model) = typed(data, || codec::decode::<NetworkModel>(data)) else { return false };
    assert_eq!(codec::decode::<NetworkModel>(&codec::encode(&model)).expect("it was just written"), model);
    let groups = model.groups.keys().take(8).map(|name| (name.clone(), INSTANCES)).collect();
    let Ok(compiled) = typed(data, || compile(&model, &groups, 7)) else { return false };
    assert_eq!(compiled.nodes.len(), compiled.topology.len(), "every instance has a place");
    for node in compiled.nodes.values() {
        assert!(compiled.topology.addrs(*node).is_some_and(|addrs| addrs.first().is_some()));
        assert!(usize::from(compiled.topology.region(*node).unwrap_or_default()) < compiled.topology.regions());
    }
    let mut engine = Engine::new(compiled.topology, EngineConfig::default());
    for node in compiled.nodes.into_values() {
        engine.handle_packet(0, node, vec![0x45]);
    }
    drained(&mut engine);
    true
}

/// A packet between lablets has one form.
pub(crate) fn packet(data: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(packet) = bounded(1, data, || Packet::decode(&bytes)) else { return false };
    assert!(data.len() <= MAX_PACKET_SIZE);
    assert_eq!(packet.encode(), data);
    true
}

/// A packet from the engine of another lablet has one form, and whatever it claims, an engine bears it.
pub(crate) fn away(data: &[u8]) -> bool {
    let Some(packet) = bounded(1, data, || Away::decode(data)) else { return false };
    assert_eq!(packet.encode(), data);
    assert_eq!((Away::target_of(data), Away::origin_of(data)), (Some(packet.to), Some(packet.origin)));
    let mut stamped = data.to_vec();
    Away::stamp(&mut stamped, packet.relayed, |at_ns| at_ns);
    assert_eq!(stamped, data, "what is stamped with what it has stays as it is");
    let (mut engine, outside, inside) = double_nat();
    for elsewhere in [outside, inside] {
        engine.set_away(elsewhere, true);
        engine.handle_away(1_000_000, packet.clone());
        drained(&mut engine);
        while let Some(next) = engine.poll_away() {
            assert_eq!(Away::decode(&next.encode()), Some(next));
        }
        engine.set_away(elsewhere, false);
    }
    true
}

/// A packet of an instance: its head, what routers make of it, and its way through two NATs.
pub(crate) fn ip(data: &[u8]) -> bool {
    let (mut engine, outside, inside) = double_nat();
    for (at, node) in [outside, inside].into_iter().enumerate() {
        engine.handle_packet(at as u64, node, data.to_vec());
    }
    drained(&mut engine);
    let router = |v4: bool| if v4 { IpAddr::from([192, 0, 2, 1]) } else { "2001:db8::1".parse().expect("an address") };
    for v4 in [true, false] {
        for error in
            [IcmpError::HostUnreachable, IcmpError::Prohibited, IcmpError::HopLimit, IcmpError::TooBig { mtu: 1280 }]
        {
            let mut out = Vec::new();
            if error.write(data, router(v4), &mut out) {
                let header = Header::parse(&out).expect("it was just written");
                assert_eq!(header.len, out.len());
                let about = embedded(&header).expect("it is about a packet");
                assert!(data.starts_with(&out[about..about + (out.len() - about).min(8)]));
            }
        }
    }
    let Ok(header) = bounded(1, data, || Header::parse(data)) else { return false };
    assert!(header.len <= data.len() && header.transport_at <= header.len, "{header:?}");
    if let Some(at) = embedded(&header) {
        assert!(at < header.len);
    }
    for mtu in [68, 576, 1280].into_iter().filter(|mtu| *mtu < header.len) {
        let Some(parts) = fragments(&data[..header.len], &header, mtu) else { continue };
        let mut next = header.fragment.map_or(0, |fragment| fragment.offset);
        for part in &parts {
            assert!(part.len() <= mtu);
            let head = Header::parse(part).expect("it was just written");
            let fragment = head.fragment.expect("it is a part");
            assert_eq!((fragment.offset, head.len), (next, part.len()));
            next += part.len() - head.transport_at;
        }
        assert_eq!(
            next,
            header.fragment.map_or(0, |f| f.offset) + header.len - header.transport_at,
            "all of it is there"
        );
    }
    true
}

/// A public node, and one behind a home NAT inside a carrier's.
fn double_nat() -> (Engine, NodeId, NodeId) {
    let v4 = Ipv4Addr::new;
    let mut topology = Topology::new(vec![vec![0]]).expect("one region");
    let outside = topology.add_node(RealmId::PUBLIC, v4(10, 0, 0, 1), None, Access::default()).expect("there is room");
    let nat = NatConfig::default();
    let (_, carrier) =
        topology.add_gateway(RealmId::PUBLIC, Some(v4(5, 0, 0, 1)), nat, Access::default()).expect("there is room");
    let (_, home) =
        topology.add_gateway(carrier, Some(v4(100, 64, 0, 2)), nat, Access::default()).expect("there is room");
    let inside = topology.add_node(home, v4(192, 168, 1, 2), None, Access::default()).expect("there is room");
    (Engine::new(topology, EngineConfig::default()), outside, inside)
}

/// Lets everything arrive; nothing is left under way.
fn drained(engine: &mut Engine) {
    let mut steps = 0;
    while let Some(at) = engine.poll_timeout() {
        engine.handle_timeout(at);
        steps += 1;
        assert!(steps < 10_000, "packets go round in circles");
    }
    while let Some(output) = engine.poll_output() {
        engine.recycle(output.bytes);
    }
    assert_eq!(engine.held_bytes(), 0);
}
