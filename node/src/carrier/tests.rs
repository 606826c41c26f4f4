//! Lablets of the version before are spoken to as they know it.

use iptl_dag::codec::cid_of;
use iptl_labnet::Batching;

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
