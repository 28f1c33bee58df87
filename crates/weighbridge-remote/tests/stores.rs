//! Objects of stores, read: right bytes of one version, or an error that says what to do.
#![cfg(feature = "stores")]

mod common;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use common::*;
use weighbridge_remote::ErrorKind;

const MIB: usize = 1 << 20;

#[test]
fn ranges_of_one_version() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let data = content(3 * MIB);
        store.put("m/model.safetensors", data.clone());
        let file = open(&remote, &format!("{scheme}://bucket/m/model.safetensors")).unwrap();
        assert_eq!(file.size(), data.len() as u64);
        // Neither a listing nor a HEAD was needed.
        assert_eq!(store.log().len(), 1);
        assert_eq!(*data, read_all(&file, 300_000, 4).unwrap());
        assert!(file.counts().received < (data.len() + 300_000) as u64);
        for asked in store.log().all().iter().skip(1) {
            let pin = if protocol == Protocol::Google { "x-goog-if-generation-match" } else { "if-match" };
            assert!(asked.request.header(pin).is_some(), "{protocol:?}");
        }
        // The same bytes written again are another version.
        store.put("m/model.safetensors", data.clone());
        let error = file.read_at(2 * MIB as u64, &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        assert!(
            error.to_string().starts_with(&format!("{scheme}://bucket/m/model.safetensors: ")),
            "{error}"
        );
    }
}

#[test]
fn places_and_names() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        for name in
            ["m/a.json", "m/b", "m/c.safetensors", "m/deep/d", "m/e f+g&h%41ü.json", "m", "mm/x", "m/"]
        {
            store.put(name, name.as_bytes().to_vec());
        }
        let place = locate(&remote, &format!("{scheme}://bucket/m/")).unwrap();
        assert!(store.log().is_empty() && place.file().is_none());
        let names: Vec<_> = place.names().unwrap().unwrap().into_iter().map(|n| (n.name, n.size)).collect();
        let expected = [("a.json", 8), ("b", 3), ("c.safetensors", 15), ("e f+g&h%41ü.json", 19)];
        assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
        // Pages of two, of four objects and the marker of the folder.
        assert_eq!(store.log().len(), 3);
        let all: Vec<_> = place.list("").unwrap().into_iter().map(|listed| listed.name).collect();
        assert_eq!(all, ["a.json", "b", "c.safetensors", "deep/d", "e f+g&h%41ü.json"]);
        let listed = place.list("a").unwrap().remove(0);
        assert_eq!(listed.tag, place.tag("a.json").unwrap());
        let age = listed.modified.unwrap().elapsed().unwrap();
        assert!(age < Duration::from_secs(60), "{age:?}");
        assert_eq!(place.tag("absent").unwrap(), None);
        store.put("m/empty", vec![]);
        assert_eq!(place.read("empty", 100).unwrap().as_deref(), Some(&[][..]), "{protocol:?}");
        for name in ["a.json", "deep/d", "e f+g&h%41ü.json"] {
            let bytes = place.read(name, 100).unwrap().unwrap();
            assert_eq!(bytes, format!("m/{name}").as_bytes());
        }
        assert_eq!(place.read("absent", 100).unwrap(), None);
        assert_eq!(place.read("a.json", 3).unwrap_err().kind(), ErrorKind::Malformed);
        for name in ["../x", "/x", "a/../../x", "a\\b", ""] {
            assert_eq!(place.open(name).err().unwrap().kind(), ErrorKind::Address, "{name:?}");
            assert_eq!(place.tag(name).err().unwrap().kind(), ErrorKind::Address, "{name:?}");
        }
        // What may be either is asked about once.
        store.log().clear();
        let file = locate(&remote, &format!("{scheme}://bucket/m/b")).unwrap();
        assert_eq!((file.file(), store.log().len()), (Some("b"), 1));
        let folder = locate(&remote, &format!("{scheme}://bucket/m/deep")).unwrap();
        assert_eq!((folder.file(), folder.address()), (None, format!("{scheme}://bucket/m/deep")));
        assert_eq!(folder.names().unwrap().unwrap()[0].name, "d");
        let path = place.fetch("c.safetensors", &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"m/c.safetensors");
        let error = locate(&remote, &format!("{scheme}://other/a/")).unwrap().names().unwrap_err();
        assert!(error.to_string().contains("no such bucket: other"), "{error}");
    }
}

#[test]
fn cuts_and_overloads() {
    for protocol in PROTOCOLS {
        let (store, remote, scheme) = store_of(protocol);
        let data = content(4 * MIB);
        store.put("a.bin", data.clone());
        let file = open(&remote, &format!("{scheme}://bucket/a.bin")).unwrap();
        store.faults.cut_randomly(5, 2, 100);
        store.refusals.add("a.bin", 3, Fault::Status(503, vec![], "<Error><Code>SlowDown</Code></Error>"));
        assert_eq!(*data, read_all(&file, 60_000, 8).unwrap());
        assert!(store.faults.done() > 30 && file.counts().retries >= store.faults.done());
        store.faults.clear();
        store.refusals.always("a.bin", Fault::Status(503, vec![], "<Error><Code>SlowDown</Code></Error>"));
        let error = file.read_at(MIB as u64, &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("503 SlowDown"), "{error}");
    }
}

fn refused(store: &ObjectStore, remote: weighbridge_remote::RemoteBuilder, kind: ErrorKind, parts: &[&str]) {
    store.log().clear();
    let remote = remote.build().expect("good settings");
    let error = open(&remote, "s3://bucket/a.json").expect_err("a refusal");
    assert_eq!(error.kind(), kind, "{error}");
    let shown = format!("{error} {error:?}");
    assert!(parts.iter().all(|part| shown.contains(part)), "{error}");
    assert!(!shown.contains("5ecr3t") && !shown.contains("session"), "{error}");
    assert!(!store.log().saw("5ecr3t"));
}

#[test]
fn refusals_say_what_to_do() {
    let (store, ..) = store_of(Protocol::S3);
    store.put("a.json", vec![1]);
    let with = |name: &str, value: &str| of_store(&store).store_option(name, value);
    refused(
        &store,
        with("AWS_SECRET_ACCESS_KEY", "5ecr3t2"),
        ErrorKind::Denied,
        &["SignatureDoesNotMatch", "AWS_ACCESS_KEY_ID"],
    );
    refused(&store, with("aws_access_key_id", "other"), ErrorKind::Denied, &["InvalidAccessKeyId"]);
    refused(
        &store,
        with("AWS_REGION", "eu-west-1"),
        ErrorKind::Address,
        &["in region us-east-1, not eu-west-1", "AWS_REGION=us-east-1"],
    );
    refused(&store, with("AWS_SKIP_SIGNATURE", "true"), ErrorKind::Denied, &["403 AccessDenied", "skip"]);
    let none = builder().store_option("AWS_ENDPOINT_URL", store.server().url());
    refused(
        &store,
        none.store_option("AWS_EC2_METADATA_DISABLED", "true"),
        ErrorKind::Denied,
        &["AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE=true", "~/.aws", "export-credentials"],
    );
    assert!(store.log().is_empty());
    refused(&store, with("AWS_SECRET_ACCESS_KEY", ""), ErrorKind::Denied, &["SignatureDoesNotMatch"]);
    store.renew(Key { token: Some("session".into()), ..Key::new("key", "5ecr3t") });
    refused(&store, with("AWS_REGION", "us-east-1"), ErrorKind::Denied, &["ExpiredToken", "expired"]);
    let odd = with("AWS_SESSION_TOKEN", "session\r\nx: y");
    refused(&store, odd, ErrorKind::Denied, &["a character that none has"]);
    let error = of_store(&store).store_option("S3_KEY", "x").build().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Address);
    // Google and Azure.
    let (store, ..) = store_of(Protocol::Google);
    let wrong = of_store(&store).store_option("GOOGLE_BEARER_TOKEN", "other").build().unwrap();
    let error = open(&wrong, "gs://bucket/a.json").err().unwrap();
    assert!(error.to_string().contains("401 AuthenticationRequired"), "{error}");
    let none = builder().store_option("GOOGLE_BASE_URL", store.server().url()).build().unwrap();
    let error = open(&none, "gs://bucket/a.json").err().unwrap();
    assert!(error.to_string().contains("GOOGLE_SKIP_SIGNATURE"), "{error}");
    let error = open(&builder().build().unwrap(), "az://bucket/a.json").err().unwrap();
    assert!(error.to_string().contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
}

#[test]
fn anybody_may_read_what_is_public() {
    for protocol in PROTOCOLS {
        let public = StoreOptions { protocol, public: true, ..StoreOptions::default() };
        let store = ObjectStore::start(public);
        store.put("a.json", vec![7; 100]);
        let remote = of_store(&store)
            .store_option("AWS_SKIP_SIGNATURE", "true")
            .store_option("GOOGLE_SKIP_SIGNATURE", "true")
            .store_option("AZURE_SKIP_SIGNATURE", "true")
            .build()
            .unwrap();
        let scheme = store_of(protocol).2;
        let place = locate(&remote, &format!("{scheme}://bucket/a.json")).unwrap();
        assert_eq!(place.read("a.json", 1000).unwrap().unwrap(), [7; 100]);
        let asked = store.log().all();
        assert!(asked.iter().all(|asked| asked.request.header("authorization").is_none()));
    }
}

#[test]
fn expired_credentials_are_renewed_once() {
    let (store, ..) = store_of(Protocol::S3);
    let data = content(4 * MIB);
    store.put("a.bin", data.clone());
    let session =
        |n: u32| Key { token: Some(format!("t{n}")), ..Key::new(&format!("k{n}"), &format!("s{n}")) };
    store.renew(session(1));
    let url = store.server().url();
    let remote = builder().store_option("AWS_ENDPOINT_URL", &*url).store_option("AWS_METADATA_ENDPOINT", url);
    let file = open(&remote.build().unwrap(), "s3://bucket/a.bin").unwrap();
    let before = store.log().count("/latest/api/token");
    assert_eq!(before, 1);
    store.renew(session(2));
    assert_eq!(*data, read_all(&file, 100_000, 8).unwrap());
    assert_eq!(store.log().count("/latest/api/token"), 2);
    // What nobody can renew is an error, at once.
    store.refusals.always("a.bin", Fault::Status(400, vec![], "<Error><Code>ExpiredToken</Code></Error>"));
    let start = Instant::now();
    let error = file.read_at(2 * MIB as u64, &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn credentials_for_a_web_identity() {
    let (store, ..) = store_of(Protocol::S3);
    store.put("a.json", vec![1]);
    store.renew(Key { token: Some("t1".into()), ..Key::new("k1", "5ecr3t") });
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "identity").unwrap();
    let with = |sts: &str| {
        let builder = builder().store_option("AWS_ENDPOINT_URL", store.server().url());
        let builder = builder.store_option("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap());
        builder
            .store_option("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
            .store_option("AWS_ENDPOINT_URL_STS", sts)
    };
    let remote = with(&store.server().url()).build().unwrap();
    assert_eq!(open(&remote, "s3://bucket/a.json").unwrap().size(), 1);
    std::fs::write(&token, "1dentity").unwrap();
    let url = store.server().url();
    for (sts, part) in [(&*url, "answered 403"), ("http://192.0.2.1:9", "not asked for by http")] {
        refused(&store, with(sts), ErrorKind::Denied, &["AWS_WEB_IDENTITY_TOKEN_FILE", part]);
        let error = open(&with(sts).build().unwrap(), "s3://bucket/a.json").err().unwrap();
        assert!(!format!("{error:?}").contains("1dentity"), "{error:?}");
    }
}

#[test]
fn nobody_else_is_asked() {
    let (store, remote, _) = store_of(Protocol::S3);
    let other = Web::start();
    let url = other.put("/bucket/a.json", vec![1]);
    store.put("a.json", vec![1]);
    for status in [301, 307] {
        store.faults.add("a.json", 1, Fault::Redirect(status, url.clone()));
        let error = open(&remote, "s3://bucket/a.json").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Address, "{error}");
        store.faults.add("list-type", 1, Fault::Redirect(status, url.clone()));
        assert!(locate(&remote, "s3://bucket/").unwrap().names().is_err());
    }
    assert!(other.log().is_empty());
    // Nothing is signed for a server that is neither encrypted nor here.
    let plain = |allow: &str| {
        let builder = of_store(&store).store_option("AWS_ENDPOINT_URL", "http://192.0.2.1:9");
        let remote = builder.store_option("AWS_ALLOW_HTTP", allow).offline(true).build().unwrap();
        open(&remote, "s3://bucket/a.json").err().unwrap()
    };
    assert!(plain("false").to_string().contains("AWS_ALLOW_HTTP"));
    assert_eq!(plain("true").kind(), ErrorKind::Offline);
    store.log().clear();
    let offline = of_store(&store).offline(true).build().unwrap();
    assert_eq!(open(&offline, "s3://bucket/a.json").err().unwrap().kind(), ErrorKind::Offline);
    assert!(locate(&offline, "s3://bucket/").unwrap().names().is_err());
    assert!(store.log().is_empty());
}

#[test]
fn listings_that_lie() {
    let (store, remote, _) = store_of(Protocol::S3);
    for name in ["m/../../etc", "m/a//b", "m/a\\b", "m/.", "m/good"] {
        store.put(name, vec![1]);
    }
    let place = locate(&remote, "s3://bucket/m/").unwrap();
    let names: Vec<_> = place.list("").unwrap().into_iter().map(|listed| listed.name).collect();
    assert_eq!(names, ["good"]);
    let odd = "<ListBucketResult><Contents><Key>m/a</Key><Size>1</Size><ETag>\u{e9}&#10;</ETag></Contents></ListBucketResult>";
    store.refusals.add("list-type", 1, Fault::Status(200, vec![], odd));
    let listed = place.list("").unwrap();
    assert_eq!((listed.len(), &listed[0].tag), (1, &None));
    let endless = "<ListBucketResult><NextContinuationToken>x</NextContinuationToken></ListBucketResult>";
    store.refusals.add("list-type", 10, Fault::Status(200, vec![], endless));
    assert!(place.names().unwrap().unwrap().is_empty());
    for broken in [
        "",
        "no XML",
        "<ListBucketResult><Contents><Key>a",
        "<a><b/>",
        "<ListBucketResult><Contents/></ListBucketResult>",
    ] {
        store.refusals.clear();
        store.refusals.add("list-type", 1, Fault::Status(200, vec![], broken));
        let error = place.names().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{broken:?}: {error}");
    }
}

/// A program that is asynchronous may call what blocks.
#[test]
fn inside_of_a_runtime() {
    let (store, remote, _) = store_of(Protocol::S3);
    store.put("a.json", vec![1]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let size = runtime.block_on(async { open(&remote, "s3://bucket/a.json").unwrap().size() });
    assert_eq!(size, 1);
}
