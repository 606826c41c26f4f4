//! Large CARs: what a command uses of memory does not grow with them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iptl_dag::{Block, Cid, Codec, Ipld, car, codec};
use iptl_e2e::{Home, LIMIT, wait};

/// Bytes of a block, blocks under one node, and such nodes in the small CAR and in the large one.
const BLOCK: usize = 2048;
const WIDTH: usize = 1000;
const SMALL: usize = 2;
const LARGE: usize = 50;

/// How much more memory the large one may take, in bytes: less than half of what it holds more.
const MORE: u64 = 40 << 20;

/// Writes a CAR of blocks that no two are equal, nodes over them, and a root; returns the root.
fn write_car(path: &Path, nodes: usize) -> Cid {
    let node = |cids: Vec<Cid>| codec::to_block(&Ipld::List(cids.into_iter().map(Ipld::Link).collect()));
    let leaf = |number: usize| {
        let mut data = vec![7; BLOCK];
        data[..8].copy_from_slice(&number.to_le_bytes());
        Block::new(Codec::Raw, data)
    };
    let leaves = |number: usize| (number * WIDTH..(number + 1) * WIDTH).map(leaf).collect::<Vec<Block>>();
    let over = |leaves: &[Block]| node(leaves.iter().map(|leaf| *leaf.cid()).collect());
    let root = node((0..nodes).map(|number| *over(&leaves(number)).cid()).collect());
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    out.write_all(&car::header(&[*root.cid()])).unwrap();
    let mut write = |block: &Block| {
        out.write_all(&car::frame_head(block)).unwrap();
        out.write_all(block.data()).unwrap();
    };
    write(&root);
    for number in 0..nodes {
        let leaves = leaves(number);
        write(&over(&leaves));
        leaves.iter().for_each(&mut write);
    }
    out.flush().unwrap();
    *root.cid()
}

/// Runs a command to its end; returns the most memory that it had resident, in bytes.
#[track_caller]
fn peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (begun, mut most) = (Instant::now(), 0);
    let code = loop {
        if let Some(code) = wait(&mut child, Duration::ZERO) {
            break code;
        }
        most = most.max(resident(&child));
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(code, 0, "{command:?}");
    most
}

/// Returns the most memory that a process has had so far; one that has ended has none.
fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Imports a CAR and writes another of what came; returns the memory of both.
fn in_and_out(nodes: usize) -> [u64; 2] {
    let home = Home::new();
    let (from, to) = (home.path().join("from.car"), home.path().join("to.car"));
    let root = write_car(&from, nodes).to_string();
    let read = peak(&mut home.iptl(&["import", &from.display().to_string(), "-q"]));
    let written = peak(&mut home.iptl(&["get", &root, "--car", "-o", &to.display().to_string(), "--timeout", "1s"]));
    // Parents first, and each branch before the next: as it came.
    assert!(std::fs::read(from).unwrap() == std::fs::read(to).unwrap());
    [read, written]
}

#[test]
fn a_car_of_fifty_thousand_blocks_takes_little_more_memory_than_one_of_two_thousand() {
    let (small, large) = (in_and_out(SMALL), in_and_out(LARGE));
    for (what, small, large) in [("import", small[0], large[0]), ("export", small[1], large[1])] {
        assert!(
            small > 0 && large < small + MORE,
            "{what}: {small} bytes for the small one, {large} for the large one"
        );
    }
}
