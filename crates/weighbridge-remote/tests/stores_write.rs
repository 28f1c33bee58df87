//! Objects of stores, written: whole or not at all, by whom the precondition allows, whatever answers are
//! lost.
#![cfg(feature = "stores")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use weighbridge_remote::{ErrorKind, Place, Result, Tag, Upload, When};

const MIB: usize = 1 << 20;

/// The scheme's bucket, and its store.
fn bucket(protocol: Protocol) -> (ObjectStore, Place, &'static str) {
    let (store, remote, scheme) = store_of(protocol);
    let place = locate(&remote, &format!("{scheme}://bucket/m/")).expect("a place");
    (store, place, scheme)
}

/// Sends all parts, the last first, by threads.
fn send(upload: &Upload, data: &[u8]) -> Result<()> {
    let size = usize::try_from(upload.part_size()).expect("it fits");
    std::thread::scope(|scope| {
        let parts = data.chunks(size).enumerate().rev();
        let threads: Vec<_> = parts.map(|(n, part)| scope.spawn(move || upload.part(n, part))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })
}

fn lost() -> Fault {
    Fault::Send(Trick::CutHead(0))
}

/// Several threads use the same one.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<(Upload, Place, Tag, When)>();
};

#[test]
fn preconditions() {
    for protocol in PROTOCOLS {
        let (store, place, scheme) = bucket(protocol);
        let first = place.put("a.json", b"first", When::Absent).unwrap();
        assert_eq!(place.tag("a.json").unwrap(), Some(first.clone()));
        let error = place.put("a.json", b"second", When::Absent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed);
        assert!(error.to_string().starts_with(&format!("{scheme}://bucket/m/a.json: it exists")), "{error}");
        let second = place.put("a.json", b"second", When::Unchanged(first.clone())).unwrap();
        assert_ne!(first, second);
        let kept = Tag::new(first.as_str()).unwrap();
        assert_eq!(
            place.put("a.json", b"third", When::Unchanged(kept)).unwrap_err().kind(),
            ErrorKind::Changed
        );
        assert_eq!(**store.content("m/a.json").unwrap(), *b"second");
        place.put("a.json", b"", When::Always).unwrap();
        assert!(store.content("m/a.json").unwrap().is_empty());
        place.delete("a.json").unwrap();
        place.delete("a.json").unwrap();
        assert!(store.keys().is_empty());
        let error = place.put("a.json", b"x", When::Unchanged(second)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        assert!(Tag::new("").is_none() && Tag::new("a\r\nb").is_none());
    }
}

#[test]
fn parts_in_any_order() {
    for protocol in PROTOCOLS {
        let (store, place, _) = bucket(protocol);
        let data = content(35 * MIB + 5);
        let upload = place.upload("a b.bin", data.len() as u64).unwrap();
        assert_eq!((upload.parts(), upload.part_size()), (3, 16 * MIB as u64));
        // Each of these attempts breaks in another way.
        store.refusals.add("a%20b", 1, Fault::Status(503, vec![], "<Error><Code>SlowDown</Code></Error>"));
        store.refusals.add("a%20b", 1, Fault::Status(400, vec![], "<Error><Code>BadDigest</Code></Error>"));
        store.faults.add("a%20b", 2, lost());
        send(&upload, &data).unwrap();
        upload.part(1, &data[16 * MIB..32 * MIB]).unwrap();
        assert!(store.keys().is_empty());
        let tag = upload.complete(When::Absent).unwrap();
        assert!(store.content("m/a b.bin").unwrap() == data);
        assert_eq!(place.tag("a b.bin").unwrap(), Some(tag.clone()));
        assert_eq!(store.uploads(), 0);
        let error = replace(&place, "a b.bin", &data, When::Absent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        let next = replace(&place, "a b.bin", &data[5..], When::Unchanged(tag.clone())).unwrap();
        assert_ne!(tag, next);
        let error = replace(&place, "a b.bin", &data, When::Unchanged(tag)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        assert!(store.content("m/a b.bin").unwrap()[..] == data[5..]);
        assert_eq!(store.uploads(), 0);
    }
}

fn replace(place: &Place, name: &str, data: &[u8], when: When) -> Result<Tag> {
    let upload = place.upload(name, data.len() as u64)?;
    send(&upload, data)?;
    upload.complete(when)
}

#[test]
fn small_uploads_are_one_request() {
    for protocol in PROTOCOLS {
        let (store, place, _) = bucket(protocol);
        for length in [0, 5, 16 * MIB] {
            store.log().clear();
            let data = content(length);
            let upload = place.upload("a.bin", length as u64).unwrap();
            assert_eq!(upload.parts(), 1);
            send(&upload, &data).unwrap();
            upload.complete(When::Always).unwrap();
            assert_eq!(store.log().len(), 1);
            assert!(store.content("m/a.bin").unwrap() == data);
        }
    }
}

#[test]
fn answers_that_are_lost() {
    for protocol in PROTOCOLS {
        let (store, _, scheme) = bucket(protocol);
        let remote = of_store(&store).attempts(2).build().unwrap();
        let place = locate(&remote, &format!("{scheme}://bucket/m/")).unwrap();
        // The write was done; its second attempt is refused, for the object is there.
        store.faults.add("a.json", 1, lost());
        let tag = place.put("a.json", b"mine", When::Absent).unwrap();
        assert_eq!(place.tag("a.json").unwrap(), Some(tag.clone()));
        store.faults.add("a.json", 1, Fault::Status(500, vec![], ""));
        let next = place.put("a.json", b"mine too", When::Unchanged(tag)).unwrap();
        // No attempt is answered: it is looked at.
        store.faults.add("a.json", 2, lost());
        place.put("a.json", b"again", When::Unchanged(next)).unwrap();
        assert_eq!(**store.content("m/a.json").unwrap(), *b"again");
        // Another's object of the same bytes is not ours.
        store.refusals.add("b.json", 1, Fault::Status(500, vec![], ""));
        store.put("m/b.json", b"mine".to_vec());
        let error = place.put("b.json", b"mine", When::Absent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        // Parts.
        let completing = if protocol == Protocol::Azure { "blocklist" } else { "?uploadId" };
        let data = content(20 * MIB);
        let upload = place.upload("c.bin", data.len() as u64).unwrap();
        send(&upload, &data).unwrap();
        store.faults.add(completing, 1, lost());
        let tag = upload.complete(When::Absent).unwrap();
        assert_eq!(place.tag("c.bin").unwrap(), Some(tag.clone()));
        let upload = place.upload("c.bin", data.len() as u64).unwrap();
        send(&upload, &data).unwrap();
        store.faults.add(completing, 2, lost());
        let next = upload.complete(When::Unchanged(tag.clone())).unwrap();
        assert_ne!(tag, next);
        // Nothing was done, and nobody answers.
        let upload = place.upload("d.bin", data.len() as u64).unwrap();
        send(&upload, &data).unwrap();
        store.refusals.add(completing, 2, Fault::Status(500, vec![], ""));
        assert_eq!(upload.complete(When::Absent).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(store.content("m/d.bin"), None);
        assert_eq!(store.uploads(), 0);
    }
}

#[test]
fn a_chain_of_versions_whatever_breaks() {
    for protocol in PROTOCOLS {
        let (store, place, _) = bucket(protocol);
        let mut tag = place.put("a.json", b"first", When::Absent).unwrap();
        for (n, random) in (0..).zip(bytes(12, 3)) {
            let slow = "<Error><Code>SlowDown</Code></Error>";
            for (bit, fault) in [(1, Fault::Status(503, vec![], slow)), (2, Fault::Status(500, vec![], ""))] {
                if random & bit != 0 {
                    store.refusals.add("a.json", 1, fault);
                }
            }
            for (bit, fault) in [(4, lost()), (8, Fault::Status(500, vec![], "")), (16, lost())] {
                if random & bit != 0 {
                    store.faults.add("a.json", 1, fault);
                }
            }
            let content = format!("{n}");
            tag = place.put("a.json", content.as_bytes(), When::Unchanged(tag)).unwrap();
            assert_eq!(**store.content("m/a.json").unwrap(), *content.as_bytes());
            assert_eq!(place.tag("a.json").unwrap().as_ref(), Some(&tag));
        }
        assert!(store.faults.done() > 5);
    }
}

#[test]
fn failures_with_a_status_of_success() {
    let (store, place, _) = bucket(Protocol::S3);
    let data = content(20 * MIB);
    for (code, kind) in [("InternalError", None), ("AccessDenied", Some(ErrorKind::Malformed))] {
        let upload = place.upload("a.bin", data.len() as u64).unwrap();
        send(&upload, &data).unwrap();
        let body: &'static str = if code == "InternalError" {
            "\n <Error><Code>InternalError</Code></Error>"
        } else {
            "<Error><Code>X</Code></Error>"
        };
        store.refusals.add("uploadId", 1, Fault::Status(200, vec![], body));
        assert_eq!(upload.complete(When::Always).err().map(|error| error.kind()), kind);
        assert_eq!(store.uploads(), 0);
    }
    // No answer at all with a status of success: it is looked at.
    let upload = place.upload("b.bin", data.len() as u64).unwrap();
    send(&upload, &data).unwrap();
    store.refusals.add("uploadId", 1, Fault::Status(200, vec![], ""));
    assert_eq!(upload.complete(When::Always).unwrap_err().kind(), ErrorKind::Malformed);
    assert_eq!(store.keys(), ["m/a.bin"]);
}

#[test]
fn what_is_not_completed_is_not_there() {
    for protocol in PROTOCOLS {
        let (store, place, scheme) = bucket(protocol);
        let data = content(20 * MIB);
        let start = || place.upload("a.bin", data.len() as u64).unwrap();
        let upload = start();
        for (number, bytes) in
            [(0, &data[1..16 * MIB]), (1, &data[..16 * MIB]), (2, &data[..1]), (1, &[][..])]
        {
            let error = upload.part(number, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed);
            assert!(error.to_string().starts_with(&format!("{scheme}://bucket/m/a.bin: ")), "{error}");
        }
        upload.part(1, &data[16 * MIB..]).unwrap();
        assert!(upload.complete(When::Always).unwrap_err().to_string().contains("not all parts"));
        assert_eq!((store.uploads(), store.keys().len()), (0, 0));
        let upload = start();
        send(&upload, &data).unwrap();
        upload.abort();
        assert_eq!((store.uploads(), store.keys().len()), (0, 0));
        // A process that is killed cannot abort.
        let left = if protocol == Protocol::Azure { 0 } else { 3 };
        for _ in 0..3 {
            let upload = start();
            upload.part(0, &data[..16 * MIB]).unwrap();
            std::mem::forget(upload);
        }
        std::mem::forget(
            locate(&of_store(&store).build().unwrap(), &format!("{scheme}://bucket/"))
                .unwrap()
                .upload("n", 20 << 20),
        );
        assert!(store.keys().is_empty());
        assert_eq!(place.abort_stale("a", Duration::from_secs(100 * 365 * 86_400)).unwrap(), 0);
        assert_eq!(place.abort_stale("other", Duration::ZERO).unwrap(), 0);
        assert_eq!(place.abort_stale("a", Duration::ZERO).unwrap(), left);
        assert_eq!(store.uploads(), usize::from(left > 0));
    }
}

#[test]
fn stores_that_ignore_preconditions_are_found_out() {
    for protocol in PROTOCOLS {
        for preconditions in [true, false] {
            let store =
                ObjectStore::start(StoreOptions { protocol, preconditions, ..StoreOptions::default() });
            let scheme = store_of(protocol).2;
            let place = locate(&of_store(&store).build().unwrap(), &format!("{scheme}://bucket/m/")).unwrap();
            assert_eq!(place.honours_preconditions().unwrap(), preconditions, "{protocol:?}");
            let asked = store.log().len();
            place.honours_preconditions().unwrap();
            assert_eq!(store.log().len(), asked);
            assert!(store.keys().is_empty());
        }
    }
}

#[test]
fn an_upload_is_interrupted_at_once() {
    let (store, place, _) = bucket(Protocol::S3);
    let data = content(20 * MIB);
    let upload = place.upload("a.bin", data.len() as u64).unwrap();
    store.faults.add("partNumber", 1, Fault::Late(Duration::from_secs(1)));
    std::thread::scope(|scope| {
        let part =
            scope.spawn(|| upload.part(0, &data[..16 * MIB]).map_err(|error| (error.kind(), Instant::now())));
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        upload.interrupt();
        let (kind, end) = part.join().unwrap().unwrap_err();
        assert_eq!(kind, ErrorKind::Cancelled);
        assert!(end - start < Duration::from_millis(100), "{:?}", end - start);
    });
    // It goes on where it is wanted to.
    send(&upload, &data).unwrap();
    upload.complete(When::Always).unwrap();
    assert!(store.content("m/a.bin").unwrap() == data);
}

#[test]
fn other_places_are_not_written_to() {
    let web = Web::start();
    let url = web.put("/a/b.bin", vec![1]);
    let place = locate(&builder().build().unwrap(), &url).unwrap();
    let error = place.put("b.bin", b"x", When::Always).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(place.upload("b.bin", 1).is_err() && place.delete("b.bin").is_err() && place.list("").is_err());
    assert!(web.log().is_empty());
}

#[test]
fn encryption_is_asked_for() {
    let (store, ..) = store_of(Protocol::S3);
    let builder = of_store(&store).store_option("AWS_SERVER_SIDE_ENCRYPTION", "sse-kms");
    let remote = builder.store_option("AWS_SSE_KMS_KEY_ID", "k1").build().unwrap();
    let place = locate(&remote, "s3://bucket/m/").unwrap();
    place.put("a", b"x", When::Always).unwrap();
    let _ = place.upload("b", 20 << 20).unwrap();
    for asked in store.log().all().iter().filter(|asked| asked.request.method != "DELETE") {
        assert_eq!(asked.request.header("x-amz-server-side-encryption"), Some("aws:kms"));
        assert_eq!(asked.request.header("x-amz-server-side-encryption-aws-kms-key-id"), Some("k1"));
    }
    let own = of_store(&store).store_option("AWS_SERVER_SIDE_ENCRYPTION", "sse-c").build().unwrap();
    assert_eq!(locate(&own, "s3://bucket/m/").err().unwrap().kind(), ErrorKind::Unsupported);
}
