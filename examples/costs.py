"""What a private generation will take, before it runs and without a model."""

import mpcache

for policy in ("full", "mpcache"):
    for network in ("loopback", "wan"):
        prices = mpcache.plan("gpt2", prompt_tokens=512, max_new_tokens=2, policy=policy, network=network)
        step = prices.decode[0].cost
        print(
            f"{policy:8} {network:9} a token: {step.online_bytes / 1e6:5.2f} MB online, "
            f"{step.correction_bytes / 1e6:5.2f} MB of correlations, {step.rounds} rounds"
        )
