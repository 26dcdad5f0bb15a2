#!/usr/bin/env python3
"""Files of rows in every form that text has; each but alpaca_data.json, shards/ and the refused ones holds the same three preferences.
Needs the program zstd; run in this folder."""
import csv, gzip, io, json, pathlib, subprocess

here = pathlib.Path(__file__).parent
rows = [
    {"prompt": "Name a colour.", "chosen": "Red.\nOr blue.", "rejected": "No"},
    {"prompt": "Say \"hi\", please; now", "chosen": "hi", "rejected": "Über\talles, 漢"},
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
]
write = lambda name, text: (here / name).write_bytes(text.encode() if isinstance(text, str) else text)
lines = lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

# Stanford Alpaca's form: one list, indented.
alpaca = [{"instruction": "Sort the letters.", "input": "b a", "output": "a b"}, {"instruction": "Say hi.", "input": "", "output": "Hi"}]
write("alpaca_data.json", json.dumps(alpaca, indent=4))
write("rows.jsonl", lines(rows))
write("list.json", json.dumps(rows, ensure_ascii=False))
write("data.json", json.dumps({"data": rows}, ensure_ascii=False, indent=2))
write("train.json", json.dumps({"version": "1.1", "sizes": [3, 4], "train": rows, "about": {"by": "us"}}))
write("several.json", json.dumps({"train": rows, "test": rows[:1]}))


def table(rows, **form):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], **form)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


comma = table(rows, lineterminator="\n")
write("rows.csv", comma)
# A spreadsheet's: a byte order mark, CRLF, semicolons.
write("semicolons.csv", "\ufeff" + table(rows, delimiter=";", lineterminator="\r\n"))
write("rows.tsv", table(rows, delimiter="\t", lineterminator="\n"))
# pandas' index, which has no name.
write("index.csv", table([{"": i, **row} for i, row in enumerate(rows)], lineterminator="\n"))
write("labels.csv", "prompt,completion,label\nSay hi,Hi,1\nSay hi,No,0\nSay yes,Yes,True\nSay yes,No,-1\n")
write("ragged.csv", comma + "two,cells\n")

packed = lambda text: gzip.compress(text.encode(), mtime=0)
squeezed = lambda text: subprocess.run(["zstd", "-19c"], input=text.encode(), stdout=subprocess.PIPE, check=True).stdout
write("list.json.gz", packed(json.dumps(rows)))
write("rows.jsonl.gz", packed(lines(rows)))
write("rows.csv.gz", packed(comma))
write("rows.jsonl.zst", squeezed(lines(rows)))
write("rows.csv.zst", squeezed(comma))

# A folder of a row each, in three forms, with a file that holds none.
(here / "shards").mkdir(exist_ok=True)
write("shards/0.jsonl", lines(rows[:1]))
write("shards/1.csv", table(rows[1:2], lineterminator="\n"))
write("shards/2.json.gz", packed(json.dumps(rows[2:])))
write("shards/README.md", "Three rows.\n")

# Prompts by other names.
write("query.jsonl", lines([{"query": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in rows]))
