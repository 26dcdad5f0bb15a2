#!/usr/bin/env python3
"""Compares what in_wine.sh left: compare_runs.py FOLDER. Vulkan under Wine must give the bits of Linux (the driver is the same); DX12, whose FXC
fuses multiplications and additions otherwise, numbers within 1e-5 and the same text of greedy generation."""
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
failed = 0


def tell(what, passed):
    global failed
    failed += not passed
    print(f"{'ok    ' if passed else 'FAILED'}  {what}")


def read(name):
    path = folder / name
    return path.read_bytes() if path.is_file() else None


def numbers(value):
    """Every number of a JSON value but for times."""
    if isinstance(value, dict):
        return [n for key, v in value.items() if key not in ("seconds", "tokens_per_second") for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


def lines(name):
    text = read(name)
    return numbers([json.loads(line) for line in text.decode().splitlines()]) if text else None


def close(a, b):
    return a is not None and b is not None and len(a) == len(b) and all(abs(x - y) <= 1e-5 * max(1, abs(x)) for x, y in zip(a, b))


for name in ("linux", "vulkan", "dx12"):
    info = read(f"{name}/info.json")
    info = json.loads(info.decode().strip().splitlines()[-1]) if info else {}
    tell(f"{name}: self-test on {info.get('device', {}).get('name')}, {info.get('device', {}).get('driver')}", info.get("self_test_failed") == [])
    adapter = "adapter_model.safetensors"
    tell(f"{name}: a resumed run has the bits of a whole one", read(f"{name}/whole/{adapter}") == read(f"{name}/resumed/{adapter}") != None)
for file in ("score.jsonl", "whole/adapter_model.safetensors", "greedy.txt", "sampled.txt"):
    tell(f"vulkan: {file} has Linux's bits", read(f"linux/{file}") == read(f"vulkan/{file}") != None)
for file in ("score.jsonl", "whole/metrics.jsonl"):
    tell(f"dx12: {file} within 1e-5 of Linux", close(lines(f"linux/{file}"), lines(f"dx12/{file}")))
tell("dx12: greedy.txt is Linux's", read("linux/greedy.txt") == read("dx12/greedy.txt") != None)
own = (read("windows.txt") or b"").decode(errors="replace")
tell("a judge's command keeps its quotes", own.count("status 0") == 1)
tell("a command that does not end is ended", "timeout" in own and "in time: 1" in own)
tell("names of devices are refused", own.count("keeps for a device") == 2 and own.count("status 2") == 2)
# The comparison sees a difference.
tell("(other numbers differ)", not close([1.0, 2.0], [1.0, 2.001]) and not close([1.0], None))
sys.exit(bool(failed))
