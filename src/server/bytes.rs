//! The bodies of calls, counted: what a request brought is held until its call is answered, and what an answer has until it
//! is written to the connection, however long its client takes to read it. A request that is not whole in time is ended.
//!
//! What comes packed is counted as it came, and as what it is when it is unpacked (`proto::Unpacked`).
//!
//! Not counted is what a handler makes in between; calls at once bound that. Nor what HTTP/2 itself holds, which its
//! windows and `connections` bound.

use std::{
    collections::VecDeque,
    future::Future as _,
    io::IoSlice,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{sync::OwnedSemaphorePermit, time::Sleep};
use tonic::Status;

use crate::api::{ConnectionBytes, InFlight, Share, status};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long a request may take to arrive. Streams have no such bound, as their clients send when they have something.
const PATIENCE: Duration = Duration::from_secs(10);
/// Parts of a request that are too small to be counted one by one.
const UNCOUNTED: usize = 4 << 10;
/// What an answer costs beside its bytes, roughly: small ones count for something too.
const ANSWER: usize = 512;
/// Long answers are sent in pieces of this size, so that a client who reads slowly is told from one who does not.
const PIECE: usize = 256 << 10;

pin_project! {
    /// A request's body.
    pub(super) struct Receiving<B> {
        #[pin]
        body: B,
        call: InFlight,
        uncounted: usize,
        is_stream: bool,
        // Only once something was waited for.
        patience: Option<Pin<Box<Sleep>>>,
    }
}

impl<B> Receiving<B> {
    pub(super) fn new(body: B, call: InFlight, is_stream: bool) -> Self {
        Self { body, call, uncounted: 0, is_stream, patience: None }
    }
}

impl<B: Body<Data = Bytes>> Body for Receiving<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let Poll::Ready(frame) = this.body.poll_frame(cx) else {
            if *this.is_stream {
                return Poll::Pending;
            }
            let patience = this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            ready!(patience.as_mut().poll(cx));
            return Poll::Ready(Some(Err(status::request_too_slow().into())));
        };
        if let Some(Ok(frame)) = &frame {
            *this.uncounted += frame.data_ref().map_or(0, Bytes::len);
            if *this.uncounted > UNCOUNTED && !this.call.receive(std::mem::take(this.uncounted)) {
                return Poll::Ready(Some(Err(status::too_many_bytes().into())));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body.
pub(super) struct Sending {
    body: tonic::body::Body,
    connection: Arc<ConnectionBytes>,
    /// Whether the client may be told to come again: nothing was done but reading.
    may_be_refused: bool,
    /// Of a long message, with the share of all of it on the last one.
    pieces: VecDeque<Counted>,
    is_refused: bool,
    #[expect(dead_code, reason = "held, not read")]
    watch: Option<OwnedSemaphorePermit>,
}

impl Sending {
    /// `watch`: held until the answer ends.
    pub(super) fn new(
        body: tonic::body::Body,
        connection: Arc<ConnectionBytes>,
        may_be_refused: bool,
        watch: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { body, connection, may_be_refused, pieces: VecDeque::new(), is_refused: false, watch }
    }

    /// Counts a message, or gives it up.
    fn counted(&mut self, mut bytes: Bytes) -> Frame<Counted> {
        let size = bytes.len() + ANSWER;
        let share = match self.may_be_refused {
            true => Share::try_take(&self.connection, size),
            false => Some(Share::take(&self.connection, size)),
        };
        let Some(share) = share else {
            self.is_refused = true;
            let mut trailers = http::HeaderMap::new();
            let added = status::too_many_bytes().add_header(&mut trailers);
            debug_assert!(added.is_ok(), "our own words fit into a header");
            return Frame::trailers(trailers);
        };
        if bytes.len() <= PIECE {
            return Frame::data(Counted { bytes, share });
        }
        // All pieces are one allocation, so it is given back as a whole.
        let first = Counted { bytes: bytes.split_to(PIECE), share: Share::take(&self.connection, 0) };
        while bytes.len() > PIECE {
            let piece = Counted { bytes: bytes.split_to(PIECE), share: Share::take(&self.connection, 0) };
            self.pieces.push_back(piece);
        }
        self.pieces.push_back(Counted { bytes, share });
        Frame::data(first)
    }
}

impl Body for Sending {
    type Data = Counted;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Counted>, Status>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if self.is_refused {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_data() {
                Ok(bytes) => self.counted(bytes),
                Err(frame) => Frame::trailers(frame.into_trailers().unwrap_or_default()),
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && (self.is_refused || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Bytes that are counted until HTTP/2 has written them.
pub(super) struct Counted {
    bytes: Bytes,
    #[expect(dead_code, reason = "held, not read")]
    share: Share,
}

impl Buf for Counted {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;
    use crate::api::ByteBudget;

    fn sending(budget: usize, answer: Vec<u8>, may_be_refused: bool) -> (Arc<ByteBudget>, Sending) {
        let all = Arc::new(ByteBudget::new(budget));
        let body = tonic::body::Body::new(Full::new(Bytes::from(answer)));
        (all.clone(), Sending::new(body, Arc::new(ConnectionBytes::new(all)), may_be_refused, None))
    }

    #[tokio::test]
    async fn a_long_answer_comes_in_pieces_and_is_held_until_the_last_one_is_sent() {
        let answer: Vec<u8> = (0..3 * PIECE + 5).map(|i| (i / 1000) as u8).collect();
        let (all, mut body) = sending(16 << 20, answer.clone(), true);
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().ok().unwrap();
            assert!(piece.remaining() <= PIECE);
            assert_eq!(all.held(), answer.len() + ANSWER);
            got.extend_from_slice(piece.chunk());
        }
        assert_eq!(got, answer);
        assert_eq!(all.held(), 0);
    }

    #[tokio::test]
    async fn an_answer_without_room_is_refused_in_its_trailers_unless_something_was_done() {
        let (all, mut body) = sending(1000, vec![1; 500], true);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().ok().unwrap();
        assert_eq!(trailers["grpc-status"], "8");
        assert!(body.frame().await.is_none());
        assert_eq!(all.held(), 0);
        let (all, mut body) = sending(1000, vec![1; 500], false);
        let piece = body.frame().await.unwrap().unwrap().into_data().ok().unwrap();
        assert_eq!((piece.remaining(), all.held()), (500, 500 + ANSWER));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_not_whole_in_time_is_ended_and_a_stream_may_take_its_time() {
        let call = || InFlight::new(None, Arc::new(ConnectionBytes::new(Arc::new(ByteBudget::new(1 << 20)))));
        let never = || http_body_util::StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Status>>());
        let ended = Receiving::new(never(), call(), false).frame().await.unwrap().unwrap_err();
        assert_eq!(Status::from_error(ended).code(), tonic::Code::DeadlineExceeded);
        let mut stream = Receiving::new(never(), call(), true);
        assert!(tokio::time::timeout(10 * PATIENCE, stream.frame()).await.is_err());
    }
}
