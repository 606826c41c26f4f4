//! Machines on which devices cannot be made, and instances that do not keep to what a network is: refused with the step that
//! failed, or dropped and counted, and neighbours live.

use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc;

use iptl_labnet_tun::{Namespace, OpenError, Report};

use crate::privileged;
use crate::support::{PATIENCE, World, at, clean, interface, pass};

fn addr() -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 1)
}

/// Does something in a thread that has become nobody.
fn as_nobody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let nobody = || {
        #[expect(unsafe_code, reason = "by way of the library it would be the whole process")]
        // SAFETY: takes numbers alone, and concerns this thread.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        act()
    };
    std::thread::scope(|scope| scope.spawn(nobody).join().unwrap())
}

/// Does something in a thread that sees no `/dev/net`.
fn without_tun<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let hidden = || {
        #[expect(unsafe_code, reason = "system calls that concern this thread alone")]
        // SAFETY: pointers are to strings with their end, or none.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "{}", io::Error::last_os_error());
            let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
            let private = libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), flags, none);
            assert_eq!(private, 0, "{}", io::Error::last_os_error());
            let over = libc::mount(c"none".as_ptr(), c"/dev/net".as_ptr(), c"tmpfs".as_ptr(), 0, none);
            assert_eq!(over, 0, "{}", io::Error::last_os_error());
        }
        act()
    };
    std::thread::scope(|scope| scope.spawn(hidden).join().unwrap())
}

#[test]
fn machine_without_dev_net_tun() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    let namespace = Namespace::empty().unwrap();
    let refused = without_tun(|| namespace.open(&interface(addr())).unwrap_err());
    let OpenError::Device { what, source } = &refused else { panic!("{refused}") };
    assert_eq!((*what, source.kind()), ("opening /dev/net/tun", io::ErrorKind::NotFound));
    pass(&world.udp(0), &world.udp(1), b"the neighbours");
}

#[test]
fn lablet_without_privilege() {
    privileged!();
    let world = World::of(&[clean(), clean()]);
    let made = as_nobody(Namespace::empty).unwrap_err();
    assert_eq!(made.kind(), io::ErrorKind::PermissionDenied, "no namespace of its own");
    let namespace = Namespace::empty().unwrap();
    let refused = as_nobody(|| namespace.open(&interface(addr())).unwrap_err());
    let OpenError::Enter(source) = &refused else { panic!("{refused}") };
    assert_eq!(source.kind(), io::ErrorKind::PermissionDenied, "and none of somebody else");
    pass(&world.udp(0), &world.udp(1), b"the neighbours");
}

#[test]
fn engine_that_dies_in_mid_run() {
    privileged!();
    let (dying, living) = (World::of(&[clean(), clean()]), World::of(&[clean(), clean()]));
    let (a, b) = (dying.udp(0), dying.udp(1));
    pass(&a, &b, b"before");
    dying.network.report(|_| panic!("it was told to"));
    let end = dying.ended.recv_timeout(crate::support::PATIENCE).unwrap();
    let iptl_labnet_tun::End::Broken { reason } = end else { panic!("{end:?}") };
    assert!(reason.contains("it was told to"), "{reason}");
    // Its instances are cut off, and nothing of that reaches another network of this machine.
    b.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    a.send_to(b"after", at(Ipv4Addr::new(10, 0, 0, 2), b.local_addr().unwrap().port())).unwrap();
    assert!(b.recv(&mut [0; 16]).is_err(), "nothing is delivered any more");
    pass(&living.udp(0), &living.udp(1), b"the neighbours");
}

#[test]
fn flood_while_the_engine_cannot_keep_up_is_counted_as_lost_by_the_lab() {
    privileged!();
    const SENT: u64 = 5_000;
    let world = World::of(&[clean(), clean()]);
    let (a, b) = (world.udp(0), world.udp(1));
    pass(&a, &b, b"before");
    let ((held, is_held), (release, released)) = (mpsc::channel(), mpsc::channel::<()>());
    world.network.report(move |_| {
        held.send(()).unwrap();
        // The thread of the engine stands still until the flood is over.
        let _over = released.recv();
    });
    is_held.recv_timeout(PATIENCE).unwrap();
    for _ in 0..SENT {
        // Some kernels say that there was no room, others do not.
        let _sent = a.send_to(b"x", b.local_addr().unwrap());
    }
    release.send(()).unwrap();
    let all = |report: &Report| report.nodes[&0].up[0].offered + report.nodes[&0].overrun == SENT + 1;
    let node = world.until("all taken or lost", all).nodes[&0].clone();
    assert!(node.overrun > 0 && node.overrun < SENT, "{node:?}");
    assert_eq!(node.lost_by_lab(), node.overrun, "{node:?}");
    assert_eq!((node.up[0].lost, node.up[0].overflowed), (0, 0), "it is not the link that lost them: {node:?}");
    pass(&world.udp(0), &world.udp(1), b"after");
}
