//! First inputs of a corpus: valid ones, which a fuzzer would take long to come upon. What it makes of them is kept.

use std::fs;

use iptl_bitswap::{Ask, Entry, Message, Payload, Presence, frame};
use iptl_dag::codec::{encode_as, to_ipld};
use iptl_dag::model::{Epoch, ExecutionId};
use iptl_dag::unixfs::{DirectoryBuilder, FileBuilder};
use iptl_dag::{Block, Cid, Codec, PeerId, car};
use iptl_labnet::Packet;
use iptl_wire::lab::{Introduction, IntroductionAnswer, JoinAnswer, JoinRequest, Revoked, Role};
use iptl_wire::session::{Hello, Inventory, ToLablet, ToOrchestrator};
use iptl_wire::takeover::{Claim, Orchestrators, Seat, ToFollower, ToLeader};
use iptl_wire::{WallTime, control};

use crate::corpora::folder;

/// Longest node that is taken for a seed, in bytes: changes to a long one seldom meet what matters.
const MAX_NODE: usize = 2048;

/// Blocks of all codecs.
fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let file = FileBuilder::of_bytes(b"some content", &mut blocks);
    let mut directory = DirectoryBuilder::new();
    directory.insert("a", file.clone()).unwrap();
    directory.insert("b", file).unwrap();
    directory.finish(&mut blocks).unwrap();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dag/fixtures");
    let mut paths: Vec<_> = fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "dag-cbor")) {
        let bytes = fs::read(path).unwrap();
        if bytes.len() <= MAX_NODE {
            blocks.push(Block::new(Codec::DagCbor, bytes));
        }
    }
    let json = br#"{"link":{"/":"bafkqaaa"},"bytes":{"/":{"bytes":"AQI"}},"list":[1,-1,1.5,true,null,"text"]}"#;
    blocks.push(Block::new(Codec::DagJson, &json[..]));
    blocks
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let blocks = blocks();
    let of = |codec: Codec| blocks.iter().filter(move |block| Codec::of(block.cid()) == Some(codec));
    let bytes = |codec: Codec| of(codec).map(|block| block.data().to_vec()).collect::<Vec<_>>();
    let cids: Vec<Cid> = blocks.iter().map(|block| *block.cid()).take(6).collect();
    let old = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";
    match target {
        "cid" => {
            let mut seeds: Vec<Vec<u8>> = cids.iter().map(|cid| cid.to_string().into()).collect();
            seeds.extend(of(Codec::DagPb).map(|block| [&block.cid().to_bytes(), &block.data()[..]].concat()));
            seeds.extend([old.into(), Cid::try_from(old).unwrap().to_bytes(), b"no CID".to_vec()]);
            seeds
        }
        "multihash" => {
            let codes = [0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x1e, 0xb220, 0xb240];
            let hash = |code| iptl_dag::block::digest(code, b"content").map(|hash| hash.to_bytes());
            let known = codes.into_iter().filter_map(hash).map(|hash| [&hash[..], b"content"].concat());
            known.chain([vec![0, 3, 1, 2, 3, 1, 2, 3], vec![0x12, 0x20]]).collect()
        }
        "dag-cbor" => bytes(Codec::DagCbor).into_iter().chain([vec![0xa1]]).collect(),
        "dag-json" => {
            let form = |block| encode_as(Codec::DagJson, &to_ipld(block).unwrap()).unwrap();
            of(Codec::DagCbor).take(12).map(form).chain(bytes(Codec::DagJson)).chain([b"{".to_vec()]).collect()
        }
        "dag-pb" => bytes(Codec::DagPb).into_iter().chain([vec![0x0a]]).collect(),
        "car" => {
            let one: Vec<u8> =
                [car::header(&cids[..2])].into_iter().chain(blocks.iter().take(4).map(car::frame)).flatten().collect();
            let mut two = b"\x0a\xa1\x67version\x02".to_vec();
            two.extend([0; 16]);
            for number in [51, one.len() as u64, 51 + one.len() as u64] {
                two.extend(number.to_le_bytes());
            }
            two.extend(&one);
            two.extend(b"an index");
            vec![[&[7], &one[..]].concat(), [&[200], &two[..]].concat(), vec![1, 2]]
        }
        "bitswap" => {
            let asks = [Ask::Block, Ask::Have, Ask::Cancel];
            let entry = |(cid, ask): (&Cid, &Ask)| Entry { cid: *cid, priority: 1, ask: *ask, send_dont_have: true };
            let wants = Message {
                full: true,
                entries: cids.iter().zip(asks.iter().cycle()).map(entry).collect(),
                ..Message::default()
            };
            let payload = |block: &Block| Payload::new(block.cid(), block.data().clone());
            let gives = Message {
                payload: blocks.iter().take(3).map(payload).collect(),
                presences: cids.iter().map(|cid| Presence { cid: *cid, is_here: cid.codec() == 0x55 }).collect(),
                pending_bytes: 5,
                ..Message::default()
            };
            let both = [frame(&wants), frame(&gives)].concat();
            vec![frame(&wants).to_vec(), frame(&gives).to_vec(), both, vec![3, 1]]
        }
        "unixfs" => bytes(Codec::DagPb).into_iter().chain([vec![0x0a, 2, 8, 1], vec![0x0a]]).collect(),
        // Nodes of width 8: one entry, and one below another node. Its name says where an entry belongs, so most do not.
        "hamt" => {
            let run = iptl_fuzz::target("hamt").unwrap().run;
            let single = (0..8).map(|slot| vec![0x10, slot, 1]);
            let nested = (0..64).map(|slots| vec![0x10, slots % 8, 1, 0x10, slots / 8, 0]);
            single.chain(nested).filter(|seed| run(seed)).chain([vec![0x10, 9, 0], vec![4]]).collect()
        }
        "path" => {
            let below = |path: &str, codec: u8, content: &[u8]| [path.as_bytes(), &[b'\n', codec], content].concat();
            let directory = of(Codec::DagPb).last().map(|block| below("a", 1, block.data()));
            let value = of(Codec::DagCbor).next().map(|block| below("iptl.plan/1/name", 2, block.data()));
            let json = of(Codec::DagJson).next().map(|block| below("list/0", 3, block.data()));
            directory.into_iter().chain(value).chain(json).chain([b"a\n".to_vec()]).collect()
        }
        "blobs-request" => {
            let all = iptl_fuzz::blobs::hashes();
            // Behind the hashes stand the ranges: of each block all chunks, from the first on.
            let whole = iptl_fuzz::blobs::request_for(&all);
            let head = &whole[..whole.len() - 4];
            let of_each = |ranges: &[u8]| [head, ranges].concat();
            let one = |ranges: &[u8]| [&[0], &all[2][..], ranges].concat();
            let first_chunk = [1, 0, 2, 0, 1];
            let last_chunk = of_each(&[1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
            let in_the_middle = one(&[2, 0, 2, 5, 20, 1, 0]);
            let sequence = one(&[1, 0, 1, 0]);
            vec![
                whole.clone(),
                of_each(&first_chunk),
                last_chunk,
                in_the_middle,
                one(&[2, 0, 1, 0, 1, 0]),
                sequence,
                vec![8],
            ]
        }
        // The true answer, changed at its start, in its second block and among hashes, and cut.
        "blobs-answer" => vec![
            vec![1],
            vec![1, 0, 0, 0, 101],
            vec![1, 3, 1, 0, 0],
            vec![1, 0, 0x42, 0, 9],
            vec![1, 1, 0x50, 0, 0],
            vec![0, 4, 0, 0, 0, 0, 0, 0, 0, b'n', b'o', b'n', b'e'],
            vec![0, 255, 255, 255, 255, 0, 0, 0, 0],
        ],
        "wire" => messages(),
        "ticket" => {
            let secret = iptl_trust::Secret::new([7; 16]);
            let mut book = iptl_trust::TicketBook::new(peer());
            let addrs = vec!["/ip4/127.0.0.1/tcp/1".to_owned()];
            let ticket = book.mint(secret, Role::Lablet, WallTime(9), peer(), addrs);
            let content = [&[0, 1][..], &iptl_dag::encode(&ticket)].concat();
            vec![ticket.text().as_bytes().to_vec(), content, b"lab1".to_vec()]
        }
        "manifest" => {
            let plans = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plans");
            let plan = |name: &str| fs::read(format!("{plans}/{name}/plan.toml")).unwrap();
            let mistakes = fs::read_dir(format!("{plans}/tests/mistakes")).unwrap().map(|entry| entry.unwrap().path());
            let mut seeds: Vec<Vec<u8>> = ["ping", "storm", "hostile"].map(plan).into();
            let mut mistakes: Vec<_> = mistakes.filter(|path| path.is_file()).collect();
            mistakes.sort();
            seeds.extend(mistakes.iter().step_by(4).map(|path| fs::read(path).unwrap()));
            seeds.retain(|seed| seed.len() <= MAX_NODE);
            seeds
        }
        "network" => {
            let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dag/fixtures/network.dag-cbor");
            let node = iptl_dag::model::Node::from_bytes(&fs::read(fixture).unwrap()).unwrap();
            let iptl_dag::model::Node::Network(network) = node else { panic!("{}", node.tag()) };
            vec![iptl_dag::encode(&network), vec![0xa0]]
        }
        "packet" => {
            let (src, dst) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
            let flow = iptl_labnet::Flow { src, dst, serial: 3 };
            let packets = [
                Packet::Udp { src, dst, payload: "text".into() },
                Packet::TcpOpen { flow },
                Packet::TcpData { flow, payload: "text".into() },
                Packet::TcpWindow { flow, credit: 9 },
                Packet::TcpFin { flow },
            ];
            packets.iter().map(Packet::encode).chain([vec![0x10]]).collect()
        }
        "away" => {
            // Nodes of the network that the target makes: one is outside, the other behind two gateways.
            let packet = |origin: u32| {
                let numbers = [1_u32, origin, 0, 7].map(u32::to_be_bytes);
                [&[0x20][..], &numbers.concat(), &v4(17, &[0, 1, 0, 2, 0, 8, 0, 0])].concat()
            };
            [0, 1, u32::MAX].map(packet).into_iter().chain([vec![0x20; 9]]).collect()
        }
        "ip" => {
            vec![v4(17, &[0, 1, 0, 2, 0, 8, 0, 0]), v4(6, &[0; 20]), v4(1, &[8, 0, 0, 0, 0, 1, 0, 1]), v6(), vec![0x45]]
        }
        "oci-layer" => vec![layer(), vec![1; 600]],
        "oci-page" => {
            let page = iptl_dag::model::LayerPage { tar: vec![7, 3, 8, 1, b'x'], files: Vec::new() };
            vec![iptl_dag::encode(&page), vec![0xa0]]
        }
        "testground" => {
            let publish = br#"{"id":"1","publish":{"topic":"run:r:plan:p:case:c:topics:t","payload":{"a":1}}}"#;
            let others = br#"{"id":"2","signal_entry":{"state":"run:r:plan:p:case:c:states:s"}}
{"id":"3","barrier":{"state":"run:r:plan:p:case:c:states:s","target":2}}
{"id":"4","subscribe":{"topic":"run:r:plan:p:case:c:topics:t"}}
{"id":"4","is_cancel":true}"#;
            vec![publish.to_vec(), others.to_vec(), b"[]".to_vec()]
        }
        "testground-output" => {
            let stdout = br#"{"ts":1,"event":{"message_event":{"message":"hello"}}}
{"ts":2,"event":{"success_event":{"group":"single"}}}"#;
            let files = br#"{"ts":3,"event":{"iptl_event":{"name":"started","data":{"a":1}}}}
{"ts":4,"type":"counter","name":"latency","unit":"ms","measures":{"value":1.5,"p95":2}}"#;
            vec![stdout.to_vec(), files.to_vec(), b"plain".to_vec()]
        }
        _ => panic!("there are no seeds for {target}"),
    }
}

fn peer() -> PeerId {
    PeerId::from_ed25519(&[3; 32])
}

/// Messages of several kinds, each behind the byte that says which.
fn messages() -> Vec<Vec<u8>> {
    let key = iptl_trust::Keypair::from_seed(&[5; 32]);
    let token = iptl_trust::issue_token(&key, peer(), Role::Lablet, WallTime(9));
    let certificate = iptl_trust::issue_certificate(&key, peer(), "lab".into(), WallTime(9), true);
    let revoked = vec![Revoked { peer: peer(), until: WallTime(9) }];
    let revocations = iptl_trust::issue_revocations(&key, 1, revoked);
    let root = *Block::new(Codec::Raw, "root").cid();
    let hello = ToOrchestrator::Hello(Hello {
        token: token.clone(),
        version: "1".into(),
        boot: [1; 16],
        inventory: Inventory::default(),
        cells: Vec::new(),
        promised: None,
        finished: Vec::new(),
    });
    let ask = JoinRequest::Ask { role: Role::Lablet, name: "box".into() };
    let seat = Seat { certificate: certificate.clone(), addrs: vec!["a".into()] };
    let term = Epoch { counter: 2, peer: key.peer().clone() };
    let claim = Claim { lab: key.peer().clone(), term: term.clone(), certificate: certificate.clone() };
    let claim = iptl_trust::sign(&key, claim);
    let all = Orchestrators { claim: Some(claim.clone()), seats: vec![seat.clone()] };
    let follow =
        ToLeader::Follow { seat, known: all.clone(), heads: vec![(ExecutionId(root), 3, root)], over: Vec::new() };
    let beat = ToFollower::Beat { beat: 1, term: Some(term), lablets: Some(vec![peer()]) };
    let joined = JoinAnswer::Joined {
        certificate: certificate.clone(),
        token: token.clone(),
        addrs: vec!["a".into()],
        own: None,
        orchestrators: Orchestrators::default(),
    };
    let fetch = control::Request::Fetch { root, peers: vec!["p".into()], timeout_ms: 3, shallow: true };
    let row = control::Reply::Row([("cid".to_owned(), "x".to_owned())].into());
    let member = Introduction::Member { token: token.clone(), serial: 1 };
    let known = IntroductionAnswer::Known {
        token: token.clone(),
        serial: 2,
        revocations: Some(revocations.clone()),
        orchestrators: all,
    };
    let kinds = [
        (0, iptl_dag::encode(&hello)),
        (1, iptl_dag::encode(&ToLablet::Turned("no".into()))),
        (3, iptl_dag::encode(&ask)),
        (4, iptl_dag::encode(&joined)),
        (5, iptl_dag::encode(&fetch)),
        (6, iptl_dag::encode(&row)),
        (10, iptl_dag::encode(&token)),
        (11, iptl_dag::encode(&certificate)),
        (12, iptl_dag::encode(&member)),
        (13, iptl_dag::encode(&known)),
        (255, iptl_dag::encode(&revocations)),
        (254, iptl_dag::encode(&follow)),
        (253, iptl_dag::encode(&beat)),
        (252, iptl_dag::encode(&claim)),
        (2, vec![0xa0]),
    ];
    kinds.into_iter().map(|(kind, body)| [&[kind][..], &body].concat()).collect()
}

/// An IPv4 packet from one node to the other.
fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let size = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut head = vec![0x45, 0, size[0], size[1], 0, 1, 0, 0, 64, protocol, 0, 0, 192, 168, 1, 2, 10, 0, 0, 1];
    let sum: u32 = head.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head.extend(payload);
    head
}

fn v6() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2));
    packet.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    packet
}

/// A tar of several kinds of entries.
fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("path", b"a/long".as_slice()), ("mtime", b"1.5")]).unwrap();
    for (name, kind, target, content) in [
        ("a/file", tar::EntryType::Regular, "", "content"),
        ("a", tar::EntryType::Directory, "", ""),
        ("a/up", tar::EntryType::Symlink, "../../outside", ""),
        ("hard", tar::EntryType::Link, "a/file", ""),
        ("a/.wh.gone", tar::EntryType::Regular, "", ""),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        if !target.is_empty() {
            header.set_link_name(target).unwrap();
        }
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn every_target_has_seeds_that_are_taken() {
    for target in iptl_fuzz::TARGETS {
        let seeds = seeds(target.name);
        let taken = seeds.iter().filter(|seed| (target.run)(seed)).count();
        assert!(taken > 0 && taken < seeds.len(), "{} of {} seeds of {} are taken", taken, seeds.len(), target.name);
        assert!(seeds.iter().all(|seed| seed.len() <= target.max_len), "a seed of {} is too long", target.name);
    }
}

#[test]
#[ignore = "writes: cargo test -p iptl-fuzz -- --ignored seeds_are_written"]
fn seeds_are_written() {
    for target in iptl_fuzz::TARGETS {
        let folder = folder(target.name);
        fs::create_dir_all(&folder).unwrap();
        for seed in seeds(target.name) {
            fs::write(folder.join(&blake3::hash(&seed).to_hex()[..16]), seed).unwrap();
        }
    }
}
