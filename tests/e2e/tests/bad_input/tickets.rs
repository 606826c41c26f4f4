//! Tickets that let nobody in.

use iptl_e2e::{Foreground, Home};
use iptl_trust::Ticket;

/// An orchestrator of a lab of its own, in a process of its own.
struct Owner {
    home: Home,
    _node: Foreground,
}

impl Owner {
    fn new() -> Owner {
        let home = Home::new();
        let node = Foreground::start(home.path(), &[]);
        home.run(&["lab", "init", "--name", "lab"]).exits(0);
        Owner { home, _node: node }
    }

    fn ticket(&self, ttl: &str) -> String {
        self.home.run(&["invite", "--ttl", ttl, "-q"]).exits(0).word()
    }
}

fn join(ticket: &str) -> iptl_e2e::Output {
    Home::new().run(&["join", ticket])
}

#[test]
fn ticket_expired() {
    let owner = Owner::new();
    let ticket = owner.ticket("1ms");
    join(&ticket).fails(4, "ticket.expired");
}

#[test]
fn ticket_used_twice() {
    let owner = Owner::new();
    let ticket = owner.ticket("1h");
    join(&ticket).exits(0);
    join(&ticket).fails(4, "ticket.used");
}

#[test]
fn ticket_garbled() {
    let owner = Owner::new();
    let ticket = owner.ticket("1h");
    let mut garbled = ticket.clone().into_bytes();
    let middle = garbled.len() / 2;
    garbled[middle] = if garbled[middle] == b'a' { b'b' } else { b'a' };
    join(&String::from_utf8(garbled).unwrap()).fails(4, "ticket.garbled");
    join(&ticket[..ticket.len() - 5]).fails(4, "ticket.garbled");
    // A slip of the hand does not use the ticket up.
    join(&ticket).exits(0);
}

#[test]
fn ticket_for_another_lab() {
    let (one, other) = (Owner::new(), Owner::new());
    let mut ticket: Ticket = one.ticket("1h").parse().unwrap();
    let target: Ticket = other.ticket("1h").parse().unwrap();
    ticket.orchestrator = target.orchestrator;
    ticket.addrs = target.addrs;
    join(&ticket.text()).fails(4, "ticket.other-lab");
}
