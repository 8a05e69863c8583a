//! The service config that the README gives to clients, in the hands of a real gRPC client.

use std::path::Path;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{client::*, process::temp_dir, server::Pair, tools};

/// The README's JSON, which names the retry policy.
fn service_config() -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let mut blocks = readme.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains("retryPolicy")).expect("the README has a retry policy").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_the_readmes_service_config_balances_and_is_answered_by_another_server_when_one_sheds() {
    let pair = Pair::real();
    let full = pair.serve_with(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1")]).await;
    let other = pair.serve().await;
    put(&mut other.client().await, record("A", [("x", double(0.5))])).await;
    // A stream takes the only place, so this one sheds all else.
    let (send, messages) = mpsc::channel(1);
    send.send(chunk(1, [record("B", [])])).await.unwrap();
    let mut held = full.client().await.bulk_upsert(ReceiverStream::new(messages)).await.unwrap().into_inner();
    assert_eq!(held.message().await.unwrap().unwrap().written, 1);

    let folder = temp_dir();
    let file = folder.path().join("service_config.json");
    std::fs::write(&file, service_config()).unwrap();
    let args = ["--service-config", file.to_str().unwrap(), "--full", &full.address.to_string()];
    let other_address = other.address.to_string();
    let Some(ended) = tools::python("retry_policy.py", &[&args[..], &["--other", &other_address]].concat()).await
    else {
        return;
    };
    println!("{}", ended.unwrap());
    let written = row(&mut other.client().await, get(["written with a request_id"])).await;
    assert_eq!(written.status(), RowStatus::Found);
}
