//! Messages of takeovers: their bytes are fixed, what is too large or unknown is refused, and labs without a second
//! orchestrator say what they always said.

use std::fmt::Debug;

use iptl_dag::model::signed::{Signed, signing_bytes};
use iptl_dag::model::{Epoch, ExecutionId};
use iptl_dag::{PeerId, codec};
use iptl_wire::WallTime;
use iptl_wire::lab::{Certificate, MemberToken, Role};
use iptl_wire::session::{CellPhase, CellRef, CellStatus, Hello, Inventory, ToLablet, Welcome};
use iptl_wire::takeover::{
    Claim, Finished, LAST_COUNTER, MAX_ADDR_SIZE, MAX_ADDRS, MAX_CLAIM_SIZE, MAX_FINISHED, MAX_FOLLOW_SIZE,
    MAX_ORCHESTRATORS, Orchestrators, Seat, ToFollower, ToLeader,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn execution() -> ExecutionId {
    ExecutionId(codec::cid_of(&"execution"))
}

fn term() -> Epoch {
    Epoch { counter: 7, peer: peer(1) }
}

fn certificate() -> Signed<Certificate> {
    let body =
        Certificate { lab: peer(9), orchestrator: peer(1), name: "lab".into(), expires: WallTime(5), private: false };
    Signed { body, signer: peer(9), signature: vec![1; 64] }
}

fn claim() -> Signed<Claim> {
    let body = Claim { lab: peer(9), term: term(), certificate: certificate() };
    Signed { body, signer: peer(1), signature: vec![2; 64] }
}

fn seat() -> Seat {
    Seat { certificate: certificate(), addrs: vec!["/ip4/127.0.0.1/tcp/1".into()] }
}

fn orchestrators() -> Orchestrators {
    Orchestrators { claim: Some(claim()), seats: vec![seat()] }
}

fn end(term: Option<Epoch>) -> Finished {
    Finished { execution: execution(), result: Some(codec::cid_of(&"result")), term }
}

fn status(attempt: u32) -> CellStatus {
    CellStatus {
        cell: CellRef { execution: execution(), epoch: term() },
        assignments: Vec::new(),
        phase: CellPhase::Running,
        running: 1,
        ended: 0,
        directory: 7,
        attempt,
    }
}

fn hello(promised: Option<Signed<Claim>>, finished: Vec<Finished>) -> Hello {
    let body = MemberToken { lab: peer(9), member: peer(2), role: Role::Lablet, expires: WallTime(5) };
    Hello {
        token: Signed { body, signer: peer(9), signature: vec![3; 64] },
        version: "1".into(),
        boot: [4; 16],
        inventory: Inventory::default(),
        cells: vec![status(1)],
        promised,
        finished,
    }
}

/// Compares the bytes of a message with what they were when it was made, by their hash, and reads them back.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, hash: &str) {
    let bytes = codec::encode(message);
    assert_eq!(codec::decode_canonical::<T>(&bytes).expect("it was just written"), *message);
    assert_eq!(codec::cid_of(message).to_string(), hash, "{message:?}");
    for cut in 0..bytes.len() {
        assert!(codec::decode::<T>(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn messages_are_written_as_they_were() {
    let head = (execution(), 3, codec::cid_of(&"fact"));
    check(&claim(), CLAIM);
    check(&ToLeader::Follow { seat: seat(), known: orchestrators(), heads: vec![head], over: Vec::new() }, FOLLOW);
    let over = vec![end(Some(term()))];
    check(&ToLeader::Follow { seat: seat(), known: orchestrators(), heads: vec![head], over }, FOLLOW_WITH_ENDS);
    check(&ToFollower::Ended(end(Some(term()))), ENDED);
    check(&ToLablet::Finished(end(None)), FINISHED);
    check(&ToLeader::Ask { seat: seat(), known: Orchestrators::default() }, ASK);
    check(&ToLeader::Has { beat: 4, missing: 2 }, HAS);
    check(&ToFollower::Orchestrators(orchestrators()), ORCHESTRATORS);
    check(&ToFollower::Block { cid: codec::cid_of(&"run"), data: vec![1, 2, 3] }, BLOCK);
    check(&ToFollower::Fact { block: vec![1, 2, 3] }, FACT);
    check(&ToFollower::Beat { beat: 4, term: None, lablets: Some(vec![peer(2)]) }, BEAT);
    check(&ToFollower::Beat { beat: 4, term: Some(term()), lablets: None }, BEAT_ALONE);
    check(&ToFollower::HandOver { from: Some(term()), to: peer(3) }, HAND_OVER);
    check(&ToFollower::Elsewhere(orchestrators()), ELSEWHERE);
    check(&ToLablet::Orchestrators(orchestrators()), ORCHESTRATORS);
    check(&hello(Some(claim()), vec![Finished { result: None, ..end(None) }]), HELLO);
}

const CLAIM: &str = "bafyr4idlrixkl2ivumcfuhv6wbxd4dh3itilrksoladssiiq5alsdpmtiy";
const FOLLOW: &str = "bafyr4igencncqylxgkhuw5gkipyhc624t2rwrowlnn4dagrjd3dprwfoha";
const FOLLOW_WITH_ENDS: &str = "bafyr4iejoc7iv2wjsfksghjpevwxbwaebcyimrvrsbsnih7hwz7mkarxhe";
const ENDED: &str = "bafyr4ie4vlgurnyllvuixs767oazzfdtdi2fa4ma67ke3yqbvzl5tnvb3i";
const FINISHED: &str = "bafyr4icm2qifeujut3iz3clnfkmt57jzmwrilgehpl2x4ickgh6pg6o5oe";
const HAS: &str = "bafyr4igvgfdufkq6mrjfreurhin7afon4rzwg3uef3tkh4lms6zhgbxdoa";
const FACT: &str = "bafyr4ic2mwlpu6dd4dthxg2emealj4m3viqaqi3ayentlx4wflwslpf4gi";
const BEAT: &str = "bafyr4ibavjeh7iidp4wcfnb4vsvrltbqcper7gdvrnbq6s35xsitbs3hui";
const ASK: &str = "bafyr4ibno5lcqvoddppjje4ssc6dfxhedhkckrf6p2rvgbbha6da3q6b4q";
const ORCHESTRATORS: &str = "bafyr4ifgjgdjs6pxdf2lualfop7kwo7fol6f3kjunprzbj35dwvzn47xiq";
const BLOCK: &str = "bafyr4ia3dxyeenu3kikmkf3g6ktinwiugnvgd7w4irpyt65i6jswh2pktq";
const BEAT_ALONE: &str = "bafyr4ibzwnpdtgjfwllth3e4zqccjegd5lhzw5jj2k3igrcdyc62yfxcim";
const HAND_OVER: &str = "bafyr4iefpiopjqdyy5gzahk2a3uwaaagimwlme5ppbvhnxca6locrf3aha";
const ELSEWHERE: &str = "bafyr4ib45iaychaasm5jnfdpr3dh5wwvj6akbplobdrgev6nmtmxzmof3i";
const HELLO: &str = "bafyr4iayxrfoqijvtut3cp7x6qjgc25gsk2enkghppvdkok32szyjxzlmq";

#[test]
fn a_lab_without_terms_says_nothing_of_them() {
    let has = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|at| at == word.as_bytes());
    let bytes = codec::encode(&hello(None, Vec::new()));
    for word in ["promised", "finished", "attempt"] {
        assert!(!has(&bytes, word), "{word}");
    }
    let welcome = Welcome { certificate: certificate(), heartbeat_ms: 1, lease_ms: 5, offers: Vec::new(), claim: None };
    assert!(!has(&codec::encode(&welcome), "claim"));
    // An attempt that is named is another than the first, and one that is not named is the first.
    assert!(has(&codec::encode(&status(2)), "attempt"));
    let bytes = codec::encode(&status(1));
    assert_eq!(codec::decode::<CellStatus>(&bytes).expect("it was just written").attempt, 1);
}

#[test]
fn claims_and_tombstones_stay_within_their_bounds() {
    let mut long = claim();
    long.body.certificate.body.name = "n".repeat(64);
    assert!(codec::encode(&long).len() <= MAX_CLAIM_SIZE, "{}", codec::encode(&long).len());
    let over = vec![end(Some(Epoch { counter: LAST_COUNTER - 1, ..term() })); MAX_FINISHED];
    let most = hello(Some(claim()), over.clone());
    assert!(codec::encode(&most).len() < iptl_wire::session::MAX_MESSAGE_SIZE / 8);
    let head = (execution(), u64::MAX, codec::cid_of(&"fact"));
    let most = ToLeader::Follow { seat: seat(), known: orchestrators(), heads: vec![head; MAX_FINISHED], over };
    assert!(codec::encode(&most).len() < MAX_FOLLOW_SIZE / 4);
}

#[test]
fn of_two_ends_that_of_the_later_term_counts() {
    let of = |counter| Some(Epoch { counter, ..term() });
    let (none, second, third) = (end(None), end(of(2)), end(of(3)));
    assert!(second.outdoes(&none) && third.outdoes(&second));
    for (end, known) in [(&none, &none), (&none, &second), (&second, &second), (&second, &third)] {
        assert!(!end.outdoes(known), "{end:?} {known:?}");
    }
    // Nobody ends anything in the last term, and what happened to one execution says nothing of another.
    assert!(!end(of(LAST_COUNTER)).outdoes(&none));
    let other = Finished { execution: ExecutionId(codec::cid_of(&"other")), ..none };
    assert!(!second.outdoes(&other));
}

#[test]
fn the_most_that_is_said_of_orchestrators_fits_wherever_it_is_said() {
    let mut most = seat();
    most.certificate.body.name = "n".repeat(64);
    most.addrs = vec!["a".repeat(MAX_ADDR_SIZE); MAX_ADDRS];
    let all = Orchestrators { claim: Some(claim()), seats: vec![most; MAX_ORCHESTRATORS] };
    assert!(codec::encode(&all).len() < iptl_wire::lab::MAX_MEMBER_SIZE / 4, "{}", codec::encode(&all).len());
}

#[test]
fn what_is_signed_as_a_claim_is_nothing_else() {
    assert!(signing_bytes(&claim().body).starts_with(b"iptl/claim/1\0"));
}
