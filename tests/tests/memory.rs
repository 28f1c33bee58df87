//! What is kept of a header is at most four times its text, whatever the text is.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.
#![allow(unsafe_code)] // To count allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use weighbridge::header::Decode;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: everything is passed on to the system's allocator; a `realloc` counts both blocks while it copies.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        // SAFETY: the caller's promise.
        let memory = unsafe { System.realloc(memory, layout, size) };
        LIVE.fetch_sub(layout.size(), Relaxed);
        memory
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes beyond the text at the peak of decoding, as a multiple of the text.
fn amplification(header: &str) -> f64 {
    let mut decoder = Decode::new().decoder(None);
    decoder.push(&(header.len() as u64).to_le_bytes()).unwrap();
    decoder.push(header.as_bytes()).unwrap();
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let outcome = decoder.finish();
    // Errors and tables of fixed size do not count.
    let peak = (PEAK.load(Relaxed) - before).saturating_sub(4 << 10);
    drop(outcome);
    peak as f64 / header.len() as f64
}

/// One test, since the counters are the process's.
#[test]
fn bounded_for_any_header() {
    const SIZE: usize = 4 << 20;
    let repeat = |part: &str| part.repeat(SIZE / part.len());
    let numbered = |part: &dyn Fn(usize) -> String, least: usize| {
        let parts: Vec<_> = (0..SIZE / least).map(part).collect();
        parts.join(",")
    };
    let tensor =
        |rest: &str| format!("{{\"a\":{{{rest}\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}}}");
    let headers = [
        ("tensors", format!("{{{}}}", numbered(&|i| format!(r#""{i:x}":["F4",[],[0,0]]"#), 24))),
        ("shaped tensors", format!("{{{}}}", numbered(&|i| format!(r#""{i:x}":["U8",[0],[0,0]]"#), 25))),
        (
            "usual tensors",
            format!(
                "{{{}}}",
                numbered(
                    &|i| format!(
                        r#""model.layers.{i}.w":{{"dtype":"BF16","shape":[2,0],"data_offsets":[0,0]}}"#
                    ),
                    80
                )
            ),
        ),
        ("escaped names", format!("{{{}}}", numbered(&|i| format!(r#""\u00e9{i:x}":["U8",[0],[0,0]]"#), 31))),
        ("one name", format!("{{{}}}", numbered(&|_| r#""":["F4",[],[0,0]]"#.to_owned(), 20))),
        ("dimensions", tensor("").replace("[1]", &format!("[1{}]", repeat(",1")))),
        ("metadata", format!("{{\"__metadata__\":{{{}}}}}", numbered(&|i| format!(r#""{i:x}":"""#), 10))),
        ("metadata key", format!("{{\"__metadata__\":{{{}}}}}", numbered(&|_| r#""":"""#.to_owned(), 6))),
        ("arrays", tensor(&format!("\"x\":[[]{}],", repeat(",[]")))),
        ("numbers", tensor(&format!("\"x\":[1{}],", repeat(",1e9")))),
        ("string", tensor(&format!("\"x\":\"{}\",", repeat("\\u00e9")))),
        ("unknown fields", tensor(&format!("{},", numbered(&|i| format!("\"{i:x}\":1"), 10)))),
        ("commas", tensor("").replace("[1]", &format!("[{}]", repeat(",")))),
        (
            "a long name's findings",
            tensor(&(numbered(&|i| format!("\"{i:x}\":1"), 2000) + ",")).replacen('a', &repeat("é"), 1),
        ),
        ("name", tensor("").replace('a', &repeat("\\n"))),
        ("brackets", format!("{{\"{}\":1}}", repeat("["))),
        ("spaces", format!("{{{}}}", repeat(" "))),
    ];
    for (what, header) in &headers {
        let times = amplification(header);
        println!("{what}: {times:.2}");
        assert!(times <= 4.0, "{what}: {times:.2} times the header");
    }
}
