//! Repositories of a hub: few requests, the token where it belongs, errors that say what to do.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use weighbridge_remote::{Address, ErrorKind, Remote};

const MIB: usize = 1 << 20;
const TOKEN: &str = "hf_right";

fn model() -> RepoSpec {
    RepoSpec { refs: vec!["v2".into(), "refs/pr/1".into()], ..RepoSpec::default() }
        .small("config.json", "{\"a\": 1}")
        .small("onnx/config.json", "{\"b\": 2}")
        .small("empty.txt", "")
        .large("model-00001-of-00002.safetensors", Arc::new(bytes(3 * MIB, 1)))
        .large("model-00002-of-00002.safetensors", Arc::new(bytes(2 * MIB + 17, 2)))
}

fn hub() -> (Hub, String) {
    let hub = Hub::start(HubOptions::default());
    let commit = hub.put("org/name", model());
    (hub, commit)
}

fn remote(hub: &Hub) -> Remote {
    builder().endpoint(hub.url()).build().expect("valid settings")
}

fn with_token(hub: &Hub) -> Remote {
    builder().endpoint(hub.url()).token(TOKEN).build().expect("valid settings")
}

/// The content of a file of [`model`].
fn of(path: &str) -> Arc<Vec<u8>> {
    model().files[path].0.clone()
}

#[test]
fn two_requests_for_a_repository_and_two_for_a_file() {
    let (hub, commit) = hub();
    let place = locate(&with_token(&hub), "hf://org/name").unwrap();
    assert_eq!(place.address(), format!("hf://org/name@{commit}"));
    let names = place.names().unwrap().unwrap();
    let listed: Vec<_> = names.iter().map(|named| (named.name.as_str(), named.size)).collect();
    assert_eq!(
        listed,
        [
            ("config.json", 8),
            ("empty.txt", 0),
            ("model-00001-of-00002.safetensors", 3 * MIB as u64),
            ("model-00002-of-00002.safetensors", 2 * MIB as u64 + 17),
        ]
    );
    assert_eq!(hub.server().log.len(), 2);
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let (before, before_cdn) = (hub.server().log.len(), hub.cdn().log.len());
        let file = place.open(name).unwrap();
        assert_eq!(hub.server().log.len(), before + 1);
        assert_eq!(hub.cdn().log.len(), before_cdn + 1);
        assert_eq!(file.tag(), Some(sha256(&of(name)).as_str()));
        assert_eq!(*of(name), read_all(&file, MIB / 2, 4).unwrap());
        // All else came from where the hub had sent to.
        assert_eq!(hub.server().log.len(), before + 1);
        assert!(file.address().starts_with(&format!("hf://org/name@{commit}/model-0000")));
    }
    let config = place.read("config.json", 1000).unwrap().unwrap();
    assert_eq!(config, b"{\"a\": 1}");
    assert_eq!(place.read("absent.json", 1000).unwrap(), None);
    assert_eq!(place.read("empty.txt", 1000).unwrap().unwrap(), b"");
    // The token went to the hub alone, each time.
    let asked = hub.server().log.all();
    assert!(asked.iter().all(|asked| asked.request.header("authorization") == Some("Bearer hf_right")));
    assert!(!hub.cdn().log.is_empty() && !hub.cdn().log.saw(TOKEN));
}

#[test]
fn folders_files_revisions_and_kinds() {
    let (hub, commit) = hub();
    hub.put_kind("datasets", "org/data", model());
    hub.put("old", model());
    let remote = remote(&hub);
    let place = locate(&remote, "hf://org/name/onnx").unwrap();
    assert_eq!(place.file(), None);
    assert_eq!(place.names().unwrap().unwrap().len(), 1);
    assert_eq!(place.read("config.json", 100).unwrap().unwrap(), b"{\"b\": 2}");
    let place = locate(&remote, "hf://org/name@refs/pr/1/onnx/config.json").unwrap();
    assert_eq!(
        (place.file(), place.address()),
        (Some("config.json"), format!("hf://org/name@{commit}/onnx"))
    );
    assert_eq!(place.open("config.json").unwrap().tag(), Some(git_sha1(b"{\"b\": 2}").as_str()));
    assert!(place.open("../config.json").is_err());
    for address in ["hf://org/name@v2", "hf://datasets/org/data", "hf://old", "hf://old@main"] {
        let place = locate(&remote, address).unwrap();
        assert_eq!(place.read("config.json", 100).unwrap().unwrap(), b"{\"a\": 1}", "{address}");
    }
    // A commit is not asked for.
    hub.server().log.clear();
    locate(&remote, &format!("hf://org/name@{commit}")).unwrap();
    assert_eq!(hub.server().log.len(), 0);
}

#[test]
fn listings_have_pages() {
    let hub = Hub::start(HubOptions { page: 2, ..HubOptions::default() });
    hub.put("org/name", model());
    let place = locate(&remote(&hub), "hf://org/name").unwrap();
    assert_eq!(place.names().unwrap().unwrap().len(), 4);
    assert_eq!(hub.server().log.count("/tree/"), 3);
    assert!(place.open("onnx/config.json").is_ok());
}

#[test]
fn a_mirror_without_the_api() {
    let hub = Hub::start(HubOptions { api: false, ..HubOptions::default() });
    let commit = hub.put("org/name", model());
    let place = locate(&remote(&hub), "hf://org/name").unwrap();
    assert_eq!(place.address(), format!("hf://org/name@{commit}"));
    assert!(place.names().unwrap().is_none());
    let name = "model-00002-of-00002.safetensors";
    let file = place.open(name).unwrap();
    assert_eq!(file.tag(), Some(sha256(&of(name)).as_str()));
    assert_eq!(*of(name), read_all(&file, MIB, 2).unwrap());
    assert_eq!(place.read("absent.json", 1000).unwrap(), None);
    let error = locate(&remote(&hub), "hf://org/other").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn expired_signatures_are_renewed_once_for_all() {
    let (hub, _) = hub();
    let name = "model-00001-of-00002.safetensors";
    let file = locate(&remote(&hub), "hf://org/name").unwrap().open(name).unwrap();
    for renewals in 1..4 {
        hub.expire();
        assert_eq!(*of(name), read_all(&file, 100_000, 16).unwrap());
        assert_eq!(hub.server().log.count("/resolve/"), 1 + renewals);
    }
    // What is refused although it was renewed is an error.
    let refuse = Fault::Status(403, vec![], "<Error>");
    hub.cdn_faults.always("/blob/", refuse);
    let error = file.read_at(MIB as u64, &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(!error.to_string().contains("Signature"), "{error}");
}

#[test]
fn errors_say_what_to_do() {
    let (hub, _) = hub();
    hub.put("org/private", RepoSpec { access: Access::Private, ..model() });
    hub.put("org/gated", RepoSpec { access: Access::Gated, ..model() });
    hub.put("org/disabled", RepoSpec { access: Access::Disabled, ..model() });
    let (anybody, owner) = (remote(&hub), with_token(&hub));
    let wrong = builder().endpoint(hub.url()).token("hf_wrong").build().unwrap();
    let error = |remote: &Remote, address: &str| {
        let error = locate(remote, address)
            .and_then(|place| place.open(place.file().unwrap_or("config.json")).map(|_| ()))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("hf://org/") && !text.contains('\n'), "{text}");
        assert!(!text.contains("hf_right") && !text.contains("hf_wrong"), "{text}");
        (error.kind(), text)
    };
    assert!(locate(&owner, "hf://org/private").is_ok());
    let expected = [
        (&anybody, "hf://org/private", ErrorKind::NotFound, "or it is private: then set HF_TOKEN"),
        (&anybody, "hf://org/none", ErrorKind::NotFound, "no such repository"),
        (&owner, "hf://org/none", ErrorKind::NotFound, "the token has no access to it"),
        (&anybody, "hf://org/gated", ErrorKind::Denied, "/org/gated, then set HF_TOKEN (no token was sent)"),
        (&owner, "hf://org/gated", ErrorKind::Denied, "accept its terms at http"),
        (&owner, "hf://org/disabled", ErrorKind::Denied, "disabled"),
        (&wrong, "hf://org/name", ErrorKind::Denied, "token is not valid"),
        (&anybody, "hf://org/name@v3", ErrorKind::NotFound, "no such revision: v3"),
        (&anybody, "hf://org/name/confg.json", ErrorKind::NotFound, "nearest: config.json"),
        (&anybody, "hf://org/name/onnx/model.bin", ErrorKind::NotFound, "no such file: onnx/model.bin"),
    ];
    for (remote, address, kind, part) in expected {
        let (is, text) = error(remote, address);
        assert!(is == kind && text.contains(part), "{address}: {is:?} {text}");
    }
    // A mirror has no listing to say that a file is absent.
    let mirror = Hub::start(HubOptions { api: false, ..HubOptions::default() });
    mirror.put("org/name", model());
    let (kind, text) = error(&remote(&mirror), "hf://org/name/none.json");
    assert!(kind == ErrorKind::NotFound && text.contains("no such file: none.json"), "{text}");
}

#[test]
fn rate_limits_by_the_hubs_own_times() {
    let (hub, _) = hub();
    let remote = remote(&hub);
    let limited = |seconds: u64| {
        let headers = vec![
            ("RateLimit", format!("\"resolvers\";r=0;t={seconds}")),
            ("RateLimit-Policy", "\"fixed window\";\"resolvers\";q=3000;w=300".to_owned()),
        ];
        Fault::Status(429, headers, "")
    };
    let place = locate(&remote, "hf://org/name").unwrap();
    place.names().unwrap();
    hub.faults.add("/resolve/", 1, limited(1));
    let start = Instant::now();
    place.open("model-00001-of-00002.safetensors").unwrap();
    assert!((2.0..4.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    hub.faults.always("/resolve/", limited(2000));
    let error = place.open("model-00002-of-00002.safetensors").err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("rate limit of the hub reached (resolvers: 0 of 3000 left); it ends in 2000 s"),
        "{text}"
    );
}

#[test]
fn what_the_cdn_has_is_checked() {
    let (hub, _) = hub();
    let place = locate(&remote(&hub), "hf://org/name").unwrap();
    let name = "model-00001-of-00002.safetensors";
    let content = of(name);
    let file = place.open(name).unwrap();
    let mut other = content.to_vec();
    other[2 * MIB] ^= 1;
    // Another tag: seen at once.
    hub.corrupt(&content, other.clone(), "\"another\"");
    let error = file.read_at(MIB as u64, &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    // The tag that it had: seen by whoever reads all of it.
    hub.corrupt(&content, other, &format!("\"{}\"", &sha256(&content)[..32]));
    let error = place.fetch(name, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checksum);
    // Another size: seen with the first answer.
    hub.corrupt(&content, vec![0; MIB], "\"another\"");
    assert_eq!(place.open(name).err().unwrap().kind(), ErrorKind::Malformed);
}

#[test]
fn whole_files_with_progress_and_cancelled() {
    let (hub, _) = hub();
    let place = locate(&remote(&hub), "hf://org/name").unwrap();
    let mut last = (0, 0);
    for name in ["model-00001-of-00002.safetensors", "onnx/config.json", "empty.txt"] {
        let path = place
            .fetch(name, &mut |have, size| {
                last = (have, size);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), *of(name));
        assert_eq!((last.0, last.1), (last.1, last.1));
    }
    let path = place.fetch("config.json", &mut |_, _| ControlFlow::Continue(())).unwrap();
    // The head comes, and then nothing.
    let stall = Fault::Send(Trick::Stall(100, Duration::from_secs(30)));
    hub.cdn_faults.add_after("/blob/", 1, usize::MAX, stall);
    let start = Instant::now();
    let error = place.fetch("model-00002-of-00002.safetensors", &mut |_, _| ControlFlow::Break(()));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    drop(place);
    assert!(!path.exists());
}

#[test]
fn offline_makes_no_connection() {
    let (hub, _) = hub();
    let web = Web::start();
    let url = web.put("/m.bin", vec![0; 10]);
    let remote = builder().endpoint(hub.url()).offline(true).build().unwrap();
    assert_eq!(locate(&remote, "hf://org/name").err().unwrap().kind(), ErrorKind::Offline);
    assert_eq!(open(&remote, &url).err().unwrap().kind(), ErrorKind::Offline);
    assert_eq!(hub.server().log.connections() + web.log().connections(), 0);
}

#[test]
fn cuts_at_the_hub_and_its_cdn() {
    let (hub, _) = hub();
    hub.faults.cut_randomly(3, 3, 40);
    hub.cdn_faults.cut_randomly(5, 3, 200);
    let remote = builder().endpoint(hub.url()).attempts(12).build().unwrap();
    let mut rounds = 0;
    while hub.cdn_faults.done() < 200 {
        let place = locate(&remote, "hf://org/name").unwrap();
        for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
            let file = place.open(name).unwrap();
            assert_eq!(*of(name), read_all(&file, 100_000, 8).unwrap());
        }
        rounds += 1;
        assert!(rounds < 100);
    }
}

#[test]
fn addresses() {
    let shown = |text: &str| Address::parse(text).unwrap().map(|address| address.to_string());
    for same in [
        "hf://org/name",
        "hf://org/name@main",
        "hf://org/name@refs/pr/1",
        "hf://org/name@refs/convert/parquet/a/b.parquet",
        "hf://org/name@feature%2Fx/config.json",
        "hf://datasets/org/name/a b.json",
        "hf://spaces/org/name",
        "hf://gpt2",
        "hf://gpt2@main/config.json",
        "https://host/a/b.bin",
        "https://host:8443/",
        "s3://bucket/a/b",
        "gs://bucket/",
        "az://container/x.safetensors",
    ] {
        assert_eq!(shown(same).unwrap(), same);
    }
    assert_eq!(shown("hf://models/org/name/").unwrap(), "hf://org/name");
    assert_eq!(shown("https://HOST/a?X-Signature=secret").unwrap(), "https://host/a");
    for path in ["model.safetensors", "/a/b", "file:///a", "C://a", "./hf:/x"] {
        assert!(Address::parse(path).is_none(), "{path}");
    }
    for bad in [
        "hf://",
        "hf:///name",
        "hf://org/na me",
        "hf://org/name@",
        "hf://org/name@a..b",
        "hf://org/name/../x",
        "hf://org/name/a\\b",
        "hf://org/name/a\nb",
        "hf://org/name?x",
        "hf://org/..",
        "hf://-org/name",
        "hf://org/name//x",
        "hf://org/name@a%0d%0aX:y",
        "https://user:hunter2@host/a",
        "https:///a",
        "https://host/%2e%2e/a",
        "https://host/../a",
        "https://host/a\\b",
        "https://host/a\r\nX: y",
        "https://host/a%zz",
        "https://ho st/a",
        "https://host:99999/a",
        "s3://",
        "s3://key:hunter2@bucket/a",
        "s3://bucket/../a",
        "gs://bucket//a",
        "az://b\n/a",
        "https://host/a?b c",
    ] {
        let error = Address::parse(bad).unwrap().expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Address, "{bad:?}");
        let text = error.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!text.contains('\n') && !text.contains('\r'), "{text:?}");
    }
}
