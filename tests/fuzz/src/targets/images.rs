//! Layers of container images.

use iptl_artifacts_oci::{Limits, probe};
use iptl_dag::codec;
use iptl_dag::model::LayerPage;

use crate::memory::typed;

/// Bytes and entries of a layer: more than any input has, less than would be noticed.
const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 64 };

/// A tar that is taken comes back to the byte, wherever it is cut on its way. Its checksums are made right first: what
/// lies behind them is what matters.
pub(crate) fn layer(data: &[u8]) -> bool {
    let mut tar = data.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let whole = probe::rebuild_layer(&tar, tar.len(), &LIMITS);
    assert_eq!(probe::rebuild_layer(&tar, 100, &LIMITS), whole, "where it is cut changes nothing");
    if let Some(rebuilt) = &whole {
        assert!(*rebuilt == tar, "a layer that was taken comes back");
    }
    whole.is_some()
}

/// A page of a layer from somewhere else is read to its end, or refused.
pub(crate) fn page(data: &[u8]) -> bool {
    let Ok(page) = typed(data, || codec::decode::<LayerPage>(data)) else { return false };
    typed(data, || probe::read_page(&page))
}
