//! How fast a checkpoint on a web server or on a hub is loaded over a link with latency and a cap: what part of the link is
//! used, how many requests and bytes there are, and what it costs.
//!
//! ```text
//! cargo run --release -p weighbridge-tests --bin remote-load [MiB]
//! remote-load serve MiB         the servers and links alone, a line of JSON each, until standard input ends
//! remote-load load ADDRESS      one load, a line of JSON
//! ```
//!
//! The servers are processes of their own, so that what is counted as processor time is the client's.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use remote_server::{Hub, HubOptions, Link, ObjectStore, RepoSpec, StoreOptions, Web};
use safetensors::Dtype as St;
use serde_json::{Value, json};
use weighbridge::plan::Part;
use weighbridge::remote::Remote;
use weighbridge::{Checkpoint, Dtype, LoadOptions, Plan, TensorRef};
use weighbridge_tests::{Stored, file};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &*arguments {
        [serve, mib] if serve == "serve" => serve_model(mib.parse()?),
        [load, address] if load == "load" => load_one(address),
        rest => measure(rest.first().map_or(Ok(512), |mib| mib.parse())?),
    }
}

/// Layers of 4 KiB, 8 MiB and 32 MiB, of `BF16`.
fn model(mib: usize) -> Vec<u8> {
    let shapes: [(&str, &[usize]); 3] = [("norm", &[2048]), ("q", &[2048, 2048]), ("up", &[8192, 2048])];
    let mut tensors = Vec::new();
    for layer in 0..(mib / 40).max(1) {
        for (name, shape) in shapes {
            tensors.push((format!("layers.{layer}.{name}.weight"), Stored::filled(St::BF16, shape, layer)));
        }
    }
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
    file(&tensors)
}

/// Serves it plainly and over links of 20 ms a request and 100 and 400 MB/s, until standard input ends: as a file of a web
/// server, a model of a hub, and an object of a store.
fn serve_model(mib: usize) -> Result<(), Failure> {
    let model = Arc::new(model(mib));
    let (web, store) = (Web::start(), ObjectStore::start(StoreOptions::default()));
    web.put("/model.safetensors", Arc::clone(&model));
    store.put("model/model.safetensors", Arc::clone(&model));
    let (mut links, mut hubs) = (Vec::new(), Vec::new());
    for cap in [None, Some(CAPS[0]), Some(CAPS[1])] {
        let hub = Hub::start(HubOptions::default());
        hub.put("org/model", RepoSpec::default().large("model.safetensors", Arc::clone(&model)));
        let mut url = |server: &remote_server::Server| match cap {
            None => server.url(),
            Some(_) => {
                links.push(Link::start(server.address(), LATENCY, cap));
                links[links.len() - 1].url()
            }
        };
        hub.send_to(&url(hub.cdn()));
        let line = json!({
            "cap": cap,
            "bytes": model.len(),
            "web": format!("{}/model.safetensors", url(web.server())),
            "hub": url(hub.server()),
            "s3": url(store.server()),
        });
        println!("{line}");
        hubs.push(hub);
    }
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

const CAPS: [u64; 2] = [100_000_000, 400_000_000];
const LATENCY: Duration = Duration::from_millis(20);

/// A process that serves; ended when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(mib: usize) -> Result<(), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", &mib.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Server(command.spawn()?);
    let out = server.0.stdout.take().ok_or("the server has no output")?;
    let mut lines = BufReader::new(out).lines();
    println!(
        "{:<34} {:>8} {:>7} {:>9} {:>9} {:>8} {:>8}",
        "load", "MB/s", "of cap", "requests", "received", "CPU s/GB", "first ms"
    );
    for cap in [None, Some(CAPS[0]), Some(CAPS[1])] {
        let served: Value = serde_json::from_str(&lines.next().ok_or("the server ended")??)?;
        let url = served["web"].as_str().ok_or("the server says no address")?;
        let name =
            cap.map_or_else(|| "loopback".to_owned(), |cap| format!("20 ms, {} MB/s", cap / 1_000_000));
        load(url, cap, &format!("{name}: all"), |_| None, None)?;
        load(url, cap, &format!("{name}: cast to F32"), |_| None, Some(Dtype::F32))?;
        load(url, cap, &format!("{name}: rank 1 of 4, rows"), |tensor| part(tensor, 0), None)?;
        load(url, cap, &format!("{name}: rank 1 of 4, columns"), |tensor| part(tensor, 1), None)?;
    }
    Ok(())
}

/// Opens a checkpoint by its address and loads all of it, as a program does.
fn load_one(address: &str) -> Result<(), Failure> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(address)?;
    let session = Plan::of(&checkpoint).build()?.session().start()?;
    let names: Vec<_> = session.names().map(str::to_owned).collect();
    let mut loaded = Vec::new();
    let mut first = None;
    for name in &names {
        loaded.push(session.take(name, None)?.1);
        if name.ends_with("q.weight") {
            first.get_or_insert_with(|| started.elapsed().as_secs_f64());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", json!({ "seconds": seconds, "first": first, "requests": requests(&checkpoint) }));
    Ok(())
}

fn part(tensor: &TensorRef<'_>, dim: usize) -> Option<Part> {
    (tensor.shape().len() == 2).then(|| Part::of_rank(tensor.shape(), dim, 1, 4).ok())?
}

/// Takes everything in the order of names, and throws it away; medians of five.
fn load(
    url: &str,
    cap: Option<u64>,
    name: &str,
    part: impl Fn(&TensorRef<'_>) -> Option<Part>,
    dtype: Option<Dtype>,
) -> Result<(), Failure> {
    let mut runs = Vec::new();
    for _ in 0..5 {
        let remote = Remote::builder().build()?;
        let checkpoint = Checkpoint::options().remote(remote).open(url)?;
        let plan = Plan::of(&checkpoint).part(|tensor| Ok(part(tensor))).dtype(|_| dtype).build()?;
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let session = plan.session().options(LoadOptions::new()).start()?;
        let names: Vec<_> = session.names().map(str::to_owned).collect();
        let mut first = None;
        for name in &names {
            session.take(name, None)?;
            // A small one comes with the header.
            if name.ends_with("q.weight") {
                first.get_or_insert_with(|| started.elapsed());
            }
        }
        let took = started.elapsed().as_secs_f64();
        let report = session.report();
        runs.push(Run {
            took,
            read: report.bytes_read(),
            needed: report.bytes_needed(),
            cpu: cpu_seconds() - cpu,
            first: first.unwrap_or_default().as_secs_f64(),
            requests: requests(&checkpoint),
        });
    }
    runs.sort_by(|a, b| a.took.total_cmp(&b.took));
    let Run { took, read, needed, cpu, first, requests } = &runs[runs.len() / 2];
    let rate = *read as f64 / took / 1e6;
    let share = cap.map_or_else(|| "-".to_owned(), |cap| format!("{:.1} %", rate * 1e8 / cap as f64));
    println!(
        "{name:<34} {rate:>8.1} {share:>7} {requests:>9} {:>9.3} {:>8.2} {:>8.0}",
        *read as f64 / *needed as f64,
        cpu / (*read as f64 / 1e9),
        first * 1e3
    );
    Ok(())
}

struct Run {
    took: f64,
    read: u64,
    needed: u64,
    cpu: f64,
    first: f64,
    requests: u64,
}

/// What the network was asked for this checkpoint.
fn requests(checkpoint: &Checkpoint) -> u64 {
    checkpoint.shards().iter().filter_map(|shard| shard.source().requests()).sum()
}

/// Seconds of processor time of this process.
fn cpu_seconds() -> f64 {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    }
    #[cfg(not(target_os = "linux"))]
    {
        0.0
    }
}
