#!/usr/bin/env python3
"""Gives shaders to one of Microsoft's compilers: check_hlsl.py COMPILER DLL MODEL FOLDER WINE [ARGUMENT...]

COMPILER is fxc or dxc, MODEL 5_1, 6_0 or 6_6; FOLDER holds list.tsv and the files of tests/shaders.rs, and compile_hlsl.exe. Every core has a
compiler that goes from file to file; one that dies or hangs costs the file that it was at, after a second try. A shader fails that does not
compile, or takes more than 5 s of the processor."""
import concurrent.futures, os, pathlib, queue, subprocess, sys, threading, time

MOST_SECONDS = 5.0
HANGS_SECONDS = 120.0

compiler, dll, model, folder, wine, *extra = sys.argv[1:]
folder = pathlib.Path(folder).resolve()


def windows_path(path):
    return "Z:" + os.path.abspath(path)


class Compiler:
    """A process that answers each line with one."""

    def __init__(self):
        command = [wine, str(folder / "compile_hlsl.exe"), compiler, windows_path(dll)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.answers = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        # Wine starts, and the compiler is loaded: not the first shader's time.
        self.ask(f"nothing main cs_{model}")

    def listen(self):
        for line in self.process.stdout:
            self.answers.put(line.strip())
        self.answers.put(None)

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            return self.answers.get(timeout=HANGS_SECONDS) or "the compiler ended"
        except (BrokenPipeError, queue.Empty) as error:
            return f"no answer: {type(error).__name__}"

    def seconds(self):
        """Time of the processor so far: a busy machine does not count."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.kill()
        self.process.wait()


local = threading.local()


def compile_once(file, entry):
    if not getattr(local, "compiler", None):
        local.compiler = Compiler()
    before = local.compiler.seconds()
    answer = local.compiler.ask(" ".join([windows_path(folder / file), entry, f"cs_{model}", *extra]))
    seconds = local.compiler.seconds() - before
    if answer != "ok" and not answer.startswith("FAIL"):
        local.compiler.end()
        local.compiler = None
    return answer, seconds


def check(row):
    file, entry, key = row
    for _ in range(2):
        answer, seconds = compile_once(file, entry)
        if answer == "ok" and seconds <= MOST_SECONDS:
            return True, seconds
        if answer == "ok" or answer.startswith("FAIL"):
            break
    print(f"{file} {key}: {answer if answer != 'ok' else f'{seconds:.1f} s'}", flush=True)
    return False, seconds


rows = [line.split("\t") for line in (folder / "list.tsv").read_text().splitlines()]
rows = [row for row in rows if row[0].endswith(f".{model}.hlsl")]
started = time.monotonic()
with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    results = list(pool.map(check, rows))
failed = sum(not passed for passed, _ in results)
seconds = sorted(s for _, s in results)
if not rows:
    sys.exit(f"{folder}: no shaders of model {model}")
print(
    f"{compiler.upper()}, shader model {model}: {len(rows)} shaders, {failed} failed, "
    f"median {1e3 * seconds[len(seconds) // 2]:.0f} ms, longest {seconds[-1]:.1f} s, sum {sum(seconds):.0f} s; {time.monotonic() - started:.0f} s in all"
)
sys.exit(bool(failed))
