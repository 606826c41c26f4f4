//! Heads are read and changed as the RFCs say, whatever the bytes.

use std::net::IpAddr;

use iptl_labnet::{Fragment, Header, IcmpError, IpError, Nat, NatConfig, Transport, embedded, fragments};

use crate::bytes::{ICMP, TCP, UDP, assert_sound, at, packet, seal, udp, wrap};
use crate::rng::Rng;

#[test]
fn heads_of_both_families_are_read() {
    let four = Header::parse(&udp("10.0.0.1:5", "10.0.0.2:6")).unwrap();
    assert_eq!((four.src, four.dst), (at("10.0.0.1:5").ip(), at("10.0.0.2:6").ip()));
    assert_eq!(four.transport, Transport::Udp { src: 5, dst: 6 });
    assert_eq!((four.len, four.hop_limit, four.dont_fragment, four.fragment), (33, 64, false, None));
    let six = Header::parse(&packet(TCP, at("[fd00::1]:5"), at("[fd00::2]:6"), 18, b"")).unwrap();
    assert_eq!(six.transport, Transport::Tcp { src: 5, dst: 6, flags: 18 });
    assert_eq!((six.len, six.dont_fragment), (60, true));
}

#[test]
fn extension_heads_are_walked_over() {
    let datagram = [0, 5, 0, 6, 0, 8, 0, 0];
    let (src, dst) = (at("[fd00::1]:0").ip(), at("[fd00::2]:0").ip());
    let options = [[UDP, 0, 1, 4, 0, 0, 0, 0].as_slice(), &datagram].concat();
    let header = Header::parse(&wrap(src, dst, 60, &options)).unwrap();
    assert_eq!((header.transport_at, header.transport), (48, Transport::Udp { src: 5, dst: 6 }));

    let first = [[UDP, 0, 0, 1, 0, 0, 0, 9].as_slice(), &datagram].concat();
    let header = Header::parse(&wrap(src, dst, 44, &first)).unwrap();
    assert_eq!(header.fragment, Some(Fragment { id: 9, offset: 0, more: true }));
    assert_eq!(header.transport, Transport::Udp { src: 5, dst: 6 });

    let later = [[UDP, 0, 0, 8, 0, 0, 0, 9].as_slice(), &datagram].concat();
    let header = Header::parse(&wrap(src, dst, 44, &later)).unwrap();
    assert_eq!(header.fragment, Some(Fragment { id: 9, offset: 8, more: false }));
    assert_eq!((header.protocol, header.transport), (UDP, Transport::Other));
}

#[test]
fn bytes_that_are_no_packet_are_refused_with_the_reason() {
    let good = udp("10.0.0.1:5", "10.0.0.2:6");
    let malformed = |size| Err(IpError::Malformed { size });
    assert_eq!(Header::parse(&[]), malformed(0));
    assert_eq!(Header::parse(&[0x50; 40]), Err(IpError::Version { version: 5 }));
    assert_eq!(Header::parse(&good[..32]), malformed(32), "cut off");
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        seal(&mut bytes);
        Header::parse(&bytes)
    };
    assert_eq!(changed(|bytes| bytes[0] = 0x44), malformed(33), "a head of 16 bytes");
    assert_eq!(changed(|bytes| bytes[3] = 19), malformed(33), "shorter than its head");
    assert_eq!(changed(|bytes| bytes[3] = 24), malformed(33), "no room for ports");
    assert_eq!(changed(|bytes| bytes[6..8].copy_from_slice(&[0x1f, 0xff])), malformed(33), "beyond 64 KiB");
    let mut wrong = good.clone();
    wrong[8] ^= 1;
    assert_eq!(Header::parse(&wrong), Err(IpError::Checksum));
}

#[test]
fn any_bytes_are_read_quoted_cut_and_translated_without_a_panic() {
    let seeds = [
        udp("10.0.0.1:5", "10.0.0.2:6"),
        packet(TCP, at("[fd00::1]:5"), at("[fd00::2]:6"), 2, b"hello"),
        packet(ICMP, at("10.0.0.1:5"), at("10.0.0.2:6"), 0, b"hello"),
    ];
    let mut rng = Rng(5);
    let mut nat = Nat::new(NatConfig::default(), Some([5, 5, 5, 5].into()), 1);
    let mut read = 0;
    for i in 0..60_000 {
        let mut bytes = seeds[rng.below(seeds.len())].clone();
        if rng.below(4) == 0 {
            let mut error = Vec::new();
            IcmpError::HostUnreachable.write(&bytes, "10.0.0.9".parse().unwrap(), &mut error);
            if !error.is_empty() {
                bytes = error;
            }
        }
        for _ in 0..rng.below(6) {
            let at = rng.below(bytes.len());
            bytes[at] = rng.next().to_le_bytes()[0];
        }
        bytes.truncate(bytes.len() - rng.below(3) * rng.below(bytes.len() / 3));
        if bytes.len() >= 20 && bytes[0] == 0x45 && rng.below(4) > 0 {
            seal(&mut bytes);
        }
        let _ = Header::parse(&bytes).map(|_| read += 1);
        for from in ["10.0.0.9", "fd00::9"] {
            let mut error = Vec::new();
            if (IcmpError::TooBig { mtu: 1280 }).write(&bytes, from.parse().unwrap(), &mut error) {
                assert_sound(&error);
            }
        }
        let Ok(mut header) = Header::parse(&bytes) else { continue };
        let _ = embedded(&header);
        if let Some(parts) = fragments(&bytes, &header, rng.below(80)) {
            assert!(parts.iter().all(|part| Header::parse(part).is_ok()), "schedule {i}");
        }
        let len = bytes.len();
        let _ = nat.outbound(i, &mut bytes, &mut header);
        if let Ok(mut header) = Header::parse(&bytes) {
            let _ = nat.inbound(i, &mut bytes, &mut header);
        }
        assert_eq!(bytes.len(), len);
    }
    assert!(read > 15_000, "enough of them are packets: {read}");
}

#[test]
fn errors_quote_the_packet_and_are_sound() {
    let router4: IpAddr = "192.0.2.1".parse().unwrap();
    let router6: IpAddr = "2001:db8::1".parse().unwrap();
    let big4 = packet(UDP, at("10.0.0.1:5"), at("10.0.0.2:6"), 0, &[1; 2_000]);
    let big6 = packet(UDP, at("[fd00::1]:5"), at("[fd00::2]:6"), 0, &[1; 2_000]);
    // Kind, code and last two bytes of the second word: for IPv4, for IPv6.
    let rows = [
        (IcmpError::HostUnreachable, [3, 1, 0, 0], [1, 0, 0, 0]),
        (IcmpError::Prohibited, [3, 13, 0, 0], [1, 1, 0, 0]),
        (IcmpError::HopLimit, [11, 0, 0, 0], [3, 0, 0, 0]),
        (IcmpError::TooBig { mtu: 1280 }, [3, 4, 5, 0], [2, 0, 5, 0]),
    ];
    for (error, four, six) in rows {
        for (packet, router, head, expected, len) in [(&big4, router4, 20, four, 576), (&big6, router6, 40, six, 1280)]
        {
            let mut bytes = Vec::new();
            assert!(error.write(packet, router, &mut bytes));
            assert_sound(&bytes);
            assert_eq!(bytes.len(), len);
            assert_eq!([bytes[head], bytes[head + 1], bytes[head + 6], bytes[head + 7]], expected, "{error:?}");
            assert_eq!(bytes[head + 8..], packet[..len - head - 8]);
            let about_error = IcmpError::HopLimit.write(&bytes, router, &mut Vec::new());
            assert!(!about_error, "no error about an error");
        }
    }
    assert!(!IcmpError::HopLimit.write(&udp("10.0.0.1:5", "224.0.0.251:5353"), router4, &mut Vec::new()));
}
