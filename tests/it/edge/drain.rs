//! SIGTERM under load: what was taken is answered, and what was not taken was not done.

use h2::client::Builder;
use tokio::task::JoinSet;

use super::*;

/// How a write ended, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Written,
    /// The server went away and said that it had not looked at it.
    NotTaken,
}

/// Writes, one after the other, until the server goes away.
async fn write_on(raw: &Raw, who: &str) -> Vec<(String, Told)> {
    let mut told = Vec::new();
    for i in 0.. {
        let id = format!("{who}-{i}");
        let Ok(answer) = raw.begin("UpsertFeatures", &upsert(record(&id, [("n", double(1.0))]))).await else { break };
        match raw::finish(answer).await {
            Ok((code, _)) => {
                assert_eq!(code, Code::Ok, "{id}");
                told.push((id, Told::Written));
            }
            Err(error) => {
                assert!(error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR), "{id} was lost: {error}");
                told.push((id, Told::NotTaken));
                break;
            }
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_call_with_and_without_tls() {
    let authority = Authority::new();
    let signed = authority.sign();
    let secret = Secret::new(&signed.cert, &signed.key);
    for (how, settings) in [("plaintext", Vec::new()), ("TLS", secret.settings())] {
        let data = temp_dir();
        let data_dir = [("FEATURESTORE_DATA_DIR", data.path().display().to_string())];
        let settings = [settings, data_dir.to_vec()].concat();
        let mut server = Binary::start(&borrowed(&settings));
        let is_ready = async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving);
        eventually("it to be ready", is_ready).await;
        let mut writers = JoinSet::new();
        for connection in 0..4 {
            let raw = std::sync::Arc::new(match how {
                "TLS" => raw::over(authority.connect(server.port, &["h2"]).await.unwrap(), &Builder::new()).await,
                _ => raw::connect(server.port, &Builder::new()).await,
            });
            for writer in 0..8 {
                let raw = raw.clone();
                writers.spawn(async move { write_on(&raw, &format!("{connection}-{writer}")).await });
            }
        }
        // Under load, and not before it or after it.
        let count = async || {
            let metrics = server.metrics().await;
            let writes = metrics.lines().find_map(|line| line.strip_prefix("featurestore_calls_in_flight "));
            writes.unwrap().parse::<f64>().unwrap()
        };
        eventually("calls to be in flight", async || count().await > 4.0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.signal("TERM");
        let told: Vec<(String, Told)> = writers.join_all().await.into_iter().flatten().collect();
        assert_eq!(server.exit_code(PATIENCE), 0, "{how}: {}", server.log());
        let written = told.iter().filter(|(_, told)| *told == Told::Written).count();
        println!("{how}: {written} writes, {} not taken", told.len() - written);
        assert!(written > 32, "{how}: {written}");

        let again = Binary::start(&data_dir.each_ref().map(|(name, value)| (*name, value.as_str())));
        again.until_serving().await;
        let mut client = again.client().await;
        for some in told.chunks(500) {
            for (row, (id, told)) in rows(&mut client, get(some.iter().map(|(id, _)| id))).await.iter().zip(some) {
                let expected = if *told == Told::Written { RowStatus::Found } else { RowStatus::NotFound };
                assert_eq!(row.status(), expected, "{how}: {id} was {told:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_bulk_stream_is_ended_and_does_not_hold_up_the_drain() {
    let mut server = Binary::start(&[("FEATURESTORE_DRAIN_TIMEOUT", "10min")]);
    server.until_serving().await;
    let mut client = server.client().await;
    let (send, messages) = tokio::sync::mpsc::channel(1);
    send.send(chunk(1, [record("a", [])])).await.unwrap();
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = client.bulk_upsert(messages).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().written, 1);
    server.signal("TERM");
    let refused = Refusal::of(&answers.message().await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str(), refused.retry), (Code::Unavailable, "DRAINING", true));
    assert_eq!(server.exit_code(PATIENCE), 0, "{}", server.log());
    drop(send);
}
