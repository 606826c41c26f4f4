//! CAR, versions 1 and 2, in pieces.

use iptl_dag::car::{self, CarError, CarItem, CarReader};
use iptl_dag::{Block, MAX_BLOCK_SIZE};

use crate::memory::bounded;

/// Reads a CAR at once and in pieces: the same items, and the same end.
///
/// The first byte is the size of the pieces.
pub(crate) fn car(data: &[u8]) -> bool {
    let Some((&size, stream)) = data.split_first() else { return false };
    let (whole, end) = bounded(64, data, || read([stream]));
    let (pieces, pieces_end) = read(stream.chunks(usize::from(size).max(1)));
    assert_eq!(pieces, whole, "where the stream is cut changes nothing");
    assert_eq!(pieces_end.as_ref().map_err(ToString::to_string), end.as_ref().map_err(ToString::to_string));
    let mut roots = None;
    let mut blocks = Vec::new();
    for item in whole {
        match item {
            CarItem::Roots(found) => assert!(roots.replace(found).is_none() && blocks.is_empty(), "roots come first"),
            CarItem::Block(block) => blocks.push(block),
        }
    }
    for block in &blocks {
        assert!(block.data().len() <= MAX_BLOCK_SIZE);
        Block::verify(*block.cid(), block.data().clone()).expect("what is given was checked");
    }
    if let Some(roots) = roots {
        let written: Vec<u8> =
            [car::header(&roots)].into_iter().chain(blocks.iter().map(car::frame)).flatten().collect();
        let (again, end) = read([written.as_slice()]);
        end.expect("it was just written");
        let expected: Vec<CarItem> =
            [CarItem::Roots(roots)].into_iter().chain(blocks.into_iter().map(CarItem::Block)).collect();
        assert_eq!(again, expected);
    }
    end.is_ok()
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<CarItem>, Result<(), CarError>) {
    let mut reader = CarReader::new();
    let mut items = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_item() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => {
                    let again = reader.next_item().expect_err("an error is for good");
                    assert_eq!(again.to_string(), error.to_string());
                    return (items, Err(error));
                }
            }
        }
    }
    (items, reader.finish())
}
