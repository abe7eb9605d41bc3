import json

import pytest
from tokenizers.processors import TemplateProcessing

from brain_align.common.config.recipe import Recipe
from brain_align.common.data.prompts import RefusedPromptError
from brain_align.common.errors import UserError
from brain_align.common.schemas import HUMAN, PRIOR
from brain_align.common.store.sample_store import SampleStore
from brain_align.common.store.training_batch import training_batch
from brain_align.deploy.cli import main
from brain_align.deploy.commands.store.import_pairs import choices, groups_of, prior_scores, read_pairs
from brain_align.deploy.demo.pairs import draw_pairs
from brain_align.deploy.demo.truth import quality
from brain_align.deploy.run.directory import RunDirectory
from brain_align.deploy.run.stored_inputs import lacking_scores, read_stored_inputs
from brain_align.deploy.run.yaml_text import dump_yaml
from tests.unit import tiny_models
from tests.unit.factories import groups, recipe_settings, scores

END = 95
ALGORITHM = {"rounds": 2, "prompts_per_round": 4, "batch_prompts": 2, "updates_per_round": 2}


def letters(text):
    return [ord(letter) - 96 for letter in text if letter != " "]


def encode(texts):
    return [letters(text) for text in texts]


def completion(text):
    return [*letters(text), END]


def recipe(**changes):
    limits = {"algorithm": ALGORITHM, "sampling": {"max_tokens": 6}}
    return Recipe.model_validate(recipe_settings(**(limits | changes)))


def pairs_file(path, count=10):
    rows = [{"prompt": f"ab{chr(97 + n)}", "chosen": " good", "rejected": f" {chr(97 + n)}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_become_groups_with_people_s_choices_as_rewards(tmp_path):
    read = read_pairs(pairs_file(tmp_path / "pairs.jsonl"), recipe(), encode, completion)
    rows = groups_of(
        read.usable, [[[-0.5] * len(out) for out in pair.outputs] for pair in read.usable], "run", recipe()
    )
    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(rows)
    store.append_scores(choices(rows))
    store.append_scores(prior_scores(rows, "digest"))
    ids = rows["group_id"].to_pylist()
    batch = training_batch(store, ids, reward=HUMAN, prior=PRIOR).to_pylist()
    assert rows["round"].to_pylist() == [0] * 4 + [1] * 6
    assert sorted(row["prompt_token_ids"][-1] for row in batch) == list(range(1, 11))
    for row in batch:
        last = row["prompt_token_ids"][-1]
        assert row["output_token_ids"] == [[7, 15, 15, 4, END], [last, END]]
        assert row["rewards"] == [1, 0]
        assert row["prior_logprobs"] == row["proposal_logprobs"] == [-2.5, -1.0]


def test_the_order_is_the_seed_s(tmp_path):
    path = pairs_file(tmp_path / "pairs.jsonl")

    def order(seed):
        return [pair.prompt for pair in read_pairs(path, recipe(seed=seed), encode, completion).usable]

    assert order(1) == order(1) != order(2)


def test_what_cannot_be_used_is_counted(tmp_path):
    path = pairs_file(tmp_path / "pairs.jsonl")
    odd = [("a", " same", " same"), ("a", " muchtoolong", " a"), ("a" * 600, " a", " b"), ("", " a", " b")]
    with open(path, "a") as file:
        file.writelines(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in odd)
    read = read_pairs(path, recipe(), encode, completion)
    assert len(read.usable) == 10
    assert sorted(read.skipped.values()) == [1, 1, 2]


def test_outputs_may_be_messages_as_in_ultrafeedback(tmp_path):
    def turns(*contents):
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]

    shapes = [
        {"prompt": "ab", "chosen": turns("ab", "good"), "rejected": turns("ab", "bad")},  # ultrafeedback_binarized
        {"prompt": turns("ab"), "chosen": turns("ab", "good")[1:], "rejected": turns("ab", "bad")[1:]},  # TRL, explicit
        {"chosen": turns("ab", "good"), "rejected": turns("ab", "bad")},  # TRL, implicit
        {"prompt": "ab", "chosen": "good", "rejected": "bad"},
    ]
    data = {"train": "a", "validation": "b", "test": "c", "chat_template": "model"}
    for shape in shapes:
        path = tmp_path / "pairs.jsonl"
        path.write_text(json.dumps(shape) + "\n" + json.dumps(shape) + "\n")
        read = read_pairs(path, recipe(data=data), encode, completion)
        assert {(pair.prompt, pair.texts) for pair in read.usable} == {("ab", ("good", "bad"))}, shape
        if shape is not shapes[-1]:
            with pytest.raises(UserError, match=r"row 1, has (a list of messages|no text) in column"):
                read_pairs(path, recipe(), encode, completion)


def test_pairs_without_a_text_are_counted_or_named(tmp_path):
    path = pairs_file(tmp_path / "pairs.jsonl")
    with open(path, "a") as file:
        for row in ({"prompt": None, "chosen": "a", "rejected": "b"}, {"prompt": "a", "chosen": None, "rejected": "b"}):
            file.write(json.dumps(row) + "\n")
    skipped = read_pairs(path, recipe(), encode, completion).skipped
    assert skipped == {"prompt empty or over data.max_prompt_tokens": 1, "chosen or rejected is null": 1}
    path.write_text(json.dumps({"prompt": "a", "chosen": 3, "rejected": "b"}))
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 1, has no text in column 'chosen': it is the number 3"):
        read_pairs(path, recipe(), encode, completion)


def test_a_pair_that_cannot_be_encoded_is_named_by_its_row(tmp_path):
    def refuse(text):
        if text == " c":
            raise RefusedPromptError(0, "it has the token '<image>'")
        return completion(text)

    path = pairs_file(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 3, cannot be encoded \(it has the token '<image>'\)"):
        read_pairs(path, recipe(), encode, refuse)


def test_a_file_without_pairs_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "label": "b"}\n')
    with pytest.raises(UserError, match=r"row 1, has no text in column 'chosen' \(its columns: .*; pairs need"):
        read_pairs(path, recipe(), encode, completion)
    with pytest.raises(UserError, match=r"has 1 usable pairs, fewer than algorithm.batch_prompts=2"):
        read_pairs(pairs_file(path, count=1), recipe(), encode, completion)


def test_the_command_makes_a_store_that_dpo_can_train_on(tmp_path, capsys):
    tokenizer = tiny_models.gpt2_like_tokenizer()
    model = tiny_models.llama(vocabulary=len(tokenizer))
    tiny_models.save(model, tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    policy = {"model": str(tmp_path / "policy"), "dtype": "float32"}
    settings = recipe_settings(policy=policy, algorithm=ALGORITHM, sampling={"max_tokens": 12})
    (tmp_path / "recipe.yaml").write_text(dump_yaml(settings))
    target = tmp_path / "pairs"
    command = ["store", "import-pairs", str(tmp_path / "recipe.yaml"), "--output", str(target)]
    assert main([*command, "--input", str(pairs_file(tmp_path / "pairs.jsonl"))]) == 0
    assert "10 pairs in 2 rounds" in capsys.readouterr().out
    assert main([*command, "--input", str(tmp_path / "pairs.jsonl")]) == 2
    stored = settings | {
        "objective": {"name": "dpo"},
        "sampler": {"replicas": 0},
        "store": {"uri": str(target)},
    }
    run = Recipe.model_validate(stored)
    inputs = read_stored_inputs(run, RunDirectory(tmp_path / "run"))
    assert lacking_scores(run, inputs) == {}
    assert {facts.name for facts in inputs.source.store.scorers()} == {HUMAN, PRIOR}


@pytest.mark.parametrize(("template", "prompt"), [("none", "<s> b"), ("model", "<s>[ b]")])
def test_prompts_are_encoded_as_in_a_run_and_outputs_get_no_start_of_text(tmp_path, template, prompt):
    tokenizer = tiny_models.gpt2_like_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $0", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}{% for turn in messages %}[{{ turn.content }}]{% endfor %}"
    model = tiny_models.llama(vocabulary=len(tokenizer))
    model.config.eos_token_id = tokenizer.eos_token_id
    tiny_models.save(model, tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    rows = [{"prompt": " b", "chosen": " good", "rejected": f" bad{'!' * count}"} for count in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = {"model": str(tmp_path / "policy"), "dtype": "float32"}
    settings = recipe_settings(policy=policy, algorithm=ALGORITHM, sampling={"max_tokens": 12})
    settings["data"] |= {"chat_template": template}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(settings))
    command = ["store", "import-pairs", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "store")]
    assert main([*command, "--input", str(tmp_path / "pairs.jsonl")]) == 0
    for batch in SampleStore(tmp_path / "store", None).batches():
        for row in batch.to_pylist():
            assert tokenizer.decode(row["prompt_token_ids"]) == prompt
            assert [tokenizer.decode(one["token_ids"])[-len(end) :] for one in row["outputs"]] == [end, end]
            assert tokenizer.decode(row["outputs"][0]["token_ids"]) == f" good{end}"


def local_policy(tmp_path):
    tokenizer = tiny_models.gpt2_like_tokenizer()
    tiny_models.save(tiny_models.llama(vocabulary=len(tokenizer)), tmp_path / "policy")
    return {"model": str(tmp_path / "policy"), "dtype": "float32"}


def test_dpo_on_a_store_without_choices_is_refused_before_anything_starts(tmp_path):
    from brain_align.deploy.run.preflight import check_inputs

    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(groups("a", "b", "c", "d"))
    store.append_groups(groups("e", "f", round=1))
    stored = {
        "policy": local_policy(tmp_path),
        "objective": {"name": "dpo"},
        "algorithm": ALGORITHM,
        "sampler": {"replicas": 0},
        "store": {"uri": str(tmp_path / "store")},
    }
    with pytest.raises(
        UserError, match=r"lack values of 'human', human preference pairs, .*import-pairs.* or choose dpo-sft"
    ):
        check_inputs(recipe(**stored), RunDirectory(tmp_path / "run"))


def test_gold_that_is_missing_is_refused_before_anything_starts(tmp_path):
    from brain_align.deploy.run.preflight import check_inputs

    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(groups("a", "b", "c", "d", gold_text=None))
    stored = {
        "policy": local_policy(tmp_path),
        "objective": {"name": "slic"},
        "scorers": {"reward": {"kind": "hh", "path": str(tmp_path / "absent")}},
        "algorithm": ALGORITHM | {"rounds": 1},
        "sampler": {"replicas": 0},
        "store": {"uri": str(tmp_path / "store")},
    }
    with pytest.raises(UserError, match=r"4 of the 4 groups .* have no gold_text, .*objective.sft_on=best"):
        check_inputs(recipe(**stored), RunDirectory(tmp_path / "run"))


def test_all_that_is_wrong_with_a_source_store_is_said_together(tmp_path):
    from brain_align.deploy.run.preflight import check_inputs

    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(groups("a", "b", "c", "d", gold_text=None, prompt_token_ids=[10**6]))
    stored = {
        "policy": local_policy(tmp_path),
        "objective": {"name": "slic"},
        "scorers": {"reward": {"kind": "hh", "path": str(tmp_path / "absent")}},
        "algorithm": ALGORITHM | {"rounds": 2},
        "sampler": {"replicas": 0},
        "store": {"uri": str(tmp_path / "store")},
    }
    with pytest.raises(UserError) as refused:
        check_inputs(recipe(**stored), RunDirectory(tmp_path / "run"))
    for mistake in ("has 0 groups of round 1", "have no gold_text", "lack values of 'reward'", "has token id 1000000"):
        assert mistake in str(refused.value)


def test_rso_on_a_store_of_groups_too_small_is_refused_before_anything_starts(tmp_path):
    from brain_align.deploy.run.preflight import check_inputs

    ids = ("a", "b", "c", "d")
    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(groups(*ids))
    for scorer in ("reward", PRIOR):
        store.append_scores(scores(scorer, {name: [0.0, 1.0] for name in ids}))
    stored = {
        "policy": local_policy(tmp_path),
        "objective": {"name": "rso"},
        "algorithm": ALGORITHM | {"rounds": 1},
        "sampler": {"replicas": 0},
        "store": {"uri": str(tmp_path / "store")},
    }
    with pytest.raises(UserError, match=r"store: objective.name=rso would accept 2 of 2 outputs"):
        check_inputs(recipe(**stored), RunDirectory(tmp_path / "run"))


def test_the_demo_s_people_mostly_choose_the_better_summary():
    drawn = [pair for pair, _ in zip(draw_pairs(0), range(300), strict=False)]
    prompts = [pair["prompt"] for pair in drawn]
    better = [
        chosen > rejected
        for chosen, rejected in zip(
            quality(prompts, [pair["chosen"] for pair in drawn]),
            quality(prompts, [pair["rejected"] for pair in drawn]),
            strict=True,
        )
    ]
    assert sum(better) / len(better) > 0.7


def test_a_run_that_trains_on_stored_gold_remembers_how_texts_become_token_ids(tmp_path):
    from brain_align.deploy.run.preflight import check_inputs

    ids = ("a", "b", "c", "d")
    store = SampleStore(tmp_path / "store", "run")
    store.append_groups(groups(*ids, gold_text=" good", prompt_token_ids=[1]))
    for scorer in ("reward", PRIOR):
        store.append_scores(scores(scorer, {name: [0.0, 1.0] for name in ids}))
    stored = {
        "policy": local_policy(tmp_path),
        "objective": {"name": "slic"},
        "algorithm": ALGORITHM | {"rounds": 1},
        "sampler": {"replicas": 0},
        "store": {"uri": str(tmp_path / "store")},
    }

    def facts(eos):
        tiny_models.gpt2_like_tokenizer(eos=eos).save_pretrained(tmp_path / "policy")
        return check_inputs(recipe(**stored), RunDirectory(tmp_path / "run")).facts()

    first, other = facts("<|endoftext|>"), facts("<|end|>")
    assert first["token_ids"] != other["token_ids"]
    assert first["source"] == other["source"]
