//! One request until its answer is sent.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf as _;
use h2::{Reason, SendStream, server::SendResponse};
use http::Response;
use hyper::body::Body as _;

use super::super::{
    bytes::{Counted, Sending},
    calls::Answer,
    streams::Life,
};

type Body = Answer<Sending>;

/// The client cancelled the call, or its connection is gone: the answer is not needed.
struct Gone;

pub(super) async fn answer(
    mut respond: SendResponse<Counted>,
    call: impl Future<Output = Result<Response<Body>, Infallible>>,
) {
    let mut call = pin!(call);
    let answered = poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(Ok(response)) => Poll::Ready(Ok(response)),
        Poll::Pending => respond.poll_reset(cx).map(|_| Err(Gone)),
    });
    let Ok(response) = answered.await else { return };
    let (head, body) = response.into_parts();
    let ends = body.is_end_stream();
    match respond.send_response(Response::from_parts(head, ()), ends) {
        Ok(_) if ends => {}
        Ok(stream) => {
            let life = body.body().life().cloned();
            // Only a client that waits for the answer would see it fail.
            let _ = send(Sender { stream, life }, body).await;
        }
        Err(error) => {
            tracing::debug!(%error, "an answer could not be sent to its client");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

struct Sender {
    stream: SendStream<Counted>,
    /// Only of a stream.
    life: Option<Arc<Life>>,
}

/// Sends the body to its end, or until the client is gone.
async fn send(mut to: Sender, body: Body) -> Result<(), Gone> {
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| to.poll_next(body.as_mut(), cx)).await?;
        match frame.map(|frame| frame.map(|frame| frame.into_data())) {
            Some(Ok(Ok(data))) => {
                let ends = body.is_end_stream();
                if data.has_remaining() {
                    to.room().await?;
                }
                to.stream.send_data(data, ends).map_err(|_| Gone)?;
                if ends {
                    return Ok(());
                }
            }
            Some(Ok(Err(frame))) => return to.end(frame.into_trailers().unwrap_or_default()),
            Some(Err(error)) => {
                tracing::debug!(%error, "an answer ended with an error before it was complete");
                to.stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(Gone);
            }
            None => return to.end(http::HeaderMap::new()),
        }
    }
}

type Frame = Result<hyper::body::Frame<Counted>, tonic::Status>;

impl Sender {
    fn poll_next(&mut self, body: Pin<&mut Body>, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Gone>> {
        match body.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => self.stream.poll_reset(cx).map(|_| Err(Gone)),
        }
    }

    /// Waits until the client accepts more bytes. If the client of a stream does not for too long,
    /// the stream is ended.
    async fn room(&mut self) -> Result<(), Gone> {
        // The smallest amount: capacity that is reserved and not used is lost for the other
        // answers.
        self.stream.reserve_capacity(1);
        let stream = &mut self.stream;
        let room = poll_fn(|cx| poll_room(stream, cx));
        let Some(life) = &self.life else { return room.await };
        tokio::select! {
            biased;
            room = room => return room,
            () = life.unread() => {}
        }
        self.stream.send_reset(Reason::CANCEL);
        Err(Gone)
    }

    fn end(mut self, trailers: http::HeaderMap) -> Result<(), Gone> {
        self.stream.reserve_capacity(0);
        self.stream.send_trailers(trailers).map_err(|_| Gone)
    }
}

fn poll_room(stream: &mut SendStream<Counted>, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
    if stream.poll_reset(cx).is_ready() {
        return Poll::Ready(Err(Gone));
    }
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
        }
    }
    Poll::Ready(Ok(()))
}
