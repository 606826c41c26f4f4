//! Makes layers, images and archives, and takes them apart, with other people's code where there is some.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use iptl_artifacts::{BlobStore, MemStore};
use iptl_artifacts_oci::{
    Digest, ImportError, ImportOptions, Imported, Limits, import_archive, import_layout_dir, read_image, walk_limits,
    write_docker_archive,
};
use iptl_dag::Cid;
use iptl_dag::walk::Walk;
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Packs bytes.
pub(crate) fn packed(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest),
    }
}

/// A tar in the making.
pub(crate) struct Tar(pub(crate) tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    /// Adds an entry whose name and target are written as they are, whatever they are; each fits into its field.
    pub(crate) fn raw(mut self, name: &str, kind: EntryType, target: &str, content: &[u8]) -> Tar {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, content: impl AsRef<[u8]>) -> Tar {
        self.raw(name, EntryType::Regular, "", content.as_ref())
    }

    pub(crate) fn dir(self, name: &str) -> Tar {
        self.raw(name, EntryType::Directory, "", &[])
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Tar {
        self.raw(name, EntryType::Symlink, target, &[])
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Tar {
        self.raw(name, EntryType::Link, target, &[])
    }

    /// Adds records of an extended header for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Bytes that look like a program: no two stretches are equal, and the same seed gives the same.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut reader = blake3::Hasher::new();
    reader.update(&seed.to_le_bytes());
    reader.finalize_xof().fill(&mut bytes);
    bytes
}

/// The config of an image with these layers.
pub(crate) fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    // Spaces and the order of keys are its builder's, and have to come back.
    let config = json!({
        "os": "linux",
        "architecture": "amd64",
        "config": {"Entrypoint": ["/bin/thing"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "a test  with spaces"}],
    });
    format!(" {config:#}\n").into_bytes()
}

/// The files of an OCI layout by name.
pub(crate) fn layout(layers: &[Vec<u8>], packing: Packing) -> BTreeMap<String, Vec<u8>> {
    let config = config(layers);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| packed(layer, packing)).collect();
    let manifest = manifest(&config, &blobs, packing);
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(&manifest, MANIFEST)]});
    let mut files = BTreeMap::new();
    for bytes in blobs.iter().chain([&config, &manifest]) {
        files.insert(blob_name(bytes), bytes.clone());
    }
    files.insert("index.json".into(), index.to_string().into_bytes());
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The manifest of an image.
pub(crate) fn manifest(config: &[u8], blobs: &[Vec<u8>], packing: Packing) -> Vec<u8> {
    let media_type = match packing {
        Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
        Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let layers: Vec<Value> = blobs.iter().map(|blob| descriptor(blob, media_type)).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

pub(crate) fn descriptor(bytes: &[u8], media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

pub(crate) fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

/// The files of what `docker save` wrote for ten years: layers by an ID that is no digest, one a link to another.
pub(crate) fn docker_save(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = config(layers);
    let mut tar = Tar::new();
    let mut names: Vec<String> = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let name = format!("{i:064x}/layer.tar");
        tar = tar.dir(&format!("{i:064x}/")).file(&format!("{i:064x}/VERSION"), "1.0");
        tar = match layers[..i].iter().position(|known| known == layer) {
            Some(first) => tar.symlink(&name, &format!("../{first:064x}/layer.tar")),
            None => tar.file(&name, layer),
        };
        names.push(name);
    }
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    tar.file(&config_name, &config).file("manifest.json", manifest.to_string()).end()
}

/// The files of an archive.
pub(crate) fn tar_files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if entry.header().entry_type() == EntryType::Regular {
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), content);
        }
    }
    files
}

/// Files as a tar.
pub(crate) fn tar_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).end()
}

/// Writes files to a directory.
pub(crate) fn write_files(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Imports an archive that is in memory.
pub(crate) async fn try_import(
    store: &dyn BlobStore,
    archive: &[u8],
    options: ImportOptions,
) -> Result<Imported, ImportError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    import_archive(store, file.path(), options).await
}

/// Imports an image of these layers.
pub(crate) async fn import(store: &dyn BlobStore, layers: &[Vec<u8>], packing: Packing) -> Imported {
    try_import(store, &tar_of(&layout(layers, packing)), ImportOptions::default()).await.unwrap()
}

/// Tries to import an image of one layer.
pub(crate) async fn try_layer(layer: Vec<u8>) -> Result<Imported, ImportError> {
    try_import(&MemStore::new(), &tar_of(&layout(&[layer], Packing::Plain)), ImportOptions::default()).await
}

/// Imports files in a directory.
pub(crate) async fn import_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Imported, ImportError> {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), files);
    import_layout_dir(&MemStore::new(), dir.path(), ImportOptions::default()).await
}

/// Rebuilds an image.
pub(crate) async fn rebuilt(store: &dyn BlobStore, image: &Cid, name: Option<&str>) -> Vec<u8> {
    let mut archive = std::io::Cursor::new(Vec::new());
    let written = write_docker_archive(store, image, name, &Limits::default(), &mut archive).await.unwrap();
    assert_eq!(written.bytes, archive.get_ref().len() as u64);
    archive.into_inner()
}

/// Imports an image of one layer, rebuilds it, and returns the layer that comes back.
pub(crate) async fn round_trip(layer: &[u8]) -> Vec<u8> {
    let store = MemStore::new();
    let imported = import(&store, &[layer.to_vec()], Packing::Plain).await;
    let mut files = tar_files(&rebuilt(&store, &imported.image, None).await);
    files.remove(&blob_name(layer)).unwrap_or_else(|| panic!("there is no layer of the same digest"))
}

/// Checks that a layer comes back as it was.
pub(crate) async fn assert_round_trip(layer: &[u8]) {
    let back = round_trip(layer).await;
    assert!(back == layer, "{} bytes came back for {}", back.len(), layer.len());
}

/// Every block below a root, by a walk such as the one that fetches it: its size by its CID.
pub(crate) async fn blocks(store: &dyn BlobStore, root: &Cid) -> BTreeMap<Cid, usize> {
    let image = read_image(store, root).await.unwrap();
    let mut walk = Walk::new([*root], walk_limits(&image)).unwrap();
    let mut blocks = BTreeMap::new();
    while !walk.is_done() {
        for cid in walk.wants(100) {
            let block = iptl_artifacts::read_block(store, &cid).await.unwrap().expect("the whole DAG is stored");
            blocks.insert(cid, block.data().len());
            walk.accept(&block).unwrap();
        }
    }
    blocks
}
