"""What the words and marks on a comparison's page mean."""

GLOSSARY = {
    "prior, p": "The policy before training. A trained one is called q.",
    "gold": "The reference output that the data have for a prompt, such as one that a person wrote.",
    "train-RM win rate": "Percent of test prompts for which the reward model that the methods train on gives the "
    "policy's output a higher reward than gold; equal rewards are no win.",
    "truth, or another judge": "A scorer whose values nobody was trained on, such as a made-up world's ground truth: "
    "it tells a better answer from one that only has a better reward. Its mean is over the policy's outputs, its win "
    "rate against gold.",
    "reward": "Mean reward of the policy's outputs; only differences mean anything.",
    "KL(q‖p)": "How far the policy has gone from the prior: the mean of log q − log p over its own outputs, nats.",
    "each seed": "The figure of every seed by itself, in the order of --seeds. A seed has prompts, samples and initial "
    "weights of its own, and all methods share them.",
    "±": "Half the width of the 95 % interval: what other test prompts would change and, with two or more seeds, other "
    "seeds.",
    "versions, †": "Of each seed, the version of the policy with the highest win rate on validation prompts, which is "
    "the one tested: k after the k-th round's updates. † is version 0, the prior: no later one was better.",
    "rate, *": "The learning rate with the highest validation win rate of the grid; * where it is the grid's smallest "
    "or largest, so that a better one may lie outside. After a difference, * is for a 95 % interval without 0.",
    "n": "Outputs sampled for each prompt; together they are a group.",
    "run, s a run": "A run is one training run: a method, a learning rate, a seed and n. Its seconds are from the "
    "learner's start to the end of evaluation, with whatever ran beside it.",
    "dpo-sft, dpo": "DPO on pairs of the prior's outputs that the reward ranks; on pairs that people chose between.",
    "+iw": "With importance weights: each pair counts in both orders, weighted by the reward's probability that it is "
    "the right one.",
    "+iw+n": "All n outputs of a group together, each with its importance weight, in place of pairs.",
    "brain": "The same on outputs that each round samples from the newest policy (the updated proposal).",
    "no-baseline": "brain without the baseline that it subtracts from the weights.",
    "fixed-proposal": "brain with the prior's outputs in every round; the same loss as +iw+n.",
}
"""By term, in the order in which a reader meets them."""
