//! What the log said, kept until the receipts that it names were read, in little memory: of a million facts nearly all
//! say that receipts came, and memory that is touched for the first time costs more than what is done with it.

use iptl_dag::block::blake3_cid;
use iptl_dag::model::FactKind;
use iptl_dag::{Cid, Codec, PeerId};

use super::state::Cell;

/// The steps of an execution in their order.
#[derive(Debug, Default)]
pub(super) struct Steps {
    list: Vec<Step>,
    /// Lablets by the numbers that their cells have here.
    lablets: Vec<PeerId>,
}

#[derive(Debug)]
enum Step {
    Received { lablet: u32, count: u32, shard: Name },
    Other(Box<FactKind>),
}

/// A chunk of receipts as the log names it, in less than half of the memory of its CID.
#[derive(Debug)]
pub(super) enum Name {
    /// Under BLAKE3, as nearly all are.
    Blake3 { codec: Codec, hash: [u8; 32] },
    /// Any other.
    Other(Box<Cid>),
}

impl Steps {
    /// Adds a step.
    pub(super) fn push(&mut self, kind: FactKind) {
        self.list.push(Step::Other(Box::new(kind)));
    }

    /// Adds the step that receipts came of a cell that a lablet holds.
    pub(super) fn push_received(&mut self, lablet: &PeerId, cell: &mut Cell, shard: &Cid, count: u32) {
        let lablets = &mut self.lablets;
        let lablet = *cell.number.get_or_insert_with(|| {
            lablets.push(lablet.clone());
            u32::try_from(lablets.len() - 1).expect("a log has far fewer grants")
        });
        self.list.push(Step::Received { lablet, count, shard: Name::of(shard) });
    }

    /// Takes all steps out, as the facts that they were.
    pub(super) fn take(&mut self) -> impl Iterator<Item = FactKind> + use<> {
        let lablets = self.lablets.clone();
        std::mem::take(&mut self.list).into_iter().map(move |step| match step {
            Step::Received { lablet, count, shard } => {
                FactKind::Received { lablet: lablets[lablet as usize].clone(), shard: shard.cid(), count }
            }
            Step::Other(kind) => *kind,
        })
    }
}

impl Name {
    pub(super) fn of(cid: &Cid) -> Name {
        // It is kept short where that is the same again.
        let short = || {
            let (codec, hash) = (Codec::of(cid)?, <[u8; 32]>::try_from(cid.hash().digest()).ok()?);
            (blake3_cid(codec, &hash) == *cid).then_some(Name::Blake3 { codec, hash })
        };
        short().unwrap_or_else(|| Name::Other(Box::new(*cid)))
    }

    pub(super) fn cid(&self) -> Cid {
        match self {
            Name::Blake3 { codec, hash } => blake3_cid(*codec, hash),
            Name::Other(cid) => **cid,
        }
    }

    /// Returns by what names are put in order before their CIDs are, which then takes little.
    pub(super) fn digest(&self) -> &[u8] {
        match self {
            Name::Blake3 { hash, .. } => hash,
            Name::Other(cid) => cid.hash().digest(),
        }
    }
}

#[cfg(test)]
mod tests {
    use iptl_dag::{Block, Multihash, codec};

    use super::*;

    #[test]
    fn a_name_is_the_cid_that_it_was_made_of_whatever_that_is() {
        let of = |code, digest: &[u8]| Multihash::wrap(code, digest).expect("it fits");
        let blake3 = codec::cid_of(&1);
        let cids = [
            blake3,
            *Block::new(Codec::Raw, "raw").cid(),
            *Block::new(Codec::DagJson, "{}").cid(),
            // A codec that nobody knows, another hash, a hash that is cut off, one that is extended, none.
            Cid::new_v1(0x0999, *blake3.hash()),
            Cid::new_v1(0x71, of(0x12, &[7; 32])),
            Cid::new_v1(0x71, of(0x1e, &[7; 20])),
            Cid::new_v1(0x71, of(0x1e, &[7; 64])),
            Cid::new_v1(0x55, of(0, b"content")),
            Cid::new_v0(of(0x12, &[7; 32])).expect("it is one"),
        ];
        for cid in cids {
            let name = Name::of(&cid);
            assert_eq!((name.cid(), name.digest()), (cid, cid.hash().digest()));
        }
        assert!(matches!(Name::of(&blake3), Name::Blake3 { .. }));
        assert!(size_of::<Step>() * 3 <= size_of::<FactKind>(), "{} bytes", size_of::<Step>());
    }
}
