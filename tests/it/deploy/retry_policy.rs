//! The service config that docs/api.md gives to clients, in the hands of a real gRPC client.

use std::path::Path;

use h2::client::Builder;
use tonic::Code;

use crate::harness::{
    client::*,
    process::temp_dir,
    raw,
    server::{Pair, eventually},
    tools,
};

/// The JSON of docs/api.md that names the retry policy.
fn service_config() -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md")).unwrap();
    let mut blocks = text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains("retryPolicy")).expect("docs/api.md has a retry policy").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_the_documented_service_config_balances_and_is_answered_by_another_server_when_one_sheds() {
    let pair = Pair::real();
    let full = pair.serve_with(&[("FEATURESTORE_LIMITS_MAX_IN_FLIGHT", "1")]).await;
    let other = pair.serve().await;
    put(&mut other.client().await, record("A", [("x", double(0.5))])).await;
    // A call whose message never ends takes the only place, so this server sheds all else.
    let hold = tokio::spawn(hold_a_place(full.address.port()));
    eventually("the server to shed", async || {
        let shed = full.client().await.info(pb::InfoRequest {}).await;
        shed.is_err_and(|status| status.code() == Code::ResourceExhausted)
    })
    .await;

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
    hold.abort();
    let written = row(&mut other.client().await, get(["written with a request_id"])).await;
    assert_eq!(written.status(), RowStatus::Found);
}

/// Begins a message, and another one whenever the server has ended the call because the message did not arrive in time.
async fn hold_a_place(port: u16) {
    let raw = raw::connect(port, &Builder::new()).await;
    loop {
        let (answer, _body, _last) = raw.begin_only("GetFeatures", &get(["a"])).await;
        let _ended = answer.await;
    }
}
