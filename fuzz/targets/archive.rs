//! Archives of members as the fuzzer decides, with headers that lie and archives within them: read and scanned without a
//! panic. A pickle that imports `os.system` is never harmless, wherever it is, and dangerous where nothing lies.
#![no_main]

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use fuzz_files::{EVIL, open, options, scan};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weighbridge_convert::Verdict;

#[derive(Arbitrary, Debug)]
struct Input {
    choice: u8,
    archive: Data,
    before: Vec<u8>,
    behind: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Data {
    Bytes(Vec<u8>),
    Evil,
    /// A tensor of four floats in the storage "0".
    Pickle,
    Zip(Zip),
    Tar(Vec<TarMember>),
    Gzip(Box<Data>),
    Zlib(Box<Data>),
}

#[derive(Arbitrary, Debug)]
struct Zip {
    members: Vec<Member>,
    comment: Vec<u8>,
    lies: Option<EndLies>,
    wide: bool,
}

#[derive(Arbitrary, Debug)]
struct EndLies {
    count: i8,
    len: i8,
    start: i16,
    record: i8,
}

#[derive(Arbitrary, Debug)]
struct Member {
    name: Name,
    data: Data,
    deflated: bool,
    wide: bool,
    lies: Option<Lies>,
}

/// What headers say that is not so; each is added to what is right, or laid over it.
#[derive(Arbitrary, Debug)]
struct Lies {
    method: u8,
    flags: u16,
    size: i16,
    compressed: i16,
    crc: u32,
    header: i16,
    mode: u16,
    own_flags: u16,
    own_method: u8,
    own_name: Option<Name>,
    extra: Vec<u8>,
    descriptor: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct TarMember {
    name: Name,
    kind: u8,
    data: Data,
    size: i8,
    padding: u8,
}

#[derive(Arbitrary, Clone, Debug)]
enum Name {
    Known(u8),
    Other(String),
}

const NAMES: [&str; 16] = [
    "a/data.pkl",
    "a/data/0",
    "data.pkl",
    "data/0",
    "a/byteorder",
    "a/version",
    "a/constants.pkl",
    "a/code/x.py",
    "a/",
    "x.npy",
    "model.weights.h5",
    "config.json",
    "storages",
    "tensors",
    "pickle",
    "../x",
];
const PICKLE: &[u8] =
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\
    0X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85\x89NtR.";

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Known(number) => NAMES[usize::from(*number) % NAMES.len()].to_owned(),
            Self::Other(name) => name.chars().take(200).collect(),
        }
    }
}

impl Data {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Evil => EVIL.to_vec(),
            Self::Pickle => PICKLE.to_vec(),
            Self::Zip(zip) => zip.bytes(),
            Self::Tar(members) => tar(members),
            Self::Gzip(inner) => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&inner.bytes()).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zlib(inner) => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&inner.bytes()).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn has_evil(&self) -> bool {
        match self {
            Self::Bytes(_) | Self::Pickle => false,
            Self::Evil => true,
            Self::Zip(zip) => zip.members.iter().any(|member| member.data.has_evil()),
            // Tables of names are no members.
            Self::Tar(members) => {
                members.iter().any(|member| !b"LKxg".contains(&member.kind()) && member.data.has_evil())
            }
            Self::Gzip(inner) | Self::Zlib(inner) => inner.has_evil(),
        }
    }

    /// Whether everything is as it says, so that nothing keeps a reader from what is in it.
    fn is_honest(&self) -> bool {
        match self {
            Self::Bytes(_) | Self::Pickle | Self::Evil => true,
            Self::Zip(zip) => {
                zip.lies.is_none()
                    && zip.comment.is_empty()
                    && zip.members.iter().all(|member| member.lies.is_none() && member.data.is_honest())
            }
            Self::Tar(members) => members.iter().all(|member| {
                member.kind % 4 == 0 && member.size == 0 && member.padding == 0 && member.data.is_honest()
            }),
            Self::Gzip(inner) | Self::Zlib(inner) => inner.is_honest(),
        }
    }

    fn depth(&self) -> usize {
        1 + match self {
            Self::Bytes(_) | Self::Pickle | Self::Evil => 0,
            Self::Zip(zip) => zip.members.iter().map(|member| member.data.depth()).max().unwrap_or(0),
            Self::Tar(members) => members.iter().map(|member| member.data.depth()).max().unwrap_or(0),
            Self::Gzip(inner) | Self::Zlib(inner) => inner.depth(),
        }
    }
}

impl Zip {
    fn bytes(&self) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for member in &self.members {
            member.write(&mut out, &mut directory);
        }
        let none = EndLies { count: 0, len: 0, start: 0, record: 0 };
        let lies = self.lies.as_ref().unwrap_or(&none);
        let count = (self.members.len() as u64).wrapping_add_signed(lies.count.into());
        let len = (directory.len() as u64).wrapping_add_signed(lies.len.into());
        let start = (out.len() as u64).wrapping_add_signed(lies.start.into());
        out.extend(&directory);
        let record = (out.len() as u64).wrapping_add_signed(lies.record.into());
        if self.wide {
            out.extend(b"PK\x06\x06");
            out.extend(44_u64.to_le_bytes());
            out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for value in [count, count, len, start] {
                out.extend(value.to_le_bytes());
            }
            out.extend(b"PK\x06\x07\0\0\0\0");
            out.extend(record.to_le_bytes());
            out.extend(1_u32.to_le_bytes());
        }
        out.extend(b"PK\x05\x06\0\0\0\0");
        for _ in 0..2 {
            out.extend((if self.wide { 0xffff } else { count as u16 }).to_le_bytes());
        }
        for value in [len, start] {
            out.extend((if self.wide { u32::MAX } else { value as u32 }).to_le_bytes());
        }
        out.extend((self.comment.len() as u16).to_le_bytes());
        out.extend(&self.comment);
        out
    }
}

impl Member {
    fn write(&self, out: &mut Vec<u8>, directory: &mut Vec<u8>) {
        let name = self.name.text();
        let data = self.data.bytes();
        let mut crc = flate2::Crc::new();
        crc.update(&data);
        let (stored, method) = match self.deflated {
            true => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&data).unwrap();
                (encoder.finish().unwrap(), 8)
            }
            false => (data.clone(), 0),
        };
        let none = Lies {
            method: 0,
            flags: 0,
            size: 0,
            compressed: 0,
            crc: 0,
            header: 0,
            mode: 0,
            own_flags: 0,
            own_method: 0,
            own_name: None,
            extra: Vec::new(),
            descriptor: Vec::new(),
        };
        let lies = self.lies.as_ref().unwrap_or(&none);
        let method = method ^ u16::from(lies.method);
        let crc = crc.sum() ^ lies.crc;
        let size = (data.len() as u64).wrapping_add_signed(lies.size.into());
        let compressed = (stored.len() as u64).wrapping_add_signed(lies.compressed.into());
        let header = (out.len() as u64).wrapping_add_signed(lies.header.into());

        let narrow = |value: u64| if self.wide { u32::MAX } else { value as u32 };
        let common = |bytes: &mut Vec<u8>, flags: u16, method: u16, name: &str, extra: usize| {
            bytes.extend(20_u16.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(method.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(crc.to_le_bytes());
            bytes.extend(narrow(compressed).to_le_bytes());
            bytes.extend(narrow(size).to_le_bytes());
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend((extra as u16).to_le_bytes());
        };
        let mut extra = Vec::new();
        if self.wide {
            extra.extend([1, 0, 24, 0]);
            for value in [size, compressed, header] {
                extra.extend(value.to_le_bytes());
            }
        }
        let own_name = lies.own_name.as_ref().map_or(name.clone(), Name::text);
        let own_extra = if self.wide { &extra[..20] } else { &[] };
        out.extend(b"PK\x03\x04");
        common(
            out,
            lies.flags ^ lies.own_flags,
            method ^ u16::from(lies.own_method),
            &own_name,
            own_extra.len(),
        );
        out.extend(own_name.bytes());
        // Its length counts two values.
        out.extend(own_extra.iter().enumerate().map(|(at, &byte)| if at == 2 { 16 } else { byte }));
        out.extend(stored);
        out.extend(&lies.descriptor);
        extra.extend(&lies.extra);
        directory.extend(b"PK\x01\x02\x14\x03");
        common(directory, lies.flags, method, &name, extra.len());
        directory.extend([0; 6]);
        directory.extend((u32::from(lies.mode) << 16).to_le_bytes());
        directory.extend(narrow(header).to_le_bytes());
        directory.extend(name.bytes());
        directory.extend(extra);
    }
}

impl TarMember {
    fn kind(&self) -> u8 {
        match self.kind % 4 {
            0 => b'0',
            1 => b'L',
            2 => b'x',
            _ => self.kind,
        }
    }
}

fn tar(members: &[TarMember]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let data = member.data.bytes();
        let mut block = [0; 512];
        let name: Vec<u8> = member.name.text().bytes().take(100).collect();
        block[..name.len()].copy_from_slice(&name);
        let size = (data.len() as u64).wrapping_add_signed(member.size.into());
        let size = format!("{:011o}", size & 0o77_777_777_777);
        block[124..135].copy_from_slice(size.as_bytes());
        block[156] = member.kind();
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(block);
        out.extend(data);
        out.resize(out.len().next_multiple_of(512), member.padding);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fuzz_target!(|input: Input| {
    let archive = input.archive.bytes();
    let bytes = [&input.before[..], &archive, &input.behind].concat();
    open(&bytes, &options(input.choice));
    let found = scan(&bytes);
    if !input.archive.has_evil() {
        return;
    }
    let is_alone = input.before.is_empty() && input.behind.is_empty();
    if is_alone && input.archive.depth() < 6 && input.archive.is_honest() {
        assert_eq!(found.verdict(), Verdict::Dangerous, "{found:?}");
    } else if input.before.is_empty() || input.behind.is_empty() && matches!(input.archive, Data::Zip(_)) {
        // Behind other bytes only a zip archive is one.
        assert_ne!(found.verdict(), Verdict::Harmless, "{found:?}");
    }
});
