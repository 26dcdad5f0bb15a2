//! Files that a run writes: whole or not at all, and never through a link out of their folder.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

use super::portable::{check_name, rename};
use crate::error::{Error, Result};

/// Links in a row that [`follow_links`] follows, as Linux does.
const MAX_LINKS: usize = 40;

/// Writes a file whole or not at all (an atomic write): beside its place, synced, renamed. A file that is replaced leaves its permissions to the new
/// one. A device, a pipe or an open descriptor (`/dev/fd/3`) is never replaced: it takes the bytes as they come. A link is refused:
/// [`follow_links`] first, where a user named the path.
///
/// # Errors
/// [`Error::File`] with the file's name; whatever `fill` says.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    check_name(path).map_err(|reason| Error::file(path, reason))?;
    let at = |e: io::Error| Error::file(path, e);
    if is_descriptor(path) {
        return write_through(path, OpenOptions::new().append(true), fill);
    }
    let old = not_a_link(path)?;
    if old.as_ref().is_some_and(|old| !old.is_file() && !old.is_dir()) {
        return write_through(path, OpenOptions::new().write(true), fill);
    }
    let aside = aside(path);
    let write = || {
        // What a killed run of the same process id left.
        let _ = fs::remove_file(&aside);
        let mut file = BufWriter::new(File::create_new(&aside).map_err(at)?);
        #[cfg(unix)]
        if let Some(old) = old {
            // A file system without permissions is none to keep them.
            let _ = file.get_ref().set_permissions(old.permissions());
        }
        fill(&mut file)?;
        file.into_inner().map_err(|e| at(e.into_error()))?.sync_all().map_err(at)?;
        rename(&aside, path).map_err(at)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&aside);
    })
}

/// Writes text whole or not at all.
///
/// # Errors
/// Those of [`write_atomic`].
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, |file| file.write_all(text.as_bytes()).map_err(|e| Error::file(path, e)))
}

/// The name under which a file is written before it is whole. It has machine and process id, so that nobody's file is in the way.
fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{}.partial", machine_name(), std::process::id()));
    path.with_file_name(name)
}

fn write_through(
    path: &Path,
    options: &OpenOptions,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let at = |e: io::Error| Error::file(path, e);
    let mut file = BufWriter::new(options.open(path).map_err(at)?);
    fill(&mut file)?;
    file.flush().map_err(at)
}

/// Opens a log of an output folder for reading and writing, and creates it where it is missing. Its content is kept.
///
/// # Errors
/// [`Error::File`], also for a link, a device or a pipe: a run writes to files of its own folder.
pub fn open_log(path: &Path) -> Result<File> {
    if not_a_link(path)?.is_some_and(|old| !old.is_file()) {
        return Err(Error::file(path, "is not a regular file"));
    }
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).map_err(|e| Error::file(path, e))
}

/// Makes a folder of an output folder, where it is missing.
///
/// # Errors
/// [`Error::File`], also for a link.
pub fn make_folder(path: &Path) -> Result<()> {
    not_a_link(path)?;
    fs::create_dir_all(path).map_err(|e| Error::file(path, e))
}

/// Makes renames within a folder last through a loss of power, where the system can. Losing them otherwise costs no whole file.
pub fn sync_folder(dir: &Path) {
    #[cfg(unix)]
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
    #[cfg(not(unix))]
    let _ = dir;
}

/// Refuses a path that is a link. Gives what is there, if anything is.
///
/// # Errors
/// [`Error::File`].
pub fn not_a_link(path: &Path) -> Result<Option<fs::Metadata>> {
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => Err(Error::file(
            path,
            "is a link, and links in an output folder are not followed: remove it, or name the folder that it leads to",
        )),
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file(path, e)),
    }
}

/// Follows a path that a user named to what is written there: through links, up to an open descriptor (`/dev/stdout` leads to
/// `/proc/self/fd/1`, which is no name of a file).
///
/// # Errors
/// A link to nothing, or in a circle.
pub fn follow_links(path: &Path) -> Result<PathBuf, &'static str> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match at.symlink_metadata() {
            Ok(found) if found.is_symlink() && !is_descriptor(&at) => {}
            Err(_) if at != path => return Err("is a link to a file that does not exist"),
            _ => return Ok(at),
        }
        let target = at.read_link().map_err(|_| "is a link that cannot be read")?;
        // An absolute target replaces the path.
        at = at.parent().unwrap_or(Path::new("")).join(target);
    }
    Err("is a link in a circle")
}

/// Refuses a path that could not be written at the end of a long computation, without a trace.
///
/// # Errors
/// [`Error::File`].
pub fn check_writable(path: &Path) -> Result<()> {
    let at = |e: io::Error| Error::file(path, e);
    if is_descriptor(path) {
        return path.symlink_metadata().map(drop).map_err(at);
    }
    if not_a_link(path)?.is_some_and(|old| !old.is_file()) {
        return Ok(());
    }
    let aside = aside(path);
    let _ = fs::remove_file(&aside);
    File::create_new(&aside).and_then(|_| fs::remove_file(&aside)).map_err(at)
}

/// Whether a path names an open file of a process: `/dev/stdout`, `/dev/fd/3`, `/proc/self/fd/3`. What is behind it belongs to whoever opened
/// it, and may hold text before ours.
pub fn is_descriptor(path: &Path) -> bool {
    let mut parts = path.components();
    let is = |part: Option<Component<'_>>, name: &str| part.is_some_and(|part| part.as_os_str() == name);
    if !cfg!(unix) || parts.next() != Some(Component::RootDir) {
        return false;
    }
    let parts: Vec<Component<'_>> = parts.collect();
    match parts.len() {
        2 => is(Some(parts[0]), "dev") && ["stdin", "stdout", "stderr"].iter().any(|name| is(Some(parts[1]), name)),
        3 => is(Some(parts[0]), "dev") && is(Some(parts[1]), "fd"),
        n => n >= 4 && is(Some(parts[0]), "proc") && is(Some(parts[n - 2]), "fd"),
    }
}

/// Gives this machine's name, in characters that suit a file's name.
pub fn machine_name() -> String {
    // Whatever shell it is, Windows sets this one.
    let variable = if cfg!(windows) { "COMPUTERNAME" } else { "HOSTNAME" };
    name_in(std::env::var(variable).ok())
        .or_else(|| name_in(fs::read_to_string("/etc/hostname").ok()))
        .unwrap_or_else(|| "localhost".into())
}

/// Keeps of a machine's name what suits a file's name; `None` where that is nothing.
fn name_in(text: Option<String>) -> Option<String> {
    let suits = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let name: String = text?.trim().chars().filter(suits).take(64).collect();
    Some(name).filter(|name| !name.is_empty())
}

/// Whether a path is a name of standard output: `-`, `/dev/stdout`.
pub fn is_standard_output(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_names() {
        for name in
            ["/dev/stdout", "/dev/stderr", "/dev/fd/3", "/proc/self/fd/1", "/proc/12/fd/1", "/proc/12/task/13/fd/1"]
        {
            assert_eq!(is_descriptor(Path::new(name)), cfg!(unix), "{name}");
        }
        for name in ["-", "dev/stdout", "/dev/null", "/dev/full", "/tmp/fd/1", "/proc/self", "/home/dev/fd/1"] {
            assert!(!is_descriptor(Path::new(name)), "{name}");
        }
        assert!(is_standard_output(Path::new("-")) && !is_standard_output(Path::new("./-")));
    }

    #[test]
    fn machines_have_names() {
        assert_eq!(name_in(Some(" a.b-1_/\n".into())).as_deref(), Some("ab-1"));
        assert_eq!([name_in(Some(" \n".into())), name_in(None)], [None, None]);
        if let (true, Ok(name)) = (cfg!(windows), std::env::var("COMPUTERNAME")) {
            assert_eq!(Some(machine_name()), name_in(Some(name)));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_where_a_user_named_them_and_nowhere_else() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("folder/file"), "old").unwrap();
        symlink("folder/file", at("link")).unwrap();
        symlink(at("link"), at("folder/back")).unwrap();
        symlink("nothing", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        assert_eq!(follow_links(&at("folder/back")).unwrap(), at("folder/file"));
        assert_eq!(follow_links(&at("absent")).unwrap(), at("absent"));
        assert_eq!(follow_links(Path::new("/dev/full")).unwrap(), Path::new("/dev/full"));
        assert!(follow_links(&at("dangling")).unwrap_err().contains("does not exist"));
        assert!(follow_links(&at("circle")).unwrap_err().contains("circle"));

        for name in ["link", "dangling"] {
            let errors = [
                write_text(&at(name), "new").unwrap_err(),
                open_log(&at(name)).unwrap_err(),
                make_folder(&at(name)).unwrap_err(),
            ];
            errors.iter().for_each(|e| assert!(e.to_string().contains("is a link"), "{e}"));
        }
        assert_eq!(fs::read_to_string(at("folder/file")).unwrap(), "old");
        assert!(at("link").is_symlink() && !at("nothing").exists());
        write_text(&follow_links(&at("link")).unwrap(), "new").unwrap();
        assert_eq!(fs::read_to_string(at("link")).unwrap(), "new");
        assert!(at("link").is_symlink());
        assert_eq!(fs::read_dir(at("folder")).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_takes_the_bytes_and_stays() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write_text(&pipe, "text").unwrap();
        assert_eq!(reader.join().unwrap(), "text");
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        assert!(open_log(&pipe).unwrap_err().to_string().contains("is not a regular file"));

        // A private file stays private.
        let file = dir.path().join("private");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        write_text(&file, "new").unwrap();
        assert_eq!(
            (fs::read_to_string(&file).unwrap().as_str(), fs::metadata(&file).unwrap().permissions().mode() & 0o777),
            ("new", 0o600)
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_names_the_file_and_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_text(&path, "old").unwrap();
        // The writer meets the disk's end when its buffer is full.
        let full = |file: &mut BufWriter<File>| {
            *file = BufWriter::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
            file.write_all(&[0; 100_000]).map_err(|e| Error::file(&path, e))
        };
        let error = write_atomic(&path, full).unwrap_err().to_string();
        assert!(error.contains("x: No space left"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write_text(Path::new("/dev/full"), "text").unwrap_err().to_string();
        assert!(error.contains("/dev/full: No space left"), "{error}");
    }
}
