//! Compiles the proto without a protoc: protox makes the descriptor set, tonic's generators make the code.
//!
//! Three outputs: the server's code, in which a read's ids are one piece and a row is pre-encoded bytes (`extern_path`); a plain client for tests
//! and benches; and the raw-bytes service that the bench's floor server speaks.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;
use protox::Compiler;

const PROTO: &str = "featurestore/v1/featurestore.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    if Path::new(".git/logs/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/logs/HEAD");
    }
    // No name of our settings: `cargo run` gives it to the server's environment, which warns of settings that it does not know.
    println!("cargo::rustc-env=BUILD_GIT_COMMIT={}", git_commit());

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = Compiler::new(["proto"])?;
    // Source info keeps the comments, so that they can be read through reflection.
    compiler.include_source_info(true).include_imports(true).open_file(PROTO)?;
    let descriptors = compiler.file_descriptor_set();
    fs::write(out.join("featurestore.v1.descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".")
        .btree_map(".featurestore.v1")
        .extern_path(".featurestore.v1.GetFeaturesRequest", "crate::proto::GetFeaturesRequest")
        .extern_path(".featurestore.v1.GetFeaturesResponse", "crate::proto::GetFeaturesResponse")
        .extern_path(".featurestore.v1.FeatureRow", "crate::proto::EncodedRow")
        .extern_path(".featurestore.v1.FeatureRecord", "crate::record::FeatureRecord")
        .codec_path("crate::proto::SizedCodec")
        .compile_fds(descriptors.clone())?;

    let client = out.join("client");
    fs::create_dir_all(&client)?;
    tonic_prost_build::configure()
        .build_server(false)
        .btree_map(".featurestore.v1")
        .out_dir(client)
        .compile_fds(descriptors)?;

    floor_service();
    Ok(())
}

/// The bench's floor: GetFeatures with pre-encoded bytes in and out, so nothing but gRPC itself is measured.
fn floor_service() {
    let get = tonic_build::manual::Method::builder()
        .name("get_features")
        .route_name("GetFeatures")
        .input_type("bytes::Bytes")
        .output_type("bytes::Bytes")
        .codec_path("crate::codec::RawCodec")
        .build();
    let service =
        tonic_build::manual::Service::builder().name("FloorService").package("featurestore.floor").method(get).build();
    tonic_build::manual::Builder::new().compile(&[service]);
}

/// As the build says (an image is built without .git), else as git says.
fn git_commit() -> String {
    println!("cargo::rerun-if-env-changed=FEATURESTORE_BUILD_COMMIT");
    if let Ok(commit) = env::var("FEATURESTORE_BUILD_COMMIT") {
        return commit;
    }
    Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |commit| commit.trim().to_owned())
}
