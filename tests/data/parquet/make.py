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
