//! What people read when something is wrong: each message as it is shown, with its causes.

use std::error::Error;
use std::io;

use iptl_artifacts_oci::{
    BinaryError, BuildError, Digest, ImportError, LimitError, PageError, ReadError, RebuildError, TarError, UnpackError,
};
use iptl_dag::{Block, Codec};

#[test]
fn messages_say_what_is_wrong_and_what_to_do() {
    let (one, two) = (Digest([0x11; 32]), Digest([0x22; 32]));
    let (ones, twos) = ("11".repeat(32), "22".repeat(32));
    let cid = *Block::new(Codec::Raw, "a block").cid();
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let rows: Vec<(Box<dyn Error>, String)> = vec![
        (
            ImportError::Read { path: "image.tar".into(), source: denied() }.into(),
            "reading image.tar: permission denied".into(),
        ),
        (
            ImportError::NotAnImage.into(),
            "there is no image in it: no manifest.json as docker save writes, no index.json as OCI tools write; for a \
             plain directory of files use --rootfs"
                .into(),
        ),
        (
            ImportError::Digest { name: "blobs/x".into(), stated: one, actual: two }.into(),
            format!("blobs/x should hash to sha256:{ones} and hashes to sha256:{twos}: it is damaged, or was changed"),
        ),
        (
            ImportError::Layer { layer: 2, source: TarError::TooManyEntries { limit: 10 } }.into(),
            "layer 2 cannot be taken: too many files: more than 10".into(),
        ),
        (
            ImportError::Bomb { layer: 3 }.into(),
            "layer 3 unpacks to over 250 times its size, as only a bomb does; if it is meant, save the image \
             uncompressed"
                .into(),
        ),
        (
            ImportError::Missing { name: "blobs/x".into() }.into(),
            "blobs/x is named and not there: the image is incomplete, or of another platform than was saved".into(),
        ),
        (
            ImportError::Ambiguous { images: "a:1, b:1".into() }.into(),
            "several images could be meant, say which by name or platform: a:1, b:1".into(),
        ),
        (
            ImportError::Page { layer: 1, source: PageError::TooMany }.into(),
            "layer 1 cannot be kept: its names and attributes take more than 16384 pages".into(),
        ),
        (
            BuildError::Device { path: "root/dev/sda".into() }.into(),
            "root/dev/sda is a device node, which containers of a lab do not get; remove it".into(),
        ),
        (
            BuildError::Binary(BinaryError::Script { path: "run.sh".into() }).into(),
            "run.sh is a script, which needs its interpreter beside it; put both into a directory and use --rootfs"
                .into(),
        ),
        (
            BinaryError::Dynamic {
                path: "node".into(),
                interpreter: "/lib64/ld.so".into(),
                needed: vec!["liba.so".into(), "libb.so".into()],
            }
            .into(),
            "node is dynamically linked: it needs /lib64/ld.so and liba.so, libb.so; add --with-libs to pack them, or \
             link it statically (Rust: --target x86_64-unknown-linux-musl; Go: CGO_ENABLED=0)"
                .into(),
        ),
        (
            BinaryError::MissingLibrary { library: "liba.so".into(), by: "node".into() }.into(),
            "liba.so, which node needs, is in none of the directories where libraries are looked for".into(),
        ),
        (
            ReadError::Missing { cid }.into(),
            format!("block {cid} of the image is not in the store; fetch the image first"),
        ),
        (
            RebuildError::Read(ReadError::Limit(LimitError::Size { size: 1 << 40, limit: 1 << 30 })).into(),
            "the image says that it unpacks to 1099511627776 bytes, and 1073741824 are allowed here".into(),
        ),
        (
            ReadError::LayerSize { layer: 1, stated: 5, longer: true }.into(),
            "layer 1 says that it has 5 bytes, and it has more".into(),
        ),
        (
            RebuildError::Name { name: "A b".into() }.into(),
            r#""A b" cannot be the name of an image; names look like name:tag, in lower case"#.into(),
        ),
        (UnpackError::Exists { path: "dest".into() }.into(), "dest exists already, and is no empty directory".into()),
        (UnpackError::Kernel.into(), "unpacking safely needs openat2, which Linux has since 5.6".into()),
    ];
    for (error, expected) in rows {
        let mut shown = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            shown += &format!(": {cause}");
            source = cause.source();
        }
        assert_eq!(shown, expected);
    }
}
