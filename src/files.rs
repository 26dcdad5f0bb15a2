//! Files and folders that a run writes: whole or not at all, never through a link out of their folder, by one run at a time, on every system.

mod atomic;
#[cfg(any(unix, windows))]
mod lock;
mod parts_hash;
mod portable;

pub use atomic::{
    check_writable, follow_links, is_descriptor, is_standard_output, machine_name, make_folder, not_a_link, open_log,
    sync_folder, write_atomic, write_text,
};
#[cfg(any(unix, windows))]
pub use lock::{FileLock, FolderLock, LOCK};
pub use parts_hash::parts_hash;
pub use portable::{check_name, is_pipe, remove_dir_all, rename};
