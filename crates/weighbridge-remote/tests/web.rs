//! Files of web servers: right bytes, or an error that says why.

mod common;

use std::time::{Duration, Instant};

use common::*;
use weighbridge_remote::ErrorKind;

const MIB: usize = 1 << 20;

#[test]
fn ranges_and_the_head() {
    let web = Web::start();
    let data = content(3 * MIB);
    let url = web.put("/models/a b.bin", data.clone());
    let url = url.replace(' ', "%20");
    let file = open(&builder().build().unwrap(), &url).unwrap();
    assert_eq!(file.size(), data.len() as u64);
    assert!(file.tag().is_some());
    // The first bytes came with the first request.
    let mut head = vec![0; 4096];
    file.read_at(100, &mut head).unwrap();
    assert_eq!(head, data[100..4196]);
    assert_eq!(web.log().len(), 1);
    assert!(file.is_cached(0..1000) && !file.is_cached(MIB as u64..MIB as u64 + 1));
    assert_eq!(*data, read_all(&file, 300_000, 4).unwrap());
    assert_eq!(file.counts().requests, web.log().len() as u64);
    for asked in web.log().all().iter().skip(1) {
        assert_eq!(asked.request.header("accept-encoding"), Some("identity"));
        assert!(asked.request.header("if-match").is_some());
    }
    // Connections are used again.
    assert!(web.log().connections() <= 5, "{}", web.log().connections());
    let beyond = file.read_at(data.len() as u64 - 1, &mut [0; 2]).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::Malformed);
    file.read_at(data.len() as u64, &mut []).unwrap();
}

#[test]
fn small_and_empty_files() {
    let web = Web::start();
    let remote = builder().build().unwrap();
    let url = web.put("/d/small", vec![1, 2, 3]);
    web.put("/d/empty", vec![]);
    let place = locate(&remote, &url).unwrap();
    assert_eq!(place.read("small", 100).unwrap().as_deref(), Some(&[1, 2, 3][..]));
    assert_eq!(place.read("empty", 100).unwrap().as_deref(), Some(&[][..]));
    assert_eq!(place.open("empty").unwrap().size(), 0);
    assert_eq!(place.read("absent", 100).unwrap(), None);
    assert_eq!(place.read("small", 2).unwrap_err().kind(), ErrorKind::Malformed);
    assert_eq!(place.open("absent").err().unwrap().kind(), ErrorKind::NotFound);
    assert!(place.names().unwrap().is_none());
    for name in ["../x", "/x", "a/../../x", "https://other/x", "a\\b", "a\nb", ""] {
        assert_eq!(place.open(name).err().unwrap().kind(), ErrorKind::Address, "{name:?}");
    }
}

#[test]
fn five_hundred_cuts_and_right_bytes() {
    let web = Web::start();
    let data = content(24 * MIB);
    let url = web.put("/m.bin", data.clone());
    let remote = builder().attempts(12).build().unwrap();
    let file = open(&remote, &url).unwrap();
    web.faults.cut_randomly(0x5eed, 3, 500);
    let mut rounds = 0;
    while web.faults.done() < 500 {
        assert_eq!(*data, read_all(&file, 256 << 10, 16).unwrap());
        rounds += 1;
        assert!(rounds < 100);
    }
    // What was received before a cut is not asked for again.
    let head = 256 << 10;
    assert_eq!(file.counts().received, head + rounds * (file.size() - head));
    assert!(file.counts().retries >= 500);
}

#[test]
fn five_hundred_connections_that_break() {
    let web = Web::start();
    let data = content(24 * MIB);
    web.put("/m.bin", data.clone());
    let link = Link::start(web.server().address(), Duration::ZERO, None);
    let remote = builder().attempts(20).build().unwrap();
    let file = open(&remote, &format!("{}/m.bin", link.url())).unwrap();
    // From within the head of the first answer to within the third.
    let mut state = 0x5eed_u64;
    link.cut_next((0..500).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % 800_000
    }));
    link.down(true);
    link.down(false);
    let mut rounds = 0;
    while link.cuts_left() > 0 {
        assert_eq!(*data, read_all(&file, 256 << 10, 16).unwrap());
        rounds += 1;
        assert!(rounds < 100);
    }
    let needed = rounds * file.size();
    assert!(file.counts().received <= needed, "{} {needed}", file.counts().received);
}

#[test]
fn a_cut_at_any_byte_of_a_short_answer() {
    let web = Web::start();
    let data = content(MIB);
    let url = web.put("/m.bin", data.clone());
    let file = open(&builder().build().unwrap(), &url).unwrap();
    let mut buf = vec![0; 40];
    for at in 0..=40 {
        web.faults.add("m.bin", 1, Fault::Send(Trick::Cut(at)));
        file.read_at(500_000, &mut buf).unwrap();
        assert_eq!(buf, data[500_000..500_040]);
    }
    for at in [0, 1, 8, 9, 20, 60, 100] {
        web.faults.add("m.bin", 1, Fault::Send(Trick::CutHead(at)));
        file.read_at(500_000, &mut buf).unwrap();
        assert_eq!(buf, data[500_000..500_040]);
    }
}

/// The error of a read while this goes on.
fn error_of(fault: Fault) -> weighbridge_remote::Error {
    let web = Web::start();
    let data = content(MIB);
    let url = web.put("/m.bin", data);
    let remote = builder().build().expect("valid settings");
    let file = open(&remote, &url).expect("nothing goes wrong yet");
    web.faults.always("m.bin", fault);
    let error = file.read_at(400_000, &mut vec![0; 300_000]).expect_err("it goes wrong");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(error.to_string().contains("/m.bin: "), "{error}");
    error
}

#[test]
fn answers_that_lie_are_errors() {
    let kind = |fault| error_of(fault).kind();
    assert_eq!(kind(Fault::Whole), ErrorKind::Unsupported);
    assert_eq!(kind(Fault::Shifted(1)), ErrorKind::Malformed);
    assert_eq!(kind(Fault::NoRange), ErrorKind::Malformed);
    assert_eq!(kind(Fault::Size(2_000_000)), ErrorKind::Changed);
    assert_eq!(kind(Fault::Gzip), ErrorKind::Unsupported);
    assert_eq!(kind(Fault::Send(Trick::Longer(10))), ErrorKind::Malformed);
    assert_eq!(kind(Fault::Send(Trick::Chunked(10))), ErrorKind::Malformed);
    assert_eq!(kind(Fault::Tag("\"other\"".into())), ErrorKind::Changed);
    assert_eq!(kind(Fault::Status(404, vec![], "")), ErrorKind::NotFound);
    assert_eq!(kind(Fault::Status(403, vec![], "")), ErrorKind::Denied);
    assert_eq!(kind(Fault::Status(412, vec![], "")), ErrorKind::Changed);
    assert_eq!(kind(Fault::Status(416, vec![], "")), ErrorKind::Changed);
    assert_eq!(kind(Fault::Status(204, vec![], "")), ErrorKind::Malformed);
    assert_eq!(kind(Fault::Send(Trick::Garbage(b"SSH-2.0-x\r\n\r\n".to_vec()))), ErrorKind::Io);
    let long = Fault::Status(206, vec![("X-Long", "x".repeat(100_000))], "");
    assert_eq!(kind(long), ErrorKind::Malformed);
    let error = error_of(Fault::Send(Trick::Cut(0)));
    assert!(error.to_string().contains("bytes 400000-699999: connection closed"), "{error}");
    assert!(error.to_string().contains("4 attempts in "), "{error}");
}

#[test]
fn short_bodies_are_completed_and_old_servers_served() {
    let web = Web::start();
    let data = content(MIB);
    let url = web.put("/m.bin", data.clone());
    let file = open(&builder().build().unwrap(), &url).unwrap();
    let mut buf = vec![0; 300_000];
    for trick in [Trick::Longer(-100_000), Trick::Old, Trick::Chunked(0)] {
        buf.fill(0);
        web.faults.add("m.bin", 1, Fault::Send(trick));
        file.read_at(400_000, &mut buf).unwrap();
        assert_eq!(buf, data[400_000..700_000]);
    }
}

#[test]
fn storms_pass() {
    let web = Web::start();
    let data = content(8 * MIB);
    let url = web.put("/m.bin", data.clone());
    let file = open(&builder().build().unwrap(), &url).unwrap();
    for (status, headers) in [
        (500, vec![]),
        (502, vec![]),
        (503, vec![]),
        (504, vec![]),
        (408, vec![]),
        (429, vec![("Retry-After", "0".to_owned())]),
        (503, vec![("Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT".to_owned())]),
    ] {
        web.faults.add("m.bin", 3, Fault::Status(status, headers, "SlowDown"));
        assert_eq!(*data, read_all(&file, MIB, 8).unwrap(), "{status}");
    }
}

#[test]
fn the_servers_own_times_are_kept_by_all() {
    let web = Web::start();
    let data = content(4 * MIB);
    let url = web.put("/m.bin", data.clone());
    let file = open(&builder().build().unwrap(), &url).unwrap();
    for headers in
        [vec![("RateLimit", "\"resolvers\";r=0;t=1".to_owned())], vec![("Retry-After", "1".to_owned())]]
    {
        web.log().clear();
        web.faults.add("m.bin", 1, Fault::Status(429, headers, ""));
        let start = Instant::now();
        assert_eq!(*data, read_all(&file, MIB, 1).unwrap());
        // One second, and one to be on the safe side.
        assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
    // More than anybody waits for is an error at once, which says so.
    web.faults.always("m.bin", Fault::Status(429, vec![("Retry-After", "4000".to_owned())], ""));
    let start = Instant::now();
    let error = file.read_at(2_000_000, &mut [0; 10]).unwrap_err();
    assert!(error.to_string().contains("4001 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn silent_and_dripping_servers_are_left() {
    let web = Web::start();
    let data = content(MIB);
    let url = web.put("/m.bin", data.clone());
    let file = open(&builder().build().unwrap(), &url).unwrap();
    let mut buf = vec![0; 300_000];
    for fault in [
        Fault::Send(Trick::Stall(1000, Duration::from_secs(30))),
        Fault::Send(Trick::Stall(0, Duration::from_secs(30))),
        Fault::Send(Trick::Drip(Duration::from_millis(50))),
        Fault::Late(Duration::from_secs(8)),
    ] {
        web.faults.add("m.bin", 1, fault.clone());
        let start = Instant::now();
        file.read_at(400_000, &mut buf).unwrap();
        assert_eq!(buf, data[400_000..700_000]);
        assert!(start.elapsed() < Duration::from_secs(3), "{fault:?}: {:?}", start.elapsed());
    }
}

#[test]
fn a_server_that_is_gone_for_a_while() {
    let web = Web::start();
    let data = content(8 * MIB);
    web.put("/m.bin", data.clone());
    let link = Link::start(web.server().address(), Duration::ZERO, Some(16_000_000));
    let remote = builder().attempts(20).build().unwrap();
    let file = open(&remote, &format!("{}/m.bin", link.url())).unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_all(&file, MIB, 4).unwrap());
        std::thread::sleep(Duration::from_millis(150));
        link.down(true);
        std::thread::sleep(Duration::from_millis(700));
        link.down(false);
        assert_eq!(*data, reading.join().unwrap());
    });
    assert!(file.counts().retries > 0);
    // What had come was kept.
    assert!(link.passed() < data.len() as u64 * 11 / 10 + (2 << 20), "{}", link.passed());
}

#[test]
fn an_interrupt_wakes_all_at_once_and_others_go_on() {
    let web = Web::start();
    let data = content(8 * MIB);
    let url = web.put("/m.bin", data.clone());
    web.put("/other.bin", data.clone());
    let remote = builder().stall(Duration::from_secs(20)).build().unwrap();
    let place = locate(&remote, &url).unwrap();
    let (file, other) = (place.open("m.bin").unwrap(), place.open("other.bin").unwrap());
    web.faults.always("m.bin", Fault::Send(Trick::Stall(5000, Duration::from_secs(30))));
    web.faults.add("other.bin", 1, Fault::Late(Duration::from_millis(600)));
    std::thread::scope(|scope| {
        let read = |index: u64| {
            let result = file.read_at(MIB as u64 + index * 100_000, &mut vec![0; 100_000]);
            (result.unwrap_err().kind(), Instant::now())
        };
        let blocked: Vec<_> = (0..32).map(|index| scope.spawn(move || read(index))).collect();
        let going_on = scope.spawn(|| {
            let mut buf = vec![0; 100_000];
            other.read_at(MIB as u64, &mut buf).unwrap();
            buf
        });
        std::thread::sleep(Duration::from_millis(400));
        let start = Instant::now();
        file.interrupt();
        for thread in blocked {
            let (kind, at) = thread.join().unwrap();
            assert_eq!(kind, ErrorKind::Cancelled);
            assert!(at - start < Duration::from_millis(100), "{:?}", at - start);
        }
        assert_eq!(going_on.join().unwrap(), data[MIB..MIB + 100_000]);
    });
    web.faults.clear();
    assert_eq!(*data, read_all(&file, MIB, 4).unwrap());
}

#[test]
fn an_interrupt_ends_waiting_too() {
    let web = Web::start();
    let url = web.put("/m.bin", content(MIB));
    let file = open(&builder().build().unwrap(), &url).unwrap();
    web.faults.always("m.bin", Fault::Status(429, vec![("Retry-After", "100".to_owned())], ""));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| file.read_at(500_000, &mut [0; 10]));
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        file.interrupt();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(start.elapsed() < Duration::from_millis(100));
    });
}

#[test]
fn a_cap_on_bandwidth() {
    let web = Web::start();
    let data = content(8 * MIB);
    let url = web.put("/m.bin", data.clone());
    let file = open(&builder().bandwidth(16 << 20).build().unwrap(), &url).unwrap();
    let start = Instant::now();
    assert_eq!(*data, read_all(&file, MIB, 8).unwrap());
    let time = start.elapsed().as_secs_f64();
    assert!((0.4..1.5).contains(&time), "{time}");
}

#[test]
fn a_signed_place_that_expires_is_found_again() {
    let web = Web::start();
    let data = content(2 * MIB);
    let url = web.put("/m.bin", data.clone());
    web.put_tagged("/signed/1", data.clone(), "\"tag\"");
    web.put_tagged("/signed/2", data.clone(), "\"tag\"");
    web.faults.add("/m.bin", 1, Fault::Redirect(302, "/signed/1".into()));
    web.faults.add("/m.bin", usize::MAX, Fault::Redirect(302, "/signed/2".into()));
    let file = open(&builder().build().unwrap(), &url).unwrap();
    file.read_at(MIB as u64, &mut [0; 100]).unwrap();
    assert_eq!((web.log().count("/m.bin"), web.log().count("/signed/1")), (1, 2));
    for status in [400, 401, 403, 410] {
        web.faults.add("/signed/1", usize::MAX, Fault::Status(status, vec![], "expired"));
    }
    assert_eq!(*data, read_all(&file, 100_000, 8).unwrap());
    // Where it is now has to be the same file.
    web.put_tagged("/signed/2", data.clone(), "\"another\"");
    assert_eq!(file.read_at(MIB as u64, &mut [0; 100]).unwrap_err().kind(), ErrorKind::Changed);
}

#[test]
fn nobody_there() {
    let remote = builder().allow_http().build().unwrap();
    let start = Instant::now();
    let error = open(&remote, "http://weighbridge.invalid/m.bin").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let gone = Web::start().put("/m.bin", vec![1]);
    let error = open(&remote, &gone).err().unwrap();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("2 attempts"), "{error}");
}

/// Any of these may happen; none of them may change a byte.
#[test]
fn a_thousand_faults_of_all_kinds() {
    let (mut right, mut errors) = (0, 0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=10).map(|seed| scope.spawn(move || a_hundred_faults(seed))).collect();
        for thread in threads {
            let counts = thread.join().unwrap();
            (right, errors) = (right + counts.0, errors + counts.1);
        }
    });
    assert!(right > 100 && errors > 100, "{right} right, {errors} errors");
}

/// How many reads were right, and how many failed.
fn a_hundred_faults(seed: u64) -> (usize, usize) {
    let web = Web::start();
    let data = content(MIB);
    let url = web.put("/m.bin", data.clone());
    let ms = Duration::from_millis;
    let remote = builder().stall(ms(60)).attempts(3).server_wait(ms(500)).build().expect("valid settings");
    let mut state = seed << 32 | seed;
    let mut random = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let (mut right, mut errors) = (0, 0);
    while web.faults.done() < 100 {
        let n = random(200_000);
        for _ in 0..=random(2) {
            let fault = match random(17) {
                0..4 => Fault::Send(Trick::Cut(n)),
                4 => Fault::Send(Trick::CutHead(n as usize % 200)),
                5 => Fault::Send(Trick::Stall(n, ms(100))),
                6 => Fault::Send(Trick::Longer(n.cast_signed() - 100_000)),
                7 => Fault::Send(Trick::Chunked(n as usize % 3)),
                8 => Fault::Send(Trick::Old),
                9 => Fault::Send(Trick::Garbage(bytes(100, n))),
                10 => Fault::Status([500, 503, 404, 403, 400, 416, 200, 206][n as usize % 8], vec![], "no"),
                11 => Fault::Whole,
                12 => Fault::Shifted(n),
                13 => Fault::Size(n),
                14 => Fault::NoRange,
                15 => Fault::Gzip,
                _ => Fault::Redirect(302, "/m.bin".into()),
            };
            web.faults.add_after("m.bin", 0, 1, fault);
        }
        let Ok(file) = open(&remote, &url) else {
            errors += 1;
            continue;
        };
        let (offset, length) = (random(MIB as u64 - 300_000), 1 + random(300_000));
        let mut buf = vec![0; length as usize];
        match file.read_at(offset, &mut buf) {
            Ok(()) => {
                let start = offset as usize;
                assert!(buf == data[start..start + buf.len()], "{offset} {length}");
                right += 1;
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                errors += 1;
            }
        }
    }
    (right, errors)
}

#[test]
fn servers_without_ranges() {
    let data = content(MIB);
    let copy = data.clone();
    let server = Server::start(move |_| Reply { status: 200, content: copy.clone(), ..Reply::default() });
    let file = open(&builder().build().unwrap(), &format!("{}/m.bin", server.url())).unwrap();
    // A small file is read whole, once.
    assert_eq!(*data, read_all(&file, 100_000, 2).unwrap());
    file.forget_head();
    assert_eq!(*data, read_all(&file, 100_000, 2).unwrap());
    assert_eq!(server.log.len(), 1);
    // A large one is refused before it is.
    let server = Server::start(move |_| {
        let trick = Trick::Longer(100 << 20);
        Reply { status: 200, tricks: vec![trick], ..Reply::default() }
    });
    let error = open(&builder().build().unwrap(), &format!("{}/m.bin", server.url())).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("does not serve ranges"), "{error}");
}
