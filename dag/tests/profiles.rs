//! The profiles of IPIP-499 against the vectors that it publishes, and directories about their limits against other
//! software.

use iptl_dag::unixfs::{DirectoryBuilder, FileBuilder, Profile, ProfileError};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

use crate::generate::{keystream, keystream_rng};

#[test]
fn published_vectors_are_met() {
    let v1 = Profile::UnixFsV1;
    let v0 = Profile::UnixFsV0;
    let hello = b"hello world".to_vec();
    // A keystream costs more than what is done with it: the shorter file is the beginning of the longer.
    let chunk_v1 = keystream("chunk-v1-seed", (1 << 20) + 1);
    let chunk_v0 = keystream("chunk-v0-seed", (256 << 10) + 1);
    let full_v0 = keystream("v0-seed", 174 * (256 << 10) + 1);
    let but_last = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    let rows = [
        (v1, hello.clone(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"),
        (v1, but_last(&chunk_v1), "bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta"),
        (v1, chunk_v1.clone(), "bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64"),
        (v0, hello, "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"),
        (v0, but_last(&chunk_v0), "QmWmRj3dFDZdb6ABvbmKhEL6TmPbAfBZ1t5BxsEyJrcZhE"),
        (v0, chunk_v0.clone(), "QmYyLxtzZyW22zpoVAtKANLRHpDjZtNeDjQdJrcQNWoRkJ"),
        (v0, but_last(&full_v0), "QmUbBALi174SnogsUzLpYbD4xPiBSFANF4iztWCsHbMKh2"),
        (v0, full_v0.clone(), "QmV81WL765sC8DXsRhE5fJv2rwhS4icHRaf3J9Zk5FdRnW"),
        (v0, Vec::new(), "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"),
    ];
    for (profile, bytes, cid) in rows {
        let (mut file, mut blocks) = (FileBuilder::with_profile(profile), Vec::new());
        file.push(&bytes, &mut blocks);
        assert_eq!(file.finish(&mut blocks).cid.to_string(), cid, "{} bytes", bytes.len());
    }
    for (profile, cid) in [
        (v1, "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"),
        (v0, "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"),
    ] {
        let entry = DirectoryBuilder::with_profile(profile).finish(&mut Vec::new()).expect("fits");
        assert_eq!(entry.cid.to_string(), cid);
    }
}

#[test]
#[ignore = "hashes two gigabytes: seconds in a release build, minutes in another"]
fn published_vectors_of_a_gigabyte_are_met() {
    let rows = [
        (1 << 30, "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm"),
        ((1 << 30) + 1, "bafybeibdsi225ugbkmpbdohnxioyab6jsqrmkts3twhpvfnzp77xtzpyhe"),
    ];
    for (size, cid) in rows {
        let mut keystream: ChaCha20Rng = keystream_rng("v1-2025-seed");
        let (mut file, mut blocks) = (FileBuilder::with_profile(Profile::UnixFsV1), Vec::new());
        let mut left = size;
        while left > 0 {
            let mut piece = vec![0; left.min(1 << 20)];
            keystream.fill_bytes(&mut piece);
            file.push(&piece, &mut blocks);
            left -= piece.len();
            blocks.clear();
        }
        assert_eq!(file.finish(&mut blocks).cid.to_string(), cid, "{size} bytes");
    }
}

#[test]
fn profiles_are_known_by_their_names() {
    for profile in Profile::ALL {
        assert_eq!(profile.to_string().parse(), Ok(profile));
    }
    let error = "kubo".parse::<Profile>().expect_err("no profile");
    assert_eq!(error, ProfileError { name: "kubo".into() });
    assert_eq!(error.to_string(), "there is no profile \"kubo\"; there are iptl, unixfs-v1-2025 and unixfs-v0-2015");
    assert_eq!(Profile::default(), Profile::Iptl);
}
