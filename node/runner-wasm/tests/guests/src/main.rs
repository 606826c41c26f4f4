//! Behaves as its first argument says.

mod lan;
mod mirror;
mod net;

use std::time::Duration;

wit_bindgen::generate!({
    path: ["../../wit/poll", "../../../../plans/sdk/wit/lab.wit"],
    world: "iptl:lab/plan",
    generate_all,
});

mod exit {
    // Rust's std knows success and failure only; the lab tells statuses apart where a program gives them.
    wit_bindgen::generate!({
        inline: "
            package wasi:cli@0.2.6;
            interface exit {
                exit: func(status: result);
                exit-with-code: func(status-code: u8);
            }
            world exits { import exit; }
        ",
        world: "wasi:cli/exits",
    });

    pub fn exit(status: u8) {
        wasi::cli::exit::exit_with_code(status);
    }
}

use iptl::lab::{artifacts, records, sync};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args[0].as_str() {
        "succeed" => {}
        "fail" => exit::exit(3),
        "print" => print(),
        "environment" => environment(&args),
        "spin" => spin(),
        "park" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "eat-memory" => eat_memory(),
        "flood-output" => loop {
            println!("{}", "flood ".repeat(20));
        },
        "flood-records" => loop {
            let _ = records::event("flood", "{}");
        },
        "flood-artifacts" => loop {
            let _ = artifacts::append("flood", &[0; 4096]);
        },
        "recurse" => println!("{}", recurse(1)),
        "trap" => std::process::abort(),
        "barrier" => barrier(),
        "gossip" => gossip(),
        "record" => record(),
        "bad-records" => bad_records(),
        "hash-order" => hash_order(),
        "long-line" => println!("{}", "x".repeat(40_000)),
        other => net::behave(other, &args[1..]),
    }
}

fn print() {
    println!("one");
    println!("two");
    eprintln!("three");
    print!("four");
}

fn environment(args: &[String]) {
    for (name, value) in std::env::vars().filter(|(name, _)| name != "MINE") {
        println!("{name}={value}");
    }
    assert_eq!(std::env::var("MINE").as_deref(), Ok("yes"));
    println!("{args:?}");
}

fn spin() -> ! {
    let mut x = 1u64;
    loop {
        x = std::hint::black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
    }
}

fn eat_memory() {
    let mut held = Vec::new();
    loop {
        held.push(vec![1u8; 1 << 20]);
        std::hint::black_box(&held);
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 8]);
    if depth == 0 { 0 } else { recurse(depth + 1) + frame[(depth % 8) as usize] }
}

fn wait(pending: sync::Pending) -> Result<u64, String> {
    loop {
        if let Some(answer) = pending.take() {
            return answer;
        }
        pending.subscribe().block();
    }
}

pub fn variable(name: &str) -> u64 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn barrier() {
    let total = variable("IPTL_TOTAL");
    let seq = wait(sync::signal("ready")).unwrap();
    assert!((1..=total).contains(&seq));
    assert_eq!(wait(sync::barrier("ready", total)), Ok(total));
    println!("open");
}

fn gossip() {
    let index = std::env::var("IPTL_INDEX").unwrap();
    wait(sync::publish("t", index.as_bytes())).unwrap();
    let topic = sync::subscribe("t");
    let mut position = 0;
    while position < variable("IPTL_TOTAL") {
        match topic.next() {
            Some(message) => {
                let message = message.unwrap();
                position += 1;
                assert_eq!(message.position, position);
                println!("{}", String::from_utf8(message.payload).unwrap());
            }
            None => topic.subscribe().block(),
        }
    }
}

fn record() {
    records::event("hello", "{\"a\":\n1}").unwrap();
    records::metric("m", 1.5, "ms").unwrap();
    artifacts::append("dir/file", b"a").unwrap();
    artifacts::append("dir/file", b"bc").unwrap();
}

fn bad_records() {
    assert!(records::event("x", "{not json").is_err());
    assert!(records::event("", "{}").is_err());
    assert!(records::metric("x", f64::NAN, "").is_err());
    assert!(artifacts::append("../x", b"").is_err());
    assert!(artifacts::append("/x", b"").is_err());
    artifacts::append("a", b"1").unwrap();
    assert!(artifacts::append("a/b", b"1").is_err());
    assert!(wait(sync::signal("")).is_err());
    assert!(wait(sync::publish("t", &vec![0; 1 << 20])).is_err());
}

fn hash_order() {
    let set: std::collections::HashSet<u32> = (0..50).collect();
    println!("{:?}", set.iter().collect::<Vec<_>>());
}
