//! Reads that the L1 in process answers, from the request's bytes to the response's: all that a call does in our service
//! and tonic's codec, without sockets, HTTP/2 and the server's layers.

use std::{convert::Infallible, hint::black_box, path::Path, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use featurestore::{
    api::{Api, ClientDeadline},
    app::App,
    config::{Config, Flags},
    proto::{
        GetFeaturesRequest, ResponseFormat, UpsertFeaturesRequest,
        feature_store_service_server::{FeatureStoreService as _, FeatureStoreServiceServer},
    },
    record::FeatureRecord,
};
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, codec::CompressionEncoding};
use tower::Service as _;

use crate::{
    Call, Case,
    encoding::{five_of, name, value},
};

/// Answers as any client decodes them.
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/client/featurestore.v1.rs"));
}

/// As the figures of docs and design have them.
const FEATURES: usize = 20;

pub(crate) const CASES: [Case; 4] = [
    Case { name: "hit_1", calls: 2_000, prepare: |calls| hits(calls, request(1)) },
    Case { name: "hit_100", calls: 100, prepare: |calls| hits(calls, request(100)) },
    Case { name: "hit_100_project_5", calls: 100, prepare: |calls| hits(calls, by_name(request(100))) },
    Case { name: "hit_100_matrix_5", calls: 100, prepare: |calls| hits(calls, matrix(by_name(request(100)))) },
];

fn request(entities: usize) -> GetFeaturesRequest {
    GetFeaturesRequest { entity_ids: (0..entities).map(entity).collect(), ..GetFeaturesRequest::default() }
}

fn by_name(request: GetFeaturesRequest) -> GetFeaturesRequest {
    GetFeaturesRequest { feature_names: five_of(FEATURES), ..request }
}

fn matrix(request: GetFeaturesRequest) -> GetFeaturesRequest {
    GetFeaturesRequest { format: ResponseFormat::MatrixFloat64.into(), ..request }
}

fn entity(number: usize) -> String {
    format!("CUST{number:05}")
}

fn hits(calls: usize, message: GetFeaturesRequest) -> Call {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let api = runtime.block_on(api_over(folder.path(), message.entity_ids.len()));
    runtime.block_on(check_hits(&api, &message));
    // As `server` sets it up.
    let mut service = FeatureStoreServiceServer::new(api).accept_compressed(CompressionEncoding::Gzip);
    let mut requests = vec![http_request(&message); calls];
    Box::new(move || {
        let _the_stores = &folder;
        let _inside = runtime.enter();
        let mut request = requests.pop().expect("one was made for each call");
        // The server's deadline layer does this, and every client should give one.
        request.extensions_mut().insert(ClientDeadline(Instant::now() + Duration::from_secs(1)));
        let answer = async {
            let Ok::<_, Infallible>(response) = service.call(request).await;
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                black_box(frame.expect("a frame"));
            }
        };
        // Polled once, so no scheduler is counted: a hit waits for nothing.
        answer.now_or_never().expect("a hit");
    })
}

/// The service over an L1 in process which holds so many records, as the server puts it together.
async fn api_over(folder: &Path, entities: usize) -> Api {
    let flags = Flags { data_dir: Some(folder.join("data").display().to_string()), ..Flags::default() };
    let (config, _) = Config::load(&flags, []).unwrap();
    let App { api, tiered, .. } = App::new(&config).await.unwrap();
    let enough = CancellationToken::new();
    let watch = tokio::spawn(tiered.clone().watch(enough.clone()));
    while !tiered.trust().is_trusted() {
        sleep(Duration::from_millis(10)).await;
    }
    for number in 0..entities {
        let record = FeatureRecord {
            entity_id: entity(number),
            features: (0..FEATURES).map(|f| (name(f), value(number, f))).collect(),
            model_version: "v1.0.0".to_owned(),
            ..FeatureRecord::default()
        };
        let write = UpsertFeaturesRequest { record: Some(record), ..UpsertFeaturesRequest::default() };
        assert!(api.upsert_features(Request::new(write)).await.unwrap().into_inner().cached);
    }
    enough.cancel();
    watch.await.unwrap();
    api
}

/// What is counted must be what the case's name says.
async fn check_hits(api: &Api, message: &GetFeaturesRequest) {
    let rows = GetFeaturesRequest { format: ResponseFormat::Rows.into(), ..message.clone() };
    let answer = api.get_features(Request::new(rows)).await.unwrap().into_inner();
    let answer = pb::GetFeaturesResponse::decode(&answer.encode_to_vec()[..]).unwrap();
    assert_eq!(answer.rows.len(), message.entity_ids.len());
    for row in &answer.rows {
        assert!(row.source() == pb::Source::L1 && !row.features.is_empty() && row.missing_features.is_empty());
    }
    api.get_features(Request::new(message.clone())).await.unwrap();
}

/// As hyper hands it to tonic.
fn http_request(message: &GetFeaturesRequest) -> http::Request<Full<Bytes>> {
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut frame).unwrap();
    http::Request::post("/featurestore.v1.FeatureStoreService/GetFeatures")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(frame.freeze()))
        .unwrap()
}
