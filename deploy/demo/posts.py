"""The posts of the demo: short texts in the form of Reddit posts, each telling one story of seven facts."""

from random import Random

from brain_align.deploy.demo.lexicon import FACTS

_SUBREDDITS = ("relationships", "advice", "offmychest", "legaladvice", "AskReddit")
_TITLES = (
    "My {who} and my {thing}",
    "Trouble with my {who}",
    "My {thing} is gone",
    "I feel {feel} today",
    "What now?",
)
_DEEDS = (
    "My {who} {deed} my {thing}.",
    "Last week my {who} {deed} my {thing}.",
    "My {thing} was {deed} by my {who}.",
)
_EXCUSES = ("It was only a {excuse}, I hear.", "They say it was a {excuse}.", "They call it a {excuse}.")
_FEELINGS = ("I feel {feel}.", "Now I am {feel}.", "This makes me {feel}.")
_PLACES = ("We live in {city}.", "I work in {city}.", "It is hot in {city}.")
_QUESTIONS = ("Should I {ask}?", "Is it time to {ask}?", "Do I have to {ask}?")


def draw_story(random: Random) -> dict[str, str]:
    """Draw one word for every slot of the lexicon."""
    return {slot: random.choice(words) for slot, words in FACTS.items()}


def write_post(random: Random, story: dict[str, str]) -> str:
    """Tell `story` as a prompt in the TL;DR format: `SUBREDDIT: …` up to and with `TL;DR:`."""
    middle = [random.choice(forms) for forms in (_EXCUSES, _FEELINGS, _PLACES)]
    random.shuffle(middle)
    sentences = [random.choice(_DEEDS), *middle, random.choice(_QUESTIONS)]
    template = (
        f"SUBREDDIT: r/{random.choice(_SUBREDDITS)}\n"
        f"TITLE: {random.choice(_TITLES)}\n"
        f"POST: {' '.join(sentences)}\n"
        f"TL;DR:"
    )
    return template.format(**story)
