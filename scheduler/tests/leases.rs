//! What ends by itself: leases, the time in which lablets are expected back, and that in which a cell gets prepared.

use std::collections::BTreeSet;

use iptl_dag::model::{self, FactKind};
use iptl_scheduler::{Effect, Input};
use iptl_wire::session::{CellPhase, CellStatus, ToLablet, ToOrchestrator};

use crate::bench::{Bench, grants, peer, persisted, placements, run, sent_to, status};

#[test]
fn a_lablet_that_was_not_heard_since_a_restart_is_unknown_until_it_is_heard_or_lost() {
    let mut bench = Bench::new();
    bench.started();
    let seen = |bench: &Bench| -> Vec<(bool, bool)> {
        bench.core.lablets(bench.now).iter().map(|view| (view.online, view.unknown)).collect()
    };
    assert_eq!(seen(&bench), [(true, false), (true, false)]);
    bench.give(Input::Gone { from: peer(1), session: 1 });
    assert_eq!(seen(&bench), [(false, false), (true, false)], "it was heard a moment ago");
    bench.restart();
    assert_eq!(seen(&bench), [(false, true), (false, true)]);
    bench.hello(1, 1, 11, 2, vec![]);
    assert_eq!(seen(&bench), [(true, false), (false, true)]);
    bench.wait(11_000);
    assert!(seen(&bench).iter().all(|(_, unknown)| !unknown), "what does not come back is lost");
}

#[test]
fn leases_that_are_given_together_do_not_end_together() {
    let mut bench = Bench::new();
    let lease = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Welcome { heartbeat_ms, lease_ms, .. } => Some((*heartbeat_ms, *lease_ms)),
            _ => None,
        })
    };
    let given: Vec<_> = (0..40).map(|n| lease(&bench.hello(n, n, u64::from(n), 2, vec![])).expect("welcome")).collect();
    let leases: BTreeSet<u32> = given.iter().map(|(_, lease)| *lease).collect();
    assert!(leases.len() > 20 && given.iter().all(|(beat, lease)| (900..=1_100).contains(beat) && *lease <= 5_000));
    assert!(*leases.first().unwrap() >= 4_750, "{leases:?}");
    // Where somebody follows they outlast the claim of the second in rank, which comes after seven and a half seconds.
    let mut bench = Bench::new();
    bench.give(Input::Followed { is_followed: true });
    let given: Vec<_> = (0..40).map(|n| lease(&bench.hello(n, n, u64::from(n), 2, vec![])).expect("welcome")).collect();
    assert!(given.iter().all(|(_, lease)| (9_500..=10_000).contains(lease)), "{given:?}");
}

/// Keeps lablets in touch for so many seconds; the first says this of a cell.
fn keep_in_touch(bench: &mut Bench, seconds: u64, lablets: &[u8], cells: &[CellStatus]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for _ in 0..seconds {
        effects.extend(bench.wait(1_000));
        for (place, n) in lablets.iter().enumerate() {
            let cells = if place == 0 { cells.to_vec() } else { Vec::new() };
            let seq = bench.next_seq();
            effects.extend(bench.heartbeat(*n, seq, 2, cells));
        }
    }
    effects
}

#[test]
fn a_lablet_that_takes_its_grant_and_never_gets_prepared_gives_way_to_another() {
    let (slow, other) = (1, 2);
    let mut bench = Bench::new();
    bench.hello(slow, 1, 1, 2, vec![]);
    let (id, effects) = bench.submit(run(&[("a", 2)]));
    let first = placements(&effects).pop().map(|placement| *model::to_block(placement).cid());
    assert!(first.is_some());
    let granted = grants(&bench.bid(slow, id, 2));
    let [grant] = &granted[..] else { panic!("{granted:?}") };
    bench.hello(other, 2, 2, 2, vec![]);
    bench.say(slow, ToOrchestrator::Accept(grant.cell.clone()));
    let preparing = [status(grant.cell.clone(), CellPhase::Preparing, 0, 0)];
    let early = keep_in_touch(&mut bench, 119, &[slow, other], &preparing);
    assert_eq!(persisted(&early), [], "it has two minutes");
    let effects = keep_in_touch(&mut bench, 3, &[slow, other], &preparing);
    let reason = "did not get prepared in time".to_owned();
    assert!(persisted(&effects).contains(&FactKind::Refused { lablet: peer(slow), reason: reason.clone() }));
    assert!(sent_to(&effects, slow).contains(&ToLablet::Stop(grant.cell.clone(), reason)), "{effects:?}");
    let placed = placements(&effects);
    let [elsewhere] = &placed[..] else { panic!("{placed:?}") };
    assert_eq!(elsewhere.parent, first);
    let granted = grants(&effects);
    let again = granted.first().expect("it is granted elsewhere");
    // A grant that nobody takes is sent again with every heartbeat.
    assert!(granted.iter().all(|grant| grant == again), "{granted:?}");
    assert_eq!((&again.lablet, again.cell.epoch.counter), (&peer(other), 2));
    bench.say(other, ToOrchestrator::Accept(again.cell.clone()));
    let effects = bench.say(other, ToOrchestrator::Prepared(again.cell.clone()));
    assert!(persisted(&effects).contains(&FactKind::Started {}));
}
