//! Where servers may not send us, and what they may not learn.

mod common;

use std::sync::Mutex;

use common::*;
use weighbridge_remote::{ErrorKind, RemoteBuilder};

const TOKEN: &str = "hf_right";

/// A remote to whom `public.example` and `other.example` are servers on the internet.
fn outside(web: &Web, other: &Web) -> (RemoteBuilder, Proxy) {
    let proxy = Proxy::start([
        ("public.example", web.server().address()),
        ("other.example", other.server().address()),
    ]);
    (builder().proxy(proxy.url()).allow_http(), proxy)
}

#[test]
fn proxies_are_used_but_for_this_machine() {
    let (web, other) = (Web::start(), Web::start());
    let data = content(600_000);
    let local = web.put("/m.bin", data.clone());
    let (builder, proxy) = outside(&web, &other);
    let remote = builder.build().unwrap();
    let file = open(&remote, "http://public.example/m.bin").unwrap();
    assert_eq!(*data, read_all(&file, 100_000, 2).unwrap());
    assert!(proxy.asked().iter().all(|asked| asked == "public.example:80") && !proxy.asked().is_empty());
    let before = proxy.asked().len();
    open(&remote, &local).unwrap();
    assert_eq!(proxy.asked().len(), before);
    let error = open(&remote, "http://unknown.example/m.bin").err().unwrap();
    assert!(error.to_string().contains("proxy"), "{error}");
}

#[test]
fn a_public_server_may_not_lead_inside() {
    let (web, inside) = (Web::start(), Web::start());
    let secret = inside.put("/secret", vec![1; 100]);
    web.put("/m.bin", vec![0; 100]);
    let (builder, proxy) = outside(&web, &inside);
    let remote = builder.build().unwrap();
    let port = inside.server().address().port();
    for to in [
        secret,
        format!("http://localhost:{port}/secret"),
        format!("http://[::ffff:127.0.0.1]:{port}/secret"),
        format!("http://[::1]:{port}/secret"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://0.0.0.0:80/".to_owned(),
    ] {
        for status in [301, 302, 303, 307, 308] {
            web.faults.add("m.bin", 1, Fault::Redirect(status, to.clone()));
        }
        let error = open(&remote, "http://public.example/m.bin").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Denied, "{to}: {error}");
        assert!(error.to_string().contains("private address"), "{error}");
        web.faults.clear();
    }
    assert_eq!(inside.log().connections(), 0);
    assert!(proxy.asked().iter().all(|asked| asked == "public.example:80"), "{:?}", proxy.asked());
    // To another public one it may.
    inside.put("/m.bin", vec![7; 100]);
    web.faults.add("m.bin", 1, Fault::Redirect(302, "http://other.example/m.bin".into()));
    let file = open(&remote, "http://public.example/m.bin").unwrap();
    assert_eq!(read_all(&file, 10, 1).unwrap(), [7; 100]);
}

#[test]
fn http_to_other_machines_is_refused() {
    let error = open(&builder().build().unwrap(), "http://public.example/m.bin").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[test]
fn redirects_that_go_round_end() {
    let web = Web::start();
    let url = web.put("/m.bin", vec![0; 100]);
    web.faults.always("m.bin", Fault::Redirect(302, "/m.bin".into()));
    let error = open(&builder().build().unwrap(), &url).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert_eq!(web.log().len(), 6);
    for bad in ["http:///x", "ftp://x/", "http://user:pass@127.0.0.1/"] {
        web.faults.clear();
        web.faults.always("m.bin", Fault::Redirect(302, bad.into()));
        let error = open(&builder().build().unwrap(), &url).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{bad}");
        assert!(!error.to_string().contains("pass"), "{error}");
    }
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let hub = Hub::start(HubOptions::default());
    let elsewhere = Web::start();
    elsewhere.put("/x", vec![5; 2_000_000]);
    hub.put("org/name", RepoSpec::default().small("config.json", "{}").large("m.bin", bytes(2_000_000, 1)));
    let remote = builder().endpoint(hub.url()).token(TOKEN).build().unwrap();
    let to = format!("{}/x", elsewhere.server().url());
    // Any of the hub's answers may send elsewhere; and the CDN too.
    for (part, at_cdn) in [("/revision/", false), ("/tree/", false), ("/resolve/", false), ("/blob/", true)] {
        for status in [301, 302, 303, 307, 308] {
            let faults = if at_cdn { &hub.cdn_faults } else { &hub.faults };
            faults.clear();
            faults.always(part, Fault::Redirect(status, to.clone()));
            let result = locate(&remote, "hf://org/name").and_then(|place| {
                place.names()?;
                place.open("m.bin")?.read_at(1_000_000, &mut [0; 10])
            });
            if let Err(error) = result {
                assert!(!error.to_string().contains(TOKEN), "{error}");
            }
            faults.clear();
        }
        assert!(!elsewhere.log().is_empty(), "{part}");
        assert!(!elsewhere.log().saw(TOKEN) && !hub.cdn().log.saw(TOKEN), "{part}");
        elsewhere.log().clear();
    }
    assert!(hub.server().log.saw(TOKEN));
}

#[test]
fn no_token_without_encryption_to_another_machine() {
    let web = Web::start();
    let (builder, _proxy) = outside(&web, &web);
    let remote = builder.endpoint("http://public.example").token(TOKEN).build().unwrap();
    assert!(locate(&remote, "hf://org/name").is_err());
    assert!(!web.log().is_empty() && !web.log().saw(TOKEN));
    assert!(common::builder().token("a\r\nX: y").build().is_err());
    assert!(!format!("{:?}", weighbridge_remote::Address::parse("https://h/a?k=hf_right")).contains(TOKEN));
}

#[test]
fn a_listing_that_leads_elsewhere() {
    let hub = Hub::start(HubOptions::default());
    let commit = hub.put("org/name", RepoSpec::default().small("config.json", "{}"));
    let remote = builder().endpoint(hub.url()).token(TOKEN).build().unwrap();
    let address = format!("hf://org/name@{commit}");
    let sha1 = "a".repeat(40);
    for path in ["../../etc/passwd", "/etc/passwd", "a\\\\b", "x/../y"] {
        let json = format!("[{{\"type\":\"file\",\"path\":\"{path}\",\"oid\":\"{sha1}\",\"size\":1}}]");
        hub.faults.add("/tree/", 1, Fault::Status(200, vec![], json.leak()));
        let error = locate(&remote, &address).unwrap().names().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{path}");
    }
    // The next page of a listing is the hub's own, too.
    let web = Web::start();
    let link = format!("<{}/next>; rel=\"next\"", web.server().url());
    let json = format!("[{{\"type\":\"file\",\"path\":\"a\",\"oid\":\"{sha1}\",\"size\":1}}]");
    hub.faults.add("/tree/", 1, Fault::Status(200, vec![("Link", link)], json.leak()));
    assert!(locate(&remote, &address).unwrap().names().is_err());
    assert_eq!(web.log().len(), 0);
}

/// All that anything in this program logs, down to `debug`.
struct Logged(Mutex<String>);

static LOGGED: Logged = Logged(Mutex::new(String::new()));

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{}\n", record.args());
        self.0.lock().expect("nobody panics with it").push_str(&line);
    }

    fn flush(&self) {}
}

#[test]
fn no_secret_is_logged() {
    log::set_logger(&LOGGED).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let hub = Hub::start(HubOptions::default());
    hub.put("org/name", RepoSpec::default().small("config.json", "{}").large("m.bin", bytes(1_000_000, 1)));
    let remote = builder().endpoint(hub.url()).token(TOKEN).build().unwrap();
    let place = locate(&remote, "hf://org/name").unwrap();
    place.read("config.json", 100).unwrap();
    let file = place.open("m.bin").unwrap();
    for fault in [Trick::Cut(1000), Trick::Garbage(vec![b'x'; 100])] {
        hub.cdn_faults.add("/blob/", 1, Fault::Send(fault));
        file.read_at(500_000, &mut vec![0; 100_000]).unwrap();
    }
    hub.cdn_faults.always("/blob/", Fault::Status(500, vec![], "no"));
    let error = file.read_at(500_000, &mut [0; 10]).unwrap_err();
    let shown = format!("{error} {error:?} {remote:?} {place:?} {file:?}");
    let logged = LOGGED.0.lock().unwrap();
    assert!(logged.contains("127.0.0.1"), "something is logged");
    for secret in [TOKEN, "Signature=", "Expires="] {
        assert!(!logged.contains(secret) && !shown.contains(secret), "{secret}");
    }
}
