//! `--serve FOLDER`: floor and server with the same answers, for another load generator (`benches/h2load.sh`). Requests go
//! to files in the folder; a line on each tells the name, the URL and the file. Ends with standard input.

use std::path::Path;

use crate::{bench::Bench, codec::framed, data::Ask, floor::Floor, pb::Source, rows::f20, server::Server};

pub(crate) async fn run(bench: &Bench, folder: &Path) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let server = Server::start(&bench.folder()?.join("data"), Vec::new()).await?;
    let set = f20();
    server.load(&set, 0..set.entities, true).await?;
    server.until_answered_by(Source::L1, &set).await?;
    let mut floors = Vec::new();
    for entities in [1, 100] {
        let request = Ask::rows(entities).request(set.view, &(0..entities as u64).collect::<Vec<_>>());
        let file = folder.join(format!("request-{entities}"));
        std::fs::write(&file, framed(&request)).map_err(|e| e.to_string())?;
        let answers = server.wire("GetFeatures", 1, &[request]).await?.learn(0).await?;
        let floor = Floor::start(&answers, &bench.folder()?).await?;
        let url = |port: u16, path: &str| format!("http://127.0.0.1:{port}{path}");
        println!("floor-{entities} {} {}", url(floor.port(), Floor::path()), file.display());
        let path = "/featurestore.v1.FeatureStoreService/GetFeatures";
        println!("ours-{entities} {} {}", url(server.port(), path), file.display());
        floors.push(floor);
    }
    println!("ready");
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
    Ok(())
}
