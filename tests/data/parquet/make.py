#!/usr/bin/env python3
"""Parquet as the hub converts data sets to (snappy, row groups) and as others write it. Needs pyarrow; run in this folder."""
import pyarrow as pa
import pyarrow.parquet as pq

joint = [{"i_chosen": f"Add {n} and {n}", "r_chosen": str(2 * n), "i_reject": f"Übersetze {n} 漢", "r_reject": "no\n\"idea\"", "score": n / 4,
          "tags": None if n % 2 else ["a", "b"], "note": None} for n in range(7)]
pq.write_table(pa.Table.from_pylist(joint), "joint.parquet", compression="snappy", row_group_size=3)

message = lambda role, content: {"content": content, "role": role}
chats = [{"chosen": [message("user", f"Q{n}"), message("assistant", f"good {n}")],
          "rejected": [message("user", f"Q{n}"), message("assistant", f"bad {n}")]} for n in range(3)]
pq.write_table(pa.Table.from_pylist(chats), "chats.parquet", compression="zstd")
pq.write_table(pa.Table.from_pylist([{"prompt": "P", "completion": "C"}]), "gzip.parquet", compression="gzip")
pq.write_table(pa.table({"prompt": pa.array([], pa.string()), "completion": pa.array([], pa.string())}), "empty.parquet")

# Text columns without the String annotation, as Impala, old Spark and ClickHouse write them; plain.parquet and every codec hold the same rows.
rows = {"prompt": [f"Say {w} é" for w in ("hello", "yes", "no")], "completion": ["hello", "yes", "no"]}
texts = lambda t: {name: pa.array([x.encode() if t == pa.binary() else x for x in column], t) for name, column in rows.items()}
for name, t in (("binary", pa.binary()), ("plain", pa.string())):
    pq.write_table(pa.table(texts(t)), f"{name}.parquet", store_schema=False, compression="none")
for codec in ("brotli", "lz4"):
    pq.write_table(pa.table(texts(pa.string())), f"{codec}.parquet", compression=codec)
# Large and dictionary types, and bytes that are no text in a column that is not read, or in one that is.
wide = {"prompt": pa.array(rows["prompt"], pa.large_string()), "completion": pa.array(rows["completion"]).dictionary_encode(),
        "image": pa.array([b"\xff\xd8\xff"] * 3), "label": pa.array([1, 0, 1], pa.int8())}
pq.write_table(pa.table(wide), "wide.parquet")
pq.write_table(pa.table({"prompt": pa.array([b"Say hello", b"\xff\xfe"]), "completion": ["hello", "yes"]}), "bytes.parquet")
# Messages in large lists of structs whose texts are bytes, absent keys null; labels as a float with NaN, as pandas keeps what is missing.
turn = pa.struct([("role", pa.binary()), ("content", pa.large_binary()), ("name", pa.string())])
told = [[{"role": b"user", "content": f"Q{n}".encode(), "name": None}, {"role": b"assistant", "content": b"A", "name": None}] for n in range(2)]
pq.write_table(pa.table({"messages": pa.array(told, pa.large_list(turn)), "label": pa.array([1.0, float("nan")], pa.float64())}), "nested.parquet")
