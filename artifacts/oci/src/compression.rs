//! Layers as they come: plain, gzip or zstd, told apart by their first bytes, since media types are often wrong.

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a layer or an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
    /// Known, and not read.
    Other(&'static str),
}

impl Compression {
    /// Tells by the first bytes; eight are enough.
    pub(crate) fn of(head: &[u8]) -> Compression {
        // Frames that are passed over have sixteen magic numbers.
        let skipped = matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        if head.starts_with(&[0x1f, 0x8b]) {
            Compression::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skipped {
            Compression::Zstd
        } else if head.starts_with(b"\xfd7zXZ\0") {
            Compression::Other("xz")
        } else if head.starts_with(b"BZh") {
            Compression::Other("bzip2")
        } else if head.starts_with(&[0x04, 0x22, 0x4d, 0x18]) {
            Compression::Other("lz4")
        } else {
            Compression::Plain
        }
    }
}

/// Decompresses a gzip or zstd stream of any number of members or frames.
pub(crate) enum Decoder<R: io::BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<ZstdFrames<R>>),
}

impl<R: io::BufRead> Decoder<R> {
    /// Starts; what cannot be read is taken as plain, and refused as a tar.
    pub(crate) fn new(compression: Compression, inner: R) -> Decoder<R> {
        match compression {
            Compression::Plain | Compression::Other(_) => Decoder::Plain(inner),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(inner))),
            Compression::Zstd => {
                Decoder::Zstd(Box::new(ZstdFrames { inner, frame: FrameDecoder::new(), within: false }))
            }
        }
    }

    /// The compressed stream, which may not be at its end.
    pub(crate) fn get_ref(&self) -> &R {
        match self {
            Decoder::Plain(inner) => inner,
            Decoder::Gzip(gzip) => gzip.get_ref(),
            Decoder::Zstd(zstd) => &zstd.inner,
        }
    }

    /// Gives the compressed stream back.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Decoder::Plain(inner) => inner,
            Decoder::Gzip(gzip) => gzip.into_inner(),
            Decoder::Zstd(zstd) => zstd.inner,
        }
    }
}

impl<R: io::BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(inner) => inner.read(buffer),
            Decoder::Gzip(gzip) => gzip.read(buffer),
            Decoder::Zstd(zstd) => zstd.read(buffer),
        }
    }
}

/// Frames of zstd, one after the other; the library reads one.
pub(crate) struct ZstdFrames<R: io::BufRead> {
    inner: R,
    frame: FrameDecoder,
    within: bool,
}

impl<R: io::BufRead> ZstdFrames<R> {
    /// Begins the next frame, or passes over one that holds nothing.
    fn begin(&mut self) -> io::Result<()> {
        match self.frame.reset(&mut self.inner) {
            Ok(()) => self.within = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let length = u64::from(length);
                if io::copy(&mut self.inner.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
        Ok(())
    }
}

impl<R: io::BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.within {
                if self.inner.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin()?;
                continue;
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                let decoded = self.frame.decode_blocks(&mut self.inner, BlockDecodingStrategy::UptoBlocks(1));
                decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            }
            let count = self.frame.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.within = false;
        }
    }
}
