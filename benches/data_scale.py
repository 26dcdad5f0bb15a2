#!/usr/bin/env python3
"""From a file of pairs to tokens: seconds, of all cores and by the clock, tokens a second and memory of a first and a second start, on all cores and on one.

    benches/data_scale.py target/release/jointwise [--rows 100000] [--model models/demo] [--out FILE.md]

Pairs share an instruction of 22 words; responses have 6 to 36. The model's folder is copied with 2,048 positions, so that all rows are kept. Needs
Linux and Python alone."""
import argparse, json, os, random, shutil, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("--rows", type=int, default=100_000)
parser.add_argument("--model", default="models/demo")
parser.add_argument("--out")
args = parser.parse_args()

# Words as often as in a text: the n-th in proportion to 1/n.
draw = random.Random(1)
syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
words = ["".join(draw.choices(syllables, k=draw.choice([1, 1, 2, 2, 2, 3]))) for _ in range(20_000)]
weights = [1 / (n + 1) for n in range(len(words))]
for i in range(1, len(weights)):
    weights[i] += weights[i - 1]


def text(n):
    drawn = draw.choices(words, cum_weights=weights, k=n)
    return ". ".join(" ".join(drawn[i : i + 12]).capitalize() for i in range(0, n, 12)) + "."


def run(cache, **environment):
    command = [args.program, "check", "--model", model, "--data", path, "--rows", "0", "--json"]
    started = time.monotonic()
    child = subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": cache, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, told = child.communicate()
    seconds = time.monotonic() - started
    if child.returncode:
        sys.exit(told.decode())
    return seconds, json.loads(out), told.decode().splitlines()


def peak(cache, **environment):
    """Seconds, the report, what was told, seconds of cores and MiB at most: of a process of its own, since children's peaks are one number."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        done = run(cache, **environment)
        import resource
        with os.fdopen(write, "w") as to:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            json.dump([*done, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], to)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as of:
        done = of.read()
    os.waitpid(pid, 0)
    return json.loads(done or "null") or sys.exit("the program failed")


with tempfile.TemporaryDirectory() as folder:
    path, model = os.path.join(folder, "pairs.jsonl"), os.path.join(folder, "model")
    shutil.copytree(args.model, model)
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    with open(os.path.join(model, "config.json"), "w") as file:
        json.dump({**config, "max_position_embeddings": 2048}, file)
    with open(path, "w") as file:
        for _ in range(args.rows):
            file.write(json.dumps({"prompt": text(22), "chosen": text(draw.randint(6, 36)), "rejected": text(draw.randint(6, 36))}) + "\n")
    cores = os.cpu_count()
    lines = ["| start | seconds | of cores | tokens a second | a second of a core | MiB at most |", "|---|---|---|---|---|---|"]
    reports = []
    for name, cache, environment in [
        ("first, one core", "one", {"RAYON_NUM_THREADS": "1"}),
        (f"first, {cores} cores", "all", {}),
        ("second", "all", {}),
    ]:
        seconds, report, told, used, mib = peak(os.path.join(folder, cache), **environment)
        reports.append(report)
        n = report["n_tokens"]
        lines.append(f"| {name} | {seconds:.1f} | {used:.1f} | {n / seconds:,.0f} | {n / used:,.0f} | {mib:.0f} |")
        print(lines[-1], *[line for line in told if line.startswith("tokenising")][-1:], file=sys.stderr)
    assert reports[0] == reports[1] == reports[2], "the starts differ"
    store = os.path.join(folder, "all", "jointwise", "tokens")
    kept = sum(os.path.getsize(os.path.join(store, name)) for name in os.listdir(store))
    lines.append("")
    lines.append(f"{args.rows:,} pairs, {os.path.getsize(path) / 2**20:.0f} MiB; {n:,} tokens, {n / args.rows:.0f} a pair: "
                 f"{4 * n / 2**20:.0f} MiB at 4 bytes each; kept in {kept / 2**20:.0f} MiB.")
table = "\n".join(lines) + "\n"
print(table)
if args.out:
    open(args.out, "w").write(table)
