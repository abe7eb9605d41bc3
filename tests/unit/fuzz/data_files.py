"""Files of prompts, outputs and pairs, in every format, with changed bytes."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit.factories import recipe_settings
from tests.unit.fuzz.command import ended
from tests.unit.fuzz.mutations import CHANGES, SHARE, changed

TURNS = [{"role": "user", "content": "the cat sat"}]
REST = {"outputs": ["sat", "on"], "chosen": " sat", "rejected": " on"}
ROWS: list[dict[str, Any]] = [
    {"prompt": f"the cat {number}", "turns": TURNS, "label": "the mat", **REST} for number in range(12)
]
READ = (".jsonl", ".jsonl.gz", ".parquet", ".arrow", ".feather", ".ipc")
SUFFIXES = (*READ, *READ, ".json", ".csv", ".zst")
CODECS = ("NONE", "snappy", "gzip", "zstd", "lz4")
JSON = (
    '{"prompt": "\\ud83d"}',
    '{"prompt": 1e999, "outputs": [NaN]}',
    '{"prompt": "' + "x" * 200_000 + '"}',
    "[" * 5000,
    '{"a":' * 3000,
    "9" * 5000,
    '{"prompt": {"a": null}, "outputs": {}}',
    '{"prompt": "a", "prompt": "b"}',
    "\0\0",
    "null",
    '{"prompt": [], "turns": [[]], "chosen": 1}',
)
EXAMPLES = st.tuples(
    st.sampled_from(["score", "run", "turns", "pairs"]),
    st.sampled_from(SUFFIXES),
    st.sampled_from(CODECS),
    st.lists(st.tuples(st.sampled_from(JSON), SHARE), max_size=2),
    st.lists(CHANGES, max_size=3),
)


def prepare(room: Path) -> None:
    from tests.unit.tiny_models import gpt2_like_tokenizer, llama, save

    tokenizer = gpt2_like_tokenizer()
    save(llama(vocabulary=len(tokenizer)), Path("policy"))
    tokenizer.save_pretrained("policy")
    for name, data in (("prompt", {}), ("turns", {"prompt_column": "turns", "chat_template": "template.jinja"})):
        splits = {split: "rows" for split in ("train", "validation", "test")}
        settings = recipe_settings(
            data={**splits, "max_prompt_tokens": 40, **data},
            policy={"model": "policy", "dtype": "float32"},
            sampling={"max_tokens": 8},
            scorers={"reward": {"kind": "function", "function": "builtins:len"}},
            algorithm={"prompts_per_round": 2, "updates_per_round": 1, "batch_prompts": 2},
        )
        Path(f"{name}.yaml").write_text(dump_yaml(settings))
    Path("template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def attempt(room: Path, example: Any) -> None:
    use, suffix, codec, lines, changes = example
    file = Path(f"rows{suffix}")
    file.write_bytes(changed(content(suffix, codec, lines), changes))
    with mock.patch("ray.init", side_effect=ConnectionError("nothing is started here")):
        match use:
            case "score":
                ended("score", "prompt.yaml", "--input", str(file), "--output", "scored.jsonl", statuses=(2,))
            case "pairs":
                shutil.rmtree("pairs", ignore_errors=True)
                ended("store", "import-pairs", "prompt.yaml", "--input", str(file), "--output", "pairs")
            case _:
                splits = [f"data.{split}={file}" for split in ("train", "validation", "test")]
                recipe = "turns.yaml" if use == "turns" else "prompt.yaml"
                ended("run", recipe, *splits, statuses=(2,))
                shutil.rmtree("runs", ignore_errors=True)


def content(suffix: str, codec: str, lines: list[tuple[str, float]]) -> bytes:
    if "json" in suffix or suffix in (".csv", ".zst"):
        written = [json.dumps(row) for row in ROWS]
        for line, at in lines:
            written.insert(int(at * len(written)), line)
        text = "\n".join(written).encode()
        return gzip.compress(text) if suffix.endswith(".gz") else text
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        pq.write_table(table, sink, compression=codec)
        return sink.getvalue().to_pybytes()
    if codec == "snappy":
        table = table.set_column(0, "prompt", table["prompt"].dictionary_encode())
    if codec == "gzip":
        views = [one.with_type(pa.string_view()) if one.type == pa.string() else one for one in table.schema]
        table = table.cast(pa.schema(views))
    options = pa.ipc.IpcWriteOptions(compression=codec if codec in ("zstd", "lz4") else None)
    make = pa.ipc.new_stream if suffix == ".ipc" else pa.ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
