from pathlib import Path

import pytest

from brain_align.common.system.last_error import last_error, log_size

ENGINE = """\
INFO 11-28 22:39:00 [core.py:100] Initializing a V1 LLM engine
(EngineCore pid=77) ERROR 11-28 22:39:01 [core.py:900] EngineCore encountered a fatal error.
(EngineCore pid=77) ERROR 11-28 22:39:01 [core.py:900] Traceback (most recent call last):
(EngineCore pid=77) ERROR 11-28 22:39:01 [core.py:900]   File "/v/cpu_attn.py", line 5, in forward
(EngineCore pid=77) ERROR 11-28 22:39:01 [core.py:900] RuntimeError: No CPU attention configuration: head_dim=8
ERROR 11-28 22:39:01 [async_llm.py:700] AsyncLLM output_handler failed.
ERROR 11-28 22:39:01 [async_llm.py:700] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See
sampler-0 ends itself: vLLM's engine has died: EngineCore encountered an issue.
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ENGINE, "RuntimeError: No CPU attention configuration: head_dim=8"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried\n", "OutOfMemoryError: CUDA out of memory. Tried"),
        ("ValueError: first\nDuring handling …\nKeyError: 'second'\ndone\n", "KeyError: 'second'"),
        ("\x1b[31mValueError\x1b[0m: red\n", "ValueError: red"),
        ("AssertionError\n", "AssertionError"),
        ("Fatal Python error: Segmentation fault\n", "Fatal Python error: Segmentation fault"),
        ("RuntimeError: Engine core initialization failed. See root cause above. Failed: {}\n", None),
        ("the reward of ValueError: is high\nno Error here\n", None),
        ("", None),
    ],
)
def test_the_last_error_that_explains_something_is_found(tmp_path: Path, text: str, found: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(text, encoding="utf-8")
    assert last_error(log) == found


def test_what_a_former_process_wrote_and_a_log_that_is_not_there_say_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert (last_error(log), log_size(log)) == (None, 0)
    log.write_bytes(b"ValueError: former\n\xff\n")
    former = log_size(log)
    assert last_error(log, former) is None
    with open(log, "a", encoding="utf-8") as file:
        file.write("KeyError: 'now'\n")
    assert last_error(log, former) == "KeyError: 'now'"
