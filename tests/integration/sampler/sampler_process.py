"""A sampler in a process of its own: samples one lease alone, writes its outputs, and waits to be killed."""

import asyncio
import json
import sys
import time
from pathlib import Path

from brain_align.common.durable import write_file
from brain_align.common.policies import PolicyRegistry
from tests.integration.sampler.sampled_policies import Policies, outputs, sampled


def main() -> None:
    model, registry, result = map(Path, sys.argv[1:])
    policies = Policies(model, PolicyRegistry(registry))
    sampler = policies.sampler()
    rows = asyncio.run(sampled(sampler, policies.lease(1, alone=True, seed=7)))
    write_file(result, json.dumps(outputs(rows)))
    time.sleep(600)


if __name__ == "__main__":
    main()
