//! The standard protobuf codec, with two differences. The buffer of a message gets its size before
//! the message is encoded; in the standard codec it grows by doubling, which copies a batch of rows
//! several times. And the memory of a message is counted before it is decoded: the unpacked bytes
//! of a compressed message, and for a read or a write what the decoder builds (`unfolded`).

use std::{fmt, marker::PhantomData, sync::Arc};

use bytes::Buf as _;
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

use super::unfolded;

/// Encodes `T` and decodes `U`.
#[derive(Clone, Copy, Debug)]
pub struct SizedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SizedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SizedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SizedEncoder<T>;
    type Decoder = CountedDecoder<U>;

    fn encoder(&mut self) -> SizedEncoder<T> {
        SizedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> CountedDecoder<U> {
        CountedDecoder(ProstDecoder::new(BufferSettings::default()))
    }
}

/// Encodes `T`.
#[derive(Clone, Copy, Debug)]
pub struct SizedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for SizedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode_raw(buf);
        Ok(())
    }
}

tokio::task_local! {
    static UNPACKED: Unpacked;
}

/// Counts the messages of a call before they are decoded, and may reject them.
#[derive(Clone)]
pub struct Unpacked {
    count: Arc<Count>,
    /// Whether messages are compressed, so that their own bytes are not counted yet.
    packed: bool,
}

type Count = dyn Fn(usize) -> Result<(), Status> + Send + Sync;

impl fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacked").field("packed", &self.packed).finish_non_exhaustive()
    }
}

impl Unpacked {
    /// `count` gets the bytes of each message. `packed`: the messages are compressed.
    pub fn new(packed: bool, count: impl Fn(usize) -> Result<(), Status> + Send + Sync + 'static) -> Self {
        Self { count: Arc::new(count), packed }
    }

    fn count<T: 'static>(&self, message: &[u8], length: usize) -> Result<(), Status> {
        let bytes = unfolded::of::<T>(message) + if self.packed { length } else { 0 };
        if bytes == 0 { Ok(()) } else { (self.count)(bytes) }
    }

    /// Counts what is decoded in `work`.
    pub fn within<R>(&self, work: impl FnOnce() -> R) -> R {
        UNPACKED.sync_scope(self.clone(), work)
    }

    /// Counts what is decoded in the future `work`.
    pub async fn throughout<R>(self, work: impl Future<Output = R>) -> R {
        UNPACKED.scope(self, work).await
    }
}

/// Decodes `U`, and counts it if the task has an `Unpacked`.
#[derive(Clone, Debug)]
pub struct CountedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for CountedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The message is in one piece. Calls of small plain messages have no count here.
        UNPACKED.try_with(|unpacked| unpacked.count::<U>(buf.chunk(), buf.remaining())).unwrap_or(Ok(()))?;
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
