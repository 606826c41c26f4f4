//! Entries that no image should have: each is refused at import, with the layer, the path and the reason.

use iptl_artifacts_oci::{ImportError, TarError};
use tar::EntryType;

use crate::make::{Tar, noise, try_layer};

/// Imports a layer that is refused, and returns why.
async fn refusal(layer: Vec<u8>) -> TarError {
    match try_layer(layer).await {
        Err(ImportError::Layer { layer: 1, source }) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[tokio::test]
async fn path_that_leads_up_is_refused() {
    for name in ["../evil", "a/../../evil", "a/..", "..", "/../evil", "a/../b"] {
        let error = refusal(Tar::new().file(name, "x").end()).await;
        assert!(matches!(error, TarError::LeadsUp { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn path_that_leads_up_in_an_extended_header_is_refused() {
    let tar = Tar::new().pax(&[("path", b"a/../../evil")]).file("harmless", "x");
    assert!(matches!(refusal(tar.end()).await, TarError::LeadsUp { .. }));
    let tar = Tar::new().raw("././@LongLink", EntryType::GNULongName, "", b"../evil\0").file("harmless", "x");
    assert!(matches!(refusal(tar.end()).await, TarError::LeadsUp { .. }));
}

#[tokio::test]
async fn hard_link_that_leads_up_is_refused() {
    let error = refusal(Tar::new().link("a", "../../etc/passwd").end()).await;
    assert!(matches!(error, TarError::LeadsUp { .. }), "{error}");
    let error = refusal(Tar::new().link("a", "/").end()).await;
    assert!(matches!(error, TarError::Path { .. }), "{error}");
}

#[tokio::test]
async fn device_nodes_are_refused() {
    for kind in [EntryType::Char, EntryType::Block] {
        let error = refusal(Tar::new().dir("dev").raw("dev/sda", kind, "", &[]).end()).await;
        assert!(matches!(error, TarError::Device { .. }), "{error}");
        assert!(error.to_string().starts_with("\"dev/sda\" is a device node"), "{error}");
    }
}

#[tokio::test]
async fn fifos_are_refused() {
    let error = refusal(Tar::new().raw("run/pipe", EntryType::Fifo, "", &[]).end()).await;
    assert!(matches!(error, TarError::Fifo { .. }), "{error}");
}

#[tokio::test]
async fn sparse_files_are_refused() {
    let error = refusal(Tar::new().raw("holes", EntryType::GNUSparse, "", &[]).end()).await;
    assert!(matches!(error, TarError::Sparse { .. }), "{error}");
    let tar = Tar::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]).file("holes", "x");
    let error = refusal(tar.end()).await;
    assert!(matches!(error, TarError::Sparse { .. }), "{error}");
}

#[tokio::test]
async fn kinds_that_no_engine_knows_are_refused() {
    for kind in [b'7', b'V', b'M', b'X', b'Z', 0xff] {
        let error = refusal(Tar::new().raw("odd", EntryType::new(kind), "", &[]).end()).await;
        assert!(matches!(error, TarError::Kind { .. }), "{kind}: {error}");
    }
}

#[tokio::test]
async fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", ".wh..", "a/.wh...", ".wh..."] {
        let error = refusal(Tar::new().file(name, "").end()).await;
        assert!(matches!(error, TarError::Whiteout { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn paths_that_linux_does_not_take_are_refused() {
    let rows: [(&str, Vec<u8>); 4] = [
        ("long", b"a/".repeat(2049)),
        ("long name", [b"a".repeat(256).as_slice(), b"/b"].concat()),
        ("deep", b"a/".repeat(300)),
        ("empty", b"/".to_vec()),
    ];
    for (what, path) in rows {
        let error = refusal(Tar::new().pax(&[("path", &path)]).file("x", "x").end()).await;
        assert!(matches!(error, TarError::Path { .. }), "{what}: {error}");
        assert!(error.to_string().len() < 500, "a message of {} bytes", error.to_string().len());
    }
    let error = refusal(Tar::new().pax(&[("path", b"a\0b")]).file("x", "x").end()).await;
    assert!(matches!(error, TarError::Header { .. }), "{error}");
    let error = refusal(Tar::new().symlink("x", "").end()).await;
    assert!(matches!(error, TarError::Path { .. }), "{error}");
}

#[tokio::test]
async fn control_characters_of_a_path_do_not_reach_the_terminal() {
    let error = refusal(Tar::new().file("../\x1b[2J\nevil", "x").end()).await;
    assert!(!error.to_string().contains(['\x1b', '\n']), "{error:?}");
}

#[tokio::test]
async fn broken_headers_are_refused() {
    let good = Tar::new().file("f", "content").end();
    let mut wrong_sum = good.clone();
    wrong_sum[0] = b'g';
    let mut no_size = good.clone();
    no_size[124..136].copy_from_slice(b"not a number");
    let mut huge = good.clone();
    // More than 63 bits.
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let mut negative = good.clone();
    negative[124..136].copy_from_slice(&[0xff; 12]);
    for (what, mut tar) in [("sum", wrong_sum), ("size", no_size), ("huge", huge), ("negative", negative)] {
        if what != "sum" {
            set_sum(&mut tar);
        }
        let error = refusal(tar).await;
        assert!(matches!(error, TarError::Header { offset: 0, .. }), "{what}: {error}");
    }
    let zero_block_within = [&good[..1024], &[0; 512], &good].concat();
    let error = refusal(zero_block_within).await;
    assert!(matches!(error, TarError::Header { offset: 1536, .. }), "{error}");
    let error = refusal(noise(1, 5000)).await;
    assert!(matches!(error, TarError::Header { offset: 0, .. }), "{error}");
}

fn set_sum(tar: &mut [u8]) {
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[tokio::test]
async fn garbled_extended_headers_are_refused() {
    let rows: [&[u8]; 7] = [
        b"no length",
        b"99 path=short\n",
        b"5 a=b\n",
        b"8 path=x",
        b"6 =a b\n",
        b"-1 a=b\n",
        b"18446744073709551615 a=b\n",
    ];
    for records in rows {
        let tar = Tar::new().raw("h", EntryType::XHeader, "", records).file("f", "x");
        let error = refusal(tar.end()).await;
        assert!(matches!(error, TarError::Header { .. }), "{}: {error}", String::from_utf8_lossy(records));
    }
    let tar = Tar::new().pax(&[("size", b"-5")]).file("f", "x");
    assert!(matches!(refusal(tar.end()).await, TarError::Header { .. }));
    let tar = Tar::new().pax(&[("mtime", b"tomorrow")]).file("f", "x");
    assert!(matches!(refusal(tar.end()).await, TarError::Header { .. }));
}

#[tokio::test]
async fn endless_extended_headers_are_refused() {
    let large = Tar::new().raw("h", EntryType::XHeader, "", &vec![b'x'; (1 << 20) + 1]).file("f", "x");
    assert!(matches!(refusal(large.end()).await, TarError::Extension { .. }));
    let mut many = Tar::new();
    for _ in 0..3000 {
        many = many.raw("h", EntryType::XHeader, "", b"20 comment=abcdefgh\n");
    }
    assert!(matches!(refusal(many.file("f", "x").end()).await, TarError::Extension { .. }));
}

#[tokio::test]
async fn archive_that_holds_no_end_of_a_header_is_refused() {
    let good = Tar::new().pax(&[("comment", b"x")]).file("f", "x").end();
    for length in [100, 512, 700, 1024, 1536] {
        let error = refusal(good[..length].to_vec()).await;
        assert!(matches!(error, TarError::Truncated { .. }), "{length}: {error}");
    }
}
