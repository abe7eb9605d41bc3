"""Summaries of the demo's posts, from excellent to bad.

A writer's `skill` in [0, 1] determines how likely each fact is told, how often one is made up, and how much the writer
rambles or slips. The reference summaries ("gold") are by fairly skilled writers, not perfect ones, as human references
are: a policy can be better than they are. The SFT model imitates the whole range.
"""

from random import Random

from brain_align.deploy.demo.lexicon import FACTS, KEY_FACTS

# By the facts that the clause tells; the most telling ones that were chosen are used.
EVENTS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset({"who", "deed", "thing"}): (
        "my {who} {deed} my {thing}",
        "{who} {deed} my {thing}",
        "my {thing} got {deed} by my {who}",
    ),
    frozenset({"deed", "thing"}): ("someone {deed} my {thing}", "my {thing} got {deed}"),
    frozenset({"who", "thing"}): ("my {who} took my {thing}", "fight with {who} over {thing}"),
    frozenset({"who", "deed"}): ("my {who} {deed} something",),
    frozenset({"who"}): ("problem with my {who}", "my {who} is bad"),
    frozenset({"thing"}): ("problem with my {thing}", "my {thing} is gone"),
    frozenset({"deed"}): ("something got {deed}",),
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "excuse": ("calls it a {excuse}", "says it was a {excuse}", "all for a {excuse}"),
    "city": ("we live in {city}", "this is in {city}"),
    "feel": ("i feel {feel}", "i am {feel}", "feeling {feel}", "now i am {feel}"),
    "ask": ("should i {ask}?", "do i {ask}?", "is it ok to {ask}?", "i might {ask}."),
}
FILLERS = ("so basically", "long story short", "to be honest", "you know", "sorry for this")
JOINTS = (", ", " and ", ". ")


def draw_skill(random: Random, *, gold: bool) -> float:
    """Draw the skill of a reference writer (`gold`), or of any writer, whom the SFT model imitates."""
    return random.betavariate(5, 2) if gold else random.betavariate(1.2, 1.5)


def write_summary(random: Random, story: dict[str, str], skill: float) -> str:
    """Summarise `story` with the given skill; starts with a space, as real labels do."""
    told = _facts_told(random, story, skill)
    clauses = [form.format(**told) for form in _clause_forms(random, told)]
    if random.random() < 0.5 * (1 - skill):
        clauses.insert(0, random.choice(FILLERS) + " " + clauses.pop(0))
    if random.random() < 0.2 * (1 - skill):
        clauses.append(random.choice(clauses).rstrip("?."))
    return " " + _slip(random, _join(random, clauses), skill)


def _facts_told(random: Random, story: dict[str, str], skill: float) -> dict[str, str]:
    """Choose the facts to tell; an unskilled writer leaves out more, makes up more, and adds side details."""
    kept = [slot for slot in KEY_FACTS if random.random() < 0.3 + 0.65 * skill]
    if random.random() < 0.4 * (1 - skill):
        kept.append("city")
    kept = kept or [random.choice(list(KEY_FACTS))]
    told = {slot: story[slot] for slot in kept}
    for slot in kept:
        if random.random() < 0.25 * (1 - skill):
            told[slot] = random.choice(FACTS[slot])
    return told


def _clause_forms(random: Random, told: dict[str, str]) -> list[str]:
    """Return the templates of one summary, in order: the event first, the question last."""
    event = frozenset(told) & {"who", "deed", "thing"}
    forms = [random.choice(EVENTS[event])] if event else []
    return forms + [random.choice(CLAUSES[slot]) for slot in ("excuse", "city", "feel", "ask") if slot in told]


def _join(random: Random, clauses: list[str]) -> str:
    text = clauses[0]
    for clause in clauses[1:]:
        text = text.rstrip("?.") + random.choice(JOINTS) + clause
    return text if text[-1] in "?." else text + "."


def _slip(random: Random, text: str, skill: float) -> str:
    """Sometimes truncate the text, or swap two words: the less skill, the more often."""
    words = text.split(" ")
    if len(words) < 4 or random.random() > 0.3 * (1 - skill):
        return text
    if random.random() < 0.5:
        return " ".join(words[: random.randint(2, len(words) - 1)])
    first, second = random.sample(range(len(words)), 2)
    words[first], words[second] = words[second], words[first]
    return " ".join(words)
