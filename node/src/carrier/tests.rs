//! Lablets of the version before are spoken to as they know it, and packets take the best way that there is.

use iptl_dag::codec::cid_of;
use iptl_dag::model::Assignment;
use iptl_labnet::{Batching, NodeId};
use iptl_net::{Config, KadMode, Net};

use super::*;

/// What a frame of the first version may be; anything else ends its stream.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum OldLetter {
    Ask { at_ns: u64 },
    Packet(OldCarried),
    End {},
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct OldCarried {
    execution: ExecutionId,
    packet: Bytes,
}

/// Time in which what is to happen does.
const PATIENCE: Duration = Duration::from_secs(20);

fn execution() -> ExecutionId {
    ExecutionId(cid_of(&"an execution"))
}

/// A node without a network, whose streams lead to itself.
fn links() -> Links {
    Links::new(PeerId::from_ed25519(&[7; 32]), None)
}

#[tokio::test]
async fn lablet_that_knows_the_first_version_alone_gets_a_frame_for_each_packet() {
    let links = links();
    let mut incoming = links.accept(PROTOCOL_1, 4).await;
    let carrier = Carrier { links: links.clone(), shared: Arc::default() };
    assert!(matches!(links.open(links.peer(), &[], PROTOCOL).await, Err(LinkError::NotSpoken { .. })));
    carrier.make_ready(links.peer(), &[]);
    let mut together = Batching::default();
    for packet in [&b"first"[..], b"second", b"third"] {
        together.push(packet);
    }
    carrier.send(links.peer(), &[], execution(), together.take().expect("there are packets"));

    let (_, mut stream) = incoming.recv().await.expect("a stream of the first version");
    let (mut asked, mut packets) = (0, Vec::new());
    let read = async {
        while packets.len() < 3 {
            match framed::expect::<OldLetter>(&mut stream, MAX_FRAME_SIZE).await.expect("it is of the first version") {
                OldLetter::Ask { at_ns } => {
                    asked += 1;
                    let clock = Clock { asked_ns: at_ns, here_ns: now_ns() };
                    framed::write(&mut stream, &clock).await.expect("the stream is there");
                }
                OldLetter::Packet(OldCarried { execution: of, packet }) => {
                    assert_eq!(of, execution());
                    packets.push(packet);
                }
                OldLetter::End {} => panic!("there is more to say"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("all packets come");
    assert_eq!(packets, [&b"first"[..], b"second", b"third"]);
    assert_eq!(asked, FIRST_LOOKS);
}

#[tokio::test]
async fn lablet_that_speaks_the_first_version_is_heard_and_answered() {
    let links = links();
    let carrier = Carrier::start(links.clone()).await;
    let mut stream = links.open(links.peer(), &[], PROTOCOL_1).await.expect("it is accepted");
    for packet in [&b"first"[..], b"second"] {
        let packet = OldCarried { execution: execution(), packet: Bytes::from_static(packet) };
        framed::write(&mut stream, &OldLetter::Packet(packet)).await.expect("it is read");
    }
    framed::write(&mut stream, &OldLetter::Ask { at_ns: 5 }).await.expect("it is read");
    let answer = framed::expect::<Clock>(&mut stream, MAX_ANSWER_SIZE);
    let clock = tokio::time::timeout(PATIENCE, answer).await.expect("it answers").expect("what its clock shows");
    assert_eq!(clock.asked_ns, 5);
    framed::write(&mut stream, &OldLetter::End {}).await.expect("it is read");
    // The end of our side comes once it has dealt with all that came; of no cell here, both packets are counted as lost.
    let mut rest = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends").expect("as it should");
    assert_eq!((rest.len(), carrier.shared.dropped.load(Ordering::Relaxed)), (0, 2));
}

/// A node of its own that listens there, and nowhere else.
async fn node(seed: u8, listen: &[&str], relay_server: bool) -> Net {
    let listen = listen.iter().map(|addr| (*addr).to_owned()).collect();
    let mut bytes = [seed; 32];
    bytes[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let config = Config { seed: bytes, listen, relay_server, kad: KadMode::Client, ..Config::default() };
    // What happens in the swarm nobody here is told.
    iptl_net::start(config).await.expect("ports are free").0
}

/// What a cell was handed: numbers of packets with whether they came over a relay, and whether connections were reset.
#[derive(Default)]
struct Taken {
    packets: Mutex<Vec<(u32, bool)>>,
    cuts: AtomicUsize,
    came: Notify,
}

#[async_trait::async_trait]
impl CellControl for Taken {
    async fn start(&self) {}

    async fn stop(&self, _: String) {}

    async fn input(&self, inputs: Vec<CellInput>) {
        for input in inputs {
            match input {
                CellInput::Packets(batch) => {
                    lock(&self.packets).extend(batch.packets().map(|packet| numbered(&packet)))
                }
                CellInput::Cut(_) => drop(self.cuts.fetch_add(1, Ordering::Relaxed)),
                CellInput::Sync(_) => {}
            }
        }
        self.came.notify_one();
    }

    fn worker_pid(&self) -> Option<u32> {
        None
    }
}

/// Returns the number of a packet that [`Side::pass`] made, and whether it says to have come over a relay.
fn numbered(packet: &Bytes) -> (u32, bool) {
    let away = Away::decode(packet).expect("it is an IP packet");
    (u32::from_be_bytes(away.bytes.try_into().expect("four bytes")), away.relayed)
}

/// One of two lablets with an instance each.
struct Side {
    net: Net,
    carrier: Carrier,
    cell: Arc<Taken>,
    /// Number of its instance.
    instance: usize,
    sent: u32,
}

/// Packets that are on their way to one side at a time.
const UNDER_WAY: usize = 64;

impl Side {
    async fn start(net: Net, instance: usize, placement: &[Assignment]) -> Side {
        let carrier = Carrier::start(Links::new(net.peer().clone(), Some(net.clone()))).await;
        let cell = Arc::new(Taken::default());
        let groups = BTreeMap::from([("node".to_owned(), 2)]);
        let routes = Routes::new(&groups, placement, BTreeMap::new()).expect("there are addresses");
        carrier.attach(execution(), Arc::new(routes), cell.clone());
        Side { net, carrier, cell, instance, sent: 0 }
    }

    /// Sends packets to the other side, never more ahead than [`UNDER_WAY`], until it has enough of them.
    async fn pass(&mut self, to: &PeerId, addrs: &[String], at: &Taken, enough: impl Fn(&[(u32, bool)]) -> bool) {
        let passed = async {
            loop {
                let came = lock(&at.packets).len();
                if enough(&lock(&at.packets)) {
                    return;
                }
                while (self.sent as usize) < came + UNDER_WAY {
                    let (to_node, origin) = (NodeId::from_index(1 - self.instance), NodeId::from_index(self.instance));
                    let bytes = self.sent.to_be_bytes().to_vec();
                    let away = Away { to: to_node, origin: Some(origin), bytes, from_ns: now_ns(), relayed: false };
                    self.carrier.send(to, addrs, execution(), Batch::of(&away.encode()));
                    self.sent += 1;
                }
                at.came.notified().await;
            }
        };
        tokio::time::timeout(PATIENCE, passed).await.expect("packets pass");
    }
}

/// Lets both sides send to each other until each has enough.
async fn pass(sides: &mut [Side; 2], addrs: &[Vec<String>; 2], enough: impl Fn(&[(u32, bool)]) -> bool) {
    let peers = [sides[0].net.peer().clone(), sides[1].net.peer().clone()];
    let cells = [sides[0].cell.clone(), sides[1].cell.clone()];
    let [near, far] = sides;
    tokio::join!(
        near.pass(&peers[1], &addrs[1], &cells[1], &enough),
        far.pass(&peers[0], &addrs[0], &cells[0], &enough)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_turn_from_a_relay_to_a_direct_connection_whole_and_in_order_and_say_which_way_they_came() {
    let relay = node(1, &["/ip4/127.0.0.1/tcp/0"], true).await;
    // Both listen nowhere, so that hole punching finds nobody and the relay alone joins them.
    let [near, far] = [node(2, &[], false).await, node(3, &[], false).await];
    let circuit = format!("{}/p2p-circuit", relay.addrs().await[0]);
    let mut addrs = [near.listen(&circuit).await.expect("a place"), far.listen(&circuit).await.expect("a place")];
    let on = |net: &Net, start| Assignment { lablet: net.peer().clone(), group: "node".to_owned(), start, count: 1 };
    let placement = [on(&near, 0), on(&far, 1)];
    let mut sides = [Side::start(near, 0, &placement).await, Side::start(far, 1, &placement).await];
    pass(&mut sides, &addrs, |came| came.len() >= 500).await;
    for side in &sides {
        assert!(lock(&side.cell.packets).iter().all(|(_, relayed)| *relayed), "there is no other way");
    }

    // One can be dialled from now on, and the other does.
    addrs[0] = sides[0].net.listen("/ip4/127.0.0.1/tcp/0").await.expect("ports are free");
    sides[1].net.connect(sides[0].net.peer(), &addrs[0]).await.expect("it listens");
    pass(&mut sides, &addrs, |came| came.last().is_some_and(|(_, relayed)| !relayed)).await;
    let turned = [0, 1].map(|side: usize| lock(&sides[side].cell.packets).len());
    relay.shutdown().await;
    pass(&mut sides, &addrs, |came| came.len() >= turned[0].max(turned[1]) + 500).await;

    for side in &sides {
        let came = std::mem::take(&mut *lock(&side.cell.packets));
        let numbers = came.iter().map(|(number, _)| *number);
        assert!(numbers.eq(0..came.len() as u32), "none is lost, comes twice or overtakes another");
        let relayed = came.iter().take_while(|(_, relayed)| *relayed).count();
        assert!(relayed >= 500 && came[relayed..].iter().all(|(_, relayed)| !relayed), "it turns once");
        assert_eq!(side.cell.cuts.load(Ordering::Relaxed), 0, "no connection between instances is reset");
        assert_eq!(side.carrier.shared.dropped.load(Ordering::Relaxed), 0);
    }
}
