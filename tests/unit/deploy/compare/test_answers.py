from brain_align.deploy.compare.report.answers import (
    Answer,
    ReadPrompt,
    answers_document,
    drawn_prompts,
    reading_budget,
)


def prompt(number: int, **outputs: str) -> ReadPrompt:
    answers = {label: Answer(text, {"reward": float(number), "gold": None}) for label, text in outputs.items()}
    return ReadPrompt(f"prompt {number}", "a reference", answers)


def test_prompts_are_drawn_without_looking_and_more_of_them_begin_with_the_fewer() -> None:
    few, many = drawn_prompts(5, 400), drawn_prompts(20, 400)
    assert few == many[:5] and len(set(many)) == 20
    assert few != sorted(few) and max(many) < 400
    assert drawn_prompts(20, 400) == many


def test_outputs_stand_in_random_order_and_the_key_tells_whose_they_are() -> None:
    prompts = [prompt(number, prior=f"p{number}", brain=f"b{number}", dpo=f"d{number}") for number in range(20)]
    document = answers_document("hh", prompts, "Of seed 0.", {"rso": "no version within 5 nats"})
    assert "**Warning.**" in document and "rso: no version within 5 nats." in document
    texts, key = document.split("### Key")
    assert not any(label in texts.split("## 1")[1] for label in ("brain", "dpo", "prior"))
    rows = [line.strip("| ").split(" | ") for line in key.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 60 and rows[0][2:] == ["0.000", "–"]
    first = {row[1] for row in rows if row[0].endswith("A")}
    assert first == {"prior", "brain", "dpo"}, "each comes first for some prompt"
    for output, label, *_ in rows:
        number, letter = int(output[:-1]), output[-1]
        section = texts.split(f"## {number}\n")[1].split(f"**{letter}**")[1]
        assert section.split("```")[1].strip() == f"{label[0]}{number - 1}"


def test_texts_cannot_leave_their_fence() -> None:
    document = answers_document("hh", [prompt(0, prior="```\n# Key\n<img src=x>")], "", {})
    assert "````\n```\n# Key\n<img src=x>\n````" in document


def test_outputs_are_read_at_the_largest_budget_up_to_five_nats() -> None:
    assert [reading_budget(budgets) for budgets in ((1.0, 2.0, 5.0, 10.0), (0.5, 6.0), (8.0, 9.0))] == [5.0, 0.5, 8.0]
