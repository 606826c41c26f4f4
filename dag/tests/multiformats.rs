//! Hashes and text forms against the vectors of multiformats and of BLAKE3.

use iptl_dag::block::{MIN_DIGEST_SIZE, check};
use iptl_dag::{Cid, Codec, HashError, Multihash};

use crate::vectors::{hex, json, text, vectors};

/// Bits of the shortest digest that is accepted.
const MIN_DIGEST_BITS: usize = MIN_DIGEST_SIZE * 8;

#[test]
fn published_multihashes_are_checked_where_they_prove_something() {
    let Some(file) = vectors("multiformats/multihash_test_cases.csv") else { return };
    let (mut rows, mut proven) = (0, 0);
    for line in text(&file).lines().skip(1) {
        let [function, bits, input, multihash] = line.split(',').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let hash = Multihash::from_bytes(&hex(multihash)).expect(line);
        assert_eq!(hash.to_bytes(), hex(multihash));
        let cid = Cid::new_v1(Codec::Raw.number(), hash);
        // The text itself, not what it would be as hexadecimal.
        let input = input.as_bytes();
        let expected = match function {
            "sha1" => Err(HashError::UnknownHash { cid, code: 0x11 }),
            _ if bits.parse::<usize>().expect("a number") < MIN_DIGEST_BITS => Err(HashError::Mismatch { cid }),
            _ => Ok(()),
        };
        assert_eq!(check(&cid, input), expected, "{line}");
        if expected.is_ok() {
            assert_eq!(check(&cid, &input[1..]), Err(HashError::Mismatch { cid }), "{line}");
            proven += 1;
        }
        rows += 1;
    }
    assert_eq!((rows, proven), (260, 160));
}

#[test]
fn published_blake3_digests_are_checked_at_every_length_that_a_cid_holds() {
    let Some(file) = vectors("blake3/test_vectors.json") else { return };
    let vectors = json(&file);
    let cases = vectors["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 35);
    for case in cases {
        let size = usize::try_from(case["input_len"].as_u64().expect("a number")).expect("small");
        let input: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        let digest = hex(case["hash"].as_str().expect("a text"));
        for length in [MIN_DIGEST_SIZE - 1, MIN_DIGEST_SIZE, 32, 33, 64] {
            let hash = Multihash::wrap(0x1e, &digest[..length]).expect("up to 64 bytes");
            let cid = Cid::new_v1(Codec::Raw.number(), hash);
            let expected = if length < MIN_DIGEST_SIZE { Err(HashError::Mismatch { cid }) } else { Ok(()) };
            assert_eq!(check(&cid, &input), expected, "{length} bytes of the digest of {size}");
        }
        assert_eq!(iptl_dag::block::digest(0x1e, &input).expect("known").digest(), &digest[..32]);
    }
}

#[test]
fn cids_that_other_software_gives_are_checked() {
    // "foo\n" under BLAKE3 with digests of 32 and 64 bytes, as Kubo names it.
    let rows = [
        "bafkr4icj3sdq34o6p7lapfgoxtset5om3lsxll72uz5cjnrkzmb6aoo3si",
        "bafkr4qcj3sdq34o6p7lapfgoxtset5om3lsxll72uz5cjnrkzmb6aoo3sknmbprpe27pbfrb67tonydgfot5ixuq4skiva76ppbgpjlzc4ua4",
    ];
    for text in rows {
        let cid: Cid = text.parse().expect("a CID");
        assert_eq!(check(&cid, b"foo\n"), Ok(()), "{text}");
        assert_eq!(check(&cid, b"foo"), Err(HashError::Mismatch { cid }), "{text}");
        assert_eq!(cid.to_string(), text);
    }
}

#[test]
fn every_function_of_the_table_is_checked() {
    // Digests of "abc" from the functions' own specifications, cut to 20 bytes.
    let rows = [
        (0x12, "ba7816bf8f01cfea414140de5dae2223b00361a3"),
        (0x13, "ddaf35a193617abacc417349ae20413112e6fa4e"),
        (0x14, "b751850b1a57168a5693cd924b6b096e08f62182"),
        (0x15, "ec01498288516fc926459f58e2c6ad8df9b473cb"),
        (0x16, "3a985da74fe225b2045c172d6bd390bd855f086e"),
        (0x17, "e642824c3f8cf24ad09234ee7d3c766fc9a3a516"),
        (0xb214, "384264f676f39536840523f284921cdc68b6846b"),
        (0xb220, "bddd813c634239723171ef3fee98579b94964e3b"),
        (0xb240, "ba80a53f981c4d0d6a2797b69f12f6e94c212f14"),
        (0x1e, "6437b3ac38465133ffb63b75273a8db548c55846"),
    ];
    for (code, digest) in rows {
        let cid = Cid::new_v1(Codec::Raw.number(), Multihash::wrap(code, &hex(digest)).expect("short"));
        assert_eq!(check(&cid, b"abc"), Ok(()), "{code:#x}");
        assert_eq!(check(&cid, b"abd"), Err(HashError::Mismatch { cid }), "{code:#x}");
    }
}

#[test]
fn published_text_forms_are_read_and_written() {
    let Some(folder) = vectors("multiformats") else { return };
    let rows = |name: &str| {
        let text = text(&folder.join(name));
        let pairs = text.lines().map(|line| {
            let (base, quoted) = line.split_once(',').expect("two columns");
            (base.trim().to_owned(), quoted.trim().trim_matches('"').replace("\\x00", "\0"))
        });
        pairs.collect::<Vec<_>>()
    };
    let mut count = 0;
    for file in ["multibase_basic.csv", "multibase_leading_zero.csv", "multibase_two_leading_zeros.csv"] {
        let rows = rows(file);
        let bytes = rows[0].1.as_bytes();
        for (name, text) in &rows[1..] {
            let (base, decoded) = cid::multibase::decode(text).unwrap_or_else(|e| panic!("{name} of {file}: {e}"));
            assert_eq!(decoded, bytes, "{name} of {file}");
            assert_eq!(&cid::multibase::encode(base, bytes), text, "{name} of {file}");
            count += 1;
        }
    }
    let rows = rows("multibase_case_insensitivity.csv");
    for (name, text) in &rows[1..] {
        let (_, decoded) = cid::multibase::decode(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(decoded, rows[0].1.as_bytes(), "{name}");
        count += 1;
    }
    assert_eq!(count, 81);
}
