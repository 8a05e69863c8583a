//! The bodies of calls, with their bytes counted: those of a request until its call is answered,
//! and those of an answer until it is written to the connection, however long its client takes to
//! read it. A request that does not arrive in time is ended, and so is a message of a stream.
//!
//! A compressed message is counted as it arrives, and again as what it is when it is decompressed
//! (`proto::Unpacked`).
//!
//! `tiered` counts what reads hold in between. What HTTP/2 itself holds is not counted: its windows
//! and `connections` bound it.

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
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::{messages::Messages, streams::Life};
use crate::api::{ConnectionBytes, InFlight, Share, status};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long a request may take to arrive, and on a stream each message from its first byte on,
/// because a client of a stream may wait between messages. Only the time in which the server waits
/// for the client counts.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// This time is counted in ticks, each from when the one before was seen to be over. So a busy
/// server does not count its own delay as time of the client.
const TICKS: u32 = 40;
/// Bytes of a request that are too few to be counted one by one.
const UNCOUNTED: usize = 4 << 10;
/// What an answer costs besides its bytes, roughly, so that many small ones count.
const ANSWER: usize = 512;
/// Long answers are sent in pieces of this size, so that a slow client differs from one that does
/// not read.
const PIECE: usize = 256 << 10;

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

pin_project! {
    pub(super) struct Receiving<B> {
        #[pin]
        body: B,
        call: InFlight,
        uncounted: usize,
        stream: Option<Box<Arriving>>,
        // Only once the server has waited for the client.
        timeout: Option<Pin<Box<Sleep>>>,
        // The ticks of the timeout that are over.
        ticks: u32,
    }
}

struct Arriving {
    life: Arc<Life>,
    messages: Messages,
    over: Over,
}

impl Arriving {
    fn new(life: Arc<Life>) -> Self {
        let over = Box::pin(life.clone().ended());
        Self { life, messages: Messages::default(), over }
    }

    fn why_ended(&self) -> Status {
        self.life.why_ended().cloned().unwrap_or_else(|| Status::cancelled("the stream has ended"))
    }
}

impl<B> Receiving<B> {
    /// `stream` is set if the request is a stream.
    pub(super) fn new(body: B, call: InFlight, stream: Option<Arc<Life>>) -> Self {
        let stream = stream.map(|life| Box::new(Arriving::new(life)));
        Self { body, call, uncounted: 0, stream, timeout: None, ticks: 0 }
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
            if let Some(stream) = this.stream {
                if stream.over.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(Err(stream.why_ended().into())));
                }
                if !stream.messages.is_within_one() {
                    return Poll::Pending;
                }
            }
            let tick = || Instant::now() + ARRIVAL_TIMEOUT / TICKS;
            let timeout = this.timeout.get_or_insert_with(|| Box::pin(sleep_until(tick())));
            while *this.ticks < TICKS {
                ready!(timeout.as_mut().poll(cx));
                *this.ticks += 1;
                timeout.as_mut().reset(tick());
            }
            let too_slow = status::request_too_slow();
            if let Some(stream) = this.stream {
                stream.life.fail(too_slow.clone());
            }
            return Poll::Ready(Some(Err(too_slow.into())));
        };
        if let (Some(stream), Some(Ok(frame))) = (this.stream, &frame) {
            stream.life.go_on();
            if frame.data_ref().is_some_and(|bytes| stream.messages.take(bytes)) {
                (*this.timeout, *this.ticks) = (None, 0);
            }
        }
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

pub(super) struct Sending {
    body: tonic::body::Body,
    connection: Arc<ConnectionBytes>,
    /// Whether the call may be refused now, because it only read and the client may retry it.
    may_be_refused: bool,
    /// The pieces of a long message. The last one holds the share of all of it.
    pieces: VecDeque<Counted>,
    is_refused: bool,
    stream: Option<(Arc<Life>, Over)>,
}

impl Sending {
    /// `stream` is set if the answer is that of a stream, which occupies its place until it ends.
    pub(super) fn new(
        body: tonic::body::Body,
        connection: Arc<ConnectionBytes>,
        may_be_refused: bool,
        stream: Option<Arc<Life>>,
    ) -> Self {
        let stream = stream.map(|life| (life.clone(), Box::pin(life.over()) as Over));
        Self { body, connection, may_be_refused, pieces: VecDeque::new(), is_refused: false, stream }
    }

    pub(super) fn life(&self) -> Option<&Arc<Life>> {
        self.stream.as_ref().map(|(life, _)| life)
    }

    /// A short text as the answer to a request that is not a call.
    pub(super) fn words(words: String, connection: Arc<ConnectionBytes>) -> Self {
        let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from(words)));
        Self::new(body, connection, false, None)
    }

    /// Counts a message, or refuses the answer.
    fn counted(&mut self, mut bytes: Bytes) -> Frame<Counted> {
        let size = bytes.len() + ANSWER;
        let share = match self.may_be_refused {
            true => Share::try_take(&self.connection, size),
            false => Some(Share::take(&self.connection, size)),
        };
        let Some(share) = share else {
            return self.give_up(&status::too_many_bytes());
        };
        if bytes.len() <= PIECE {
            return Frame::data(Counted { bytes, share });
        }
        // All pieces are one allocation, so their bytes are released together.
        let first = Counted { bytes: bytes.split_to(PIECE), share: Share::take(&self.connection, 0) };
        while bytes.len() > PIECE {
            let piece = Counted { bytes: bytes.split_to(PIECE), share: Share::take(&self.connection, 0) };
            self.pieces.push_back(piece);
        }
        self.pieces.push_back(Counted { bytes, share });
        Frame::data(first)
    }
}

impl Sending {
    fn give_up(&mut self, why: &Status) -> Frame<Counted> {
        self.is_refused = true;
        // What the body still holds is not sent.
        self.body = tonic::body::Body::empty();
        let mut trailers = http::HeaderMap::new();
        let added = why.add_header(&mut trailers);
        debug_assert!(added.is_ok(), "our own statuses fit into a header");
        Frame::trailers(trailers)
    }

    /// The end of the answer, if the stream was ended.
    fn ended(&mut self) -> Option<Frame<Counted>> {
        let (life, _) = self.stream.as_ref()?;
        let why = life.why_ended()?.clone();
        Some(self.give_up(&why))
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
        if let Some(ended) = self.ended() {
            return Poll::Ready(Some(Ok(ended)));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let Some((_, over)) = &mut self.stream else { return Poll::Pending };
            ready!(over.as_mut().poll(cx));
            return Poll::Ready(self.ended().map(Ok));
        };
        if let Some((life, _)) = &self.stream {
            life.go_on();
        }
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
    use std::future::poll_fn;

    use futures_util::StreamExt as _;
    use http_body_util::{BodyExt as _, Full};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        api::{ByteBudget, Place},
        server::streams::{self, ConnectionStreams, Streams},
    };

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

    fn call() -> InFlight {
        InFlight::new(Place::None, Arc::new(ConnectionBytes::new(Arc::new(ByteBudget::new(1 << 20)))))
    }

    fn stream(path: &str) -> Arc<Life> {
        let streams = Streams::new(CancellationToken::new());
        streams.begin(streams::kind(path).unwrap(), &ConnectionStreams::default()).unwrap()
    }

    const BULK: &str = "/featurestore.v1.FeatureStoreService/BulkUpsert";
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

    type Body = http_body_util::StreamBody<futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, Status>>>;

    /// A body of these parts, each after a delay, which does not end.
    fn arriving(parts: Vec<(Duration, &'static [u8])>) -> Body {
        let parts = futures_util::stream::iter(parts).then(|(after, part)| async move {
            tokio::time::sleep(after).await;
            Ok(Frame::data(Bytes::from_static(part)))
        });
        http_body_util::StreamBody::new(Box::pin(parts.chain(futures_util::stream::pending())))
    }

    async fn ended(mut body: Receiving<Body>) -> (Duration, tonic::Code) {
        let began = tokio::time::Instant::now();
        loop {
            match body.frame().await.unwrap() {
                Ok(_) => {}
                Err(ended) => return (began.elapsed(), Status::from_error(ended).code()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_not_whole_in_time_is_ended() {
        let (after, code) = ended(Receiving::new(arriving(Vec::new()), call(), None)).await;
        assert_eq!((after.as_secs(), code), (ARRIVAL_TIMEOUT.as_secs(), tonic::Code::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_is_late_is_no_time_of_the_client() {
        let second = Duration::from_secs(1);
        let mut body = Receiving::new(arriving(vec![(31 * second, &b"x"[..])]), call(), None);
        for _ in 0..2 {
            let waits =
                poll_fn(|cx| Poll::Ready(hyper::body::Body::poll_frame(Pin::new(&mut body), cx).is_pending())).await;
            assert!(waits);
            tokio::time::advance(15 * second).await;
        }
        assert!(body.frame().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_take_its_time_between_messages_and_not_within_one() {
        let mut quiet = Receiving::new(arriving(Vec::new()), call(), Some(stream(BULK)));
        assert!(tokio::time::timeout(10 * ARRIVAL_TIMEOUT, quiet.frame()).await.is_err());
        let second = Duration::from_secs(1);
        // Two messages that do not arrive as a whole, and one that arrives byte by byte without an
        // end.
        let begun = vec![(20 * second, &b"\0\0\0\0\x02ab"[..]), (20 * second, b"\0\0")];
        let trickle: Vec<(Duration, &[u8])> =
            [(second, &b"\0\0\0\xff\xff"[..])].into_iter().chain((0..60).map(|_| (second, &b"x"[..]))).collect();
        for (parts, begins) in [(begun, 40), (trickle, 1)] {
            for (path, answer_ends) in [(REFLECTION, true), (BULK, false)] {
                let life = stream(path);
                let (after, code) = ended(Receiving::new(arriving(parts.clone()), call(), Some(life.clone()))).await;
                let expected = begins + ARRIVAL_TIMEOUT.as_secs();
                assert_eq!((after.as_secs(), code), (expected, tonic::Code::DeadlineExceeded));
                // On a bulk stream the chunks before it are answered first.
                assert_eq!(life.why_ended().is_some(), answer_ends, "{path}");
            }
        }
        // Whole messages, each of which takes less time than one may take.
        let whole = (0..20).flat_map(|_| [(6 * second, &b"\0\0\0\0"[..]), (3 * second, b"\x01x")]).collect();
        let whole = ended(Receiving::new(arriving(whole), call(), Some(stream(BULK))));
        assert!(tokio::time::timeout(1000 * second, whole).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_ends_with_both_its_bodies() {
        let life = stream(REFLECTION);
        let receiving = tokio::spawn(ended(Receiving::new(arriving(Vec::new()), call(), Some(life.clone()))));
        let body = tonic::body::Body::new(arriving(Vec::new()));
        let connection = Arc::new(ConnectionBytes::new(Arc::new(ByteBudget::new(1 << 20))));
        let mut sending = Sending::new(body, connection, false, Some(life));
        let trailers = sending.frame().await.unwrap().unwrap().into_trailers().ok().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert!(sending.frame().await.is_none());
        assert_eq!(receiving.await.unwrap().1, tonic::Code::Unavailable);
    }
}
