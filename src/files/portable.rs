//! Putting files into place, as every system allows it: renames that wait for Windows' virus scanners and indexers, and names that Windows
//! keeps for devices.

use std::io;
use std::path::Path;
use std::time::Duration;

/// Waits between tries, in ms: a second in all.
const PAUSES_MS: [u64; 6] = [10, 20, 50, 120, 300, 500];

/// Renames a file or folder. On Windows, tries again for a second while another program has it open.
///
/// # Errors
/// Those of [`std::fs::rename`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    retry(is_held_open, || std::fs::rename(from, to))
}

/// Removes a folder with all that is in it. On Windows, tries again for a second while another program has some of it open.
///
/// # Errors
/// Those of [`std::fs::remove_dir_all`].
pub fn remove_dir_all(dir: &Path) -> io::Result<()> {
    retry(is_held_open, || std::fs::remove_dir_all(dir))
}

/// Whether what was found is a pipe: something to read that has no length. Only Unix tells one.
pub fn is_pipe(found: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::FileTypeExt::is_fifo(&found.file_type());
    #[cfg(not(unix))]
    {
        let _ = found;
        false
    }
}

/// Tells ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION, which Windows gives while a scanner has a file open; elsewhere nothing passes by waiting.
fn is_held_open(error: &io::Error) -> bool {
    cfg!(windows) && matches!(error.raw_os_error(), Some(5 | 32))
}

fn retry<T>(may_pass: impl Fn(&io::Error) -> bool, mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for pause_ms in PAUSES_MS {
        match action() {
            Err(error) if may_pass(&error) => std::thread::sleep(Duration::from_millis(pause_ms)),
            done => return done,
        }
    }
    action()
}

/// Refuses an output's path on Windows where a part of it is a device's name, with the reason.
pub fn check_name(path: &Path) -> Result<(), String> {
    match device_name(path).filter(|_| cfg!(windows)) {
        Some(name) => Err(format!("`{name}` is a name that Windows keeps for a device: choose another")),
        None => Ok(()),
    }
}

/// Finds the first part of a path that Windows takes for a device, whatever extension follows it.
fn device_name(path: &Path) -> Option<String> {
    let parts = path.components().filter_map(|part| match part {
        std::path::Component::Normal(name) => name.to_str(),
        _ => None,
    });
    parts
        .map(|name| name.split(['.', ':']).next().unwrap_or(name).trim_end())
        .find(|stem| is_device(stem))
        .map(String::from)
}

fn is_device(stem: &str) -> bool {
    let stem = stem.to_ascii_uppercase();
    let is_port = |kind: &str| {
        let number = stem.strip_prefix(kind).map(|n| n.chars().collect::<Vec<_>>());
        matches!(number.as_deref(), Some(['0'..='9' | '¹' | '²' | '³']))
    };
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&stem.as_str()) || is_port("COM") || is_port("LPT")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file that is open elsewhere for the first `busy` tries; how often it was tried.
    fn tries(busy: usize, code: i32) -> (io::Result<()>, usize) {
        let tried = Cell::new(0);
        let done = retry(
            |error| error.raw_os_error() == Some(32),
            || {
                tried.set(tried.get() + 1);
                if tried.get() > busy { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
            },
        );
        (done, tried.get())
    }

    #[test]
    fn what_passes_is_waited_for_and_nothing_else() {
        let (done, n) = tries(3, 32);
        assert!(done.is_ok() && n == 4);
        // For ever is a second.
        let (done, n) = tries(usize::MAX, 32);
        assert_eq!((done.unwrap_err().raw_os_error(), n), (Some(32), PAUSES_MS.len() + 1));
        // A full disk does not pass.
        let (done, n) = tries(3, 28);
        assert_eq!((done.unwrap_err().raw_os_error(), n), (Some(28), 1));
    }

    #[test]
    fn a_rename_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        rename(&from, &to).unwrap();
        assert_eq!((std::fs::read_to_string(&to).unwrap(), from.exists()), ("new".into(), false));
        assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn names_of_devices() {
        for (path, device) in [
            ("nul", "nul"),
            ("runs/CON", "CON"),
            ("aux/out.jsonl", "aux"),
            ("out/nul.jsonl", "nul"),
            ("Com1.txt", "Com1"),
            ("lpt9", "lpt9"),
            ("con .txt", "con"),
            ("x/conout$", "conout$"),
        ] {
            assert_eq!(device_name(Path::new(path)).as_deref(), Some(device), "{path}");
        }
        for path in ["null", "runs/console", "com", "com12", "auxiliary", "prn1", "my.con", "./x/../y", "/dev/full"] {
            assert_eq!(device_name(Path::new(path)), None, "{path}");
        }
        // Elsewhere they are names as any other.
        assert_eq!(check_name(Path::new("nul")).is_err(), cfg!(windows));
    }
}
