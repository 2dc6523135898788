//! The six Stream* list calls: one snapshot, sent in pieces, then the end of the stream.
//!
//! The list is made whole before the first piece goes out, so an item comes exactly once even if things change in
//! between; a piece is only made when the client has room for it.

use prost::Message;
use tonic::Status;

/// Bytes of one piece, counted in encoded items. Far below the 16 MiB that a client accepts, so a piece with one
/// oversized item still fits, and small enough to be sent while the next is being encoded.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Items of one piece; bounds the time between two looks at other work.
const CHUNK_ITEMS_MAX: usize = 1000;

/// What a Stream* call answers with.
pub(crate) type Chunks<R> = futures_util::stream::Iter<Pieces<R>>;

/// Cuts `items` into pieces and makes a response of each. No piece is empty; without items there is none.
pub(crate) fn chunks<T, R>(items: Vec<T>, respond: fn(Vec<T>) -> R) -> Chunks<R>
where
    T: Message + 'static,
    R: 'static,
{
    let mut rest = items.into_iter().peekable();
    let pieces = std::iter::from_fn(move || {
        let mut piece = vec![rest.next()?];
        let mut bytes = piece[0].encoded_len();
        while piece.len() < CHUNK_ITEMS_MAX
            && let Some(item) = rest.next_if(|item| bytes + item.encoded_len() <= CHUNK_BYTES_MAX)
        {
            bytes += item.encoded_len();
            piece.push(item);
        }
        Some(Ok(respond(piece)))
    });
    futures_util::stream::iter(Box::new(pieces) as Pieces<R>)
}

/// The pieces, made one by one as they are asked for.
pub(crate) type Pieces<R> = Box<dyn Iterator<Item = Result<R, Status>> + Send>;

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::v1::Metric;

    fn cut(sizes: &[usize]) -> Vec<Vec<Metric>> {
        let item = |&size: &usize| Metric { name: "x".repeat(size), ..Metric::default() };
        let stream = chunks(sizes.iter().map(item).collect(), |piece| piece);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(stream.map(|piece| piece.unwrap()).collect())
    }

    #[test]
    fn nothing_makes_an_empty_stream() {
        assert_eq!(cut(&[]), Vec::<Vec<Metric>>::new());
    }

    #[test]
    fn an_item_larger_than_a_piece_goes_alone() {
        let lengths: Vec<usize> = cut(&[10, 2 << 20, 10]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 1, 1]);
    }

    #[test]
    fn small_items_are_cut_by_number() {
        let lengths: Vec<usize> = cut(&[1; 2500]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1000, 1000, 500]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_item_comes_once_in_order_and_pieces_are_bounded(sizes in prop::collection::vec(0..400_000usize, 0..30)) {
            let pieces = cut(&sizes);
            let sent: Vec<usize> = pieces.iter().flatten().map(|item| item.name.len()).collect();
            prop_assert_eq!(sent, sizes);
            for piece in pieces {
                prop_assert!(!piece.is_empty());
                let bytes: usize = piece.iter().map(Message::encoded_len).sum();
                prop_assert!(bytes <= CHUNK_BYTES_MAX || piece.len() == 1);
            }
        }
    }
}
