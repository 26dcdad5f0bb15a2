#!/usr/bin/env python3
"""Plants the faults of mutants.toml and says which of them the tests do not see.

usage: run.py [--only NAME,..] [--kind KIND] [--all-tests] [--again] [--list]

All faults are planted into one copy of the tree (target/mutants/tree), each behind a switch: JOINTWISE_MUTANT=NAME turns one on. So the copy is built
once, and a fault costs the tests alone: those that its `tests` name, the fastest first; with --all-tests, where they do not see it, every other test
too. What was found is kept in target/mutants/results.json under the fault's text: a run that was stopped goes on, and changed faults run again (--again:
all of them). Results are of the sources that they were found with: after changes there, --again.

Ends with status 1 where a fault lives, and 2 where one does not apply or the tests fail without any. Needs Python 3.11, nothing else."""
import argparse, hashlib, json, os, shutil, subprocess, sys, time, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
WORK = TARGET / "mutants"
TREE, BUILD, RESULTS = WORK / "tree", WORK / "build", WORK / "results.json"
LOOKUP = "SHADERS.iter().find(|(name, _)| *name == module).ok_or_else(|| at(\"no such module\".into()))?;"


def fail(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def split(mutant):
    """The text before the fault, what it replaces, and the text behind."""
    find = mutant["find"]
    before, rest = find.split("⟦")
    old, after = rest.split("⟧")
    return before, old, after


def planted():
    """The tree's files with every fault behind its switch: path -> bytes."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = {p: (ROOT / p).read_bytes() for p in listed.decode().split("\0") if p and (ROOT / p).is_file()}
    texts, shaders, switches = {}, [], {}
    for number, m in enumerate(MUTANTS, 1):
        before, old, after = split(m)
        text = files[m["file"]].decode()
        if text.count(before + old + after) != 1:
            fail(f"{m['name']}: what it replaces stands {text.count(before + old + after)} times in {m['file']}: change `find`")
        if m["file"].endswith(".wgsl"):
            module = m["file"].removeprefix("shaders/").removesuffix(".wgsl")
            shaders.append((number, module, before + old + after, before + m["put"] + after))
            continue
        at = text.index(before + old + after) + len(before)
        switch = f"(if crate::planted::on({number}) {{ {m['put']} }} else {{ {old} }})"
        switches.setdefault(m["file"], []).append((at, at + len(old), switch, m["name"]))
    for path, some in switches.items():
        text, last = files[path].decode(), None
        for start, end, switch, name in sorted(some, reverse=True):
            if last is not None and end > last:
                fail(f"{name}: another fault replaces a part of the same text in {path}")
            text, last = text[:start] + switch + text[end:], start
        texts[path] = text
    rows = "".join(f"    ({n}, {json.dumps(module)}, r####\"{a}\"####, r####\"{b}\"####),\n" for n, module, a, b in shaders)
    names = "".join(f"    {json.dumps(m['name'])},\n" for m in MUTANTS)
    texts["src/planted.rs"] = f"""//! Which fault is on.
use std::sync::LazyLock;

const NAMES: &[&str] = &[
{names}];
const SHADERS: &[(usize, &str, &str, &str)] = &[
{rows}];

static ON: LazyLock<usize> = LazyLock::new(|| {{
    let Ok(name) = std::env::var("JOINTWISE_MUTANT") else {{ return 0 }};
    1 + NAMES.iter().position(|n| *n == name).expect("a fault of the list")
}});

/// Whether this fault is on.
pub fn on(number: usize) -> bool {{
    *ON == number
}}

/// A shader's text with the fault that is on, if it is there.
pub fn shader(module: &str, text: &'static str) -> &'static str {{
    match SHADERS.iter().find(|s| on(s.0) && s.1 == module) {{
        Some((_, _, old, new)) => Box::leak(text.replacen(old, new, 1).into_boxed_str()),
        None => text,
    }}
}}
"""
    linker = texts.get("src/gpu/shader.rs") or files["src/gpu/shader.rs"].decode()
    if linker.count(LOOKUP) != 1:
        fail("src/gpu/shader.rs: where sources are looked up has changed: change LOOKUP in run.py")
    texts["src/gpu/shader.rs"] = linker.replace(LOOKUP, LOOKUP + "\n        let source = &crate::planted::shader(module, source);")
    texts["src/lib.rs"] = (texts.get("src/lib.rs") or files["src/lib.rs"].decode()) + "\n#[doc(hidden)]\npub mod planted;\n"
    files.update({path: text.encode() for path, text in texts.items()})
    return files


def write_tree(files):
    for path, content in files.items():
        to = TREE / path
        if not to.is_file() or to.read_bytes() != content:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)
            shutil.copymode(ROOT / path, to) if (ROOT / path).exists() else None
    for old in [p for p in TREE.rglob("*") if p.is_file() and str(p.relative_to(TREE)) not in files]:
        old.unlink()


def build(crates):
    """Test crate -> its program; all of them where none is named."""
    # Dependencies that are built already need not be built again.
    if not BUILD.exists() and (TARGET / "debug/deps").is_dir():
        (BUILD / "debug").mkdir(parents=True)
        for part in ("deps", "build", ".fingerprint"):
            subprocess.run(["cp", "-a", TARGET / "debug" / part, BUILD / "debug" / part], check=True)
    command = ["cargo", "test", "--no-run", "--message-format=json"]
    command += [word for crate in sorted(crates) for word in (["--lib"] if crate == "lib" else ["--test", crate])]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILD), "CARGO_PROFILE_DEV_INCREMENTAL": "true"}
    done = subprocess.run(command, cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0:
        print(*(m["message"]["rendered"] for m in messages if m["reason"] == "compiler-message" and m["message"]["level"] == "error"), sep="\n")
        fail("the planted tree does not build: a fault is no expression there, or is of another type (see above)")
    found = {}
    for message in messages:
        if message["reason"] == "compiler-artifact" and message["profile"]["test"] and message.get("executable"):
            kind = message["target"]["kind"]
            found["lib" if "lib" in kind else "bin" if "bin" in kind else message["target"]["name"]] = message["executable"]
    return found


def run(programs, spec, mutant, limit):
    """Whether a test crate (and filter) passes, and how long it took."""
    crate, *filters = spec.split()
    if crate not in programs:
        fail(f"{spec}: there is no test crate {crate}")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "XDG_CACHE_HOME": str(WORK / "cache")}
    environment.pop("JOINTWISE_MUTANT", None)
    if mutant:
        environment["JOINTWISE_MUTANT"] = mutant
    started = time.monotonic()
    command = [ROOT / ".ci/with-driver", programs[crate], *filters]
    try:
        done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False, time.monotonic() - started, "it hangs"
    if done.returncode == 0 and "running 0 tests" in done.stdout and "test result: ok. 0 passed" in done.stdout:
        fail(f"{spec}: no test of that name")
    failed = [line.removeprefix("test ").removesuffix(" ... FAILED") for line in done.stdout.splitlines() if line.endswith("... FAILED")]
    return done.returncode == 0, time.monotonic() - started, ", ".join(failed) or f"status {done.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="faults by name, comma-separated")
    parser.add_argument("--kind", help="faults of a kind")
    parser.add_argument("--all-tests", action="store_true", help="every test where the named ones see nothing")
    parser.add_argument("--again", action="store_true", help="also what was found before")
    parser.add_argument("--list", action="store_true", help="the faults, and what was found")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    key = lambda m: hashlib.sha256(json.dumps([m["file"], m["find"], m["put"]]).encode()).hexdigest()[:16]
    only = args.only.split(",") if args.only else None
    chosen = [m for m in MUTANTS if (only is None or m["name"] in only) and args.kind in (None, m["kind"])]
    if not chosen:
        fail("no such fault")
    if not args.list:
        write_tree(planted())
        programs, sound = build(set() if args.all_tests else {spec.split()[0] for m in chosen for spec in m["tests"]}), {}
        for m in chosen:
            kept = results.get(key(m))
            if kept and not args.again and (kept["caught"] or kept["all_tests"] or not args.all_tests):
                continue
            specs = list(m["tests"])
            if args.all_tests:
                specs += [crate for crate in programs if crate not in specs]
            found = dict(name=m["name"], caught=False, by="", seconds=0.0, all_tests=args.all_tests)
            for spec in specs:
                if spec not in sound:
                    passed, seconds, failed = run(programs, spec, None, 3600)
                    if not passed:
                        fail(f"{spec} fails without any fault: {failed}")
                    sound[spec] = seconds
                passed, seconds, failed = run(programs, spec, m["name"], 120 + 10 * sound[spec])
                found["seconds"] = round(found["seconds"] + seconds, 1)
                if not passed:
                    found.update(caught=True, by=f"{spec}: {failed}")
                    break
            results[key(m)] = found
            RESULTS.write_text(json.dumps(results, indent=1))
            print(f"{'caught' if found['caught'] else 'LIVES':6}  {m['kind']:10}  {m['name']:24}  {found['seconds']:7.1f} s  {found['by'][:90] or m['breaks']}", flush=True)
    found = [(m, results.get(key(m))) for m in chosen]
    ran = [(m, r) for m, r in found if r]
    alive = [m for m, r in ran if not r["caught"]]
    print()
    for kind in dict.fromkeys(m["kind"] for m in chosen):
        of = [r for m, r in found if m["kind"] == kind]
        print(f"{kind:12} {sum(bool(r and r['caught']) for r in of):3} of {len(of)} caught" + (f", {sum(r is None for r in of)} not run" if None in of else ""))
    share = 100 * (len(ran) - len(alive)) / max(len(ran), 1)
    print(f"{len(ran) - len(alive)} of {len(ran)} caught ({share:.0f} %), {len(chosen) - len(ran)} not run")
    for m in alive:
        print(f"lives: {m['name']}: {m['breaks']} ({m['file']})")
    sys.exit(1 if alive else 0)


MUTANTS = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text())["mutant"]
if __name__ == "__main__":
    main()
