//! First inputs of a corpus: valid ones, which a fuzzer would take long to come upon. What it makes of them is kept.

use std::fs;

use iptl_bitswap::{Ask, Entry, Message, Payload, Presence, frame};
use iptl_dag::codec::{encode_as, to_ipld};
use iptl_dag::unixfs::{DirectoryBuilder, FileBuilder};
use iptl_dag::{Block, Cid, Codec, car};

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
        _ => panic!("there are no seeds for {target}"),
    }
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
