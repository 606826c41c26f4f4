//! Behaves as its first argument says: as the contract of runners asks, or worse.

mod hostile;
#[path = "../../../../runner-wasm/tests/guests/src/lan.rs"]
mod lan;
#[path = "../../../../runner-wasm/tests/guests/src/mirror.rs"]
mod mirror;
mod network;
mod sync;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(behaviour) = args.first() else { return ExitCode::from(64) };
    match behaviour.as_str() {
        "succeed" => {}
        "fail" => return ExitCode::from(3),
        "print" => print(),
        "environment" => environment(&args),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "park" => park(),
        "eat-memory" => eat_memory(),
        "flood-output" => loop {
            println!("{}", "x".repeat(99));
        },
        "flood-records" => loop {
            println!(r#"{{"ts":1,"event":{{"stage_start_event":{{"name":"again","group":"g"}}}}}}"#);
        },
        "flood-artifacts" => return flood_artifacts(),
        "recurse" => println!("{}", recurse(1)),
        "trap" => trap(),
        "barrier" => {
            let mut lab = sync::Sync::connect();
            lab.signal_and_wait("ready", number("IPTL_TOTAL"));
            println!("open");
        }
        "wait" => sync::Sync::connect().signal_and_wait("never", 1 << 40),
        "wait-and-hang" => {
            let mut lab = sync::Sync::connect();
            lab.wait_blindly("never", 1 << 40);
            park();
        }
        "signal-and-step" => {
            let mut lab = sync::Sync::connect();
            lab.signal("begun");
            steps(&args[1]);
            if args.len() > 2 {
                lab.signal("done");
            }
        }
        "barriers" => barriers(args[1].parse().unwrap()),
        "gossip" => {
            let mut lab = sync::Sync::connect();
            lab.publish("t", &std::env::var("IPTL_INDEX").unwrap());
            for message in lab.subscribe("t", number("IPTL_TOTAL")) {
                println!("{message}");
            }
        }
        "record" => record(),
        "say" => say(&args[1..]),
        "copy" => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap();
        }
        "bytes" => bytes(args[1].parse().unwrap()),
        "steps" => steps(&args[1]),
        "lives" => lives(),
        "stores" => stores(&args[1..]),
        "mirror" => mirror::run(std::env::var("IPTL_ADDR").unwrap().parse().unwrap(), &args[1]),
        "lan" => lan::run(std::env::var("IPTL_ADDR").unwrap().parse().unwrap(), &args[1], true),
        "well-until" => return well_until(&args[1]),
        "catch-term" => hostile::catch_term(),
        "kill-self" => hostile::kill_self(args[1].parse().unwrap()),
        "ignore-term" => hostile::ignore_term(),
        "fork-bomb" => hostile::fork_bomb(),
        "open-files" => hostile::open_files(),
        "fill-disk" => return hostile::fill_disk(&args[1]),
        "zombies" => hostile::zombies(args[1].parse().unwrap()),
        "links" => hostile::links(),
        "orphan" => hostile::orphan(),
        "look-around" => hostile::look_around(),
        "attack-init" => hostile::attack_init(),
        "answer" => network::answer(),
        "meet" => return meet(&args[1..]),
        "reach" => return network::reach(&args[1], args[2].parse().unwrap(), false),
        "reach-v6" => return network::reach(&args[1], args[2].parse().unwrap(), true),
        "follow" => network::follow(&args[1]),
        "shaped" => network::shaped(&args[1]),
        "escape" => network::escape(&args[1..]),
        "listeners" => network::serve_listeners(),
        "reach-listeners" => network::reach_listeners(&args[1]),
        "reach-out" => network::reach_out(&args[1..]),
        other => panic!("no behaviour {other}"),
    }
    ExitCode::SUCCESS
}

/// Meets all others again and again, and says what half of the meetings took at most, in microseconds.
fn barriers(rounds: usize) {
    let mut lab = sync::Sync::connect();
    let total = number("IPTL_TOTAL");
    lab.signal_and_wait("all", total);
    let mut took: Vec<u128> = (0..rounds)
        .map(|round| {
            // Together, so that nobody waits for one who is late from the last meeting.
            lab.signal_and_wait(&format!("before-{round}"), total);
            let began = std::time::Instant::now();
            lab.signal_and_wait(&format!("round-{round}"), total);
            began.elapsed().as_micros()
        })
        .collect();
    took.sort_unstable();
    println!("{}", took[rounds / 2]);
}

/// Answers, or reaches another, until everybody has done so.
fn meet(args: &[String]) -> ExitCode {
    let mut lab = sync::Sync::connect();
    let mut code = ExitCode::SUCCESS;
    if args[0] == "answer" {
        std::thread::spawn(network::answer);
    } else {
        code = network::reach(&args[1], args[2].parse().unwrap(), args[0] == "reach-v6");
    }
    lab.signal_and_wait("done", number("IPTL_TOTAL"));
    code
}

fn number(name: &str) -> u64 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn print() {
    println!("one");
    println!("two");
    eprintln!("three");
    print!("four");
    std::io::stdout().flush().unwrap();
}

fn environment(args: &[String]) {
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("IPTL_")) {
        println!("{name}={value}");
    }
    for arg in args {
        println!("{arg}");
    }
}

fn park() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn eat_memory() {
    let mut eaten = Vec::new();
    loop {
        // Written to, so that it is there.
        eaten.push(vec![1u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}

fn flood_artifacts() -> ExitCode {
    let mut file = std::fs::File::create(outputs("flood")).unwrap();
    loop {
        if file.write_all(&[b'x'; 4096]).is_err() {
            // There is no room; the lab sees that too.
            park();
        }
    }
}

fn outputs(name: &str) -> String {
    format!("{}/{name}", std::env::var("TEST_OUTPUTS_PATH").unwrap())
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn recurse(n: u64) -> u64 {
    let frame = [n; 512];
    recurse(std::hint::black_box(frame)[7] + 1) + frame[3]
}

fn trap() {
    // SAFETY: it does nothing but stop the program.
    unsafe { std::arch::asm!("ud2") };
}

fn record() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let event = format!("{{\"ts\":{now},\"event\":{{\"iptl_event\":{{\"name\":\"hello\",\"data\":{{\"a\":1}}}}}}}}\n");
    std::fs::write(outputs("run.out"), event).unwrap();
    let metric =
        format!("{{\"ts\":{now},\"type\":\"point\",\"name\":\"m\",\"unit\":\"ms\",\"measures\":{{\"value\":1.5}}}}\n");
    std::fs::write(outputs("results.out"), metric).unwrap();
    std::fs::create_dir(outputs("dir")).unwrap();
    std::fs::write(outputs("dir/file"), "abc").unwrap();
}

/// Writes lines.
fn say(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}

/// Writes so many bytes in lines of a hundred.
fn bytes(count: usize) {
    let chunk = format!("{}\n", "x".repeat(99)).repeat(600);
    let mut out = std::io::stdout().lock();
    let mut left = count;
    while left > 0 {
        let size = left.min(chunk.len());
        out.write_all(&chunk.as_bytes()[..size]).unwrap();
        left -= size;
    }
}

/// Says a number each time that a byte comes through a pipe that was mounted; ends with the pipe.
fn steps(path: &str) {
    let mut done = 0;
    loop {
        let asked: u64 = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        while done < asked {
            done += 1;
            println!("step {done}");
        }
        if asked >= 100 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says how often it was started, as a file of its outputs knows, and then whenever it has stood still for long.
fn lives() {
    let path = format!("{}/lives", std::env::var("TEST_OUTPUTS_PATH").unwrap());
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
    file.write_all(b".").unwrap();
    println!("life {} at {}", std::fs::metadata(&path).unwrap().len(), std::env::var("IPTL_ADDR").unwrap());
    let mut last = std::time::Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        if last.elapsed() > Duration::from_secs(1) {
            println!("stood still");
        }
        last = std::time::Instant::now();
    }
}

/// Says where it is and how often it was started, as a file in each of some directories knows, and one of its outputs.
fn stores(directories: &[String]) {
    let count = |path: String| {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        file.write_all(b".").unwrap();
        std::fs::metadata(&path).unwrap().len()
    };
    let deep = |directory: &String| {
        std::fs::create_dir_all(format!("{directory}/a/b")).unwrap();
        count(format!("{directory}/a/b/lives")).to_string()
    };
    let stored: Vec<String> = directories.iter().map(deep).collect();
    let at = ["IPTL_ADDR", "IPTL_ADDR6", "TEST_SUBNET"].map(|name| std::env::var(name).unwrap());
    println!("{} has {}, and {} for the lab", at.join(" "), stored.join(" "), count(outputs("lives")));
    park();
}

/// The look of a health check: well until a file is there.
fn well_until(path: &str) -> ExitCode {
    if std::fs::exists(path).unwrap_or(false) {
        println!("it is tired");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
