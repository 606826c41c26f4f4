//! Packets that travel together come out as they went in.

use std::collections::BTreeMap;

use bytes::Bytes;
use iptl_labnet::{Away, BATCH_SIZE, Batch, Batching, Directory, NodeId, Packet};

use crate::rng::Rng;

fn batch(packets: &[&[u8]]) -> Batch {
    let mut batching = Batching::default();
    packets.iter().for_each(|packet| batching.push(packet));
    batching.take().unwrap_or_default()
}

fn packets(batch: &Batch) -> Vec<Vec<u8>> {
    batch.packets().map(Vec::from).collect()
}

#[test]
fn packets_of_any_size_come_out_in_their_order() {
    let mut rng = Rng(7);
    for _ in 0..200 {
        let made: Vec<Vec<u8>> = (0..rng.below(40))
            .map(|_| (0..rng.below(300)).map(|_| u8::try_from(rng.below(256)).unwrap()).collect())
            .collect();
        let batch = batch(&made.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!((packets(&batch), batch.len()), (made, batch.packets().count()));
        let again = Batch::decode(Bytes::copy_from_slice(batch.as_bytes())).unwrap();
        assert_eq!(again, batch);
    }
}

#[test]
fn a_batch_is_full_at_its_size_and_not_before() {
    let mut batching = Batching::default();
    let mut pushed = 0;
    let full = loop {
        assert!(pushed < BATCH_SIZE);
        batching.push(&[7; 1000]);
        pushed += 1004;
        if let Some(batch) = batching.take_full() {
            break batch;
        }
    };
    assert_eq!((full.as_bytes().len(), full.len()), (pushed, pushed / 1004));
    assert_eq!(batching.take(), None, "the next has nothing yet");
}

#[test]
fn bytes_that_are_no_whole_packets_are_no_batch() {
    for bad in [&[0][..], &[0, 0, 0], &[0, 0, 0, 1], &[0, 0, 0, 2, 1], &[0xff; 9], &[0, 0, 0, 0, 1]] {
        assert_eq!(Batch::decode(Bytes::copy_from_slice(bad)), None, "{bad:?}");
    }
    assert_eq!(Batch::decode(Bytes::new()).map(|batch| batch.len()), Some(0));
}

#[test]
fn packets_are_changed_where_they_lie_and_left_out_where_nobody_wants_them() {
    let batch = batch(&[b"abc", b"", b"de"]);
    let changed = batch.clone().edit(|packet| packet.make_ascii_uppercase());
    assert_eq!(packets(&changed), [&b"ABC"[..], b"", b"DE"]);
    assert_eq!(packets(&batch.clone().retain(|packet| packet.len() != 3)), [&b""[..], b"de"]);
    assert_eq!(batch.clone().retain(|_| true), batch);
    assert!(batch.clone().retain(|_| false).is_empty());
    let sorted = batch.split(|packet| (!packet.is_empty()).then_some(packet.len() == 2));
    let sorted: Vec<(bool, Vec<Vec<u8>>)> = sorted.iter().map(|(key, batch)| (*key, packets(batch))).collect();
    assert_eq!(sorted, [(false, vec![b"abc".to_vec()]), (true, vec![b"de".to_vec()])]);
}

#[test]
fn destination_of_either_kind_of_packet_is_found() {
    let directory = Directory::new(&BTreeMap::from([("g".to_owned(), 300)])).unwrap();
    let away = |node| {
        let packet = Away { to: NodeId::from_index(node), origin: None, bytes: vec![1], from_ns: 0, relayed: false };
        Bytes::from(packet.encode())
    };
    assert_eq!(directory.destination(&away(0)), Some("10.0.0.1".parse().unwrap()));
    assert_eq!(directory.destination(&away(254)), Some("10.0.1.1".parse().unwrap()));
    assert_eq!(directory.destination(&away(300)), None);
    let (src, dst) = ("10.0.0.1:5".parse().unwrap(), "10.0.0.9:6".parse().unwrap());
    let udp = Packet::Udp { src, dst, payload: Bytes::from_static(b"x") };
    assert_eq!(directory.destination(&udp.encode().into()), Some("10.0.0.9".parse().unwrap()));
    assert_eq!(directory.destination(&Bytes::from_static(b"")), None);
    assert_eq!(directory.destination(&Bytes::from_static(b"\xff\xff")), None);
}
