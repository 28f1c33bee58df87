//! Reads and writes objects of a store, with the credentials that the environment has. Tests compare it with other clients.
//!
//!     store names|list|stale|probe PLACE
//!     store cat|fetch|tag|delete ADDRESS
//!     store put|upload ADDRESS FILE [absent|TAG]
//!     store abort|leave ADDRESS FILE         an upload that is given up, or left by a process that ends

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use weighbridge_remote::{Address, Remote, Tag, When};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [verb, address, ref rest @ ..] = arguments[..] else {
        return Err("what to do, and with which address?".into());
    };
    let address = Address::parse(address).ok_or("that is a path")??;
    let remote = Remote::shared()?;
    let place = remote.locate(&address)?;
    let name = || place.file().ok_or("the address names no file");
    let when = || {
        Ok::<_, Box<dyn Error>>(match rest.get(1) {
            None => When::Always,
            Some(&"absent") => When::Absent,
            Some(tag) => When::Unchanged(Tag::new(tag).ok_or("that is no tag")?),
        })
    };
    match verb {
        "names" => {
            for named in place.names()?.unwrap_or_default() {
                println!("{}\t{}", named.size, named.name);
            }
        }
        "list" => {
            for listed in place.list("")? {
                let tag = listed.tag.map(|tag| tag.to_string()).unwrap_or_default();
                println!("{}\t{}\t{tag}\t{}", listed.size, listed.name, listed.modified.is_some());
            }
        }
        "stale" => println!("{}", place.abort_stale("", Duration::ZERO)?),
        "probe" => println!("{}", place.honours_preconditions()?),
        "cat" => {
            let file = place.open(name()?)?;
            let size = usize::try_from(file.size())?;
            let mut bytes = vec![0; size];
            let piece = size.div_ceil(4).max(1);
            std::thread::scope(|scope| {
                let file = &file;
                let threads: Vec<_> = (0..)
                    .zip(bytes.chunks_mut(piece))
                    .map(|(n, buf)| scope.spawn(move || file.read_at(n * piece as u64, buf)))
                    .collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().map_err(|_| "panicked")?.map_err(Box::<dyn Error>::from)
                })
            })?;
            std::io::stdout().write_all(&bytes)?;
        }
        "fetch" => {
            let path = place.fetch(name()?, &mut |_, _| ControlFlow::Continue(()))?;
            std::io::stdout().write_all(&std::fs::read(path)?)?;
        }
        "tag" => println!("{}", place.tag(name()?)?.map(|tag| tag.to_string()).unwrap_or_default()),
        "delete" => place.delete(name()?)?,
        "put" => {
            let bytes = std::fs::read(rest.first().ok_or("which file?")?)?;
            println!("{}", place.put(name()?, &bytes, when()?)?);
        }
        "upload" | "abort" | "leave" => {
            let bytes = std::fs::read(rest.first().ok_or("which file?")?)?;
            let upload = place.upload(name()?, bytes.len() as u64)?;
            let size = usize::try_from(upload.part_size())?;
            std::thread::scope(|scope| {
                let upload = &upload;
                let pieces = bytes.chunks(size.max(1)).enumerate();
                let threads: Vec<_> =
                    pieces.rev().map(|(n, piece)| scope.spawn(move || upload.part(n, piece))).collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().map_err(|_| "panicked")?.map_err(Box::<dyn Error>::from)
                })
            })?;
            match verb {
                "upload" => println!("{}", upload.complete(when()?)?),
                "abort" => upload.abort(),
                _ => std::mem::forget(upload),
            }
        }
        _ => return Err("no such verb".into()),
    }
    Ok(())
}
