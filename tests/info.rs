//! `info --report`: what a bug report needs, and nothing that must stay private.

mod program;

use program::{Ran, Sandbox};

/// Runs the report with the sandbox as the home folder, and returns it.
fn report(s: &Sandbox, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = s.command(&[&["info", "--report"], args].concat());
    command.env("HOME", home(s)).env_remove("JOINTWISE_API_KEY").env_remove("JOINTWISE_VARIANT");
    Ran::of(command.envs(variables.iter().copied()))
}

fn home(s: &Sandbox) -> String {
    s.text("").trim_end_matches('/').into()
}

/// The rows of a section's tables, by their first cell.
fn section<'a>(text: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let start = text.find(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no `{title}` in {text}"));
    let rest = &text[start + 4..];
    let lines = rest[..rest.find("\n## ").unwrap_or(rest.len())].lines();
    lines.filter_map(|l| l.strip_prefix("| ")?.strip_suffix(" |")).map(|l| l.split(" | ").collect()).collect()
}

fn value<'a>(rows: &[Vec<&'a str>], name: &str) -> &'a str {
    rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("no `{name}` in {rows:?}"))[1]
}

#[test]
fn a_report_has_every_part_and_no_secret() {
    let s = Sandbox::new();
    let variables = [("JOINTWISE_API_KEY", "sk-secret-123"), ("JOINTWISE_VARIANT", "tiles64,cpu")];
    let text = report(&s, &[], &variables).ok().stdout;
    let rest = text.strip_prefix("# jointwise: report\n").expect("a heading");
    assert!(rest.contains(&format!("| version | {} |", env!("CARGO_PKG_VERSION"))), "{text}");
    for name in ["commit", "program", "system", "architecture", "processor", "memory"] {
        assert!(rest.contains(&format!("\n| {name} | ")), "{name}: {text}");
    }
    assert!(section(&text, "Devices").len() >= 2);
    let device = section(&text, "Chosen device");
    let shown = s.run(&["info", "--json"]).ok().lines()[0]["device"].clone();
    for (name, key) in [("name", "name"), ("backend", "backend"), ("driver", "driver")] {
        assert_eq!(value(&device, name), shown[key].as_str().expect("text"), "{text}");
    }
    let limits = section(&text, "Limits and features");
    let binding: u64 = value(&limits, "max_storage_buffer_binding_size").parse().expect("a number");
    assert!(binding >= 128 << 20, "{binding}");
    assert!(["yes", "no"].contains(&value(&limits, "SHADER_F16")));
    // What was asked for decides; both kinds of kernels run on this device.
    let variants = section(&text, "Kernel variants");
    assert_eq!(value(&variants, "tiles64"), "may be chosen");
    assert_eq!(
        variants.iter().find(|row| row[0] == "tiles32").expect("a row")[1..],
        ["off", "JOINTWISE_VARIANT does not name it"]
    );
    let tests = section(&text, "Self-test");
    for kernel in jointwise::kernels::REGISTRY {
        let row = tests.iter().find(|row| row[0] == kernel.name()).expect("a row per family");
        let [error, tolerance, ratio] = [row[2], row[3], row[4]].map(|cell| cell.parse::<f64>().expect("a number"));
        assert!(ratio <= 1.0 && (error - ratio * tolerance).abs() <= 0.02 * tolerance, "{row:?}");
        assert!((1..=4).contains(&row[1].parse::<usize>().expect("a number")), "{row:?}");
    }
    assert!(text.contains("\n## Tuning\n"));
    let environment = section(&text, "Environment");
    assert_eq!(value(&environment, "JOINTWISE_API_KEY"), "set");
    assert_eq!(value(&environment, "JOINTWISE_VARIANT"), "tiles64,cpu");
    assert!(text.contains("\n## Cache folder\n\n`~"), "{text}");
    for private in ["sk-secret-123", &home(&s)] {
        assert!(!text.contains(private), "`{private}` is in {text}");
    }
}

#[test]
fn a_report_without_a_device_says_why() {
    let s = Sandbox::new();
    let ran = report(&s, &["--device", "no such device"], &[]);
    assert_eq!(ran.status, 2);
    assert!(ran.stdout.contains("cannot be opened: --device: no such device"), "{}", ran.stdout);
    assert_eq!(value(&section(&ran.stdout, "Environment"), "JOINTWISE_API_KEY"), "unset");
    s.refused(&["info", "--report", "--json"], &["--json"]);
}

#[test]
fn what_an_earlier_start_disabled_is_named() {
    let s = Sandbox::new();
    let args = ["--variant", "cpu"];
    assert!(report(&s, &args, &[]).ok().stdout.contains("has cached a check"));
    // As a start of this program caches it.
    s.run(&["bench", "--kernels", "add", "--filter", "nothing", "--seconds", "0", "--variant", "cpu"]).ok();
    assert!(report(&s, &args, &[]).ok().stdout.contains("cached a check that all variants passed"));
    let checked = std::fs::read_dir(s.path("cache/jointwise/checked")).expect("a folder");
    for file in checked.map(|e| e.expect("an entry").path()) {
        let text = std::fs::read_to_string(&file).expect("a file").replace(r#""wrong":[]"#, r#""wrong":["cpu"]"#);
        std::fs::write(&file, text).expect("a file");
    }
    let told = report(&s, &args, &[]).ok().stdout;
    assert!(told.contains("cached failures, and starts disable: cpu"), "{told}");
    assert_eq!(value(&section(&told, "Kernel variants"), "cpu"), "may be chosen");
}
