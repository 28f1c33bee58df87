//! What a file system is like, by its number in `linux/magic.h` and its relatives.

use std::fs::File;

/// What is to be known of the file system that a file is on.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem {
    /// Its files are in the page cache and nowhere else.
    pub(super) in_memory: bool,
    /// Another machine, or another process, is asked for bytes, which takes its time.
    pub(super) remote: bool,
    /// Its files are those of another one, and so are their pages: asked for its own, it has none.
    pub(super) stacked: bool,
}

/// tmpfs, ramfs, hugetlbfs.
const IN_MEMORY: [u32; 3] = [0x0102_1994, 0x8584_58F6, 0x9584_58F6];

/// NFS, SMB (three), FUSE, 9p, Ceph, AFS (two), Lustre, GPFS, OCFS2, GFS2, BeeGFS, PanFS, VirtualBox, VMware.
const REMOTE: [u32; 17] = [
    0x0000_6969,
    0x0000_517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x6573_5546,
    0x0102_1997,
    0x00C3_6400,
    0x5346_414F,
    0x6B41_4653,
    0x0BD0_0BD0,
    0x4750_4653,
    0x7461_636F,
    0x0116_1970,
    0x1983_0326,
    0xAAD7_AAEA,
    0x786F_4256,
    0xBACB_ACBC,
];

/// overlayfs, aufs.
const STACKED: [u32; 2] = [0x794C_7630, 0x6175_6673];

impl FileSystem {
    pub(super) fn of(file: &File) -> Self {
        let magic = rustix::fs::fstatfs(file).map_or(0, |stat| stat.f_type as u32);
        let is = |list: &[u32]| list.contains(&magic);
        Self { in_memory: is(&IN_MEMORY), remote: is(&REMOTE), stacked: is(&STACKED) }
    }
}
