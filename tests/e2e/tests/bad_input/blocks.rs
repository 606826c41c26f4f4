//! Content that is not there, not what it says, or does not fit.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use iptl_dag::unixfs::pb::{PbKind, PbLink, PbNode, PbUnixFs};
use iptl_dag::{Block, Cid, Codec, MAX_BLOCK_SIZE};
use iptl_e2e::{Foreground, Home, Output, noise, program, run};
use iptl_wire::control::{Failure, FailureKind, Reply, Request, Upload};
use iptl_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A block that no store holds.
fn unheard_of() -> Block {
    Block::new(Codec::Raw, "what nobody has ever published")
}

#[test]
fn cid_that_nobody_has() {
    let home = Home::new();
    let cid = unheard_of().cid().to_string();
    for verb in [&["get"][..], &["show"], &["dag", "get"]] {
        home.run(&[verb, &[cid.as_str(), "--timeout", "1s"]].concat()).fails(3, "fetch.no-provider");
    }
}

#[test]
fn cid_with_a_slip_in_it() {
    let home = Home::new();
    let mut cid = unheard_of().cid().to_string();
    cid.pop();
    home.run(&["get", &cid, "--timeout", "1s"]).fails(2, "cid.garbled");
}

#[test]
fn path_that_leads_nowhere() {
    let home = Home::new();
    let file = home.path().join("file.txt");
    std::fs::write(&file, "text").unwrap();
    let cid = home.run(&["publish", "data", &home.path().join("file.txt").display().to_string()]).exits(0).word();
    home.run(&["get", &format!("{cid}/below"), "--timeout", "1s"]).fails(3, "path.not-found");
}

/// Uploads bytes under a CID, as a program that speaks the control API by itself would.
fn upload(home: &Path, cid: Cid, data: Vec<u8>) -> Option<Failure> {
    let mut socket = UnixStream::connect(home.join("api.sock")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(&frame::encode(&Request::Put {})).unwrap();
    // The node may refuse, and close, while this still writes.
    let _ = socket.write_all(&frame::encode(&Upload::Block { cid, data }));
    let _ = socket.write_all(&frame::encode(&Upload::End {}));
    let mut header = [0; frame::HEADER_SIZE];
    socket.read_exact(&mut header).unwrap();
    let mut body = vec![0; frame::length(header, 1 << 20).unwrap()];
    socket.read_exact(&mut body).unwrap();
    match frame::decode(&body).unwrap() {
        Reply::Error(failure) => Some(failure),
        Reply::End {} => None,
        other => panic!("{other:?}"),
    }
}

/// Checks that a block is refused with this kind of failure, and that the node lives on.
#[track_caller]
fn is_refused(cid: Cid, data: Vec<u8>) {
    let home = Home::new();
    let _node = Foreground::start(home.path(), &[]);
    let failure = upload(home.path(), cid, data).expect("the block is refused");
    assert_eq!(failure.kind, FailureKind::Usage, "{failure:?}");
    assert!(failure.code.starts_with("block."), "{failure:?}");
    assert!(!failure.help.is_empty(), "{failure:?}");
    let good = unheard_of();
    assert_eq!(upload(home.path(), *good.cid(), good.data().to_vec()), None);
    home.run(&["get", &good.cid().to_string(), "-o", "-"]).exits(0);
    home.run(&["get", &cid.to_string(), "--timeout", "1s"]).fails(3, "fetch.no-provider");
}

#[test]
fn block_that_is_wrong() {
    let block = Block::new(Codec::Raw, "right");
    is_refused(*block.cid(), b"wrong".to_vec());
}

#[test]
fn block_that_is_truncated() {
    let block = Block::new(Codec::Raw, "a block that loses its end");
    is_refused(*block.cid(), block.data()[..10].to_vec());
}

#[test]
fn block_that_is_oversized() {
    let data = vec![7; MAX_BLOCK_SIZE + 1];
    // Its hash is right: what is wrong is its size alone.
    let hash = iptl_dag::block::digest(0x1e, &data).unwrap();
    is_refused(Cid::new_v1(Codec::Raw.number(), hash), data);
}

#[test]
fn provider_that_lies() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_net, address) = runtime.block_on(async {
        let config = iptl_net::Config {
            seed: [66; 32],
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            mdns: false,
            private_addrs_ok: true,
            ..Default::default()
        };
        let (net, _events) = iptl_net::start(config).await.unwrap();
        let mut incoming = net.accept("/iptl/iroh-blobs/4", 16).await.unwrap();
        tokio::spawn(async move {
            while let Some((_, mut stream)) = incoming.next().await {
                tokio::spawn(async move {
                    // Hears the request out, then says that the block has a thousand bytes, all of them zero.
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    let mut answer = 1000u64.to_le_bytes().to_vec();
                    answer.extend([0; 1000]);
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        (net.clone(), net.addrs().await.remove(0))
    });
    let home = Home::new();
    let cid = unheard_of().cid().to_string();
    let output = home.run(&["get", &cid, "--peer", &address, "--timeout", "5s"]);
    let output = output.fails(3, "fetch.liar");
    assert!(!output.stdout.contains('\0'));
    assert!(!Path::new(&cid).exists(), "nothing is written that was not verified");
    runtime.shutdown_background();
}

/// Runs a command line that may write no file larger than `kib`: the disk is full for it.
fn on_a_full_disk(home: &Home, kib: u32, args: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    // A limit on the size of files fails as a full disk does, and needs no file system of its own.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2);
    shell.args(["-c", &script, "sh"]).arg(program()).arg("--home").arg(home.path()).args(args);
    shell.env_remove("IPTL_HOME").stdin(std::process::Stdio::null());
    run(&mut shell)
}

#[test]
fn full_disk() {
    let home = Home::new();
    let small = home.path().join("small.txt");
    std::fs::write(&small, "what was there before").unwrap();
    let before = home.run(&["publish", "data", &small.display().to_string()]).exits(0).word();
    let big = home.path().join("big.bin");
    std::fs::write(&big, noise(12_000_000)).unwrap();
    on_a_full_disk(&home, 256, &["publish", "data", &big.display().to_string()]).fails(1, "store.full");
    // Nothing is lost, and with room again all is well.
    assert_eq!(home.run(&["get", &before, "-o", "-"]).exits(0).stdout, "what was there before");
    home.run(&["publish", "data", &big.display().to_string()]).exits(0);
}

/// Few blocks that stand for more than there is room for in the world: each links the next again and again.
fn bombs() -> Vec<(&'static str, Vec<Block>)> {
    let empty = iptl_dag::unixfs::empty_directory();
    let mut folders = vec![empty.clone()];
    let mut shards = vec![empty];
    for _ in 0..200 {
        let below = *folders.last().expect("there is one").cid();
        folders.push(node(vec![link("a", below), link("b", below)], PbUnixFs::new(PbKind::Directory)));
    }
    for _ in 0..7 {
        let below = *shards.last().expect("there is one").cid();
        let links = (0..256).map(|slot| link(&format!("{slot:02X}"), below)).collect();
        let full = PbUnixFs {
            data: Some(vec![0xff; 32]),
            hash_type: Some(0x22),
            fanout: Some(256),
            ..PbUnixFs::new(PbKind::HamtShard)
        };
        shards.push(node(links, full));
    }
    vec![("get.refused", folders), ("get.not-files", shards)]
}

fn link(name: &str, cid: Cid) -> PbLink {
    PbLink { cid, name: Some(name.to_owned()), tsize: Some(1) }
}

fn node(links: Vec<PbLink>, message: PbUnixFs) -> Block {
    Block::new(Codec::DagPb, PbNode { links, data: Some(message.encode()) }.encode())
}

/// Writes a CAR whose root is the last of some blocks.
fn write_car(home: &Home, blocks: &[Block]) -> String {
    let mut bytes = iptl_dag::car::header(&[*blocks.last().expect("there are some").cid()]);
    blocks.iter().rev().for_each(|block| bytes.extend(iptl_dag::car::frame(block)));
    let car = home.path().join("bomb.car").display().to_string();
    std::fs::write(&car, bytes).unwrap();
    car
}

#[test]
fn folders_of_a_peer_that_stand_for_more_than_all_disks_hold() {
    let (peer, home) = (Home::new(), Home::new());
    let bombs = bombs().into_iter().map(|(code, blocks)| {
        let root = peer.run(&["import", &write_car(&peer, &blocks), "-q"]).exits(0).word();
        (code, blocks, root)
    });
    let bombs: Vec<_> = bombs.collect();
    let file = peer.path().join("honest");
    std::fs::write(&file, noise(2_000_000)).unwrap();
    let honest = peer.run(&["publish", "data", &file.display().to_string(), "-q"]).exits(0).word();
    let _node = Foreground::start(peer.path(), &[]);
    let status = peer.run(&["status", "--json"]).exits(0).json();
    let (address, name) = (status["addrs"][0].as_str().unwrap(), status["peer"].as_str().unwrap());
    let out = home.path().join("out").display().to_string();
    for (code, blocks, root) in &bombs {
        let refused = home.run(&["get", root, "-o", &out, "--peer", address]).fails(2, code);
        // Its last characters are in the short form too.
        assert!(refused.stderr.contains(&name[name.len() - 4..]), "who gave it is not named: {}", refused.stderr);
        // As many blocks came as there are, and not as many as they stand for.
        let stat = home.run(&["dag", "stat", root, "--json"]).exits(0).json();
        assert_eq!(stat["blocks"].as_u64(), Some(blocks.len() as u64), "{stat}");
    }
    let _refused = std::fs::remove_dir_all(&out);
    home.run(&["get", &honest, "-o", &out, "--peer", address]).exits(0);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&file).unwrap());
}

#[test]
fn folders_that_stand_for_more_than_all_disks_hold() {
    for (code, blocks) in bombs() {
        let home = Home::new();
        let root = blocks.last().expect("there are some");
        let car = write_car(&home, &blocks);
        // As blocks they are few, and whole.
        let told = home.run(&["import", &car, "--json"]).exits(0).json();
        assert_eq!((told["blocks"].as_u64(), told["complete"].as_bool()), (Some(blocks.len() as u64), Some(true)));
        let out = home.path().join("out");
        home.run(&["get", &root.cid().to_string(), "-o", &out.display().to_string()]).fails(2, code);
        // A list of it ends as well: what was shown is not shown again.
        let tree = home.run(&["dag", "tree", &root.cid().to_string(), "--depth", "300"]).exits(0).stdout;
        let links: usize = blocks.iter().map(|block| PbNode::decode(block.data()).unwrap().links.len()).sum();
        assert_eq!(tree.lines().count(), 1 + links, "a line for each link, and one for the root");
        assert!(tree.contains("  as above"), "{tree}");
        home.run(&["get", &root.cid().to_string(), "--store-only"]).exits(0);
    }
}
