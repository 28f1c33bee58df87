//! Zip archives, right or wrong.

/// A member of an archive as it is to be written.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    /// In the directory.
    pub(crate) name: &'a str,
    /// In the header of its own.
    pub(crate) own_name: &'a str,
    /// As they are stored.
    pub(crate) data: &'a [u8],
    pub(crate) method: u16,
    pub(crate) flags: u16,
    /// Of what is decompressed.
    pub(crate) size: u32,
    pub(crate) crc: u32,
    /// As Unix has it.
    pub(crate) mode: u32,
}

/// One that is stored, and right.
pub(crate) fn member<'a>(name: &'a str, data: &'a [u8]) -> Member<'a> {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    Member {
        name,
        own_name: name,
        data,
        method: 0,
        flags: 0,
        size: data.len() as u32,
        crc: crc.sum(),
        mode: 0o100_644,
    }
}

pub(crate) fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        let header = out.len() as u32;
        let common = |bytes: &mut Vec<u8>, name: &str| {
            bytes.extend(20_u16.to_le_bytes());
            bytes.extend(member.flags.to_le_bytes());
            bytes.extend(member.method.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(member.crc.to_le_bytes());
            bytes.extend((member.data.len() as u32).to_le_bytes());
            bytes.extend(member.size.to_le_bytes());
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend([0; 2]);
        };
        out.extend(b"PK\x03\x04");
        common(&mut out, member.own_name);
        out.extend(member.own_name.bytes());
        out.extend(member.data);
        directory.extend(b"PK\x01\x02\x14\x03");
        common(&mut directory, member.name);
        directory.extend([0; 6]);
        directory.extend((member.mode << 16).to_le_bytes());
        directory.extend(header.to_le_bytes());
        directory.extend(member.name.bytes());
    }
    let (start, count) = (out.len() as u32, (members.len() as u16).to_le_bytes());
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count);
    out.extend(count);
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}
