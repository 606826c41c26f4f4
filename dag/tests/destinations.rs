//! Destinations outside of the lab, as plans and owners write them.

use std::net::IpAddr;

use iptl_dag::model::destination::{Destination, DestinationError, Host, Protocol, is_public};

#[test]
fn destination_has_one_spelling() {
    for text in ["192.0.2.7:443/tcp", "bootstrap.example:4001/udp", "[2001:db8::7]:443/tcp", "127.0.0.1:1/tcp"] {
        let read: Destination = text.parse().expect(text);
        assert_eq!(read.to_string(), text);
    }
    let read: Destination = "a-1.example:65535/udp".parse().expect("it is one");
    assert_eq!(read.host, Host::Name("a-1.example".to_owned()));
    assert_eq!((read.port, read.protocol), (65_535, Protocol::Udp));
}

#[test]
fn what_is_no_destination_is_refused_with_the_reason() {
    let form =
        ["", "192.0.2.7", "192.0.2.7:443", "192.0.2.7:443/sctp", "443/tcp", "[2001:DB8::7]:443/tcp", "[::1:1/tcp"];
    let port = ["192.0.2.7:0/tcp", "192.0.2.7:+1/tcp", "192.0.2.7:65536/tcp", "192.0.2.7:080/tcp", "192.0.2.7:/tcp"];
    // Among them spellings of addresses that resolvers take.
    let name = [
        "host:1/tcp",
        "Host.example:1/tcp",
        "a..example:1/tcp",
        "-a.example:1/tcp",
        "127.1:1/tcp",
        "0x7f.0x1:1/tcp",
        "127.0.0.01:1/tcp",
        "2130706433:1/tcp",
        "*.example:1/tcp",
        "a.example.:1/tcp",
        ":1/tcp",
        "2001:db8::7:443/tcp",
    ];
    let own = ["localhost:1/tcp", "a.localhost:1/tcp", "7.node.lab:1/tcp"];
    for (texts, error) in [
        (&form[..], DestinationError::Form),
        (&port, DestinationError::Port),
        (&name, DestinationError::Name),
        (&own, DestinationError::OwnName),
    ] {
        for text in texts {
            assert_eq!(text.parse::<Destination>(), Err(error.clone()), "{text}");
        }
    }
    for text in ["0.0.0.0:1/tcp", "224.0.0.1:1/udp", "255.255.255.255:1/udp", "[::]:1/tcp", "[ff02::1]:1/udp"] {
        assert!(matches!(text.parse::<Destination>(), Err(DestinationError::Addr(_))), "{text}");
    }
    assert!(matches!("[::ffff:10.0.0.1]:1/tcp".parse::<Destination>(), Err(DestinationError::Addr(_))));
}

#[test]
fn addresses_of_the_owners_network_are_not_public() {
    let own = [
        "127.0.0.1",
        "127.9.9.9",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "0.1.2.3",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "198.19.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
        "192.88.99.1",
        "::",
        "::1",
        "::ffff:8.8.8.8",
        "::ffff:10.0.0.1",
        "::10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd69:7074:6c00::a00:1",
        "ff02::1",
        "2001::1",
        "2001:db8::1",
        "2002:a00:1::1",
        "100::1",
        "3fff::1",
    ];
    for addr in own {
        assert!(!is_public(addr.parse::<IpAddr>().expect(addr)), "{addr}");
    }
    for addr in ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "2a00:1450::1"] {
        assert!(is_public(addr.parse::<IpAddr>().expect(addr)), "{addr}");
    }
}
