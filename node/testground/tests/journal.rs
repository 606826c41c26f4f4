//! What instances say of themselves.

use std::os::unix::fs::symlink;

use iptl_dag::model::Exit;
use iptl_testground::{Journal, read_outputs};

const GO: &str = r#"{"ts":1600000000000000001,"msg":"","group_id":"g","run_id":"r","event":"#;
const JS: &str = r#"{"level":"info","message":"","ts":1600000000000000000,"group_id":"g","run_id":"r","event":"#;
const RUST: &str = r#"{"event":"#;

fn events(journal: &mut Journal) -> Vec<String> {
    String::from_utf8(journal.take_events()).unwrap().lines().map(str::to_owned).collect()
}

fn metrics(journal: &mut Journal) -> Vec<String> {
    String::from_utf8(journal.take_metrics()).unwrap().lines().map(str::to_owned).collect()
}

/// Has an instance say events, and expects an end for a process that ended with this status.
fn check_exit(said: &[&str], code: i32, expected: Exit) {
    for dialect in [GO, JS, RUST] {
        let mut journal = Journal::new(1 << 20);
        for event in said {
            journal.line(0, &format!("{dialect}{event}}}"));
        }
        assert_eq!(journal.exit(Exit::Exited { code }), expected, "{dialect}{said:?}");
        let mut journal = Journal::new(1 << 20);
        said.iter().for_each(|event| journal.published(0, event));
        assert_eq!(journal.exit(Exit::Exited { code }), expected, "published {said:?}");
    }
}

#[test]
fn what_a_program_says_counts_more_than_its_status() {
    let start = r#"{"start_event":{"runenv":{"plan":"p"}}}"#;
    let success = r#"{"success_event":{"group":"g"}}"#;
    let stranger = r#"{"success_event":{"group":"nobody's"}}"#;
    let failure = r#"{"failure_event":{"group":"g","error":"no peers"}}"#;
    let crash = r#"{"crash_event":{"groups":"g","error":"index out of range","stacktrace":"…"}}"#;
    let reported = |code, failure: Option<&str>| Exit::Reported { code, failure: failure.map(str::to_owned) };
    check_exit(&[], 0, Exit::Exited { code: 0 });
    check_exit(&[], 3, Exit::Exited { code: 3 });
    check_exit(&[start, success], 0, reported(0, None));
    check_exit(&[start, success, success], 2, reported(2, None));
    check_exit(&[stranger], 0, reported(0, None));
    check_exit(&[start, failure], 0, reported(0, Some("no peers")));
    check_exit(&[failure, crash, success], 0, reported(0, Some("no peers")));
    check_exit(&[success, crash, crash], 0, reported(0, Some("crash: index out of range")));
    check_exit(&[start], 0, reported(0, Some("it ended without saying that it succeeded")));
}

#[test]
fn a_process_that_did_not_end_by_itself_is_believed_nothing() {
    let mut journal = Journal::new(1 << 20);
    journal.published(0, r#"{"success_event":{"group":"g"}}"#);
    let stopped = Exit::Stopped { reason: "cancelled".into() };
    for exit in [Exit::OutOfMemory {}, Exit::OutOfTime {}, stopped] {
        assert_eq!(journal.exit(exit.clone()), exit);
    }
}

#[test]
fn events_are_recorded_and_messages_can_be_read_in_the_log() {
    let mut journal = Journal::new(1 << 20);
    let mut log = Vec::new();
    for line in [
        "plain".to_owned(),
        format!("{GO}{{\"message_event\":{{\"message\":\"hello \\\"you\\\"\"}}}}}}"),
        format!("{JS}{{\"stage_start_event\":{{\"name\":\"s\",\"group\":\"g\"}}}}}}"),
        "{\"event\":{\"another\":1}}".to_owned(),
        "{\"event\":\"success_event\"}".to_owned(),
        "{\"level\":\"debug\",\"message\":\"no event\"}".to_owned(),
    ] {
        log.extend(journal.line(7, &line).map(|text| text.into_owned()));
    }
    assert_eq!(
        log,
        [
            "plain",
            "hello \"you\"",
            "{\"event\":{\"another\":1}}",
            "{\"event\":\"success_event\"}",
            "{\"level\":\"debug\",\"message\":\"no event\"}"
        ]
    );
    assert_eq!(
        events(&mut journal),
        [
            r#"{"t":7,"name":"message_event","data":{"message":"hello \"you\""}}"#,
            r#"{"t":7,"name":"stage_start_event","data":{"name":"s","group":"g"}}"#
        ]
    );
}

#[test]
fn an_event_that_comes_two_ways_is_recorded_once() {
    let success = r#"{"success_event":{"group":"g"}}"#;
    let stage = r#"{"stage_start_event":{"name":"s","group":"g"}}"#;
    for publish_first in [true, false] {
        let mut journal = Journal::new(1 << 20);
        if publish_first {
            journal.published(1, success);
        }
        journal.line(2, &format!("{GO}{success}}}"));
        if !publish_first {
            journal.published(3, success);
        }
        journal.published(4, stage);
        journal.finish();
        assert_eq!(
            events(&mut journal),
            [
                r#"{"t":2,"name":"success_event","data":{"group":"g"}}"#,
                r#"{"t":4,"name":"stage_start_event","data":{"name":"s","group":"g"}}"#
            ]
        );
    }
}

#[test]
fn measures_become_metrics() {
    let mut journal = Journal::new(1 << 20);
    let start_ns = 1_600_000_000_000_000_000;
    for line in [
        r#"{"ts":1600000000000250000,"type":"point","name":"ping-result,round=1,peer=x","measures":{"value":1.25}}"#,
        r#"{"ts":1600000000000250000,"type":"histogram","name":"h","measures":{"p95":2,"count":3}}"#,
        r#"{"ts":1,"type":"point","name":"early","unit":"ms","measures":{"value":3}}"#,
        r#"{"ts":1,"type":"point","name":"bad","measures":{"value":null}}"#,
        r#"{"ts":1,"type":"point","name":"","measures":{"value":1}}"#,
        r#"{"ts":1,"type":"point","name":"bad","unit":"a unit that nobody needs to be so long","measures":{"value":1}}"#,
        "no json",
    ] {
        journal.result(line, start_ns);
    }
    assert_eq!(
        metrics(&mut journal),
        [
            r#"{"t":250,"name":"ping-result","value":1.25,"unit":""}"#,
            r#"{"t":250,"name":"h.count","value":3.0,"unit":""}"#,
            r#"{"t":250,"name":"h.p95","value":2.0,"unit":""}"#,
            r#"{"t":0,"name":"early","value":3.0,"unit":"ms"}"#
        ]
    );
}

#[test]
fn hostile_lines_are_log() {
    let mut journal = Journal::new(1 << 20);
    let deep = format!("{{\"event\":{{\"success_event\":{{\"a\":{}", "[".repeat(100_000));
    let closed = format!("{deep}{}}}}}}}", "]".repeat(100_000));
    let long = format!("{RUST}{{\"success_event\":{{\"group\":\"{}\"}}}}}}", "x".repeat(300 << 10));
    for line in [&deep, &closed, &long] {
        assert_eq!(journal.line(0, line).as_deref(), Some(line.as_str()));
    }
    journal.published(0, &deep);
    journal.published(0, &"[".repeat(1 << 20));
    assert_eq!(journal.exit(Exit::Exited { code: 1 }), Exit::Exited { code: 1 });
    let failure = format!("{{\"failure_event\":{{\"error\":\"{}\"}}}}", "é".repeat(1000));
    journal.published(0, &failure);
    let Exit::Reported { failure: Some(reason), .. } = journal.exit(Exit::Exited { code: 0 }) else { panic!() };
    assert_eq!(reason.len(), 1024);
}

#[test]
fn records_are_one_line_each_and_bounded() {
    let mut journal = Journal::new(200);
    journal.published(0, "{\"message_event\":{\"message\":\n\"x\"}}");
    journal.finish();
    assert_eq!(events(&mut journal), [r#"{"t":0,"name":"message_event","data":{"message": "x"}}"#]);
    for _ in 0..10 {
        journal.line(0, &format!("{RUST}{{\"success_event\":{{\"group\":\"g\"}}}}}}"));
    }
    assert!(journal.is_over_limit());
    assert!(journal.take_events().len() < 200);
    assert_eq!(journal.exit(Exit::Exited { code: 0 }), Exit::TooMuchOutput { what: "records".into() });
}

#[test]
fn files_of_outputs_are_read_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::new(1 << 20);
    read_outputs(dir.path(), &mut journal, 0).unwrap();
    read_outputs(&dir.path().join("nowhere"), &mut journal, 0).unwrap();
    let own = r#"{"ts":5000,"event":{"iptl_event":{"name":"connected","data":{"peer":3}}}}"#;
    let copy = format!("{GO}{{\"success_event\":{{\"group\":\"g\"}}}}}}");
    let long = "x".repeat(1 << 20);
    std::fs::write(dir.path().join("run.out"), format!("{copy}\n{long}\n\u{ff}\n{own}\n")).unwrap();
    let point = r#"{"ts":7000,"type":"point","name":"n","measures":{"value":1}}"#;
    let bytes = [b"\xff\xfe\n", point.as_bytes()].concat();
    std::fs::write(dir.path().join("results.out"), bytes).unwrap();
    read_outputs(dir.path(), &mut journal, 0).unwrap();
    assert_eq!(events(&mut journal), [r#"{"t":5,"name":"connected","data":{"peer":3}}"#]);
    assert_eq!(metrics(&mut journal), [r#"{"t":7,"name":"n","value":1.0,"unit":""}"#]);
    assert_eq!(journal.exit(Exit::Exited { code: 0 }), Exit::Exited { code: 0 }, "a copy counts nothing");
}

#[test]
fn tricks_in_the_directory_of_outputs_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, r#"{"ts":0,"name":"stolen","measures":{"value":1}}"#).unwrap();
    symlink(&secret, dir.path().join("results.out")).unwrap();
    std::fs::create_dir(dir.path().join("run.out")).unwrap();
    let mut journal = Journal::new(1 << 20);
    read_outputs(dir.path(), &mut journal, 0).unwrap();
    std::fs::remove_file(dir.path().join("results.out")).unwrap();
    std::fs::remove_dir(dir.path().join("run.out")).unwrap();
    std::os::unix::net::UnixListener::bind(dir.path().join("run.out")).unwrap();
    let pipe = dir.path().join("results.out");
    assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
    read_outputs(dir.path(), &mut journal, 0).unwrap();
    assert!(metrics(&mut journal).is_empty());
}
