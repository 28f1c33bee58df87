//! Encrypted connections: authorities of one's own, and what is not trusted.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use weighbridge_remote::ErrorKind;

type Failure = Box<dyn std::error::Error>;

/// A certificate of an authority of our own for this machine, in PEM the authority's.
fn certificate() -> Result<(String, ServerConfig), Failure> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let pem = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let leaf =
        CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?.signed_by(&key, &issuer)?;
    let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok((pem, config.with_no_client_auth().with_single_cert(chain, key)?))
}

/// Encrypts a server: passes on what comes, one request a connection.
fn encrypt(to: SocketAddr, config: ServerConfig) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || pass_on(stream, to, config));
        }
    });
    Ok(address)
}

fn pass_on(stream: TcpStream, to: SocketAddr, config: Arc<ServerConfig>) -> Option<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config).ok()?, stream);
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).ok()?.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut server = TcpStream::connect(to).ok()?;
    server.write_all(request.as_bytes()).ok()?;
    server.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let _ = std::io::copy(&mut server, &mut stream);
    stream.conn.send_close_notify();
    let _ = stream.flush();
    Some(())
}

#[test]
fn authorities_of_ones_own() {
    let web = Web::start();
    let data = content(300_000);
    web.put("/m.bin", data.clone());
    web.put("/away", vec![0; 10]);
    web.faults.always("/away", Fault::Redirect(302, format!("{}/m.bin", web.server().url())));
    let (pem, config) = certificate().unwrap();
    let address = encrypt(web.server().address(), config).unwrap();
    let url = format!("https://localhost:{}/m.bin", address.port());
    // Nobody knows it.
    let start = Instant::now();
    let error = open(&builder().build().unwrap(), &url).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "it is not asked again");
    assert!(web.log().is_empty());
    // A process that is told of it does: this test program, once more.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("authority.pem");
    std::fs::write(&file, pem).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_that_trusts", "--nocapture"])
        .env("SSL_CERT_FILE", &file)
        .env("WEIGHBRIDGE_TEST_URL", &url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!web.log().is_empty());
}

/// What [`authorities_of_ones_own`] starts.
#[test]
fn in_a_process_that_trusts() {
    let Ok(url) = std::env::var("WEIGHBRIDGE_TEST_URL") else { return };
    let remote = builder().build().unwrap();
    let file = open(&remote, &url).unwrap();
    assert_eq!(*content(300_000), read_all(&file, 100_000, 2).unwrap());
    // From here to what is not encrypted there is no way.
    let error = open(&remote, &url.replace("m.bin", "away")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("from https to http"), "{error}");
}
