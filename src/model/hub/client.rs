//! HTTP requests to the hub: which commit a revision is, which files it has, and the bytes of a file.

use std::time::Duration;

use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, ETAG, HeaderMap, HeaderValue, LINK, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::HubId;

/// Address of the hub where `HF_ENDPOINT` names no other.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Time to connect, and the longest wait for the next bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests of one question, the first included.
const ATTEMPTS: u32 = 3;
/// Wait before the second request; twice as long before the third.
const BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait that a `Retry-After` header gets.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Most redirects that one request follows.
const MAX_REDIRECTS: usize = 10;
/// Most pages of a list of files, of a thousand files each.
const MAX_PAGES: usize = 1000;

/// Reason why the hub, or its cache, does not give a file.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer: there is no network, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// An answer with an error status.
    #[error("HTTP {status}{}{}{}", prefixed(", ", code), prefixed(": ", message), prefixed(": ", what))]
    Status {
        /// HTTP status.
        status: u16,
        /// `X-Error-Code` header, such as `GatedRepo`; empty where there is none.
        code: String,
        /// `X-Error-Message` header; empty where there is none.
        message: String,
        /// File or repository that was asked for.
        what: String,
    },
    /// The hub's cache on this machine lacks it, and the hub was not to be asked.
    #[error("{0} is not in the hub's cache")]
    NotCached(String),
    /// An answer that is not what the hub's interface says.
    #[error("{0}")]
    Unexpected(String),
    /// A setting of the environment that cannot be used.
    #[error("{0}")]
    Setting(String),
    /// A file of the cache that cannot be read or written.
    #[error("{0}")]
    File(#[from] crate::error::Error),
}

fn prefixed(prefix: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{prefix}{text}") }
}

impl HubError {
    /// Tells whether the same request may succeed later, or the cache may do instead.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Status { status, .. } => is_transient(*status),
            _ => false,
        }
    }

    /// Tells whether the hub has what was asked for, and does not give it to this user. A private repository is not found.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Status { status: 401 | 403, .. })
            || matches!(self, Self::Status { status: 404, code, .. } if code == "RepoNotFound")
    }

    /// Tells whether the repository lacks the revision.
    pub fn is_revision_not_found(&self) -> bool {
        matches!(self, Self::Status { code, .. } if code == "RevisionNotFound")
    }
}

impl From<reqwest::Error> for HubError {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        // The innermost cause says more than "error sending request".
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Self::Unreachable(cause.to_string())
    }
}

fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RepositoryKind {
    /// Models and adapters.
    Model,
    /// Data sets.
    DataSet,
}

/// Repository of the hub.
#[derive(Debug, Clone, Copy)]
pub struct HubRepository<'a> {
    /// Kind of the repository.
    pub kind: RepositoryKind,
    /// Owner and name.
    pub id: &'a HubId,
}

impl HubRepository<'_> {
    /// Returns the plural that interfaces and folders of the cache have.
    pub fn plural(&self) -> &'static str {
        match self.kind {
            RepositoryKind::Model => "models",
            RepositoryKind::DataSet => "datasets",
        }
    }

    /// Returns `org/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.id.owner, self.id.name)
    }
}

/// Metadata of one file at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct FileMetadata {
    /// Commit of the revision.
    pub commit: String,
    /// Name of the file's content: its SHA-256 where the file is large, else git's.
    pub etag: String,
    /// Whether `etag` is the content's SHA-256.
    pub is_sha256: bool,
    /// Length in bytes, where the hub says it.
    pub n_bytes: Option<u64>,
}

/// HTTP client of the hub.
pub struct HubClient {
    http: Client,
    endpoint: Url,
    token: Option<HeaderValue>,
}

impl HubClient {
    /// Makes a client of `HF_ENDPOINT` that sends the user's token.
    ///
    /// # Errors
    /// [`HubError::Setting`] where `HF_ENDPOINT` is not an address.
    pub fn from_environment() -> Result<Self, HubError> {
        let address = std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty());
        let address = address.unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let endpoint = Url::parse(&address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let endpoint =
            endpoint.ok_or_else(|| HubError::Setting(format!("HF_ENDPOINT={address} is not an http(s) address")))?;
        let http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(READ_TIMEOUT)
            // Redirects are followed by hand, so that the token stays with the hub.
            .redirect(Policy::none())
            .user_agent(concat!("jointwise/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let token = super::cache::read_token().map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        let mut token = token
            .transpose()
            .map_err(|_| HubError::Setting("the hub's token has characters that no header may have".into()))?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        Ok(Self { http, endpoint, token })
    }

    /// Returns the address of these path segments at the endpoint.
    fn address<'s>(&self, segments: impl IntoIterator<Item = &'s str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        // A slash within a segment (`refs/pr/1`) is encoded by `extend`.
        url
    }

    /// Asks until there is an answer that is not an error which passes, and at most [`ATTEMPTS`] times.
    fn send(&self, method: &Method, url: &Url, range: Option<u64>, what: &str) -> Result<Response, HubError> {
        let mut wait = BACKOFF;
        for attempt in 1.. {
            let (error, retry_after) = match self.send_once(method, url, range) {
                Ok(response) if response.status().is_success() || response.status().is_redirection() => {
                    return Ok(response);
                }
                Ok(response) => (status_error(&response, what), retry_after(response.headers())),
                Err(error) => (error, None),
            };
            if attempt == ATTEMPTS || !error.is_transient() {
                return Err(error);
            }
            std::thread::sleep(retry_after.unwrap_or(wait).min(MAX_RETRY_AFTER));
            wait *= 2;
        }
        unreachable!("the last attempt returns")
    }

    /// Sends one request, and follows redirects: of HEAD those within the hub, because the hub's own headers are wanted; of GET all.
    fn send_once(&self, method: &Method, url: &Url, range: Option<u64>) -> Result<Response, HubError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.request(method.clone(), url.clone());
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Some(start) = range {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            let response = request.send()?;
            let Some(target) = redirect_target(&response, &url) else { return Ok(response) };
            if *method == Method::HEAD && target.origin() != self.endpoint.origin() {
                return Ok(response);
            }
            if url.scheme() == "https" && target.scheme() != "https" {
                return Err(HubError::Unexpected(format!("{url} is redirected to an address without encryption")));
            }
            url = target;
        }
        Err(HubError::Unexpected(format!("{url}: too many redirects")))
    }

    fn json<T: DeserializeOwned>(&self, url: &Url, what: &str) -> Result<(T, HeaderMap), HubError> {
        let response = self.send(&Method::GET, url, None, what)?;
        let headers = response.headers().clone();
        let body = response.bytes()?;
        let value = serde_json::from_slice(&body).map_err(|error| {
            HubError::Unexpected(format!("{what}: the hub's answer is not what it should be: {error}"))
        })?;
        Ok((value, headers))
    }

    /// Returns the commit of a branch, a tag or a commit.
    ///
    /// # Errors
    /// [`HubError::Status`] where there is no such repository or revision; others.
    pub fn commit(&self, repository: HubRepository<'_>, revision: &str) -> Result<String, HubError> {
        #[derive(serde::Deserialize)]
        struct Info {
            sha: String,
        }
        let HubRepository { id, .. } = repository;
        let url = self.address(["api", repository.plural(), &id.owner, &id.name, "revision", revision]);
        let (info, _) = self.json::<Info>(&url, &repository.name())?;
        checked_name(info.sha, "commit")
    }

    /// Lists the files of a revision: their paths and lengths. Leaves out paths that would leave the repository's folder.
    ///
    /// # Errors
    /// Like [`HubClient::commit`].
    pub fn list_files(&self, repository: HubRepository<'_>, revision: &str) -> Result<Vec<(String, u64)>, HubError> {
        #[derive(serde::Deserialize)]
        struct Entry {
            r#type: String,
            path: String,
            #[serde(default)]
            size: u64,
        }
        let HubRepository { id, .. } = repository;
        let mut url = self.address(["api", repository.plural(), &id.owner, &id.name, "tree", revision]);
        url.set_query(Some("recursive=true"));
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (entries, headers) = self.json::<Vec<Entry>>(&url, &repository.name())?;
            let plain = entries.into_iter().filter(|entry| entry.r#type == "file" && is_plain_path(&entry.path));
            files.extend(plain.map(|entry| (entry.path, entry.size)));
            match next_page(&headers, &url) {
                Some(next) => url = next,
                None => return Ok(files),
            }
        }
        Err(HubError::Unexpected(format!("{}: the list of files does not end", repository.name())))
    }

    fn file_address(&self, repository: HubRepository<'_>, revision: &str, path: &str) -> Url {
        let id = repository.id;
        let kind = (repository.kind == RepositoryKind::DataSet).then_some("datasets");
        let named = [id.owner.as_str(), &id.name, "resolve", revision];
        self.address(kind.into_iter().chain(named).chain(path.split('/')))
    }

    /// Asks for a file's metadata.
    ///
    /// # Errors
    /// Like [`HubClient::commit`].
    pub fn metadata(
        &self,
        repository: HubRepository<'_>,
        revision: &str,
        path: &str,
    ) -> Result<FileMetadata, HubError> {
        let response = self.send(&Method::HEAD, &self.file_address(repository, revision, path), None, path)?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let missing = |name: &str| HubError::Unexpected(format!("{path}: the hub's answer has no {name}"));
        // Of a file in large storage, ETag and Content-Length are those of the redirect.
        let linked = text("x-linked-etag");
        let etag = linked.or_else(|| text(ETAG.as_str())).ok_or_else(|| missing("ETag"))?;
        let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_string();
        let is_sha256 = linked.is_some() && etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let n_bytes =
            text("x-linked-size").or_else(|| text("content-length").filter(|_| response.status().is_success()));
        let commit = text("x-repo-commit").ok_or_else(|| missing("X-Repo-Commit"))?;
        Ok(FileMetadata {
            commit: checked_name(commit.into(), "commit")?,
            etag: checked_name(etag, "ETag")?,
            is_sha256,
            n_bytes: n_bytes.and_then(|text| text.parse().ok()),
        })
    }

    /// Opens a file's content from byte `start` on. The answer may begin at 0 instead: then its status is 200, not 206.
    ///
    /// # Errors
    /// Like [`HubClient::commit`].
    pub fn open(
        &self,
        repository: HubRepository<'_>,
        revision: &str,
        path: &str,
        start: u64,
    ) -> Result<Response, HubError> {
        let url = self.file_address(repository, revision, path);
        let response = self.send(&Method::GET, &url, (start > 0).then_some(start), path)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            _ => Err(status_error(&response, path)),
        }
    }
}

/// Returns where an answer redirects to.
fn redirect_target(response: &Response, url: &Url) -> Option<Url> {
    let location = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    url.join(location.to_str().ok()?).ok().filter(|target| matches!(target.scheme(), "http" | "https"))
}

fn status_error(response: &Response, what: &str) -> HubError {
    let text =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().into();
    HubError::Status {
        status: response.status().as_u16(),
        code: text("x-error-code"),
        message: text("x-error-message"),
        what: what.into(),
    }
}

/// Returns the seconds of a `Retry-After` header.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Returns the next page of a list: `Link: <address>; rel="next"`, at the same origin.
fn next_page(headers: &HeaderMap, url: &Url) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let address = next.split_once('<')?.1.split_once('>')?.0;
    url.join(address).ok().filter(|next| next.origin() == url.origin())
}

/// Takes a commit or an ETag, which becomes a file name.
fn checked_name(name: String, what: &str) -> Result<String, HubError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(is_plain) {
        true => Ok(name),
        false => Err(HubError::Unexpected(format!("the hub's {what} `{name}` cannot be a file name"))),
    }
}

/// Tells whether a path stays in the folder that it is joined to, on every system.
pub fn is_plain_path(path: &str) -> bool {
    let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
    path.split('/').all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_hub() {
        let client =
            |endpoint: &str| HubClient { http: Client::new(), endpoint: Url::parse(endpoint).unwrap(), token: None };
        let id = HubId::parse("org/name").unwrap();
        let model = HubRepository { kind: RepositoryKind::Model, id: &id };
        let data_set = HubRepository { kind: RepositoryKind::DataSet, id: &id };
        let hub = client("https://huggingface.co");
        let file = hub.file_address(model, "refs/pr/1", "a b/c#.json");
        assert_eq!(file.as_str(), "https://huggingface.co/org/name/resolve/refs%2Fpr%2F1/a%20b/c%23.json");
        let file = client("http://127.0.0.1:9/mirror/").file_address(data_set, "main", "x.jsonl");
        assert_eq!(file.as_str(), "http://127.0.0.1:9/mirror/datasets/org/name/resolve/main/x.jsonl");
    }

    #[test]
    fn names_and_paths_of_the_hub_stay_in_their_folder() {
        for bad in ["", "..", "../x", "a/../b", "/a", "a//b", "a\\b", "C:x", "a/."] {
            assert!(!is_plain_path(bad), "{bad}");
        }
        assert!(is_plain_path("data/train-00000-of-00002.parquet"));
        assert!(checked_name("../../x".into(), "ETag").is_err() && checked_name(".x".into(), "ETag").is_err());
        assert!(checked_name("0123456789abcdef-2".into(), "ETag").is_ok());
    }

    #[test]
    fn the_next_page_is_at_the_same_server() {
        let url = Url::parse("https://hub/api/models/a/b/tree/main?recursive=true").unwrap();
        let next = |link: &str| {
            let headers = [(LINK, HeaderValue::from_str(link).unwrap())].into_iter().collect();
            next_page(&headers, &url).map(String::from)
        };
        assert_eq!(next("<https://hub/x?cursor=1>; rel=\"next\"").as_deref(), Some("https://hub/x?cursor=1"));
        assert_eq!(next("<https://hub/x>; rel=\"prev\", </y>; rel=\"next\"").as_deref(), Some("https://hub/y"));
        assert_eq!(next("<https://elsewhere/x>; rel=\"next\""), None);
    }

    #[test]
    fn errors_say_status_code_and_file() {
        let error = |status, code: &str| HubError::Status {
            status,
            code: code.into(),
            message: String::new(),
            what: "a.json".into(),
        };
        assert_eq!(error(404, "EntryNotFound").to_string(), "HTTP 404, EntryNotFound: a.json");
        assert_eq!(error(500, "").to_string(), "HTTP 500: a.json");
        assert!(error(403, "GatedRepo").is_refusal() && error(404, "RepoNotFound").is_refusal());
        assert!(!error(404, "EntryNotFound").is_refusal() && error(503, "").is_transient());
    }
}
