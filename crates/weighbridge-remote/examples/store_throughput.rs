//! How fast an object comes from a store and goes there, over loopback, and how much of a processor that takes
//! of this process: signed requests of S3's protocol. The store is a process of its own.
//!
//! `cargo run --release -p weighbridge-remote --example store_throughput [MiB]`

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use remote_server::{ObjectStore, StoreOptions, bytes};
use weighbridge_remote::{Address, Place, Remote, When};

const PIECE: usize = 8 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "--serve") {
        let store = ObjectStore::start(StoreOptions::default());
        store.put("m.bin", bytes(arguments[1].parse::<usize>()? << 20, 1));
        println!("{}", store.server().url());
        // Until it is killed, or who started it is gone.
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    let mib: usize = arguments.first().map_or(Ok(512), |argument| argument.parse())?;
    let mut server = Command::new(std::env::current_exe()?)
        .args(["--serve", &mib.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = server.stdout.take().ok_or("no output")?;
    let url = BufReader::new(output).lines().next().ok_or("the store ended")??;
    let remote = Remote::builder()
        .store_option("AWS_ENDPOINT_URL", url)
        .store_option("AWS_ACCESS_KEY_ID", "key")
        .store_option("AWS_SECRET_ACCESS_KEY", "5ecr3t")
        .build()?;
    let place = remote.locate(&Address::parse("s3://bucket/").ok_or("no address")??)?;
    let mut data = vec![0; mib << 20];
    println!("{mib} MiB{:<21} {:>8} {:>10}", "", "MB/s", "CPU s/GiB");
    for threads in [1, 8, 32] {
        report(&format!("read, {threads} threads"), &mut data, |data| read(&place, data, threads))?;
    }
    for threads in [1, 4] {
        report(&format!("write, {threads} threads"), &mut data, |data| write(&place, data, threads))?;
    }
    server.kill()?;
    Ok(())
}

fn report(
    name: &str,
    data: &mut [u8],
    work: impl Fn(&mut [u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (start, cpu) = (Instant::now(), cpu());
    work(data)?;
    let (time, cpu) = (start.elapsed().as_secs_f64(), self::cpu() - cpu);
    let size = data.len() as f64;
    println!("{name:<28} {:>8.0} {:>10.2}", size / 1e6 / time, cpu / (size / f64::from(1 << 30)));
    Ok(())
}

/// Seconds of processor time of this process, to a hundredth.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Gives work to threads, until there is none.
fn shared<T: Send>(
    work: impl Iterator<Item = T> + Send,
    threads: usize,
    one: impl Fn(T) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let work = Mutex::new(work);
    let run = || loop {
        let next = work.lock().map_err(|_| "a thread panicked")?.next();
        let Some(next) = next else { return Ok(()) };
        one(next)?;
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

fn read(place: &Place, data: &mut [u8], threads: usize) -> Result<(), Failure> {
    let file = place.open("m.bin")?;
    let pieces = data.chunks_mut(PIECE).zip(0_u64..);
    shared(pieces, threads, |(piece, n)| Ok(file.read_at(n * PIECE as u64, piece)?))
}

fn write(place: &Place, data: &[u8], threads: usize) -> Result<(), Failure> {
    let upload = place.upload("new.bin", data.len() as u64)?;
    let size = usize::try_from(upload.part_size())?;
    shared(data.chunks(size).enumerate(), threads, |(n, part)| Ok(upload.part(n, part)?))?;
    upload.complete(When::Always)?;
    Ok(())
}
