//! Address of an endpoint, and the proxy in front of it.

use std::net::IpAddr;

use reqwest::Url;

/// Returns whether a URL refers to this machine.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Returns the environment variable that names a proxy for this URL, and the proxy's host, without a name or password.
pub fn proxy(url: &Url) -> Option<String> {
    if is_loopback(url) {
        return None;
    }
    let names = match url.scheme() {
        "https" => ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        _ => ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    };
    let named = names.iter().find_map(|name| Some((name, std::env::var(name).ok().filter(|v| !v.is_empty())?)));
    let (name, value) = named?;
    let parsed = Url::parse(&value).ok().filter(Url::has_host).or_else(|| Url::parse(&format!("http://{value}")).ok());
    let host = parsed.and_then(|proxy| {
        let host = proxy.host_str()?.to_string();
        Some(proxy.port_or_known_default().map_or(host.clone(), |port| format!("{host}:{port}")))
    });
    Some(format!("{name} in the environment names the proxy {}", host.unwrap_or_else(|| "(no URL)".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for (url, here) in [
            ("http://localhost:8000/v1", true),
            ("http://LOCALHOST./v1", true),
            ("http://judge.localhost/v1", true),
            ("http://127.0.0.1:1/v1", true),
            ("http://127.8.9.1/v1", true),
            ("http://[::1]:8000/v1", true),
            ("http://0.0.0.0:8000/v1", true),
            ("http://10.0.0.1/v1", false),
            ("http://localhost.example.com/v1", false),
            ("https://api.openai.com/v1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).expect("a URL")), here, "{url}");
        }
    }
}
