//! What no workload should do.

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

// The C library that every Rust program of this target is linked with.
unsafe extern "C" {
    fn fork() -> c_int;
    fn pause() -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn getpid() -> c_int;
    fn signal(signal: c_int, handler: *const c_void) -> *const c_void;
    fn ptrace(request: c_int, pid: c_int, ...) -> i64;
    fn setuid(uid: u32) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize;
    fn _exit(status: c_int) -> !;
}

const SIGTERM: c_int = 15;

fn park() -> ! {
    loop {
        // SAFETY: it waits for a signal.
        unsafe { pause() };
    }
}

pub(crate) fn kill_self(number: c_int) {
    // SAFETY: a signal to this process.
    unsafe { kill(getpid(), number) };
    park();
}

pub(crate) fn ignore_term() {
    // SAFETY: 1 is SIG_IGN.
    unsafe { signal(SIGTERM, std::ptr::without_provenance(1)) };
    println!("ignoring");
    park();
}

/// Says so and ends, by calls that a signal may interrupt anything for: standard output may be locked.
extern "C" fn leave(_: c_int) {
    let text = b"caught\n";
    // SAFETY: the bytes live as long as the call, and neither call looks at anything else of this process.
    unsafe {
        write(1, text.as_ptr().cast(), text.len());
        _exit(7);
    }
}

/// Ends in its own way when it is asked to.
pub(crate) fn catch_term() {
    // SAFETY: this program does nothing else while the handler runs.
    unsafe { signal(SIGTERM, leave as *const c_void) };
    println!("catching");
    park();
}

pub(crate) fn fork_bomb() {
    loop {
        // SAFETY: this program has one thread.
        unsafe { fork() };
    }
}

pub(crate) fn open_files() {
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/proc/self/status") {
        files.push(file);
    }
    println!("{} files", files.len());
    park();
}

/// Writes until it is refused.
pub(crate) fn fill_disk(path: &str) -> ExitCode {
    let mut number = 0;
    loop {
        let Ok(mut file) = std::fs::File::create(format!("{path}/{number}")) else {
            println!("refused at {number}");
            return ExitCode::from(5);
        };
        for _ in 0..16 {
            if let Err(e) = file.write_all(&vec![b'x'; 1 << 20]) {
                println!("refused: {e}");
                park();
            }
        }
        number += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes processes that end, and waits for none of them.
pub(crate) fn zombies(count: u32) {
    for _ in 0..count {
        // SAFETY: this program has one thread. A child makes a grandchild and leaves it alone; both end.
        if unsafe { fork() } == 0 {
            if unsafe { fork() } == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::process::exit(0);
        }
    }
    // Its own children stay zombies: they are its own to wait for. Those that lost their parent must not.
    std::thread::sleep(Duration::from_millis(300));
    let orphans = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let status = std::fs::read_to_string(entry.ok()?.path().join("status")).ok()?;
        (status.contains("State:\tZ") && status.contains("PPid:\t1\n")).then_some(())
    });
    println!("orphaned zombies: {}", orphans.count());
}

pub(crate) fn links() {
    let out = std::env::var("TEST_OUTPUTS_PATH").unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, format!("{out}/{name}")).unwrap();
    link("/etc/passwd", "passwd");
    link("../../../../../../etc/shadow", "shadow");
    link("/", "root");
    link(".", "loop");
    std::fs::create_dir(format!("{out}/sub")).unwrap();
    link("/proc/1/environ", "sub/environ");
    std::fs::write(format!("{out}/real"), "real").unwrap();
    std::fs::hard_link(format!("{out}/real"), format!("{out}/hard")).unwrap();
    let closed = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o000);
    std::fs::write(format!("{out}/closed"), "closed").unwrap();
    std::fs::set_permissions(format!("{out}/closed"), closed).unwrap();
}

/// Leaves a process behind that holds its output open.
pub(crate) fn orphan() {
    // SAFETY: this program has one thread.
    if unsafe { fork() } == 0 {
        park();
    }
    println!("done");
}

/// Says whatever it can reach of the machine.
pub(crate) fn look_around() {
    for path in ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/.iptl/lab/lab.sock"] {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            println!("reached {path}");
        }
    }
    let nets = std::fs::read_to_string("/proc/net/dev").unwrap();
    for line in nets.lines().filter_map(|line| line.split_once(':')) {
        if line.0.trim() != "lo" {
            println!("reached interface {}", line.0.trim());
        }
    }
    for address in ["169.254.169.254:80", "172.17.0.1:22", "172.17.0.2:5050", "10.0.0.1:5050", "8.8.8.8:53"] {
        let address: SocketAddr = address.parse().unwrap();
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            println!("reached {address}");
        }
    }
    for path in ["/new", "/etc/new", "/.iptl/new", "/.iptl/lab/new", "/sys/fs/cgroup/new", "/proc/sys/kernel/hostname"]
    {
        if std::fs::write(path, "x").is_ok() {
            println!("wrote {path}");
        }
    }
    // SAFETY: it changes who this process is, where it may.
    if unsafe { setuid(0) } == 0 {
        println!("became root");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines() {
        if line.starts_with("Cap") && !line.ends_with("0000000000000000") {
            println!("has {line}");
        }
        if (line.starts_with("NoNewPrivs") && !line.ends_with('1'))
            || (line.starts_with("Seccomp:") && !line.ends_with('2'))
        {
            println!("is free of {line}");
        }
    }
    let others = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    println!("processes: {}", others.count());
    println!("looked");
}

/// Attacks the first process of its container.
pub(crate) fn attack_init() {
    for number in [9, 19, 11, 6] {
        // SAFETY: signals to a process that is expected to survive them.
        unsafe { kill(1, number) };
    }
    // SAFETY: PTRACE_ATTACH, which is expected to be refused.
    if unsafe { ptrace(16, 1, 0, 0) } == 0 {
        println!("traced it");
    }
    for file in ["environ", "mem", "maps", "fd/3"] {
        if std::fs::read(format!("/proc/1/{file}")).is_ok_and(|bytes| !bytes.is_empty()) {
            println!("read its {file}");
        }
    }
    println!("attacked");
}
