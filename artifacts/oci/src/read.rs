//! Images out of the store: nodes checked against each other, and layers as the tars that they were.
//!
//! Nothing that is read is trusted: what an image says about its size is held against the limits before anything else is
//! read, and what comes is held against what it said.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use iptl_artifacts::export::{ExportError, read_file};
use iptl_artifacts::{BlobStore, StoreError, read_block};
use iptl_dag::model::{self, Image, Layer, LayerPage, Node};
use iptl_dag::unixfs::{FileReader, UnixFsError};
use iptl_dag::{Block, Cid, DecodeError, HashError, Multihash};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::import::Config;
use crate::limits::{LimitError, Limits, MAX_JSON_SIZE, check_declared};
use crate::pages::{PageError, Piece, Pieces};
use crate::tar::scan::{Scanner, Sink, TarError};

/// Blocks that are read from the store together.
const READ_AHEAD: usize = 16;

/// Blocks that are kept for what comes next.
const MAX_KEPT: usize = 64;

/// Pieces that wait for whoever takes them.
const PIECES_AHEAD: usize = 16;

/// Small pieces are put together to one of this size in bytes.
const PIECE: usize = 128 << 10;

/// Contents of this size in bytes are passed on as they are.
const LARGE: usize = 16 << 10;

/// Why an image cannot be read out of the store.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A block is not there.
    #[error("block {cid} of the image is not in the store; fetch the image first")]
    Missing {
        /// The block.
        cid: Cid,
    },
    /// A block is not what its place asks for.
    #[error("{cid} is no part of an image")]
    Node {
        /// The block.
        cid: Cid,
        /// What the decoder met.
        #[source]
        source: DecodeError,
    },
    /// A file of a layer cannot be read.
    #[error("file {cid} of layer {layer} cannot be read")]
    File {
        /// Which layer, from 1.
        layer: usize,
        /// Block in question.
        cid: Cid,
        /// What is wrong with it.
        #[source]
        source: Box<UnixFsError>,
    },
    /// The image is more than is allowed.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The image and its parts contradict each other.
    #[error("the image contradicts itself: {reason}")]
    Contradiction {
        /// What does not agree.
        reason: String,
    },
    /// The config cannot be read.
    #[error("the config of the image cannot be read")]
    Config {
        /// The cause.
        #[source]
        source: Box<ExportError>,
    },
    /// A page cannot be read.
    #[error("layer {layer} cannot be put together")]
    Page {
        /// Which layer, from 1.
        layer: usize,
        /// What is wrong with it.
        #[source]
        source: PageError,
    },
    /// A layer is longer or shorter than it says.
    #[error("layer {layer} says that it has {stated} bytes, and it has {}", if *longer { "more" } else { "fewer" })]
    LayerSize {
        /// Which layer, from 1.
        layer: usize,
        /// Size that is stated.
        stated: u64,
        /// Whether it is longer.
        longer: bool,
    },
    /// A layer is not the tar that it says.
    #[error("layer {layer} should be {stated} and is {actual}")]
    DiffId {
        /// Which layer, from 1.
        layer: usize,
        /// Diff ID that is stated.
        stated: Digest,
        /// Diff ID that it has.
        actual: Digest,
    },
    /// A layer holds what an import would have refused.
    #[error("layer {layer} cannot be taken")]
    Tar {
        /// Which layer, from 1.
        layer: usize,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads the node of an image. Cancel safe.
///
/// What it says is not checked yet; see [`check_declared`] before anything below it is fetched.
pub async fn read_image(store: &dyn BlobStore, image: &Cid) -> Result<Image, ReadError> {
    node(store, image).await
}

/// Reads the config of an image, and checks that it is the one that the image names. Cancel safe.
pub async fn read_config(store: &dyn BlobStore, image: &Image) -> Result<Bytes, ReadError> {
    let config = read_file(store, &image.config, MAX_JSON_SIZE).await;
    let config = config.map_err(|source| match source {
        ExportError::Missing { cid } => ReadError::Missing { cid },
        source => ReadError::Config { source: Box::new(source) },
    })?;
    let (stated, actual) = (Digest(image.config_digest), Digest::of(&config));
    if stated != actual {
        return Err(ReadError::Contradiction { reason: format!("its config is {actual} and should be {stated}") });
    }
    Ok(config)
}

/// An image whose parts agree.
pub(crate) struct OpenImage {
    pub(crate) image: Image,
    pub(crate) config: Bytes,
    pub(crate) layers: Vec<Layer>,
}

/// Reads all of an image but its pages and files.
pub(crate) async fn open(store: &dyn BlobStore, cid: &Cid, limits: &Limits) -> Result<OpenImage, ReadError> {
    let image = read_image(store, cid).await?;
    check_declared(&image, limits)?;
    let config = read_config(store, &image).await?;
    let contradiction = |reason: String| ReadError::Contradiction { reason };
    let parsed = Config::parse(&config).map_err(|reason| contradiction(format!("its config: {reason}")))?;
    if parsed.architecture != image.architecture || parsed.os() != image.os {
        return Err(contradiction("its config names another platform".into()));
    }
    let diff_ids = parsed.diff_ids().map_err(|error| contradiction(error.to_string()))?;
    let mut layers: Vec<Layer> = Vec::with_capacity(image.layers.len());
    for cid in &image.layers {
        layers.push(node(store, cid).await?);
    }
    let sum = |of: fn(&Layer) -> u64| layers.iter().map(of).try_fold(0, u64::checked_add);
    if sum(|layer| layer.size) != Some(image.size) || sum(|layer| layer.entries) != Some(image.entries) {
        return Err(contradiction("its layers do not add up to its size".into()));
    }
    if !layers.iter().map(|layer| Digest(layer.diff_id)).eq(diff_ids) {
        return Err(contradiction("its config names other layers".into()));
    }
    Ok(OpenImage { image, config, layers })
}

async fn node<T: TryFrom<Node, Error = DecodeError>>(store: &dyn BlobStore, cid: &Cid) -> Result<T, ReadError> {
    let block = read_block(store, cid).await?.ok_or(ReadError::Missing { cid: *cid })?;
    model::from_bytes(block.data()).map_err(|source| ReadError::Node { cid: *cid, source })
}

/// What became of a layer's tar.
pub(crate) enum Taken {
    /// It was read to its end.
    Whole,
    /// Whoever took it had enough, and knows why.
    Stopped,
}

/// Makes the tar of a layer, piece by piece.
pub(crate) async fn stream_layer(
    store: &dyn BlobStore,
    number: usize,
    layer: &Layer,
    pieces: mpsc::Sender<Bytes>,
) -> Result<Taken, ReadError> {
    let emit = Emit { pieces, buffer: BytesMut::new(), layer: number, stated: layer.size, sent: 0 };
    let mut stream = LayerStream {
        emit,
        files: Fetch { store, ahead: BTreeMap::new() },
        small: layer.small.map(|cid| SmallFiles {
            blocks: Fetch { store, ahead: BTreeMap::new() },
            reader: FileReader::new(cid),
            left: Bytes::new(),
        }),
    };
    let mut pages = Fetch { store, ahead: BTreeMap::new() };
    for (i, cid) in layer.pages.iter().enumerate() {
        let block = pages.block(cid, layer.pages[i + 1..].iter()).await?;
        let page: LayerPage =
            model::from_bytes(block.data()).map_err(|source| ReadError::Node { cid: *cid, source })?;
        match stream.page(&page).await {
            Ok(()) => {}
            Err(Stop::Gone) => return Ok(Taken::Stopped),
            Err(Stop::Error(error)) => return Err(error),
        }
    }
    match stream.emit.finish().await {
        Ok(()) => Ok(Taken::Whole),
        Err(Stop::Gone) => Ok(Taken::Stopped),
        Err(Stop::Error(error)) => Err(error),
    }
}

enum Stop {
    /// Nobody takes pieces any more.
    Gone,
    Error(ReadError),
}

impl<E: Into<ReadError>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Error(error.into())
    }
}

struct LayerStream<'a> {
    emit: Emit,
    files: Fetch<'a>,
    small: Option<SmallFiles<'a>>,
}

impl LayerStream<'_> {
    async fn page(&mut self, page: &LayerPage) -> Result<(), Stop> {
        let layer = self.emit.layer;
        let mut pieces = Pieces::new(page);
        while let Some(piece) = pieces.next().map_err(|source| ReadError::Page { layer, source })? {
            match piece {
                Piece::Block(block) => self.emit.push(&block).await?,
                Piece::Bytes(bytes) => self.emit.push(bytes).await?,
                Piece::Zeros(count) => self.emit.zeros(count).await?,
                Piece::File { cid, size, padding } => {
                    self.file(cid, size, &pieces).await?;
                    self.emit.zeros(padding as u64).await?;
                }
                Piece::Small { size, padding } => {
                    self.small(size).await?;
                    self.emit.zeros(padding as u64).await?;
                }
            }
        }
        Ok(())
    }

    async fn file(&mut self, cid: Cid, size: u64, pieces: &Pieces<'_>) -> Result<(), Stop> {
        let layer = self.emit.layer;
        // Before anything of it is read.
        self.emit.check_room(size)?;
        let mut reader = FileReader::new(cid);
        while let Some(next) = reader.next().copied() {
            let upcoming = reader.upcoming(READ_AHEAD).chain(pieces.upcoming().take(READ_AHEAD));
            let block = self.files.block(&next, upcoming).await?;
            let content =
                reader.supply(&block).map_err(|source| ReadError::File { layer, cid: next, source: source.into() })?;
            if reader.size() != Some(size) {
                return Err(ReadError::File { layer, cid, source: UnixFsError::Sizes.into() }.into());
            }
            self.emit.send(content).await?;
        }
        Ok(())
    }

    async fn small(&mut self, mut size: u64) -> Result<(), Stop> {
        let layer = self.emit.layer;
        self.emit.check_room(size)?;
        let wrong = || ReadError::Page { layer, source: PageError::Files };
        let small = self.small.as_mut().ok_or_else(wrong)?;
        while size > 0 {
            if small.left.is_empty() {
                let next = small.reader.next().copied().ok_or_else(wrong)?;
                let block = small.blocks.block(&next, small.reader.upcoming(READ_AHEAD)).await?;
                small.left = small.reader.supply(&block).map_err(|source| ReadError::File {
                    layer,
                    cid: next,
                    source: source.into(),
                })?;
                continue;
            }
            let count = usize::try_from(size).unwrap_or(usize::MAX).min(small.left.len());
            self.emit.push(&small.left.split_to(count)).await?;
            size -= count as u64;
        }
        Ok(())
    }
}

/// The small files of a layer, one after the other.
struct SmallFiles<'a> {
    blocks: Fetch<'a>,
    reader: FileReader,
    left: Bytes,
}

/// Reads blocks, some ahead.
struct Fetch<'a> {
    store: &'a dyn BlobStore,
    ahead: BTreeMap<Cid, Block>,
}

impl Fetch<'_> {
    async fn block<'c>(&mut self, cid: &Cid, upcoming: impl Iterator<Item = &'c Cid>) -> Result<Block, ReadError> {
        if let Some(block) = self.ahead.remove(cid) {
            return Ok(block);
        }
        if self.ahead.len() + READ_AHEAD > MAX_KEPT {
            self.ahead.clear();
        }
        let mut wanted = vec![*cid];
        wanted.extend(upcoming.filter(|next| *next != cid && !self.ahead.contains_key(*next)).take(READ_AHEAD - 1));
        wanted[1..].sort_unstable();
        wanted.dedup();
        let hashes: Vec<Multihash> = wanted.iter().map(|cid| *cid.hash()).collect();
        for (cid, data) in wanted.into_iter().zip(self.store.get_batch(&hashes).await?) {
            // One that lies further on and is missing is reported when it is next.
            let Some(data) = data else { continue };
            let block = Block::verify(cid, data).map_err(|error| match error {
                HashError::Mismatch { cid } => StoreError::Corrupt { hash: *cid.hash() },
                HashError::UnknownHash { .. } | HashError::TooLarge { .. } => StoreError::Hash(error),
            })?;
            self.ahead.insert(cid, block);
        }
        self.ahead.remove(cid).ok_or(ReadError::Missing { cid: *cid })
    }
}

/// Passes a tar on, and no more of it than was stated.
struct Emit {
    pieces: mpsc::Sender<Bytes>,
    buffer: BytesMut,
    layer: usize,
    stated: u64,
    sent: u64,
}

impl Emit {
    fn check_room(&self, count: u64) -> Result<(), ReadError> {
        if count <= self.stated - self.sent {
            return Ok(());
        }
        Err(ReadError::LayerSize { layer: self.layer, stated: self.stated, longer: true })
    }

    async fn push(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.check_room(bytes.len() as u64)?;
        self.sent += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE { self.flush().await } else { Ok(()) }
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Stop> {
        if bytes.len() < LARGE {
            return self.push(&bytes).await;
        }
        self.check_room(bytes.len() as u64)?;
        self.sent += bytes.len() as u64;
        self.flush().await?;
        self.pieces.send(bytes).await.map_err(|_| Stop::Gone)
    }

    async fn zeros(&mut self, mut count: u64) -> Result<(), Stop> {
        self.check_room(count)?;
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let now = count.min(ZEROS.len() as u64);
            self.push(&ZEROS[..now as usize]).await?;
            count -= now;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.pieces.send(piece).await.map_err(|_| Stop::Gone)
    }

    async fn finish(&mut self) -> Result<(), Stop> {
        self.flush().await?;
        if self.sent < self.stated {
            return Err(ReadError::LayerSize { layer: self.layer, stated: self.stated, longer: false }.into());
        }
        Ok(())
    }
}

/// Makes a channel for the pieces of a layer.
pub(crate) fn pieces() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(PIECES_AHEAD)
}

/// Reads a layer's tar to its end, with every check that an import makes; on a thread for blocking work.
pub(crate) fn check_layer<S: Sink>(
    number: usize,
    layer: &Layer,
    mut pieces: mpsc::Receiver<Bytes>,
    sink: &mut S,
) -> Result<(), S::Error>
where
    S::Error: From<ReadError>,
{
    let mut scanner = Scanner::new(Limits { bytes: layer.size, entries: layer.entries });
    let mut hash = Sha256::new();
    while let Some(piece) = pieces.blocking_recv() {
        hash.update(&piece);
        scanner.push(&piece, sink)?;
    }
    // A tar that was cut off by an error elsewhere is reported there.
    scanner.finish(sink)?;
    let (stated, actual) = (Digest(layer.diff_id), Digest(hash.finalize().into()));
    if stated != actual {
        return Err(ReadError::DiffId { layer: number, stated, actual }.into());
    }
    if scanner.entries() != layer.entries {
        let reason = format!("layer {number} has {} files and says {}", scanner.entries(), layer.entries);
        return Err(ReadError::Contradiction { reason }.into());
    }
    Ok(())
}
