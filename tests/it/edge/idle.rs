//! Connections that do nothing, up to as many as the server takes.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

/// Connects as a client of gRPC does, and waits until the server has said hello too.
async fn connect(port: u16) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.read_u8().await?;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_idle_connections_cost_little_and_another_client_is_served() {
    // 10,000 by hand, where the limit of open files is beyond that.
    let count: usize = std::env::var("FEATURESTORE_TEST_IDLE").map_or(500, |count| count.parse().unwrap());
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_CONNECTIONS", "10050")]);
    server.until_serving().await;
    another_is_served(&server).await;
    let before = server.memory();
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(connect(server.port).await.unwrap());
    }
    let after = server.memory();
    let each = after.saturating_sub(before) / count;
    println!("{count} idle connections: {} KiB, then {} KiB: {each} bytes each", before >> 10, after >> 10);
    assert!(each < 128 << 10, "{each}");
    another_is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_cap_are_closed_at_once_and_probes_still_answered() {
    let server = Binary::start(&[("FEATURESTORE_LIMITS_MAX_CONNECTIONS", "3")]);
    eventually("it to be ready", async || server.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(connect(server.port).await.unwrap());
    }
    for _ in 0..20 {
        assert!(connect(server.port).await.is_err(), "it was taken");
        assert_eq!(server.admin_health(SERVICE).await, Some(ServingStatus::Serving));
    }
    assert_eq!(server.log().matches("limits.max_connections").count(), 1, "{}", server.log());
    taken.pop();
    eventually("a place to be free", async || server.health(SERVICE).await == Some(ServingStatus::Serving)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised_or_bounds_the_connections() {
    let serve = |ulimit: &str| Binary::start_under(&["sh", "-c", &format!("ulimit {ulimit}; exec \"$@\""), "sh"], &[]);
    let limit = |server: &Binary| {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let mut words = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
        (words.next().unwrap(), words.next().unwrap())
    };
    let raised = serve("-S -n 256");
    raised.until_serving().await;
    let (soft, hard) = limit(&raised);
    assert_eq!(soft, hard.min(10_300));

    let low = serve("-n 400");
    low.until_serving().await;
    assert!(low.log().contains("ulimit -n"), "{}", low.log());
    let mut idle = Vec::new();
    for _ in 0..150 {
        idle.push(TcpStream::connect(low.address()).await.unwrap());
    }
    eventually("health beside them", async || low.admin_health(SERVICE).await == Some(ServingStatus::Serving)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_clients_of_the_admin_port_keep_no_probe_out() {
    let server = Binary::start(&[]);
    server.until_serving().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(connect(server.admin_port).await.unwrap());
    }
    assert_eq!(server.admin_health(SERVICE).await, Some(ServingStatus::Serving));
    assert!(server.metrics().await.contains("featurestore_"));
}
