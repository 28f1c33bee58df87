//! How fast a file comes, and how much of a processor that takes: over loopback beside a plain loop of the
//! same HTTP client, and over a link with 20 ms a request and a cap.
//!
//! `cargo run --release -p weighbridge-remote --example throughput [MiB]`. The server is a process of its
//! own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use remote_server::{Link, Web, bytes};
use weighbridge_remote::{Address, Remote, RemoteFile};

const PIECE: usize = 8 << 20;
/// A link to a server that closes the connection in the middle of every tenth answer.
const CUT: &str = "20 ms, 400 MB/s, a tenth cut";

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "--serve") {
        return serve(arguments[1].parse()?);
    }
    let mib: usize = arguments.first().map_or(Ok(512), |argument| argument.parse())?;
    let (mut server, url, links) = start(mib)?;
    let mut out = vec![0; mib << 20];
    println!("{mib} MiB in pieces of 8 MiB");
    println!("{:<40} {:>8} {:>10} {:>9}", "", "MB/s", "CPU s/GiB", "requests");
    for threads in [1, 8, 32] {
        let plain = |out: &mut [u8]| plain(&url, out, threads);
        report(&format!("loopback, ureq alone, {threads} threads"), &mut out, plain)?;
        let ours = |out: &mut [u8]| ours(&url, out, threads);
        report(&format!("loopback, {threads} threads"), &mut out, ours)?;
    }
    for (name, url) in &links {
        let size = out.len().min(256 << 20);
        if *name != CUT {
            report(&format!("{name}, ureq alone, 32 threads"), &mut out[..size], |out| plain(url, out, 32))?;
        }
        report(&format!("{name}, 32 threads"), &mut out[..size], |out| ours(url, out, 32))?;
    }
    server.kill()?;
    Ok(())
}

/// Serves the file directly and by links, and says where.
fn serve(mib: usize) -> Result<(), Failure> {
    let content = Arc::new(bytes(mib << 20, 1));
    let (web, broken) = (Web::start(), Web::start());
    broken.put("/m.bin", content.clone());
    broken.faults.cut_randomly(1, 10, u64::MAX);
    println!("{}", web.put("/m.bin", content));
    let links: Vec<_> = [(&web, 100), (&web, 400), (&broken, 400)]
        .into_iter()
        .map(|(to, cap)| Link::start(to.server().address(), Duration::from_millis(20), Some(cap * 1_000_000)))
        .inspect(|link| println!("{}/m.bin", link.url()))
        .collect();
    // Until it is killed, or who started it is gone.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(links);
    Ok(())
}

/// The server, the file's URL there, and what links lead to it, each with its URL.
type Started = (Child, String, [(&'static str, String); 3]);

fn start(mib: usize) -> Result<Started, Failure> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["--serve", &mib.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().ok_or("no output")?).lines();
    let mut line = || lines.next().ok_or("the server ended")?.map_err(Failure::from);
    let url = line()?;
    let links = [("20 ms, 100 MB/s", line()?), ("20 ms, 400 MB/s", line()?), (CUT, line()?)];
    Ok((server, url, links))
}

fn report(
    name: &str,
    out: &mut [u8],
    read: impl Fn(&mut [u8]) -> Result<u64, Failure>,
) -> Result<(), Failure> {
    out.fill(0);
    let (start, cpu) = (Instant::now(), cpu());
    let requests = read(out)?;
    let (time, cpu) = (start.elapsed().as_secs_f64(), self::cpu() - cpu);
    let size = out.len() as f64;
    println!(
        "{name:<40} {:>8.0} {:>10.2} {requests:>9}",
        size / 1e6 / time,
        cpu / (size / f64::from(1 << 30))
    );
    Ok(())
}

/// Seconds of processor time of this process, to a hundredth.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Pieces for threads to take.
fn each_piece(
    out: &mut [u8],
    threads: usize,
    read: impl Fn(u64, &mut [u8]) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let pieces = Mutex::new(out.chunks_mut(PIECE).zip(0_u64..));
    let work = || loop {
        let next = pieces.lock().map_err(|_| "a thread panicked")?.next();
        let Some((piece, index)) = next else { return Ok(()) };
        read(index * PIECE as u64, piece)?;
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

fn ours(url: &str, out: &mut [u8], threads: usize) -> Result<u64, Failure> {
    let remote = Remote::builder().build()?;
    let place = remote.locate(&Address::parse(url).ok_or("no address")??)?;
    let file: RemoteFile = place.open("m.bin")?;
    each_piece(out, threads, |offset, piece| Ok(file.read_at(offset, piece)?))?;
    Ok(file.counts().requests)
}

fn plain(url: &str, out: &mut [u8], threads: usize) -> Result<u64, Failure> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .max_idle_connections(64)
        .max_idle_connections_per_host(64)
        .build()
        .new_agent();
    let requests = out.len().div_ceil(PIECE) as u64;
    each_piece(out, threads, |offset, piece| {
        let range = format!("bytes={offset}-{}", offset + piece.len() as u64 - 1);
        let mut body = agent.get(url).header("range", range).call()?.into_body().into_reader();
        body.read_exact(piece)?;
        body.read_exact(&mut [0]).err().map(|_| ()).ok_or("a longer body")?;
        Ok(())
    })?;
    Ok(requests)
}
