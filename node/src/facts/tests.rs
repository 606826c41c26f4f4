//! Logs on the disk: written, torn, changed, and read again.

use super::*;

fn execution() -> ExecutionId {
    ExecutionId(iptl_dag::codec::cid_of(&"execution"))
}

fn logs(dir: &Path) -> Logs {
    Logs::new(dir.to_owned(), Arc::new(Keypair::from_seed(&[7; 32])))
}

fn replay(logs: &mut Logs) -> Result<Vec<Fact>, LogError> {
    let mut facts = Vec::new();
    let mut broken = logs.replay(|window| facts.extend(window))?;
    match broken.pop() {
        Some(log) => Err(log.error),
        None => Ok(facts),
    }
}

fn epoch() -> Epoch {
    Epoch { counter: 1, peer: Keypair::from_seed(&[7; 32]).peer().clone() }
}

fn submitted() -> FactKind {
    let by = epoch().peer;
    FactKind::Submitted { execution: execution().0, run: iptl_dag::codec::cid_of(&"run"), by, priority: 0, order: 0 }
}

fn cancelled() -> FactKind {
    FactKind::Cancelled { by: epoch().peer }
}

fn written(dir: &Path) -> PathBuf {
    let mut logs = logs(dir);
    for kind in [submitted(), FactKind::Started {}, FactKind::TimedOut {}] {
        logs.append(execution(), epoch(), kind, 5).unwrap();
    }
    logs.commit().unwrap();
    dir.join(format!("{}.log", execution()))
}

#[test]
fn facts_are_read_back_in_order_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let mut again = logs(dir.path());
    let facts = replay(&mut again).unwrap();
    assert_eq!(facts.iter().map(|f| f.seq).collect::<Vec<_>>(), [0, 1, 2]);
    again.append(execution(), epoch(), cancelled(), 6).unwrap();
    again.commit().unwrap();
    assert_eq!(replay(&mut logs(dir.path())).unwrap().len(), 4);
}

#[test]
fn a_torn_tail_is_cut_off_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let whole = fs::read(&path).unwrap();
    let two = log::records(&whole).bodies[1].end;
    for cut in two + 1..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(replay(&mut logs(dir.path())).unwrap().len(), 2, "cut at {cut}");
        assert_eq!(fs::read(&path).unwrap(), whole[..two]);
    }
}

#[test]
fn a_fact_that_is_missing_in_the_middle_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let whole = fs::read(&path).unwrap();
    let first = log::records(&whole).bodies[0].end;
    fs::write(&path, &whole[first..]).unwrap();
    assert!(matches!(replay(&mut logs(dir.path())), Err(LogError::Damaged { seq: 0, .. })));
}

#[test]
fn a_bit_that_flipped_before_the_last_fact_is_damage_and_nothing_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let whole = fs::read(&path).unwrap();
    let two = log::records(&whole).bodies[1].end;
    check_flipped_bits(&path, 0..two);
}

#[test]
fn a_bit_that_flipped_in_the_last_fact_is_damage_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let whole = fs::read(&path).unwrap();
    let two = log::records(&whole).bodies[1].end;
    check_flipped_bits(&path, two..whole.len());
}

/// Writes the log of another execution.
fn other(dir: &Path) -> ExecutionId {
    let other = ExecutionId(iptl_dag::codec::cid_of(&"other"));
    let mut logs = logs(dir);
    logs.append(other, epoch(), submitted(), 5).unwrap();
    logs.commit().unwrap();
    other
}

#[test]
fn a_damaged_log_holds_up_no_other_and_is_laid_aside_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let other = other(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[50] ^= 1;
    for round in 0..2 {
        // The second time one of this name is there already.
        fs::write(&path, &bytes).unwrap();
        let mut again = logs(dir.path());
        let mut read = Vec::new();
        let broken = again.replay(|facts| read.extend(facts.into_iter().map(|fact| fact.execution))).unwrap();
        assert_eq!(read, [other], "round {round}");
        let [log] = &broken[..] else { panic!("{broken:?}") };
        assert_eq!(log.execution, Some(execution()));
        let folder = again.lay_damaged(log).unwrap();
        assert_eq!(fs::read(folder.join(path.file_name().unwrap())).unwrap(), bytes);
        assert_eq!(again.read(&execution()).unwrap().1, Tail::Damaged);
        assert!(logs(dir.path()).replay(|_| ()).unwrap().is_empty());
    }
    let aside = fs::read_dir(dir.path().join("aside")).unwrap().count();
    assert_eq!(aside, 1, "what was laid there before is kept");
}

#[test]
fn a_follower_gets_a_whole_log_again_in_the_place_of_one_that_is_damaged() {
    let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = written(theirs.path());
    let whole = logs(theirs.path()).blocks(&execution()).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[50] ^= 1;
    fs::write(dir.path().join(format!("{}.log", execution())), &bytes).unwrap();
    let mut follower = logs(dir.path());
    let broken = follower.replay(|_| ()).unwrap();
    follower.lay_damaged(&broken[0]).unwrap();
    for block in &whole {
        follower.append_followed(block).unwrap();
    }
    follower.commit().unwrap();
    assert_eq!(follower.read(&execution()).unwrap(), (whole, Tail::Clean));
    assert_eq!(replay(&mut logs(dir.path())).unwrap().len(), 3);
}

#[test]
fn of_two_files_that_hold_the_log_of_one_execution_that_of_its_name_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let other = other(dir.path());
    // A copy under the name of another execution, in the place of its log, and one under a name that is none.
    let copy = dir.path().join(format!("{other}.log"));
    fs::copy(&path, &copy).unwrap();
    fs::copy(&path, dir.path().join("copy of it.log")).unwrap();
    let mut again = logs(dir.path());
    let mut read = Vec::new();
    let broken = again.replay(|facts| read.extend(facts)).unwrap();
    assert_eq!(read.len(), 3);
    let named: Vec<_> = broken.iter().map(|log| log.execution).collect();
    assert!(named.len() == 2 && named.contains(&Some(other)) && named.contains(&None), "{broken:?}");
    assert!(broken.iter().all(|log| log.error.to_string().contains("whose log has another name")), "{broken:?}");
    for log in &broken {
        again.lay_damaged(log).unwrap();
    }
    again.append(execution(), epoch(), cancelled(), 6).unwrap();
    again.commit().unwrap();
    assert_eq!(replay(&mut logs(dir.path())).unwrap().len(), 4);
}

#[test]
fn a_file_that_does_not_go_on_with_the_one_before_it_is_damage() {
    let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(dir.path());
    let mut forked = logs(theirs.path());
    for kind in [submitted(), FactKind::TimedOut {}, FactKind::Started {}, cancelled()] {
        forked.append(execution(), epoch(), kind, 6).unwrap();
    }
    forked.commit().unwrap();
    let bytes = fs::read(theirs.path().join(format!("{}.log", execution()))).unwrap();
    let third = log::records(&bytes).bodies[2].end;
    fs::write(dir.path().join(format!("{}.3.log", execution())), &bytes[third..]).unwrap();
    let error = replay(&mut logs(dir.path())).unwrap_err().to_string();
    assert!(error.contains("the log was forked or changed"), "{error}");
}

#[test]
fn how_old_an_execution_is_outlives_its_orchestrator_and_not_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let ages = |boot: &str| {
        let mut logs = Logs { boot: boot.to_owned(), ..logs(dir.path()) };
        replay(&mut logs).unwrap();
        logs.ages()[0].1
    };
    let age = ages(&clock::boot());
    assert!(age.submitted.is_some() && age.submitted >= age.started && age.started.is_some(), "{age:?}");
    assert!(ages(&clock::boot()).submitted >= age.submitted, "it grows by no clock that is set");
    assert_eq!(ages("another start of the machine"), Age::default());
    // Where the file is torn it says nothing.
    let file = dir.path().join(format!("{}.clock", execution()));
    let bytes = fs::read(&file).unwrap();
    for cut in 0..bytes.len() {
        fs::write(&file, &bytes[..cut]).unwrap();
        assert_eq!(ages(&clock::boot()), Age::default(), "cut at {cut}");
    }
    logs(dir.path()).close(&execution()).unwrap();
    assert!(!file.exists());
}

#[test]
fn a_log_signed_by_a_stranger_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let mut stranger = Logs::new(dir.path().to_owned(), Arc::new(Keypair::from_seed(&[8; 32])));
    let error = replay(&mut stranger).unwrap_err().to_string();
    assert!(error.contains("who may not write into this log"), "{error}");
}

#[test]
fn a_log_goes_on_in_another_file_after_a_snapshot_and_only_that_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = written(dir.path());
    let mut grown = logs(dir.path());
    let before = replay(&mut grown).unwrap();
    grown.snapshot(execution(), 6).unwrap();
    grown.append(execution(), epoch(), cancelled(), 7).unwrap();
    grown.commit().unwrap();
    assert_eq!(grown.blocks(&execution()).unwrap().len(), 5);

    let kinds = |facts: Vec<Fact>| facts.into_iter().map(|f| f.kind).collect::<Vec<_>>();
    let mut expected = kinds(before);
    expected.push(cancelled());
    // Whatever happens to the first file, it is not looked at.
    fs::write(&first, b"lost").unwrap();
    let mut again = logs(dir.path());
    assert_eq!(kinds(replay(&mut again).unwrap()), expected);
    again.append(execution(), epoch(), FactKind::TimedOut {}, 8).unwrap();
    again.commit().unwrap();
    assert_eq!(again.read(&execution()).unwrap().1, Tail::Damaged);
}

#[test]
fn a_snapshot_that_a_crash_tore_at_any_byte_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let mut grown = logs(dir.path());
    let before = replay(&mut grown).unwrap();
    grown.snapshot(execution(), 6).unwrap();
    drop(grown);
    let second = dir.path().join(format!("{}.3.log", execution()));
    let whole = fs::read(&second).unwrap();
    for cut in 0..whole.len() {
        fs::write(&second, &whole[..cut]).unwrap();
        let mut again = logs(dir.path());
        assert_eq!(replay(&mut again).unwrap(), before, "cut at {cut}");
        // A file may have its length before it has what was written; no fact ends in so many zeros.
        let zeros = vec![0; (whole.len() - cut).max(8)];
        fs::write(&second, [&whole[..whole.len() - zeros.len()], &zeros].concat()).unwrap();
        let mut again = logs(dir.path());
        assert_eq!(replay(&mut again).unwrap(), before, "{} zeros", zeros.len());
        again.append(execution(), epoch(), cancelled(), 7).unwrap();
        again.commit().unwrap();
        assert_eq!(replay(&mut logs(dir.path())).unwrap().len(), before.len() + 1, "cut at {cut}");
    }
}

#[test]
fn the_log_of_what_is_over_is_laid_aside_and_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let mut grown = logs(dir.path());
    replay(&mut grown).unwrap();
    grown.snapshot(execution(), 6).unwrap();
    grown.close(&execution()).unwrap();
    assert_eq!(replay(&mut logs(dir.path())).unwrap(), []);
    assert_eq!(logs(dir.path()).blocks(&execution()).unwrap().len(), 4);
}

/// A log that is read in several windows, on several threads where there are; and how many facts it has.
#[test]
fn the_log_of_what_is_over_gives_way_to_that_of_who_goes_on_with_it_and_is_not_lost() {
    let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    written(dir.path());
    let mut logs = logs(dir.path());
    replay(&mut logs).unwrap();
    logs.close(&execution()).unwrap();
    let own = logs.blocks(&execution()).unwrap();
    let leader = Arc::new(Keypair::from_seed(&[8; 32]));
    let mut leads = Logs::new(theirs.path().to_owned(), leader.clone());
    let epoch = Epoch { counter: 1, peer: leader.peer().clone() };
    let first = leads.append(execution(), epoch, submitted(), 9).unwrap();
    logs.add_writers(vec![leader.peer().clone()]);
    logs.append_followed(&first).unwrap();
    let kept: Vec<Cid> = logs.blocks(&execution()).unwrap().iter().map(|block| *block.cid()).collect();
    assert_eq!(kept, [*first.cid()]);
    let aside = fs::read_dir(dir.path().join("aside")).unwrap().next().unwrap().unwrap().path();
    let kept = fs::read(aside.join(format!("{}.log", execution()))).unwrap();
    assert_eq!(log::records(&kept).bodies.len(), own.len());
}

fn long(dir: &Path) -> (PathBuf, u64) {
    let mut logs = logs(dir);
    let peer = epoch().peer;
    let granted = FactKind::Granted { lablet: peer.clone(), assignments: Vec::new(), attempt: 1 };
    let mut count = 0;
    let received = (0..11_000_u32).map(|n| FactKind::Received {
        lablet: peer.clone(),
        shard: iptl_dag::codec::cid_of(&n),
        count: 1,
    });
    for kind in [submitted(), granted, FactKind::Started {}].into_iter().chain(received) {
        logs.append(execution(), epoch(), kind, 5).unwrap();
        count += 1;
    }
    logs.commit().unwrap();
    (dir.join(format!("{}.log", execution())), count)
}

#[test]
fn a_long_log_is_read_in_windows_and_in_order_and_its_torn_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (path, count) = long(dir.path());
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 4 << 20, "{} bytes are read at once", whole.len());
    let mut windows = 0;
    let mut next = 0;
    let mut again = logs(dir.path());
    again
        .replay(|facts| {
            windows += 1;
            for fact in facts {
                assert_eq!(fact.seq, next);
                next += 1;
            }
        })
        .unwrap();
    assert_eq!(next, count);
    assert!(windows >= 4, "{windows} windows");
    again.append(execution(), epoch(), cancelled(), 6).unwrap();
    again.commit().unwrap();
    assert_eq!(replay(&mut logs(dir.path())).unwrap().len() as u64, count + 1);

    let bodies = log::records(&whole).bodies;
    for kept in [bodies.len() - 1, 9_000, 4_000, 1] {
        let end = bodies[kept - 1].end;
        for cut in [end + 1, end + log::HEADER_SIZE, bodies[kept].end - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(replay(&mut logs(dir.path())).unwrap().len(), kept, "cut at {cut}");
            assert_eq!(fs::metadata(&path).unwrap().len(), end as u64);
        }
    }
}

#[test]
fn a_bit_that_flipped_anywhere_in_a_long_log_is_damage_and_nothing_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = long(dir.path());
    let whole = fs::read(&path).unwrap();
    let last = log::records(&whole).bodies.pop().unwrap();
    check_flipped_bits(&path, (0..last.start - log::HEADER_SIZE).step_by(whole.len() / 40));
}

/// Flips a bit at each of these places of a log, one at a time: it is damage, and nothing is cut off.
fn check_flipped_bits(path: &Path, places: impl IntoIterator<Item = usize>) {
    let whole = fs::read(path).unwrap();
    for at in places {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(path, &flipped).unwrap();
        let error = replay(&mut logs(path.parent().unwrap())).unwrap_err();
        assert!(matches!(error, LogError::Damaged { .. }), "flipped at {at}: {error}");
        assert_eq!(fs::read(path).unwrap(), flipped);
    }
}

#[test]
fn snapshots_of_a_growing_log_repeat_no_more_facts_than_it_has() {
    let (mut fresh, mut repeated, mut all, mut in_snapshots) = (0, 0, 0_u64, 0);
    for _ in 0..1_000_000 {
        (fresh, all) = (fresh + 1, all + 1);
        if wants_snapshot(fresh, repeated) {
            (fresh, repeated) = (0, all);
            in_snapshots += all;
        }
    }
    assert!(in_snapshots > 0 && in_snapshots < 2 * all, "{in_snapshots} facts in snapshots of {all}");
}
